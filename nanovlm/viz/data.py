"""What goes into a model, to look at: training curves, odd pictures, padded and packed rows, who moves whom."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from itertools import pairwise
from textwrap import wrap
from typing import Any

from PIL import Image

from nanovlm.viz.style import CYCLE, Figure, circle, ink_on, line, path, png_bytes, rect, svg_figure, text
from nanovlm.viz.style import raster as image_at

WIDTH = 700
Curve = Sequence[tuple[float, float]]  # (step, share from 0 to 1)


def curves_figure(title: str, curves: Mapping[str, Curve], chance: float | None = None, half: float = 0.0) -> Figure:
    """Accuracies over steps, one line a run, labelled at its end. half: of the interval, drawn at the last point."""
    left, top, width, height = 64, 52, 430, 240
    last = max(step for curve in curves.values() for step, _ in curve)
    spread = _apart([top + height * (1 - curve[-1][1]) for curve in curves.values()], 20)

    def place(step: float, share: float) -> tuple[float, float]:
        return left + width * step / last, top + height * (1 - share)

    body = [text(16, 28, title, 15, font_weight="bold")]
    for percent in range(0, 101, 25):
        y = top + height * (1 - percent / 100)
        body += [line(left, y, left + width, y), text(left - 8, y + 4, f"{percent} %", 13, "muted", "end")]
    for step in (0, last // 2, last):
        body.append(text(place(step, 0)[0], top + height + 20, f"{step:g}", 13, "muted", "middle"))
    body.append(text(left + width / 2, top + height + 42, "training steps", 13, "muted", "middle"))
    if chance is not None:
        y = place(0, chance)[1]
        body.append(line(left, y, left + width, y, "muted", 1.5, stroke_dasharray="3 4"))
        body.append(text(left + width - 4, y + 18, f"blind guessing: {100 * chance:.0f} %", 13, "muted", "end"))
    told = []
    for i, ((name, curve), label) in enumerate(zip(curves.items(), spread, strict=True)):
        colour, points = CYCLE[i % len(CYCLE)], [place(*point) for point in curve]
        (x, y), share = points[-1], curve[-1][1]
        body.append(path("M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in points), stroke=colour, width=2.5))
        body += [circle(a, b, 3, colour) for a, b in points]
        if half:
            body.append(line(x, y - half * height, x, y + half * height, colour, 2))
        body.append(line(x + 4, y, x + 16, label, colour, 1))
        body.append(text(x + 20, label + 4.5, f"{100 * share:.0f} %  {name}", 13))
        told.append(f"{name}: from {curve[0][1]:.0%} to {share:.0%}")
    floor = f" Blind guessing: {chance:.0%}." if chance is not None else ""
    return svg_figure(
        WIDTH, top + height + 58, body, f"{title}, over {last:g} training steps. {'; '.join(told)}.{floor}"
    )


def _apart(places: Sequence[float], gap: float) -> list[float]:
    """The places, moved down where two labels would overlap."""
    out = list(places)
    order = sorted(range(len(out)), key=out.__getitem__)
    for above, below in pairwise(order):
        out[below] = max(out[below], out[above] + gap)
    return out


def samples_figure(images: Sequence[Image.Image], turns: Sequence[tuple[str, str]], columns: int = 5) -> Figure:
    """A contact sheet: each picture with one of its questions and the answer."""
    side, gap = 122, 12
    column, row = side + gap, side + 82
    body, told = [], []
    for i, (image, (question, answer)) in enumerate(zip(images, turns, strict=True)):
        x, y = 16 + i % columns * column, 16 + i // columns * row
        body.append(image_at(x, y, side, side, png_bytes(image.convert("RGB")), f"{question} {answer}"))
        for j, words in enumerate(wrap(question, 18, max_lines=3, placeholder="…")):
            body.append(text(x, y + side + 16 + 16 * j, words, 13, "muted"))
        body.append(text(x, y + side + 66, _short(answer, 15), 14, font_weight="bold"))
        told.append(f"{question} {answer}")
    height = 16 + -(-len(turns) // columns) * row
    return svg_figure(
        16 + columns * column, height, body, f"{len(turns)} pictures, each with a question: {' · '.join(told)}"
    )


def _short(words: str, longest: int) -> str:
    return words if len(words) <= longest else words[: longest - 1] + "…"


def answers_figure(counts: Mapping[str, Mapping[str, int]]) -> Figure:
    """For each question, how often it has which answer: the widest piece is what a blind guesser says."""
    left, width, row = 300, 384, 34
    body = [text(16, 28, "Answers in the training data, for each question", 15, font_weight="bold")]
    told = []
    for i, (question, answers) in enumerate(counts.items()):
        y, x, total = 46 + i * row, float(left), sum(answers.values())
        body.append(text(left - 12, y + 17, _short(question, 42), 13, anchor="end"))
        ranked = sorted(answers.items(), key=lambda pair: -pair[1])
        for j, (answer, count) in enumerate(ranked):
            size, colour = width * count / total, "blue" if j == 0 else "soft"
            body.append(rect(x, y, max(size - 1.5, 0.5), 24, colour, title=f"{answer}: {count} of {total}"))
            if size > 9 * len(answer) + 6:
                body.append(text(x + 5, y + 17, answer, 13, ink_on("blue") if j == 0 else "ink"))
            x += size
        told.append(f"{question} {ranked[0][0]} ({ranked[0][1] / total:.0%})")
    alt = f"A bar for each question, cut by its answers, the most frequent first: {'; '.join(told)}."
    return svg_figure(WIDTH, 56 + row * len(counts), body, alt)


def gallery_figure(entries: Sequence[tuple[str, str, Image.Image | None, Image.Image | None]]) -> Figure:
    """Files that make trouble: name, what is wrong, what Pillow's plain convert shows, and what the package shows.

    None in the place of a picture: it was refused.
    """
    side, cell, row, columns = 76, 226, 142, 3
    body, told = [], []
    for i, (name, trouble, plain, careful) in enumerate(entries):
        x, y = 16 + i % columns * cell, 14 + i // columns * row
        body.append(text(x, y + 12, name, 14, font_weight="bold"))
        body.append(text(x, y + 28, _short(trouble, 34), 13, "muted", title=trouble))
        words = []
        for j, (label, shown) in enumerate((("convert", plain), ("open_image", careful))):
            left = x + j * (side + 24)
            if shown is None:
                body.append(rect(left, y + 36, side, side, "none", "line", stroke_dasharray="4 4"))
                body.append(text(left + side / 2, y + 36 + side / 2 + 5, "refused", 13, "muted", "middle"))
            else:
                small = shown.copy()
                small.thumbnail((96, 96))
                shrink = side / max(small.size)
                wide, high = small.width * shrink, small.height * shrink
                body.append(rect(left - 1, y + 35, side + 2, side + 2, "none", "line"))
                body.append(
                    image_at(left + (side - wide) / 2, y + 36 + (side - high) / 2, wide, high, png_bytes(small))
                )
            body.append(text(left + side / 2, y + 36 + side + 15, label, 13, "muted", "middle"))
            words.append(f"{label} {'refuses it' if shown is None else 'shows a picture'}")
        told.append(f"{name} ({trouble}): {', '.join(words)}")
    height = 14 + -(-len(entries) // columns) * row + 6
    return svg_figure(WIDTH, height, body, f"{len(entries)} picture files, opened in two ways. {'; '.join(told)}.")


def rows_figure(title: str, rows: Sequence[Sequence[int]], row_length: int, most: int = 16) -> Figure:
    """Rows of a batch: each a list of lengths of the samples in it, end to end; what is left of the row is padding."""
    left, width, high = 16, 600, 13
    shown = rows[:most]
    used, area = sum(map(sum, rows)), len(rows) * row_length
    waste = 1 - used / area
    body = [
        text(left, 28, title, 15, font_weight="bold"),
        text(left, 48, f"{len(rows)} rows of {row_length}: {waste:.0%} of all positions are padding", 13, "muted"),
    ]
    for i, row in enumerate(shown):
        y, x = 60 + i * (high + 4), float(left)
        body.append(rect(left, y, width, high, "none", "line", stroke_dasharray="2 3"))
        for j, length in enumerate(row):
            size = width * length / row_length
            body.append(rect(x, y, max(size - 1.5, 0.5), high, CYCLE[j % 2], title=f"{length} tokens"))
            x += size
        body.append(text(left + width + 8, y + high - 2, f"{sum(row)}", 13, "muted"))
    bottom = 60 + len(shown) * (high + 4)
    if len(rows) > most:
        body.append(text(left, bottom + 14, f"and {len(rows) - most} rows more", 13, "muted"))
        bottom += 20
    alt = (
        f"{title}: {len(rows)} rows of {row_length} tokens that hold {sum(map(len, rows))} samples. {waste:.0%} of the "
        f"positions are padding. The first rows hold {', '.join(str(len(row)) for row in shown[:6])} samples."
    )
    return svg_figure(WIDTH, bottom + 12, body, alt)


def leak_figure(documents: Sequence[int], moved: Mapping[str, Sequence[float]]) -> Figure:
    """A packed row, and how far each token's logits move when a word of document 0 changes; a strip for each pipeline.

    The scale is that of the largest move outside document 0, whose own bars are grey and cut off at the top.
    """
    left, width, tall = 150, 534, 62
    cell = width / len(documents)
    leaked = {
        name: [value if document > 0 else 0.0 for value, document in zip(values, documents, strict=True)]
        for name, values in moved.items()
    }
    largest = max(max(values) for values in leaked.values()) or 1.0
    body = [
        text(16, 28, "Change one word of document 0: which logits move?", 15, font_weight="bold"),
        text(WIDTH - 16, 28, "grey: document 0 itself, cut off", 13, "muted", "end"),
        text(16, 60, "document", 13),
    ]
    for i, document in enumerate(documents):
        colour = "soft" if document < 0 else CYCLE[document % len(CYCLE)]
        body.append(rect(left + i * cell, 44, cell + 0.2, 22, colour))
    for number in sorted({d for d in documents if d >= 0}):
        places = [i for i, d in enumerate(documents) if d == number]
        middle = left + (places[0] + len(places) / 2) * cell
        body.append(text(middle, 60, number, 13, ink_on(CYCLE[number % len(CYCLE)]), "middle", font_weight="bold"))
    told = []
    for j, (name, values) in enumerate(moved.items()):
        base = 150 + j * 84
        body += [text(16, base - 22, name, 13), line(left, base, left + width, base)]
        for i, (value, leak, document) in enumerate(zip(values, leaked[name], documents, strict=True)):
            high = tall * min(value if document == 0 else leak, largest) / largest
            if high > 0.3:
                colour = "line" if document == 0 else "red"
                body.append(rect(left + i * cell, base - high, max(cell - 0.4, 0.6), high, colour))
        told.append(f"{name}: the logits of the other documents move by up to {max(leaked[name]):.2g}")
    what = f"A row of {len(documents)} tokens in {max(documents) + 1} documents"
    alt = f"{what}; one word of document 0 is changed. {'; '.join(told)}."
    return svg_figure(WIDTH, 150 + 84 * (len(moved) - 1) + 22, body, alt)


def order_figure(title: str, order: Sequence[int]) -> Figure:
    """Where a sample stood in the data (across) and when it came (down to up): a shuffle fills the square evenly."""
    side, left, top = 260, 86, 46
    size = max(order) + 1
    body = [
        text(16, 28, title, 15, font_weight="bold"),
        rect(left, top, side, side, "none", "line"),
        text(left + side / 2, top + side + 24, "place in the data", 13, "muted", "middle"),
        text(left - 12, top + 14, "comes last", 13, "muted", "end"),
        text(left - 12, top + side, "first", 13, "muted", "end"),
    ]
    for when, sample in enumerate(order):
        x, y = left + side * (sample + 0.5) / size, top + side * (1 - (when + 0.5) / len(order))
        body.append(circle(x, y, 1.6, "blue"))
    far = sum(abs(when - sample) for when, sample in enumerate(order)) / len(order) / size
    words = f"mean distance: {far:.0%} of the data", "a full shuffle: 33 %"
    body += [text(left + side + 30, top + 40 + 22 * i, word, 14) for i, word in enumerate(words)]
    return svg_figure(
        WIDTH,
        top + side + 40,
        body,
        f"{title}: on average a sample comes {far:.0%} of the data away from its place; after a full shuffle, 33 %.",
    )


def sample_card(image: Image.Image, turns: Sequence[tuple[str, str, str, bool]], title: str) -> Figure:
    """One sample: its picture, and a line for each turn: question, answer, a note (ratings), and whether it is kept."""
    rows = "".join(
        f'<tr style="opacity:{1 if kept else 0.45}"><td>{"" if kept else "✗ "}{html.escape(question)}</td>'
        f"<td><b>{html.escape(answer)}</b></td><td>{html.escape(note)}</td></tr>"
        for question, answer, note, kept in turns
    )
    side = svg_figure(150, 150, [image_at(5, 5, 140, 140, png_bytes(image.convert("RGB")))], title)
    markup = (
        f'<div style="display:flex;gap:16px;align-items:flex-start"><div style="flex:0 0 150px">{side.markup}</div>'
        f'<div><b>{html.escape(title)}</b><table style="font-size:14px">{rows}</table></div></div>'
    )
    lines = "; ".join(f"{q} {a}{'' if kept else ' (left out)'}" for q, a, _, kept in turns)
    return Figure(markup, f"{title}. {lines}")


def rated_card(
    image: Image.Image, sample: Mapping[str, Any], messages: Sequence[Mapping[str, str]], ratings: Sequence[str]
) -> Figure:
    """A sample in FineVision's schema: each turn with its ratings, and whether a filter kept it among its messages."""
    said = [message["content"] for message in messages]
    kept = set(zip(said[::2], said[1::2], strict=True))  # question and answer
    turns = []
    for number, turn in enumerate(sample["texts"]):
        note = ", ".join(f"{name} {sample[f'{name}_ratings'][number]}" for name in ratings)
        turns.append((turn["user"], turn["assistant"], note, (turn["user"], turn["assistant"]) in kept))
    return sample_card(image, turns, f"{len(said) // 2} of {len(turns)} turns are kept")
