"""The learner's code is kept, comes back in another session, and runs the shipped weights."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nanovlm.assets import asset_path
from nanovlm.course import check, my_vlm, progress, use, yours
from nanovlm.course.commands import course_cli
from nanovlm.course.exercises.ch03.pixel_shuffle import SHUFFLE
from nanovlm.course.exercises.ch03.projector import PROJECTOR
from nanovlm.course.judge.engine import judge
from nanovlm.course.judge.exercise import REGISTRY, load_exercises
from nanovlm.course.own_code import CannotKeep, globals_read, own_code
from nanovlm.course.progress import load, passed_ids
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
    my_vlm.write("toy.part", source)
    again = my_vlm.load("toy.part").Part
    x = torch.ones(1, 4, 2)
    assert torch.equal(again()(x), space["Part"]()(x))
    assert abs(again()(x)[0, 0, 0].item() - (F.silu(torch.tensor(1.0)).item() / 2 + math.pi)) < 1e-5
    user = cell("def user(x):\n    return Part()(x)\n", tmp_path)
    user["Part"] = again  # what came back is imported by what is made of it
    assert "from my_vlm.toy_part import Part" in own_code(user["user"])[1]


# Globals that a notebook is full of, beside definitions that use the same names for something else.
FULL = """
    import functools
    import torch
    from torch import Tensor, nn
    import torch.nn.functional as F

    x = torch.randn(1, 3, 8)
    b = c = h = w = images = row = mask = torch.ones(2)
    scale = torch.ones(())
    SCALE = 2.0

    def helper(y):
        return deeper(y) * SCALE

    def deeper(y):
        return y

    def sum(values):
        return values
"""

READ = {
    "an argument": ("def f(x, *row, mask=None, **w):\n    return x, row, mask, w", set()),
    "locals and unpacking": ("def f(given):\n    b, c, (h, *w) = given.shape\n    return b * c + h", set()),
    "a for, a with and an except": (
        "def f(given):\n    for row in given:\n        pass\n    try:\n        with given as h:\n"
        "            return h, row\n    except ValueError as c:\n        raise TypeError from c",
        set(),
    ),
    "a walrus": ("def f(given):\n    if (x := given):\n        return x", set()),
    "comprehensions": (
        "def f(given):\n    return [row for row in given], {b: c for b, c in {}}, {x for x in given}, (h for h in '')",
        set(),
    ),
    "a lambda": ("def f(given):\n    return sorted(given, key=lambda row: row[0])", set()),
    "a nested function": (
        "def f(given):\n    x = given\n    def inner(row):\n        nonlocal x\n        return x + row\n    return x",
        set(),
    ),
    "an attribute and a keyword": ("def f(given):\n    return given.x.mask(h=given.w)", set()),
    "annotations": ("def f(given: x, other: 'row' = None) -> mask:\n    here: images = given\n    return here", set()),
    "a module": (
        "class f(nn.Module):\n    scale = 3.0\n    twice = scale * 2\n    def __init__(self, x):\n"
        "        super().__init__()\n"
        "        self.h = x\n    def forward(self, x):\n        b, c = x.shape\n        return F.silu(x) * self.scale",
        {"nn", "F"},
    ),
    "a helper in another cell": ("def f(x):\n    return helper(x)", {"helper"}),
    "a helper in a comprehension": ("def f(x):\n    return [helper(row) for row in x]", {"helper"}),
    "a helper in a nested function": (
        "def f(x):\n    def inner():\n        return helper(x)\n    return inner()",
        {"helper"},
    ),
    "a default, a decorator and a base": (
        "class f(functools.partial):\n    size = SCALE\n    @functools.cache\n"
        "    def g(self, x=deeper):\n        return x",
        {"functools", "SCALE", "deeper"},
    ),
    "a global statement": ("def f(x):\n    global SCALE\n    return x * SCALE", {"SCALE"}),
    "a name read before the class has its own": (
        "class f:\n    SCALE = SCALE + 1\n    def g(self):\n        pass",
        {"SCALE"},
    ),
    "a built-in that was given to something else": ("def f(x):\n    return sum(x), max(x)", {"sum", "max"}),
}


@pytest.mark.parametrize("what", READ)
def test_only_names_that_are_read_as_globals_are_followed(what: str, tmp_path: Path) -> None:
    code, names = READ[what]
    assert globals_read(code) - {"ValueError", "TypeError", "sorted", "super"} == names
    space = cell(textwrap.dedent(FULL) + "\n" + code, tmp_path)
    _, source = own_code(space["f"])
    kept: dict[str, Any] = {"__name__": "alone"}
    exec(source, kept)
    assert names - {"max"} <= set(kept) and ("def sum" in source) == ("sum" in names)
    assert ("helper" in names) == ("def deeper" in source and "SCALE = 2.0" in source and "def helper" in source)


def test_a_right_part_beside_globals_of_the_same_names_is_kept(tmp_path: Path) -> None:
    mlp = """
        class ViTMLP(nn.Module):
            def __init__(self, config):
                super().__init__()
                self.fc1 = nn.Linear(config.hidden_dim, config.inter_dim)
                self.fc2 = nn.Linear(config.inter_dim, config.hidden_dim)

            def forward(self, x: Tensor) -> Tensor:
                return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        """
    space = cell(textwrap.dedent(FULL) + textwrap.dedent(mlp), tmp_path)
    result = check("vit.mlp", space["ViTMLP"])
    assert result.passed and result.note == ""
    assert use("vit.mlp").__module__ == "my_vlm.vit_mlp"


def test_a_decorated_function_lives_among_its_own_names(tmp_path: Path) -> None:
    """torch.no_grad wraps in a module that has an F of its own, which is no part of the learner's code."""
    code = """
        import torch
        import torch.nn.functional as F

        @torch.no_grad()
        def f(x):
            return F.silu(x)

        class Part(torch.nn.Module):
            @torch.no_grad()
            def forward(self, x):
                return F.silu(x)
        """
    space = cell(code, tmp_path)
    for name in ("f", "Part"):
        _, source = own_code(space[name])
        assert "import torch.nn.functional as F" in source and "@torch.no_grad()" in source


