"""Where one word of the line looks: over the picture, and over the other words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image

from nanovlm.viz.start_here import printable
from nanovlm.viz.style import Figure, path, png_bytes, raster, rect, svg_figure, text

WIDTH, SIDE, TOP = 700, 304, 52
_LINES = 11  # of words beside the picture


def attention_over_image(
    image: Image.Image,
    weights: Sequence[float],
    words: Sequence[str],
    word: int,
    tokens: Sequence[Sequence[int]],
    first_image_token: int = 0,
    note: str = "",
) -> Figure:
    """One row of attention: the picture is lit where the word looks, and bars say what is left for the other words.

    Light is relative to the strongest image token, but no token is fully lit that gets less than an even share of the
    whole: a word that does not look at the picture leaves it dark.

    Args:
        picture: is shown squeezed into a square, as the model gets it.
        weights: [S], from the chosen word to every position of the line; they sum to 1, or to less.
        words: S texts, one a position; those of the image tokens are not shown.
        word: the position that looks.
        tokens: for each image token its patches in reading order, as `nanovlm.trace.show.patch_map(…).tokens`.
        first_image_token: where the image tokens begin in the line.
        note: which layer and head this is.
    """
    row, end = [float(weight) for weight in weights], first_image_token + len(tokens)
    grid = math.isqrt(sum(map(len, tokens)))
    if len(row) != len(words) or not 0 <= word < len(words):
        raise ValueError(
            f"Give one weight a position, and a word among them: {len(row)} weights, {len(words)} words, word {word}."
        )
    if not tokens or end > len(row) or grid * grid != sum(map(len, tokens)):
        raise ValueError(
            f"{len(tokens)} image tokens of {sum(map(len, tokens))} patches from position {first_image_token} on do "
            f"not fit a line of {len(row)} and a square picture."
        )
    if not all(0 <= weight < 1.001 for weight in row):
        raise ValueError("Attention weights lie between 0 and 1; these do not: scores from before the softmax?")
    on_image = row[first_image_token:end]
    others = [(i, weight) for i, weight in enumerate(row) if not first_image_token <= i < end]
    name, best = printable(words[word]) or "␣", max(range(len(tokens)), key=on_image.__getitem__)
    body = [
        text(16, 32, f"“{_short(name, 22)}” looks", 16, font_weight="bold"),
        text(WIDTH - 16, 32, _short(printable(note), 40), 13, "muted", "end"),
        raster(16, TOP, SIDE, SIDE, png_bytes(image.convert("RGB").resize((256, 256)))),
        *_shade(on_image, tokens, grid),
        *_bars(others, words, word, sum(on_image)),
    ]
    alt = (
        f"Where “{name}” looks{f' ({printable(note)})' if note else ''}: {sum(on_image):.0%} on the picture's "
        f"{len(tokens)} tokens, the most ({on_image[best]:.0%}) on token {best}, patches "
        f"{', '.join(map(str, tokens[best]))}; {sum(weight for _, weight in others):.0%} on words."
    )
    return svg_figure(WIDTH, TOP + SIDE + 34, body, alt)


def _shade(weights: Sequence[float], tokens: Sequence[Sequence[int]], grid: int) -> list[str]:
    """Darkness over what is not looked at, a line round the strongest token, and percentages where they matter."""
    cell, full = SIDE / grid, max(*weights, 1 / len(weights))
    best = max(range(len(tokens)), key=weights.__getitem__)
    shade, marks = [], []
    for token, patches in enumerate(tokens):
        dark = 0.82 * (1 - weights[token] / full)
        places = [(16 + patch % grid * cell, TOP + patch // grid * cell) for patch in patches]
        title = f"token {token}: {weights[token]:.1%}"
        shade += [
            rect(x, y, cell, cell, "#0b0e11", fill_opacity=round(dark, 3), shape_rendering="crispEdges", title=title)
            for x, y in places
        ]
        if token == best and weights[best] >= 0.005:
            marks += [path(_outline(patches, grid, cell), stroke="orange", width=3)]
        if weights[token] >= 0.045 and cell * math.sqrt(len(patches)) >= 26:
            # Over the middle of a tile; over the middle of the first patches where a token is torn apart.
            x = sum(x for x, _ in places) / len(places) + cell / 2
            y = sum(y for _, y in places) / len(places) + cell / 2
            halo = {"stroke": "#0b0e11", "stroke_width": 4, "paint_order": "stroke", "stroke_linejoin": "round"}
            marks.append(text(x, y + 4.5, f"{weights[token]:.0%}", 13, "#ffffff", "middle", font_weight="bold", **halo))
    told = "no image token gets half a percent"
    if weights[best] >= 0.005:
        told = f"darkest: no weight; outlined: the strongest token, {weights[best]:.0%}"
    return [*shade, *marks, text(16, TOP + SIDE + 21, told, 12, "muted")]


def _outline(patches: Sequence[int], grid: int, cell: float) -> str:
    """The edges between these patches and others, as a path."""
    own, parts = {divmod(patch, grid) for patch in patches}, []
    for row, column in sorted(own):
        x, y = 16 + column * cell, TOP + row * cell
        if (row - 1, column) not in own:
            parts.append(f"M{x:.2f} {y:.2f}h{cell:.2f}")
        if (row + 1, column) not in own:
            parts.append(f"M{x:.2f} {y + cell:.2f}h{cell:.2f}")
        if (row, column - 1) not in own:
            parts.append(f"M{x:.2f} {y:.2f}v{cell:.2f}")
        if (row, column + 1) not in own:
            parts.append(f"M{x + cell:.2f} {y:.2f}v{cell:.2f}")
    return "".join(parts)


def _bars(others: Sequence[tuple[int, float]], words: Sequence[str], word: int, on_image: float) -> list[str]:
    """Where the whole weight goes: a bar for the picture, and one for each word, in the order of the line."""
    shown = sorted(sorted(others, key=lambda item: -item[1])[:_LINES])
    lines = [("the picture", on_image, "blue")]
    lines += [(printable(words[i]) or "␣", weight, "grey") for i, weight in shown]
    if len(others) > len(shown):
        lines.append(
            (f"{len(others) - len(shown)} others", sum(w for _, w in others) - sum(w for _, w in shown), "grey")
        )
    left, start, full, pitch, body = 344, 470, 160, 23, []
    body.append(text(left, TOP + 8, "share of its attention", 12, "muted"))
    for k, (label, weight, colour) in enumerate(lines):
        y = TOP + 18 + k * pitch
        own = 0 < k <= len(shown) and shown[k - 1][0] == word
        body += [
            text(start - 10, y + 13, _short(label, 13), 13, anchor="end", font_weight="bold" if own else "normal"),
            rect(start, y + 3, full, 12, "soft"),
            rect(start, y + 3, max(full * min(weight, 1.0), 0.01), 12, colour, title=f"{weight:.1%}"),
            text(start + full + 10, y + 13, f"{weight:.0%}", 13),
        ]
    return body


def _short(words: str, length: int) -> str:
    return words if len(words) <= length else words[: length - 1] + "…"
