"""The shapes in the signatures of the model are true: here every call is checked against them."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import get_type_hints

import pytest
import torch
from beartype import beartype
from jaxtyping import TypeCheckError, install_import_hook, jaxtyped

import nanovlm
from nanovlm.config import ProjectorConfig
from tests.tiny import IMAGE, ONE_IMAGE, ids_of, loud, random_images, tiny_config

PARTS = ("attention", "vision_transformer", "modality_projector", "language_model", "vision_language_model")
FILES = [Path(nanovlm.__file__).parent / "models" / f"{part}.py" for part in PARTS]


@pytest.fixture(scope="module")
def checked() -> Iterator[dict[str, ModuleType]]:
    """The model files imported a second time, with their annotations enforced; the ordinary ones come back after."""
    again = ("nanovlm.models", "nanovlm.inference")  # generation makes the caches that the models check
    ordinary = {name: module for name, module in sys.modules.items() if name.startswith(again)}
    for name in ordinary:
        del sys.modules[name]
    names = {part: f"nanovlm.models.{part}" for part in PARTS}
    with install_import_hook(list(names.values()), "beartype.beartype"):
        modules = {part: importlib.import_module(name) for part, name in names.items()}
    yield modules
    for name in [name for name in sys.modules if name.startswith(again)]:
        del sys.modules[name]
    sys.modules.update(ordinary)
    nanovlm.models = ordinary["nanovlm.models"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_training_and_packing(checked: dict[str, ModuleType], dtype: torch.dtype) -> None:
    model = loud(checked["vision_language_model"].VisionLanguageModel(tiny_config())).to(dtype).train()
    ids = torch.tensor([ids_of([ONE_IMAGE, 7, 8]), [9, 10, 11, 12, 13, 14]])
    images, real = random_images(1).to(dtype), torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1]])
    for mask in (None, real, real.bool()):
        model(ids, images, mask, ids.roll(-1, 1), output_hidden_states=True).loss.backward()
    documents = torch.tensor([[0, 0, 0, 0, 1, 1], [0, 0, 1, 1, -1, -1]])
    model(ids, images, real, ids.roll(-1, 1), documents).loss.backward()
    model.gradient_checkpointing()
    model(ids, images, targets=ids).loss.backward()


@pytest.mark.parametrize("image_token_id", [IMAGE, None], ids=["placeholders", "in front"])
def test_generation(checked: dict[str, ModuleType], image_token_id: int | None) -> None:
    model = loud(checked["vision_language_model"].VisionLanguageModel(tiny_config(image_token_id)))
    ids = torch.tensor([ids_of([ONE_IMAGE, 7]) if image_token_id else [5, 5, 5, 5, 7]]).repeat(2, 1)
    real = torch.tensor([[1, 1, 1, 1, 1]] * 2)
    real[1, 0] = int(image_token_id is not None)
    for options in ({}, {"num_beams": 3}, {"num_generations": 2, "temperature": 1.0}):
        model.generate(ids, random_images(2), real, max_new_tokens=4, **options)


def test_the_projector_gives_what_it_says(checked: dict[str, ModuleType]) -> None:
    module = checked["modality_projector"]
    for factor in (1, 2, 3, 4):
        config = ProjectorConfig(vision_dim=5, language_dim=7, pixel_shuffle_factor=factor)
        assert module.ModalityProjector(config)(torch.randn(2, 144, 5)).shape == (2, 144 // factor**2, 7)
    assert checked["vision_transformer"].resize_positions(torch.randn(1, 16, 3), 6).shape == (1, 36, 3)


def test_a_function_that_breaks_its_promise_is_caught(checked: dict[str, ModuleType]) -> None:
    """The promise of pixel_shuffle is arithmetic: num_patches // factor ** 2 tokens, factor ** 2 times as wide."""

    def unchanged(x, factor):
        return x

    unchanged.__annotations__ = get_type_hints(checked["modality_projector"].pixel_shuffle)
    enforced = jaxtyped(unchanged, typechecker=beartype)
    assert enforced(torch.randn(2, 16, 3), 1).shape == (2, 16, 3)
    with pytest.raises(TypeCheckError):
        enforced(torch.randn(2, 16, 3), 2)


def test_wrong_shapes_are_caught(checked: dict[str, ModuleType]) -> None:
    language, attention = checked["language_model"], checked["attention"]
    merge = checked["vision_language_model"].merge_image_tokens
    heads = torch.randn(2, 4, 5, 8)
    angles = torch.randn(2, 1, 5, 8)
    language.apply_rope(heads, angles, angles)
    wrong = [
        lambda: language.apply_rope(heads, angles[..., :4], angles[..., :4]),  # half of head_dim
        lambda: language.apply_rope(heads.transpose(1, 2), angles, angles),  # heads and positions exchanged
        lambda: attention.attend(heads, heads[:, :, :3], heads),  # more values than keys
        lambda: attention.attend(heads, heads, heads, torch.zeros(2, 1, 5, 5)),  # an additive mask where a bool belongs
        lambda: merge(torch.zeros(2, 6, 4), torch.zeros(1, 3, 5), torch.zeros(2, 6, dtype=torch.bool)),  # other dim
        lambda: merge(torch.zeros(2, 6, 4), torch.zeros(3, 4), torch.zeros(2, 6, dtype=torch.bool)),  # no picture axis
        lambda: language.attention_layout(torch.ones(2, 5), None, 6, heads.device),
    ]
    for call in wrong:
        with pytest.raises(TypeCheckError):
            call()


@pytest.mark.parametrize("file", FILES, ids=PARTS)
def test_no_signature_leaves_a_shape_out(file: Path) -> None:
    bare = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            for annotation in [a.annotation for a in arguments] + [node.returns]:
                text = "" if annotation is None else ast.unparse(annotation)
                if text.startswith("Tensor") or text.startswith("tuple[Tensor"):
                    bare.append(f"{node.name}: {text}")
    assert bare == []


def test_without_jaxtyping_the_annotations_are_only_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Colab has no jaxtyping."""
    monkeypatch.setitem(sys.modules, "jaxtyping", None)  # its import fails
    monkeypatch.delitem(sys.modules, "nanovlm.tensor_types")
    shapes = importlib.import_module("nanovlm.tensor_types")
    assert shapes.Float[torch.Tensor, "batch length dim"] is torch.Tensor
    assert all(hasattr(shapes, name) for name in shapes.__all__)
