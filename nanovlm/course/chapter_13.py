"""What chapter 13 measures with: single letters and a probe that reads them, and a small SmolVLM of random weights."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from nanovlm.data.thimble.drawing import COLOURS, INK, PALETTE, Draws, backdrop, rectangle, stamp, vary
from nanovlm.data.thimble.glyphs import CHARACTERS, outline
from nanovlm.data.tiling import FAKE, SMOLVLM_GLOBAL, place_token

TRAIN, TEST = 1980, 660  # letters


@cache
def one_letter(number: int) -> Image.Image:
    """64 x 64 grey pixels: a sign of one character near the middle, 12 or 13 pixels tall."""
    draws = Draws("probe", number)
    canvas = backdrop(draws, 64)
    x, y, colour = 30 + draws.below(4), 30 + draws.below(4), draws.pick(COLOURS)
    stamp(canvas, rectangle(16, 23, 4.0), x, y, 1.0, vary(draws, PALETTE[colour]))
    ink = INK if colour in ("yellow", "orange") else (252, 252, 252)
    strokes = outline(CHARACTERS[number % 33], 0.55)
    stamp(canvas, strokes, x, y, (12 + draws.below(2)) / 6, ink, rim=False)
    return canvas.convert("L")


def at_resolution(shrink: int) -> Tensor:
    """All letters, shrunk so many times and enlarged again: [TRAIN + TEST, 1, 32, 32] in [-1, 1]"""
    letters = [one_letter(number) for number in range(TRAIN + TEST)]
    small = [letter.resize((64 // shrink, 64 // shrink), Image.Resampling.LANCZOS) for letter in letters]
    large = [letter.resize((64, 64), Image.Resampling.BICUBIC).crop((16, 16, 48, 48)) for letter in small]
    return torch.from_numpy(np.stack(large)).float()[:, None] / 127.5 - 1


def probe(views: Tensor, steps: int) -> float:
    """Train a small network on the first TRAIN letters; the share of the TEST others that it reads."""
    torch.manual_seed(0)
    labels = torch.arange(TRAIN + TEST) % 33
    network = nn.Sequential(
        nn.Conv2d(1, 16, kernel_size=5, stride=2, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 8 * 8, 33),
    )
    optimizer = torch.optim.AdamW(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps)
    for _ in range(steps):
        batch = torch.randint(TRAIN, (64,))
        loss = F.cross_entropy(network(views[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return (network(views[TRAIN:]).argmax(dim=1) == labels[TRAIN:]).float().mean().item()


TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}: "
    "{% for part in message['content'] %}{{ part['text'] if part['type'] == 'text' else '<image>' }}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)


def letters_tokenizer() -> Any:
    """A `tokenizers.Tokenizer` without merges, one token a byte, and SmolVLM's special tokens for 4 x 4 tiles."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    raw = Tokenizer(models.BPE(alphabet, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    places = [place_token(row, column) for row in range(4) for column in range(4)]
    names = ["<|im_start|>", "<|im_end|>", "<image>", "<end_of_utterance>", FAKE, SMOLVLM_GLOBAL, *places]
    raw.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return raw


def random_smolvlm(directory: str) -> tuple[Any, Any]:
    """transformers' SmolVLM with random weights and tiles of 32 pixels, and its processor, both saved in directory."""
    from transformers import Idefics3Processor, PreTrainedTokenizerFast, SmolVLMConfig, SmolVLMForConditionalGeneration
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    raw = letters_tokenizer()
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 6}
    text |= {"model_type": "llama", "num_key_value_heads": 2, "vocab_size": raw.get_vocab_size()}
    text |= {"max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "pad_token_id": raw.token_to_id("<|im_end|>")}
    text |= {"rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0}}
    config = SmolVLMConfig(
        vision_config=vision | {"image_size": 32, "patch_size": 4},
        text_config=text,
        scale_factor=4,
        image_token_id=raw.token_to_id("<image>"),
        pad_token_id=raw.token_to_id("<|im_end|>"),
    )
    model = SmolVLMForConditionalGeneration(config).eval()
    with torch.no_grad():  # larger than a fresh model's, so that a difference would show
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(std=weight.shape[-1] ** -0.5)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token="<end_of_utterance>",
        pad_token="<|im_end|>",
        extra_special_tokens={"image_token": "<image>"},
    )
    pictures = Idefics3ImageProcessorPil(size={"longest_edge": 4 * 32}, max_image_size={"longest_edge": 32})
    processor = Idefics3Processor(pictures, tokenizer, image_seq_len=4, chat_template=TEMPLATE)
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return model, processor
