"""nanoVLM's checkpoints: the 222M generation, and the generation with placeholders (450M with one
view; 230M-8k and 460M-8k with tiles).

Both were trained on pixels in [0, 1]. The first puts image tokens in front of `Question: … Answer:`; the second has
placeholders, may cut pictures into tiles and speaks the decoder's chat template.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

import torch
from torch import Tensor

from nanovlm.config import LMConfig, ProjectorConfig, TilingConfig, ViTConfig, VLMConfig
from nanovlm.data.processors import ImageProcessor
from nanovlm.data.tiling import NANOVLM_GLOBAL, make_image_processor, place_token
from nanovlm.files import check_tensors, read_tensors, tie_head
from nanovlm.settings import setting
from nanovlm.weights.processors import Processors, load_tokenizer, stop_token_id

if TYPE_CHECKING:
    from nanovlm.data.chat import ChatTokenizer
    from nanovlm.models.vision_language_model import VisionLanguageModel

T = TypeVar("T")
VISION_KEYS = {
    "hidden_dim": "vit_hidden_dim",
    "inter_dim": "vit_inter_dim",
    "num_blocks": "vit_n_blocks",
    "num_heads": "vit_n_heads",
    "image_size": "vit_img_size",
    "patch_size": "vit_patch_size",
    "layer_norm_eps": "vit_ln_eps",
}
LANGUAGE_KEYS = {
    "hidden_dim": "lm_hidden_dim",
    "inter_dim": "lm_inter_dim",
    "num_blocks": "lm_n_blocks",
    "num_heads": "lm_n_heads",
    "num_kv_heads": "lm_n_kv_heads",
    "vocab_size": "lm_vocab_size",
    "max_positions": "lm_max_position_embeddings",
    "rope_base": "lm_re_base",
    "rms_norm_eps": "lm_rms_eps",
    "tie_weights": "lm_tie_weights",
}
FACTOR_KEY = "mp_pixel_shuffle_factor"
# What a model of ours can only be one way.
FIXED = {"vit_cls_flag": False, "lm_use_tokens": False, "lm_attn_scaling": 1.0}
# Read elsewhere, about training only, or retired.
OTHER_KEYS = (
    "vit_dropout",
    "vit_model_type",
    "lm_dropout",
    "lm_max_length",
    "lm_model_type",
    "lm_tokenizer",
    "lm_eos_token_id",
    "lm_base_vocab_size",
    "extra_token_amount",
    "lm_chat_template",
    "mp_image_token_length",
    "max_img_size",
    "resize_to_max_side_len",
    "vlm_extra_tokens",
    "vlm_load_backbone_weights",
    "vlm_checkpoint_path",
    "hf_repo_name",
)
SMOLLM2_END = 2  # <|im_end|>, should there be no tokenizer to ask
MOST_TILES = 8  # along a side: nanoVLM has tokens for no more
INV_FREQ = "decoder.rotary_embd.inv_freq"


def recognises(values: dict[str, Any]) -> bool:
    return "vit_hidden_dim" in values or "lm_hidden_dim" in values


def read_config(values: dict[str, Any], directory: Path) -> VLMConfig:
    file = directory / "config.json"
    sizes = [*VISION_KEYS.values(), *LANGUAGE_KEYS.values(), FACTOR_KEY]
    if missing := [key for key in sizes if key not in values]:
        raise ValueError(f"{file} is nanoVLM's, but lacks {', '.join(missing)}.")
    if unknown := sorted(set(values) - {*sizes, *FIXED, *OTHER_KEYS}):
        raise ValueError(
            f"{file} is nanoVLM's, but has settings that this package does not know: {', '.join(unknown)}."
        )
    for key, fixed in FIXED.items():
        if values.get(key, fixed) != fixed:
            raise ValueError(f"{key} in {file} is {values[key]}; this package has only models where it is {fixed}.")
    extra_tokens = setting(values, "vlm_extra_tokens", dict | None, None)
    for name in extra_tokens or ():
        setting(extra_tokens, name, str)
    if extra_tokens is not None and "image_token" not in extra_tokens:
        raise ValueError(f"vlm_extra_tokens in {file} names no image_token, so there is no place for a picture.")
    config = VLMConfig(
        vision=_part(ViTConfig, VISION_KEYS, values),
        projector=ProjectorConfig(values["vit_hidden_dim"], values["lm_hidden_dim"], setting(values, FACTOR_KEY, int)),
        language=_part(LMConfig, LANGUAGE_KEYS, values),
        image_token_id=_first_extra_id(values) if extra_tokens else None,
        eos_token_id=setting(values, "lm_eos_token_id", int, SMOLLM2_END if extra_tokens else 0),
        pixel_range="unit",
        prompt_format="chat" if extra_tokens else "question_answer",
        tokenizer=setting(values, "lm_tokenizer", str | None, None),
        tiling=_read_tiling(values, extra_tokens) if extra_tokens else None,
    )
    if (
        length := values.get("mp_image_token_length", config.num_image_tokens)
    ) != config.num_image_tokens and extra_tokens:
        raise ValueError(f"{file} wants {length} image tokens; its sizes give {config.num_image_tokens}.")
    return config


def _part(make: type[T], keys: dict[str, str], values: dict[str, Any]) -> T:
    """A part's config from their keys, each of the type that ours has."""
    hints = get_type_hints(make)
    return make(**{ours: setting(values, theirs, hints[ours]) for ours, theirs in keys.items()})


