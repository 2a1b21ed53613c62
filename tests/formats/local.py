"""Local stand-ins: the fixtures with a tokenizer of their own size, and no way to the Hub."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from nanovlm.data.chat import ChatTokenizer
from tests.tiny_tokenizer import CHATML

FIXTURES = Path(__file__).parents[1] / "fixtures"
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def characters(size: int = 134) -> ChatTokenizer:
    """One token a character, `size` in all: the fixtures' base vocabulary. Ends answers as SmolLM2 does."""
    letters = [chr(code) for code in range(33, 127)] + ["Ġ", "Ċ"]  # byte-level names of space and newline
    unused = [f"unused{i}" for i in range(size - len(SPECIALS) - len(letters))]
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate([*SPECIALS, *letters, *unused])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIALS)
    return ChatTokenizer(tokenizer, {"eos_token": "<|im_end|>", "chat_template": CHATML})


def fixture(directory: Path, name: str, tokenizer: ChatTokenizer | None = None, **changes: object) -> Path:
    """A copy of tests/fixtures/<name> whose lm_tokenizer is a directory here; `changes` to its config, None removes."""
    shutil.copytree(FIXTURES / name, directory)
    config = json.loads((directory / "config.json").read_text())
    if tokenizer is not None:
        tokenizer.save_pretrained(directory.with_name(directory.name + "_tokenizer"))
        config["lm_tokenizer"] = str(directory.with_name(directory.name + "_tokenizer"))
    config = {key: value for key, value in {**config, **changes}.items() if value is not None}
    (directory / "config.json").write_text(json.dumps(config))
    return directory
