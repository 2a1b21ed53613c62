"""transformers' SmolVLM class with our weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from torch import Tensor

from nanovlm.config import VLMConfig
from nanovlm.models.vision_language_model import IGNORE, VisionLanguageModel
from nanovlm.weights.format_smolvlm import tensor_slots
from nanovlm.weights.tensor_names import to_theirs

if TYPE_CHECKING:
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration


def peer_config(config: VLMConfig, attention: Literal["sdpa", "eager"]) -> SmolVLMConfig:
    from transformers import SmolVLMConfig

    vision, language = config.vision, config.language
    return SmolVLMConfig(
        vision_config={
            "hidden_size": vision.hidden_dim,
            "intermediate_size": vision.inter_dim,
            "num_hidden_layers": vision.num_blocks,
            "num_attention_heads": vision.num_heads,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "layer_norm_eps": vision.layer_norm_eps,
        },
        text_config={
            "model_type": "llama",
            "hidden_size": language.hidden_dim,
            "intermediate_size": language.inter_dim,
            "num_hidden_layers": language.num_blocks,
            "num_attention_heads": language.num_heads,
            "num_key_value_heads": language.num_kv_heads,
            "vocab_size": language.vocab_size,
            "max_position_embeddings": language.max_positions,
            "rms_norm_eps": language.rms_norm_eps,
            "rope_parameters": {"rope_type": "default", "rope_theta": language.rope_base},
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": 0,
        },
        scale_factor=config.projector.pixel_shuffle_factor,
        image_token_id=config.image_token_id,
        tie_word_embeddings=language.tie_weights,
        pad_token_id=0,
        attn_implementation=attention,
    )


def build_peer(model: VisionLanguageModel, attention: Literal["sdpa", "eager"]) -> SmolVLMForConditionalGeneration:
    """The same weights in float32, copied. It stops at no token: `generate` runs to the last."""
    from transformers import SmolVLMForConditionalGeneration
    from transformers.utils import logging

    logging.set_verbosity_error()
    peer = SmolVLMForConditionalGeneration(peer_config(model.config, attention))
    weights = to_theirs(tensor_slots(model.config), {name: t.float() for name, t in model.state_dict().items()})
    missing, unexpected = peer.load_state_dict(weights, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise RuntimeError(f"transformers' SmolVLM has other tensors than ours: {missing}, {unexpected}.")
    peer.tie_weights()
    peer.generation_config.eos_token_id = None
    peer.generation_config.pad_token_id = 0
    return peer.eval()


def peer_labels(targets: Tensor) -> Tensor:
    """Our targets [B, T] stand with the token that predicts; transformers' labels with the token itself."""
    labels = targets.roll(1, dims=1)
    labels[:, 0] = IGNORE
    return labels
