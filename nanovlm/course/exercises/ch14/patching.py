"""Chapter 14: swap a vector between two runs of the decoder."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nanovlm.config import LMConfig
from nanovlm.course.exercises.ch14.inside import DECODER
from nanovlm.course.exercises.common import noise
from nanovlm.course.judge.exercise import Case, Exercise, expect, with_weights
from nanovlm.models.language_model import LanguageModel

Change = Callable[[Tensor, Tensor, list[int]], Tensor]


def swap(x: Tensor, source: Tensor, positions: list[int]) -> Tensor:
    """x [B, T, dim] with the vectors of `source` at these positions"""
    x = x.clone()
    x[:, positions] = source[:, positions]
    return x


def states_of(decoder: LanguageModel, x: Tensor) -> list[Tensor]:
    states: list[Tensor] = []
    decoder(x, hidden_states=states)
    return states


def patch_activation(
    decoder: LanguageModel, into: Tensor, source: Tensor, block: int, positions: list[int], change: Change = swap
) -> Tensor:
    """Block by block, without a hook."""
    there = states_of(decoder, source)[block]
    x, rope = into, decoder.rotary_embedding(torch.arange(into.shape[1])[None])
    for i, each in enumerate(decoder.blocks):
        x = each(change(x, there, positions) if i == block else x, rope, None)
    return decoder.norm(x)


def run_patch(
    fn: Callable[..., Tensor], into: Tensor, source: Tensor, block: int, positions: list[int], config: LMConfig
) -> Tensor:
    with torch.no_grad():
        return fn(with_weights(LanguageModel(config)).eval(), into, source, block, positions)


PATCH = Exercise(
    id="inside.patch_activation",
    chapter="14",
    title="Swap a vector between two pictures",
    difficulty=3,
    minutes=15,
    why="Reading a vector shows what it contains. Only putting it into another run shows what the model does with it.",
    hints=(
        "You need two runs. The first one only delivers the vectors of `source` at the input of the block.",
        "Run the decoder on `source` with hidden_states=[] and keep entry `block`. Then run it on `into`, with a "
        "forward pre-hook on decoder.blocks[block] that returns the block's arguments with the vectors at `positions` "
        "replaced. Remove the hook, also where the run raises.",
        "states = []\n"
        "decoder(source, hidden_states=states)\n\n"
        "def swap(module, args):\n"
        "    x = args[0].clone()\n"
        "    x[:, positions] = …\n"
        "    return (x, *args[1:])\n\n"
        "handle = decoder.blocks[block].register_forward_pre_hook(swap)\n"
        "try:\n"
        "    return decoder(into)\n"
        "finally:\n"
        "    handle.remove()",
    ),
    reference=patch_activation,
    cases=lambda: [
        Case(noise(1, 3, 8), noise(1, 3, 8, seed=1), 1, [1], DECODER, note="three vectors; the middle one, block 1"),
        Case(
            noise(1, 6, 8, seed=2), noise(1, 6, 8, seed=3), 1, [2, 4], DECODER, note="six vectors, two of them, block 1"
        ),
        Case(noise(2, 5, 8, seed=4), noise(2, 5, 8, seed=5), 2, [0, 3], DECODER, note="two sequences, block 2"),
        Case(noise(1, 5, 8, seed=6), noise(1, 5, 8, seed=7), 0, [1, 2], DECODER, note="block 0: the embeddings"),
    ],
    axes="batch position hidden_dim",
    call=run_patch,
)


@PATCH.property("the decoder works as before afterwards")
def _(fn) -> None:
    decoder, x, other = with_weights(LanguageModel(DECODER)).eval(), noise(1, 5, 8), noise(1, 5, 8, seed=1)
    with torch.no_grad():
        before = decoder(x)
        fn(decoder, x, other, 1, [2])
        expect(
            torch.equal(decoder(x), before),
            "After your function the decoder does not work as before: your hook is still there, and swaps in every later "
            "run. Call handle.remove(), in a `finally`.",
        )


def _shifted(x: Tensor, source: Tensor, positions: list[int]) -> Tensor:
    return swap(x, source, [position + 1 for position in positions])


for _sentence, _change in {
    "The whole sequence is swapped, so this is simply the other run. Replace the vectors at `positions` alone.": (
        lambda x, source, positions: source
    ),
    "The vectors are added. The block should get those of `source` in the place of its own.": (
        lambda x, source, positions: swap(x, x + source, positions)
    ),
    "This goes halfway, with the mean of both vectors. Replace one by the other.": (
        lambda x, source, positions: swap(x, (x + source) / 2, positions)
    ),
    "You swap one position too far: positions are counted from 0.": _shifted,
    "You swap only the first of the positions.": lambda x, source, positions: swap(x, source, positions[:1]),
    "The vectors are replaced by zeros. That is an ablation; a patch puts in the vectors of the other run.": (
        lambda x, source, positions: swap(x, torch.zeros_like(x), positions)
    ),
    "Nothing is swapped: this is the run of `into` as it is. A hook has to return what the block should get.": (
        lambda x, source, positions: x
    ),
}.items():
    PATCH.mistake(_sentence)(
        lambda decoder, into, source, block, positions, change=_change: patch_activation(
            decoder, into, source, block, positions, change
        )
    )


@PATCH.mistake(
    "You swap behind the block, and not at its input. `hidden_states[block]` is what the block gets: use a pre-hook."
)
def _(decoder, into, source, block, positions):
    if block + 1 < len(decoder.blocks):
        return patch_activation(decoder, into, source, block + 1, positions)
    return decoder.norm(swap(_before_norm(decoder, into), _before_norm(decoder, source), positions))


@PATCH.mistake(
    "You swap behind the block, and put in what the block has normalised away: the last entry of `hidden_states` is "
    "behind the final norm. Swap at the block's input."
)
def _(decoder, into, source, block, positions):
    there = states_of(decoder, source)[block + 1]
    if block + 1 < len(decoder.blocks):
        return patch_activation(decoder, into, source, block + 1, positions)
    return decoder.norm(swap(_before_norm(decoder, into), there, positions))


@PATCH.mistake(
    "You put the input of the block in the place of its output, so that the block is undone at these positions. Swap "
    "at the input, with a pre-hook."
)
def _(decoder, into, source, block, positions):
    there = states_of(decoder, source)[block]
    x, rope = into, decoder.rotary_embedding(torch.arange(into.shape[1])[None])
    for i, each in enumerate(decoder.blocks):
        x = each(x, rope, None)
        x = swap(x, there, positions) if i == block else x
    return decoder.norm(x)


@PATCH.mistake(
    "It is the other way round: the run is that of `into`, and the vectors at `positions` come from `source`. (To swap all "
    "other positions comes to the same.)"
)
def _(decoder, into, source, block, positions):
    return patch_activation(decoder, source, into, block, positions)


@PATCH.mistake("You swap at the input of the first block, whichever block was asked for.")
def _(decoder, into, source, block, positions):
    return patch_activation(decoder, into, source, 0, positions)


@PATCH.mistake(
    "You put in the embeddings of `source`. The block should get what the run of `source` has made of them by then: "
    "`hidden_states[block]`."
)
def _(decoder, into, source, block, positions):
    return patch_activation(
        decoder, into, source, block, positions, lambda x, there, positions: swap(x, source, positions)
    )


@PATCH.mistake(
    "You swap again in every later block, so that nothing can reach these positions any more. Swap once, at the input of "
    "`block`."
)
def _(decoder, into, source, block, positions):
    states, x = states_of(decoder, source), into
    rope = decoder.rotary_embedding(torch.arange(into.shape[1])[None])
    for i, each in enumerate(decoder.blocks):
        x = each(swap(x, states[i], positions) if i >= block else x, rope, None)
    return decoder.norm(x)


@PATCH.mistake("The final norm is missing. Return what the decoder returns.")
def _(decoder, into, source, block, positions):
    there = states_of(decoder, source)[block]
    x, rope = into, decoder.rotary_embedding(torch.arange(into.shape[1])[None])
    for i, each in enumerate(decoder.blocks):
        x = each(swap(x, there, positions) if i == block else x, rope, None)
    return x


@PATCH.mistake("This stops at the block's input. Run this block and the later ones, and the final norm.")
def _(decoder, into, source, block, positions):
    return swap(states_of(decoder, into)[block], states_of(decoder, source)[block], positions)


@PATCH.mistake("These are logits. Return the decoder's vectors; whoever calls it applies the head.")
def _(decoder, into, source, block, positions):
    return decoder.head(patch_activation(decoder, into, source, block, positions))


def _before_norm(decoder: LanguageModel, x: Tensor) -> Tensor:
    rope = decoder.rotary_embedding(torch.arange(x.shape[1])[None])
    for each in decoder.blocks:
        x = each(x, rope, None)
    return x
