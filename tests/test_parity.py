"""The three parts and the whole model give what transformers gives for the same weights: to 1e-5 in float32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from nanovlm.config import ProjectorConfig, VLMConfig
from nanovlm.files import load_strictly
from nanovlm.models.language_model import KVCache, LanguageModel
from nanovlm.models.vision_language_model import VisionLanguageModel
from nanovlm.models.vision_transformer import ViT
from nanovlm.weights.backbones import llama_config, llama_tensors, siglip_config, siglip_tensors
from tests.tiny import loud, max_difference

TOLERANCE = 1e-5
VISION = {
    "small": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "patch_size": 8,
    },
    "larger": {
        "hidden_size": 60,
        "intermediate_size": 100,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "patch_size": 5,
    },
}
TEXT = {
    "small, tied": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    },
    "larger, untied": {
        "hidden_size": 54,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "tie_word_embeddings": False,
        "rms_norm_eps": 1e-3,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
    },
}


def siglip(sizes: dict, image_size: int) -> SiglipVisionModel:
    return loud(SiglipVisionModel(SiglipVisionConfig(**sizes, image_size=image_size)))


def our_vit(theirs: SiglipVisionModel) -> ViT:
    config = siglip_config(theirs.config.to_dict())
    ours = ViT(config)
    state = {n: t for n, t in theirs.state_dict().items() if "head." not in n}
    prefix = "vision_model." if any(name.startswith("vision_model.") for name in state) else ""
    load_strictly(ours, siglip_tensors(state, config.num_blocks, prefix), "transformers")
    return ours


def llama(sizes: dict) -> LlamaForCausalLM:
    return loud(LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=70, max_position_embeddings=64)))


def our_decoder(theirs: LlamaForCausalLM) -> LanguageModel:
    config = llama_config(theirs.config.to_dict())
    ours = LanguageModel(config)
    load_strictly(ours, llama_tensors(theirs.state_dict(), config), "transformers")
    return ours


def our_logits(model: LanguageModel, ids: Tensor, mask: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
    return model.head(model(model.token_embedding(ids), mask, cache=cache))


@pytest.fixture(params=TEXT)
def decoders(request: pytest.FixtureRequest) -> tuple[LlamaForCausalLM, LanguageModel]:
    theirs = llama(TEXT[request.param])
    return theirs, our_decoder(theirs)


@pytest.mark.parametrize("sizes", VISION)
@torch.no_grad()
def test_vit_is_siglip(sizes: str) -> None:
    theirs = siglip(VISION[sizes], image_size=40)
    images = torch.randn(3, 3, 40, 40)
    expected = theirs(images).last_hidden_state
    assert expected.std() > 0.5, "the weights are too quiet for the comparison to mean anything"
    assert max_difference(our_vit(theirs)(images), expected) < TOLERANCE


@torch.no_grad()
def test_decoder_is_llama(decoders: tuple[LlamaForCausalLM, LanguageModel]) -> None:
    theirs, ours = decoders
    ids = torch.randint(0, 70, (3, 20))
    expected = theirs(ids).logits
    assert expected.std() > 0.5
    assert max_difference(our_logits(ours, ids), expected) < TOLERANCE


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_decoder_is_llama_with_padding(decoders: tuple[LlamaForCausalLM, LanguageModel], side: str) -> None:
    theirs, ours = decoders
    ids, real = torch.randint(0, 70, (4, 16)), torch.ones(4, 16, dtype=torch.long)
    for row, padding in enumerate((0, 1, 7, 15)):
        real[row, :padding] = 0
    real = real if side == "left" else real.flip(1)
    # transformers takes positions from the caller; `generate` counts real tokens, as we always do.
    positions = (real.cumsum(1) - 1).clamp(min=0)
    expected = theirs(ids, attention_mask=real, position_ids=positions).logits
    assert max_difference(our_logits(ours, ids, real)[real.bool()], expected[real.bool()]) < TOLERANCE


@torch.no_grad()
def test_decoder_with_cache_is_llama_with_its_cache(decoders: tuple[LlamaForCausalLM, LanguageModel]) -> None:
    theirs, ours = decoders
    ids, real = torch.randint(0, 70, (3, 12)), torch.ones(3, 12, dtype=torch.long)
    real[1, :3], real[2, :5] = 0, 0
    positions = (real.cumsum(1) - 1).clamp(min=0)
    cache, their_cache = KVCache(ours.config, 3, 12, like=ours.token_embedding.weight), None
    for start, end in ((0, 7), (7, 8), (8, 9), (9, 12)):  # a prompt, two tokens, a chunk
        output = theirs(
            ids[:, start:end],
            attention_mask=real[:, :end],
            position_ids=positions[:, start:end],
            past_key_values=their_cache,
            use_cache=True,
        )
        their_cache = output.past_key_values
        logits = our_logits(ours, ids[:, start:end], real[:, start:end], cache)
        here = real[:, start:end].bool()
        assert max_difference(logits[here], output.logits[here]) < TOLERANCE
    assert cache.length == their_cache.get_seq_length() == 12


@torch.no_grad()
def test_hidden_states_are_those_of_llama(decoders: tuple[LlamaForCausalLM, LanguageModel]) -> None:
    theirs, ours = decoders
    ids = torch.randint(0, 70, (2, 9))
    collected: list[Tensor] = []
    ours(ours.token_embedding(ids), hidden_states=collected)
    expected = theirs(ids, output_hidden_states=True).hidden_states
    assert len(collected) == len(expected)
    assert max(map(max_difference, collected, expected)) < TOLERANCE


def smolvlm(vision: dict, text: dict, image_size: int, scale_factor: int) -> SmolVLMForConditionalGeneration:
    config = SmolVLMConfig(
        vision_config={**vision, "image_size": image_size},
        text_config={"model_type": "llama", **text, "vocab_size": 70, "max_position_embeddings": 64, "pad_token_id": 0},
        scale_factor=scale_factor,
        image_token_id=69,
        tie_word_embeddings=text["tie_word_embeddings"],
        pad_token_id=0,
    )
    return loud(SmolVLMForConditionalGeneration(config))


def our_joint(theirs: SmolVLMForConditionalGeneration) -> VisionLanguageModel:
    vision = siglip_config(theirs.config.vision_config.to_dict())
    language = llama_config(theirs.config.text_config.to_dict())
    projector = ProjectorConfig(vision.hidden_dim, language.hidden_dim, theirs.config.scale_factor)
    ours = VisionLanguageModel(VLMConfig(vision, projector, language, image_token_id=69)).eval()
    state = theirs.state_dict()
    names = {"vision": "model.vision_model.", "projector": "model.connector.modality_projection."}
    parts = {part: {n: t for n, t in state.items() if n.startswith(prefix)} for part, prefix in names.items()}
    text = {n: t for n, t in state.items() if n.startswith(("model.text_model.", "lm_head."))}
    assert sum(map(len, parts.values())) + len(text) == len(state), "SmolVLM has tensors that nobody took"
    load_strictly(ours.vision_encoder, siglip_tensors(parts["vision"], vision.num_blocks, names["vision"]), "SmolVLM")
    load_strictly(ours.projector, {n.removeprefix(names["projector"]): t for n, t in parts["projector"].items()}, "")
    load_strictly(ours.decoder, llama_tensors(text, language, "model.text_model."), "SmolVLM")
    return ours


@pytest.mark.parametrize(
    ("vision", "text", "image_size", "factor"),
    [("small", "small, tied", 32, 2), ("small", "larger, untied", 32, 4), ("larger", "larger, untied", 30, 3)],
)
@torch.no_grad()
def test_joint_is_smolvlm(vision: str, text: str, image_size: int, factor: int) -> None:
    theirs = smolvlm(VISION[vision], TEXT[text], image_size, factor)
    ours = our_joint(theirs)
    n = ours.config.num_image_tokens
    images = torch.randn(2, 3, image_size, image_size)
    ids = torch.randint(0, 69, (2, n + 9))
    ids[0, 2 : 2 + n] = 69
    ids[1, 5 : 5 + n] = 69  # the picture may stand anywhere
    expected = theirs(input_ids=ids, pixel_values=images[:, None], attention_mask=torch.ones_like(ids)).logits
    assert expected.std() > 0.5
    assert max_difference(ours(ids, images).logits, expected) < TOLERANCE
