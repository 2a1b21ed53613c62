"""SmolVLM, SmolVLM2 (pictures only) and whatever else has Idefics3's shape, as transformers stores it.

The architecture is ours: SigLIP, pixel shuffle, one linear layer, Llama.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nanovlm.config import ProjectorConfig, TilingConfig, VLMConfig
from nanovlm.data.processors import ImageProcessor
from nanovlm.data.tiling import TiledImageProcessor
from nanovlm.files import check_tensors, read_json, read_tensors, tie_head
from nanovlm.settings import fits, setting, shown
from nanovlm.weights.backbones import llama_config, siglip_config
from nanovlm.weights.processors import Processors, load_tokenizer, stop_token_id
from nanovlm.weights.tensor_names import Slot, llama_slots, siglip_slots, to_ours, within

if TYPE_CHECKING:
    from nanovlm.models.vision_language_model import VisionLanguageModel

# transformers leaves out of a file what equals its defaults; SmolVLM's are not SigLIP's.
VISION_DEFAULTS = {
    "hidden_size": 1152,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 32,
}
TEXT_DEFAULTS = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
}
# Variants of Idefics3's ancestors that change what is computed.
FIXED = {
    "quantization_config": None,
    "use_resampler": False,
    "qk_layer_norms": False,
    "pretraining_tp": 1,
    "rope_interleaved": False,
}
POSITIONS = "vision_encoder.patch_embedding.position_embedding"
EMBEDDING, HEAD = "model.text_model.embed_tokens.weight", "lm_head.weight"
PIL_RESAMPLING = ("nearest", "lanczos", "bilinear", "bicubic", "box")  # PIL's numbers 0 to 4, as files hold them
PLAIN_PROCESSOR = "DeepseekVLProcessor"  # see export.py: image tokens with nothing around them


def recognises(values: dict[str, Any]) -> bool:
    return values.get("model_type") in ("smolvlm", "idefics3")


def read_config(values: dict[str, Any], directory: Path) -> VLMConfig:
    file = directory / "config.json"
    vision = {**VISION_DEFAULTS, **(setting(values, "vision_config", dict | None, None) or {})}
    text = {**TEXT_DEFAULTS, **(setting(values, "text_config", dict | None, None) or {"rms_norm_eps": 1e-5})}
    if text.get("model_type", "llama") != "llama":
        raise ValueError(f"The decoder in {file} is {text['model_type']}; this package has Llama-style ones.")
    for part in (values, vision, text):
        for key, fixed in FIXED.items():
            if part.get(key) not in (None, fixed):
                raise ValueError(f"{file} has {key}={part[key]!r}; this package reads models without it.")
    if vision.get("num_channels", 3) != 3:
        raise ValueError(f"The encoder in {file} takes {vision['num_channels']} channels; this package has RGB.")
    for key in ("image_size", "patch_size"):
        vision[key] = _square(vision[key], key, file)
    # What ties the head is the whole model's setting; the decoder's own is not used.
    text["tie_word_embeddings"] = setting(values, "tie_word_embeddings", bool, False)
    language, encoder = llama_config(text), siglip_config({k: v for k, v in vision.items() if k != "vision_config"})
    images, ends = read_image_settings(directory), _eos_token_ids(directory, text)
    return VLMConfig(
        vision=encoder,
        projector=ProjectorConfig(encoder.hidden_dim, language.hidden_dim, setting(values, "scale_factor", int, 2)),
        language=language,
        image_token_id=setting(values, "image_token_id", int, 128257),
        eos_token_id=ends[0],
        stop_token_ids=tuple(ends) if len(ends) > 1 else (),  # eos_token_id itself may give way to the template's
        pixel_range=_pixel_range(images, directory),
        tiling=_read_tiling(images, encoder.image_size, directory),
    )


def write_config(config: VLMConfig, pad_token_id: int, dtype: torch.dtype) -> dict[str, Any]:
    """transformers' config.json of the same model."""
    vision, language = config.vision, config.language
    return {
        "architectures": ["SmolVLMForConditionalGeneration"],
        "model_type": "smolvlm",
        "image_token_id": config.image_token_id,
        "scale_factor": config.projector.pixel_shuffle_factor,
        "tie_word_embeddings": language.tie_weights,
        "dtype": str(dtype).removeprefix("torch."),
        "vision_config": {
            "model_type": "smolvlm_vision",
            "hidden_size": vision.hidden_dim,
            "intermediate_size": vision.inter_dim,
            "num_hidden_layers": vision.num_blocks,
            "num_attention_heads": vision.num_heads,
            "num_channels": 3,
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": vision.layer_norm_eps,
        },
        "text_config": {
            "architectures": ["VLlama3ForCausalLM"],  # as the published SmolVLM: llama.cpp's converter goes by it
            "model_type": "llama",
            "hidden_size": language.hidden_dim,
            "intermediate_size": language.inter_dim,
            "num_hidden_layers": language.num_blocks,
            "num_attention_heads": language.num_heads,
            "num_key_value_heads": language.num_kv_heads,
            "head_dim": language.head_dim,
            "vocab_size": language.vocab_size,
            "max_position_embeddings": language.max_positions,
            "rms_norm_eps": language.rms_norm_eps,
            "rope_parameters": {"rope_type": "default", "rope_theta": language.rope_base},
            "rope_theta": language.rope_base,  # transformers 4
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": language.tie_weights,
            "bos_token_id": None,
            "eos_token_id": config.eos_token_id,
            "pad_token_id": pad_token_id,
        },
    }


