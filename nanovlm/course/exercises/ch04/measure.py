"""Chapter 04: who sees whom, measured from outside, and a test for any decoder."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

from nanovlm.config import LMConfig
from nanovlm.course.exercises.ch04.masks import pieces, real_positions, who_sees_whom
from nanovlm.course.exercises.ch04.norm_and_mlp import SMALL
from nanovlm.course.exercises.common import caught, noise
from nanovlm.course.judge.exercise import Case, Exercise, expect, with_weights
from nanovlm.models.language_model import LanguageModel

Decoder = Callable[[Tensor, Tensor], Tensor]  # x [B, T, dim], attention_mask [B, T] -> [B, T, dim]


@cache
def one_block() -> LanguageModel:
    model = with_weights(LanguageModel(LMConfig(**{**vars(SMALL), "num_blocks": 1})))
    return model.requires_grad_(False)  # type: ignore[return-value]  # the answers' gradients are those of inputs


def decoder_with(
    mask: Callable[[Tensor], Tensor] = who_sees_whom,
    positions: Callable[[Tensor], Tensor] = real_positions,
) -> Decoder:
    """A decoder of one block with a mask and positions of one's choice, made from an attention_mask."""
    model = one_block()

    def run(x: Tensor, attention_mask: Tensor) -> Tensor:
        rope = model.rotary_embedding(positions(attention_mask))
        for block in model.blocks:
            x = block(x, rope, mask(attention_mask).expand(len(x), -1, -1, -1))
        return model.norm(x)

    return run


# -- decoder.measure_mask ----------------------------------------------------------------------------------------------


def _band(low: int, high: int) -> Callable[[Tensor], Tensor]:
    """Query i sees the keys from i - low to i + high."""

    def mask(attention_mask: Tensor) -> Tensor:
        all_ = torch.ones(attention_mask.shape[1], attention_mask.shape[1], dtype=torch.bool)
        return (all_.tril(high) & all_.triu(-low))[None, None]

    return mask


def model_of(kind: str) -> Callable[[Tensor], Tensor]:
    """x [1, T, dim] -> [1, T, dim]"""
    if kind == "layer norm":
        return nn.LayerNorm(24)
    if kind == "rms norm":
        return nn.RMSNorm(24)
    masks = {
        "decoder": who_sees_whom,
        "encoder": lambda m: torch.ones(1, 1, m.shape[1], m.shape[1], dtype=torch.bool),
        "one ahead": _band(9, 1),
        "window": _band(2, 0),
        "prefix": lambda m: who_sees_whom(m) | (torch.arange(m.shape[1]) < 3),
    }
    run = decoder_with(masks[kind])
    # A LayerNorm at the end: the numbers of each output sum to 0, whatever the input.
    return lambda x: nn.functional.layer_norm(run(x, torch.ones(x.shape[:2])), (24,))


