"""What a trace cannot see or count is said beside the numbers, and what works untraced works traced."""

import copy
import io
import json
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from nanovlm.trace import trace, tracing


class TestCopies:
    """The hooks lead to stack frames, which nobody can copy."""

    @pytest.mark.parametrize(
        "work",
        [
            copy.deepcopy,
            torch.optim.swa_utils.AveragedModel,
            lambda model: nn.TransformerEncoder(model, 2, enable_nested_tensor=False),
            lambda model: torch.save(model, io.BytesIO()),
            pickle.dumps,
        ],
        ids=["deepcopy", "average", "encoder", "save", "pickle"],
    )
    def test_of_a_watched_model(self, work):
        with tracing(layer := nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)):
            work(layer)

    def test_carry_no_hook(self):
        model, before = nn.Sequential(nn.Linear(8, 8)), nn.Module.__getstate__
        own = model[0].register_forward_hook(print)
        with tracing(model):
            copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
        for made in copies:
            for name, value in vars(made[0]).items():
                if "forward" in name and "hooks" in name:
                    assert list(value) == ([own.id] if name == "_forward_hooks" else []), name
        assert nn.Module.__getstate__ is before

    def test_in_a_forward(self):
        class Adapts(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = nn.Linear(8, 4)

            def forward(self, x):
                return copy.deepcopy(self.net)(x)

        x = torch.randn(2, 8)
        for options in ({}, {"device": "meta"}, {"dims": {"B": 2}}):
            assert trace(Adapts(), x, **options).flops == 2 * 2 * 8 * 4


def test_probes_for_dims_leave_the_models_state_alone():
    class Cache(nn.Module):
        def __init__(self):
            super().__init__()
            self.proj, self.seen = nn.Linear(4, 4), []

        def forward(self, x):
            self.seen.append(x)
            return self.proj(torch.cat(self.seen))

    model = Cache()
    t = trace(model, torch.zeros(3, 4), dims={"B": 3})
    assert len(model.seen) == 1
    assert str(t["proj"].out) == "[B, 4]"
    trace(model, torch.zeros(3, 4), device="meta")
    assert len(model.seen) == 1


def test_probes_on_a_model_that_cannot_be_copied_are_said():
    class Locked(nn.Linear):
        def __deepcopy__(self, memo):
            raise TypeError("one of a kind")

    assert "cannot be copied" in trace(Locked(4, 4), torch.zeros(3, 4), dims={"B": 3}).remark


@pytest.mark.filterwarnings("ignore")
def test_scripted_modules_are_steps_without_an_inside():
    x, layer = torch.randn(2, 8), nn.Linear(8, 4)
    for part in (torch.jit.script(layer), torch.jit.trace(layer, x)):
        for model in (part, nn.Sequential(part, nn.Linear(4, 2))):
            assert "scripted" in trace(model, x).remark


def test_threads_are_named():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts, self.out = nn.ModuleList(nn.Linear(8, 8) for _ in range(3)), nn.Linear(8, 8)

        def forward(self, x):
            with ThreadPoolExecutor(3) as pool:
                return self.out(sum(pool.map(lambda expert: expert(x), self.experts)))

    t = trace(Experts(), torch.zeros(2, 8))
    assert t.remark == "modules ran in other threads: their steps and FLOPs are not counted"
    assert t["out"].flops == t.flops == 2 * 2 * 8 * 8


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_are_shown(layout):
    rows = torch.nested.nested_tensor([torch.randn(3, 8), torch.randn(2, 8)], layout=layout)
    t = trace(nn.Linear(8, 4), rows)
    assert str(t.root.out).startswith("[2, j")
    assert "ragged" in t.remark and "j" in str(t) and "j" in t.html() and str(t.table())
    assert json.loads(t.to_json())["root"]["out"]["shape"][1].startswith("j")
    assert t.flops == 0


def test_vmap_is_said():
    weight = torch.randn(4, 5)
    assert "one sample" in trace(torch.func.vmap(lambda x: x @ weight), torch.randn(6, 4)).remark


def test_backward_is_said():
    model = nn.Linear(4, 4)
    with tracing(model) as t:
        model(torch.zeros(2, 4)).sum().backward()
    assert "backward is not counted" in t.remark


def test_a_chain_of_products_is_counted():
    a, b, c = torch.zeros(2, 30), torch.zeros(30, 4), torch.zeros(4, 5)
    assert trace(lambda *m: torch.linalg.multi_dot(m), a, b, c).flops == 2 * 2 * 30 * 4 + 2 * 2 * 4 * 5
    assert trace(lambda *m: torch.linalg.multi_dot(m), a[0], b, c).flops == 2 * 30 * 4 + 2 * 4 * 5


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_lazy_layers_are_counted_at_their_first_call():
    model = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2))
    t = trace(model, torch.zeros(3, 8))
    assert t.num_params == 46 and t["0"].params == 36 and t.root.params == 46


def test_warnings_point_at_the_learners_line():
    def loss(x):
        return nn.functional.kl_div(x, x)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trace(loss, torch.zeros(2, 3))
    line = loss.__code__.co_firstlineno + 1
    assert [(warning.filename, warning.lineno) for warning in caught] == [(__file__, line)]


def test_a_count_that_differs_in_the_middle_of_a_fold_is_shown():
    class Found(nn.Module):
        def forward(self, x):
            return torch.nonzero(x).float()

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(Found() for _ in range(3))

        def forward(self, x):
            return [block(part) for block, part in zip(self.blocks, x, strict=True)]

    rows = torch.tensor([[1, 0, 0], [1, 1, 1], [1, 0, 0]])
    assert "[1…3, 1]" in str(trace(Model(), rows))


def test_an_operand_is_what_was_written():
    def model(a, b):
        return torch.cat([a, b], 1).view(2, 5)

    with pytest.raises(RuntimeError, match=r"^torch\.cat\(\[a, b\], 1\) is \[2, 7\]"):
        trace(model, torch.zeros(2, 3), torch.zeros(2, 4))
