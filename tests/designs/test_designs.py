"""What every design must be: parts that learn, see, ignore padding, decode with a cache, and survive a save."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from nanovlm.designs.registry import DESIGNS, build, load
from nanovlm.models.language_model import KVCache
from nanovlm.models.vision_language_model import IGNORE, VisionLanguageModel
from tests.tiny import IMAGE, ONE_IMAGE, VOCAB_SIZE, ids_of, loud, max_difference, random_images, tiny_config

TOLERANCE = 1e-5
every_design = pytest.mark.parametrize("name", DESIGNS)
IDS = torch.tensor([ids_of([ONE_IMAGE, 7, 8, 9, 10, 11, 12]), ids_of([8, 9, ONE_IMAGE, 10, 11, 12, 13])])


def loud_design(name: str, image_token_id: int | None = IMAGE) -> VisionLanguageModel:
    return loud(build(name, tiny_config(image_token_id)))


def logits_alone(model: VisionLanguageModel, ids: Tensor, images: Tensor) -> Tensor:
    return model(ids[None], images).logits[0]


@every_design
@pytest.mark.parametrize("image_token_id", [IMAGE, None], ids=["placeholders", "in front"])
def test_every_weight_and_every_pixel_has_a_gradient(name: str, image_token_id: int | None) -> None:
    model = loud_design(name, image_token_id).train()
    images, targets = random_images(2).requires_grad_(), IDS.roll(-1, dims=1)
    targets[:, :6] = IGNORE
    ids = IDS if image_token_id is not None else IDS.clamp(min=7)
    output = model(ids, images, targets=targets)
    assert output.logits.shape == ((targets != IGNORE).sum(), VOCAB_SIZE)
    output.loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
    if name == "dropped_tokens":  # that is the point; through the encoder they still count a little
        assert images.grad.abs().sum() > 0
    else:
        assert (images.grad.abs().amax(dim=1) > 0).all()


@every_design
@torch.no_grad()
def test_another_image_gives_other_logits_behind_it_only(name: str) -> None:
    model, images = loud_design(name), random_images(3)
    one, other = model(IDS, images[:2]).logits, model(IDS, images[[2, 1]]).logits
    assert max_difference(one[1], other[1]) < TOLERANCE
    assert (one[0, 4:] - other[0, 4:]).abs().amax(dim=1).min() > 1e-4
    last = model(IDS, images[[0, 2]]).logits
    assert max_difference(one[1, :2], last[1, :2]) < TOLERANCE, "words in front of a picture do not see it"


@every_design
@torch.no_grad()
def test_what_comes_later_and_other_rows_change_nothing(name: str) -> None:
    model, images = loud_design(name), random_images(2)
    changed = IDS.clone()
    changed[:, 8:] = torch.tensor([20, 21])
    one, other = model(IDS, images).logits, model(changed, images).logits
    assert max_difference(one[:, :8], other[:, :8]) < TOLERANCE
    assert max_difference(one[:, 8:], other[:, 8:]) > 1e-2
    for row in range(2):
        assert max_difference(one[row], logits_alone(model, IDS[row], images[row : row + 1])) < TOLERANCE


@every_design
@torch.no_grad()
def test_padding_and_neighbours_in_a_packed_row_change_nothing(name: str) -> None:
    model, images = loud_design(name), random_images(2)
    alone = [logits_alone(model, IDS[row], images[row : row + 1]) for row in range(2)]
    left, right = torch.full((2, 3), 9), torch.full((2, 2), 10)
    real = torch.ones_like(IDS)
    mask = torch.cat([torch.zeros_like(left), real, torch.zeros_like(right)], dim=1)
    padded = model(torch.cat([left, IDS, right], dim=1), images, mask).logits[:, 3:-2]
    documents = torch.cat([0 * real[:1], real[1:], -real[:1, :2]], dim=1)
    packed = model(torch.cat([IDS[:1], IDS[1:], right[:1]], dim=1), images, document_ids=documents).logits[0]
    for row, expected in enumerate(alone):
        assert max_difference(padded[row], expected) < TOLERANCE
        assert max_difference(packed[10 * row : 10 * row + 10], expected) < TOLERANCE


@every_design
def test_save_and_load_give_the_same_logits_bit_for_bit(name: str, tmp_path: Path) -> None:
    model, images = loud_design(name), random_images(2)
    model.save_pretrained(tmp_path)
    again = load(tmp_path).eval()
    assert again.config == model.config and again.config.design == name
    assert torch.equal(again(IDS, images).logits, model(IDS, images).logits)
    with pytest.raises(ValueError, match=f"holds a model of the design '{name}'.*registry.load") as error:
        VisionLanguageModel.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


@every_design
@pytest.mark.parametrize("image_token_id", [IMAGE, None], ids=["placeholders", "in front"])
@torch.no_grad()
def test_the_cache_gives_the_logits_of_the_whole_sequence(name: str, image_token_id: int | None) -> None:
    model, images = loud_design(name, image_token_id), random_images(2)
    ids = IDS if image_token_id is not None else IDS.clamp(min=7)
    ids = torch.cat([torch.tensor([[13, 14], [9, 9]]), ids, torch.tensor([[15, 16, 17], [18, 19, 20]])], dim=1)
    real = torch.ones_like(ids)
    real[1, :2] = 0  # the second row is shorter
    expected = model(ids, images, real).logits[:, -4:]
    x, mask, _ = model.embed(ids[:, :-3], images, real[:, :-3])
    cache = KVCache(model.config.language, 2, x.shape[1] + 3, like=x)
    logits = [model.decoder.head(model.decoder(x, mask, cache=cache)[:, -1])]
    cache.select(torch.tensor([1, 0]))  # as beam search does
    for tokens in ids[:, -3:].T:
        x = model.decoder.token_embedding(tokens.flip(0))[:, None]
        logits.append(model.decoder.head(model.decoder(x, cache=cache)[:, -1]).flip(0))
    assert max_difference(torch.stack(logits, dim=1), expected) < TOLERANCE
    assert model.generate(ids, images, real, max_new_tokens=3, num_beams=2).shape[0] == 2


@every_design
def test_recomputing_activations_changes_no_gradient(name: str) -> None:
    model, images = loud_design(name).train(), random_images(2)

    def gradients() -> list[Tensor]:
        model.zero_grad()
        model(IDS, images, targets=IDS).loss.backward()
        return [p.grad.clone() for p in model.parameters()]

    plain = gradients()
    model.gradient_checkpointing()
    assert all(torch.equal(a, b) for a, b in zip(plain, gradients(), strict=True))


def test_wrong_names_and_wrong_directories_get_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"There is no design 'perceiver'. There are standard, cnn, .*"):
        build("perceiver", tiny_config())
    VisionLanguageModel(tiny_config()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="names no design"):
        load(tmp_path)
