"""One optimizer step: means over tokens, gradients in float32, and weights that NaN cannot reach."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from nanovlm.data.collators import PackingCollator
from nanovlm.device import Precision, choose_precision
from nanovlm.models.vision_language_model import IGNORE
from nanovlm.training.optimizer import Optimizers
from nanovlm.training.step import train_step
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


def test_a_batch_without_images_leaves_no_gradient_out():
    """Processes add up their gradients in one message: a weight without one would shift all that follow."""
    model = new_model()
    _, of_text = gradients(batches(items(4, with_images=False), 4), model)
    assert all(gradient is not None for gradient in of_text.values())
    assert not of_text["projector.proj.weight"].any() and of_text["decoder.norm.weight"].any()


def test_gradients_are_clipped_on_a_device_without_foreach_kernels():
    """As Apple's GPUs are; here the meta device stands for them."""
    optimizers = Optimizers(new_model(), recipe(""))
    master = torch.nn.Parameter(torch.zeros(3, device="meta"))
    master.grad = torch.zeros(3, device="meta")
    optimizers.pairs = [(master, master)]
    assert optimizers.clip(1.0, choose_precision("fp32", CPU).scaler(CPU)).device.type == "meta"


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
    with pytest.raises(FloatingPointError, match=r"the loss is .*, its gradient norm (nan|inf)"):
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
    with pytest.raises(FloatingPointError, match="gradient norm"):
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
