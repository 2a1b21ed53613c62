"""Each wrong model gets a message that names its line, both shapes, and a fix; the fixed twin runs."""

import inspect
import os
from functools import partial

import pytest
import torch
from torch import nn

from nanovlm.trace import Trace, trace, tracing
from tests.trace.wrong_models import CASES

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)


def failing_line(module: type) -> tuple[str, str]:
    """Place (`shapes.py:31`) and text of the line marked `# here`."""
    for cls in module.__mro__:
        try:
            lines, start = inspect.getsourcelines(cls)
        except (OSError, TypeError):
            continue
        for i, line in enumerate(lines):
            if line.rstrip().endswith("# here"):
                file = os.path.basename(inspect.getsourcefile(cls))
                return f"{file}:{start + i}", line.strip().removesuffix("# here").strip()
    raise AssertionError(f"{module} has no line marked '# here'")


def test_there_are_at_least_twenty():
    assert len(CASES) >= 20


@every_case
def test_the_message_says_where_what_and_how(case):
    model, (place, line) = case.wrong(), failing_line(case.wrong)
    with pytest.raises(Exception) as plain:  # any type: the tracer must keep it
        case.wrong()(*case.inputs)
    with pytest.raises(type(plain.value)) as caught:
        trace(model, *case.inputs)
    message = str(caught.value)
    assert place in message
    assert line in message
    for part in case.says:
        assert part in message, f"{part!r} is missing in:\n{message}"
    assert type(caught.value) is type(plain.value)


@every_case
def test_torchs_own_sentence_is_kept(case):
    with pytest.raises(Exception) as plain:
        case.wrong()(*case.inputs)
    with pytest.raises(type(plain.value)) as caught:
        trace(case.wrong(), *case.inputs)
    first = " ".join(str(plain.value).split())[:60]
    assert first in " ".join(str(caught.value).split())


@every_case
def test_the_fix_is_right(case):
    trace(case.right(), *case.inputs)


@every_case
def test_the_trace_so_far_is_on_the_exception(case):
    with pytest.raises(Exception) as caught:
        trace(case.wrong(), *case.inputs)
    t = caught.value.trace
    assert isinstance(t, Trace)
    if t.failed is not None:
        assert t.failed.error and t.failed in t.rows
        assert "✗" in str(t)
        assert 'class="x"' in t._repr_html_()


def test_a_failing_block_is_never_folded_away():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            widths = [8, 8, 8, 9, 8]
            self.blocks = torch.nn.ModuleList(torch.nn.Sequential(torch.nn.Linear(w, 8)) for w in widths)

        def forward(self, x):
            for block in self.blocks:
                x = block(x)
            return x

    with pytest.raises(RuntimeError, match=r"blocks\.3\.0 \(Linear\) was built with in_features = 9") as caught:
        trace(Model(), torch.zeros(2, 8))
    text = str(caught.value.trace)
    assert "×3, first shown" in text
    assert "blocks.3: Sequential" in text


class TestALayerTracedDirectly:
    """What is written first in trace(layer, x) is the layer, not its input."""

    @pytest.mark.parametrize("layer", [nn.Linear(3, 4), nn.Sequential(nn.Linear(3, 4))], ids=["itself", "its first"])
    def test_the_input_is_named(self, layer):
        longs = torch.ones(2, 3).long()
        with pytest.raises(RuntimeError, match=r"(?s)^longs \[2, 3\] is int64.*first: longs\.to\(torch\.float32"):
            trace(layer, longs)
        with pytest.raises(RuntimeError, match=r"^longs \[2, 3\] is int64"):
            trace(layer, input=longs)
        with pytest.raises(RuntimeError, match=r"^input \[2, 3\] is int64"):
            trace(layer, *[longs])

    def test_a_layer_made_in_the_call(self):
        floats = torch.rand(2, 3)
        with pytest.raises(RuntimeError, match=r"use floats\.long\(\)"):
            trace(nn.Embedding(3, 4), floats)

    def test_a_function_of_torch(self):
        x, w = torch.rand(2, 5), torch.rand(4, 3)
        with pytest.raises(RuntimeError, match=r"^x is \[2, 5\]: its last dim is 5"):
            trace(nn.functional.linear, x, w)
        with pytest.raises(RuntimeError, match=r"^input is \[2, 5\]: its last dim is 5"):
            trace(partial(nn.functional.linear, x), w)

    @pytest.mark.filterwarnings("ignore:enable_nested_tensor")
    def test_an_input_of_another_part_of_a_layer_is_not_taken_for_the_first(self):
        model = nn.Transformer(8, 2, 1, 1, 16, batch_first=True, norm_first=True)
        model.decoder.layers[0].norm1 = nn.Linear(7, 8)
        source, target = torch.rand(1, 4, 8), torch.rand(1, 3, 8)
        with pytest.raises(RuntimeError, match=r"^(input|target) is \[1, 3, 8\]"):
            trace(model, source, target)

    def test_a_layer_called_elsewhere_keeps_its_own_line(self):
        layer, x = nn.Linear(3, 4), torch.rand(2, 5)

        def steps(y):
            return layer(y.mT)

        with pytest.raises(RuntimeError, match=r"^(y\.mT|input) is \[3, 2\]: its last dim is 2"):
            trace(steps, torch.rand(2, 3))
        with pytest.raises(RuntimeError, match=r"^x is \[2, 5\]: its last dim is 5"), tracing(layer):
            layer(x)


