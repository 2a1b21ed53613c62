"""What must hold for every model, whoever wrote it."""

import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nanovlm.trace import trace
from nanovlm.trace.record.meta import MetaMode, meta_inputs
from nanovlm.trace.rows import Opaque
from nanovlm.trace.source import locate
from tests.trace.zoo import ZOO

every_model = pytest.mark.parametrize("entry", ZOO, ids=lambda entry: entry.name)


def tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return []
    return [tensor for part in value for tensor in tensors(part)]


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def run(model, entry, grad):
    with torch.set_grad_enabled(grad):
        return tensors(model(*entry.args(), **entry.kwargs()))


@pytest.mark.parametrize("grad", [False, True])
@every_model
def test_output_and_random_state_are_bitwise_the_same(entry, grad):
    model, outputs = entry.model(), []

    def forward(*args, **kwargs):
        result = model(*args, **kwargs)
        outputs.extend(tensors(result))
        return result

    expected = run(model, entry, grad)
    state = torch.get_rng_state()
    with torch.set_grad_enabled(grad):
        trace(forward, *entry.args(), **entry.kwargs())
    assert torch.equal(torch.get_rng_state(), state)
    assert len(outputs) == len(expected) > 0
    for a, b in zip(outputs, expected, strict=True):
        assert torch.equal(a, b)


@every_model
def test_train_mode_draws_the_same_random_numbers(entry):
    model = entry.model().train()
    twin = copy.deepcopy(model)
    torch.manual_seed(3)
    expected, state = run(model, entry, True), torch.get_rng_state()
    torch.manual_seed(3)
    outputs = []
    trace(lambda *a, **k: outputs.extend(tensors(twin(*a, **k))), *entry.args(), **entry.kwargs())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))


@every_model
def test_no_hook_is_left(entry):
    model = entry.model()
    trace(model, *entry.args(), **entry.kwargs())
    assert hooks(model) == 0


@every_model
def test_parameters_are_counted_once(entry):
    model = entry.model()
    t = trace(model, *entry.args(), **entry.kwargs())
    assert t.num_params == sum(p.numel() for p in model.parameters())
    assert t.root.params == t.num_params
    for row in t.rows:
        if row.kind == "module" and row.path:
            assert row.params == sum(p.numel() for p in model.get_submodule(row.path).parameters())


@every_model
def test_flops_equal_the_oracle_on_meta(entry):
    model = entry.model()
    args, kwargs = entry.args(), entry.kwargs()
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), MetaMode([("", model)]), counter:
        model(*meta_inputs(args, True), **meta_inputs(kwargs, True))
    assert trace(model, *args, **kwargs).flops == counter.get_total_flops() > 0
    assert trace(model, *args, device="meta", **kwargs).flops == counter.get_total_flops()


@every_model
def test_meta_has_the_same_steps_and_shapes(entry):
    model = entry.model()
    real = trace(model, *entry.args(), **entry.kwargs())
    meta = trace(model, *entry.args(), device="meta", **entry.kwargs())
    assert [row.shape for row in meta.rows if row.kind == "module"] == [
        row.shape for row in real.rows if row.kind == "module"
    ]
    assert {info.device for row in meta.rows for info in row.outs} == {"meta"}
    assert all(not p.is_meta for p in model.parameters())


@every_model
def test_modules_nest_as_they_stand_in_the_model(entry):
    t = trace(entry.model(), *entry.args(), **entry.kwargs())
    for row in t.rows:
        if row.kind == "module" and row.path:
            above = row.parent
            while above.kind != "module":
                above = above.parent
            assert row.path.startswith(above.path)


@every_model
def test_it_renders(entry):
    t = trace(entry.model(), *entry.args(), **entry.kwargs())
    text, html = str(t), t._repr_html_()
    assert len(text.splitlines()) < 220
    assert len(html) < 50_000
    assert html.count("<details") == html.count("</details>")
    assert "<script" not in html and "http" not in html
    assert t.stages() and str(t.table(depth=1)) and t.svg().endswith("</svg>") and t.mermaid().startswith("flowchart")


@every_model
def test_every_step_knows_its_line(entry):
    t = trace(entry.model(), *entry.args(), **entry.kwargs())
    for row in t.rows:
        if row.kind in ("op", "module") and row.parent is not None:
            source = locate(row.where)
            assert source is not None and source.text, row
            assert "/torch/nn/" not in source.file


def test_smolvlm_shows_the_list_too():
    entry = next(entry for entry in ZOO if entry.name == "SmolVLM")
    stages = {s.label: s.shape for s in trace(entry.model(), **entry.kwargs()).stages()}
    assert stages["before pixel_shuffle"] == (2, 16, 32)
    assert stages["after pixel_shuffle"] == (2, 4, 128)
    assert stages["combined"] == stages["token embeddings"] == (2, 10, 32)


def test_llama_generates_under_the_tracer():
    entry = next(entry for entry in ZOO if entry.name == "Llama, padded")
    model = entry.model()
    options = {"max_new_tokens": 6, "do_sample": False, "min_new_tokens": 6}
    with torch.no_grad():
        expected = model.generate(*entry.args(), **entry.kwargs(), **options)
    t = trace(model.generate, *entry.args(), **entry.kwargs(), **options)
    assert t.root.out.shape == expected.shape == (2, 13)
    assert t.root.name == "generate"
    layers = t.find("model.layers.0")
    assert [row.shape for row in layers] == [(2, 7, 32), *[(2, 1, 32)] * 5]  # the cache: one token a step
    keys = [
        row.inputs[1].shape[2]
        for row in t.find("scaled_dot_product_attention")
        if row.path.startswith("model.layers.0")
    ]
    assert keys == [7, 8, 9, 10, 11, 12]
    assert isinstance(layers[1].kwargs["past_key_values"], Opaque)
    assert hooks(model) == 0


def test_a_swallowed_exception_keeps_the_nesting():
    entry = next(entry for entry in ZOO if entry.name == "swallows an exception")
    t = trace(entry.model(), *entry.args())
    assert [(row.path, row.error is not None) for row in t.root.children] == [
        ("wrong", True),
        ("right", False),
        ("last", False),
    ]
    assert t.failed is None


def test_a_shared_module_says_so():
    entry = next(entry for entry in ZOO if entry.name == "shared module")
    t = trace(entry.model(), *entry.args())
    assert len(t.find("first")) == 2
    assert "shared with again" in str(t)
