"""Chapter 15: the stored runs are those of the code, and augmentations do what their names say."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from nanovlm.bench.own_pictures import ABOUT, RUNS, at_the_end, intervals_of, mirrored, turned
from nanovlm.bench.task_mixes import Weighed, mixed
from nanovlm.config import TrainConfig
from nanovlm.course.runs import stored_runs
from nanovlm.device import choose_precision
from nanovlm.training.optimizer import Optimizers
from nanovlm.training.step import forward, train_step
from tests.tiny import random_images, tiny_model


@pytest.mark.parametrize("name", RUNS)
def test_the_stored_runs_are_those_of_the_code(name: str) -> None:
    stored, runs = stored_runs(f"15_{name}"), RUNS[name]
    assert list(stored) == [*ABOUT, *runs]
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
    for kind in ("temperature", "uncertainty"):
        assert mixed(kind, [1, 32], []) == pytest.approx([1 / 3, 2 / 3])


def test_a_loss_with_learned_weights_knows_whose_each_sample_is() -> None:
    cpu, model = torch.device("cpu"), tiny_model().train()
    optimizers = Optimizers(model, TrainConfig())
    weighed = Weighed(model, [3, 5], optimizers)
    weighed.next_samples([2, 3, 7])
    assert weighed.owners.tolist() == [0, 1, 1]
    ids = torch.tensor([[4, 4, 4, 4, 7, 8]]).repeat(3, 1)
    targets = torch.full_like(ids, -100)
    targets[:, 4], targets[0, 5] = torch.tensor([8, 9, 10]), 11
    batch = {"input_ids": ids, "images": random_images(3), "targets": targets}
    each = F.cross_entropy(forward(model, batch, cpu).logits, torch.tensor([8, 11, 9, 10]), reduction="none")
    optimizers.set_lr(1.0)
    precision = choose_precision("fp32", cpu)
    loss = train_step(weighed, [batch], optimizers, precision.scaler(cpu), precision, cpu, 1.0)
    assert loss == pytest.approx((each[:2].mean() + each[2:].mean()).item(), rel=1e-5)
    moved = weighed.weigh.log_variances
    assert (moved > 0).all() and moved.grad is None, "losses above 1/2 are turned down, and the gradient is cleared"
