"""Low-rank adapters: peft's numbers, a base that never moves, a small file, a run from the command's options."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from nanovlm.adapt.blocks import quantise_base
from nanovlm.adapt.freeze import token_id
from nanovlm.adapt.lora import MODULES, LoRALinear, add_lora, load_adapter, lora_layers, merge_lora, save_adapter
from nanovlm.files import read_safetensors
from nanovlm.models.vision_language_model import VisionLanguageModel
from nanovlm.training.checkpoint import checkpoints, load_checkpoint
from nanovlm.training.loop import train
from tests.tiny import max_difference, random_images, tiny_model
from tests.training.tiny_run import new_model, recipe

IDS = torch.tensor([[4, 4, 4, 4, 7, 8, 9]])


def logits(model: VisionLanguageModel) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS, random_images(1)).logits


def opened(model: nn.Module, seed: int = 0) -> nn.Module:
    """With adapters that no longer add zero."""
    generator = torch.Generator().manual_seed(seed)
    for layer in lora_layers(model).values():
        layer.lora_b.data.normal_(0, 0.2, generator=generator)
    return model


def test_a_new_adapter_changes_nothing_and_gets_gradients() -> None:
    plain, model = tiny_model(), tiny_model()
    names = add_lora(model, rank=2)
    assert {name.rpartition(".")[2] for name in names} == set(MODULES)
    assert torch.equal(logits(model), logits(plain))
    model(IDS, random_images(1), targets=IDS.roll(-1, 1)).loss.backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None}
    assert moved == {f"{name}.{part}" for name in names for part in ("lora_a", "lora_b")}
    assert all(layer.lora_b.grad.any() for layer in lora_layers(model).values())


@pytest.mark.parametrize("rank", [1, 4])
def test_its_numbers_are_those_of_peft(rank: int) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install nanovlm[adapt]")
    torch.manual_seed(0)
    ours, theirs = (nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 7, bias=False)) for _ in "ab")
    theirs.load_state_dict(ours.state_dict())
    add_lora(ours, rank, alpha=3.0, modules=("0", "2"))
    theirs = peft.get_peft_model(theirs, peft.LoraConfig(r=rank, lora_alpha=3.0, target_modules=["0", "2"]))
    opened(ours)
    for name, layer in lora_layers(ours).items():
        same = theirs.base_model.model.get_submodule(name)
        same.lora_A["default"].weight.data.copy_(layer.lora_a)
        same.lora_B["default"].weight.data.copy_(layer.lora_b)
    x = torch.randn(5, 12)
    assert max_difference(ours(x), theirs(x)) < 1e-6
    merge_lora(ours)
    assert max_difference(ours(x), theirs.merge_and_unload()(x)) < 1e-6


@pytest.mark.parametrize("four_bits", [False, True])
def test_merged_is_unmerged(four_bits: bool) -> None:
    model = tiny_model()
    add_lora(model, rank=2, modules=("q_proj", "down_proj", "fc1"))
    if four_bits:
        quantise_base(model)
    before = logits(opened(model))
    merge_lora(model)
    assert not lora_layers(model) and all(type(m) is nn.Linear for m in model.modules() if isinstance(m, nn.Linear))
    assert max_difference(logits(model), before) < 1e-5 * before.abs().max()
    assert model.state_dict().keys() == tiny_model().state_dict().keys()


def test_dropout_is_for_training_alone() -> None:
    layer = LoRALinear(nn.Linear(8, 8), rank=2, alpha=4.0, dropout=0.5)
    nn.init.normal_(layer.lora_b)
    x = torch.randn(4, 8)
    assert not torch.equal(layer.train()(x), layer(x)) and torch.equal(layer.eval()(x), layer(x))


def test_an_adapter_alone_is_small_and_comes_back(tmp_path) -> None:
    model = opened(add_and_return(tiny_model(num_blocks=4)))
    save_adapter(model, tmp_path)
    again = tiny_model(num_blocks=4)
    load_adapter(again, tmp_path)
    assert torch.equal(logits(again), logits(model))
    load_adapter(model, tmp_path)  # into a model that has some
    with pytest.raises(ValueError, match="lora_a"):
        load_adapter(tiny_model(num_blocks=3), tmp_path)


def add_and_return(model: VisionLanguageModel) -> VisionLanguageModel:
    add_lora(model, rank=2)
    return model


def test_eight_ranks_of_the_222m_model_are_under_three_percent() -> None:
    from nanovlm.config import VLMConfig

    with torch.device("meta"):
        model = VisionLanguageModel(VLMConfig())
    add_lora(model, rank=8)
    adapters = sum(layer.lora_a.numel() + layer.lora_b.numel() for layer in lora_layers(model).values())
    assert 0 < adapters / sum(p.numel() for p in model.parameters()) < 0.03


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"rank": 0}, "1 or more"),
        ({"rank": 2, "modules": ("query",)}, "No linear layer is called query. This model has .*q_proj"),
        ({"rank": 40}, "more than it has"),
    ],
)
def test_what_cannot_be_adapted_is_told(arguments, sentence) -> None:
    with pytest.raises(ValueError, match=sentence):
        add_lora(tiny_model(), **arguments)
    with pytest.raises(ValueError, match="no adapters to save"):
        save_adapter(tiny_model(), "nowhere")


def test_a_damaged_adapter_is_told(tmp_path) -> None:
    save_adapter(add_and_return(tiny_model()), tmp_path)
    (tmp_path / "adapter.json").write_text('{"rank": "two"}')
    with pytest.raises(ValueError, match="is no adapter's: rank, alpha, dropout, modules"):
        load_adapter(tiny_model(), tmp_path)


@pytest.mark.parametrize("four_bits", [False, True])
def test_a_run_moves_adapters_alone_and_saves_them_and_a_plain_model(four_bits, tmp_path) -> None:
    changes = {"lora_rank": 2, "lora_4bit": four_bits, "lr_projector": 0.02, "optimizer": "muon"}
    model, start = new_model(), {name: w.clone() for name, w in new_model().state_dict().items()}
    run = train(recipe(tmp_path, max_steps=4, eval_every=4, save_every=2, **changes), model)
    for name, weight in model.named_parameters():
        assert name.endswith(("lora_a", "lora_b")) or torch.equal(weight.float(), start[name]), name
    best = VisionLanguageModel.from_pretrained(run.directory / "best")
    assert type(best.decoder.blocks[0].attn.q_proj) is nn.Linear
    again = new_model()
    load_adapter(again, run.directory / "adapter")
    if four_bits:
        quantise_base(again)
    merge_lora(again)
    assert max_difference(logits(again.eval()), logits(best.eval())) < 1e-4
    assert set(read_safetensors(run.directory / "adapter" / "adapter.safetensors")) == {
        f"{name}.{part}" for name in lora_layers(model) for part in ("lora_a", "lora_b")
    }


def test_a_killed_run_with_adapters_goes_on(tmp_path) -> None:
    ends = []
    for folder, stops in (("whole", [4]), ("twice", [2, 4])):
        for steps in stops:
            config = recipe(tmp_path / folder, max_steps=steps, save_every=2, lora_rank=2, resume=steps != stops[0])
            config.min_lr_fraction, config.warmup_fraction = 1.0, 0.0
            run = train(config, new_model())
        ends.append(load_checkpoint(checkpoints(run.directory / "checkpoints")[-1])["weights"])
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_frozen_parts_stay(tmp_path) -> None:
    model, start = new_model(), new_model().state_dict()
    train(recipe(tmp_path, max_steps=2, freeze=("vision_encoder", "decoder")), model)
    moved = {
        name.partition(".")[0] for name, w in model.state_dict().items() if not torch.equal(w.float(), start[name])
    }
    assert moved == {"projector"}
    with pytest.raises(ValueError, match="nothing is left to train"):
        train(recipe(tmp_path, run_name="none", freeze=("vision_encoder", "projector", "decoder")), new_model())
    with pytest.raises(ValueError, match="set lora_rank"):
        recipe(tmp_path, lora_4bit=True)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_only_the_embeddings_of_the_chosen_tokens_move(tmp_path, optimizer: str) -> None:
    model, start = new_model(), new_model().state_dict()
    (row,) = model.tokenizer.encode(" red")
    chosen = {"trainable_tokens": (" red",), "optimizer": optimizer, "weight_decay": 0.5}
    train(recipe(tmp_path, max_steps=3, **chosen), model)
    moved = {name: w.float() != start[name] for name, w in model.named_parameters()}
    assert {name for name, where in moved.items() if where.any()} == {"decoder.token_embedding.weight"}
    assert moved["decoder.token_embedding.weight"].any(dim=1).nonzero().flatten().tolist() == [row]


def test_trainable_tokens_are_tokens_and_stand_alone(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"' color' is 2 of them: ' colo', 'r'"):
        train(recipe(tmp_path, trainable_tokens=(" color",)), new_model())
    with pytest.raises(ValueError, match="'' is none"):
        token_id(new_model(), "")
    for beside in ({"freeze": ("projector",)}, {"lora_rank": 2}, {"parallel": "fsdp"}):
        with pytest.raises(ValueError, match="trainable_tokens freezes all else"):
            recipe(tmp_path, trainable_tokens=(" colo",), **beside)


def test_the_scale_is_alpha_by_rank() -> None:
    layer = LoRALinear(nn.Linear(6, 6, bias=False), rank=3, alpha=1.5)
    nn.init.ones_(layer.lora_b)
    x = torch.randn(2, 6)
    expected = x @ layer.weight.T + 0.5 * (x @ layer.lora_a.T).sum(-1, keepdim=True)
    assert max_difference(layer(x), expected.expand(2, 6)) < 1e-6 and math.isclose(layer.scale, 0.5)
