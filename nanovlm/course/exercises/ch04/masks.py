"""Chapter 04: where a token is, and which tokens it attends to."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nanovlm.course.judge.exercise import Case, Exercise, expect

ONE_PADDED = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])  # two rows, the first padded on the left
ROWS = (
    (torch.tensor([[0, 1, 1, 1]]), "a row of four tokens; the first is padding"),
    (torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 1, 1], [1, 1, 1, 0, 0]]), "padding on the left and on the right"),
    (torch.tensor([[1, 1, 0, 0, 1, 1]]), "padding in the middle, between picture and text"),
    (torch.tensor([[1, 0, 1, 1, 0, 1, 0, 1], [0, 1, 1, 0, 1, 1, 1, 0]]), "two rows with padding anywhere"),
)

# -- decoder.positions -------------------------------------------------------------------------------------------------


def real_positions(attention_mask: Tensor) -> Tensor:
    """Of each real token the number of real tokens before it. [B, T] -> [B, T]"""
    return (attention_mask.bool().long().cumsum(dim=1) - 1).clamp(min=0)


def run_positions(positions, attention_mask: Tensor):
    """Whole numbers of any width count; what a padding token gets does not matter."""
    out = positions(attention_mask)
    if not isinstance(out, Tensor):
        return out
    if not out.is_floating_point():
        out = out.long()
    return out.masked_fill(attention_mask == 0, 0) if out.shape == attention_mask.shape else out


POSITIONS = Exercise(
    id="decoder.positions",
    chapter="04",
    title="Padding has no position",
    difficulty=1,
    minutes=6,
    why="If padding counts, the question moves away from its picture, by more in a batch with longer rows: the same "
    "question gets another answer. nanoVLM had this bug, although its mask was right.",
    hints=(
        "How many real tokens come before a token? Count them along the row.",
        "attention_mask is 1 for a real token and 0 for padding. Its running sum counts the real tokens up to and "
        "including each place, so the position is that count, less 1.",
        "return attention_mask.….clamp(min=0)      # a running sum along the length, less 1",
    ),
    reference=real_positions,
    cases=lambda: [Case(rows, note=note) for rows, note in ROWS],
    axes="batch length",
    call=run_positions,
)


@POSITIONS.property("a row has the same positions alone and in a batch")
def _(positions) -> None:
    alone, padded = torch.ones(1, 3, dtype=torch.long), torch.tensor([[0, 0, 1, 1, 1]])
    same = positions(alone)[0].tolist() == positions(padded)[0, 2:].tolist()
    expect(same, "Padding in front moves a row: its positions alone and in a batch differ.")


def _wrong_positions(sentence: str, make: Callable[[Tensor], Tensor]) -> None:
    POSITIONS.mistake(sentence)(make)


_wrong_positions(
    "The positions count padding as well. A token's position is the number of *real* tokens before it.",
    lambda m: torch.arange(m.shape[1]).expand(m.shape),
)
_wrong_positions(
    "The positions begin at 1: the first real token has none before it, so its position is 0. Take 1 off the running sum.",
    lambda m: m.cumsum(1),
)
_wrong_positions(
    "clamp(min=1) lets the positions begin at 1, and the first two real tokens share it. The first is at 0.",
    lambda m: (m.cumsum(1) - 1).clamp(min=1),
)
_wrong_positions(
    "The count runs along the batch (dim 0), from one row into the next. It runs along the length, dim 1.",
    lambda m: m.cumsum(0) - 1,
)
_wrong_positions(
    "You count from the end of the row. Positions grow from left to right.", lambda m: m.flip(1).cumsum(1).flip(1) - 1
)
_wrong_positions(
    "This is the number of padding tokens before a token. Count the real ones.", lambda m: (1 - m).cumsum(1)
)
_wrong_positions(
    "You subtract the padding in front of the row only. Padding in the middle has to be left out of the count as well: a "
    "running sum does both.",
    lambda m: torch.arange(m.shape[1]) - m.argmax(1, keepdim=True),
)
_wrong_positions(
    "You subtract all padding of the row, also what comes behind a token. Only the padding before it counts.",
    lambda m: torch.arange(m.shape[1]) - (1 - m).sum(1, keepdim=True),
)
_wrong_positions(
    "Every row gets the positions of the first row.", lambda m: (m[:1].cumsum(1) - 1).expand(m.shape).clamp(min=0)
)
_wrong_positions(
    "The count runs on from row to row. Each row begins again at 0.",
    lambda m: (m.flatten().cumsum(0) - 1).view(m.shape),
)
_wrong_positions(
    "It is one too few: the running sum includes the token itself, so its position is the sum less 1, not less 2.",
    lambda m: m.cumsum(1) - 2,
)
_wrong_positions(
    "The positions are those of one row; every row of the batch has its own: [batch, length].",
    lambda m: m[0].cumsum(0) - 1,
)
_wrong_positions("Positions are whole numbers; these are floats.", lambda m: real_positions(m).float())


@POSITIONS.part
def _(code, learner) -> None:
    layout = code.language_model.attention_layout

    def with_positions(attention_mask, document_ids, length, device, start=0):
        positions, mask = layout(attention_mask, document_ids, length, device, start)
        if attention_mask is not None and document_ids is None:
            positions = learner(attention_mask)[:, start:]
        return positions, mask

    code.language_model.attention_layout = with_positions


# -- decoder.who_sees_whom ---------------------------------------------------------------------------------------------


def pieces(attention_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The past and oneself [1, T, T], real keys [B, 1, T], oneself [1, T, T]."""
    oneself = torch.eye(attention_mask.shape[1], dtype=torch.bool)[None]
    return torch.ones_like(oneself).tril(), attention_mask.bool()[:, None, :], oneself