def test_a_dataclass_with_one_method_is_found(tmp_path: Path) -> None:
    code = """
        from dataclasses import dataclass

        @dataclass
        class Part:
            size: int

            def area(self):
                return self.size**2
        """
    my_vlm.write("toy.part", own_code(cell(code, tmp_path)["Part"])[1])
    assert my_vlm.load("toy.part").Part(3).area() == 9


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
    assert use(SHUFFLE.id, lambda x, factor: x) is pixel_shuffle
    assert "does not pass its check yet" in capsys.readouterr().out
    assert check(SHUFFLE.id, use(SHUFFLE.id)).rung == "not_run", "the reference is nobody's answer"
    assert SHUFFLE.id not in passed_ids(), "a chapter's answer is not the learner's: only check counts"
    assert check(SHUFFLE.id, space["my_shuffle"]).passed
    capsys.readouterr()
    own = use(SHUFFLE.id)  # from the file
    assert capsys.readouterr().out == ""
    assert own.__name__ == "my_shuffle" and own is not space["my_shuffle"]
    assert judge(SHUFFLE, own).passed
    assert use(SHUFFLE.id, pixel_shuffle).__name__ == "my_shuffle", "what the learner wrote goes before the chapter's"
    assert "your version goes on" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"no exercise 'nope'"):
        use("nope")


MINE = """
    def my_shuffle(x, factor):
        side = round(x.shape[1] ** 0.5) // factor
        x = x.reshape(x.shape[0], side, factor, side, factor, -1).transpose(2, 3)
        return x.reshape(x.shape[0], side * side, -1)
    """


