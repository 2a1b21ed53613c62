"""One optimizer step: means over tokens, gradients in float32, and weights that NaN cannot reach."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from nanovlm.data.collators import PackingCollator
from nanovlm.device import Precision, choose_precision
from nanovlm.models.vision_language_model import IGNORE
from nanovlm.training.loop import train_step
from nanovlm.training.optimizer import Optimizers, orthogonalise, param_groups
from tests.training.tiny_run import batches, equal, items, max_difference, new_model, recipe, step, weights

CPU = torch.device("cpu")
ITEMS = items(32)


def gradients(groups, model=None):
    """Loss and gradients that a step over `groups` works with, before they are clipped."""
    model = model or new_model()
    optimizers = Optimizers(model, recipe(""))
    optimizers.step = lambda _, **__: None
    loss = step(model, groups, optimizers, max_grad_norm=math.inf)
    return loss, {name: p.grad for name, p in model.named_parameters()}


def mean_of_means(groups):
    model = new_model()
    for batch in groups:
        (model(batch["input_ids"], batch["images"], targets=batch["targets"]).loss / len(groups)).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def test_the_batches_are_unequal():
    counts = [int((batch["targets"] != IGNORE).sum()) for batch in batches(ITEMS, 8)]
    assert max(counts) > 1.1 * min(counts)


def test_four_batches_of_eight_are_one_of_thirty_two():
    loss_4, four = gradients(batches(ITEMS, 8))
    loss_1, one = gradients(batches(ITEMS, 32))
    assert loss_4 == pytest.approx(loss_1, abs=1e-6)
    assert max_difference(four, one) < 1e-6
    # The usual mistake is far outside of that.
    assert max_difference(four, mean_of_means(batches(ITEMS, 8))) > 1e-4


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_weights_after_a_step_are_equal_too(optimizer):
    after = []
    for size in (8, 32):
        model = new_model()
        optimizers = Optimizers(model, recipe("", optimizer=optimizer, lr_backbones=1e-4, lr_projector=2e-3))
        step(model, batches(ITEMS, size), optimizers)
        after.append(weights(model))
    # Adam divides a gradient by its own size, and that of a bias of keys is rounding alone: softmax does not see it.
    without_key_bias = [{n: w for n, w in state.items() if not n.endswith("qkv_proj.bias")} for state in after]
    assert max_difference(*without_key_bias) < 1e-6
    assert max_difference(after[0], weights(new_model())) > 1e-5


def test_the_loss_is_the_mean_over_all_supervised_tokens():
    model = new_model()
    (whole,) = batches(ITEMS, 32)
    logits = model(whole["input_ids"], whole["images"]).logits
    expected = F.cross_entropy(logits.flatten(0, 1), whole["targets"].flatten(), ignore_index=IGNORE).item()
    assert gradients(batches(ITEMS, 8))[0] == pytest.approx(expected, abs=1e-5)


def test_packing_changes_neither_loss_nor_gradients():
    packed = PackingCollator(0, max(len(item["input_ids"]) for item in ITEMS))(ITEMS)
    assert len(packed["input_ids"]) < len(ITEMS) and packed["document_ids"].max() > 0
    packed_loss, of_packed = gradients([packed])
    padded_loss, of_padded = gradients(batches(ITEMS, 32))
    assert packed_loss == pytest.approx(padded_loss, abs=1e-5)
    assert max_difference(of_packed, of_padded) < 1e-5
    del packed["document_ids"]  # without boundaries one sample reads the one before
    assert max_difference(gradients([packed])[1], of_padded) > 1e-4


def test_gradient_checkpointing_changes_no_weight():
    after = []
    for on in (False, True):
        model = new_model().train()
        model.gradient_checkpointing(on)
        step(model, batches(ITEMS[:4], 4), Optimizers(model, recipe("")))
        after.append(weights(model))
    assert max_difference(*after) < 1e-7


def test_a_batch_without_pictures_leaves_no_gradient_out():
    """Processes add up their gradients in one message: a weight without one would shift all that follow."""
    model = new_model()
    _, of_text = gradients(batches(items(4, with_pictures=False), 4), model)
    assert all(gradient is not None for gradient in of_text.values())
    assert not of_text["projector.proj.weight"].any() and of_text["decoder.norm.weight"].any()


def test_gradients_are_clipped_together():
    model = new_model()
    optimizers = Optimizers(model, recipe(""))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    length = optimizers.clip(0.5, choose_precision("fp32", CPU).scaler(CPU))
    assert length.item() == pytest.approx(sum(p.numel() for p in model.parameters()) ** 0.5, rel=1e-5)
    clipped = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert clipped.norm().item() == pytest.approx(0.5, rel=1e-4)
    assert clipped.max() == clipped.min(), "one factor for all: the direction stays"


def test_gradients_are_clipped_on_a_device_without_foreach_kernels():
    """As Apple's GPUs are; here the meta device stands for them."""
    optimizers = Optimizers(new_model(), recipe(""))
    master = torch.nn.Parameter(torch.zeros(3, device="meta"))
    master.grad = torch.zeros(3, device="meta")
    optimizers.pairs = [(master, master)]
    assert optimizers.clip(1.0, choose_precision("fp32", CPU).scaler(CPU)).device.type == "meta"


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_weight_is_in_one_group_with_its_rate(optimizer):
    model = new_model()
    groups = param_groups(model, recipe("", optimizer=optimizer, lr_projector=2e-3, lr_backbones=1e-4, lr_muon=0.02))
    members = [id(p) for group in groups for p in group["params"]]
    assert len(members) == len(set(members)) and set(members) == {id(p) for p in model.parameters()}
    rate = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    block = model.decoder.blocks[0]
    matrices = (0.02, 0.01) if optimizer == "muon" else (1e-4, 0.01)
    assert rate[id(block.attn.q_proj.weight)] == rate[id(model.vision_encoder.blocks[0].mlp.fc1.weight)] == matrices
    assert rate[id(block.norm1.weight)] == rate[id(model.decoder.token_embedding.weight)] == (1e-4, 0.0)
    assert rate[id(model.projector.proj.weight)] == ((0.02, 0.01) if optimizer == "muon" else (2e-3, 0.01))
    optimizers = Optimizers(model, recipe("", optimizer=optimizer, lr_projector=2e-3, lr_backbones=1e-4))
    for scale in (0.5, 0.25):
        optimizers.set_lr(scale)
        assert all(g["lr"] == g["peak_lr"] * scale for o in optimizers.all for g in o.param_groups)


