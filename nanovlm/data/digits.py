"""Handwriting on cards: the 1,797 scans of digits that come with scikit-learn, as a folder of your own pictures.

    write_cards("digits")    # digits/0000.png …, digits/metadata.jsonl

The scans are the test set of "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998, UCI Machine
Learning Repository, https://doi.org/10.24432/C50P49, CC BY 4.0): 8 x 8 numbers from 0 to 16, written by thirteen
people. Who wrote which is not said, but neighbours in the file are apparently one person's.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nanovlm.data.thimble.drawing import Draws, stamp
from nanovlm.data.thimble.glyphs import outline
from nanovlm.files import make_directory

QUESTION = "Which digit is this?"
SIZE, INK = 64, 48  # pixels of a card's side, and of the square in its middle that is written on
SPLITS = {"train": (0, 1200), "val": (1200, 1400), "test": (1400, 1797)}  # stretches, so that few writers are in two


def scans() -> tuple[np.ndarray, list[int]]:
    """(ink [1797, 8, 8] from 0 to 16, the digits that they show). Where scikit-learn is missing, a warning says so, and
    digits that are drawn from the course's own strokes take their place."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        warnings.warn(
            "The handwritten digits come with scikit-learn, which is not installed (pip install scikit-learn): drawn "
            "digits take their place, and the numbers that you see differ from those in the text.",
            stacklevel=2,
        )
        return drawn_scans()
    data = load_digits()
    return data.images, data.target.tolist()


def drawn_scans(count: int = SPLITS["test"][1]) -> tuple[np.ndarray, list[int]]:
    """Digits of the Thimble's strokes, each a little different, at the same resolution."""
    images = np.empty((count, 8, 8))
    for number in range(count):
        draws, page = Draws("digits", number), Image.new("RGB", (32, 32))
        strokes = outline(str(number % 10), 0.4 + 0.1 * draws.below(4))
        stamp(
            page, strokes, 14 + draws.below(5), 14 + draws.below(5), 3.2 + 0.2 * draws.below(5), (255,) * 3, rim=False
        )
        images[number] = np.asarray(page.convert("L").resize((8, 8), Image.Resampling.BOX)) / 16
    return images, [number % 10 for number in range(count)]


def card(ink: np.ndarray) -> Image.Image:
    """One scan [8, 8] -> a picture of 64 x 64, dark on light."""
    small = Image.fromarray((235 - 200 * ink / 16).astype(np.uint8))
    page = Image.new("L", (SIZE, SIZE), 235)
    page.paste(small.resize((INK, INK), Image.Resampling.BICUBIC), ((SIZE - INK) // 2,) * 2)
    return page.convert("RGB")


def write_cards(folder: str | Path, split: str | None = None) -> Path:
    """All scans, or those of a split, as pictures with a metadata.jsonl that `read_own_data` and `datasets` read."""
    folder = make_directory(folder)
    first, last = SPLITS[split] if split else (0, SPLITS["test"][1])
    images, digits = scans()
    rows = []
    for number in range(first, last):
        card(images[number]).save(folder / f"{number:04}.png")
        rows.append({"file_name": f"{number:04}.png", "question": QUESTION, "answer": str(digits[number])})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def digit_samples(split: str) -> list[dict[str, Any]]:
    """The cards of a split in memory, in the_cauldron's schema."""
    images, digits = scans()
    return [
        {
            "images": [card(images[number])],
            "texts": [{"user": QUESTION, "assistant": str(digits[number]), "source": "digits/digit"}],
        }
        for number in range(*SPLITS[split])
    ]
