"""Chapter 04: the rotation of queries and keys."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nanovlm.course.exercises.common import expect_gradients, noise
from nanovlm.course.judge.exercise import Case, Exercise, expect
from nanovlm.models.language_model import RotaryEmbedding, apply_rope

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


APPLY.mistake(
    "All rows are turned by the first row's angles. Rows can begin at different positions: leave the batch axis."
)(_with(lambda t: t[:1]))
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
APPLY.mistake(
    "The partner is found by reading backwards along the vector. It is half a vector away, in the same order."
)(lambda x, cos, sin: x * cos + x.flip(-1) * sin)
APPLY.mistake("The last two axes are transposed: the result is [batch, num_heads, head_dim, length].")(
    lambda x, cos, sin: apply_rope(x, cos, sin).mT
)


@APPLY.mistake(
    "b is turned with an a that has already been turned. Keep the old a, or compute both before you store one."
)
def _(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    c, s = (t[..., : a.shape[-1]] for t in (cos, sin))
    a = a * c - b * s
    return torch.cat([a, b * c + a * s], dim=-1)


@APPLY.part
def _(code, learner) -> None:
    code.language_model.apply_rope = learner
