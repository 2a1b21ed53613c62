"""The decoder's block as boxes with shapes, and the residual stream as a bus through all blocks."""

from __future__ import annotations

from collections.abc import Sequence

from nanovlm.viz.style import Figure, arrow, circle, ink_on, line, rect, svg_figure, text

WIDTH = 700


def _box(x: float, y: float, wide: float, colour: str, *words: str, high: float = 44) -> list[str]:
    """A box with one or two lines of words in its middle."""
    ink = ink_on("#e08b1a") if colour == "orange" else "ink"
    start = y + high / 2 + 5 - 9 * (len(words) - 1)
    lines = [text(x + wide / 2, start + 18 * i, word, 13, ink, "middle") for i, word in enumerate(words)]
    return [rect(x, y, wide, high, colour, "line", rx=4), *lines]


def _detour(
    x: float, read: Sequence[str], middle: Sequence[tuple[str, str]], top: Sequence[str], back: str, shape: str
) -> list[str]:
    """From the stream up through a norm, the boxes in the middle and the one on top, and down to the stream again."""
    stream, wide, step = 306, 264, 264 / len(middle)
    home = x + wide + 36  # where the update comes back
    body = [
        arrow(x + wide / 2, stream, x + wide / 2, 255, "muted"),
        *_box(x, 210, wide - 12, "soft", *read),
        *_box(x, 56, wide, "orange", *top),
        line(x + wide, 78, home, 78, "muted", 1.5),
        arrow(home, 78, home, 206, "muted"),
        *_box(home - 35, 210, 70, "card", back, shape),
        arrow(home, 254, home, stream - 12, "muted"),
        circle(home, stream, 11, "card", "blue"),
        text(home, stream + 5, "+", 16, "blue", "middle"),
    ]
    for i, words in enumerate(middle):
        at = x + (i + 0.5) * step
        body += _box(at - step / 2 + 3, 133, step - 6, "card", *words)
        body += [arrow(at, 208, at, 181, "muted"), arrow(at, 131, at, 104, "muted")]
    return body


def decoder_block_figure(dim: int, inter_dim: int, num_heads: int, num_kv_heads: int, head_dim: int) -> Figure:
    """One block, with the shape of every tensor for a sequence of T tokens; the batch is left out."""
    vectors = f"[T, {dim:,}]"
    body = [
        text(16, 28, "One block of the decoder, and the shape of each tensor", 15, font_weight="bold"),
        line(10, 306, 668, 306, "blue", 6),
        arrow(668, 306, 694, 306, "blue", 6),
    ]
    shapes = [
        (name, f"{heads} × [T, {head_dim}]")
        for name, heads in (("q, turned", num_heads), ("k, turned", num_kv_heads), ("v", num_kv_heads))
    ]
    body += _detour(
        10,
        ("RMSNorm", vectors),
        shapes,
        ("softmax(q kᵀ / √head_dim) v", f"{num_heads} × [T, {head_dim}]"),
        "o_proj",
        vectors,
    )
    gates = [("gate", f"[T, {inter_dim:,}]"), ("up", f"[T, {inter_dim:,}]")]
    body += _detour(352, ("RMSNorm", vectors), gates, ("SiLU(gate) · up", f"[T, {inter_dim:,}]"), "down", vectors)
    body += [
        text(16, 338, f"The residual stream, blue, is {vectors} everywhere. T: tokens; the batch is left out.", 13),
        text(16, 358, f"{num_heads // num_kv_heads} heads of q share each head of k and v.", 13, "muted"),
    ]
    alt = (
        f"One decoder block. The residual stream, {vectors}, runs from left to right. A copy goes through RMSNorm; "
        f"from it come q, {num_heads} heads of [T, {head_dim}], and k and v, {num_kv_heads} heads each; q and k are "
        f"turned by RoPE. Attention gives {num_heads} × [T, {head_dim}], o_proj brings that back to {vectors}, and it "
        f"is added to the stream. A second copy goes through RMSNorm, gate and up, [T, {inter_dim:,}] each, their "
        f"product, and down, back to {vectors}, and is added."
    )
    return svg_figure(WIDTH, 372, body, alt)


def bus_figure(dim: int, num_blocks: int, vocab_size: int) -> Figure:
    """The residual stream from the token vectors to the logits, with the sub-layers of three blocks on it."""
    y, columns = 150, [0, 1, num_blocks - 1] if num_blocks > 2 else list(range(num_blocks))
    title = f"The residual stream is a bus, to which {2 * num_blocks} sub-layers add"
    body = [
        text(16, 28, title, 15, font_weight="bold"),
        *_box(10, y - 22, 84, "card", "vectors", f"[T, {dim:,}]"),
        line(94, y, 552, y, "blue", 6),
        arrow(552, y, 572, y, "blue", 6),
        *_box(576, y - 22, 48, "soft", "norm"),
        arrow(624, y, 636, y, "muted"),
        *_box(640, y - 22, 50, "card", "head"),
        text(690, y + 44, f"logits [T, {vocab_size:,}]", 13, anchor="end"),
    ]
    for i, block in enumerate(columns):
        x = 100 + 146 * i + (14 if i == 2 else 0)
        body += [text(x + 38, 56, f"block {block}", 13, "muted", "middle")]
        for part, left, top, colour in (("attention", x, 66, "orange"), ("MLP", x + 66, y + 52, "soft")):
            edge, toward = (top + 32, y - 10) if top < y else (top, y + 10)
            body += [
                *_box(left, top, 76, colour, part, high=32),
                arrow(left + 12, y, left + 12, edge + (2 if top < y else -2), "muted"),
                arrow(left + 64, edge, left + 64, toward, "muted"),
                circle(left + 64, y, 9, "card", "blue"),
                text(left + 64, y + 5, "+", 15, "blue", "middle"),
            ]
        if i == 1 and num_blocks > 3:
            body.append(text(x + 118, 88, "…", 18, "muted", "middle"))
    body += [
        text(
            16, y + 114, f"Each sub-layer reads the sum of all that was added before it, [T, {dim:,}], and adds an", 13
        ),
        text(16, y + 132, "update of the same shape. Nothing that is added is ever overwritten.", 13),
    ]
    alt = (
        f"The residual stream as a bus. The token vectors, [T, {dim:,}], enter at the left. In each of {num_blocks} "
        "blocks, first attention and then the MLP read from the stream and add an update of the same shape to it. At "
        f"the right end a norm and the head turn the sum into logits, [T, {vocab_size:,}]."
    )
    return svg_figure(WIDTH, y + 146, body, alt)
