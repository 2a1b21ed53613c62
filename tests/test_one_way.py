"""A picture's way through the package: it does not go to and fro between modules. CONTRIBUTING draws it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from PIL import Image

from nanovlm import VisionLanguageModel
from nanovlm.assets import asset_path
from nanovlm.data.collators import VQACollator
from nanovlm.data.datasets import VQADataset
from nanovlm.data.thimble import Thimble
from nanovlm.training.step import forward

IMAGE = asset_path("images/shapes.png")


def holds_image(value: Any) -> bool:
    """A file, a PIL picture, pixels [..., 3, H, W], or a container of one."""
    if isinstance(value, dict):
        return any(map(holds_image, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(holds_image, value[:4]))
    if isinstance(value, torch.Tensor):
        return value.ndim >= 3 and value.shape[-3] == 3 and value.shape[-1] > 3
    return isinstance(value, (Image.Image, Path))


def modules_entered(run: Callable[[], Any]) -> list[str]:
    """The package's modules that are handed a picture by another module of the package, in order."""
    entered: list[str] = []

    def module_of(frame: FrameType | None) -> str:
        while frame is not None and not frame.f_globals.get("__name__", "").startswith("nanovlm."):
            frame = frame.f_back
        return "" if frame is None else frame.f_globals["__name__"]

    def watch(frame: FrameType, event: str, _: Any) -> None:
        name = frame.f_globals.get("__name__", "")
        if event != "call" or not name.startswith("nanovlm.") or module_of(frame.f_back) == name:
            return
        count = frame.f_code.co_argcount + frame.f_code.co_kwonlyargcount
        arguments = [frame.f_locals.get(argument) for argument in frame.f_code.co_varnames[: count + 2]]
        if any(map(holds_image, arguments)):
            entered.append(name.removeprefix("nanovlm."))

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        run()
    finally:
        sys.setprofile(before)
    return entered


def test_a_image_enters_each_module_at_most_twice_on_its_way_to_an_answer() -> None:
    model = VisionLanguageModel.from_pretrained(asset_path("pocket")).eval()
    way = modules_entered(lambda: model.generate(image=IMAGE, prompt="How many shapes are there?", max_new_tokens=2))
    assert way == [
        "models.vision_language_model",
        "inference.generate",
        "inference.prompts",
        "data.processors",
        "data.images",
        "pixels",
        "models.vision_language_model",
        "models.vision_transformer",
    ]


def test_a_training_sample_enters_each_module_once() -> None:
    model = VisionLanguageModel.from_pretrained(asset_path("pocket"))
    data = VQADataset(Thimble("shapes", size=2), model.tokenizer, model.image_processor, model.config, raw_pixels=True)
    samples = [data.dataset[i] for i in range(2)]
    collate = VQACollator(model.tokenizer.pad_token_id)

    def run() -> None:
        items = [data.encode(samples[0], 0)]
        forward(model, collate(items), torch.device("cpu"))

    assert modules_entered(run) == [
        "data.datasets",
        "data.processors",
        "data.images",
        "data.collators",
        "training.step",
        "pixels",
        "models.vision_language_model",
        "models.vision_transformer",
    ]