def _first_extra_id(values: dict[str, Any]) -> int:
    """The image token is the first one behind the decoder's own vocabulary."""
    added = setting(values, "extra_token_amount", int, 1)
    return setting(values, "lm_base_vocab_size", int, values["lm_vocab_size"] - added)


def _read_tiling(values: dict[str, Any], extra_tokens: dict[str, str]) -> TilingConfig | None:
    if "r1c1" not in extra_tokens:
        return None  # the first models with a placeholder squash each picture to one tile
    return TilingConfig(
        layout="nanovlm",
        max_side=setting(values, "max_img_size", int | None, None),
        upscale=setting(values, "resize_to_max_side_len", bool, False),
        global_view="global_image_token" in extra_tokens,
    )


def write_config(config: VLMConfig) -> dict[str, Any]:
    """nanoVLM's config.json of the generation that this model belongs to: the older one without an image token."""
    vision, language = vars(config.vision), vars(config.language)
    values = {theirs: vision[ours] for ours, theirs in VISION_KEYS.items()}
    values |= {theirs: language[ours] for ours, theirs in LANGUAGE_KEYS.items()}
    values |= {**FIXED, "vit_dropout": 0.0, "lm_dropout": 0.0, FACTOR_KEY: config.projector.pixel_shuffle_factor}
    values |= {"lm_eos_token_id": config.eos_token_id, "vlm_load_backbone_weights": False}
    if config.image_token_id is not None:
        values["mp_image_token_length"] = config.num_image_tokens
        values["lm_base_vocab_size"] = config.image_token_id
        values["extra_token_amount"] = language["vocab_size"] - config.image_token_id
    if config.tiling is not None:
        values["max_img_size"] = config.tiling.max_side
        values["resize_to_max_side_len"] = config.tiling.upscale
    return values


def extra_tokens(config: VLMConfig, tokenizer: ChatTokenizer | None) -> dict[str, str]:
    """nanoVLM's vlm_extra_tokens: the image token and what its tiles need, by nanoVLM's names for them."""
    tokens = {"image_token": (tokenizer and tokenizer.image_token) or "<|image|>"}
    tiling = config.tiling
    if tiling is None:
        return tokens
    if tiling.global_view:
        tokens["global_image_token"] = NANOVLM_GLOBAL
    side = min(-(-(tiling.max_side or config.vision.image_size) // config.vision.image_size), MOST_TILES)
    return tokens | {f"r{r + 1}c{c + 1}": place_token(r, c) for r in range(side) for c in range(side)}


def inverse_frequencies(config: VLMConfig) -> Tensor:
    """RoPE's frequencies [head_dim / 2], which nanoVLM's files store."""
    language = config.language
    return language.rope_base ** (-torch.arange(0, language.head_dim, 2) / language.head_dim)


def their_name(name: str) -> str:
    return f"MP.{name.removeprefix('projector.')}" if name.startswith("projector.") else name


def read_weights(directory: Path, model: VisionLanguageModel) -> dict[str, Tensor]:
    tensors = read_tensors(directory)
    language = model.config.language
    inv_freq = tensors.pop(INV_FREQ, None)
    if inv_freq is not None:  # it is computed here; a file that disagrees with its own config would load wrong
        expected = inverse_frequencies(model.config)
        if inv_freq.shape != expected.shape or not torch.allclose(inv_freq.float(), expected, rtol=1e-2):
            raise ValueError(f"{INV_FREQ} in {directory} does not fit lm_re_base {language.rope_base:g} of its config.")
    if language.tie_weights:
        tie_head(tensors, "decoder.token_embedding.weight", "decoder.head.weight", directory)
    names = {their_name(name): name for name in model.state_dict()}
    shapes = {theirs: model.state_dict()[ours].shape for theirs, ours in names.items()}
    check_tensors(shapes, tensors, directory)
    return {names[name]: tensor for name, tensor in tensors.items()}


def load_processors(config: VLMConfig, directory: Path, values: dict[str, Any]) -> Processors:
    if config.tiling is not None:
        image_processor = make_image_processor(config)
    else:  # torchvision's default
        image_processor = ImageProcessor(config.vision.image_size, config.pixel_range, resample="bilinear")
    tokenizer = load_tokenizer(directory, config.tokenizer)
    if tokenizer is None:
        return Processors(None, image_processor)
    eos_token_id = None
    if extra_tokens := values.get("vlm_extra_tokens"):
        if template := setting(values, "lm_chat_template", str | None, None):
            tokenizer.settings["chat_template"] = template
        tokenizer.add_tokens(extra_tokens.values(), image_token=extra_tokens["image_token"])
        if tokenizer.image_token_id != config.image_token_id:
            raise ValueError(
                f"The image token has id {tokenizer.image_token_id} in the tokenizer and {config.image_token_id} in "
                f"the config of {directory}: this is not the tokenizer of this model."
            )
        eos_token_id = stop_token_id(tokenizer)
    return Processors(tokenizer, image_processor, eos_token_id)