def measure_mask(model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    before, length = model(x), x.shape[1]
    seen = torch.zeros(length, length, dtype=torch.bool)
    for j in range(length):
        changed = x.clone()
        changed[:, j] = noise(x.shape[-1], seed=100 + j)
        seen[:, j] = (model(changed) - before).abs().amax(dim=-1)[0] > 1e-6
    return seen


KINDS = ("decoder", "encoder", "one ahead", "window", "prefix", "layer norm", "rms norm")

MEASURE = Exercise(
    id="decoder.measure_mask",
    chapter="04",
    title="Measure it: who sees whom?",
    difficulty=2,
    minutes=12,
    why="You can read a mask in code, or you can measure it in a model that somebody else wrote. Only the measurement "
    "tells what the model does.",
    hints=(
        "If output i changes when input j changes, then i sees j.",
        "For each j: replace input j with a different vector, run the model, and compare every output with the one from "
        "before. Add a random vector, not a constant: a LayerNorm removes a constant, and an RMSNorm a factor.",
        "before = model(x)\n"
        "for j in range(T):\n"
        "    changed = x.clone()\n"
        "    changed[:, j] = …\n"
        "    seen[:, j] = (model(changed) - before).abs().amax(dim=-1)[0] > 1e-6",
    ),
    reference=measure_mask,
    cases=lambda: [Case(kind, note=f"a model that is, inside, of the kind: {kind}") for kind in KINDS],
    axes="output input",
    call=lambda measure, kind: measure(model_of(kind), noise(1, 6, 24, seed=5)),
)


@MEASURE.property("x is left as it was")
def _(measure) -> None:
    x = noise(1, 4, 24)
    measure(model_of("decoder"), x)
    expect(x.equal(noise(1, 4, 24)), "Your measurement changed x: work on x.clone().")


def _measured(
    poke: Callable[[Tensor], Tensor] = lambda row: row + noise(24, seed=7),
    moved: Callable[[Tensor], Tensor] = lambda change: change.abs().amax(dim=-1)[0] > 1e-6,
    keep: bool = False,
):
    """A measurement to build wrong versions from. keep: the changes stay in x."""

    def measure(model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        before, changed, columns = model(x), x.clone(), []
        for j in range(x.shape[1]):
            changed = changed if keep else x.clone()
            changed[:, j] = poke(changed[:, j])
            columns.append(moved(model(changed) - before).expand(x.shape[1]))
        return torch.stack(columns, dim=1)

    return measure


MEASURE.mistake(
    "You add the same number to every place of a vector. A LayerNorm removes that again: add a random vector."
)(_measured(poke=lambda row: row + 1))
MEASURE.mistake("You multiply the vector, which only makes it longer. An RMSNorm removes that: add a random vector.")(
    _measured(poke=lambda row: 2 * row)
)
MEASURE.mistake(
    "No output ever changes. Nothing is changed in the input, or the change is too small for float32 to carry through."
)(_measured(poke=lambda row: row))
MEASURE.mistake("The result is the transpose: rows are outputs, columns are inputs.")(
    lambda model, x: measure_mask(model, x).mT
)
MEASURE.mistake("Only the last output is looked at. Compare every output with the one from before.")(
    lambda model, x: torch.cat([torch.eye(x.shape[1], dtype=torch.bool)[:-1], measure_mask(model, x)[-1:]])
)
MEASURE.mistake("This is a causal mask, made without asking the model. Change an input and see which outputs move.")(
    lambda model, x: torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
)
MEASURE.mistake("You ask whether any output changed. Look at each output by itself: it is a row of the result.")(
    _measured(moved=lambda change: (change.abs().max() > 1e-6)[None])
)
MEASURE.mistake(
    "The changes stay: input 0 is still changed input when you come to input 1, so earlier changes count as well. Start "
    "from x each time; do not let them stay changed."
)(_measured(keep=True))
MEASURE.mistake(
    "You look at the mean of the change, or at the gradient of the sum of an output. Behind a LayerNorm that sum is "
    "always 0: take the largest absolute difference."
)(_measured(moved=lambda change: change.mean(dim=-1)[0].abs() > 1e-5))
MEASURE.mistake("Return bools, True where an output depends on an input.")(
    lambda model, x: measure_mask(model, x).float()
)
MEASURE.mistake("These are counts, one for each output. The result is a table of shape [outputs, inputs].")(
    lambda model, x: measure_mask(model, x).sum(dim=1)
)


# -- decoder.test_decoder ----------------------------------------------------------------------------------------------


def _first_row(attention_mask: Tensor) -> Tensor:
    return who_sees_whom(attention_mask[:1])


def _nan_at_padding(x: Tensor, attention_mask: Tensor) -> Tensor:
    out = decoder_with()(x, attention_mask)
    return out.masked_fill(attention_mask[:, :, None] == 0, float("nan"))


PLANTED: dict[str, Decoder] = {
    "the future can be seen": decoder_with(lambda m: (pieces(m)[1] | pieces(m)[2])[:, None]),
    "one token ahead can be seen": decoder_with(lambda m: _band(99, 1)(m) & (pieces(m)[1] | pieces(m)[2])[:, None]),
    "padding can be seen": decoder_with(lambda m: pieces(m)[0][:, None]),
    "padding is hidden, but counted in the positions": decoder_with(
        positions=lambda m: torch.arange(m.shape[1]).expand(m.shape)
    ),
    "the order does not matter (no positions)": decoder_with(positions=torch.zeros_like),
    "every token sees only itself": decoder_with(lambda m: pieces(m)[2][:, None]),
    "all rows of a batch get the first row's mask": decoder_with(_first_row),
    "NaN at padding tokens": _nan_at_padding,
}


def test_decoder(decoder: Decoder) -> None:
    """Four facts about every decoder."""
    x, real = noise(1, 5, 24), torch.ones(1, 5, dtype=torch.long)
    out = decoder(x, real)
    for j in range(1, 5):  # the future
        changed = x.clone()
        changed[:, j] = noise(24, seed=j)
        assert torch.allclose(decoder(changed, real)[:, :j], out[:, :j], atol=1e-5)
        assert not torch.allclose(decoder(changed, real)[:, -1], out[:, -1], atol=1e-3)
    swapped = x[:, [1, 0, 2, 3, 4]]  # the order
    assert not torch.allclose(decoder(swapped, real)[:, -1], out[:, -1], atol=1e-3)
    batch = torch.zeros(2, 7, 24)  # padding, in front, in the middle and behind
    batch[0, [0, 1, 2, 3, 4]], batch[1, [1, 2, 4, 5, 6]] = x[0], x[0]
    mask = (batch.abs().sum(dim=-1) > 0).long()
    padded = decoder(batch, mask)
    assert padded.isfinite().all()
    for row in range(2):
        assert torch.allclose(padded[row, mask[row] == 1], out[0], atol=1e-5)


test_decoder.__test__ = False  # type: ignore[attr-defined]  # no test of ours: pytest would call it


TEST = Exercise(
    id="decoder.test_decoder",
    chapter="04",
    title="Write the test that every decoder should pass",
    difficulty=3,
    minutes=20,
    why="Eight decoders with one mistake each, all of which train without an error. A test of twenty lines finds all of "
    "them, also in code that you did not write.",
    hints=(
        "Each fact is a pair of runs: change something that must not matter, and assert that the outputs stay; change "
        "something that must matter, and assert that they move.",
        "Change a later token: earlier outputs stay, the last one moves. Exchange two early tokens: the last output "
        "moves. Put padding in front, in the middle and behind, in two different rows of one batch: the real tokens' "
        "outputs are those of the row alone, and no output is NaN.",
        "x = torch.randn(1, 5, 24); real = torch.ones(1, 5, dtype=torch.long); out = decoder(x, real)\n"
        "changed = x.clone(); changed[:, 3] = torch.randn(24)\n"
        "assert torch.allclose(decoder(changed, real)[:, :3], …, atol=1e-5)\n"
        "assert not torch.allclose(decoder(x[:, [1, 0, 2, 3, 4]], real)[:, -1], out[:, -1], atol=1e-3)\n"
        "batch = torch.zeros(2, 7, 24); batch[1, [1, 2, 4, 5, 6]] = x[0]     # row 0 in another way; then the mask …",
    ),
    reference=test_decoder,
    cases=lambda: [Case(note=f"your test, on a right decoder and on {len(PLANTED)} wrong ones")],
    call=lambda test: caught(test, decoder_with(), PLANTED, "decoder"),
)


def _future_only(decoder: Decoder) -> None:
    x, real = noise(1, 5, 24), torch.ones(1, 5, dtype=torch.long)
    changed = x.clone()
    changed[:, 4] += 1
    assert torch.allclose(decoder(x, real)[:, :4], decoder(changed, real)[:, :4], atol=1e-5)


@TEST.mistake(
    "Your test looks at the future alone. What gets through: decoders that see padding, count it, or do not know the order."
)
def _(decoder):
    _future_only(decoder)


@TEST.mistake(
    "Your test looks at shapes alone, or asserts nothing that can fail. All eight wrong decoders have the right shapes."
)
def _(decoder):
    assert decoder(noise(1, 5, 24), torch.ones(1, 5)).shape == (1, 5, 24)


@TEST.mistake("Your test says True or False. pytest, and everybody else, waits for an AssertionError.")
def _(decoder):
    return True