@settings(max_examples=10)
@given(st.integers(1, 3), st.integers(4, 40), st.integers(4, 40), st.integers(0, 99))
def test_orthogonalised_matrices_move_every_direction_alike(count, rows, columns, seed):
    matrices = torch.randn(count, rows, columns, generator=torch.Generator().manual_seed(seed))
    near = orthogonalise(matrices)
    assert near.shape == matrices.shape
    sizes = torch.linalg.svdvals(near)
    before = torch.linalg.svdvals(matrices / matrices.norm(dim=(1, 2), keepdim=True))
    assert sizes[before > 0.02].min() > 0.4 and sizes.max() < 1.3
    # The directions themselves stay: U and V of the matrix turn its result into a diagonal.
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    turned = u.mT @ near @ v.mT
    assert (turned - torch.diag_embed(turned.diagonal(dim1=1, dim2=2))).abs().max() < 1e-2
    assert torch.allclose(orthogonalise(1e-4 * matrices), near, atol=2e-2), "the size of a gradient does not matter"


def test_small_steps_add_up_in_bfloat16():
    """A step of 1e-5 is below the resolution of a bfloat16 weight of 1: without float32 copies nothing would move."""
    model = new_model().to(torch.bfloat16)
    optimizers = Optimizers(model, recipe("", optimizer="adamw", lr_backbones=1e-5, lr_projector=1e-5, weight_decay=0))
    assert all(master.dtype == torch.float32 for master in optimizers.masters)
    before, in_bf16 = optimizers.weights(model)["decoder.norm.weight"].clone(), weights(model)["decoder.norm.weight"]
    group = batches(ITEMS[:4], 4)
    for _ in range(5):
        step(model, group, optimizers)
    after = optimizers.weights(model)["decoder.norm.weight"]
    assert torch.equal(model.decoder.norm.weight, in_bf16), "too small for bfloat16 …"
    assert 2e-5 < (after - before).abs().max() <= 6e-5, "… but remembered"
    assert all(torch.equal(p, master.bfloat16()) for p, master in optimizers.pairs)


