"""A line of tokens: how text is cut, whose token each of them is, and what is asked of the model at each place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image

from nanovlm.viz.style import Figure, ink_on, line, png_bytes, rect, svg_figure, text
from nanovlm.viz.style import raster as image_at

WIDTH = 700
LETTER, HEIGHT, GAP = 7.9, 24, 4  # of a monospaced letter at 13 px, and of a box, in px

# Whose token it is -> its words in the legend. Each kind has a shape of its own besides its colour.
KINDS = {
    "template": "template (dashed)",
    "picture": "picture (a grid)",
    "text": "question (plain)",
    "answer": "supervised (bold, with a bar)",
}


def shown(piece: str) -> str:
    """White space made visible: a space is a dot, a newline ⏎."""
    return piece.replace(" ", "·").replace("Ġ", "·").replace("\n", "⏎").replace("Ċ", "⏎")


def token_strip(texts: Sequence[str], kinds: Sequence[str], image: Image.Image | None = None) -> Figure:
    """A line of tokens, wrapped like text, each in the manner of its kind (a key of KINDS).

    texts: what stands in each box: pieces of text, or ids. picture: shown beside the legend.
    """
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown:
        raise ValueError(f"There is no kind of token called {', '.join(unknown)}; there are {', '.join(KINDS)}.")
    if len(texts) != len(kinds):
        raise ValueError(f"{len(texts)} tokens need as many kinds; got {len(kinds)}.")
    body, top = [], 16.0
    left = 16.0
    if image is not None:
        body.append(image_at(16, 16, 112, 112, png_bytes(image.convert("RGB"))))
        left = 152.0
    for i, (kind, meaning) in enumerate(KINDS.items()):
        y = top + i * 28
        body += [*_box(left, y, 46, "Aa", kind), text(left + 58, y + 16.5, meaning, 13)]
        body.append(text(left + 300, y + 16.5, f"{kinds.count(kind)} of {len(kinds)} tokens", 13, "muted"))
    boxes, bottom = _wrapped(texts, kinds, 16, top + 4 * 28 + 18)
    counts = ", ".join(f"{kinds.count(kind)} {meaning.partition(' (')[0]}" for kind, meaning in KINDS.items())
    line_of = " ".join("▦" if kind == "picture" else word for word, kind in zip(texts, kinds, strict=True))
    alt = f"{len(texts)} tokens: {counts}. In order: {line_of}"
    return svg_figure(WIDTH, bottom + 16, [*body, *boxes], alt)


def cut_rows(rows: Mapping[str, Sequence[str]]) -> Figure:
    """The same text cut in several ways: a heading, and below it the pieces as boxes."""
    body, y, told = [], 30.0, []
    for heading, pieces in rows.items():
        body.append(text(16, y, heading, 13, font_weight="bold"))
        body.append(text(WIDTH - 16, y, f"{len(pieces)} tokens", 13, "muted", "end"))
        kinds = ["text" if i % 2 == 0 else "other" for i in range(len(pieces))]
        boxes, bottom = _wrapped([shown(piece) for piece in pieces], kinds, 16, y + 10)
        body += boxes
        y = bottom + 30
        told.append(f"{heading}, {len(pieces)} tokens: {' | '.join(map(shown, pieces))}")
    return svg_figure(WIDTH, y - 12, body, "Text cut into tokens. " + ". ".join(told))


def aligned_rows(reads: Sequence[str], rows: Mapping[str, Sequence[str | None]]) -> Figure:
    """Places from left to right: what the model reads there, and below it what each row asks for (None: nothing)."""
    x0, top, told = 150.0, 74.0, []
    wide = [max(_width(shown(w or "–")) for w in column) for column in zip(reads, *rows.values(), strict=True)]
    at = [x0 + sum(wide[:i]) + GAP * 2 * i for i in range(len(wide))]
    if at[-1] + wide[-1] > WIDTH - 8:
        raise ValueError(f"{len(reads)} tokens are too many to stand in one row: show fewer of them.")
    body = [
        text(16, 26, "The target at each place", 15, font_weight="bold"),
        text(16, top - 10, "place", 13, "muted"),
        text(16, top + 16.5, "the model reads", 13),
    ]
    for x, width, word in zip(at, wide, reads, strict=True):
        body += _box(x, top, width, shown(word), "template" if word.startswith("<|") else "text")
        body.append(text(x + width / 2, top - 10, at.index(x), 13, "muted", "middle"))
    for i, (label, asked) in enumerate(rows.items()):
        y = top + 48 + i * 38
        body.append(text(16, y + 16.5, label, 13, font_weight="bold"))
        for x, width, word in zip(at, wide, asked, strict=True):
            if word is None:
                body.append(text(x + width / 2, y + 16.5, "–", 13, "muted", "middle"))
            else:
                body += _box(x, y, width, shown(word), "answer")
        pairs = (f"at {r} {w or 'nothing'}" for r, w in zip(reads, asked, strict=True))
        told.append(f"{label}: {', '.join(pairs)}")
    body.append(line(16, top + 36, WIDTH - 16, top + 36))
    alt = "What the model is asked for at each token that it reads. " + "; ".join(told) + "."
    return svg_figure(WIDTH, top + 48 + 38 * len(rows) + 4, body, alt)


def score_bars(scores: Mapping[str, float], total: int) -> Figure:
    """A share between 0 and 1 for each line of text, as bars; the first is the one to compare with."""
    x0, full, body = 452.0, 170.0, []
    body.append(text(16, 28, "the prompt: ▦ is the picture, … the question", 13, "muted"))
    body.append(text(x0, 28, f"share right of {total}", 13, "muted"))
    for i, (label, share) in enumerate(scores.items()):
        y = 42 + i * 32
        body += [
            text(16, y + 16, shown(label), 13, mono=True, font_weight="bold" if i == 0 else "normal"),
            rect(x0, y, full, 22, "soft", rx=2),
            rect(x0, y, max(full * share, 1), 22, "blue" if i == 0 else "orange", rx=2),
            text(x0 + full + 12, y + 15.5, f"{share:.0%}", 13, font_weight="bold"),
        ]
    told = "; ".join(f"{label}: {share:.0%}" for label, share in scores.items())
    return svg_figure(
        WIDTH, 42 + 32 * len(scores) + 8, body, f"Questions answered right, by the prompt's form. {told}."
    )


# -- pieces of the above -----------------------------------------------------------------------------------------------


def _width(word: str) -> float:
    return max(22.0, len(word) * LETTER + 12)


def _wrapped(
    texts: Sequence[str], kinds: Sequence[str], left: float, y: float, right: float = WIDTH - 16
) -> tuple[list[str], float]:
    """Boxes in rows from left to right -> their markup, and where the last row ends."""
    body, x = [], left
    for word, kind in zip(texts, kinds, strict=True):
        longest = int((right - left - 12) / LETTER)
        word = word if len(word) <= longest else word[: longest - 1] + "…"
        width = 22.0 if kind == "picture" and not word.isdigit() else _width(word)
        if x + width > right:
            x, y = left, y + HEIGHT + 8
        body += _box(x, y, width, word, kind)
        x += width + GAP
    return body, y + HEIGHT + 3


def _box(x: float, y: float, width: float, word: str, kind: str) -> list[str]:
    """One token. Kinds of KINDS, and "other": plain, but of another shade."""
    middle, base = x + width / 2, y + 16.5
    if kind == "picture":
        box = [rect(x, y, width, HEIGHT, "sky", rx=3)]
        if word.isdigit():
            return [*box, text(middle, base, word, 13, ink_on("sky"), "middle", mono=True)]
        third = width / 3
        inside = [line(x + third * i, y + 3, x + third * i, y + HEIGHT - 3, ink_on("sky"), 0.8) for i in (1, 2)]
        return [*box, *inside, line(x + 3, y + HEIGHT / 2, x + width - 3, y + HEIGHT / 2, ink_on("sky"), 0.8)]
    if kind == "answer":
        return [
            rect(x, y, width, HEIGHT, "green", rx=3),
            rect(x, y + HEIGHT + 1, width, 3, "ink"),
            text(middle, base, word, 13, ink_on("green"), "middle", mono=True, font_weight="bold"),
        ]
    if kind == "template":
        return [
            rect(x, y, width, HEIGHT, "card", "muted", rx=3, stroke_dasharray="4 3"),
            text(middle, base, word, 13, "muted", "middle", mono=True),
        ]
    fill = "line" if kind == "other" else "soft"
    return [rect(x, y, width, HEIGHT, fill, "line", rx=3), text(middle, base, word, 13, "ink", "middle", mono=True)]
