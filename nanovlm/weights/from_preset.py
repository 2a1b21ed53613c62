"""A preset -> a model ready to train: random weights with the shipped tokenizer, or trained backbones joined."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from nanovlm.assets import asset_path
from nanovlm.config import Preset, VLMConfig
from nanovlm.data.chat import ChatTokenizer
from nanovlm.data.tiling import make_image_processor, tile_tokens
from nanovlm.files import TOKENIZER_FILES, find_directory
from nanovlm.models.vision_language_model import VisionLanguageModel
from nanovlm.weights.backbones import load_language_backbone, load_vision_backbone

IMAGE_TOKEN = "<|image|>"
ROWS_MULTIPLE = 64  # a vocabulary that tensor cores like: the head is the largest single product


def build_model(preset: Preset) -> VisionLanguageModel:
    """The preset's model, with its tokenizer and image processor attached.

    Raises: FileNotFoundError or ConnectionError where a backbone is neither here nor on the Hub, ValueError where the
    parts do not fit together.
    """
    if (preset.vision_backbone is None) != (preset.language_backbone is None):
        raise ValueError("A preset starts from both backbones or from neither; this one names only one of them.")
    return from_scratch(preset.vlm) if preset.vision_backbone is None else from_backbones(preset)


def from_scratch(
    config: VLMConfig, model_class: Callable[[VLMConfig], VisionLanguageModel] = VisionLanguageModel
) -> VisionLanguageModel:
    """Random weights, and the tokenizer that ships with the pocket model. model_class: what makes the model."""
    tokenizer = ChatTokenizer.from_pretrained(asset_path("pocket"))
    add_tile_tokens(tokenizer, config)
    if tokenizer.vocab_size > config.language.vocab_size:
        raise ValueError(
            f"The tokenizer has {tokenizer.vocab_size} tokens, the model only {config.language.vocab_size} embeddings."
        )
    return attach(model_class(config), tokenizer)


def from_backbones(preset: Preset) -> VisionLanguageModel:
    """A SigLIP encoder and a Llama-style decoder, joined by a projector that has yet to learn."""
    config = preset.vlm
    source = config.tokenizer or preset.language_backbone
    tokenizer = ChatTokenizer.from_pretrained(find_directory(source, TOKENIZER_FILES))
    if tokenizer.image_token is None:
        tokenizer.add_tokens([IMAGE_TOKEN], image_token=IMAGE_TOKEN)
    add_tile_tokens(tokenizer, config)
    places = {name: find_directory(name) for name in (preset.vision_backbone, preset.language_backbone)}
    vision = load_vision_backbone(places[preset.vision_backbone], config.vision.image_size)
    rows = -(-tokenizer.vocab_size // ROWS_MULTIPLE) * ROWS_MULTIPLE
    language = load_language_backbone(places[preset.language_backbone], rows)
    end = tokenizer.end_of_turn_id(config.prompt_format)
    config = replace(
        config,
        vision=vision.config,
        language=language.config,
        projector=replace(
            config.projector, vision_dim=vision.config.hidden_dim, language_dim=language.config.hidden_dim
        ),
        image_token_id=tokenizer.image_token_id,
        eos_token_id=tokenizer.eos_token_id if end is None else end,
        tokenizer=None,  # it is saved with the model
    )
    model = attach(VisionLanguageModel(config, vision_encoder=vision, decoder=language), tokenizer)
    # A Hub id may move; the directory that it was fetched into is called for the commit. Checkpoints hold both.
    model.started_from = {name: place.name for name, place in places.items()}
    return model


def add_tile_tokens(tokenizer: ChatTokenizer, config: VLMConfig) -> None:
    """A picture that is cut into tiles has a token for each tile's place."""
    if config.tiling is not None:
        tokenizer.add_tokens(tile_tokens(config.tiling, config.vision.image_size))


def attach(model: VisionLanguageModel, tokenizer: ChatTokenizer) -> VisionLanguageModel:
    model.tokenizer = tokenizer
    model.image_processor = make_image_processor(model.config)
    return model