def who_sees_whom(attention_mask: Tensor) -> Tensor:
    """Causal, real keys only, and every token itself. [B, T] -> bool [B, 1, T, T]"""
    causal, real, oneself = pieces(attention_mask)
    return ((causal & real) | oneself)[:, None]


WHO = Exercise(
    id="decoder.who_sees_whom",
    chapter="04",
    title="Which tokens may a token attend to?",
    difficulty=2,
    minutes=10,
    why="With one future token visible, the model learns to copy it: the loss is excellent and the model useless. With "
    "one padding token visible, an answer depends on what else was in the batch.",
    hints=(
        "Two conditions must both hold: the key is not later than the query, and the key is a real token. Compare the "
        "index with itself, as a column and as a row.",
        "mask[b, query, key] = (query >= key) and the key is real: shapes [1, T, T] and [B, 1, T]. Then let each token "
        "see itself, padding too, and add the axis for the heads.",
        "index = torch.arange(T)\n"
        "causal = index[:, None] … index[None, :]                       # [query, key]\n"
        "mask = causal & …                                              # [B, T, T]: the keys that are real\n"
        "return (mask | (index[:, None] == index[None, :]))[:, None]",
    ),
    reference=who_sees_whom,
    cases=lambda: [Case(rows, note=note) for rows, note in ROWS],
    axes="batch heads query key",
)


@WHO.property("without padding it is a triangle")
def _(make) -> None:
    mask = make(torch.ones(2, 4, dtype=torch.long))
    right = torch.ones(4, 4, dtype=torch.bool).tril().expand(2, 1, 4, 4)
    expect(mask.equal(right), "With real tokens only, a query should see itself and all keys before it.")


@WHO.property("any number but 0 means a real token")
def _(make) -> None:
    rows = torch.tensor([[0, 3, 1, 7]])
    expect(
        make(rows).equal(who_sees_whom(rows)), "With an attention_mask of 0, 3, 1, 7 the result is wrong: use .bool()."
    )