def _square(value: Any, key: str, file: Path) -> int:
    sides = value if isinstance(value, list) and value else [value]
    if not fits(sides[0], int) or sides != [sides[0]] * len(sides):
        raise ValueError(f"{key} in {file} should be one number of pixels, not {shown(value)}.")
    return sides[0]


def _eos_token_ids(directory: Path, text: dict[str, Any]) -> list[int]:
    """Each of them ends an answer; Llama's where none is given."""
    file = directory / "generation_config.json"
    eos = (read_json(file) if file.is_file() else {}).get("eos_token_id", text.get("eos_token_id"))
    return [token for token in (eos if isinstance(eos, list) else [eos]) if isinstance(token, int)] or [2]


def read_image_settings(directory: Path) -> dict[str, Any]:
    """transformers 5 keeps them within processor_config.json, version 4 in preprocessor_config.json."""
    file = directory / "processor_config.json"
    processor = read_json(file) if file.is_file() else {}
    settings = setting(processor, "image_processor", dict | None, None)
    if settings is None:
        file = directory / "preprocessor_config.json"
        settings = read_json(file) if file.is_file() else {}
    return {**settings, "processor_class": setting(processor, "processor_class", str | None, None)}


def _pixel_range(settings: dict[str, Any], directory: Path) -> str:
    factor = setting(settings, "rescale_factor", float, 1 / 255)
    if not setting(settings, "do_rescale", bool, True) or abs(factor * 255 - 1) > 1e-6:
        raise ValueError(f"The image processor in {directory} does not divide pixels by 255, as this package does.")
    if not setting(settings, "do_normalize", bool, True):
        return "unit"
    means, stds = (setting(settings, key, tuple[float, ...], [0.5] * 3) for key in ("image_mean", "image_std"))
    for pixel_range, mean, std in (("signed", 0.5, 0.5), ("unit", 0.0, 1.0)):
        if all(abs(m - mean) < 1e-6 for m in means) and all(abs(s - std) < 1e-6 for s in stds):
            return pixel_range
    raise ValueError(
        f"The image processor in {directory} has image_mean {means} and image_std {stds}; this package scales pixels "
        "to [-1, 1] (0.5 and 0.5) or [0, 1] (0 and 1)."
    )


def _read_tiling(settings: dict[str, Any], tile: int, directory: Path) -> TilingConfig | None:
    if settings["processor_class"] == PLAIN_PROCESSOR:
        return None
    longest, their_tile = (
        setting(setting(settings, key, dict, {}), "longest_edge", int, default)
        for key, default in (("size", 4 * tile), ("max_image_size", tile))
    )
    if their_tile != tile:
        raise ValueError(f"The tiles in {directory} are {their_tile} pixels wide; its encoder takes {tile}.")
    resizes = setting(settings, "do_resize", bool, True)
    return TilingConfig(
        layout="smolvlm",
        max_side=longest if resizes else None,
        upscale=resizes,
        split=setting(settings, "do_image_splitting", bool, True),
    )


