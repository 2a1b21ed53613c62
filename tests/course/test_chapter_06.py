"""Chapter 06's promises: the learner's own parts run the shipped weights, and one wrong part is felt."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch import Tensor

from nanovlm.assets import asset_path
from nanovlm.config import VLMConfig, pocket_vlm
from nanovlm.course import check, yours
from nanovlm.course.exercises.ch06.loss import answer_loss
from nanovlm.course.exercises.ch06.measures import parameters_by_part
from nanovlm.course.your_parts import part_ids
from nanovlm.data.thimble import thimble_sample
from nanovlm.evaluation.scores import evaluate
from nanovlm.inference.prompts import prepare_prompt
from nanovlm.models.vision_language_model import VisionLanguageModel
from tests.course.learners import handed_in
from tests.tiny import ids_of, random_images

QUESTION = "Where is the red star?"
SAMPLES = 40


def wrong_reshape(x: Tensor, factor: int) -> Tensor:
    """Chapter 03's trap: the right shape, and a row of patches for a tile."""
    batch, num_patches, dim = x.shape
    return x.reshape(batch, num_patches // factor**2, dim * factor**2)


@pytest.fixture(scope="module")
def pocket() -> VisionLanguageModel:
    return VisionLanguageModel.from_pretrained(asset_path("pocket")).eval()


def accuracy(model: VisionLanguageModel) -> float:
    samples = [thimble_sample("shapes", "test", i, image_size=64) for i in range(SAMPLES)]
    return evaluate(model, samples, blind=False).accuracy


def test_the_joint_is_made_of_the_learners_own_parts() -> None:
    assert {"fusion.merge_image_tokens", "fusion.embed", "fusion.forward"} <= set(part_ids())


@pytest.mark.usefixtures("solved")
def test_ones_own_parts_run_the_shipped_weights(pocket: VisionLanguageModel) -> None:
    mine = yours()
    assert set(mine.parts.values()) == {"yours"}
    image = Image.open(asset_path("images/shapes.png"))
    ids, pixels = prepare_prompt(pocket, QUESTION, image)
    with torch.inference_mode():
        expected = pocket(torch.tensor([ids]), pixels).logits
        torch.testing.assert_close(mine(torch.tensor([ids]), pixels).logits, expected, rtol=1e-4, atol=1e-4)
    assert mine.generate(image=image, prompt=QUESTION) == "top left"


@pytest.mark.usefixtures("solved")
def test_one_wrong_part_gives_visibly_wrong_answers() -> None:
    """On 200 pictures: nearly all right with the right shuffle, about a half with the wrong one; guessing is 31 %."""
    right, wrong = accuracy(yours()), accuracy(yours(replace={"pixel_shuffle.shuffle": wrong_reshape}))
    assert right > 0.9
    assert wrong < 0.65 and right - wrong > 0.3


def test_a_reader_who_has_solved_nothing_gets_the_references(
    pocket: VisionLanguageModel, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = yours()
    assert set(mine.parts.values()) == {"reference"}
    assert f"0 of {len(part_ids())} parts are your own" in capsys.readouterr().out
    image = Image.open(asset_path("images/shapes.png"))
    assert mine.generate(image=image, prompt=QUESTION) == pocket.generate(image=image, prompt=QUESTION)


@pytest.mark.parametrize("exercise_id", ["fusion.merge_image_tokens", "fusion.embed", "fusion.forward"])
def test_a_part_alone_does_what_the_package_does(
    exercise_id: str, model: VisionLanguageModel, model_in_front: VisionLanguageModel, tmp_path
) -> None:
    """Each solution in the tiny model, in both generations, with several pictures, padding and targets."""
    assert check(exercise_id, handed_in("solutions", "06")[exercise_id]).passed
    rows = [ids_of([2, -1, 7, -1, 8]), [*ids_of([2, -1, 9, 9]), 0, 0, 0, 0, 0]]
    rows[1] = rows[1][: len(rows[0])] + [0] * (len(rows[0]) - len(rows[1]))
    batches = (
        (model, torch.tensor(rows), random_images(3)),
        (model_in_front, torch.tensor([[2, 7, 8], [0, 2, 9]]), random_images(2)),
    )
    for package, input_ids, images in batches:
        directory = package.save_pretrained(tmp_path / str(package.config.image_token_id))
        mine = yours(directory=directory)
        assert mine.parts[exercise_id] == "yours"
        mask = (input_ids != 0).long()
        targets = torch.where(mask.bool(), input_ids.roll(-1, 1), -100)
        with torch.no_grad():
            for arguments in ({}, {"targets": targets}, {"output_hidden_states": True}):
                ours, theirs = (each(input_ids, images, mask, **arguments) for each in (mine, package.eval()))
                torch.testing.assert_close(ours.logits, theirs.logits)
                assert (ours.loss is None) == (theirs.loss is None)
                torch.testing.assert_close(ours.loss, theirs.loss)
                torch.testing.assert_close(ours.hidden_states, theirs.hidden_states)


def test_the_formula_counts_what_the_model_holds() -> None:
    changed = pocket_vlm()
    changed = replace(changed, language=replace(changed.language, tie_weights=False, num_kv_heads=1))
    for config in (VLMConfig(), pocket_vlm(), changed):
        with torch.device("meta"):
            model = VisionLanguageModel(config)
        held = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
        assert parameters_by_part(config) == held


def test_the_reference_of_the_loss_is_the_models(model_in_front: VisionLanguageModel) -> None:
    input_ids, images = torch.tensor([[2, 7, 8], [2, 9, 9]]), random_images(2)
    targets = torch.tensor([[-100, 8, 9], [-100, -100, 7]])
    with torch.no_grad():
        out = model_in_front(input_ids, images, targets=targets)
        x = model_in_front.decoder(model_in_front.embed(input_ids, images, None)[0])
        logits, loss = answer_loss(model_in_front.decoder.head, x, targets)
    torch.testing.assert_close(logits, out.logits)
    torch.testing.assert_close(loss, out.loss)


def test_a_batch_without_a_target_has_a_loss_of_nan_and_no_gradient() -> None:
    """What fusion.answer_loss tells whoever lets it through."""
    head = torch.nn.Linear(4, 5, bias=False)
    x = torch.ones(1, 2, 4, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(head(x).flatten(0, 1), torch.tensor([-100, -100]))
    loss.backward()
    assert loss.isnan() and x.grad is not None and head.weight.grad is not None
    assert not x.grad.any() and not head.weight.grad.any()
