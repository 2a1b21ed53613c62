"""Models trained here, as directories that other people's tools load: transformers' SmolVLM, and nanoVLM."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from nanovlm.config import VLMConfig
from nanovlm.files import extend_rows, make_directory, write_json, write_safetensors
from nanovlm.weights import format_nanovlm as nanovlm
from nanovlm.weights import format_smolvlm as smolvlm
from nanovlm.weights.tensor_names import to_theirs

if TYPE_CHECKING:
    from nanovlm.data.chat import ChatTokenizer
    from nanovlm.models.vision_language_model import VisionLanguageModel

EMBEDDING, HEAD = "decoder.token_embedding.weight", "decoder.head.weight"
CONV = "vision_encoder.patch_embedding.conv"
# transformers takes a picture whose values are all zero for padding and drops it. In the range [0, 1] that would be
# every black tile; this is too small to change any other value of a float32 or bfloat16 picture.
NOT_QUITE_ZERO = 1e-12
# Runs before a chat template that expects strings: transformers' processors give lists of parts.
FLATTEN = (
    "{% set ns = namespace(messages=[], text='', images=0) %}{% for m in messages %}"
    "{% if m['content'] is string %}{% set ns.text = m['content'] %}"
    "{% else %}{% set ns.text = '' %}{% for part in m['content'] %}"
    "{% set ns.text = ns.text ~ (IMAGE if part['type'] == 'image' else part['text']) %}{% endfor %}{% endif %}"
    "COLLECT{% set ns.messages = ns.messages + [{'role': m['role'], 'content': ns.text}] %}{% endfor %}"
    "{% set messages = ns.messages %}"
)
IN_FRONT = "{% set ns.images = ns.images + ns.text.count(IMAGE) %}{% set ns.text = ns.text.replace(IMAGE, '') %}"


def export_model(
    model_dir: str | Path, to: Literal["smolvlm", "nanovlm"], out_dir: str | Path, dtype: torch.dtype | None = None
) -> Path:
    """Write the model of a directory or Hub id, in any format that we read, as a directory of another format."""
    from nanovlm.models.vision_language_model import VisionLanguageModel

    writers = {"smolvlm": export_smolvlm, "nanovlm": export_nanovlm}
    if to not in writers:
        raise ValueError(f"A model is exported to {' or '.join(writers)}, not to {to!r}.")
    check_target(model_dir, out_dir)
    return writers[to](VisionLanguageModel.from_pretrained(model_dir, dtype), out_dir)


def check_target(model_dir: str | Path, out_dir: str | Path) -> None:
    """An export gets a directory of its own."""
    if Path(out_dir).exists() and Path(model_dir).exists() and Path(out_dir).samefile(model_dir):
        raise ValueError(f"{out_dir} holds the model itself: choose another directory for the export.")
    if Path(out_dir).is_dir() and any(Path(out_dir).iterdir()):
        raise FileExistsError(f"{out_dir} is not empty. Export into a new directory: files of two models do not mix.")


def export_smolvlm(model: VisionLanguageModel, out_dir: str | Path) -> Path:
    """A directory that transformers' AutoModelForImageTextToText and AutoProcessor load.

    Same weights, same ids, same pixels, hence the same logits. A model without image placeholders gets one more token,
    the placeholder, and a chat template that puts it in front.

    Raises: ValueError where SmolVLM has no way to say what the model does.
    """
    config = VLMConfig.from_dict(model.config.to_dict())
    if config.tiling is not None and config.tiling.layout != "smolvlm":
        raise ValueError(
            "This model sees the whole picture first and its tiles after it, as nanoVLM's do; SmolVLM's processor has "
            "the reverse order only. Export it with --to nanovlm."
        )
    if config.tiling is None:
        warnings.warn(
            "This model was trained without SmolVLM's layout of a picture (tiles, with tokens around them). The export "
            "runs in transformers, with the processor written beside it; whatever lays pictures out as SmolVLM does, "
            "such as llama.cpp, cannot serve it. Train with tiling in the smolvlm layout for that.",
            stacklevel=2,
        )
    tensors = _state(model)
    tokenizer = _copy(model.tokenizer)
    num_prefix = config.image_token_id is None
    if num_prefix:
        _add_image_token(config, tensors, tokenizer)
    tensors[smolvlm.POSITIONS] = smolvlm.position_table(tensors[smolvlm.POSITIONS])
    out_dir = make_directory(out_dir)
    write_safetensors(to_theirs(smolvlm.tensor_slots(config), tensors), out_dir / "model.safetensors")
    pad = config.eos_token_id if tokenizer is None else tokenizer.pad_token_id
    write_json(smolvlm.write_config(config, pad, tensors[EMBEDDING].dtype), out_dir / "config.json")
    ends = list(dict.fromkeys([config.eos_token_id, *config.stop_token_ids]))
    eos = ends[0] if len(ends) == 1 else ends
    generation = {"bos_token_id": None, "eos_token_id": eos, "pad_token_id": pad, "do_sample": False}
    write_json(generation, out_dir / "generation_config.json")
    _write_processor(model, config, out_dir)
    if tokenizer is None:
        warnings.warn(
            "Exported without a tokenizer, because the model has none: AutoProcessor needs one.", stacklevel=2
        )
    else:
        _write_tokenizer(tokenizer, config, num_prefix, out_dir)
    return out_dir


def _state(model: VisionLanguageModel) -> dict[str, Tensor]:
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }


def _copy(tokenizer: ChatTokenizer | None) -> ChatTokenizer | None:
    from tokenizers import Tokenizer

    if tokenizer is None:
        return None
    return type(tokenizer)(
        Tokenizer.from_str(tokenizer.tokenizer.to_str()), {**tokenizer.settings, "image_token": tokenizer.image_token}
    )


def _add_image_token(config: VLMConfig, tensors: dict[str, Tensor], tokenizer: ChatTokenizer | None) -> None:
    """One more token, the placeholder: its row of the head, a mean, never wins over the rows that it is the mean of."""
    config.image_token_id = config.language.vocab_size
    if tokenizer is not None:
        if tokenizer.image_token is None:
            tokenizer.add_tokens(["<image>"], image_token="<image>")
        config.image_token_id = tokenizer.image_token_id
    config.language.vocab_size = max(config.language.vocab_size, config.image_token_id + 1)
    for name in (EMBEDDING, HEAD):
        tensors[name] = extend_rows(tensors[name], config.language.vocab_size)


def _write_processor(model: VisionLanguageModel, config: VLMConfig, out_dir: Path) -> None:
    tiling, tile = config.tiling, {"longest_edge": config.vision.image_size}
    signed = config.pixel_range == "signed"
    if tiling is not None and tiling.max_side is not None and not tiling.upscale:
        warnings.warn(
            f"transformers' processor cannot shrink large pictures alone: it will cut those above {tiling.max_side} "
            "pixels into more tiles than this model does. Smaller ones come out the same.",
            stacklevel=3,
        )
    images = {
        "image_processor_type": "Idefics3ImageProcessor",
        "do_convert_rgb": True,
        # transformers either enlarges every picture to `size` or leaves all as they are.
        "do_resize": tiling is not None and tiling.upscale,
        "size": tile if tiling is None or tiling.max_side is None else {"longest_edge": tiling.max_side},
        "do_image_splitting": tiling is not None and tiling.split,
        "max_image_size": tile,
        "resample": smolvlm.PIL_RESAMPLING.index(getattr(model.image_processor, "resample", "bicubic")),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5 if signed else -NOT_QUITE_ZERO] * 3,
        "image_std": [0.5 if signed else 1.0] * 3,
        "do_pad": True,
    }
    if tiling is None:  # SmolVLM's own processor always puts tokens around a picture, which this model never saw
        processor = {"processor_class": smolvlm.PLAIN_PROCESSOR, "num_image_tokens": config.num_image_tokens}
    else:  # needs neither torchvision nor num2words, as SmolVLM's does for its videos
        processor = {"processor_class": "Idefics3Processor", "image_seq_len": config.num_image_tokens}
    write_json({**processor, "image_processor": images}, out_dir / "processor_config.json")
    write_json({**images, **processor}, out_dir / "preprocessor_config.json")  # where transformers 4 looks


def _write_tokenizer(tokenizer: ChatTokenizer, config: VLMConfig, num_prefix: bool, out_dir: Path) -> None:
    if config.tiling is not None:
        tokenizer = _rename(tokenizer, tokenizer.image_token, "<image>")  # transformers' processor has it built in
    source = tokenizer.template(config.prompt_format).source
    if num_prefix or not _takes_parts(tokenizer, source):
        image = json.dumps(tokenizer.image_token)
        source = FLATTEN.replace("COLLECT", IN_FRONT if num_prefix else "").replace("IMAGE", image) + (
            f"{{{{ {image} * ns.images }}}}{source}" if num_prefix else source
        )
    extra = tokenizer.settings.get("extra_special_tokens")
    tokenizer.settings = {
        **{key: value for key, value in tokenizer.settings.items() if key != "chat_template"},
        "extra_special_tokens": {**(extra if isinstance(extra, dict) else {}), "image_token": tokenizer.image_token},
        "padding_side": "left",
    }
    tokenizer.save_pretrained(out_dir)
    (out_dir / "chat_template.jinja").write_text(source, encoding="utf-8")


def _takes_parts(tokenizer: ChatTokenizer, source: str) -> bool:
    """Whether a chat template shows a picture and a text that come as a list of parts."""
    from nanovlm.data.chat_template import ChatTemplate

    template = ChatTemplate(source, {"eos_token": tokenizer.eos_token, "pad_token": tokenizer.pad_token})
    parts = [{"type": "image"}, {"type": "text", "text": "question-text"}]
    try:
        rendered = template.render([{"role": "user", "content": parts}])
    except ValueError:
        return False
    return rendered.count(tokenizer.image_token) == rendered.count("question-text") == 1 and "'type'" not in rendered


def _rename(tokenizer: ChatTokenizer, old: str, new: str) -> ChatTokenizer:
    """Another spelling for a special token, with the same id."""
    from tokenizers import Tokenizer

    if old == new:
        return tokenizer
    if tokenizer.tokenizer.token_to_id(new) is not None:
        raise ValueError(f"The tokenizer has a token {new} beside its image token {old}, whose name it should take.")
    values = json.loads(tokenizer.tokenizer.to_str())
    for token in values["added_tokens"]:
        token["content"] = new if token["content"] == old else token["content"]
    vocabulary = values["model"]["vocab"]
    if isinstance(vocabulary, dict) and old in vocabulary:
        vocabulary[new] = vocabulary.pop(old)
    settings = {key: new if value == old else value for key, value in tokenizer.settings.items()}
    if template := settings.get("chat_template"):
        settings["chat_template"] = template.replace(old, new)
    return type(tokenizer)(Tokenizer.from_str(json.dumps(values)), {**settings, "image_token": new})


def export_nanovlm(model: VisionLanguageModel, out_dir: str | Path) -> Path:
    """A directory that nanoVLM's VisionLanguageModel.from_pretrained loads: of the 222M generation where image tokens
    stand in front, of the 450M generation else.

    nanoVLM feeds pixels in [0, 1], so for a model trained on [-1, 1] the patch convolution takes over the scaling:
    equal up to rounding. Its tokenizer lies beside the weights; `lm_tokenizer` names where to find it.

    Raises: ValueError where nanoVLM has no way to say what the model does.
    """
    config = VLMConfig.from_dict(model.config.to_dict())
    if config.tiling is not None and config.tiling.layout != "nanovlm":
        raise ValueError(
            "This model sees the tiles first and the whole picture after them, as SmolVLM's do; nanoVLM has the "
            "reverse order only. Export it with --to smolvlm."
        )
    if config.image_token_id is None and config.prompt_format == "chat":
        warnings.warn(
            "nanoVLM asks a model without image placeholders `Question: … Answer:`; this one learned its tokenizer's "
            "chat template, so expect worse answers there.",
            stacklevel=2,
        )
    tensors = _state(model)
    if config.pixel_range == "signed":  # 2 x - 1 for x in [0, 1]
        weight = tensors[f"{CONV}.weight"].double()
        bias = tensors[f"{CONV}.bias"].double() - weight.sum(dim=(1, 2, 3))
        tensors[f"{CONV}.bias"] = bias.to(tensors[f"{CONV}.bias"].dtype)
        tensors[f"{CONV}.weight"] = (2 * weight).to(tensors[f"{CONV}.weight"].dtype)
        config.pixel_range = "unit"
    out_dir = make_directory(out_dir)
    theirs = {nanovlm.their_name(name): tensor for name, tensor in tensors.items()}
    theirs[nanovlm.INV_FREQ] = nanovlm.inverse_frequencies(config)
    metadata = {}
    if config.language.tie_weights:  # nanoVLM's files hold the head, and say that the embedding is the same
        del theirs[EMBEDDING]
        metadata = {EMBEDDING: HEAD}
    write_safetensors(theirs, out_dir / "model.safetensors", metadata)
    values: dict[str, Any] = nanovlm.write_config(config)
    values["lm_tokenizer"] = config.tokenizer or str(out_dir)
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(out_dir)
    if config.image_token_id is not None:
        values["vlm_extra_tokens"] = nanovlm.extra_tokens(config, model.tokenizer)
        if model.tokenizer is not None:
            values["lm_chat_template"] = model.tokenizer.template("chat").source
    write_json(values, out_dir / "config.json")
    return out_dir