@pytest.fixture
def kept_file(own_home: Path, tmp_path: Path) -> Path:
    """The file of a right answer."""
    assert check(SHUFFLE.id, cell(MINE, tmp_path)["my_shuffle"]).note == ""
    return own_home / "my_vlm" / "pixel_shuffle_shuffle.py"


def test_what_passed_is_a_package_that_plain_python_imports(own_home: Path, kept_file: Path) -> None:
    assert "def my_shuffle" in kept_file.read_text()
    program = "import torch, my_vlm.pixel_shuffle_shuffle as m; print(*m.my_shuffle(torch.ones(1, 4, 2), 2).shape)"
    environment = {**os.environ, "PYTHONPATH": str(own_home)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["1", "1", "8"], done.stderr
    record = json.loads((own_home / "progress.json").read_text())["exercises"][SHUFFLE.id]
    assert "source" not in record and record["name"] == "my_shuffle"


def test_the_files_are_the_learners_to_change(kept_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = kept_file.read_text()
    assert use(SHUFFLE.id).__module__ == "my_vlm.pixel_shuffle_shuffle"
    helper = kept_file.with_name("helpers.py")
    helper.write_text("def halves(n, factor):\n    return n // factor\n")
    helper.chmod(0o600)
    kept_file.write_text(
        text.replace("annotations\n", "annotations\nfrom my_vlm.helpers import halves\n").replace(
            "** 0.5) // factor", "** 0.5)\n    side = halves(side, factor)"
        )
    )
    assert judge(SHUFFLE, use(SHUFFLE.id)).passed and use(SHUFFLE.id) is not pixel_shuffle
    kept_file.write_text(text.replace("transpose(2, 3)", "transpose(1, 2)"))
    assert use(SHUFFLE.id) is pixel_shuffle and "does not pass its check any more" in capsys.readouterr().out
    kept_file.write_text(text + "\n1 / 0\n")
    assert use(SHUFFLE.id) is pixel_shuffle and "ZeroDivisionError" in capsys.readouterr().out
    kept_file.unlink()
    assert use(SHUFFLE.id) is pixel_shuffle and "could not be kept" in capsys.readouterr().out


def test_checking_what_was_kept_leaves_its_file(kept_file: Path) -> None:
    kept_file.write_text(kept_file.read_text() + "# a word of my own\n")
    use(SHUFFLE.id, use(SHUFFLE.id))
    assert "a word of my own" in kept_file.read_text()


def test_every_exercise_has_a_file_of_its_own() -> None:
    names = [my_vlm.module_name(exercise_id) for exercise_id in load_exercises()]
    assert len(set(names)) == len(names) and all(name.isidentifier() for name in names)


def test_code_that_the_progress_file_held_becomes_a_file(
    own_home: Path, kept_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As earlier versions wrote it: no machine is recorded, so the code is asked for, and run after a word."""
    source = kept_file.read_text().partition("\n\n")[2]
    kept_file.unlink()
    record = {"passed": True, "checks": 3, "hints": 1, "mistakes": {}, "name": "my_shuffle", "source": source}
    path = own_home / "progress.json"
    path.write_text(json.dumps({"version": 1, "exercises": {SHUFFLE.id: record}, "quizzes": {}}))
    path.chmod(0o600)
    assert use(SHUFFLE.id) is pixel_shuffle and "nanovlm course trust" in capsys.readouterr().out
    assert kept_file.is_file(), "there to be read"
    assert course_cli(["trust"]) == 0
    assert use(SHUFFLE.id).__name__ == "my_shuffle"
    assert load()["exercises"][SHUFFLE.id] == record


# What a stranger's progress could do.

BOMB = "raise SystemExit('a stranger was here')\n"


def test_files_that_others_can_write_are_not_run(kept_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept_file.write_text(BOMB)
    for path, mode in ((kept_file, 0o620), (kept_file, 0o602), (kept_file.parent, 0o770), (kept_file.parent, 0o707)):
        before = path.stat().st_mode
        path.chmod(mode)
        assert use(SHUFFLE.id) is pixel_shuffle
        assert f'chmod go-w "{path}"' in capsys.readouterr().out
        path.chmod(before)
    helper = kept_file.with_name("helpers.py")
    helper.write_text(BOMB)
    helper.chmod(0o666)
    kept_file.write_text("import my_vlm.helpers\n")
    assert use(SHUFFLE.id) is pixel_shuffle and f'chmod go-w "{helper}"' in capsys.readouterr().out


def test_files_of_another_user_are_not_run(
    kept_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept_file.write_text(BOMB)
    for path in (kept_file, kept_file.parent):
        status = path.stat()
        other = SimpleNamespace(st_uid=status.st_uid + 1, st_mode=status.st_mode)
        with pytest.raises(my_vlm.Refused, match=r"belongs to another user.*NANOVLM_HOME"):
            my_vlm.refuse_others(other, path)
    monkeypatch.setattr(my_vlm, "refuse_others", mock.Mock(side_effect=my_vlm.Refused("It is not yours.")))
    assert use(SHUFFLE.id) is pixel_shuffle and "It is not yours; the reference" in capsys.readouterr().out


def test_code_from_elsewhere_is_asked_for_once(
    kept_file: Path, saved: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(PROJECTOR.id, handed_in("solutions", "03")[PROJECTOR.id]).passed
    monkeypatch.setattr(progress, "this_machine", lambda: "another")
    text = kept_file.read_text()
    kept_file.write_text(BOMB)
    capsys.readouterr()
    assert use(SHUFFLE.id) is pixel_shuffle
    assert set(yours(directory=saved).parts.values()) == {"reference"}
    said = capsys.readouterr().out
    assert said.count("another machine") == 2, "once for use, once for all parts of yours"
    kept_file.write_text(text)
    assert course_cli(["trust"]) == 0
    assert use(SHUFFLE.id).__name__ == "my_shuffle"
    assert yours(directory=saved).parts[SHUFFLE.id] == "yours"


def test_what_cannot_be_written_lasts_for_the_session(
    own_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("NANOVLM_HOME", str(tmp_path / "file" / "home"))
    assert "could not be written" in check(SHUFFLE.id, cell(MINE, own_home)["my_shuffle"]).note
    assert use(SHUFFLE.id).__name__ == "my_shuffle"


def test_what_cannot_be_kept_is_said_for_a_part_and_for_other_answers(tmp_path: Path) -> None:
    code = """
        import torch
        WEIGHT = torch.ones(())

        def shuffle(x, factor):
            return right(x, factor) * WEIGHT
        """
    space = cell(code, tmp_path)
    space["right"] = pixel_shuffle
    note = check(SHUFFLE.id, space["shuffle"]).note
    assert "yours() cannot use it" in note and "it uses WEIGHT, which another cell made" in note
    space["right"] = load_exercises()["pixel_shuffle.unshuffle"].reference
    note = check("pixel_shuffle.unshuffle", space["shuffle"]).note
    assert 'use("pixel_shuffle.unshuffle") cannot' in note and "yours()" not in note


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


@pytest.mark.usefixtures("solved")
def test_the_model_from_every_solution_is_the_packages_model(model: VisionLanguageModel, saved: Path) -> None:
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
        if REGISTRY[exercise_id].chapter == "09":
            continue  # these work when answers are written: test_chapter_09
        replacement = Bomb if isinstance(REGISTRY[exercise_id].reference, type) else bomb
        with pytest.raises((ZeroDivisionError, ValueError)):
            broken = yours(replace={exercise_id: replacement}, directory=saved)
            given = question(broken)
            like = given["input_ids"]
            broken(**given, attention_mask=torch.ones_like(like), targets=torch.full_like(like, 5))


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


def test_a_model_of_yours_is_shown_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOVLM_HOME", str(tmp_path))
    shown = repr(yours())
    assert "\n" not in shown and "0 of" in shown
    assert "\n" in repr(VisionLanguageModel.from_pretrained(asset_path("pocket"))), "the package's class stays as it is"
