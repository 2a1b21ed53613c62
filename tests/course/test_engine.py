"""The ladder, rung by rung, on a toy exercise."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from nanovlm.course import check
from nanovlm.course.exercises.ch02.blocks import SMALL
from nanovlm.course.exercises.ch05.ids import expand
from nanovlm.course.judge import guard
from nanovlm.course.judge.differences import first_difference
from nanovlm.course.judge.engine import judge
from nanovlm.course.judge.exercise import REGISTRY, Case, Complaint, Exercise, expect, load_exercises, with_weights
from nanovlm.course.judge.guard import learners_place
from nanovlm.course.judge.verdict import Result
from nanovlm.course.progress import load, passed_ids
from nanovlm.models.language_model import LanguageModel
from nanovlm.models.vision_language_model import VisionLanguageModel, merge_image_tokens
from nanovlm.models.vision_transformer import PatchEmbedding, ViTBlock


def scaled(x: Tensor, factor: float = 2.0) -> Tensor:
    return x * factor


def make(**changes: object) -> Exercise:
    settings: dict = {
        "id": "toy.scaled",
        "chapter": "00",
        "title": "A toy",
        "difficulty": 1,
        "minutes": 1,
        "why": "To test the ladder.",
        "hints": ("one", "two", "three"),
        "reference": scaled,
        "cases": lambda: [
            Case(torch.arange(6.0).reshape(2, 3), note="six numbers"),
            Case(torch.ones(1, 3), factor=3.0),
        ],
        "axes": "rows columns",
    }
    return Exercise(**settings | changes)


@pytest.fixture
def toy() -> Iterator[Exercise]:
    exercise = make()

    @exercise.property("twice the input gives twice the output")
    def _(fn) -> None:
        expect(torch.equal(fn(torch.ones(2) * 2), 2 * fn(torch.ones(2))), "It is not linear.")

    @exercise.mistake("You add where you should multiply.")
    def _(x, factor=2.0):
        return x + factor

    @exercise.mistake("You lose an axis.")
    def _(x, factor=2.0):
        return x.sum(0) * factor

    yield exercise
    del REGISTRY["toy.scaled"]


def test_a_right_answer_lists_what_holds(toy: Exercise) -> None:
    result = judge(toy, lambda x, factor=2.0: factor * x)
    assert result.passed and result.facts == ["twice the input gives twice the output"]
    assert "✓" in str(result)


def test_the_first_of_two_faults_is_named_where_one_known_version_alone_fails_so() -> None:
    exercise = make()
    del REGISTRY["toy.scaled"]

    @exercise.mistake("You add where you should multiply.")
    def _(x, factor=2.0):
        return x + factor

    def two_faults(x, factor=2.0):
        return x + factor if factor == 2 else x - 7

    assert judge(exercise, two_faults).mistake == "You add where you should multiply."

    @exercise.mistake("You add 2.")
    def _(x, factor=2.0):
        return x + 2

    assert judge(exercise, two_faults).mistake is None, "either may be meant"


def test_shapes_are_named(toy: Exercise) -> None:
    result = judge(toy, lambda x, factor=2.0: (factor * x).T)
    assert result.rung == "shape"
    assert "[3, 2]" in result.message and "rows 2 · columns 3" in result.message
    assert "another order" in result.message


def test_an_exception_shows_the_learners_line_and_its_tensors(toy: Exercise) -> None:
    def wrong(x, factor=2.0):
        y = x.reshape(4, 4)
        return y

    result = judge(toy, wrong)
    assert result.rung == "raised" and "RuntimeError" in result.message
    assert "y = x.reshape(4, 4)" in result.place and "x is [2, 3]" in result.place


def test_values_come_with_a_grid_and_the_pattern(toy: Exercise) -> None:
    result = judge(toy, lambda x, factor=2.0: -factor * x)
    assert result.rung == "values" and "Only the sign is wrong" in result.message
    assert result.grid is not None and torch.equal(result.grid.yours, -result.grid.expected)
    assert result._repr_html_().count("<table") == 3
    assert "expected" in str(result) and "difference" in str(result)
    assert "times the expected" in judge(toy, lambda x, factor=2.0: 3 * factor * x).message


def test_of_many_fractions_a_corner_is_shown_and_of_whole_numbers_more() -> None:
    def shown(right: Tensor) -> list[int]:
        finding = first_difference(right, right + 1, "batch rows columns", 1e-5)
        assert finding is not None and finding.grid is not None
        return list(finding.grid.yours.shape)

    assert shown(torch.rand(2, 20, 30)) == [4, 4]
    assert shown(torch.rand(2, 3, 8)) == [3, 8]  # few enough
    assert shown(torch.arange(1200.0).reshape(2, 20, 30)) == [8, 12]


def test_changing_the_input_is_said_even_if_the_result_is_right(toy: Exercise) -> None:
    result = judge(toy, lambda x, factor=2.0: x.mul_(factor))
    assert result.rung == "in_place" and "x" in result.message


def test_a_wrong_keyword_case_says_that_the_first_example_is_right(toy: Exercise) -> None:
    result = judge(toy, lambda x, factor=2.0: x * 2)
    assert result.rung == "values" and "The first example is right" in result.note


def test_a_property_that_does_not_hold_is_told_in_its_own_words() -> None:
    exercise = make(id="toy.property", cases=lambda: [Case(torch.ones(2))], axes="")
    exercise.property("it is linear")(lambda fn: expect(bool(fn(torch.zeros(1)) == 0), "Zero does not stay zero."))
    result = judge(exercise, lambda x: x + 1)
    del REGISTRY["toy.property"]
    assert result.rung == "property" and result.message == "Zero does not stay zero." and "it is linear" in result.note


def test_the_wrong_signature_is_explained(toy: Exercise) -> None:
    result = judge(toy, lambda: None)
    assert result.rung == "signature" and "(x)" in result.message


def test_a_not_implemented_error_of_somebody_else_is_an_error(toy: Exercise) -> None:
    def other(x, factor=2.0):
        raise NotImplementedError("conv3d on quantum computers")

    assert judge(toy, other).rung == "raised"


def test_random_numbers_outside_go_on_as_if_nothing_had_happened(toy: Exercise) -> None:
    def noisy(x, factor=2.0):
        return x * factor + torch.rand(()) * 0 + random.random() * 0

    torch.manual_seed(1)
    random.seed(1)
    wanted = torch.rand(3), random.random()
    torch.manual_seed(1)
    random.seed(1)
    judge(toy, noisy)
    assert torch.equal(torch.rand(3), wanted[0]) and random.random() == wanted[1]


def test_prints_of_the_first_call_are_shown_and_no_others(toy: Exercise, capsys: pytest.CaptureFixture[str]) -> None:
    def chatty(x, factor=2.0):
        print("hello")
        return x * factor

    judge(toy, chatty)
    assert capsys.readouterr().out == "hello\n"


def test_outputs_of_several_parts_are_named() -> None:
    exercise = make(
        id="toy.pair",
        reference=lambda x: (x.cos(), x.sin()),
        cases=lambda: [Case(torch.ones(2, 3))],
        axes={"cos": "rows columns", "sin": "rows columns"},
    )
    try:
        assert judge(exercise, lambda x: (x.cos(), x.cos())).message.count("of sin") == 1
        assert "2 things (cos, sin)" in judge(exercise, lambda x: x.cos()).message
        assert "3 things" in judge(exercise, lambda x: (x, x, x)).message
        assert "None for sin" in judge(exercise, lambda x: (x.cos(), None)).message
        assert judge(exercise, lambda x: [x.cos(), x.sin()]).passed
    finally:
        del REGISTRY["toy.pair"]


@pytest.mark.parametrize(
    ("right", "wrong", "word"),
    [
        (3, 3.0, "//"),
        (3, torch.tensor(3), ".item()"),
        (True, 1, "True or False"),
        ("a", None, "return"),
        (2.5, "2", "string"),
    ],
)
def test_plain_values_are_compared_by_kind(right: object, wrong: object, word: str) -> None:
    exercise = make(id="toy.plain", reference=lambda: right, cases=lambda: [Case()], axes="")
    try:
        assert judge(exercise, lambda: right).passed
        result = judge(exercise, lambda: wrong)
        assert result.rung in ("type", "none") and word in result.message
    finally:
        del REGISTRY["toy.plain"]


def test_check_never_raises_and_remembers(toy: Exercise, capsys: pytest.CaptureFixture[str]) -> None:
    assert check("toy.scaled", scaled).passed
    assert passed_ids() == {"toy.scaled"}
    assert not check("toy.scaled", lambda x, factor=2.0: x + factor).passed
    record = load()["exercises"]["toy.scaled"]
    assert record["passed"] and record["checks"] == 2 and list(record["mistakes"].values()) == [1]
    unknown = check("toy.scalde", scaled)
    assert unknown.rung == "unknown" and "toy.scaled" in unknown.message
    assert check(None, None).rung == "unknown"  # type: ignore[arg-type]
    assert "A toy · passed" in capsys.readouterr().out


def test_an_exercise_lists_all_that_is_wrong_with_it() -> None:
    with pytest.raises(ValueError, match=r"test_engine\.py:\d+: exercise 'toy\.bad'.*difficulty.*three"):
        make(id="toy.bad", difficulty=4, hints=("one",))
    assert "toy.bad" not in REGISTRY


def test_an_id_belongs_to_one_exercise(toy: Exercise) -> None:
    def again() -> Exercise:
        return Exercise("toy.scaled", "00", "B", 1, 1, "w", ("1", "2", "3"), scaled, lambda: [Case(torch.ones(1))])

    with pytest.raises(ValueError, match="the id is taken by"):
        again()


def test_with_weights_depends_on_names_only_and_names_what_differs() -> None:
    class First(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = torch.nn.Linear(2, 3), torch.nn.Linear(3, 1, bias=False)

    class Second(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.b, self.a = torch.nn.Linear(3, 1, bias=False), torch.nn.Linear(2, 3)

    one, two = with_weights(First()), with_weights(Second(), like=First())
    assert all(torch.equal(p, two.state_dict()[name]) for name, p in one.state_dict().items())
    with pytest.raises(Complaint, match=r"no parameter a\.weight \[3, 2\]"):
        with_weights(torch.nn.Linear(2, 2), like=First())
    with pytest.raises(Complaint, match=r"it has 0\.bias, 0\.weight, 1\.bias and 1 more\."):
        with_weights(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)), like=First())
    with pytest.raises(Complaint, match=r"weight has shape \[4, 2\]; it should be \[2, 2\]"):
        with_weights(torch.nn.Linear(2, 4), like=torch.nn.Linear(2, 2))
    with pytest.raises(Complaint, match=r"bias .* is not needed"):
        with_weights(torch.nn.Linear(2, 2), like=torch.nn.Linear(2, 2, bias=False))


# What learners met who tried the real exercises.


def said(exercise_id: str, learner: object) -> str:
    result = judge(load_exercises()[exercise_id], learner)
    assert not result.passed
    return str(result)


def test_a_decoder_that_does_the_callers_work_is_told_so() -> None:
    class Logits(LanguageModel):
        def forward(self, *given, **more) -> Tensor:
            return self.head(super().forward(*given, **more))

    class Embeds(LanguageModel):
        def forward(self, x: Tensor, *given, **more) -> Tensor:
            x = self.token_embedding(x)
            return super().forward(x, *given, **more)

    assert "forward returned [1, 3, 7], logits. It should return vectors [1, 3, 24]" in said(
        "decoder.language_model", Logits
    )
    words = said("decoder.language_model", Embeds)
    assert "forward calls token_embedding" in words and "x = self.token_embedding(x)" in words


@pytest.mark.parametrize(
    ("start", "word"),
    [(torch.zeros, "start alike"), (torch.randn, "drown"), (lambda shape: torch.rand(shape) * 0.02, "times 0.02")],
)
def test_positions_should_start_small_and_random(start, word: str) -> None:
    class Started(PatchEmbedding):
        def __init__(self, config) -> None:
            super().__init__(config)
            self.position_embedding = torch.nn.Parameter(start(self.position_embedding.shape))

    assert word in said("patches.add_positions", Started)


def toy_said(right: object, wrong: object, *args: object, **changes: object) -> Result:
    """What is said of somebody who returns `wrong` where `right` is expected."""
    exercise = make(id="toy.said", reference=lambda *a: right, cases=lambda: [Case(*args)], axes="", **changes)
    try:
        return judge(exercise, lambda *a: wrong)
    finally:
        del REGISTRY["toy.said"]


def test_whole_numbers_are_compared_exactly_and_shown_with_all_digits() -> None:
    result = toy_said({"decoder": 134_515_008}, {"decoder": 134_515_007})
    assert result.message == "decoder is 134,515,007; expected 134,515,008 (1 too few)."
    assert "is 85,798,656; expected 248 (85,798,408 too many)." in toy_said(248, 85_798_656).message
    assert "yours 134,515,007, expected 134,515,008" in toy_said(*torch.tensor([[134515008], [134515007]])).message
    assert not toy_said(3, 10**5000).passed and not toy_said(3.5, 10**5000).passed
    assert toy_said(0.5, 0.5000001).passed and toy_said(float("inf"), float("inf")).passed


def test_a_loop_over_a_list_that_grows_is_an_endless_loop() -> None:
    def wrong(ids, image_token_id, num_image_tokens):
        for k, _ in enumerate(ids):  # the jump back to this line belongs to no line
            ids[k : k + 1] = [image_token_id] * num_image_tokens
        return ids

    words = said("text.image_placeholders", wrong)
    assert "a loop that never ends" in words and "In your code, line" in words


def test_a_moment_without_a_line_is_told_as_the_line_before_it() -> None:
    def wrong() -> None:
        raise ValueError

    with pytest.raises(ValueError) as caught:
        wrong()
    last = caught.tb.tb_next
    assert last is not None
    lineless = SimpleNamespace(tb_frame=last.tb_frame, tb_lasti=last.tb_lasti, tb_lineno=None, tb_next=None)
    place = learners_place(lineless)  # type: ignore[arg-type]
    assert place is not None and place.code == "raise ValueError"


def test_the_input_that_was_changed_is_named_as_the_learner_knows_it() -> None:
    class Adds(ViTBlock):
        def forward(self, x: Tensor) -> Tensor:
            x += self.attn(self.ln1(x))
            x += self.mlp(self.ln2(x))
            return x

    words = said("vit.block", Adds)
    assert "changes its input x in place" in words and "Make a new tensor" in words

    def forward(self, input_ids, *args, **kwargs):
        out = VisionLanguageModel.forward(self, input_ids, *args, **kwargs)
        input_ids.zero_()
        return out

    assert "changes its input input_ids in place" in said("fusion.forward", forward)


def test_a_list_that_was_changed_is_to_become_a_new_list() -> None:
    def wrong(ids, image_token_id, num_image_tokens):
        ids[:] = expand(ids, image_token_id, num_image_tokens)
        return ids

    words = said("text.image_placeholders", wrong)
    assert "changes its input ids in place" in words and "Make a new list" in words and "tensor" not in words


def test_short_lists_are_shown_with_their_input() -> None:
    words = said("text.image_placeholders", lambda ids, image_token_id, num_image_tokens: ids[:-1])
    assert "input     ids = [2, 4, 93, 42, 3], image_token_id = 4, num_image_tokens = 3" in words
    assert "expected  [2, 4, 4, 4, 93, 42, 3]" in words and "yours     [2, 4, 93, 42]" in words
    result = toy_said([["re", "d"], ["g"]], [["re", "d"], ["g", "<b>"]])
    assert "expected  [['re', 'd'], ['g']]" in str(result) and "yours     [['re', 'd'], ['g', '<b>']]" in str(result)
    assert "[[&#x27;re&#x27;, &#x27;d&#x27;], [&#x27;g&#x27;, &#x27;&lt;b&gt;&#x27;]]" in result._repr_html_()
    # Of long ones, the items round the first difference.
    words = str(toy_said(list(range(100)), [*range(50), -1, *range(51, 100)]))
    assert "expected  [… 44, 45, 46, 47, 48, 49, 50, 51, 52, 53" in words and "49, -1, 51" in words
    endless: list = []
    endless.append(endless)
    assert "yours     [[[...]]]" in str(toy_said([["a", "b"]], endless))
    assert "expected  " not in str(toy_said([torch.ones(2)], [torch.zeros(2)])).split("\n\n")[0]


def test_numbers_that_differ_do_not_print_alike() -> None:
    message = toy_said(torch.tensor([1.92, 3.0]), torch.tensor([1.9202, 3.0003])).message
    assert "yours 1.9202, expected 1.92" in message and "times" not in message
    assert "is 1.9202; expected 1.92." in toy_said(1.92, 1.9202).message
    assert "times" not in toy_said(torch.tensor([2.0, 1.0]), torch.tensor([2.001, 1.0005])).message
    assert "1.25 times" in toy_said(torch.tensor([2.0, 1.0]), torch.tensor([2.5, 1.25])).message
    same_start = "word " * 100
    message = toy_said(same_start + "end", same_start + "END").message
    assert "END" in message and "end" in message


def test_a_number_on_the_edge_of_the_tolerance_does_not_break_the_check() -> None:
    one = torch.ones(1, dtype=torch.float64)
    assert toy_said(one, one - 1.99999e-5).passed


def test_an_exception_that_is_returned_is_told_so() -> None:
    def wrong(embeddings, image_tokens, is_placeholder):
        try:
            return merge_image_tokens(embeddings, image_tokens, is_placeholder)
        except ValueError:
            return ValueError("counts disagree")

    words = said("fusion.merge_image_tokens", wrong)
    assert "returns a ValueError" in words and "raise ValueError" in words
    assert "went through" not in words


def test_an_instance_in_place_of_a_class_is_told_so() -> None:
    words = said("vit.block", ViTBlock(SMALL))
    assert "instance" in words and 'check("vit.block", ViTBlock)' in words
    assert "This is a ViTConfig, not a class" in said("vit.block", SMALL)
    assert "This is a tensor, not a function" in said("vit.attention", torch.ones(2))


# -- in a notebook ----------------------------------------------------------------------------------------------------

CELLS = """
from IPython.core.interactiveshell import InteractiveShell