def _wrong_mask(sentence: str, make: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    WHO.mistake(sentence)(lambda m: make(*pieces(m))[:, None].expand(len(m), -1, -1, -1))


_wrong_mask(
    "The padding is hidden, but the future is not: a query must not see keys that come after it.", lambda c, r, e: r | e
)
_wrong_mask(
    "The future is hidden, but the padding is not: a key must also be real, attention_mask nonzero.",
    lambda c, r, e: c | e & r,
)
_wrong_mask(
    "Past and future are exchanged: this shows each token only what comes after it. The query is the row.",
    lambda c, r, e: c.mT & r | e,
)
_wrong_mask(
    "Past and future are exchanged, or rows and columns: the mask is transposed. Queries are rows, keys are columns.",
    lambda c, r, e: (c & r | e).mT,
)
_wrong_mask(
    "You hide the padding's rows instead of its columns: it is the *keys* that have to be real.",
    lambda c, r, e: c & r.mT | e,
)
_wrong_mask(
    "You hide the padding's rows as well as its columns. Only the *keys* have to be real: a padding token may look at "
    "the real tokens before it.",
    lambda c, r, e: c & r & r.mT | e,
)
_wrong_mask(
    "You show the padding and hide the real tokens: attention_mask is nonzero where a token is real.",
    lambda c, r, e: c & ~r | e,
)
_wrong_mask(
    "A padding token in front has nothing to look at: its row is False throughout, and a softmax over nothing is 0 / 0. "
    "Let every token see itself.",
    lambda c, r, e: c & r,
)
_wrong_mask("No token sees itself: the key may also be the query's own token (>=, not >).", lambda c, r, e: c & r & ~e)
_wrong_mask(
    "The mask is upside down: True means *may look* here, as in scaled_dot_product_attention.",
    lambda c, r, e: ~(c & r | e),
)
_wrong_mask(
    "There is an or where both conditions must hold: a key must be in the past *and* be real (&).",
    lambda c, r, e: c | r,
)
_wrong_mask(
    "A padding token sees everything here. Its row follows the same rule as the others, and it sees itself.",
    lambda c, r, e: c & r | ~r.mT,
)
WHO.mistake("Every row of the batch gets the mask of the first row.")(
    lambda m: who_sees_whom(m[:1]).expand(len(m), -1, -1, -1)
)
WHO.mistake("The axis for the heads is missing: [batch, 1, query, key], so that all heads share the mask.")(
    lambda m: who_sees_whom(m)[:, 0]
)
WHO.mistake("This is a mask to add to the scores. Return bools: True where a query may look.")(
    lambda m: torch.where(who_sees_whom(m), 0.0, float("-inf"))
)
WHO.mistake("These are the numbers 0 and 1. Return bools: with numbers torch would add them to the scores.")(
    lambda m: who_sees_whom(m).long()
)


@WHO.part
def _(code, learner) -> None:
    layout = code.language_model.attention_layout

    def with_mask(attention_mask, document_ids, length, device, start=0):
        positions, mask = layout(attention_mask, document_ids, length, device, start)
        if attention_mask is not None and document_ids is None:
            mask = learner(attention_mask)[:, :, start:]
        return positions, mask

    code.language_model.attention_layout = with_mask


# -- decoder.prefix_mask -----------------------------------------------------------------------------------------------


def prefix_mask(attention_mask: Tensor, prefix: Tensor) -> Tensor:
    causal, real, oneself = pieces(attention_mask)
    inside = prefix.bool()
    return (((causal | (inside[:, :, None] & inside[:, None, :])) & real) | oneself)[:, None]


PREFIX = Exercise(
    id="decoder.prefix_mask",
    chapter="04",
    title="A prefix that sees itself in both directions",
    difficulty=2,
    minutes=12,
    why="PaliGemma lets picture and question see each other in both directions and only the answer is causal. One "
    "condition decides; with a slip in it, the question reads its answer.",
    hints=(
        "Start from the causal mask. Which pairs does a prefix add?",
        "A query may look at a key if the key is not later, or if both are in the prefix; and in either case the key must "
        "be real. Every token may look at itself.",
        "inside = prefix.bool()\n"
        "both = inside[:, :, None] & …            # [B, query, key]\n"
        "mask = (causal | both) & …               # real keys only\n"
        "then oneself, and the axis for the heads, as before",
    ),
    reference=prefix_mask,
    cases=lambda: [
        Case(
            torch.tensor([[1, 1, 1, 1, 1]]),
            torch.tensor([[1, 1, 1, 0, 0]]),
            note="a prefix of three tokens and an answer of two",
        ),
        Case(
            torch.tensor([[0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]]),
            torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]]),
            note="padding on the left, inside the prefix, and on the right",
        ),
        Case(
            torch.tensor([[1, 1, 1, 1, 1, 1, 1]]),
            torch.tensor([[0, 0, 1, 1, 1, 0, 0]]),
            note="two tokens before the prefix",
        ),
        Case(
            torch.tensor([[1, 1, 0, 1, 1]]), torch.tensor([[1, 1, 1, 1, 0]]), note="padding in the middle of the prefix"
        ),
    ],
    axes="batch heads query key",
)


