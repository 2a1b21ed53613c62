"""A few of our own samples in the schemas of two large data sets, small enough to ship and to be read offline.

`python -m nanovlm.data.thimble --parquet assets/samples` made the files there.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanovlm.data.datasets import RATINGS
from nanovlm.data.thimble.hub_datasets import png
from nanovlm.data.thimble.samples import thimble_sample

if TYPE_CHECKING:
    import datasets

SAMPLES = (("shapes", 3), ("charts", 1), ("glyphs", 0))  # subset and index in its training split
# Turns as automatic pipelines leave them, one for each sample: question, answer, and their four ratings from 1 to 5 in
# the order of RATINGS. None: not rated.
ADDED = (
    (("What is two plus three?", "5", (1, None, 1, 5)), ("Is the picture black?", "yes", (4, 1, 5, 5))),
    (("How many bars are there?", "ANSWER:::there are some bars!!", (5, 3, 5, 1)),),
    (("What colour is a ripe tomato?", "red", (1, None, 1, 5)), ("What does the sign say?", "nothing", (5, 1, 5, 4))),
)
OURS = (5, 5, 5, 5)  # of the turns that the Thimble itself writes


def write_parquet(directory: Path) -> list[Path]:
    """Write the_cauldron.parquet and finevision.parquet; the directory is made where needed."""
    directory.mkdir(parents=True, exist_ok=True)
    made = {"the_cauldron.parquet": the_cauldron(), "finevision.parquet": finevision()}
    for name, data in made.items():
        data.to_parquet(str(directory / name))
    return [directory / name for name in made]


def the_cauldron() -> datasets.Dataset:
    """images: [Image], texts: [{user, assistant, source}]"""
    samples = [thimble_sample(subset, "train", index) for subset, index in SAMPLES]
    text = ("user", "assistant", "source")
    rows = [{"images": [png(i) for i in s["images"]], "texts": s["texts"]} for s in samples]
    return _table(rows, text, {})


def finevision() -> datasets.Dataset:
    """images: [Image], texts: [{user, assistant}], source, and per rating a list, one a turn, and its minimum.

    The ratings are ours, given by rule: 5 to what the Thimble wrote, and to the turns in ADDED what stands there.
    """
    import datasets

    rows = []
    for (subset, index), added in zip(SAMPLES, ADDED, strict=True):
        sample = thimble_sample(subset, "train", index)
        turns = [(turn["user"], turn["assistant"], OURS) for turn in sample["texts"]]
        turns[1:1] = added  # among the others, so that cutting the end off does not mend it
        row: dict[str, Any] = {"images": [png(image) for image in sample["images"]]}
        row["texts"] = [{"user": user, "assistant": assistant} for user, assistant, _ in turns]
        row["source"] = f"thimble/{subset}"
        for place, name in enumerate(RATINGS):
            ratings = [given[place] for _, _, given in turns]
            row[f"{name}_ratings"] = ratings
            row[f"{name}_min"] = min(rating for rating in ratings if rating is not None)
        rows.append(row)
    whole = datasets.Value("int64")
    rated = {f"{name}_ratings": [whole] for name in RATINGS} | {f"{name}_min": whole for name in RATINGS}
    return _table(rows, ("user", "assistant"), {"source": datasets.Value("string"), **rated})


def _table(rows: list[dict[str, Any]], text: tuple[str, ...], more: dict[str, Any]) -> datasets.Dataset:
    import datasets

    texts = [{name: datasets.Value("string") for name in text}]
    return datasets.Dataset.from_list(rows, datasets.Features({"images": [datasets.Image()], "texts": texts, **more}))
