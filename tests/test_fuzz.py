"""Whatever a stranger's file holds: an answer, or one sentence. Never another exception.

Longer by hand: `NANOVLM_FUZZ=2000 pytest tests/test_fuzz.py` tries so many inputs a test, other ones at each run.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from nanovlm import VisionLanguageModel
from nanovlm.data.chat import ChatTokenizer
from nanovlm.data.datasets import VQADataset
from nanovlm.data.images import open_image
from nanovlm.data.processors import ImageProcessor
from nanovlm.weights.backbones import llama_config, siglip_config
from tests.formats import oracle
from tests.formats.local import characters, fixture
from tests.test_datasets import vlm_config
from tests.tiny import tiny_model
from tests.tiny_tokenizer import tiny_tokenizer

LONG = int(os.environ.get("NANOVLM_FUZZ", 0))
fuzz = settings(
    max_examples=LONG or 40,
    derandomize=not LONG,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def answers_or_says_why(call: Callable[[], Any]) -> None:
    try:
        call()
    except (ValueError, OSError, TypeError) as error:
        text = str(error)
        assert text and "\n" not in text and text.endswith(".") and len(text) < 1500, repr(error)


# -- JSON of model directories ----------------------------------------------------------------------------------------

numbers = st.sampled_from([0, -1, 1, 2, 3, 2**31, 10**7, 10**12, 10**30, 0.5, -0.0, 1e-300, 1e300])
odd = st.sampled_from([float("nan"), float("inf"), None, True, False, "", "x", "\ud800", "a\nb", [], {}, [1], {"a": 1}])
values = st.recursive(
    numbers | odd | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def paths_of(tree: Any, prefix: tuple = ()) -> list[tuple]:
    """Every place in a JSON tree."""
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [prefix, *(path for key, child in children for path in paths_of(child, (*prefix, key)))]


def changed(tree: Any, path: tuple, value: Any, remove: bool) -> Any:
    """A copy of the tree with another value at a place, or none."""
    if not path:
        return value
    copy = tree.copy()
    if remove and len(path) == 1:
        del copy[path[0]]
    else:
        copy[path[0]] = changed(tree[path[0]], path[1:], value, remove)
    return copy


@lru_cache
def whole(kind: str) -> tuple[dict[str, bytes], list[tuple[str, tuple]]]:
    """A small model directory of this format -> its files, and every place in its JSON."""
    folder = Path(tempfile.mkdtemp()) / "model"
    if kind == "own":
        tokenizer = tiny_tokenizer()
        model = tiny_model(vocab_size=tokenizer.vocab_size)
        model.tokenizer, model.image_processor = tokenizer, ImageProcessor(16)
        model.save_pretrained(folder)
    elif kind == "smolvlm":
        oracle.save(folder, oracle.model(8, 2, False))
        (folder / "preprocessor_config.json").write_text(
            '{"size": {"longest_edge": 64}, "image_mean": [0.5, 0.5, 0.5]}'
        )
    else:
        tokenizer = characters()
        smaller = {"max_img_size": 64} if "450m" in kind else {}  # else a picture becomes four thousand tiles
        fixture(folder, kind, tokenizer, lm_tokenizer=None, **smaller)
        tokenizer.save_pretrained(folder)
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    settings_files = [name for name in files if name.endswith(".json") and name != "tokenizer.json"]
    return files, [(name, path) for name in settings_files for path in paths_of(json.loads(files[name]))]


@pytest.mark.parametrize("kind", ["own", "nanovlm_222m_format_tiny", "nanovlm_450m_format_tiny", "smolvlm"])
@fuzz
@given(st.data())
def test_a_model_directory_with_another_value_in_its_json(kind, data):
    files, places = whole(kind)
    name, path = data.draw(st.sampled_from(places))
    value, remove = data.draw(values), data.draw(st.booleans())
    with tempfile.TemporaryDirectory() as folder:
        for file, content in files.items():
            Path(folder, file).write_bytes(content)
        tree = changed(json.loads(files[name]), path, value, remove)
        Path(folder, name).write_text(json.dumps(tree))

        def load() -> None:
            model = VisionLanguageModel.from_pretrained(folder)
            if model.tokenizer is not None:
                size = model.config.vision.image_size
                model.generate(prompt="?", image=Image.new("RGB", (size, size)), max_new_tokens=1)

        answers_or_says_why(load)


@fuzz
@given(st.dictionaries(st.sampled_from(["model_type", "rope_theta", "rope_parameters", "layer_types"]), values))
def test_configs_of_backbones(extra):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    answers_or_says_why(lambda: llama_config({**sizes, "vocab_size": 50, **extra}))
    answers_or_says_why(lambda: siglip_config({**sizes, **extra}))


@fuzz
@given(
    st.binary(max_size=300) | st.text(max_size=100).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.none() | st.tuples(st.integers(0, 2000), st.integers(0, 20)),
)
def test_a_config_of_any_bytes(content, where):
    """The bytes alone, or in place of a part of a config that works."""
    if where:
        config, (start, length) = whole("own")[0]["config.json"], where
        content = config[:start] + content[:20] + config[start + length :]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_bytes(content)
        answers_or_says_why(lambda: VisionLanguageModel.from_pretrained(folder))


# -- chats, rows of data, pictures ------------------------------------------------------------------------------------


def saved(format: str, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((24, 18)).convert(mode).save(buffer, format)
    return buffer.getvalue()


TOKENIZER = tiny_tokenizer()
any_text = st.text(st.characters(), max_size=8)  # halves of surrogate pairs too
fragments = st.sampled_from(["{{", "}}", "{%", "%}", "for m in messages", "endfor", "m.content", "range(9)", "|", "~"])
pieces = st.lists(fragments | any_text, max_size=8).map(" ".join)
objects = [Image.new("RGB", (3, 3)), torch.zeros(2), torch.zeros(2, 2)]
things = st.sampled_from([None, 5, 1.5, b"", b"x", "x", [], {}, (), *objects]) | values


@fuzz
@given(pieces, st.none() | st.tuples(st.integers(0, 300), st.integers(0, 20)))
def test_a_chat_template_of_any_text(template, where):
    """The text alone, or in place of a part of a template that works."""
    if where:
        whole, (start, length) = TOKENIZER.settings["chat_template"], where
        template = whole[:start] + template + whole[start + length :]
    tokenizer = ChatTokenizer(TOKENIZER.tokenizer, {**TOKENIZER.settings, "chat_template": template})
    answers_or_says_why(lambda: tokenizer.encode_chat([{"role": "user", "content": "<|end|> {{ x }}"}]))


rows = st.fixed_dictionaries(
    {
        "images": things | st.lists(things, max_size=2) | st.dictionaries(st.sampled_from(["bytes", "path"]), things),
        "texts": things
        | st.lists(st.dictionaries(st.sampled_from(["user", "assistant", "x"]), any_text | things), max_size=2)
        | st.dictionaries(st.sampled_from(["user", "assistant"]), any_text | things | st.lists(any_text, max_size=2)),
    }
)

PICTURE = {"bytes": saved("PNG"), "path": None}
RIGHT = {"images": [PICTURE], "texts": [{"user": "Which?", "assistant": "red"}, {"user": "And?", "assistant": "blue"}]}
RIGHT["relevance_ratings"] = [5, 3]
nearly_right = st.builds(changed, st.just(RIGHT), st.sampled_from(paths_of(RIGHT)), things | any_text, st.booleans())


@fuzz
@given(things | rows | nearly_right, st.booleans())
def test_a_row_of_data_is_an_item_or_skipped_with_a_reason(row, num_prefix):
    samples = VQADataset([row], TOKENIZER, ImageProcessor(16), vlm_config(num_prefix), 64, min_ratings={"relevance": 4})
    item = samples[0]  # nothing is raised
    assert isinstance(item, dict) or (item.reason and "\n" not in item.reason and len(item.reason) < 1000)


IMAGES = [saved(kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "ICO")]
IMAGES += [
    saved("PNG", "I;16"),
    saved("TIFF", "F"),
    saved("PNG", "P"),
    saved("PNG", "LA"),
    b"%!PS-Adobe-3.0 EPSF-3.0\n",
]


@fuzz
@given(
    st.sampled_from(IMAGES),
    st.lists(st.tuples(st.integers(0, 400), st.binary(min_size=1, max_size=4)), max_size=4),
    st.integers(0, 5000),
    st.sampled_from([None, 8]),
)
def test_damaged_images(content, edits, keep, target):
    damaged = bytearray(content[:keep])
    for place, piece in edits:
        damaged[place : place + len(piece)] = piece
    answers_or_says_why(lambda: open_image(bytes(damaged), target))
