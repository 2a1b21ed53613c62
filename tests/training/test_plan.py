"""What the plan says beforehand, held against what is counted and kept when a model really runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nanovlm import trace
from nanovlm.bench.sizes import make_batch, quarter_vlm
from nanovlm.cli import main
from nanovlm.config import VLMConfig, pocket_vlm, presets
from nanovlm.models.vision_language_model import VisionLanguageModel
from nanovlm.training import plan as planning
from nanovlm.training.plan import MACHINES, activation_numbers, find_machine, memory_by_part, num_parameters, plan

SIZES = {
    "pocket": (pocket_vlm(), 8),
    "quarter": (quarter_vlm(), 2),
    "wide": (replace(pocket_vlm(), language=replace(pocket_vlm().language, inter_dim=1024, num_blocks=2)), 4),
}


def on_meta(config: VLMConfig) -> VisionLanguageModel:
    with torch.device("meta"):
        return VisionLanguageModel(config)


@pytest.mark.parametrize("name", presets())
def test_parameters_are_those_of_the_model(name):
    config = presets()[name].vlm
    model = on_meta(config)
    parts = (model.vision_encoder, model.projector, model.decoder)
    assert list(num_parameters(config).values()) == [sum(p.numel() for p in part.parameters()) for part in parts]


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.long] * (n == "h100")) for n in presets()])
def test_operations_are_those_that_the_tracer_counts(name):
    """Of the forward pass, on meta at full size, for one row with its pictures."""
    preset = presets()[name]
    config = replace(preset.vlm, image_token_id=4, tiling=None)
    recipe = replace(preset.train, max_length=1280) if preset.train.packing else preset.train
    num_images = int(planning.images_per_row(config, recipe))
    assert num_images == planning.images_per_row(config, recipe), "the tracer sees whole pictures only"
    ids = torch.full((1, recipe.max_length), 7)
    ids[:, : num_images * config.num_image_tokens] = 4
    targets = torch.full_like(ids, -100)
    targets[:, : round(planning.SUPERVISED_SHARE * recipe.max_length)] = 7
    side = config.vision.image_size
    images = torch.empty(num_images, 3, side, side, device="meta")
    counted = trace.trace(on_meta(config), ids, images, targets=targets, device="meta").flops
    said = (planning.flops_per_sample(config, recipe) + num_images * planning.patch_flops(config.vision)) / 3
    assert said == pytest.approx(counted, rel=0.01)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_those_that_autograd_keeps(name, checkpointing):
    config, rows = SIZES[name]
    model = VisionLanguageModel(config).train()
    model.gradient_checkpointing(checkpointing)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = make_batch(config, rows, 128)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = model(batch["input_ids"], batch["images"], targets=batch["targets"]).logits
    said = activation_numbers(config, 128, checkpointing=checkpointing)
    if checkpointing:  # the block that is computed again comes later, in the backward pass
        v, d = config.vision, config.language
        said -= v.num_patches * planning._vit_block(v) + 128 * planning._decoder_block(d)
    measured = sum(kept.values()) - 4 * logits.numel()  # log-probabilities
    assert 4 * rows * said == pytest.approx(measured, rel=0.15)


def test_what_stays_is_what_the_optimizer_holds():
    from nanovlm.training.optimizer import Optimizers
    from tests.training.tiny_run import batches, items, new_model, recipe, step

    for rule in ("adamw", "muon"):
        for precision in ("fp32", "bf16"):
            config = recipe(Path("."), optimizer=rule, precision=precision)
            model = new_model().to(torch.bfloat16 if precision == "bf16" else torch.float32)
            optimizers = Optimizers(model, config)
            step(model, batches(items(4), 4), optimizers)
            held = {id(t): t.numel() * t.element_size() for t in [*model.parameters(), *optimizers.masters]}
            fixed, _ = memory_by_part(model.config, config, MACHINES["laptop CPU"])
            assert fixed["weights"] == sum(held.values())
            moments = sum(
                t.numel() * t.element_size()
                for one in optimizers.all
                for state in one.state.values()
                for t in state.values()
                if t.ndim
            )
            assert fixed["optimizer"] == moments


def test_the_published_run_comes_out_at_its_utilisation():
    """Six hours on one H100 for 32,700 steps of 256, at 8 % of the chip."""
    preset = presets()["h100"]
    assert plan(preset.vlm, preset.train, MACHINES["H100"], utilisation=0.08).hours == pytest.approx(6, rel=0.08)


def test_levers_move_what_they_should():
    preset = presets()["h100"]
    one = plan(preset.vlm, preset.train, MACHINES["H100"])
    assert plan(preset.vlm, preset.train, MACHINES["H100"], utilisation=0.5).hours == pytest.approx(one.hours / 2)
    eight = plan(preset.vlm, preset.train, MACHINES["H100"], num_gpus=8)
    assert eight.samples == 8 * one.samples and eight.hours == pytest.approx(one.hours)
    thrifty = plan(preset.vlm, replace(preset.train, gradient_checkpointing=True), MACHINES["H100"])
    assert thrifty.memory["activations"] < one.memory["activations"] / 5 and thrifty.hours > one.hours
    small = plan(preset.vlm, preset.train, MACHINES["T4"])
    assert not small.fits and 0 < small.largest_batch < preset.train.batch_size
    fitting = replace(preset.train, batch_size=small.largest_batch)
    assert plan(preset.vlm, fitting, MACHINES["T4"]).fits
    assert not plan(preset.vlm, replace(fitting, batch_size=fitting.batch_size + 1), MACHINES["T4"]).fits
    dealt = plan(preset.vlm, replace(preset.train, parallel="fsdp"), MACHINES["H100"], num_gpus=8)
    assert dealt.memory["optimizer"] == eight.memory["optimizer"] / 8


def test_colab_fits_a_t4_and_ends_in_a_session():
    preset = presets()["colab"]
    made = plan(preset.vlm, preset.train, MACHINES["T4"])
    assert made.fits and made.hours < 4


def test_a_batch_that_does_not_fit_is_told_the_largest_that_does():
    preset = presets()["h100"]
    largest = plan(preset.vlm, preset.train, MACHINES["T4"]).largest_batch
    said = planning.does_not_fit(preset.vlm, preset.train, 15, "fp16")
    times = -(-256 // largest)
    assert f"256 rows of 128 tokens does not fit into the GPU's 15 GB. At most {largest} should" in said
    assert f"--batch-size {largest} --gradient-accumulation-steps {times} makes the same step" in said
    assert "At most 1 should" in planning.does_not_fit(preset.vlm, replace(preset.train, batch_size=2), 15, "fp16")
    assert "nor does one row" in planning.does_not_fit(preset.vlm, preset.train, 4, "fp16")


def test_a_gpu_that_runs_out_of_memory_ends_the_run_with_that_sentence(tmp_path, monkeypatch):
    import nanovlm.training.loop
    from tests.training.tiny_run import run

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    room = type("Room", (), {"total_memory": 8e9})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: room)
    monkeypatch.setattr(nanovlm.training.loop, "train_step", full)
    with pytest.raises(
        ValueError, match=r"4 rows of 160 tokens does not fit .* 8 GB\. At most 2 should: --batch-size 2"
    ):
        run(tmp_path)


def test_more_processes_than_gpus_is_one_sentence(monkeypatch):
    from nanovlm.training import parallel

    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=r"Process 3 of this machine has no GPU: there are 2. .*--nproc-per-node 2"):
        parallel.start()


def test_every_preset_fits_its_gpu():
    for name in ("h100", "460m"):
        assert plan(presets()[name].vlm, presets()[name].train, MACHINES["H100"]).fits


def test_wrong_words_get_one_sentence(capsys):
    with pytest.raises(ValueError, match="There is no machine 'B9000' in the list: T4"):
        find_machine("B9000")
    assert main(["plan", "--utilisation", "2"]) == 2
    assert "utilisation is a share of the peak" in capsys.readouterr().err


def test_the_commands_say_it(capsys):
    assert main(["plan", "--preset", "colab", "--machine", "t4"]) == 0
    assert "fits" in capsys.readouterr().out
    assert main(["plan"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in MACHINES) and "does not fit: batches of" in out
    assert main(["train", "--preset", "h100", "--batch-size", "2", "--estimate", "--machine", "T4"]) == 0
    out = capsys.readouterr().out
    assert "65,400 samples" in out and "fits" in out
    assert main(["train", "--model", "pocket", "--estimate", "--machine", "T4"]) == 0
    assert "fits" in capsys.readouterr().out


def test_the_readme_has_the_table():
    readme = (Path(planning.__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert planning.presets_table() in readme, "python -c 'from nanovlm.training.plan import *; print(presets_table())'"
