"""The Thimble as a Hugging Face `datasets.Dataset`, loaded and concatenated exactly like the_cauldron's subsets."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from PIL import Image

from nanovlm.data.thimble.dataset import Thimble
from nanovlm.data.thimble.multiple_choice import multiple_choice_sample

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


def load_multiple_choice(
    size: int = 1_000, split: str = "test", seed: int = 0, image_size: int = 64
) -> datasets.Dataset:
    """`size` questions as a data set with MMStar's columns, in memory."""
    import datasets

    features = {name: datasets.Value("string") for name in ("question", "answer", "category", "l2_category")}
    meta = {name: datasets.Value("string") for name in ("source", "split", "image_path")}
    columns = {"index": datasets.Value("int64"), **features, "image": datasets.Image(), "meta_info": meta}
    rows = [multiple_choice_sample(index, split, seed, image_size) for index in range(size)]
    data = {name: [png(row[name]) if name == "image" else row[name] for row in rows] for name in columns}
    return datasets.Dataset.from_dict(data, datasets.Features(columns))