shell = InteractiveShell.instance()
cells = {cells!r}
for cell in cells:
    result = shell.run_cell(cell, store_history=True).result
    if cell.startswith("check"):
        print("RUNG", result.rung, "|", result.message)
"""
RIGHT = "def shuffle(x, r):\n    raise NotImplementedError('pixel_shuffle.shuffle')"
CHECK = "check('pixel_shuffle.shuffle', shuffle)"


def test_after_a_cell_that_failed_the_check_says_that_the_function_is_the_one_of_before(tmp_path: Path) -> None:
    cells = ["from nanovlm.course import check", RIGHT, CHECK]
    cells += ["def shuffle(x, r):\n    return (x", CHECK, "something = shuffle", CHECK]
    cells += ["1 / 0\n" + RIGHT, CHECK, RIGHT, CHECK]
    done = subprocess.run(
        [sys.executable, "-c", CELLS.format(cells=cells)],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "NANOVLM_HOME": str(tmp_path), "IPYTHONDIR": str(tmp_path)},
    )
    said = re.findall(r"RUNG (\w+) \| (.*)$", done.stdout, re.MULTILINE)
    rungs = [rung for rung, _ in said]
    assert rungs == ["not_written", "not_run", "not_run", "not_run", "not_written"], done.stdout + done.stderr
    assert "SyntaxError in its line 2" in said[1][1] and "one of before" in said[1][1]
    assert "SyntaxError" not in said[3][1]


SLOW_MODULE = """
import time

