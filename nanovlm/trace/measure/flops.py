"""Floating-point operations of a step, by formula, from shapes alone: a multiplication and an addition are two.

Only products count (linear, matmul, convolution, attention), as in torch's FlopCounterMode and in papers; what is
left out (norms, activations, softmax) is about one percent of a transformer. One difference from FlopCounterMode: it
counts a matrix times a *vector* as 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from nanovlm.trace.rows import Row, TensorInfo


def flops_of(row: Row) -> int:
    """Operations of one torch function; 0 for what is no product, and for a step that failed."""
    formula = _FORMULAS.get(row.name)
    if formula is None or row.error is not None or not row.outs:
        return 0
    try:
        return formula(row)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):  # arguments this formula does not know
        return 0


def count_flops(row: Row) -> int:
    """Write into this row and every row inside it how many operations its products take; returns this row's."""
    inside = sum(count_flops(child) for child in row.children)
    row.flops = 0 if row.kind == "aten" else (flops_of(row) if row.kind == "op" else 0) or inside
    return row.flops


def _arg(row: Row, position: int, name: str, default: Any = None) -> Any:
    return row.args[position] if len(row.args) > position else row.kwargs.get(name, default)


def _linear(row: Row) -> int:
    return 2 * row.outs[0].numel * _arg(row, 0, "input").shape[-1]


def _matmul(row: Row) -> int:
    left = _arg(row, 0, "input")
    return 2 * row.outs[0].numel * left.shape[-1]


def _reversed_matmul(row: Row) -> int:  # b.__rmatmul__(a) is a @ b
    return 2 * row.outs[0].numel * row.args[1].shape[-1]


def _addmm(row: Row) -> int:
    return 2 * row.outs[0].numel * _arg(row, 1, "mat1").shape[-1]


def _addbmm(row: Row) -> int:
    batch, _, inner = _arg(row, 1, "batch1").shape
    return 2 * row.outs[0].numel * batch * inner


def _conv(row: Row) -> int:
    weight: TensorInfo = _arg(row, 1, "weight")
    return 2 * row.outs[0].numel * math.prod(weight.shape[1:])


def _conv_transpose(row: Row) -> int:
    weight: TensorInfo = _arg(row, 1, "weight")
    return 2 * _arg(row, 0, "input").numel * math.prod(weight.shape[1:])


def _attention(row: Row) -> int:
    """Scores and weighted sum: every query meets every key, whether or not a mask hides it afterwards."""
    q, k, v = (_arg(row, i, name).shape for i, name in enumerate(("query", "key", "value")))
    return 2 * math.prod(q[:-1]) * k[-2] * (q[-1] + v[-1])


def _einsum(row: Row) -> int:
    """Two operands: one multiplication and addition for each combination of all indices; more are taken pairwise."""
    equation = row.args[0].replace(" ", "")
    infos = row.inputs
    left, _, right = equation.partition("->")
    terms = left.split(",")
    sizes: dict[str, int] = {}
    for i, (term, info) in enumerate(zip(terms, infos, strict=True)):
        dots = info.ndim - len(term.replace("...", ""))
        terms[i] = term.replace("...", "".join(chr(0x3B1 + n) for n in range(dots)))  # an ellipsis: Greek letters
        sizes.update(zip(terms[i], info.shape, strict=True))
    total, current = 0, terms[0]
    for i, term in enumerate(terms[1:], 1):
        summed = set(current) & set(term)
        together = set(current) | set(term)
        if summed or len(terms) == 2:
            total += 2 * math.prod(sizes[letter] for letter in together)
        later = set("".join(terms[i + 1 :])) | (set(right) if "->" in equation else together)
        current = "".join(letter for letter in together if letter in later or "." in right)
    return total


def _tensordot(row: Row) -> int:
    left, right = _arg(row, 0, "a"), _arg(row, 1, "b")
    summed = math.sqrt(left.numel * right.numel / row.outs[0].numel)
    return 2 * row.outs[0].numel * round(summed)


def _bilinear(row: Row) -> int:
    left, right, weight = (_arg(row, i, n) for i, n in enumerate(("input1", "input2", "weight")))
    rows = left.numel // left.shape[-1]
    return 2 * rows * weight.shape[0] * left.shape[-1] * (right.shape[-1] + 1)


def _recurrent(row: Row) -> int:
    """nn.LSTM, nn.GRU, nn.RNN: each weight matrix meets each token once. Packed sequences: [tokens, features]."""
    x = row.args[0]
    tokens = x.numel // x.shape[-1]
    lists = [part for part in row.args if isinstance(part, (list, tuple))]
    return 2 * tokens * sum(info.numel for part in lists for info in part if info.ndim == 2)


def _recurrent_cell(row: Row) -> int:
    x, weights = row.args[0], row.args[2:4]
    return 2 * (x.numel // x.shape[-1]) * sum(weight.numel for weight in weights)


def _multi_dot(row: Row) -> int:
    """A chain of matrices in the order that takes the fewest operations, which is the one torch takes."""
    shapes = [info.shape for info in row.inputs]
    if len(shapes[0]) == 1:
        shapes[0] = (1, *shapes[0])
    if len(shapes[-1]) == 1:
        shapes[-1] = (*shapes[-1], 1)
    sizes, count = [shapes[0][0], *(columns for _, columns in shapes)], len(shapes)
    least = {(i, i): 0 for i in range(count)}
    for length in range(1, count):
        for i in range(count - length):
            j = i + length
            least[i, j] = min(
                least[i, k] + least[k + 1, j] + 2 * sizes[i] * sizes[k + 1] * sizes[j + 1] for k in range(i, j)
            )
    return least[0, count - 1]


_FORMULAS: dict[str, Callable[[Row], int]] = {
    "linear": _linear,
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot", "inner", "vdot"), _matmul),
    "rmatmul": _reversed_matmul,
    **dict.fromkeys(("addmm", "baddbmm", "addmv", "addmm_", "baddbmm_"), _addmm),
    "addbmm": _addbmm,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _conv),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _conv_transpose),
    "scaled_dot_product_attention": _attention,
    "einsum": _einsum,
    "tensordot": _tensordot,
    **dict.fromkeys(("linalg_multi_dot", "chain_matmul"), _multi_dot),
    "bilinear": _bilinear,
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _recurrent),
    **dict.fromkeys(("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"), _recurrent_cell),
}
