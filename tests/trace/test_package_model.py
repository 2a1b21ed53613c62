"""The list that every tutorial prints by hand, from the untouched 222M model, on the meta device."""

from dataclasses import replace

import pytest
import torch

from nanovlm.config import VLMConfig, pocket_vlm
from nanovlm.models.vision_language_model import VisionLanguageModel
from nanovlm.trace import trace, tracing

LINES = """\
image                      [12, 3, 224, 224]
after vision_encoder       [12, 196, 768]
before pixel_shuffle       [12, 196, 768]
after pixel_shuffle        [12, 49, 3072]
after proj                 [12, 49, 576]
token embeddings           [12, 79, 576]
combined                   [12, 128, 576]
"""


@pytest.fixture(scope="module")
def model():
    with torch.device("meta"):
        return VisionLanguageModel(VLMConfig(image_token_id=None)).eval()


@pytest.fixture(scope="module")
def inputs():
    return torch.randint(0, 49152, (12, 79)), torch.zeros(12, 3, 224, 224, device="meta")


@pytest.fixture(scope="module")
def calls():
    return []


@pytest.fixture(scope="module")
def traced(model, inputs, calls):
    handle = model.vision_encoder.register_forward_hook(lambda module, args, out: calls.append(out.device.type))
    traced = trace(model, *inputs, device="meta")
    traced.stages()
    handle.remove()
    return traced


def shallow(**changes):
    """As wide as the 222M model, with two blocks: names of axes do not depend on how many there are."""
    whole = VLMConfig(**changes)
    vision, language = replace(whole.vision, num_blocks=2), replace(whole.language, num_blocks=2)
    with torch.device("meta"):
        return VisionLanguageModel(replace(whole, vision=vision, language=language)).eval()


def test_the_list_comes_out_exactly(traced):
    assert str(traced.stages()).startswith(LINES)


def test_the_model_runs_once_and_computes_nothing(traced, calls):
    assert calls == ["meta"]


def test_the_folded_tree_is_small(traced):
    assert len(str(traced).splitlines()) <= 120
    assert len(traced._repr_html_()) <= 50_000
    assert "blocks.0: ViTBlock ×12, first shown" in str(traced)
    assert "blocks.0: DecoderBlock ×30, first shown" in str(traced)


def test_symbolic_dims(inputs):
    t = trace(shallow(image_token_id=None), *inputs, device="meta", dims={"B": 12, "T": 79})
    stages = {stage.label: str(stage.info) for stage in t.stages()}
    assert t.remark is None
    assert stages["combined"] == "[B, 49+T, 576]"
    assert stages["image"] == "[B, 3, 224, 224]"
    assert stages["token embeddings"] == "[B, T, 576]"
    assert str(t["vision_encoder.blocks.0.attn.qkv_proj"].out) == "[B, 196, 2304]"
    sdpa = next(row for row in t.find("scaled_dot_product_attention") if row.path.startswith("vision_encoder"))
    assert sdpa.out.dims == ("B", "12", "196", "64")  # twelve heads are no batch of twelve


def test_parameters_and_flops_match_the_published_figures(traced, model):
    assert traced.num_params == sum(p.numel() for p in model.parameters()) == 222_081_600
    per_sample = traced.flops / 12
    assert 70.0e9 < per_sample < 71.5e9
    assert traced["vision_encoder"].flops / 12 == pytest.approx(34.94e9, rel=2e-3)
    assert traced["projector"].flops / 12 == pytest.approx(0.17e9, rel=3e-2)
    assert traced["decoder.head"].flops / 12 == pytest.approx(7.25e9, rel=2e-3)


def test_item_access_and_expectations(traced):
    assert traced["projector.proj"].out.shape == (12, 49, 576)
    assert traced["projector.proj"].params == 3072 * 576
    traced.expect({"vision_encoder": "B 196 768", "cat": "B 128 576", "decoder.token_embedding": "B T 576"})


def test_placeholders_are_combined_too():
    ids = torch.randint(4, 49152, (2, 60))
    ids[:, 2:51] = 3
    images = torch.zeros(2, 3, 224, 224)
    t = trace(shallow(image_token_id=3), ids, images, device="meta", dims={"B": 2, "T": 60})
    stages = {stage.label: str(stage.info) for stage in t.stages()}
    assert stages["combined"] == "[B, T, 576]", t.remark


def test_a_training_step_has_rows_for_backward_and_the_optimizer():
    config = pocket_vlm()
    model = VisionLanguageModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    size = config.vision.image_size
    ids = torch.randint(6, config.language.vocab_size, (2, config.num_image_tokens + 8))
    if config.image_token_id is not None:
        ids[:, : config.num_image_tokens] = config.image_token_id
    images = torch.rand(2, 3, size, size)
    with tracing(model) as t:
        loss = model(ids, images, targets=ids).loss
        loss.backward()
        optimizer.step()
    kinds = [row.kind for row in t.root.children]
    assert kinds == ["module", "backward", "optimizer"]
    assert t["AdamW.step"].kind == "optimizer"
    assert model.projector.proj.weight.grad is not None
