"""Chapter 08's promises: the stored runs are those of the recipes in the code, and show what the text says of them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from PIL import Image

from nanovlm.bench import training_runs
from nanovlm.bench.training_runs import CHANGES, EIGHT_RUNS, GALLERY, RATES, Run, one_question, small_recipe, small_vlm
from nanovlm.course.clocks import clock_face
from nanovlm.course.runs import pocket_logs, stored_runs
from nanovlm.course.watching import numbers_in, train_and_watch
from nanovlm.data.loading import get_dataloaders
from nanovlm.models.vision_language_model import IGNORE
from nanovlm.training.probe import mean
from nanovlm.weights.from_preset import from_scratch
from tests.course.learners import handed_in
from tests.training.tiny_run import new_model, recipe

FILES = {"08_gallery": GALLERY | CHANGES, "08_kinds": {"healthy": GALLERY["healthy"]}, "08_rates": RATES}


def last(name: str) -> dict:
    return stored_runs("08_gallery")[name]["evaluations"][-1]


@pytest.mark.parametrize("file", FILES)
def test_stored_runs_are_those_of_the_code(file: str) -> None:
    stored = stored_runs(file)
    assert stored.keys() <= FILES[file].keys()
    for name, run in stored.items():
        what = FILES[file][name]
        assert run["about"] == what.about
        assert run["max_steps"] == small_recipe(**what.recipe).max_steps == len(run["loss"])
        model = from_scratch(small_vlm(**what.sizes))
        what.prepare(model)
        assert run["parameters"] == sum(p.numel() for p in model.parameters())


def test_the_readers_eight_runs_are_the_gallery() -> None:
    assert {"healthy", *EIGHT_RUNS.values()} == GALLERY.keys()


def test_a_clock_shows_its_time() -> None:
    def dark(image: Image.Image, x: int, y: int) -> bool:
        return image.getpixel((x, y)) == (0, 0, 0)

    up, right, down = (32, 20), (44, 32), (32, 44)
    assert [dark(clock_face(12, 0), *place) for place in (up, right, down)] == [True, False, False]
    assert [dark(clock_face(3, 0), *place) for place in (up, right, down)] == [True, True, False]
    assert [dark(clock_face(6, 15), *place) for place in (up, right, down)] == [False, True, True]


def test_numbers_are_counted_wherever_they_are() -> None:
    assert numbers_in({"a": torch.zeros(2, 3), "b": [{"c": torch.zeros(4)}, (torch.tensor(1.0), 7, "text")]}) == 11


def test_the_logs_of_the_pocket_model_are_in_their_order() -> None:
    ends = [max(row["step"] for row in rows) for rows in pocket_logs().values()]
    assert ends == [8000, 1500, 3500, 1500]


def test_the_gallery_and_the_rates_are_complete() -> None:
    assert {*GALLERY, "no_positions", "text_only"} <= stored_runs("08_gallery").keys()
    assert RATES.keys() == stored_runs("08_rates").keys()


def test_the_stored_runs_show_what_the_chapter_says() -> None:
    for name, sees in (("healthy", True), ("no_warmup", True), ("pictures_shuffled", False), ("lr_too_high", False)):
        gain = mean(last(name)["accuracy"]) - mean(last(name)["blind"])
        assert gain > 0.1 if sees else abs(gain) < 0.03, name
    gallery = stored_runs("08_gallery")
    assert gallery["labels_unshifted"]["loss"][100] < 0.01
    validation = {name: [e["val_loss"] for e in run["evaluations"]] for name, run in gallery.items()}
    assert validation["data_repeated"][-1] > 1.5 * min(validation["data_repeated"])
    assert validation["eval_on_train"][-1] < 0.1
    largest = {name: max(gallery[name]["norm"][150:170]) for name in ("resumed_wrongly", "healthy")}
    assert largest["resumed_wrongly"] > 2 * largest["healthy"]


def test_the_losses_by_kind_show_what_the_chapter_says() -> None:
    for evaluation in stored_runs("08_kinds")["healthy"]["evaluations"][4:]:  # from step 100 on
        own, blind = evaluation["losses"], evaluation["blind_losses"]
        for kind, answers in (("exists", 2), ("compare", 2), ("where", 4)):
            assert own[kind] == pytest.approx(math.log(answers), abs=0.08) == blind[kind], kind
        assert all(blind[kind] - own[kind] > 0.3 for kind in ("colour", "shape", "count"))


def test_the_seeds_are_runs_of_the_code_and_seed_0_is_the_one_in_the_gallery() -> None:
    seeds, gallery = stored_runs("08_seeds"), stored_runs("08_gallery")
    assert {"healthy", "no_positions"} <= seeds.keys() <= (GALLERY | CHANGES).keys()
    for name, run in seeds.items():
        assert run["about"] == (GALLERY | CHANGES)[name].about and list(run["seeds"]) == ["0", "1", "2"]
        if name in gallery:
            assert run["seeds"]["0"]["accuracy"] == gallery[name]["evaluations"][-1]["accuracy"]
    pairs = zip(seeds["healthy"]["seeds"].values(), seeds["no_positions"]["seeds"].values(), strict=True)
    gains = [mean(b["accuracy"]) - mean(a["accuracy"]) for a, b in pairs]
    assert min(gains) < 0 < max(gains), "the chapter says that the seeds do not agree"


def test_only_the_first_answer_is_left() -> None:
    model = from_scratch(small_vlm())
    loader, _ = get_dataloaders(small_recipe(batch_size=3), model.config, model.tokenizer, model.image_processor)
    batch = next(iter(loader))
    few = one_question(batch)["targets"]
    for row, whole in zip(few, batch["targets"], strict=True):
        kept = row[row != IGNORE]
        assert kept.tolist() == whole[whole != IGNORE][: len(kept)].tolist()
        assert (kept == 1).sum() == 1 and kept[-1] == 1  # the token that ends an answer


def test_a_run_can_be_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_runs, "PROBED", 2)
    small = {"max_steps": 3, "batch_size": 2, "val_size": 2}
    three_steps = Run("three steps", small, restart_at=2)
    first, second = (training_runs.run(three_steps, lambda line: None) for _ in range(2))
    assert first["loss"] == second["loss"] and len(first["loss"]) == len(first["norm"]) == 3
    assert [e["step"] for e in first["evaluations"]] == [1, 3]
    seeds = training_runs.run_seeds(three_steps, [0, 1], lambda line: None)["seeds"]
    assert seeds["0"]["val_loss"] == first["evaluations"][-1]["val_loss"] != seeds["1"]["val_loss"]


def test_a_run_is_watched_outside_of_a_notebook(capsys: pytest.CaptureFixture) -> None:
    config = replace(recipe(""), accuracy_images=2)
    watched = train_and_watch(config, new_model(), images=2)
    assert watched.run is not None and watched.run.step == config.max_steps
    assert [step for step, _ in watched.losses] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in watched.accuracy] == [step for step, _ in watched.blind] == [3, 6]
    assert "Step 6 of 6" in watched.figure().alt
    assert "run " not in capsys.readouterr().out


def test_the_learners_own_loop_trains_a_model() -> None:
    own = handed_in("solutions", "08")
    torch.manual_seed(0)
    model = from_scratch(small_vlm()).train()
    loader, _ = get_dataloaders(small_recipe(batch_size=4), model.config, model.tokenizer, model.image_processor)
    optimizer = torch.optim.AdamW(own["training.param_groups"](model, 4e-3, 4e-3, 0.01))
    batches, losses = iter(loader), []
    for step in range(6):
        for group in optimizer.param_groups:
            group["lr"] = own["training.get_lr"](step, 4e-3, 6)
        losses.append(own["training.train_step"](model, [next(batches), next(batches)], optimizer, 1.0))
    assert losses[-1] < losses[0] - 2
