"""Chapter 04: rotary position embeddings, the angles and the rotation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from nanovlm.course.exercises.common import expect_gradients, noise
from nanovlm.course.judge.exercise import Case, Exercise, expect
from nanovlm.models.language_model import RotaryEmbedding, apply_rope

# -- rope.angles -------------------------------------------------------------------------------------------------------


def run_angles(cls, positions: Tensor, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    return cls(head_dim, base)(positions)


ANGLES = Exercise(
    id="rope.angles",
    chapter="04",
    title="How far does each pair turn?",
    difficulty=2,
    minutes=10,
    why="Attention itself does not know the order of the tokens, or how far apart they are. These angles carry both, in "
    "every block.",
    hints=(
        "There are three steps: one frequency for each pair, an angle for each position and pair, then cosine and sine.",
        "The frequencies are base ** (-2 i / head_dim) for i = 0 … head_dim / 2 - 1, in float32. Position times "
        "frequency is the angle. Lay the angles twice, end to end, because both partners of a pair need the same one.",
        "pairs = torch.arange(0, self.head_dim, 2, dtype=torch.float32, device=positions.device)   # this is 2 i\n"
        "angles = positions[:, None, :, None].float() * …       # [B, 1, T, head_dim / 2]\n"
        "angles = torch.cat([angles, angles], dim=-1)\n"
        "return angles.cos(), angles.sin()",
    ),
    reference=RotaryEmbedding,
    cases=lambda: [
        Case(torch.tensor([[0, 1, 2]]), 4, 60.0, note="positions 0, 1 and 2, head_dim 4, base 60"),
        Case(torch.tensor([[5, 0, 3], [1, 2, 40]]), 6, 700.0, note="two rows of positions that do not start at 0"),
        Case(torch.tensor([[7]], dtype=torch.int32), 2, 12.0, note="one pair, one position (int32)"),
    ],
    axes={"cos": "batch heads length head_dim", "sin": "batch heads length head_dim"},
    call=run_angles,
    tolerance=3e-5,
)


@ANGLES.property("position 0 is not turned")
def _(cls) -> None:
    cos, sin = cls(8, 100.0)(torch.tensor([[0]]))
    still = torch.allclose(cos, torch.ones(1), atol=1e-5) and torch.allclose(sin, torch.zeros(1), atol=1e-5)
    expect(still, "At position 0 every angle is 0: cosine 1, sine 0.")


@ANGLES.property("it has no weights, so that shipped weights fit")
def _(cls) -> None:
    rotary = cls(6, 90.0)
    learned = [name for name, _ in rotary.named_parameters()] if isinstance(rotary, nn.Module) else []
    expect(not learned, f"{', '.join(learned)} is a Parameter, so training would change it. The frequencies are fixed.")
    names = list(rotary.state_dict())
    expect(not names, f"It stores {', '.join(names)}. The angles are computed; a file of weights does not hold them.")


@ANGLES.property("it stays exact in a model of bfloat16")
def _(cls) -> None:
    positions = torch.tensor([[256, 257]])
    cos, sin = cls(6, 90.0).to(torch.bfloat16)(positions)
    right = RotaryEmbedding(6, 90.0)(positions)
    same = torch.allclose(cos.float(), right[0], atol=1e-3) and torch.allclose(sin.float(), right[1], atol=1e-3)
    expect(
        same,
        "Once the model is in bfloat16 the angles are wrong: bfloat16 has 8 bits, so position 257 becomes 256, and a "
        "buffer of frequencies gets rounded. Compute them in forward, in float32.",
    )


class _Angles(nn.Module):
    """A RotaryEmbedding to build wrong versions from."""

    sign, step, share = -1, 2, 2

    def __init__(self, head_dim: int, base: float) -> None:
        super().__init__()
        self.head_dim, self.base = head_dim, base

    def positions(self, given: Tensor) -> Tensor:
        return given

    def twice(self, angles: Tensor) -> Tensor:
        return torch.cat([angles, angles], dim=-1)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        pairs = torch.arange(self.head_dim // self.share, dtype=torch.float32) * self.step
        angles = self.positions(positions)[:, None, :, None].float() * self.base ** (self.sign * pairs / self.head_dim)
        angles = self.twice(angles)
        return angles.cos(), angles.sin()


@ANGLES.mistake(
    "Each angle is next to its double: a b -> a a b b. That is the layout of interleaved pairs. Here number i is "
    "the partner of number i + head_dim / 2: a b -> a b a b."
)
class _(_Angles):
    def twice(self, angles: Tensor) -> Tensor:
        return angles.repeat_interleave(2, dim=-1)


@ANGLES.mistake(
    "The frequencies grow from pair to pair instead of falling: the exponent is negative. Only the first pair turns by "
    "one radian for each position, all others more slowly."
)
class _(_Angles):
    sign = 1


@ANGLES.mistake(
    "The frequencies fall half as fast as they should: the exponent of pair i is -2 i / head_dim, and the 2 is missing."
)
class _(_Angles):
    step = 1


@ANGLES.mistake(
    "The frequencies fall twice as fast as they should: 2 i is divided by head_dim, not by the number of pairs."
)
class _(_Angles):
    step = 4


@ANGLES.mistake(
    "You make a frequency for each number of the vector and lay them twice, which is twice too many. There is one for "
    "each pair: i ends at head_dim / 2 - 1."
)
class _(_Angles):
    share = 1


@ANGLES.mistake(
    "Each number of the vector turns by an angle of its own. The two numbers of a pair turn together: half as many "
    "frequencies, laid twice."
)
class _(_Angles):
    share = 1

    def twice(self, angles: Tensor) -> Tensor:
        return angles


@ANGLES.mistake("Each number of the vector turns by an angle of its own, half as far apart as those of the pairs should be.")
class _(_Angles):
    share, step = 1, 1

    def twice(self, angles: Tensor) -> Tensor:
        return angles


@ANGLES.mistake("Sine and cosine are swapped: return the cosine first.")
class _(_Angles):
    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = super().forward(positions)
        return sin, cos


@ANGLES.mistake(
    "You count 0, 1, 2 … yourself. The positions are given, and they need not start at 0: padding in front, or a "
    "sequence that goes on, moves them."
)
class _(_Angles):
    def positions(self, given: Tensor) -> Tensor:
        return torch.arange(given.shape[1]).expand(given.shape)


@ANGLES.mistake("There is one angle for each pair, but a pair has two numbers, and both need it: lay the angles twice.")
class _(_Angles):
    def twice(self, angles: Tensor) -> Tensor:
        return angles


@ANGLES.mistake(
    "The axis for the heads is missing: [B, T, head_dim] would be multiplied with [B, num_heads, T, head_dim] along "
    "the wrong axes. Give it size 1: all heads turn alike."
)
class _(_Angles):
    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = super().forward(positions)
        return cos[:, 0], sin[:, 0]


def _wrong_frequencies(sentence: str, frequencies: Callable[[int, float], Tensor]) -> None:
    class Wrong(_Angles):
        def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
            angles = positions[:, None, :, None].float() * frequencies(self.head_dim, self.base)
            angles = torch.cat([angles, angles], dim=-1)
            return angles.cos(), angles.sin()

    ANGLES.mistake(sentence)(Wrong)


def _of(head_dim: int, base: float) -> Tensor:
    return base ** (-torch.arange(0, head_dim, 2).float() / head_dim)


_wrong_frequencies("The base is built in as 10,000. Use self.base: SmolLM2's is another.", lambda d, b: _of(d, 10_000.0))
_wrong_frequencies("The base is built in as 100,000. Use self.base.", lambda d, b: _of(d, 100_000.0))
_wrong_frequencies(
    "The last pair turns by exactly 1 / base, so the exponents run down to 1 / base. They end before it: "
    "-2 i / head_dim with i up to head_dim / 2 - 1.",
    lambda d, b: b ** -torch.linspace(0, 1, d // 2),
)
_wrong_frequencies(
    "The first pair does not turn by one radian: i begins at 0, where the exponent is 0.",
    lambda d, b: b ** (-torch.arange(2, d + 2, 2).float() / d),
)
_wrong_frequencies(
    "There is a factor of 2 pi too many: the frequencies are radians for a step already.",
    lambda d, b: 2 * torch.pi * _of(d, b),
)
_wrong_frequencies(
    "The angles are in degrees. cos and sin read radians, which the frequencies are.", lambda d, b: _of(d, b).rad2deg()
)


@ANGLES.mistake("The positions begin at 1. They are given: position 0 is turned by nothing.")
class _(_Angles):
    def positions(self, given: Tensor) -> Tensor:
        return given + 1


@ANGLES.mistake("Everything is turned by one step too few: use the positions as they are given.")
class _(_Angles):
    def positions(self, given: Tensor) -> Tensor:
        return given - 1


@ANGLES.mistake("The axis for the heads stands behind the positions: [B, T, 1, head_dim]. It comes before them.")
class _(_Angles):
    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = super().forward(positions)
        return cos.transpose(1, 2), sin.transpose(1, 2)


@ANGLES.mistake("The numbers are right, but of another type: return float32, whatever you compute in.")
class _(_Angles):
    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = RotaryEmbedding(self.head_dim, self.base)(positions)
        return cos.double(), sin.double()


@ANGLES.part
def _(code, learner) -> None:
    code.language_model.RotaryEmbedding = learner


# -- rope.apply --------------------------------------------------------------------------------------------------------


def turns(length: int, head_dim: int, base: float = 60.0, batch: int = 1) -> tuple[Tensor, Tensor]:
    """cos and sin of the positions 0, 1, 2 …, and in each further row 4 more."""
    return RotaryEmbedding(head_dim, base)(torch.arange(length) + 4 * torch.arange(batch)[:, None])


APPLY = Exercise(
    id="rope.apply",
    chapter="04",
    title="Turn queries and keys",
    difficulty=2,
    minutes=10,
    why="The rotation makes the product of a query and a key depend on how far apart two tokens are, and not on where "
    "they are. With the other pairing that is in use, trained weights give wrong answers, and no shape tells.",
    hints=(
        "Turning (a, b) by an angle gives (a cos - b sin, b cos + a sin). Write the whole vector as two terms: one "
        "with cos, one with sin.",
        "Number i and number i + head_dim / 2 are a pair. So cut the vector in two halves, a and b. The term with sin "
        "needs -b in the place of a, and a in the place of b.",
        "a, b = x.chunk(2, dim=-1)\nturned = torch.cat(…, dim=-1)\nreturn x * cos + turned * sin, with both in x's dtype",
    ),
    reference=apply_rope,
    cases=lambda: [
        Case(
            torch.tensor([1.0, 2.0, 3.0, 4.0]).expand(1, 1, 3, 4).clone(),
            *turns(3, 4),
            note="the same vector 1 2 3 4 at positions 0, 1 and 2",
        ),
        Case(noise(2, 3, 5, 6), *turns(5, 6, batch=2), note="two rows, three heads, five positions"),
        Case(noise(1, 1, 4, 2, seed=1), *turns(4, 2), note="one single pair"),
    ],
    axes="batch num_heads length head_dim",
)


@APPLY.property("vectors keep their length")
def _(rope) -> None:
    x = noise(1, 2, 6, 8)
    same = torch.allclose(rope(x.clone(), *turns(6, 8)).norm(dim=-1), x.norm(dim=-1), atol=1e-5)
    expect(same, "Some vectors become longer or shorter. A rotation does not do that.")


@APPLY.property("q·k depends on the distance alone")
def _(rope) -> None:
    q, k = (noise(1, 1, 1, 8, seed=seed).expand(1, 1, 9, 8).clone() for seed in (1, 2))
    scores = (rope(q, *turns(9, 8)) @ rope(k, *turns(9, 8)).mT)[0, 0]
    steps = [scores.diagonal(offset) for offset in range(-8, 9)]
    same = all(torch.allclose(step, step[:1].expand_as(step), atol=1e-4) for step in steps)
    expect(same, "The same q and k, two tokens apart, give another product at another place in the text.")


@APPLY.property("gradients reach x")
def _(rope) -> None:
    angles = turns(4, 6)
    expect_gradients(lambda turn, x: turn(x, *angles), rope, apply_rope, noise(1, 2, 4, 6))


@APPLY.property("bfloat16 in, bfloat16 out")
def _(rope) -> None:
    out = rope(noise(1, 1, 3, 4).bfloat16(), *turns(3, 4))
    expect(
        out.dtype == torch.bfloat16,
        f"For x in bfloat16 the result is {out.dtype}: the angles are float32 and pull x up. Bring them to x.dtype.",
    )


@APPLY.mistake(
    "You pair neighbours (0 with 1, 2 with 3), as the paper draws it. Llama's and SmolLM2's weights in transformers' "
    "format, and the pocket model's, pair number i with number i + head_dim / 2."
)
def _(x, cos, sin):
    turned = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
    return x * cos + turned * sin


@APPLY.mistake(
    "You pair neighbours (0 with 1, 2 with 3), and deal the angles out for that. So the paper draws it; Llama's and "
    "SmolLM2's weights in transformers' format, and the pocket model's, pair number i with number i + head_dim / 2."
)
def _(x, cos, sin):
    cos, sin = (angles.chunk(2, dim=-1)[0].repeat_interleave(2, dim=-1) for angles in (cos, sin))
    turned = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
    return x * cos + turned * sin


@APPLY.mistake("The rotation runs backwards: the minus sign is on the wrong half. With sin goes [-b, a], not [b, -a].")
def _(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat([b, -a], dim=-1) * sin


@APPLY.mistake("A minus sign is missing: without it this is no rotation, and vectors change their length.")
def _(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat([b, a], dim=-1) * sin


@APPLY.mistake("The halves are not swapped: each number should get a share of its *partner*, from the other half.")
def _(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-a, b], dim=-1) * sin


@APPLY.mistake("x itself is multiplied with sin as well: with sin goes the vector whose halves are swapped.")
def _(x, cos, sin):
    return x * cos + x * sin


@APPLY.mistake("Sine and cosine are swapped: position 0, whose angle is 0, should stay as it is.")
def _(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return x * sin + torch.cat([-b, a], dim=-1) * cos


def _with(cos: Callable[[Tensor], Tensor]):
    """The right rotation with other angles."""
    return lambda x, c, s: apply_rope(x, cos(c), cos(s))


APPLY.mistake("All rows are turned by the first row's angles. Rows can begin at different positions: leave the batch axis.")(
    _with(lambda t: t[:1])
)
APPLY.mistake("All tokens are turned by the angles of one position, the first.")(_with(lambda t: t[:, :, :1]))
APPLY.mistake("All tokens are turned by the angles of one position, the last.")(_with(lambda t: t[:, :, -1:]))
APPLY.mistake("The sine is not used: this scales the numbers and turns nothing.")(lambda x, cos, sin: x * cos)
APPLY.mistake("The cosine is not used: the vector's own share, x * cos, is missing.")(
    lambda x, cos, sin: apply_rope(x, 0 * cos, sin)
)
APPLY.mistake("This returns x as it came: nothing has been turned.")(lambda x, cos, sin: x.clone())
APPLY.mistake("Only one number of each pair is turned. The second, b, becomes b cos + a sin.")(
    lambda x, cos, sin: torch.cat([apply_rope(x, cos, sin).chunk(2, dim=-1)[0], x.chunk(2, dim=-1)[1]], dim=-1)
)
APPLY.mistake("The partner is found with torch.roll by 1, which runs round by one number. It is half a vector away.")(
    lambda x, cos, sin: x * cos + x.roll(1, -1) * sin
)
APPLY.mistake("The partner is found by reading backwards along the vector. It is half a vector away, in the same order.")(
    lambda x, cos, sin: x * cos + x.flip(-1) * sin
)
APPLY.mistake("The last two axes are transposed: the result is [batch, num_heads, head_dim, length].")(
    lambda x, cos, sin: apply_rope(x, cos, sin).mT
)


@APPLY.mistake("b is turned with an a that has already been turned. Keep the old a, or compute both before you store one.")
def _(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    c, s = (t[..., : a.shape[-1]] for t in (cos, sin))
    a = a * c - b * s
    return torch.cat([a, b * c + a * s], dim=-1)


@APPLY.part
def _(code, learner) -> None:
    code.language_model.apply_rope = learner
