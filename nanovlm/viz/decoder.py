"""Turning pairs, products over pairs of positions, who may look at whom, and heads that share."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nanovlm.viz.style import Figure, arrow, circle, diverging, ink_on, line, path, rect, svg_figure, text

WIDTH = 700


def rotation_figure(
    q: Sequence[float], k: Sequence[float], frequencies: Sequence[float], position: int, distance: int
) -> Figure:
    """A query at `position` and a key `distance` before it, pair by pair, each pair an arrow on a dial.

    q and k: as many numbers as there are pairs, twice (number i is the partner of number i + half). frequencies: one
    for each pair, in radians for a step; at most four pairs.
    """
    half = len(q) // 2
    radius, pitch, middle = 60, WIDTH / 4, 130
    size = max(math.hypot(v[i], v[i + half]) for v in (q, k) for i in range(half))
    body = [
        arrow(16, 26, 44, 26, "orange", 2.5),
        text(52, 30, f"query, at position {position}", 14, font_weight="bold"),
        arrow(256, 26, 284, 26, "blue", 6),
        text(292, 30, f"key, at position {position - distance}", 14, font_weight="bold"),
        text(684, 30, f"distance {distance}", 14, "muted", "end"),
    ]
    total, told = 0.0, []
    for i, frequency in enumerate(frequencies):
        x = pitch * (i + 0.5)
        body.append(circle(x, middle, radius + 6, "soft", "line"))
        ends = []
        for v, at, colour, wide in ((k, position - distance, "blue", 6), (q, position, "orange", 2.5)):
            length, angle = math.hypot(v[i], v[i + half]), math.atan2(v[i + half], v[i]) + at * frequency
            scale = radius * length / size
            tip = x + scale * math.cos(angle), middle - scale * math.sin(angle)
            body.append(arrow(x, middle, *tip, colour, wide))
            ends.append((length, angle))
        part = ends[0][0] * ends[1][0] * math.cos(ends[1][1] - ends[0][1])
        total += part
        body += [
            text(x, middle + radius + 30, f"numbers {i} and {i + half}", 13, anchor="middle", font_weight="bold"),
            text(x, middle + radius + 48, f"{frequency:.3g} radian a step", 13, "muted", "middle"),
            text(x, middle + radius + 68, f"product {part:+.2f}", 13, anchor="middle"),
        ]
        told.append(f"numbers {i} and {i + half} turn {frequency:.3g} radian a step, product {part:+.2f}")
    bottom = middle + radius + 104
    body.append(text(WIDTH / 2, bottom, f"q · k = {total:+.2f} in all", 15, anchor="middle", font_weight="bold"))
    alt = (
        f"A query at position {position} and a key at position {position - distance}, each as {half} arrows on dials. "
        f"{'; '.join(told)}. The sum, q·k, is {total:+.2f}."
    )
    return svg_figure(WIDTH, bottom + 20, body, alt)


def relative_figure(scores: Sequence[Sequence[float]], title: str) -> Figure:
    """q·k over all pairs of positions, [query][key], as a map and against the distance."""
    n, panel, top, left = len(scores), 288, 58, 46
    cell, most = panel / n, max(max(abs(s) for s in row) for row in scores) or 1.0
    body = [
        text(16, 26, title, 15, font_weight="bold"),
        text(left, top - 8, "position of the key →", 13, "muted"),
        text(34, top + 12, "← query", 13, "muted", "end", transform=f"rotate(-90 34 {top + 12})"),
    ]
    for i, row in enumerate(scores):
        for j, score in enumerate(row):
            label = f"query {i}, key {j}: {score:+.2f}"
            body.append(
                rect(left + j * cell, top + i * cell, cell - 0.5, cell - 0.5, diverging(score / most), title=label)
            )
    body += [
        text(left + cell / 2, top + panel + 16, "0", 13, "muted", "middle"),
        text(left + panel - cell / 2, top + panel + 16, n - 1, 13, "muted", "middle"),
        text(left + panel / 2, top + panel + 34, "orange: positive, white: 0, blue: negative", 13, "muted", "middle"),
        *_scatter(scores, most, 400, top, 284, panel),
    ]
    spread = max(
        max(values) - min(values)
        for values in ([scores[i][i - d] for i in range(n) if 0 <= i - d < n] for d in range(1 - n, n))
    )
    same = "equal along each diagonal" if spread < 1e-3 * most else "different along each diagonal"
    alt = (
        f"{title}: the product of one query and one key at all pairs of {n} positions. Left, a map; right, the same "
        f"products against the distance. They are {same}: at one distance they differ by {spread:.2f} at most."
    )
    return svg_figure(WIDTH, top + panel + 44, body, alt)


def mask_figure(words: Sequence[str], positions: Sequence[int | str], real: Sequence[bool], mask: Sequence) -> Figure:
    """Who may look at whom. mask: [query][key], true where it may; real: false for padding."""
    n, left, top = len(words), 170, 126
    cell = min(44, 300 // n)
    body = [
        text(16, 26, "Which keys each query may attend to", 15, font_weight="bold"),
        text(left, 52, "key →", 13, "muted"),
        text(16, top - 12, "query ↓", 13, "muted"),
        text(118, top - 12, "position", 13, "muted", "middle"),
    ]
    told = []
    for i, word in enumerate(words):
        x, y = left + (i + 0.5) * cell, top + (i + 0.5) * cell
        tone = "ink" if real[i] else "muted"
        turned = {"transform": f"rotate(-50 {x - 2:.1f} {top - 8})"}
        body += [
            text(16, y + 5, word, 13, tone),
            text(118, y + 5, positions[i], 13, tone, "middle", mono=True),
            text(x - 2, top - 8, word, 13, tone, **turned),
        ]
        for j in range(n):
            x0, y0 = left + j * cell, top + i * cell
            if mask[i][j]:
                body += [rect(x0, y0, cell - 3, cell - 3, "blue" if real[i] else "grey", rx=4)]
                body += [circle(x0 + (cell - 3) / 2, y0 + (cell - 3) / 2, 4, "#ffffff")]
            else:
                body += [rect(x0, y0, cell - 3, cell - 3, "soft", "line", rx=4)]
                if j <= i:  # hidden though it is past: padding
                    a, b = 0.32 * cell, 0.62 * cell
                    body += [
                        line(x0 + a, y0 + a, x0 + b, y0 + b, "muted", 2),
                        line(x0 + a, y0 + b, x0 + b, y0 + a, "muted", 2),
                    ]
        seen = ", ".join(str(j) for j in range(n) if mask[i][j])
        told.append(f"{word} ({i}{'' if real[i] else ', padding'}) attends to {seen}")
    x, y = left + n * cell + 28, top + 6
    for k, (fill, mark, words_) in enumerate(
        (
            ("blue", "dot", "may attend"),
            ("soft", "", "hidden: comes later"),
            ("soft", "cross", "hidden: padding"),
            ("grey", "dot", "padding: not read"),
        )
    ):
        yk = y + 30 * k
        body += [rect(x, yk, 20, 20, fill, "line" if fill == "soft" else None, rx=4), text(x + 30, yk + 15, words_, 13)]
        if mark == "dot":
            body.append(circle(x + 10, yk + 10, 3.5, "#ffffff"))
        if mark == "cross":
            body += [line(x + 6, yk + 6, x + 14, yk + 14, "muted", 2), line(x + 6, yk + 14, x + 14, yk + 6, "muted", 2)]
    return svg_figure(
        WIDTH, top + max(n * cell, 124) + 14, body, "Which keys each query may attend to: " + "; ".join(told) + "."
    )


def heads_figure(num_heads: int, num_kv_heads: int, head_dim: int, num_blocks: int) -> Figure:
    """Query heads above, the key/value heads that they share below, and what is kept for each token in 16 bits."""
    groups, x0, pitch, down = num_heads // num_kv_heads, 130, 62, 30
    wide = pitch * num_heads
    title = f"{num_heads} query heads, {num_kv_heads} key/value head{'s' if num_kv_heads > 1 else ''}"
    body = [
        text(16, 26, title, 15, font_weight="bold"),
        text(16, down + 49, "query heads", 13, "muted"),
        text(16, down + 141, "keys, values", 13, "muted"),
    ]
    for head in range(num_heads):
        x = x0 + pitch * (head + 0.5)
        shared = head // groups
        below = x0 + wide * (shared + 0.5) / num_kv_heads
        body += [
            line(x, down + 60, below, down + 120, "orange" if shared % 2 == 0 else "blue", 2),
            rect(x - 22, down + 30, 44, 30, "card", "orange" if shared % 2 == 0 else "blue", rx=5, stroke_width=2),
            text(x, down + 50, head, 14, anchor="middle"),
        ]
    for head in range(num_kv_heads):
        x, colour = x0 + wide * (head + 0.5) / num_kv_heads, "orange" if head % 2 == 0 else "blue"
        body += [
            rect(x - 22, down + 120, 44, 34, colour, rx=5),
            text(x, down + 142, head, 14, ink_on(colour), "middle"),
        ]
    kept = 2 * num_blocks * num_kv_heads * head_dim * 2
    most = 2 * num_blocks * num_heads * head_dim * 2
    body += [
        text(16, down + 199, "kept, a token", 13, "muted"),
        rect(x0 + 9, down + 184, (wide - 18) * kept / most, 22, "green", rx=3),
        rect(x0 + 9, down + 184, wide - 18, 22, "none", "line", rx=3),
        text(
            x0 + 9,
            down + 228,
            f"{kept:,} bytes of {most:,}: keys and values of {num_blocks} blocks, 2 bytes a number",
            13,
        ),
    ]
    alt = (
        f"{num_heads} query heads share {num_kv_heads} key/value heads, {groups} each, neighbours together. For each "
        f"token {kept:,} bytes are kept; with a key/value head for every query head it would be {most:,}."
    )
    return svg_figure(WIDTH, down + 246, body, alt)


def _scatter(
    scores: Sequence[Sequence[float]], most: float, x: float, y: float, width: float, height: float
) -> list[str]:
    n, zero = len(scores), y + height / 2

    def at(d: int) -> float:
        return x + width * (d + n - 1) / (2 * n - 2)

    def up(score: float) -> float:
        return zero - 0.46 * height * score / most

    body = [
        rect(x - 8, y, width + 16, height, "card", "line", rx=4),
        line(x - 8, zero, x + width + 8, zero, "line"),
        line(at(0), y, at(0), y + height, "line"),
        text(x - 14, zero + 4, "0", 13, "muted", "end"),
        text(x - 14, up(most) + 4, f"{most:.3g}", 13, "muted", "end"),
        text(x - 8, y - 8, "the same products against the distance", 13, "muted"),
    ]
    for i, row in enumerate(scores):
        body += [circle(at(i - j), up(score), 2.6, "blue", opacity=0.55) for j, score in enumerate(row)]
    if all(
        max(v) - min(v) < 1e-3 * most
        for v in ([scores[i][i - d] for i in range(n) if 0 <= i - d < n] for d in range(1 - n, n))
    ):
        first = [scores[max(d, 0)][max(d, 0) - d] for d in range(1 - n, n)]
        steps = "L".join(f"{at(d):.1f} {up(s):.1f}" for d, s in zip(range(1 - n, n), first, strict=True))
        body.append(path("M" + steps, stroke="blue", width=1))
    body += [
        text(at(1 - n), y + height + 16, f"−{n - 1}", 13, "muted", "middle"),
        text(at(0), y + height + 16, "0", 13, "muted", "middle"),
        text(at(n - 1), y + height + 16, f"+{n - 1}", 13, "muted", "middle"),
        text(x + width / 2, y + height + 34, "query's position − key's position", 13, "muted", "middle"),
    ]
    return body
