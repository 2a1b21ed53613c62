"""Chapter 07: several samples in a row, and what keeps them apart."""

from __future__ import annotations

import torch
from torch import Tensor

from nanovlm.course.judge.exercise import Case, Exercise, expect
from nanovlm.data.collators import pack
from nanovlm.models.language_model import attention_layout

# -- data.pack ---------------------------------------------------------------------------------------------------------

PACK = Exercise(
    id="data.pack",
    chapter="07",
    title="Which samples share a row?",
    difficulty=2,
    minutes=12,
    why="Conversations differ in length by a factor of a hundred. Padding each to the longest throws more than half of "
    "the computation away; this function of ten lines gets nearly all of it back.",
    hints=(
        "Think of suitcases: the large things first, the small ones into the gaps.",
        "Sort the sample numbers by length, longest first. For each, look through the rows in the order in which they "
        "were opened, and take the first with room enough; open a new one where none has.",
        "rows, room = [], []\n"
        "for sample in sorted(range(len(lengths)), key=lambda i: -lengths[i]):\n"
        "    if lengths[sample] > max_length: raise ValueError(…)\n"
        "    for r in range(len(rows)):\n"
        "        if …: break\n"
        "    else:\n"
        "        open a row: rows.append([]), room.append(max_length), r = len(rows) - 1\n"
        "    rows[r].append(sample); room[r] -= lengths[sample]",
    ),
    reference=pack,
    cases=lambda: [
        Case([3, 6, 2, 5, 4], 10, note="five samples, rows of 10"),
        Case([5, 7, 3, 5, 4, 4, 2], 9, note="seven samples, rows of 9"),
        Case([4, 4, 4, 4, 8], 8, note="some fill a row exactly"),
        Case([12, 48, 20, 35, 27, 40, 9, 17, 30, 22], 64, note="ten samples, rows of 64"),
        Case([6], 6, note="one sample that fills its row"),
    ],
)


@PACK.property("a sample that fits nowhere raises ValueError")
def _(fn) -> None:
    try:
        rows = fn([3, 11, 2], 10)
    except ValueError:
        return
    expect(
        False,
        f"A sample of 11 tokens does not fit into rows of 10, and it returned {rows}. Raise ValueError: whoever calls "
        "has to cut it, and to count that.",
    )


@PACK.property("each sample is in one row, and no row is too long")
def _(fn) -> None:
    lengths = [(7 * i * i + 3 * i) % 29 + 1 for i in range(60)]
    rows = fn(list(lengths), 40)
    expect(sorted(i for row in rows for i in row) == list(range(60)), "A sample is missing, or comes twice.")
    expect(all(sum(lengths[i] for i in row) <= 40 for row in rows), "A row is longer than max_length.")


def _fit(lengths, max_length, order=lambda n: -n, fits=lambda free, n: free >= n, among=lambda rows: rows, take=min):
    """First-fit decreasing to build wrong versions from. take(candidates, key) chooses among rows with room."""
    rows, room = [], []
    for sample in sorted(range(len(lengths)), key=lambda i: order(lengths[i])):
        fitting = [r for r in among(range(len(rows))) if fits(room[r], lengths[sample])]
        if fitting:
            row = take(fitting, key=lambda r: 0 if take is min else room[r])
        else:
            row = len(rows)
            rows.append([])
            room.append(max_length)
        rows[row].append(sample)
        room[row] -= lengths[sample]
    return rows


@PACK.mistake(
    "Only the row that was opened last is looked at (next-fit). Gaps further back stay empty: look through all rows, "
    "the first one first."
)
def _(lengths, max_length):
    return _fit(lengths, max_length, among=lambda rows: list(rows)[-1:])


@PACK.mistake(
    "The samples come in the order of the data. The longest first: small ones fit into the gaps that large ones leave, "
    "not the other way round."
)
def _(lengths, max_length):
    return _fit(lengths, max_length, order=lambda n: 0)


@PACK.mistake("The shortest come first, so that the long ones find only rows that are half full. Sort downwards.")
def _(lengths, max_length):
    return _fit(lengths, max_length, order=lambda n: n)


@PACK.mistake("A sample that fills a row exactly finds no room: compare with >=, not with >.")
def _(lengths, max_length):
    return _fit(lengths, max_length, fits=lambda free, n: free > n)


@PACK.mistake("The rows hold lengths. Return the numbers of the samples: whoever builds the batch has to find them.")
def _(lengths, max_length):
    return [[lengths[i] for i in row] for row in pack(lengths, max_length)]


@PACK.mistake(
    "The numbers are places in the sorted list. Sort the sample numbers by their length, "
    "sorted(range(n), key=…), so that they still name samples of the data."
)
def _(lengths, max_length):
    return pack(sorted(lengths, reverse=True), max_length)