@PREFIX.property("without a prefix it is the causal mask")
def _(make) -> None:
    rows = ONE_PADDED
    same = make(rows, torch.zeros_like(rows)).equal(who_sees_whom(rows))
    expect(same, "With an empty prefix the mask should be the causal one, with padding hidden.")


def _wrong_prefix(sentence: str, make: Callable[..., Tensor]) -> None:
    def version(attention_mask: Tensor, prefix: Tensor) -> Tensor:
        inside = prefix.bool()
        mask = make(*pieces(attention_mask), inside[:, :, None], inside[:, None, :])
        return mask[:, None].expand(len(attention_mask), -1, -1, -1)

    PREFIX.mistake(sentence)(version)


_wrong_prefix(
    "The prefix is not used: this is the causal mask. Tokens of the prefix also see each other's future.",
    lambda c, r, e, pq, pk: c & r | e,
)
_wrong_prefix(
    "Everything sees everything, so the answer sees its future. Only the prefix is bidirectional.",
    lambda c, r, e, pq, pk: r | e,
)
_wrong_prefix(
    "The prefix sees the answer: a query in the prefix may look ahead only at keys that are in the prefix themselves.",
    lambda c, r, e, pq, pk: (c | pq) & r | e,
)
_wrong_prefix(
    "Tokens that stand before the prefix see into it. Both query and key have to be in the prefix, not the key alone.",
    lambda c, r, e, pq, pk: (c | pk) & r | e,
)
_wrong_prefix(
    "It is enough for you that one of the two, query or key, is in the prefix. Both have to be.",
    lambda c, r, e, pq, pk: (c | pq | pk) & r | e,
)
_wrong_prefix(
    "The answer sees nothing but itself: outside the prefix the causal rule still holds.",
    lambda c, r, e, pq, pk: pq & pk & r | e,
)
_wrong_prefix(
    "The answer is cut off from the prefix: it has to look back at picture and question.",
    lambda c, r, e, pq, pk: (c & (pq == pk) | pq & pk) & r | e,
)
_wrong_prefix(
    "The answer sees its future as well: `query in prefix == key in prefix` is also true when neither is.",
    lambda c, r, e, pq, pk: (c | (pq == pk)) & r | e,
)
_wrong_prefix(
    "The prefix is inverted: it is the answer that sees its own future here.",
    lambda c, r, e, pq, pk: (c | ~pq & ~pk) & r | e,
)
_wrong_prefix(
    "Keys that are padding can be seen: in the prefix, too, a key has to be real.",
    lambda c, r, e, pq, pk: c & r | pq & pk | e,
)
_wrong_prefix(
    "A padding token follows the rules as well: only the *keys* have to be real, so where it counts as prefix, it looks at "
    "the real tokens of the prefix.",
    lambda c, r, e, pq, pk: (c | pq & pk & r.mT) & r | e,
)
_wrong_prefix("No padding is hidden: a key has to be real.", lambda c, r, e, pq, pk: c | pq & pk)
_wrong_prefix(
    "There is an and where one condition is enough: in the past *or* both in the prefix (|).",
    lambda c, r, e, pq, pk: c & pq & pk & r | e,
)
_wrong_prefix(
    "A padding token has nothing to look at, and its softmax is 0 / 0: let every token see itself.",
    lambda c, r, e, pq, pk: (c | pq & pk) & r,
)
_wrong_prefix("The mask is upside down: True means *may look*.", lambda c, r, e, pq, pk: ~((c | pq & pk) & r | e))