class TestShapesOfDifferentRank:
    """A dim that is called by its place from the left would be another one in each of the two."""

    def test_addition(self):
        with pytest.raises(RuntimeError) as caught:
            trace(add, torch.zeros(1, 7, 8), torch.zeros(3, 8))
        message = str(caught.value)
        assert message.startswith(
            "line is [1, 7, 8] and positions is [3, 8]: the second-to-last dim is 7 against 3. (Shapes are lined up at "
            "the right.)"
        )
        assert "Try: make the second-to-last dim the same size in both, or 1." in message

    def test_the_fix_names_the_dim_of_the_tensor_that_it_changes(self):
        with pytest.raises(RuntimeError, match=r"take positions\[:, :7\], or build line with 8"):
            trace(add, torch.zeros(5, 4, 7, 8), torch.zeros(4, 8, 8))
        for step in (add, multiply):
            with pytest.raises(RuntimeError, match="third-to-last dim is 6 against 3") as caught:
                trace(step, torch.zeros(2, 6, 8, 8), torch.zeros(3, 8, 8))
            assert "positions.repeat_interleave(2, dim=0)" in str(caught.value)

    def test_a_vector_has_numbers_and_no_rows(self):
        with pytest.raises(RuntimeError, match=r"the last dim of line is 3, but positions has 4 numbers\.") as caught:
            trace(multiply, torch.zeros(2, 3), torch.zeros(4))
        assert "second-to-last" not in str(caught.value)


def add(line, positions):
    return line + positions


def multiply(line, positions):
    return line @ positions


def test_the_way_there_is_shown():
    def steps(x):
        x = x.flatten(1)
        x = x.unsqueeze(0)
        return x @ torch.zeros(3, 3)

    with pytest.raises(RuntimeError) as caught:
        trace(steps, torch.zeros(2, 2, 4))
    message = str(caught.value)
    assert "x.flatten(1)" in message and "[1, 2, 8]" in message


def test_the_traceback_ends_with_the_learners_lines():
    def steps(x):
        return x @ torch.zeros(3, 3)

    with pytest.raises(RuntimeError) as caught:
        trace(steps, torch.zeros(2, 4))
    assert caught.traceback[-1].name == "steps"
    with pytest.raises(RuntimeError) as caught:
        trace(torch.nn.Sequential(torch.nn.Linear(2, 2)), torch.zeros(2, 3))
    frames = [str(entry.path) for entry in caught.traceback]
    assert "trace" not in frames[-1] and any(frame.endswith("run.py") for frame in frames)
    assert not any(frame.endswith("module.py") for frame in frames)


def test_an_error_is_explained_once():
    def inner():
        with tracing():
            torch.zeros(2, 3) @ torch.zeros(2, 3)

    with pytest.raises(RuntimeError) as caught:
        trace(inner)
    assert str(caught.value).count("torch said") == 1


def test_an_error_raised_by_the_model_keeps_its_sentence_first():
    def model(x):
        if x.shape[-1] != 4:
            raise ValueError("Pictures need four channels.")

    with pytest.raises(ValueError, match=r"^Pictures need four channels\.") as caught:
        trace(model, torch.zeros(3))
    assert 'raise ValueError("Pictures need four channels.")' in str(caught.value)


def test_an_error_raised_because_of_another_one_points_at_the_step():
    def model(a, b):
        try:
            return a @ b
        except RuntimeError as error:
            raise ValueError("the product failed") from error

    with pytest.raises(ValueError) as caught:
        trace(model, torch.zeros(2, 3), torch.zeros(2, 3))
    assert caught.value.trace.failed.name == "matmul"
    assert "b.transpose(-2, -1)" in str(caught.value)


def test_exceptions_that_build_their_own_text_are_left_alone():
    class Strange(Exception):
        def __init__(self, code):
            super().__init__()
            self.code = code

        def __str__(self):
            return f"code {self.code}"

    def model():
        raise Strange(7)

    with pytest.raises(Strange) as caught:
        trace(model)
    assert str(caught.value) == "code 7" and caught.value.code == 7
