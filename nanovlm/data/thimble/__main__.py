"""`python -m nanovlm.data.thimble --bench` measures; `--sheet FILE.png` shows; `--images DIR`, `--parquet DIR` write.

The pictures and tables that ship are listed in CONTRIBUTING.md with their commands.
"""

from __future__ import annotations

import argparse
import textwrap
import time
from pathlib import Path

from PIL import Image, ImageDraw

from nanovlm.data.thimble import SPLITS, SUBSETS, thimble_sample
from nanovlm.data.thimble.parquet import write_parquet

# File -> subset and index in its test split, which no training picture shares a scene with. In the three `shapes` the
# red star stands in three places, so that one question has three answers.
IMAGES = {
    "shapes.png": ("shapes", 12),
    "shapes_2.png": ("shapes", 610),
    "shapes_3.png": ("shapes", 385),
    "charts.png": ("charts", 13),
    "glyphs.png": ("glyphs", 15),
}
IMAGE_SIZE = 256  # pixels: made to be looked at; the model's image processor shrinks them


def samples_per_second(subset: str, image_size: int = 64, seconds: float = 1.0) -> float:
    """Training samples (picture and texts) rendered per second by this process, after a warm-up of its caches."""
    for index in range(200):
        thimble_sample(subset, "train", index, image_size=image_size)
    start, done = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds:
        for index in range(200 + done, 300 + done):
            thimble_sample(subset, "train", index, image_size=image_size)
        done += 100
    return done / elapsed


def contact_sheet(subsets: tuple[str, ...], split: str, per_subset: int, seed: int, image_size: int) -> Image.Image:
    """Pictures with their questions and answers beneath, `per_subset` samples of each subset in rows of five."""
    samples = [thimble_sample(s, split, i, seed, image_size) for s in subsets for i in range(per_subset)]
    side, columns = 192, 5
    texts = []
    for sample in samples:
        lines = (f"{turn['user']}  {turn['assistant']}" for turn in sample["texts"])
        texts.append("\n".join(part for line in lines for part in textwrap.wrap(line, 34, subsequent_indent="  ")))
    height = side + 20 + 13 * max(text.count("\n") + 2 for text in texts)
    rows = -(-len(samples) // columns)
    sheet = Image.new("RGB", (columns * (side + 24) + 24, rows * height + 24), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (sample, text) in enumerate(zip(samples, texts, strict=True)):
        x, y = 24 + (i % columns) * (side + 24), 24 + (i // columns) * height
        sheet.paste(sample["images"][0].resize((side, side), Image.Resampling.NEAREST), (x, y))
        pen.multiline_text((x, y + side + 6), text, fill="black", spacing=2)
    return sheet


def write_images(directory: Path) -> list[Path]:
    """Write PICTURES as PNG files; the directory is made where needed."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, (subset, index) in IMAGES.items():
        thimble_sample(subset, "test", index, image_size=IMAGE_SIZE)["images"][0].save(directory / name, optimize=True)
    return [directory / name for name in IMAGES]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m nanovlm.data.thimble", description="Look at the Thimble.")
    parser.add_argument("--bench", action="store_true", help="print samples per second of each subset")
    parser.add_argument("--sheet", metavar="FILE.png", help="write a contact sheet")
    parser.add_argument("--images", metavar="DIR", type=Path, help="write the sample pictures that ship")
    parser.add_argument("--parquet", metavar="DIR", type=Path, help="write the sample tables that ship")
    parser.add_argument("--subset", choices=SUBSETS, help="one subset (default: all)")
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--count", type=int, default=5, help="samples per subset on the sheet")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--image-size", type=int, default=64)
    options = parser.parse_args()
    subsets = (options.subset,) if options.subset else SUBSETS
    if options.bench:
        for subset in subsets:
            rate = samples_per_second(subset, options.image_size)
            print(f"{subset:8} {rate:7,.0f} samples/s at {options.image_size} px")
    if options.sheet:
        contact_sheet(subsets, options.split, options.count, options.seed, options.image_size).save(options.sheet)
        print(f"wrote {options.sheet}")
    for write, directory in ((write_images, options.images), (write_parquet, options.parquet)):
        for path in write(directory) if directory else ():
            print(f"wrote {path}")
    if not (options.bench or options.sheet or options.images or options.parquet):
        parser.print_help()


if __name__ == "__main__":
    main()
