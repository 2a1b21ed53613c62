"""The tracer leaves nothing behind: no hook, no mode, no tensor; after success, an error and Ctrl-C."""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.overrides import _get_current_function_mode_stack

from nanovlm.trace import trace, tracing
from tests.trace.zoo import Checkpointed, MiniVLM, seeded, token_ids


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


class Raises(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.error = error

    def forward(self, x):
        x = self.inner(x)
        raise self.error


@pytest.mark.parametrize(
    "error", [ValueError("no"), KeyboardInterrupt(), SystemExit(1)], ids=lambda e: type(e).__name__
)
def test_state_is_clean_after_an_error(error):
    model = Raises(error)
    with pytest.raises(type(error)):
        trace(model, torch.zeros(2, 3))
    assert hooks(model) == 0
    assert not _get_current_function_mode_stack()
    with pytest.raises(type(error)), tracing(model):
        model(torch.zeros(2, 3))
    assert hooks(model) == 0
    assert not _get_current_function_mode_stack()


def test_ctrl_c_keeps_its_type_and_text():
    with pytest.raises(KeyboardInterrupt) as caught:
        trace(Raises(KeyboardInterrupt()), torch.zeros(2, 3))
    assert caught.value.args == ()


def test_a_module_that_returns_none_in_an_except_block_has_not_failed():
    class Silent(nn.Module):
        def forward(self, x):
            torch.relu(x)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.silent = Silent()

        def forward(self, x):
            try:
                raise KeyError
            except KeyError:
                self.silent(x)
            return x * 2

    t = trace(Model(), torch.zeros(2, 3))
    assert t["silent"].error is None and t["silent"].out is None


def test_arguments_arrive_as_they_were_given():
    def model(x, /, **options):
        return x * options["x"]

    assert trace(model, torch.ones(2), x=3, values=True).root.stats["mean"] == 3
    with pytest.raises(TypeError, match="multiple values"):
        trace(lambda x: x * 2, torch.ones(2), x=torch.zeros(2))


def test_own_hooks_of_the_model_stay_and_run():
    model, seen = nn.Sequential(nn.Linear(3, 3)), []
    model[0].register_forward_hook(lambda module, args, out: seen.append(out.shape))
    trace(model, torch.zeros(2, 3))
    assert seen == [(2, 3)] and hooks(model) == 1


def test_a_hook_that_changes_the_output_is_respected():
    model = nn.Sequential(nn.Linear(3, 3))
    model[0].register_forward_hook(lambda module, args, out: out[:1])
    assert trace(model, torch.zeros(2, 3))["0"].shape == (1, 3)


def test_no_tensor_is_kept_alive():
    seen = []

    def model(x):
        y = helper(x)
        seen.append(weakref.ref(y))
        z = torch.cat([y, y])
        seen.append(weakref.ref(z))
        return z.sum()

    def helper(x):
        h = x * 2
        seen.append(weakref.ref(h))
        return h + 1

    with torch.no_grad():
        t = trace(model, torch.zeros(4, 4))
    gc.collect()
    assert len(seen) == 3 and all(ref() is None for ref in seen)
    assert len(t.find("cat")) == 1


def test_the_model_is_not_kept_alive():
    model = MiniVLM()
    t = trace(model, seeded(1, 3, 16, 16), token_ids(1, 4))
    ref = weakref.ref(model)
    del model
    gc.collect()
    assert ref() is None
    assert str(t)


def test_parameters_are_untouched_by_a_meta_run():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    t = trace(model, torch.rand(2, 3, 8, 8), device="meta", dims={"B": 2})
    assert str(t.root.out) == "[B, 4, 6, 6]"
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_cache_that_is_passed_in_is_filled_once():
    cache = []

    def step(x, cache):
        cache.append(x)
        return torch.cat(cache)

    trace(step, torch.zeros(2, 3), cache, dims={"B": 2})
    assert len(cache) == 1


def test_checkpointing_in_a_training_step_nests_well():
    model = Checkpointed().train()
    x = seeded(2, 5, 8)
    with tracing(model) as t:
        model(x).sum().backward()
        model.head(x)
    assert [row.name for row in t.root.children] == ["Checkpointed", "sum", "backward", "head"]
    assert "ran" in t["backward"].note and "again" in t["backward"].note


def test_autocast_shows_its_dtypes():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)).eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = model(seeded(2, 4))
        t = trace(model, seeded(2, 4))
    assert t["0"].out.dtype is torch.bfloat16
    assert t.root.out.dtype is expected.dtype


def test_a_compiled_model_is_traced_and_not_compiled_again():
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    fast = torch.compile(model, backend=backend)
    x = seeded(3, 4)
    with torch.no_grad():
        expected = fast(x)
        assert len(compiled) == 1
        with tracing(fast) as t:
            assert torch.equal(fast(x), model(x))
        t = trace(fast, x)
        assert torch.equal(fast(x), expected)
    assert len(compiled) == 1
    assert [row.path for row in t.rows if row.kind == "module"] == ["", "0", "1", "2"]
    assert t["0"].shape == (3, 4)


def test_a_compiled_model_with_a_wrong_input_is_explained_like_any_other():
    fast = torch.compile(nn.Sequential(nn.Linear(4, 4)), backend="eager")
    with pytest.raises(RuntimeError, match="in_features = 4"):
        trace(fast, torch.zeros(2, 5))


def test_inference_mode_and_views():
    with torch.inference_mode():
        t = trace(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.zeros(3, 2, 2))
    assert t.root.shape == (3, 2)


def test_tracing_inside_tracing_does_not_double_rows():
    model = nn.Sequential(nn.Linear(4, 4))
    with tracing(model) as outer:
        inner = trace(model, torch.zeros(2, 4))
    assert len(outer.find("linear")) == len(inner.find("linear")) == 1


def test_a_scripted_module_is_one_step():
    scripted = torch.jit.script(nn.Linear(4, 2))
    t = trace(lambda x: scripted(x) + 1, torch.zeros(3, 4))
    assert t.find("add")[0].shape == (3, 2)


def test_torch_itself_is_never_patched():
    spaces = (torch, torch.nn.functional, torch.Tensor, nn.Module, nn.MultiheadAttention, torch.overrides)
    before = [dict(vars(space)) for space in spaces]
    trace(nn.MultiheadAttention(8, 2), *[seeded(3, 2, 8)] * 3, values=True, attention=[""], dims={"B": 2})
    for space, old in zip(spaces, before, strict=True):
        assert {name for name in old if vars(space).get(name) is not old[name]} == set(), space
