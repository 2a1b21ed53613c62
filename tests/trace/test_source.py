"""The exact expression, in files and in notebook cells."""

import linecache
import sys

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import nn

from nanovlm.trace import trace
from nanovlm.trace.source import locate

exact = pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 keeps lines, not columns, of an instruction")


def text(row):
    return locate(row.where).short


@exact
def test_sub_expressions_of_one_line():
    def model(q, k):
        return F.softmax(q @ k.transpose(-2, -1) / 8**0.5, dim=-1)

    t = trace(model, torch.zeros(2, 3, 4), torch.zeros(2, 5, 4))
    assert text(t["transpose"]) == "k.transpose(-2, -1)"
    assert text(t["matmul"]) == "q @ k.transpose(-2, -1)"
    assert text(t["div"]) == "q @ k.transpose(-2, -1) / 8**0.5"
    assert text(t["softmax"]).startswith("F.softmax(")


@exact
def test_an_expression_over_several_lines_is_joined():
    def model(x):
        return torch.cat(
            [
                x,
                x,
            ],
            dim=1,
        )

    assert text(trace(model, torch.zeros(1, 2))["cat"]) == "torch.cat( [ x, x, ], dim=1, )"


@exact
def test_columns_count_bytes():
    def model(x):
        return ("é" * 3 and x * 2) + x.relu()

    assert text(trace(model, torch.zeros(2))["relu"]) == "x.relu()"


def test_a_layer_of_torch_shows_the_call_of_the_learner():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())

        def forward(self, x):
            return self.net(x)

    t = trace(Model(), torch.zeros(1, 2))
    assert "self.net(x)" in text(t["linear"])
    assert locate(t["net.0"].where).file == __file__


def test_a_notebook_cell():
    source = "def cell(x):\n    y = x.flatten(1)\n    return y * 2\n"
    name = "/tmp/ipykernel_7/123456.py"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    scope = {}
    exec(compile(source, name, "exec"), scope)
    t = trace(scope["cell"], torch.zeros(2, 3, 4))
    assert "x.flatten(1)" in text(t["flatten"])
    assert locate(t["flatten"].where).place == "cell:2"
    with pytest.raises(AttributeError) as caught:
        trace(scope["cell"], 3)
    assert "y = x.flatten(1)" in str(caught.value)


def test_code_without_source_still_traces():
    scope = {}
    exec("def hidden(x):\n    return x + 1", scope)
    t = trace(scope["hidden"], torch.zeros(2))
    assert t["add"].shape == (2,) and "add" in str(t)


def test_einops_is_one_step_with_its_pattern():
    def model(x):
        x = rearrange(x, "b (h w) c -> b c h w", h=2)
        return repeat(x, "b c h w -> (b n) c h w", n=3)

    t = trace(model, torch.zeros(2, 4, 5))
    assert t["rearrange"].kind == t["repeat"].kind == "function"
    assert t["rearrange"].out.shape == (2, 5, 2, 2) and t["repeat"].out.shape == (6, 5, 2, 2)
    assert "b (h w) c -> b c h w" in text(t["rearrange"])
    assert t.find("reduce") == []


def test_own_functions_are_rows_and_their_calls_are_told_apart():
    def double(x):
        return x * 2

    def model(x):
        return double(double(x)) + double(x)

    t = trace(model, torch.zeros(2))
    assert len(t.find("double")) == 3
    assert all(row.inputs[0].shape == row.out.shape == (2,) for row in t.find("double"))


def test_calls_of_one_function_in_a_loop_are_told_apart():
    def double(x):
        return x * 2

    def model(x):
        for _ in range(4):
            x = double(x)
        return x

    assert len(trace(model, torch.zeros(2)).find("double")) == 4


def test_decorators_and_super_calls_make_no_rows():
    import functools

    def decorator(fn):
        @functools.wraps(fn)
        def inner(*args, **kwargs):
            return fn(*args, **kwargs)

        return inner

    class Base(nn.Module):
        def forward(self, x):
            return x + 1

    class Model(Base):
        @decorator
        def forward(self, x):
            return super().forward(x) * 2

    t = trace(Model(), torch.zeros(2))
    assert [row.name for row in t.root.children] == ["add", "mul"]


def test_properties_and_checks_are_no_steps():
    def model(x):
        if x.shape[0] > 1 and x.dim() == 2 and x.dtype is torch.float32 and x.sum().item() >= 0:
            x = x.to(torch.float32).contiguous()
        repr(x), len(x), x.device, x.grad
        return x.mT

    assert [row.name for row in trace(model, torch.zeros(2, 3)).root.children] == ["sum", "mT"]
