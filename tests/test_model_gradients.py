"""The training side of the forward pass: the loss, its gradients, and dtypes that could spoil them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nanovlm.models.attention import attend
from nanovlm.models.vision_language_model import IGNORE, VisionLanguageModel
from tests.tiny import FIRST_WORD, ONE_IMAGE, VOCAB_SIZE, ids_of, max_difference, random_images, tiny_model


def batch_for(model: VisionLanguageModel) -> dict[str, Tensor]:
    """Two padded rows, one picture each, half of the words supervised."""
    if model.config.image_token_id is None:
        ids = torch.randint(FIRST_WORD, VOCAB_SIZE, (2, 10))
    else:
        ids = torch.tensor([ids_of([ONE_IMAGE, *range(7, 13)]), ids_of([8, 9, ONE_IMAGE, 10, 11, 12, 13])])
    real = torch.ones_like(ids)
    real[1, -3:] = 0
    targets = torch.randint(FIRST_WORD, VOCAB_SIZE, ids.shape)
    targets[:, :5] = IGNORE
    targets[real == 0] = IGNORE
    return {"input_ids": ids, "images": random_images(2), "attention_mask": real, "targets": targets}


def gradients(model: VisionLanguageModel, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    model(**batch).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("image_token_id", [4, None], ids=["placeholders", "in front"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_every_parameter_receives_a_gradient(image_token_id: int | None, tied: bool) -> None:
    model = tiny_model(image_token_id, tie_weights=tied)
    received = gradients(model, batch_for(model))
    assert len(received) == len(list(model.parameters()))
    assert [name for name, gradient in received.items() if not gradient.abs().sum() > 0] == []
    # Stacked q, k and v: each of the three, not only the sum. (Softmax ignores a bias that all keys share.)
    for name, gradient in received.items():
        if name.endswith("qkv_proj.weight"):
            assert all(part.abs().sum() > 0 for part in gradient.chunk(3))


@pytest.mark.parametrize("image_token_id", [4, None], ids=["placeholders", "in front"])
def test_the_head_on_supervised_positions_gives_the_loss_of_the_whole_sequence(image_token_id: int | None) -> None:
    model = tiny_model(image_token_id)
    batch = batch_for(model)
    output = model(**batch)
    targets = batch.pop("targets")
    every = model(**batch).logits[:, -targets.shape[1] :]  # what stands in front has no targets
    expected = F.cross_entropy(every.flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
    assert output.logits.shape == ((targets != IGNORE).sum(), VOCAB_SIZE)
    assert max_difference(output.logits, every[targets != IGNORE]) < 1e-5
    assert output.loss.item() == pytest.approx(expected.item(), abs=1e-5)


def test_hidden_states_come_on_request_only(model: VisionLanguageModel) -> None:
    batch = batch_for(model)
    assert model(**batch).hidden_states is None
    states = model(**batch, output_hidden_states=True).hidden_states
    assert len(states) == model.config.language.num_blocks + 1
    assert {tuple(state.shape) for state in states} == {(2, 10, 32)}
    del batch["targets"]
    output = model(**batch, output_hidden_states=True)
    assert max_difference(model.decoder.head(output.hidden_states[-1]), output.logits) < 1e-6


def test_gradient_checkpointing_changes_no_gradient_but_recomputes() -> None:
    model = tiny_model().train()
    batch, runs = batch_for(model), []
    for part in (model.vision_encoder, model.decoder):
        part.blocks[0].mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    plain, once = gradients(model, batch), len(runs)
    model.gradient_checkpointing()
    checkpointed = gradients(model, batch)
    assert len(runs) - once == 2 * once == 4
    assert max(max_difference(plain[name], checkpointed[name]) for name in plain) < 1e-6
    model.gradient_checkpointing(False)
    runs.clear()
    gradients(model, batch)
    assert len(runs) == once


def test_generation_in_training_mode_with_checkpointing_still_uses_the_cache() -> None:
    model = tiny_model().train()
    ids = torch.tensor([[7, 8, 9]])
    expected = model.generate(ids, max_new_tokens=8)
    model.gradient_checkpointing()
    assert model.generate(ids, max_new_tokens=8).equal(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("packed", [False, True], ids=["mask", "documents"])
def test_a_row_of_nothing_but_padding_makes_no_nan(dtype: torch.dtype, packed: bool) -> None:
    model = tiny_model().to(dtype)
    ids = torch.randint(FIRST_WORD, VOCAB_SIZE, (2, 6))
    real = torch.tensor([[0, 0, 0, 0, 0, 0], [0, 0, 1, 1, 1, 0]])
    targets = torch.where(real.bool(), ids, IGNORE)
    hiding = {"document_ids": real - 1} if packed else {"attention_mask": real}
    with torch.no_grad():  # other attention code than with gradients
        assert model(ids, **hiding).logits.isfinite().all()
    loss = model(ids, targets=targets, **hiding).loss
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.decoder.parameters())


def test_bfloat16_keeps_its_type_and_stays_near_float32() -> None:
    model = tiny_model()
    batch = batch_for(model)
    expected = model(**batch)
    model.to(torch.bfloat16)
    output = model(**batch | {"images": batch["images"].bfloat16()})
    assert output.logits.dtype == torch.bfloat16
    assert output.loss.dtype == torch.float32, "a mean of thousands of tokens needs float32"
    assert output.loss.item() == pytest.approx(expected.loss.item(), rel=0.05)


@pytest.mark.parametrize("hide", ["nothing", "the future", "by mask", "by one row of a mask"])
def test_attention_for_training_in_bfloat16_is_the_same_attention(hide: str) -> None:
    """It is computed in other steps; float32 takes the fused ones. 6 query heads share 2 key/value heads."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 6, 7, 8, generator=generator)
    k, v = torch.randn(2, 2, 2, 7, 8, generator=generator)
    mask = (torch.rand(2, 1, 7, 7, generator=generator) < 0.5) | torch.eye(7, dtype=torch.bool)
    masks = {"by mask": mask, "by one row of a mask": mask[:, :, :1]}  # one row: the same for all queries
    options = {"mask": masks.get(hide), "is_causal": hide == "the future"}
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        inputs = [x.clone().to(dtype).requires_grad_() for x in (q, k, v)]
        output = attend(*inputs, **options)
        output.float().square().sum().backward()
        results.append([output.detach().float(), *(x.grad.float() for x in inputs)])
    for expected, got in zip(*results, strict=True):
        assert max_difference(got, expected) < 0.03 * expected.abs().max()


def test_bfloat16_rounds_no_position() -> None:
    """It has eight bits of mantissa: rounded positions repeat after 256, rounded frequencies drift apart."""
    positions = torch.arange(4000, 4004)[None]
    model = tiny_model()
    expected = torch.stack(model.decoder.rotary_embedding(positions))
    model.to(torch.bfloat16)
    assert max_difference(torch.stack(model.decoder.rotary_embedding(positions)), expected) == 0
