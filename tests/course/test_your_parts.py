"""The learner's code is kept, comes back in another session, and runs the shipped weights."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nanovlm.course import check, use, yours
from nanovlm.course.exercises.ch03.pixel_shuffle import SHUFFLE
from nanovlm.course.exercises.ch03.projector import PROJECTOR
from nanovlm.course.judge.engine import judge
from nanovlm.course.judge.exercise import REGISTRY
from nanovlm.course.own_code import CannotKeep, own_code, revive
from nanovlm.course.your_parts import ModelCode, part_ids
from nanovlm.models.modality_projector import pixel_shuffle
from nanovlm.models.vision_language_model import VisionLanguageModel
from tests.course.learners import handed_in


def cell(code: str, tmp_path: Path) -> dict[str, Any]:
    """Run code as a notebook does: in __main__, its source to be found by file name only."""
    path = tmp_path / f"cell{len(list(tmp_path.iterdir()))}.py"
    path.write_text(textwrap.dedent(code))
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(path.read_text(), str(path), "exec"), space)
    return space


def test_helpers_imports_and_constants_come_along(tmp_path: Path) -> None:
    space = cell(
        """
        import math as m
        import torch.nn.functional as F
        from torch import Tensor, nn
        from nanovlm.models.modality_projector import pixel_shuffle as shuffle

        SCALE = 0.5

        def helper(x):
            return F.silu(x) * SCALE if x.sum() else again(x)

        def again(x):
            return helper(x + 1)

        class Base(nn.Module):
            def doubled(self, x):
                return 2 * x

        class Part(Base):
            def __init__(self, size: Tensor = None):
                super().__init__()
                self.size = m.pi

            @staticmethod
            def other(x):
                return shuffle(x, 1)

            def forward(self, x: "Unknown") -> Tensor:
                return helper(self.other(x)) + self.size
        """,
        tmp_path,
    )
    name, source = own_code(space["Part"])
    assert name == "Part" and "import math as m" in source and "pixel_shuffle as shuffle" in source
    again, _ = revive(name, source, "toy.part")
    x = torch.ones(1, 4, 2)
    assert torch.equal(again()(x), space["Part"]()(x))
    assert abs(again()(x)[0, 0, 0].item() - (F.silu(torch.tensor(1.0)).item() / 2 + math.pi)) < 1e-5
    assert own_code(again)[1].count("def helper") == 1  # what came back can be kept again


def test_what_cannot_be_kept_is_said(tmp_path: Path) -> None:
    space = cell(
        """
        import torch

        WEIGHTS = torch.ones(2)

        def uses(x):
            return x * WEIGHTS

        short = lambda x: x

        def outer():
            def inner(x):
                return x
            return inner

        inner = outer()

        class Empty:
            pass
        """,
        tmp_path,
    )
    for name, words in (("uses", "WEIGHTS"), ("short", "def"), ("inner", "top of a cell"), ("Empty", "method")):
        with pytest.raises(CannotKeep, match=words):
            own_code(space[name])
    with pytest.raises(CannotKeep):
        own_code(torch.nn.Linear(1, 1))


def test_a_passed_answer_is_used_in_a_later_session(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space = cell(
        """
        def my_shuffle(x, factor):
            side = round(x.shape[1] ** 0.5) // factor
            x = x.reshape(x.shape[0], side, factor, side, factor, -1).transpose(2, 3)
            return x.reshape(x.shape[0], side * side, -1)
        """,
        tmp_path,
    )
    assert use(SHUFFLE.id) is pixel_shuffle
    assert "not passed yet; the reference stands in" in capsys.readouterr().out
    assert use(SHUFFLE.id, space["my_shuffle"]) is space["my_shuffle"]
    own = use(SHUFFLE.id)  # from the file
    assert own.__name__ == "my_shuffle" and own is not space["my_shuffle"]
    assert judge(SHUFFLE, own).passed
    capsys.readouterr()
    assert use(SHUFFLE.id, lambda x, factor: x) is pixel_shuffle
    assert "does not pass its check yet" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"no exercise 'nope'"):
        use("nope")


def wrong_shuffle(x: Tensor, factor: int) -> Tensor:
    return x.reshape(x.shape[0], x.shape[1] // factor**2, -1)


@pytest.fixture
def saved(model: VisionLanguageModel, tmp_path: Path) -> Path:
    return model.save_pretrained(tmp_path / "model")


def question(model: VisionLanguageModel) -> dict[str, Tensor]:
    """One picture and three words for the tiny model."""
    config = model.config
    generator = torch.Generator().manual_seed(0)
    size = config.vision.image_size
    ids = [config.image_token_id] * config.num_image_tokens + [7, 8, 9]
    return {"input_ids": torch.tensor([ids]), "images": torch.randn(1, 3, size, size, generator=generator)}


def test_the_model_from_every_solution_is_the_packages_model(model: VisionLanguageModel, saved: Path) -> None:
    for exercise_id in part_ids():
        solution = handed_in("solutions", REGISTRY[exercise_id].chapter)[exercise_id]
        assert check(exercise_id, solution).note == "", "a solution must be kept without remarks"
    own = yours(directory=saved)
    assert set(own.parts.values()) == {"yours"} and type(own) is not VisionLanguageModel
    with torch.no_grad():
        torch.testing.assert_close(own(**question(own)).logits, model.eval()(**question(model)).logits)


def test_every_part_matters(model: VisionLanguageModel, saved: Path) -> None:
    """A part that is installed is also called: put a bomb in its place."""

    class Bomb(torch.nn.Module):
        def __init__(self, *args: object, **kwargs: object) -> None:
            raise ZeroDivisionError

    def bomb(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError

    for exercise_id in part_ids():
        replacement = Bomb if isinstance(REGISTRY[exercise_id].reference, type) else bomb
        with pytest.raises((ZeroDivisionError, ValueError)):
            broken = yours(replace={exercise_id: replacement}, directory=saved)
            ids = question(broken)
            broken(**ids, targets=torch.full_like(ids["input_ids"], 5))


def test_one_wrong_part_changes_the_answer_and_not_the_package(
    model: VisionLanguageModel, saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    right = yours(directory=saved)
    wrong = yours(replace={SHUFFLE.id: wrong_shuffle}, directory=saved)
    assert wrong.parts[SHUFFLE.id] == "replaced" and right.parts[SHUFFLE.id] == "reference"
    assert "0 of" in capsys.readouterr().out
    with torch.no_grad():
        expected = model.eval()(**question(model)).logits
        torch.testing.assert_close(right(**question(right)).logits, expected)
        assert (wrong(**question(wrong)).logits - expected).abs().max() > 1e-3
    assert pixel_shuffle.__module__ == "nanovlm.models.modality_projector"


def test_own_parts_call_each_other_and_a_wrong_one_is_felt(model: VisionLanguageModel, saved: Path) -> None:
    """A projector was kept with its own copy of pixel shuffle; swapping the shuffle must reach it."""
    for exercise_id in (SHUFFLE.id, PROJECTOR.id):
        assert check(exercise_id, handed_in("solutions", "03")[exercise_id]).passed
    wrong = yours(replace={SHUFFLE.id: wrong_shuffle}, directory=saved)
    assert wrong.parts[PROJECTOR.id] == "yours"
    back = yours(replace={SHUFFLE.id: None}, directory=saved)
    with torch.no_grad():
        expected = model.eval()(**question(model)).logits
        assert (wrong(**question(wrong)).logits - expected).abs().max() > 1e-3
        torch.testing.assert_close(back(**question(back)).logits, expected)


def test_weights_are_loaded_strictly(saved: Path) -> None:
    class Biased(torch.nn.Module):
        def __init__(self, config: Any) -> None:
            super().__init__()
            self.proj = torch.nn.Linear(config.vision_dim * config.pixel_shuffle_factor**2, config.language_dim)

    with pytest.raises(ValueError, match=r"pixel_shuffle\.projector.*missing projector\.proj\.bias|.*proj\.bias"):
        yours(replace={PROJECTOR.id: Biased}, directory=saved)
    with pytest.raises(ValueError, match=r"token_budget is not a part of the model"):
        yours(replace={"pixel_shuffle.token_budget": print}, directory=saved)


def test_a_replaced_name_is_seen_by_all_modules_of_the_copy() -> None:
    code = ModelCode()
    assert code.vision_language_model.ViT is code.vision_transformer.ViT

    class Other(code.vision_transformer.ViT):
        pass

    code.vision_transformer.ViT = Other
    code.link()
    assert code.vision_language_model.ViT is Other
    from nanovlm.models import vision_language_model, vision_transformer

    assert vision_language_model.ViT is vision_transformer.ViT is not Other
