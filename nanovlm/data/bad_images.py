"""Pictures as they come: odd but whole files, and broken ones, each made in a few lines and never downloaded."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageDraw, PngImagePlugin


class OddImage(NamedTuple):
    """One file. `whole`: a person could look at it; else there is nothing to see, and it has to be skipped."""

    name: str
    content: bytes
    whole: bool
    trouble: str  # what goes wrong where nobody is careful


def odd_images(side: int = 96) -> list[OddImage]:
    """Twelve files that show the same scene, as far as they show anything, `side` pixels wide and high."""
    scene = _scene(side)
    sideways = scene.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # to be turned a quarter to the right before it is shown
    jpeg = _saved(scene, "JPEG", quality=90)
    comment = PngImagePlugin.PngInfo()
    comment.add_text("comment", "x" * (2 * PngImagePlugin.MAX_TEXT_CHUNK), zip=True)
    grey = np.asarray(scene.convert("L")).astype(np.uint16) * 257
    make: list[tuple[str, Callable[[], bytes], bool, str]] = [
        ("plain PNG", lambda: _saved(scene, "PNG"), True, "nothing"),
        ("EXIF rotation", lambda: _saved(sideways, "JPEG", exif=exif, quality=90), True, "lies on its side"),
        ("palette", lambda: _saved(scene.quantize(8), "PNG"), True, "its numbers are no colours"),
        ("CMYK", lambda: _saved(scene.convert("CMYK"), "JPEG", quality=90), True, "four channels of ink"),
        ("16-bit grey", lambda: _saved(Image.fromarray(grey), "PNG"), True, "clipped at 255, it is all white"),
        ("alpha", lambda: _saved(_cut_out(scene), "PNG"), True, "what is transparent turns black"),
        ("long comment", lambda: _saved(scene, "PNG", pnginfo=comment), True, "a text chunk of 2 MB is refused"),
        ("1 x 1", lambda: _saved(scene.resize((1, 1)), "PNG"), True, "a tracking pixel, but whole"),
        ("truncated", lambda: jpeg[: len(jpeg) // 2], False, "the lower half is missing"),
        ("bomb", _bomb, False, "claims 40,000 x 40,000 pixels"),
        ("a web page", lambda: b"<!DOCTYPE html><title>404</title>", False, "an error page saved as a picture"),
        ("empty", lambda: b"", False, "a download that never began"),
    ]
    return [OddImage(name, content(), whole, trouble) for name, content, whole, trouble in make]


def opened(open_it: Callable[[bytes], Image.Image], files: Sequence[OddImage]) -> list[Image.Image | None]:
    """What a function makes of each file; None where it raises."""
    images: list[Image.Image | None] = []
    for file in files:
        try:
            images.append(open_it(file.content))
        except Exception:
            images.append(None)
    return images


def _scene(side: int) -> Image.Image:
    """A red disc at the top left and a blue triangle at the bottom right: which way is up can be seen."""
    image = Image.new("RGB", (side, side), "#f4efe4")
    pen, u = ImageDraw.Draw(image), side / 8
    pen.ellipse((u, u, 4 * u, 4 * u), fill="#cf3b2f")
    pen.polygon([(4 * u, 7 * u), (7 * u, 7 * u), (5.5 * u, 4 * u)], fill="#2f6db3")
    return image


def _cut_out(scene: Image.Image) -> Image.Image:
    """The scene with a transparent background, whose hidden colour is black, as drawing programs leave it."""
    paper = np.asarray(scene)
    visible = (np.abs(paper.astype(int) - paper[0, 0]).sum(axis=2) > 30)[:, :, None]
    return Image.fromarray(np.concatenate([paper * visible, visible * 255], axis=2).astype(np.uint8), "RGBA")


def _bomb() -> bytes:
    """The header of an enormous PNG, and next to nothing behind it."""
    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def _saved(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()
