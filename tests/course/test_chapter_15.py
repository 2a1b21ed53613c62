"""Chapter 15: the stored runs are those of the code, and augmentations do what their names say."""

from __future__ import annotations

import pytest
import torch
from PIL import Image, ImageOps

from nanovlm.bench.own_pictures import RUNS, at_the_end, intervals_of, mirrored, mixed, turned
from nanovlm.course.runs import stored_runs


@pytest.mark.parametrize("name", RUNS)
def test_the_stored_runs_are_those_of_the_code(name: str) -> None:
    stored, runs = stored_runs(f"15_{name}"), RUNS[name]
    assert set(stored) == {*runs, "before", "machine", "questions"}
    for run, what in runs.items():
        assert stored[run]["about"] == what.about and set(stored[run]["seeds"]) == {str(seed) for seed in what.seeds}
        for result in stored[run]["seeds"].values():
            assert len(result["loss"]) == what.steps and set(result["end"]) == set(what.asked)


def test_the_mean_over_seeds_and_its_interval() -> None:
    stored = {"seeds": {"0": {"end": {"digits": 0.8}}, "1": {"end": {"digits": 0.9}}}}
    assert at_the_end(stored) == {"digits": pytest.approx(0.85)}
    low, high = intervals_of({"a": {"digits": 0.5}}, {"digits": 100})["a"]["digits"]
    assert 0.40 < low < 0.41 and 0.59 < high < 0.60


def test_cards_are_moved_or_mirrored() -> None:
    page = Image.new("RGB", (64, 64), (235, 235, 235))
    page.paste((0, 0, 0), (8, 20, 30, 40))
    generator = torch.Generator().manual_seed(0)
    moved = [turned(page, generator) for _ in range(3)]
    assert all(image.size == (64, 64) and image != page for image in moved) and moved[0] != moved[1]
    seen = [mirrored(page, generator) for _ in range(20)]
    assert (
        all(image in (page, ImageOps.mirror(page)) for image in seen) and len({image.tobytes() for image in seen}) == 2
    )


def test_mixtures_by_name() -> None:
    assert mixed("size", [10, 30], [5.0, 0.0])[1] == pytest.approx(0.75)
    assert mixed("loss", [10, 30], [5.0, 0.0])[1] < 0.1