@PACK.mistake(
    "You choose the fullest row that still has room (best-fit). That packs well, too, but here the first row with room "
    "is asked for."
)
def _(lengths, max_length):
    rows, room = [], []
    for sample in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fitting = [r for r in range(len(rows)) if room[r] >= lengths[sample]]
        row = min(fitting, key=room.__getitem__) if fitting else len(rows)
        if row == len(rows):
            rows.append([])
            room.append(max_length)
        rows[row].append(sample)
        room[row] -= lengths[sample]
    return rows


@PACK.mistake(
    "You choose the emptiest row with room, which spreads the samples and leaves a gap in every row. Take the first "
    "row with room."
)
def _(lengths, max_length):
    rows, room = [], []
    for sample in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fitting = [r for r in range(len(rows)) if room[r] >= lengths[sample]]
        row = max(fitting, key=room.__getitem__) if fitting else len(rows)
        if row == len(rows):
            rows.append([])
            room.append(max_length)
        rows[row].append(sample)
        room[row] -= lengths[sample]
    return rows


@PACK.mistake("Each sample has a row of its own: nothing is packed. Put it into a row that has room for it.")
def _(lengths, max_length):
    return [[i] for i in sorted(range(len(lengths)), key=lambda i: -lengths[i])]


@PACK.mistake(
    "The list of lengths is sorted in place: the numbers are then places in the sorted list, and whoever called has lost "
    "the order. Sort the sample numbers."
)
def _(lengths, max_length):
    lengths.sort(reverse=True)
    return pack(lengths, max_length)


@PACK.mistake("The last row is lost: append what is still open behind the loop.")
def _(lengths, max_length):
    return pack(lengths, max_length)[:-1]


# -- data.document_mask ------------------------------------------------------------------------------------------------

CPU = torch.device("cpu")


def document_mask(document_ids: Tensor) -> tuple[Tensor, Tensor]:
    """[B, T], -1 on padding -> mask, bool [B, 1, T, T] (True: the query sees the key), and positions [B, T]"""
    positions, mask = attention_layout(None, document_ids, document_ids.shape[1], document_ids.device)
    return mask, positions


def run_mask(fn, document_ids: Tensor):
    """What padding sees, and where it stands, does not matter as long as it sees something: filled in here."""
    out = fn(document_ids)
    if not (isinstance(out, (tuple, list)) and len(out) == 2 and all(isinstance(part, Tensor) for part in out)):
        return out
    mask, positions = out
    batch, length = document_ids.shape
    padding = document_ids < 0
    if mask.dtype == torch.bool and mask.shape == (batch, 1, length, length):
        # A softmax over nothing is 0 / 0, and NaN spreads from there.
        expect(
            mask[:, 0][padding].any(dim=-1).all() if padding.any() else True,
            "A row of the mask that belongs to padding is False throughout.",
        )
        itself = torch.eye(length, dtype=torch.bool).expand(batch, 1, length, length)
        mask = torch.where(padding[:, None, :, None], itself, mask)
    if positions.shape == document_ids.shape:
        positions = positions.masked_fill(padding, 0)
    return mask, positions


DOCUMENT_MASK = Exercise(
    id="data.document_mask",
    chapter="07",
    title="Mend it: a row that reads its neighbour",
    difficulty=3,
    minutes=15,
    why="Packing without boundaries raises nothing and trains on. But every answer may be read off a conversation about "
    "another picture, and the model meets positions that it never sees at use.",
    hints=(
        "The code says that a key must be real and not later. A third condition is missing, about the documents of the "
        "two tokens. And where does a document begin?",
        "mask[b, query, key] needs three things: not later, the same document, and no padding. A query that sees k "
        "tokens, itself included, stands at position k - 1 of its document: count before you let padding see itself.",
        "causal = torch.ones(T, T, dtype=torch.bool).tril()\n"
        "same = document_ids[:, :, None] == …                # [B, T, T]\n"
        "mask = causal & same & (document_ids >= 0)[:, None, :]\n"
        "positions = (mask.sum(dim=2) - 1).clamp(min=0)\n"
        "mask = mask | torch.eye(T, dtype=torch.bool)\n"
        "return mask[:, None], positions",
    ),
    reference=document_mask,
    cases=lambda: [
        Case(torch.tensor([[0, 0, 0, 1, 1, -1]]), note="a document of three tokens, one of two, one token of padding"),
        Case(
            torch.tensor([[0, 1, 1, 2, 2, 2, -1], [0, 0, 0, 0, 0, 1, 1]]),
            note="two rows, with three documents and with two",
        ),
        Case(torch.tensor([[0, 0, 0]]), note="one document alone: plain causal attention"),
    ],
    axes={"mask": "batch heads query key", "positions": "batch length"},
    call=run_mask,
)


