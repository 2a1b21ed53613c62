"""Chapter 04: who may look at whom, and where a token stands."""

from __future__ import annotations

import torch
from torch import Tensor

from nanovlm.course.judge.exercise import Case, Exercise, expect
from nanovlm.course.exercises.common import noise
from nanovlm.models.language_model import attention_layout

CPU = torch.device("cpu")
ONE_PADDED = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])  # two rows, the first padded on the left

# -- decoder.masks -----------------------------------------------------------------------------------------------------


def run_layout(layout, attention_mask: Tensor):
    """What stands at a padding token's place in the positions does not matter: it becomes 0 here. And positions are
    counted from the mask: as long as that is wrong they are not judged, and the right ones stand in."""
    given = attention_mask, None, attention_mask.shape[1], attention_mask.device
    out = layout(*given)
    if not (isinstance(out, (tuple, list)) and len(out) == 2 and all(isinstance(part, Tensor) for part in out)):
        return out
    positions, mask = out
    right_positions, right_mask = attention_layout(*given)
    if mask.dtype == torch.bool and mask.shape in (right_mask.shape, right_mask[:1].shape):
        whole = mask.expand_as(right_mask)
        if not whole.equal(right_mask):
            positions, mask = right_positions, whole
    fits = positions.shape == attention_mask.shape
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
        "tokens as are real up to itself: that count, less 1, is its position. Behind the given lines, let each token "
        "see itself, padding too.",
        "mask = (index[:, None] >= index[None, :])[None]\n"
        "if attention_mask is not None: mask = mask & attention_mask.bool()[:, None, :]\n"
        "positions = sum of mask over the keys - 1\n"
        "mask = mask | (index[:, None] == index[None, :])",
    ),
    reference=attention_layout,
    cases=lambda: [
        Case(torch.tensor([[0, 1, 1, 1]]), note="a row of four tokens; the first is padding"),
        Case(torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 1, 1], [1, 1, 1, 0, 0]]), note="padding on the left and right"),
        Case(torch.tensor([[1, 1, 0, 0, 1, 1]]), note="padding in the middle, between picture and text"),
        Case((noise(3, 8) > -0.5).long(), note="three rows with padding anywhere"),
    ],
    axes={"positions": "batch length", "mask": "batch heads query key"},
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
        expect(
            mask.shape == right[1].shape and mask.equal(right[1]),
            "In packed rows the mask is wrong. The given lines take your `mask` and hide the other documents in it: "
            "make it before them, and let each token see itself behind them.",
        )
        expect(
            positions[:, : 5 - start].equal(right[0][:, : 5 - start]),
            "In packed rows each document begins at 0 again. Count the positions from `mask`, behind the given lines, "
            "not from attention_mask.",
        )


def _pieces(attention_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The past and oneself [1, T, T], real keys [B, 1, T], oneself [1, T, T]."""
    oneself = torch.eye(attention_mask.shape[1], dtype=torch.bool)[None]
    return torch.ones_like(oneself).tril(), attention_mask.bool()[:, None, :], oneself


def _wrong_mask(sentence: str):
    """Decorator: the mask [B or 1, T, T] made wrongly from the three pieces, whatever the positions then are."""

    def add(make) -> None:
        @MASKS.mistake(sentence)
        def _(attention_mask, documents, length, device):
            mask = make(*_pieces(attention_mask))
            return mask.sum(dim=2) - 1, mask[:, None]

    return add


def _wrong_positions(sentence: str):
    """Decorator: the mask is right, and the positions [B, T] are not."""

    def add(make) -> None:
        @MASKS.mistake(sentence)
        def _(attention_mask, documents, length, device):
            causal, real, oneself = _pieces(attention_mask)
            return make(causal, real, oneself), (causal & real | oneself)[:, None]

    return add


@_wrong_mask("The padding is hidden, but the future is not: a query must not see keys that stand behind it.")
def _(causal: Tensor, real: Tensor, oneself: Tensor) -> Tensor:
    return real | oneself


@_wrong_mask("The future is hidden, but the padding is not: a key must also be real, attention_mask nonzero.")
def _(causal: Tensor, real: Tensor, oneself: Tensor) -> Tensor:
    return causal


@_wrong_mask("Past and future are swapped: this shows each token only what comes after it. The query is the row.")
def _(causal: Tensor, real: Tensor, oneself: Tensor) -> Tensor:
    return causal.mT & real | oneself


@_wrong_mask("You hide the padding's rows instead of its columns: what matters is which *keys* are real.")
def _(causal: Tensor, real: Tensor, oneself: Tensor) -> Tensor:
    return causal & real.mT | oneself


@_wrong_mask(
    "You hide the padding's rows as well as its columns. Only which *keys* are real matters: a padding token may look "
    "at the real tokens before it."
)
def _(causal: Tensor, real: Tensor, oneself: Tensor) -> Tensor:
    return causal & real & real.mT | oneself


@_wrong_mask("You show the padding and hide the real tokens: attention_mask is nonzero where a token is real.")
def _(causal: Tensor, real: Tensor, oneself: Tensor) -> Tensor:
    return causal & ~real | oneself


@_wrong_mask(
    "A padding token at the front has nothing to look at: its row is False throughout, and a softmax over nothing is "
    "0 / 0. Let every token see itself."
)
def _(causal: Tensor, real: Tensor, oneself: Tensor) -> Tensor:
    return causal & real


@_wrong_mask("No token sees itself: a key may also stand where the query stands (>=, not >).")
def _(causal: Tensor, real: Tensor, oneself: Tensor) -> Tensor:
    return causal & real & ~oneself


@_wrong_mask("The mask is upside down: here True means *may look*, as scaled_dot_product_attention has it.")
def _(causal: Tensor, real: Tensor, oneself: Tensor) -> Tensor:
    return ~(causal & real | oneself)


@_wrong_positions("The positions count padding as well. A token's position is the number of *real* tokens before it.")
def _(causal: Tensor, real: Tensor, oneself: Tensor) -> Tensor:
    return torch.arange(causal.shape[1]).expand(real.shape[0], -1)


@_wrong_positions("The positions begin at 1: the first real token has none before it, so it stands at 0.")
def _(causal: Tensor, real: Tensor, oneself: Tensor) -> Tensor:
    return (causal & real).sum(dim=2)


@_wrong_positions(
    "You count the tokens before a token, without itself (> for >=), and take 1 off besides. The first real token "
    "stands at 0, the second at 1."
)
def _(causal: Tensor, real: Tensor, oneself: Tensor) -> Tensor:
    return (causal & real & ~oneself).sum(dim=2) - 1


@_wrong_positions(
    "You count the tokens before a token, without itself (> for >=), and take 1 off besides, down to 0. The first "
    "real token stands at 0, the second at 1."
)
def _(causal: Tensor, real: Tensor, oneself: Tensor) -> Tensor:
    return ((causal & real & ~oneself).sum(dim=2) - 1).clamp(min=0)


@MASKS.part
def _(code, learner) -> None:
    code.language_model.attention_layout = learner
