"""A whole model from a directory or the Hugging Face Hub, and back: config, weights, tokenizer and picture settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from nanovlm.adapt.lora import merged_weights
from nanovlm.config import VLMConfig
from nanovlm.files import (
    check_blocks,
    find_directory,
    load_strictly,
    make_directory,
    read_json,
    write_json,
    write_safetensors,
)
from nanovlm.models.vision_language_model import VisionLanguageModel
from nanovlm.weights.formats import Format, recognise
from nanovlm.weights.processors import Processors, check_processors


class NoInit(TorchFunctionMode):
    """No random numbers, for weights that are replaced: what is in torch.nn.init does nothing, and torch.randn gives
    memory that nobody has touched. (The meta device would do, but torch imports its compiler for it: two seconds.)"""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return (torch.empty if func is torch.randn else func)(*args, **kwargs)


def load(
    path_or_hub_id: str | Path,
    dtype: torch.dtype | None = None,
    model_class: Callable[[VLMConfig], VisionLanguageModel] | None = None,
    source: Format | None = None,
) -> VisionLanguageModel:
    """Load a model directory or Hub id, strictly, with the tokenizer and picture settings that belong to it.

    Reads our own format, nanoVLM's, and SmolVLM's as transformers writes it. `model_class`: another class with the same
    parameters, for example one built from a learner's parts. `source`: the format, where it is none of the usual.
    """
    directory = find_directory(path_or_hub_id)
    values = read_json(directory / "config.json")
    source = source or recognise(values, directory)
    config = source.read_config(values, directory)
    check_blocks(directory, encoder=config.vision.num_blocks, decoder=config.language.num_blocks)
    try:
        with NoInit():
            model = (model_class or VisionLanguageModel)(config)
    except RuntimeError as error:
        if "allocate" not in str(error):
            raise
        raise ValueError(f"The model of {directory} does not fit into memory: check its config's sizes.") from error
    tensors = source.read_weights(directory, model)
    load_strictly(model, tensors, directory)
    found = source.load_processors(config, directory, values)
    check_processors(found, config, directory)
    attach(model, found)
    return model.to(dtype) if dtype is not None else model


def attach(model: VisionLanguageModel, found: Processors) -> None:
    """Give a model the tokenizer and image processor of its directory, and the end token that the tokenizer names."""
    model.tokenizer, model.image_processor = found.tokenizer, found.image_processor
    if found.eos_token_id is not None:
        model.config.eos_token_id = found.eos_token_id


def save(model: VisionLanguageModel, directory: str | Path, weights: Mapping[str, Tensor] | None = None) -> Path:
    """Write everything that `load` needs; the directory then loads with no network.

    `weights` by name stand in for the model's own: the float32 masters of a run that computes in bfloat16.
    """
    directory = make_directory(directory)
    # The weights first: if the disk is full, they are what does not fit, and the old directory is still whole.
    write_safetensors(weights_to_save(model, weights or {}), directory / "model.safetensors")
    write_json(model.config.to_dict(), directory / "config.json")
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(directory)
    if model.image_processor is not None:
        model.image_processor.save_pretrained(directory)
    return directory


def push(model: VisionLanguageModel, repo_id: str, private: bool = False) -> str:
    """Upload the model directory; returns the address. Log in first: `hf auth login`."""
    import tempfile

    from huggingface_hub import HfApi

    api = HfApi()
    with tempfile.TemporaryDirectory() as folder:
        save(model, folder)
        api.create_repo(repo_id, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload a nanovlm model"))


def weights_to_save(model: VisionLanguageModel, instead: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every weight once: a tied head is the embedding, and is not written again; adapters are added to their base."""
    state = merged_weights(model, {**model.state_dict(), **instead})
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    if model.config.language.tie_weights:
        del tensors["decoder.head.weight"]
    return tensors
