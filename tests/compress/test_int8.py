"""Whole numbers: how far off a row may be, torchao's values, exact products, what training prepared for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nanovlm.compress.int8 import Int8Linear, integer_product, quantise_linear, quantise_rows, size_in_bytes
from nanovlm.compress.qat import fake_quant, finish, prepare_qat
from tests.tiny import max_difference, random_images, tiny_model

IDS = torch.tensor([[4, 4, 4, 4, 7, 8, 9]])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([8, 4]), st.floats(1e-3, 1e3))
def test_no_entry_is_off_by_more_than_half_a_scale(seed: int, bits: int, size: float) -> None:
    x = torch.randn(3, 7, generator=torch.Generator().manual_seed(seed)) * size
    x[1] = 0
    numbers, scales = quantise_rows(x, bits)
    assert numbers.abs().max() == 2 ** (bits - 1) - 1
    assert ((numbers * scales - x).abs() <= scales * 0.5001).all()
    assert not numbers[1].any()


def test_an_outlier_spoils_its_own_row_only() -> None:
    x = torch.tensor([[1000.0, 1.0], [0.5, 1.0]])
    numbers, scales = quantise_rows(x)
    assert numbers[0, 1] == 0
    assert max_difference((numbers * scales)[1], x[1]) < 0.01


def test_the_values_are_within_one_step_of_torchao() -> None:
    torchao = pytest.importorskip(
        "torchao.quantization", reason="torchao is not installed: pip install nanovlm[compress]"
    )
    torch.manual_seed(0)
    layer = nn.Linear(32, 16, bias=False)
    ours = quantise_rows(layer.weight)[0]
    model = nn.Sequential(layer)
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
    theirs = model[0].weight
    theirs = getattr(theirs, "qdata", None) if hasattr(theirs, "qdata") else theirs.tensor_impl.get_plain()[0]
    # torchao 0.18 spreads a row over 127.5 steps where this takes 127, so a number may round to its neighbour.
    assert (ours.int() - theirs.int()).abs().max() <= 1


@pytest.mark.parametrize("dim", [1, 40])
def test_the_integer_product_is_exact(dim: int) -> None:
    a, b = (torch.randint(-127, 128, (rows, dim), dtype=torch.int8) for rows in (31, 87))
    assert torch.equal(integer_product(a, b), (a.long() @ b.long().T).float())


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_model_in_int8_answers_nearly_the_same(dynamic: bool) -> None:
    plain, model = tiny_model(), tiny_model()
    names = quantise_linear(model, dynamic)
    assert names and all(isinstance(model.get_submodule(name), Int8Linear) for name in names)
    assert "decoder.head" not in names  # it is the embedding
    with torch.no_grad():
        wanted, got = (m(IDS, random_images(1)).logits for m in (plain, model))
    assert 0 < (got - wanted).norm() / wanted.norm() < 0.1
    assert size_in_bytes(model) < 0.6 * size_in_bytes(plain)


def test_four_bits_count_as_four() -> None:
    layer = nn.Linear(64, 64, bias=False)
    assert size_in_bytes(Int8Linear(layer)) - size_in_bytes(Int8Linear(layer, bits=4)) == 64 * 64 // 2


def test_groups_have_scales_of_their_own() -> None:
    layer = nn.Linear(8, 3)
    with torch.no_grad():
        layer.weight[:, 0] = 1000.0
    whole, grouped = (Int8Linear(layer, bits=4, group=group) for group in (None, 4))
    assert whole.scales.shape == (3, 1) and grouped.scales.shape == (3, 2)
    off = [max_difference(x.weight[:, 4:], layer.weight[:, 4:]) for x in (whole, grouped)]
    assert off[1] < 0.2 * off[0]
    with pytest.raises(ValueError, match="do not divide"):
        Int8Linear(layer, group=3)
    with pytest.raises(ValueError, match="one scale a row"):
        Int8Linear(layer, dynamic=True, group=4)


def test_the_gradient_passes_straight_through() -> None:
    weight = torch.randn(4, 6, requires_grad=True)
    towards = torch.randn(4, 6)
    rounded = fake_quant(weight, 4)
    assert max_difference(rounded, weight) > 0.01
    (rounded * towards).sum().backward()
    assert torch.equal(weight.grad, towards)


@pytest.mark.parametrize(("bits", "group"), [(8, None), (4, 8)])
def test_what_training_saw_is_what_comes_out(bits: int, group: int | None) -> None:
    model = tiny_model()
    keys = model.state_dict().keys()
    names = prepare_qat(model, bits, group)
    assert model.state_dict().keys() == keys
    model(IDS, random_images(1), targets=IDS.roll(-1, 1)).loss.backward()
    assert all(model.get_submodule(name).weight.grad.any() for name in names)
    with torch.no_grad():
        before = model(IDS, random_images(1)).logits
        finish(model)
        assert all(isinstance(model.get_submodule(name), Int8Linear) for name in names)
        assert max_difference(model(IDS, random_images(1)).logits, before) < 1e-5
