"""Rules for steps that join, rearrange and compare: cat, broadcasting, view, expand, permute."""

from __future__ import annotations

import math
import re
from itertools import pairwise

from nanovlm.trace.explain.failed_call import Advice, FailedCall, broadcast, ordinal, ordinal_of_both, shape
from nanovlm.trace.rows import TensorInfo


def cat(call: FailedCall) -> Advice | None:
    parts = call.parts()
    if len(parts) < 2:
        return None
    both = " and ".join(f"{text} is {shape(info.shape)}" for text, info in parts[:4])
    first = parts[0][1]
    if any(info.ndim != first.ndim for _, info in parts):
        few, many = min(parts, key=lambda p: p[1].ndim), max(parts, key=lambda p: p[1].ndim)
        wrong = f"{both}: {few[0]} has {few[1].ndim} dims and {many[0]} has {many[1].ndim}."
        return Advice(wrong, _grown(few, many, call.value(1, "dim", 0)))
    differ = _differ([info.shape for _, info in parts])
    if call.name == "stack":
        dims = f"torch.cat(…, dim={differ[0]})" if len(differ) == 1 else "one shape"
        fix = f"{dims} joins them along the dim that differs." if len(differ) == 1 else "bring them to one shape first."
        return Advice(f"{both}: stack needs equal shapes.", fix)
    dim = call.value(1, "dim", 0)
    dim = dim % first.ndim if isinstance(dim, int) and first.ndim else 0
    clash = [d for d in differ if d != dim]
    if not clash:
        return None
    sizes = " against ".join(str(info.shape[clash[0]]) for _, info in parts[:4])
    wrong = (
        f"{both}: joined along dim {dim}, they may differ only there, but {ordinal(clash[0], first.ndim)} is {sizes}."
    )
    if first.ndim == 4 and dim == 1 and all(at in (2, 3) for at in clash):
        size, text = parts[1][1].shape[2:], parts[0][0]
        least = [min(sizes) for sizes in zip(*(info.shape[2:] for _, info in parts), strict=True)]
        crop = f"crop the larger: [:, :, :{least[0]}, :{least[1]}]"
        return Advice(wrong, f"F.interpolate({text}, size={tuple(size)}), or {crop}, or pad the smaller.")
    ones = [text for text, info in parts if info.shape[0] == 1]
    if clash == [0] and len(ones) == 1 and len({info.shape[0] for _, info in parts}) == 2:
        batch = max(info.shape[0] for _, info in parts)
        return Advice(wrong, f"one for each of the batch: {ones[0]}.expand({batch}{', -1' * (first.ndim - 1)}).")
    if len(differ) == 1 and max(s := [i.shape[differ[0]] for _, i in parts]) - min(s) == 1 and dim == first.ndim - 1:
        return Advice(wrong)  # joined by their widths, one token too many: not meant to follow one another
    if len(differ) == 1:
        total = sum(info.shape[differ[0]] for _, info in parts)
        result = (*first.shape[: differ[0]], total, *first.shape[differ[0] + 1 :])
        return Advice(wrong, f"join along the dim that differs: dim={differ[0]} gives {shape(result)}.")
    if clash == [first.ndim - 1]:
        a, b = parts[0][1].shape[-1], parts[1][1].shape[-1]
        return Advice(wrong, f"project one of them to the other's width first: nn.Linear({a}, {b}) on {parts[0][0]}.")
    return Advice(wrong)


def _grown(few: tuple[str, TensorInfo], many: tuple[str, TensorInfo], dim: int) -> str | None:
    """How a tensor with a dim too few can be joined along `dim`: as one entry there, or repeated along another."""
    (text, small), (_, large) = few, many
    if small.ndim + 1 != large.ndim or not isinstance(dim, int):
        return None
    dim %= large.ndim
    fits = []
    for at in range(large.ndim):
        grown = (*small.shape[:at], 1, *small.shape[at:])
        if all(d in (at, dim) for d in _differ([grown, large.shape])):
            fits.append((at, grown))
    own = [pair for pair in fits if pair[0] == dim]
    if own:
        return f"add it: {text}.unsqueeze({dim}) is {shape(own[0][1])}."
    if len(fits) != 1:
        return None
    at, grown = fits[0]
    copies = ", ".join(str(large.shape[at]) if d == at else "-1" for d in range(large.ndim))
    repeated = [large.shape[at] if d == at else size for d, size in enumerate(grown)]
    return f"repeat it along dim {at}: {text}.unsqueeze({at}).expand({copies}) is {shape(repeated)}."


def _differ(shapes: list[tuple[int, ...]]) -> list[int]:
    return [d for d, sizes in enumerate(zip(*shapes, strict=True)) if len(set(sizes)) > 1]


