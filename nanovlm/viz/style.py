"""One quiet style for every picture: a palette, a card, and SVG by hand.

The colours are Okabe and Ito's (https://jfly.uni-koeln.de/color/), a little calmer: told apart by colour-blind readers.
Every figure stands on its own card, light or dark as JupyterLab's theme or the reader's system asks, and carries its
description.
"""

from __future__ import annotations

import base64
import functools
import html
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure as MatplotlibFigure

MAX_WIDTH = 720  # pixels: what a notebook shows without scrolling
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
MONO = "ui-monospace, SFMono-Regular, Menlo, Consolas, monospace"

PALETTE = {
    "blue": "#2f6db3",
    "orange": "#e08b1a",
    "green": "#1f9273",
    "pink": "#c4689c",
    "sky": "#62afd9",
    "yellow": "#e5c94a",
    "red": "#cf5324",
    "grey": "#8a929b",
}
CYCLE = tuple(PALETTE.values())[:7]

# What turns round in the dark: name -> (light, dark). Used as colours too: rect(…, fill="line").
TONES = {
    "ink": ("#24292f", "#e6e9ec"),
    "muted": ("#5f6872", "#a7b0ba"),
    "line": ("#cfd5db", "#49515a"),
    "soft": ("#eef1f4", "#2b3138"),
    "card": ("#fcfcfb", "#1d2126"),
}
READABLE = 4.5  # the contrast that WCAG 2 asks of text


@dataclass(frozen=True)
class Figure:
    """Something to look at, and the same in words. `markup` is SVG or HTML that stands alone; `png` the same picture,
    base64, where it is no drawing."""

    markup: str
    alt: str
    png: str | None = None

    @property
    def is_svg(self) -> bool:
        return self.markup.startswith("<svg")

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict[str, str], dict[str, Any]]:
        kind = "image/png" if self.png else "image/svg+xml" if self.is_svg else "text/html"
        data = {kind: self.png or self.markup, "text/plain": self.alt}
        if kind == "image/svg+xml":
            # JupyterLab prefers HTML, and shrinks it with the page; an SVG alone it would cut off at the right. GitHub
            # drops drawings out of HTML, so stored notebooks keep the SVG (course/notebooks.py).
            data["text/html"] = self.markup
        return data, {kind: {"alt": self.alt}}

    def __repr__(self) -> str:
        return self.alt


def svg_figure(width: float, height: float, body: Iterable[str] | str, alt: str) -> Figure:
    """A card of width x height pixels; it shrinks with the page. `body`: what rect, text, line … return."""
    if not alt.strip():
        raise ValueError("A figure needs alt text: say what it shows, as one would on the phone.")
    if width > MAX_WIDTH:
        raise ValueError(f"A figure is at most {MAX_WIDTH} px wide, so that a notebook shows it whole; got {width}.")
    inner = body if isinstance(body, str) else "".join(body)
    return Figure(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_n(width)} {_n(height)}" width="{_n(width)}" '
        f'height="{_n(height)}" role="img" aria-label="{html.escape(alt)}" style="max-width:100%;height:auto" '
        f'font-family="{FONT}"><title>{html.escape(alt)}</title>{_style(inner)}'
        f'<rect class="nv-card" width="{_n(width)}" height="{_n(height)}" rx="8"/>{inner}</svg>',
        alt,
    )


def rect(
    x: float, y: float, width: float, height: float, fill: str = "soft", stroke: str | None = None, **more: Any
) -> str:
    """`fill` and `stroke`: a name of PALETTE or TONES, a CSS colour, or "none". `more`: attributes, and `title`."""
    size = f'x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" height="{_n(height)}"'
    return _element("rect", size, fill, stroke, more)


def circle(x: float, y: float, radius: float, fill: str = "soft", stroke: str | None = None, **more: Any) -> str:
    return _element("circle", f'cx="{_n(x)}" cy="{_n(y)}" r="{_n(radius)}"', fill, stroke, more)


def line(x1: float, y1: float, x2: float, y2: float, stroke: str = "line", width: float = 1.0, **more: Any) -> str:
    ends = f'x1="{_n(x1)}" y1="{_n(y1)}" x2="{_n(x2)}" y2="{_n(y2)}"'
    return _element("line", ends, "none", stroke, {"stroke_width": width, **more})


def path(d: str, fill: str = "none", stroke: str | None = "line", width: float = 1.0, **more: Any) -> str:
    return _element("path", f'd="{d}"', fill, stroke, {"stroke_width": width, **more})


def text(
    x: float,
    y: float,
    words: object,
    size: float = 12,
    fill: str = "ink",
    anchor: str = "start",
    mono: bool = False,
    **more: Any,
) -> str:
    """(x, y) is where the baseline starts; anchor: start, middle or end. A colour of PALETTE is darkened, in the dark
    lightened, until it can be read on the card."""
    attributes = f'x="{_n(x)}" y="{_n(y)}" font-size="{_n(size)}" text-anchor="{anchor}"'
    if mono:
        attributes += f' font-family="{MONO}"'
    if fill in PALETTE:
        more["class"], fill = f"nv-t-{fill}", None
    return _element("text", attributes, fill, None, more, html.escape(str(words)))


