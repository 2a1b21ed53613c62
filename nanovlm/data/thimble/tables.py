"""The Thimble as a Hugging Face `datasets.Dataset`, loaded and concatenated exactly like the_cauldron's subsets."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from PIL import Image

from nanovlm.data.thimble.samples import Thimble

if TYPE_CHECKING:
    import datasets


def png(image: Image.Image) -> dict[str, bytes | str | None]:
    """A picture as the `datasets.Image` feature stores it."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return {"bytes": buffer.getvalue(), "path": None}


def load_thimble(
    subset: str = "shapes", split: str = "train", size: int = 10_000, seed: int = 0, image_size: int = 64
) -> datasets.Dataset:
    """`size` samples with the features images: [Image], texts: [{user, assistant, source}].

    Built in memory (about 5 KB a sample at 64 px) and never cached on disk, so it cannot be stale.
    """
    import datasets

    samples = Thimble(subset, split, size, seed, image_size)
    text = {name: datasets.Value("string") for name in ("user", "assistant", "source")}
    columns: dict[str, list] = {"images": [], "texts": []}
    for sample in map(samples.__getitem__, range(size)):
        columns["images"].append([png(image) for image in sample["images"]])
        columns["texts"].append(sample["texts"])
    return datasets.Dataset.from_dict(columns, datasets.Features({"images": [datasets.Image()], "texts": [text]}))