@DOCUMENT_MASK.property("what document 0 says does not move document 1")
def _(fn) -> None:
    documents = torch.tensor([[0, 0, 0, 1, 1, -1]])
    mask = fn(documents)[0]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 1, 6, 4, generator=generator)
    changed = x.clone()
    changed[:, :, :3] += 1
    attend = torch.nn.functional.scaled_dot_product_attention
    before, after = (attend(v, v, v, attn_mask=mask) for v in (x, changed))
    expect(torch.allclose(before[:, :, 3:5], after[:, :, 3:5]), "Document 1 moves when document 0 is changed.")


def _pieces(documents: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """causal [1, T, T], same document [B, T, T], real key [B, 1, T], oneself [1, T, T]"""
    length = documents.shape[1]
    causal = torch.ones(1, length, length, dtype=torch.bool).tril()
    same = documents[:, :, None] == documents[:, None, :]
    return causal, same, (documents >= 0)[:, None, :], torch.eye(length, dtype=torch.bool)[None]


def _wrong(sentence: str):
    """Decorator: make(causal, same, real, oneself, documents) -> mask [B, T, T], or that and the positions."""

    def add(make) -> None:
        @DOCUMENT_MASK.mistake(sentence)
        def _(document_ids):
            made = make(*_pieces(document_ids), document_ids)
            mask, positions = made if isinstance(made, tuple) else (made, (made.sum(dim=2) - 1).clamp(min=0))
            oneself = _pieces(document_ids)[3]
            padding = (document_ids < 0)[:, :, None]
            return torch.where(padding, oneself, mask)[:, None], positions

    return add


def _right(causal, same, real, oneself):
    return causal & same & real


@_wrong(
    "Documents still read those before them, and positions run on: this is the code that was to be mended. The key must "
    "be of the query's own document."
)
def _(causal, same, real, oneself, documents):
    return causal & real, torch.arange(documents.shape[1]).expand_as(documents)


@_wrong(
    "Documents still read those before them. A third condition is missing: the key must be of the query's own document."
)
def _(causal, same, real, oneself, documents):
    return causal & real, (_right(causal, same, real, oneself).sum(dim=2) - 1).clamp(min=0)


@_wrong(
    "The mask is right, but positions run on through the row. Each document begins at 0 again, as it will when it is "
    "asked alone."
)
def _(causal, same, real, oneself, documents):
    return _right(causal, same, real, oneself), torch.arange(documents.shape[1]).expand_as(documents)


@_wrong("Documents are kept apart, but the future is not hidden: a query must not see keys that stand behind it.")
def _(causal, same, real, oneself, documents):
    return same & real, (_right(causal, same, real, oneself).sum(dim=2) - 1).clamp(min=0)


@_wrong(
    "Documents are kept apart, but the future is not hidden, which also gives all tokens of a document one position."
)
def _(causal, same, real, oneself, documents):
    return same & real


@_wrong("The mask is True where a query must *not* look. In torch, True lets it look.")
def _(causal, same, real, oneself, documents):
    right = _right(causal, same, real, oneself)
    return ~right, (right.sum(dim=2) - 1).clamp(min=0)


@_wrong("No token sees itself: not later includes the query's own place, >= and not >.")
def _(causal, same, real, oneself, documents):
    right = _right(causal, same, real, oneself)
    return right & ~oneself, (right.sum(dim=2) - 1).clamp(min=0)


@_wrong("The first position of a document is 1. Positions count from 0: the number of tokens seen, less 1.")
def _(causal, same, real, oneself, documents):
    right = _right(causal, same, real, oneself)
    return right, right.sum(dim=2)


@_wrong("The documents' numbers stand where positions should: they say which document, not which place in it.")
def _(causal, same, real, oneself, documents):
    return _right(causal, same, real, oneself), documents.clamp(min=0)


@DOCUMENT_MASK.mistake(
    "Padding has nothing to look at: its document is -1, and the real keys are none of its own. A softmax over nothing "
    "is 0 / 0, so let every token see itself."
)
def _(document_ids):
    causal, same, real, _ = _pieces(document_ids)
    mask = causal & same & real
    return mask[:, None], (mask.sum(dim=2) - 1).clamp(min=0)


@DOCUMENT_MASK.mistake(
    "The mask holds numbers to add to the scores. Return bools: -inf and finfo.min do not survive half precision."
)
def _(document_ids):
    causal, same, _, _ = _pieces(document_ids)
    mask = causal & same
    return torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)[:, None], mask.sum(dim=2) - 1


@DOCUMENT_MASK.mistake("The axis of the heads is missing. All heads share the mask, so it has size 1: mask[:, None].")
def _(document_ids):
    causal, same, _, _ = _pieces(document_ids)
    mask = causal & same
    return mask, (mask.sum(dim=2) - 1).masked_fill(document_ids < 0, 0)