def arrow(x1: float, y1: float, x2: float, y2: float, stroke: str = "muted", width: float = 1.5) -> str:
    """A line with a small head at (x2, y2)."""
    length = max(((x2 - x1) ** 2 + (y2 - y1) ** 2) ** 0.5, 1e-6)
    ux, uy = (x2 - x1) / length, (y2 - y1) / length
    left, right = (x2 - 7 * ux + 4 * uy, y2 - 7 * uy - 4 * ux), (x2 - 7 * ux - 4 * uy, y2 - 7 * uy + 4 * ux)
    head = f"M{_n(left[0])} {_n(left[1])}L{_n(x2)} {_n(y2)}L{_n(right[0])} {_n(right[1])}"
    return line(x1, y1, x2, y2, stroke, width) + path(head, stroke=stroke, width=width)


def raster(x: float, y: float, width: float, height: float, png: bytes, title: str = "") -> str:
    """A picture (PNG bytes) inside a figure; pixels stay square when it is enlarged."""
    data = base64.b64encode(png).decode()
    return (
        f'<image x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" height="{_n(height)}" preserveAspectRatio="none" '
        f'style="image-rendering:pixelated" href="data:image/png;base64,{data}">'
        f"<title>{html.escape(title)}</title></image>"
    )


def png_bytes(pixels: Any) -> bytes:
    """uint8 tensor or array [H, W, 3] -> PNG."""
    import numpy as np
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def from_matplotlib(figure: MatplotlibFigure, alt: str) -> Figure:
    """A matplotlib figure as a PNG on the page; the figure is closed."""
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    # No date and no version: the same picture is the same bytes.
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)
    data = base64.b64encode(buffer.getvalue()).decode()
    markup = f'<img alt="{html.escape(alt)}" style="max-width:100%" src="data:image/png;base64,{data}">'
    return Figure(markup, alt, data)


def heat(value: float) -> str:
    """0 -> pale, 1 -> deep blue; outside is clipped."""
    return _blend("#f1f5f9", "#7fb2de", "#0d4585", min(max(float(value), 0.0), 1.0))


def diverging(value: float) -> str:
    """-1 -> blue, 0 -> nearly white, 1 -> orange; outside is clipped."""
    return _blend("#2f6db3", "#f6f5f2", "#d97a10", (min(max(float(value), -1.0), 1.0) + 1) / 2)


def contrast(a: str, b: str) -> float:
    """Between 1 and 21, of two "#rrggbb" (WCAG 2)."""
    high, low = sorted((_luminance(a), _luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def ink_on(colour: str) -> str:
    """Black or white letters, whichever stands out more from a "#rrggbb" or a name of PALETTE: by 4.58 or more. A black
    that is softer would leave some blues with less."""
    return max("#000000", "#ffffff", key=lambda ink: contrast(ink, PALETTE.get(colour, colour)))


@functools.cache
def _readable(colour: str, ground: str) -> str:
    """The colour, mixed with black or white until a text in it stands out from the ground."""
    ink, steps = ink_on(ground), (share / 20 for share in range(21))
    return next(c for c in (_mix(colour, ink, step) for step in steps) if contrast(c, ground) >= READABLE)


def _rules(used: set[str], dark: bool, scope: str = "") -> str:
    ground = TONES["soft"][dark]  # further from the ends than a card is: what can be read here can be read there
    classes = {
        **{f"nv-{name}": f"fill:{pair[dark]}" for name, pair in TONES.items()},
        **{f"nv-s-{name}": f"stroke:{pair[dark]}" for name, pair in TONES.items()},
        **{f"nv-t-{name}": f"fill:{_readable(colour, ground)}" for name, colour in PALETTE.items()},
    }
    return "".join(f"{scope}.{name}{{{rule}}}" for name, rule in classes.items() if name in used)


def _style(body: str) -> str:
    """The rules that a card with this body needs. JupyterLab, and a page that nbconvert made, say on their body which
    theme they have; elsewhere the reader's system decides. JupyterLab's comes last and is the more specific: its theme
    need not be the system's."""
    used = {"nv-card", *re.findall(r"nv-[a-z-]+", body)}
    light, dark = (_rules(used, is_dark, f"[data-jp-theme-light={str(not is_dark).lower()}] ") for is_dark in (0, 1))
    system = f"{_rules(used, False)}@media(prefers-color-scheme:dark){{{_rules(used, True)}}}"
    return f"<style>{system}{light}{dark}</style>"


def _element(
    tag: str, attributes: str, fill: str | None, stroke: str | None, more: dict[str, Any], content: str = ""
) -> str:
    classes = []
    for kind, colour in (("fill", fill), ("stroke", stroke)):
        if colour in TONES:
            classes.append(f"nv-{colour}" if kind == "fill" else f"nv-s-{colour}")
        elif colour is not None:
            attributes += f' {kind}="{PALETTE.get(colour, colour)}"'
    if classes:
        attributes += f' class="{" ".join(classes)}"'
    title = more.pop("title", None)
    for name, value in more.items():
        value = _n(value) if isinstance(value, (int, float)) else html.escape(str(value))
        attributes += f' {name.replace("_", "-")}="{value}"'
    if title is not None:
        content = f"<title>{html.escape(str(title))}</title>{content}"
    return f"<{tag} {attributes}>{content}</{tag}>"


def _n(value: float) -> str:
    """Short and the same on every machine."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _luminance(colour: str) -> float:
    channels = (value / 255 for value in _rgb(colour))
    r, g, b = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def _mix(a: str, b: str, share: float) -> str:
    mixed = (round(x + (y - x) * share) for x, y in zip(_rgb(a), _rgb(b), strict=True))
    return "#" + "".join(f"{value:02x}" for value in mixed)


def _blend(low: str, middle: str, high: str, t: float) -> str:
    return _mix(low, middle, 2 * t) if t < 0.5 else _mix(middle, high, 2 * t - 1)