start = time.process_time()
while time.process_time() - start < 0.3:
    pass
whole = True
"""


@pytest.mark.parametrize("thread", [False, True], ids=["main thread", "another thread"])
def test_an_import_is_never_broken_off_and_not_counted(
    thread: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that has run out at every look: only in an import nobody looks at it."""
    monkeypatch.setattr(guard.Clock, "expired", lambda self, frame=None: True)
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"slow_module_of_a_learner_{thread:d}"
    (tmp_path / f"{name}.py").write_text(SLOW_MODULE)
    seen = []

    def imports() -> int:
        import_module(name)
        seen.append("imported")
        while True:
            pass

    call = guard._call_in_thread if thread else guard._call_with_alarm
    with pytest.raises(guard.OutOfTime):
        call(guard.Clock(), imports)
    assert seen == ["imported"] and sys.modules.pop(name).whole


def test_a_check_that_is_called_by_a_module_which_is_imported_is_bounded_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard.Clock, "expired", lambda self, frame=None: True)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "loops_for_ever.py").write_text(
        "from nanovlm.course.judge import guard\n\ndef loop():\n    while True:\n        pass\n\n"
        "guard.call_within(guard.Clock(), loop)\n"
    )
    with pytest.raises(guard.OutOfTime):
        import_module("loops_for_ever")


@pytest.mark.long
def test_the_first_work_on_the_meta_device_is_no_loop_and_meta_works_afterwards() -> None:
    """In a new process: torch imports sympy for it, once, which takes longer than a check's patience."""
    program = """
import sys
import torch
from nanovlm.course.judge import guard
from nanovlm.course.judge.engine import judge
from nanovlm.course.judge.exercise import load_exercises
from nanovlm.models.vision_transformer import ViT

def by_building(config):
    with torch.device("meta"):
        model = ViT(config)
        model(torch.zeros(1, 3, config.image_size, config.image_size))
    return sum(p.numel() for p in model.parameters())

guard.FREE = 0.0  # what is not an import is measured from the start
exercise = load_exercises()["vit.count_parameters"]
assert "sympy" not in sys.modules, "this test is about its import"
print(judge(exercise, by_building).rung)
config = exercise.cases()[0].args[0]
print(by_building(config) == exercise.reference(config))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "passed\nTrue\n", done.stdout + done.stderr