def broadcasting(call: FailedCall) -> Advice | None:
    pair = [(text, info) for text, info in call.operands() if info.ndim]
    clashing = [(p, q) for p, q in pairwise(pair) if broadcast(p[1].shape, q[1].shape) is None]
    if not clashing:
        return None
    (left, a), (right, b) = clashing[0]
    ndim = max(a.ndim, b.ndim)
    x, y = (1,) * (ndim - a.ndim) + a.shape, (1,) * (ndim - b.ndim) + b.shape
    dim = max(d for d in range(ndim) if x[d] != y[d] and 1 not in (x[d], y[d]))
    both = f"{left} is {shape(a.shape)} and {right} is {shape(b.shape)}"
    called = ordinal_of_both(dim, a, b)
    wrong = f"{both}: {called} is {x[dim]} against {y[dim]}."
    if a.ndim != b.ndim:
        wrong += " (Shapes are lined up at the right.)"
    for text, info, other in ((right, b, a), (left, a, b)):
        fix = _rearranged(text, info, other)
        if fix:
            return Advice(wrong, fix)
    few, many = sorted((x[dim], y[dim]))
    small, large = (left, right) if x[dim] == few else (right, left)
    small_dim, large_dim = (dim - ndim + (a if text == left else b).ndim for text in (small, large))
    are_images = a.ndim == b.ndim == 4
    if are_images:
        return Advice(wrong, _images(left, a, right, b))
    if dim == ndim - 2:
        cut = ", ".join([":"] * large_dim + [f":{few}"])
        if many == few + 1:
            fix = f"one too many (a class token, or an off-by-one): take {large}[{cut}], or build {small} with {many}."
            return Advice(wrong, fix)
        tables = [text for text, info in ((left, a), (right, b)) if info.shape[0] == 1]
        if a.ndim == b.ndim == 3 and x[2] == y[2] and len(tables) == 1 and ("self." in tables[0] or "pos" in tables[0]):
            return Advice(wrong, _positions(small, large, few, many, cut, tables[0] == large))
    if few and many % few == 0 and ndim == 4 and dim == 1:
        return Advice(wrong, f"repeat the {few} heads: {small}.repeat_interleave({many // few}, dim={small_dim}).")
    if dim == ndim - 1 and a.ndim == b.ndim and call.name.rstrip("_") in ("add", "sub", "mul", "div"):
        return Advice(wrong, f"bring both to one width first, for example nn.Linear({few}, {many}) on {small}.")
    return Advice(wrong, f"make {called} the same size in both, or 1.")