def test_bfloat16_gradients_are_added_up_in_float32():
    model = new_model().to(torch.bfloat16)
    optimizers = Optimizers(model, recipe(""))
    total = {id(p): torch.zeros(p.shape) for p in model.parameters()}
    for batch in batches(ITEMS[:8], 2):
        model(batch["input_ids"], batch["images"].bfloat16(), targets=batch["targets"]).loss.backward()
        for p in model.parameters():
            total[id(p)] += p.grad
        optimizers.collect_gradients()
    assert all(torch.equal(master.grad, total[id(p)]) and p.grad is None for p, master in optimizers.pairs)
    assert any(not torch.equal(g, g.bfloat16().float()) for g in total.values())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["picture", "gradient"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_and_inf_never_reach_the_weights(bad, where, dtype):
    model = new_model().to(dtype)
    optimizers = Optimizers(model, recipe(""))
    step(model, batches(ITEMS[:4], 4), optimizers)
    before = {name: w.clone() for name, w in optimizers.weights(model).items()}
    (batch,) = batches(ITEMS[:4], 4)
    if where == "picture":
        batch["images"][0, 0, 0, 0] = bad
    else:
        hook = model.vision_encoder.blocks[0].ln1.weight.register_hook(lambda g: g * bad)
    with pytest.raises(FloatingPointError, match=r"the loss is .*, the length of its gradient (nan|inf)"):
        step(model, [batch], optimizers)
    assert equal(optimizers.weights(model), before)
    assert all(p.grad is None and master.grad is None for p, master in optimizers.pairs), "nothing is left behind"
    if where == "gradient":
        hook.remove()
    step(model, batches(ITEMS[:4], 4), optimizers)
    assert all(w.isfinite().all() for w in optimizers.weights(model).values())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_float16_leaves_an_overflowed_step_out_and_scales_less(bad):
    """The scaler works on a CPU as on a GPU; the overflow of one weight's gradient must hold back all optimizers."""
    model = new_model()
    optimizers = Optimizers(model, recipe("", optimizer="muon"))
    precision = Precision("fp16", "a test")
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    group = batches(ITEMS[:4], 4)

    def one_step():
        return train_step(model, group, optimizers, scaler, precision, CPU, 1.0)

    one_step()
    before = weights(model)
    hook = model.decoder.blocks[0].attn.q_proj.weight.register_hook(lambda g: g * bad)  # one of Muon's
    assert math.isfinite(one_step())
    assert scaler.get_scale() == 2.0
    assert equal(weights(model), before), "AdamW waits as well"
    with pytest.raises(FloatingPointError, match="length of its gradient"):
        one_step()  # without any scaling it is not the scale's fault
    assert equal(weights(model), before)
    hook.remove()
    one_step()
    assert not equal(weights(model), before) and all(w.isfinite().all() for w in weights(model).values())


def test_the_scale_cancels_out():
    after = []
    for scale in (1.0, 1024.0):
        model = new_model()
        optimizers = Optimizers(model, recipe("", lr_backbones=1e-4))
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        train_step(model, batches(ITEMS[:4], 4), optimizers, scaler, Precision("fp16", "a test"), CPU, 0.01)
        after.append(weights(model))
    assert max_difference(*after) < 1e-6


def test_the_choice_of_precision_has_a_reason(monkeypatch):
    assert choose_precision("fp32", CPU).weights == torch.float32
    bf16 = choose_precision("bf16", CPU)
    assert bf16.weights == torch.bfloat16 and bf16.autocast is None
    with pytest.raises(ValueError, match=r"fp16 training needs a CUDA GPU; this is cpu\. Use --precision auto"):
        choose_precision("fp16", CPU)
    for multiplies, name in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr("nanovlm.device._cpu_multiplies_bf16", lambda answer=multiplies: answer)
        chosen = choose_precision("auto", CPU)
        assert chosen.name == name and len(chosen.reason) > 10


@pytest.mark.parametrize(("capability", "name"), [((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_the_choice_on_a_gpu(monkeypatch, capability, name):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    device = torch.device("cuda")
    chosen = choose_precision("auto", device)
    assert chosen.name == name and "Tesla T4" in chosen.reason
    assert (chosen.autocast == torch.float16) == (name == "fp16"), "float32 weights under autocast"
