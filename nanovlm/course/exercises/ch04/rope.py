"""Chapter 04: the angles of rotary position embeddings."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from nanovlm.course.judge.exercise import Case, Exercise, expect
from nanovlm.models.language_model import RotaryEmbedding

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


@ANGLES.mistake(
    "Each number of the vector turns by an angle of its own, half as far apart as those of the pairs should be."
)
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


_wrong_frequencies(
    "The base is built in as 10,000. Use self.base: SmolLM2's is another.", lambda d, b: _of(d, 10_000.0)
)
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