def _images(left: str, a: TensorInfo, right: str, b: TensorInfo) -> str | None:
    """Two maps [B, C, H, W] of other sizes: a shortcut that lacks its stride, or pictures that do not match."""
    (small, s), (large, g) = ((left, a), (right, b)) if a.shape[2:] < b.shape[2:] else ((right, b), (left, a))
    if s.shape[0] != g.shape[0] or s.shape[2:] == g.shape[2:] or 0 in s.shape:
        return None
    strides = {big // little if big % little == 0 else 0 for big, little in zip(g.shape[2:], s.shape[2:], strict=True)}
    if len(strides) == 1 and 0 not in strides:
        way = f"nn.Conv2d({g.shape[1]}, {s.shape[1]}, 1, stride={strides.pop()}) on {large}"
        return f"if {large} is a shortcut past layers with a stride, give it one too: {way}."
    if s.shape[1] != g.shape[1]:
        return None
    return f"F.interpolate({small}, size={tuple(g.shape[2:])}), or crop {large} to {shape(s.shape[2:])}."


def _positions(small: str, large: str, few: int, many: int, cut: str, table_is_larger: bool) -> str:
    """Tokens [B, T, C] and a table of positions [1, N, C] of another length."""
    if math.isqrt(few) ** 2 == few and math.isqrt(many) ** 2 == many:
        grids = f"{math.isqrt(few)} x {math.isqrt(few)} against {math.isqrt(many)} x {math.isqrt(many)} patches"
        return f"{grids}: interpolate the positions, or give pictures of the size that the model was built for."
    if table_is_larger:
        return f"take as many as there are tokens: {large}[{cut}]."
    return f"{small} has {few}: cut {large} to {few} tokens, or build the table with positions for {many}."


def _rearranged(text: str, info: TensorInfo, other: TensorInfo) -> str | None:
    """A change of `text` that makes it broadcast to the other's shape: a new dim, or two dims swapped."""
    if info.ndim < other.ndim:
        ways = {}
        for at in range(info.ndim, -1, -1):
            grown = (*info.shape[:at], 1, *info.shape[at:])
            if broadcast(grown, other.shape) == other.shape:
                ways.setdefault(grown, at)
        if len(ways) == 1:
            grown, at = ways.popitem()
            return f"give it the missing dim: {text}.unsqueeze({at if at < info.ndim else -1}) is {shape(grown)}."
        if info.ndim == 2 and other.ndim == 4 and info.shape == (other.shape[0], other.shape[-1]):
            return f"give it the missing dims: {text}[:, None, None, :]."
        channels = (other.shape[1:2], other.shape[:2])
        if other.ndim == 4 and info.shape in channels and other.shape[1] not in other.shape[2:]:
            return f"one for each channel: {text}[{':, ' * info.ndim}None, None]."
    if info.ndim == other.ndim > 1:
        for i in range(info.ndim):
            for j in range(i + 1, info.ndim):
                swapped = list(info.shape)
                swapped[i], swapped[j] = swapped[j], swapped[i]
                if broadcast(tuple(swapped), other.shape) == other.shape:
                    fix = f"two dims are swapped: {text}.transpose({i}, {j}) is {shape(swapped)}"
                    return f"{fix} (or those of the other one)."
    return None


def view(call: FailedCall) -> Advice | None:
    x = call.info(0, "input")
    if x is None:
        return None
    text, wanted = call.text(0, "input"), call.row.args[1:]
    if len(wanted) == 1 and isinstance(wanted[0], (list, tuple)):
        wanted = tuple(wanted[0])
    wanted = tuple(wanted) or tuple(call.row.kwargs.get("shape", call.row.kwargs.get("size", ())))
    if not wanted or not all(isinstance(size, int) for size in wanted):
        return None
    fixed = math.prod(size for size in wanted if size != -1)
    if "stride" in call.said and (fixed == x.numel or -1 in wanted):
        return Advice(
            f"{text} is {shape(x.shape)}, but its elements do not lie in that order in memory (after a transpose or "
            f"permute), so `view` cannot make {shape(wanted)} of it without copying.",
            f"use {text}.reshape({', '.join(map(str, wanted))}), which copies where it must.",
        )
    if x.numel == fixed:
        return None
    have = f"{text} is {shape(x.shape)}, that is {x.numel} elements"
    if -1 in wanted:
        return Advice(
            f"{have}; with {shape(wanted)} the other dims make {fixed}, which does not divide them.",
            "check the fixed sizes of the new shape against the shape that comes in.",
        )
    wrong = f"{have}, but {shape(wanted)} needs {fixed}."
    if x.ndim and len(wanted) > x.ndim and wanted[: x.ndim - 1] == x.shape[:-1]:
        split = " x ".join(map(str, wanted[x.ndim - 1 :]))
        wrong += f" The last dim, {x.shape[-1]}, is not {split}."
    for at in range(len(wanted) - 1, -1, -1):
        others = math.prod(size for i, size in enumerate(wanted) if i != at)
        if others and x.numel % others == 0 and x.numel:
            sizes = [x.numel // others if i == at else size for i, size in enumerate(wanted)]
            return Advice(wrong, f"dim {at} must be {sizes[at]}: {shape(sizes)} has as many elements.")
    return Advice(wrong, "the two products must be equal: -1 lets torch work out one dim.")


def expand(call: FailedCall) -> Advice | None:
    x = call.info(0, "input")
    match = re.search(r"\((-?\d+)\) must match the existing size \((\d+)\) at non-singleton dimension (\d+)", call.said)
    if x is None or match is None:
        return None
    asked, size, dim = map(int, match.groups())
    text = call.text(0, "input")
    fix = f"to copy it {asked // size} times there: {text}.repeat_interleave({asked // size}, dim={dim})."
    return Advice(
        f"{text} is {shape(x.shape)}; expand can only stretch dims of size 1, but dim {dim} is {size} and is to become "
        f"{asked}.",
        fix if size and asked % size == 0 and x.ndim > dim else f"add a dim of size 1 with {text}.unsqueeze(…) first.",
    )


def dims(call: FailedCall) -> Advice | None:
    """permute, transpose, sum and the like with a dim that is not there."""
    x = call.info(0, "input")
    if x is None:
        return None
    text = call.text(0, "input")
    match = re.search(r"Dimension out of range .* got (-?\d+)", call.said)
    if match:
        return Advice(
            f"{text} is {shape(x.shape)}: it has dims 0 to {x.ndim - 1} (or -1 to -{x.ndim}), and dim {match.group(1)} "
            "is asked for.",
            "count the dims from 0, or from the right with -1.",
        )
    if call.name == "permute":
        asked = call.row.args[1:] if len(call.row.args) != 2 else call.row.args[1]
        count = len(asked) if isinstance(asked, (tuple, list)) else 1
        if count != x.ndim:
            return Advice(
                f"{text} is {shape(x.shape)}, {x.ndim} dims, but permute is given {count}.",
                f"name each of the {x.ndim} dims once, or use transpose to swap just two.",
            )
    return None


def split(call: FailedCall) -> Advice | None:
    x = call.info(0, "tensor")
    match = re.search(
        r"sum exactly to (\d+) \(input tensor's size at dimension (-?\d+)\).*split_sizes=\[(.*?)\]", call.said
    )
    if x is None or match is None:
        return None
    total, dim, sizes = match.groups()
    made = sum(int(size) for size in sizes.split(","))
    have = f"{call.text(0, 'tensor')} is {shape(x.shape)}: dim {dim} is {total}"
    return Advice(f"{have}, but the pieces [{sizes}] add up to {made}.", f"choose sizes that add up to {total}.")