def tensor_slots(config: VLMConfig) -> list[Slot]:
    """All tensors, their names and ours; a tied head is not among them."""
    slots = within("vision_encoder", siglip_slots(config.vision.num_blocks, "model.vision_model."))
    slots.append(Slot("model.connector.modality_projection.proj.weight", "projector.proj.weight"))
    slots += within("decoder", llama_slots(config.language.num_blocks, "model.text_model.", HEAD))
    return [slot for slot in slots if not (config.language.tie_weights and slot.theirs == HEAD)]


def patch_places(grid_size: int) -> Tensor:
    """Which row of the position table transformers gives each patch, [grid_size ** 2].

    It compares fractions in float32, so that in some grids (25, 31, 40 … to a side, not 24, 27 or 32) a patch gets its
    neighbour's position. To compute what transformers computes, the table is rearranged as it is loaded and written.
    """
    boundaries = torch.arange(1 / grid_size, 1.0, 1 / grid_size)
    fractions = torch.arange(grid_size, dtype=torch.float32) * (1.0 / torch.tensor(grid_size))
    place = torch.bucketize(fractions.clamp(max=1.0 - 1e-6), boundaries, right=True)  # [grid_size], along one side
    return (place[:, None] * grid_size + place).flatten()


def position_table(positions: Tensor) -> Tensor:
    """Our positions [1, N, dim] -> the table [1, N, dim] from which transformers gives every patch its own again."""
    grid = round(positions.shape[1] ** 0.5)
    places = patch_places(grid)
    table = torch.zeros_like(positions)
    table[:, places] = positions
    if not torch.equal(table[:, places], positions):
        raise ValueError(
            f"transformers' SmolVLM rounds two patches of a {grid}x{grid} grid to one position, so it cannot compute "
            "what this model computes. Train with another image_size or patch_size: grids of 8, 16, 24 or 32 are fine."
        )
    return table


def read_weights(directory: Path, model: VisionLanguageModel) -> dict[str, Tensor]:
    computed = ("rotary_emb.inv_freq", "embeddings.position_ids")  # older files store them
    tensors = {name: t for name, t in read_tensors(directory).items() if not name.endswith(computed)}
    config, wanted = model.config, model.state_dict()
    tied = config.language.tie_weights
    if tied:
        tie_head(tensors, EMBEDDING, HEAD, directory)
        tensors.pop(HEAD, None)
    slots = tensor_slots(config)
    check_tensors({slot.theirs: slot.shape(wanted[slot.ours].shape) for slot in slots}, tensors, directory)
    ours = to_ours(slots, tensors)
    ours[POSITIONS] = ours[POSITIONS][:, patch_places(config.vision.grid_size)]
    if tied:
        ours["decoder.head.weight"] = ours["decoder.token_embedding.weight"]
    return ours


def load_processors(config: VLMConfig, directory: Path, values: dict[str, Any]) -> Processors:
    settings = read_image_settings(directory)
    number = setting(settings, "resample", int, 1)
    if number not in range(len(PIL_RESAMPLING)):
        raise ValueError(f"The image processor in {directory} resamples with PIL's filter {number!r}, unknown here.")
    resample = PIL_RESAMPLING[number]
    size, pixel_range = config.vision.image_size, config.pixel_range
    if config.tiling is None:
        image_processor = ImageProcessor(size, pixel_range, resample)
    else:
        image_processor = TiledImageProcessor(size, pixel_range, resample, config.tiling)
    tokenizer = load_tokenizer(directory, None)
    if tokenizer is None:
        return Processors(None, image_processor)
    image_token = tokenizer.tokenizer.id_to_token(config.image_token_id)
    if image_token is None:
        raise ValueError(
            f"The tokenizer in {directory} has no token with the image token's id, {config.image_token_id}."
        )
    tokenizer.add_tokens([image_token], image_token=image_token)
    return Processors(tokenizer, image_processor, stop_token_id(tokenizer))
