"""Groups, Muon and master weights."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from nanovlm.config import TrainConfig
from nanovlm.models.vision_language_model import VisionLanguageModel
from nanovlm.training.optimizer import Muon, Optimizers, orthogonalise, param_groups
from tests.tiny import ONE_IMAGE, ids_of, max_difference, random_images, tiny_model

NO_SCALER = torch.amp.GradScaler("cpu", enabled=False)
RATES = {"lr_projector": 3e-3, "lr_backbones": 1e-3, "lr_muon": 0.01, "weight_decay": 0.1}


def config(**changes: object) -> TrainConfig:
    return TrainConfig(**RATES | changes)


def learn(model: VisionLanguageModel, optimizers: Optimizers, steps: int = 1) -> None:
    ids = torch.tensor([ids_of([ONE_IMAGE, 7, 8, 9])])
    images = random_images(1).to(model.projector.proj.weight.dtype)
    for _ in range(steps):
        model(ids, images, targets=ids.roll(-1, 1)).loss.backward()
        optimizers.collect_gradients()
        optimizers.step(NO_SCALER)


# -- groups -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_every_parameter_is_in_one_group(optimizer: str, tied: bool) -> None:
    model = tiny_model(tie_weights=tied)
    members = [id(p) for group in param_groups(model, config(optimizer=optimizer)) for p in group["params"]]
    assert len(members) == len(set(members))
    assert set(members) == {id(p) for p in model.parameters()}


def group_of(model: nn.Module, **changes: object) -> dict[str, dict]:
    """Parameter name -> its group."""
    groups = param_groups(model, config(**changes))
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: group for group in groups for p in group["params"]}


def test_rates_and_decay_by_what_a_parameter_is() -> None:
    found = group_of(tiny_model(), optimizer="adamw")
    assert found["projector.proj.weight"]["lr"] == 3e-3
    assert {group["lr"] for name, group in found.items() if not name.startswith("projector.")} == {1e-3}
    undecayed = {name for name, group in found.items() if group["weight_decay"] == 0}
    assert "decoder.token_embedding.weight" in undecayed and "vision_encoder.blocks.0.ln1.bias" in undecayed
    assert all(group["weight_decay"] == 0.1 for name, group in found.items() if name.endswith("proj.weight"))


@pytest.mark.parametrize("part", [None, "decoder", "vision_encoder"])
def test_muon_takes_the_hidden_matrices_and_nothing_else(part: str | None) -> None:
    model = tiny_model(tie_weights=False)
    found = group_of(model if part is None else model.get_submodule(part), optimizer="muon")
    for name, group in found.items():
        hidden = name.endswith(("proj.weight", "fc1.weight", "fc2.weight"))
        assert (group["name"] == "muon") is hidden, name
        assert group["lr"] == (0.01 if hidden else 1e-3)


def test_frozen_parameters_stay_out() -> None:
    model = tiny_model()
    model.vision_encoder.requires_grad_(False)
    assert not any(name.startswith("vision_encoder") for name in group_of(model))


# -- Muon -------------------------------------------------------------------------------------------------------------


@given(rows=st.integers(1, 24), columns=st.integers(1, 24), scale=st.sampled_from([1e-4, 1.0, 1e4]))
def test_orthogonalised_matrices_turn_without_stretching(rows: int, columns: int, scale: float) -> None:
    matrices = torch.randn(3, rows, columns) * scale
    u, singular, vh = torch.linalg.svd(matrices, full_matrices=False)
    result = orthogonalise(matrices)
    turned = u.mT @ result @ vh.mT  # diagonal: the directions stay, only their sizes change
    sizes = turned.diagonal(dim1=1, dim2=2)
    assert max_difference(turned, torch.diag_embed(sizes)) < 1e-2
    large = singular > 0.05 * singular[:, :1]  # five steps do not lift the smallest ones all the way
    assert ((sizes[large] > 0.5) & (sizes[large] < 1.3)).all()


def test_orthogonalising_nothing_gives_nothing() -> None:
    assert torch.equal(orthogonalise(torch.zeros(1, 4, 3)), torch.zeros(1, 4, 3))


def test_matrices_of_one_shape_are_updated_as_if_alone() -> None:
    weights = [torch.randn(6, 4), torch.randn(6, 4), torch.randn(3, 5)]
    gradients = [[torch.randn_like(w) for w in weights] for _ in range(3)]

    def run(chosen: list[int]) -> list[Tensor]:
        params = [nn.Parameter(weights[i].clone()) for i in chosen]
        optimizer = Muon(params, lr=0.1, weight_decay=0.2)
        for step in gradients:
            for p, i in zip(params, chosen, strict=True):
                p.grad = step[i].clone()
            optimizer.step()
        return [p.detach() for p in params]

    together = run([0, 1, 2])
    assert max(max_difference(run([i])[0], together[i]) for i in range(3)) < 1e-5


def test_one_step_of_muon_by_hand() -> None:
    weight, gradient = torch.randn(8, 2), torch.randn(8, 2)
    p = nn.Parameter(weight.clone())
    p.grad = gradient.clone()
    Muon([p], lr=0.1, weight_decay=0.5).step()
    # The first momentum points along the gradient; 8 rows to 2 columns double the step.
    expected = weight * (1 - 0.1 * 0.5) - 0.1 * 2 * orthogonalise(gradient[None])[0]
    assert max_difference(p.detach(), expected) < 1e-5


def test_muon_finds_a_linear_map() -> None:
    wanted, layer = torch.randn(5, 7), nn.Linear(7, 5, bias=False)
    optimizer = Muon(layer.parameters(), lr=0.1)
    for step in range(200):
        x = torch.randn(64, 7)
        loss = (layer(x) - x @ wanted.T).square().mean()
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 200)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 1e-3


# -- both behind one step ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_step_moves_every_weight_and_learns(optimizer: str, dtype: torch.dtype) -> None:
    model = tiny_model().to(dtype)
    before, ids = copy.deepcopy(model.state_dict()), torch.tensor([ids_of([ONE_IMAGE, 7, 8, 9])])
    images = random_images(1).to(dtype)
    first = model(ids, images, targets=ids.roll(-1, 1)).loss.item()
    optimizers = Optimizers(model, config(optimizer=optimizer))
    learn(model, optimizers, steps=20)
    # Embeddings move only in rows that the batch holds, so: somewhere.
    still = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    assert still == []
    assert model(ids, images, targets=ids.roll(-1, 1)).loss.item() < 0.7 * first
    assert all(p.dtype == dtype and p.grad is None for p in model.parameters())


def test_bfloat16_weights_accumulate_steps_too_small_for_them() -> None:
    """Near 1 neighbouring bfloat16 numbers are 0.008 apart: a step of 0.0001 alone changes nothing."""
    layer = nn.Linear(4, 1, bias=False, dtype=torch.bfloat16)
    nn.init.ones_(layer.weight)
    optimizers = Optimizers(layer, config(lr_backbones=1e-4, weight_decay=0.0))
    optimizers.set_lr(1.0)
    for step in range(200):
        layer(torch.ones(1, 4, dtype=torch.bfloat16)).sum().backward()
        optimizers.collect_gradients()
        optimizers.step(NO_SCALER)
        if step == 0:
            assert (layer.weight == 1).all(), "bfloat16 cannot show one step"
    assert layer.weight.float().flatten().tolist() == pytest.approx([0.98] * 4, abs=0.004)
    assert optimizers.weights(layer)["weight"].dtype == torch.float32
    assert optimizers.weights(layer)["weight"].flatten().tolist() == pytest.approx([0.98] * 4, abs=1e-4)


def test_gradients_are_added_up_in_float32() -> None:
    """256 + 1 is 256 in bfloat16."""
    layer = nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
    optimizers = Optimizers(layer, config())
    for x in (256.0, 1.0, 1.0, 1.0):
        layer(torch.tensor([[x]], dtype=torch.bfloat16)).sum().backward()
        optimizers.collect_gradients()
    assert optimizers.masters[0].grad.item() == 259


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_going_on_from_a_saved_state_is_bitwise_the_same(optimizer: str, dtype: torch.dtype) -> None:
    model = tiny_model().to(dtype)
    optimizers = Optimizers(model, config(optimizer=optimizer))
    optimizers.set_lr(0.5)
    learn(model, optimizers, steps=3)
    weights, state = copy.deepcopy(optimizers.weights(model)), copy.deepcopy(optimizers.state_dict())
    learn(model, optimizers, steps=3)

    other = tiny_model(seed=9).to(dtype)
    resumed = Optimizers(other, config(optimizer=optimizer))
    resumed.load_weights(other, weights)
    resumed.load_state_dict(state)
    resumed.set_lr(0.5)
    learn(other, resumed, steps=3)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(p, q) for p, q in zip(optimizers.masters, resumed.masters, strict=True))


def test_the_state_of_another_optimizer_is_refused() -> None:
    state = Optimizers(tiny_model(), config(optimizer="muon")).state_dict()
    with pytest.raises(ValueError, match="belong to another optimizer or model"):
        Optimizers(tiny_model(), config(optimizer="adamw")).load_state_dict(state)


def test_clipping_shortens_all_gradients_together() -> None:
    model = tiny_model()
    optimizers = Optimizers(model, config(optimizer="muon"))
    ids = torch.tensor([[7, 8, 9]])
    model(ids, targets=ids.roll(-1, 1)).loss.backward()
    before = {id(p): p.grad.clone() for p in optimizers.masters if p.grad is not None}
    optimizers.clip(0.1, NO_SCALER)
    after = torch.cat([p.grad.flatten() for p in optimizers.masters if p.grad is not None])
    assert after.norm().item() == pytest.approx(0.1, rel=1e-3)
    whole = torch.cat([gradient.flatten() for gradient in before.values()])
    assert max_difference(after, whole * 0.1 / whole.norm()) < 1e-5, "one factor for all"


def test_set_lr_scales_each_groups_own_peak() -> None:
    optimizers = Optimizers(tiny_model(), config(optimizer="muon"))
    for scale in (0.5, 0.1, 1.0):
        optimizers.set_lr(scale)
        rates = {group["name"]: group["lr"] for o in optimizers.all for group in o.param_groups}
        assert rates["muon"] == pytest.approx(0.01 * scale)
        assert rates["backbones, not decayed"] == pytest.approx(1e-3 * scale)
