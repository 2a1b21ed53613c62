"""What chapter 14 measures with, on scenes small enough to count by hand."""

from __future__ import annotations

import pytest
import torch

from nanovlm.assets import asset_path
from nanovlm.course import chapter_14 as measure
from nanovlm.data.thimble.drawing import COLOURS
from nanovlm.data.thimble.shapes import CELLS, SHAPES
from nanovlm.inference.prompts import prepare_prompt
from nanovlm.models.vision_language_model import VisionLanguageModel
from nanovlm.models.vision_transformer import ViTBlock

SCENE = dict(zip(CELLS, ("red star", "nothing", "red circle", "blue heart"), strict=True))


@pytest.fixture(scope="module")
def pocket() -> VisionLanguageModel:
    return VisionLanguageModel.from_pretrained(asset_path("pocket")).eval()


def test_shares_are_told_apart_by_who_asks() -> None:
    table = torch.arange(16.0).view(1, 4, 4)
    means, same, other = measure.shares_by_asker([SCENE], table)
    red, blue = COLOURS.index("red"), COLOURS.index("blue")
    assert means[red, red] == (2 + 8) / 2 and means[red, blue] == (3 + 11) / 2 and means[blue, red] == (12 + 14) / 2
    assert means[blue, blue].isnan()
    assert (same, other) == (5, 7)  # the blue one has no other blue one to choose
    found = measure.shares_by([SCENE], table)
    assert found["shape"]["nothing"] == (1 + 9 + 13) / 3 and found["colour"]["blue"] == 7


def test_questions_about_shapes_have_one_row_for_each_shape() -> None:
    colour, shape, again = measure.questions_about_shapes([SCENE, SCENE, SCENE])
    assert colour.where[:3].tolist() == [[0, 0], [0, 2], [0, 3]] and colour.is_test.tolist() == [False] * 6 + [True] * 3
    assert [COLOURS[i] for i in colour.labels[:3]] == ["red", "red", "blue"]
    assert [SHAPES[i] for i in shape.labels[:3]] == ["star", "circle", "heart"]
    assert again.labels[:3].tolist() == [1, 1, 0] and again.most_frequent == pytest.approx(2 / 3)


def test_the_layers_are_those_of_the_model(pocket: VisionLanguageModel) -> None:
    image = measure.drawn(["red star", "yellow triangle", "blue circle", "purple square"])
    ids, pixels = prepare_prompt(pocket, "Where is the red star?", image)
    with torch.inference_mode():
        hidden = pocket(torch.tensor([ids]), pixels, output_hidden_states=True).hidden_states
    states = measure.states_by_quarter(pocket, [image])
    for name, state in (("tokens", hidden[0]), ("dec. 1", hidden[2]), ("dec. 3", hidden[4])):
        wanted = state[:, 1:17][:, measure.QUARTERS].mean(dim=2)
        torch.testing.assert_close(states[name], wanted, rtol=1e-4, atol=1e-4)


def test_an_encoder_without_heads_is_another_one_and_the_model_stays(pocket: VisionLanguageModel) -> None:
    pixels, encoder = pocket.image_processor([measure.drawn(["red star"] * 4)]), pocket.vision_encoder
    with torch.inference_mode():
        before = encoder(pixels)
        assert torch.equal(measure.with_blocks(pocket, ViTBlock)(pixels), before)
        assert not torch.allclose(measure.without_heads(pocket, [1])(pixels), before, atol=1e-2)
        assert torch.equal(encoder(pixels), before) and pocket.vision_encoder is encoder
