"""Chapter 04: who may look at whom, and where a token stands."""

from __future__ import annotations

import torch
from torch import Tensor

from nanovlm.course.checks.exercise import Case, Exercise, expect
from nanovlm.course.checks.rope import noise
from nanovlm.models.language_model import attention_layout

CPU = torch.device("cpu")
ONE_PADDED = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])  # two rows, the first padded on the left

# -- decoder.masks -----------------------------------------------------------------------------------------------------


def run_layout(layout, attention_mask: Tensor):
    """What stands at a padding token's place in the positions does not matter: it becomes 0 here."""
    out = layout(attention_mask, None, attention_mask.shape[1], attention_mask.device)
    if not (isinstance(out, (tuple, list)) and len(out) == 2 and isinstance(out[0], Tensor)):
        return out
    positions, mask = out
    fits = positions.ndim == 2 and positions.shape[1] == attention_mask.shape[1]
    return (positions.masked_fill(attention_mask == 0, 0) if fits else positions), mask


MASKS = Exercise(
    id="decoder.masks",
    chapter="04",
    title="Who may look at whom",
    difficulty=3,
    minutes=15,
    why="One future token that can be seen, and the model learns to copy it: the loss is wonderful, the model useless. "
    "One padding token that can be seen, and an answer depends on what else was in the batch.",
    hints=(
        "Two conditions, both of which must hold: the key is not later than the query, and the key is a real token. "
        "Compare index with itself, as a column and as a row.",
        "mask[b, query, key] = (query >= key) and the key is real, as [1, T, T] and [B, 1, T]. A query sees as many "
        "tokens as are real up to itself: that count, less 1, is its position. Only after counting, let each token see "
        "itself.",
        "mask = (index[:, None] >= index[None, :])[None]\n"
        "if attention_mask is not None: mask = mask & attention_mask.bool()[:, None, :]\n"
        "positions = (sum of mask over the keys - 1), at least 0\n"
        "mask = mask | (index[:, None] == index[None, :])",
    ),
    reference=attention_layout,
    cases=lambda: [
        Case(torch.tensor([[0, 1, 1, 1]]), note="a row of four tokens; the first is padding"),
        Case(torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 1, 1], [1, 1, 1, 0, 0]]), note="padding on the left and right"),
        Case(torch.tensor([[1, 1, 0, 0, 1, 1]]), note="padding in the middle, between picture and text"),
        Case((noise(3, 8) > -0.5).long(), note="three rows with padding anywhere"),
    ],
    axes={"positions": "batch length", "mask": "batch 1 query key"},
    call=run_layout,
)


@MASKS.property("without padding it is plain causal attention")
def _(layout) -> None:
    positions, mask = layout(None, None, 4, CPU)
    expect(positions.flatten().tolist() == [0, 1, 2, 3], "With attention_mask=None, the positions are 0, 1, 2 …")
    causal = torch.ones(4, 4, dtype=torch.bool).tril()
    same = mask is None or (mask.shape == (1, 1, 4, 4) and mask[0, 0].equal(causal))
    expect(
        same, "With attention_mask=None, a query should see itself and all before it: [1, 1, T, T], a lower triangle."
    )


@MASKS.property("no query is left with nothing to look at")
def _(layout) -> None:
    mask = layout(torch.tensor([[0, 0, 0, 1]]), None, 4, CPU)[1]
    expect(bool(mask.any(dim=-1).all()), "A row of the mask is False throughout: its softmax is 0 / 0.")


@MASKS.property("packed documents and the cache still work (the given lines)")
def _(layout) -> None:
    documents = torch.tensor([[0, 0, 0, 1, 1, -1]])
    for start in (0, 2):
        positions, mask = layout(None, documents, 6, CPU, start)
        right = attention_layout(None, documents, 6, CPU, start)
        same = positions[:, : 5 - start].equal(right[0][:, : 5 - start]) and mask.equal(right[1])
        expect(same, "document_ids or start no longer do what they did. Leave the given lines as they were.")


def _mistaken(attention_mask: Tensor, documents: object, length: int, device: torch.device):
    """The pieces: index, causal [1, T, T], real keys [B, 1, T], oneself [1, T, T]."""
    index = torch.arange(length, device=device)
    causal = (index[:, None] >= index[None, :])[None]
    return index, causal, attention_mask.bool()[:, None, :], torch.eye(length, dtype=torch.bool)[None]


def _count(mask: Tensor) -> Tensor:
    return (mask.sum(dim=2) - 1).clamp(min=0)


@MASKS.mistake("The padding is hidden, but the future is not: a query must not see keys that stand behind it.")
def _(*given):
    _, causal, real, self = _mistaken(*given)
    return _count(causal & real), (real | self)[:, None]


@MASKS.mistake("The future is hidden, but the padding is not: a key must also be real, attention_mask nonzero.")
def _(*given):
    _, causal, real, _ = _mistaken(*given)
    return _count(causal & real), causal[:, None].expand(real.shape[0], -1, -1, -1)


@MASKS.mistake("Past and future are swapped: this shows each token only what comes after it. The query is the row.")
def _(*given):
    _, causal, real, self = _mistaken(*given)
    return _count(causal & real), (causal.mT & real | self)[:, None]


@MASKS.mistake("The positions count padding as well. A token's position is the number of *real* tokens before it.")
def _(*given):
    index, causal, real, self = _mistaken(*given)
    return index.expand(real.shape[0], -1), (causal & real | self)[:, None]


@MASKS.mistake("The positions begin at 1: the first real token has none before it, so it stands at 0.")
def _(*given):
    _, causal, real, self = _mistaken(*given)
    return (causal & real).sum(dim=2), (causal & real | self)[:, None]


@MASKS.mistake(
    "Each token is counted as seeing itself before the positions are taken: count the real tokens first, then let "
    "padding see itself."
)
def _(*given):
    _, causal, real, self = _mistaken(*given)
    mask = causal & real | self
    positions = mask.sum(dim=2).cumsum(dim=1)
    return positions - positions[:, :1], mask[:, None]


@MASKS.mistake("You hide the padding's rows instead of its columns: what matters is which *keys* are real.")
def _(*given):
    _, causal, real, self = _mistaken(*given)
    return _count(causal & real), (causal & real.mT | self)[:, None]


@MASKS.mistake(
    "A padding token at the front has nothing to look at: its row is False throughout, and a softmax over nothing is "
    "0 / 0. Let every token see itself."
)
def _(*given):
    _, causal, real, _ = _mistaken(*given)
    return _count(causal & real), (causal & real)[:, None]


@MASKS.mistake("The mask is upside down: here True means *may look*, as scaled_dot_product_attention has it.")
def _(*given):
    _, causal, real, self = _mistaken(*given)
    return _count(causal & real), ~(causal & real | self)[:, None]


@MASKS.part
def _(code, learner) -> None:
    code.language_model.attention_layout = learner
