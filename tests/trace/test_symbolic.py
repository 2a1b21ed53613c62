"""Formulas of dims: found from values alone, right at sizes that were never probed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nanovlm.trace import trace
from nanovlm.trace.measure.formula import Formulas, value_of
from nanovlm.trace.measure.symbolic import probe_sizes
from tests.trace.zoo import ZOO, MiniVLM, seeded, token_ids

small = st.integers(-30, 30)


@given(small, small, small, small, st.integers(1, 40), st.integers(1, 90))
def test_any_sum_of_products_is_found(c, a, b, ab, batch, length):
    def value(sizes):
        return c + a * sizes["B"] + b * sizes["T"] + ab * sizes["B"] * sizes["T"]

    base = {"B": batch, "T": length}
    points = [base, *probe_sizes(base)]
    text = Formulas(points).fit(tuple(value(p) for p in points))
    for sizes in (base, {"B": 101, "T": 7}, {"B": 1, "T": 1}):
        assert value_of(text, sizes) == value(sizes), text


@pytest.mark.parametrize(
    "function, text",
    [
        (lambda b, t: 7, "7"),
        (lambda b, t: t, "T"),
        (lambda b, t: 49 + t, "49+T"),
        (lambda b, t: t - 1, "T-1"),
        (lambda b, t: b * (49 + t), "B*(49+T)"),
        (lambda b, t: b * 12, "12*B"),
        (lambda b, t: b * t, "B*T"),
        (lambda b, t: t * t, "T*T"),
        (lambda b, t: t // 2, "T//2"),
        (lambda b, t: (t + 1) // 2, "(T+1)//2"),
        (lambda b, t: b * (t // 4), "B*(T//4)"),
        (lambda b, t: t % 5 + 1, "5?"),
    ],
)
def test_how_formulas_are_written(function, text):
    base = {"B": 12, "T": 79}
    points = [base, *probe_sizes(base)]
    assert Formulas(points).fit(tuple(function(p["B"], p["T"]) for p in points)) == text


def test_mini_vlm():
    t = trace(MiniVLM(), seeded(2, 3, 16, 16), token_ids(2, 5), dims={"B": 2, "T": 5})
    stages = {stage.label: str(stage.info) for stage in t.stages()}
    assert stages["combined"] == "[B, 4+T, 24]"
    assert stages["after pixel_shuffle"] == "[B, 4, 128]"
    assert str(t["decoder.blocks.0.qkv"].out) == "[B, 4+T, 72]"


def test_values_are_not_matched_to_names():
    """B = 2 = num_heads = the pixel shuffle's factor, and none of those becomes B."""
    t = trace(MiniVLM(), seeded(2, 3, 16, 16), token_ids(2, 5), dims={"B": 2})
    sdpa = t.find("scaled_dot_product_attention")[0]
    assert sdpa.out.dims == ("B", "2", "16", "16")


@pytest.mark.parametrize("entry", [e for e in ZOO if e.name != "SmolVLM"], ids=lambda entry: entry.name)
def test_formulas_hold_at_another_batch_size(entry):
    t = trace(entry.model(), *entry.args(), dims={"B": entry.args()[0].shape[0]}, **entry.kwargs())
    assert t.remark is None
    sizes = {"B": entry.args()[0].shape[0]}
    for row in t.rows:
        for info in row.outs:
            assert [value_of(dim, sizes) for dim in info.dims] == list(info.shape)
    if entry.name != "swallows an exception":
        assert t.root.outs[0].dims[0] == "B"


def test_llama_with_a_padding_mask_has_symbolic_length():
    entry = next(entry for entry in ZOO if entry.name == "Llama, padded")
    t = trace(entry.model(), *entry.args(), dims={"B": 2, "T": 7}, **entry.kwargs())
    assert str(t["lm_head"].out) == "[B, T, 60]"


def test_patterns_decide_where_sizes_are_ambiguous():
    def model(x):
        return x.flatten(1)

    t = trace(model, torch.zeros(3, 3, 3), dims={"x": "B T 3"})
    assert str(t["flatten"].out) == "[B, 3*T]"


def test_a_size_that_no_input_has_is_refused():
    with pytest.raises(ValueError, match=r"no input has a dim of size T = 80.*ids \[2, 5\]"):
        trace(MiniVLM(), seeded(2, 3, 16, 16), token_ids(2, 5), dims={"B": 2, "T": 80})


def test_a_pattern_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="does not fit"):
        trace(lambda x: x + 1, torch.zeros(2, 3), dims={"x": "B T D"})


def test_one_name_has_one_size():
    with pytest.raises(ValueError, match="B is 2 in one input and 3 in another"):
        trace(lambda a, b: a, torch.zeros(2, 1), torch.zeros(3, 1), dims={"a": "B 1", "b": "B 1"})


def test_a_model_whose_steps_depend_on_the_sizes_says_where():
    def model(x):
        for _ in range(x.shape[0]):
            x = x + 1
        return x * 2

    t = trace(model, torch.zeros(3, 4), dims={"T": 3})
    assert "depend on the sizes" in t.remark


def test_a_model_that_takes_one_size_only_says_so():
    t = trace(nn.Sequential(nn.Flatten(0), nn.Linear(12, 2)), torch.zeros(3, 4), dims={"T": 3})
    assert t.remark.startswith("no symbolic dims: at other sizes the model fails")
    assert t.root.shape == (2,)


class EvenHeight(nn.Module):
    def forward(self, images):
        batch, height, width = images.shape
        return images.view(batch, height // 2, 2, width).mean(2)


def test_names_of_sizes_that_work_are_kept():
    t = trace(EvenHeight(), torch.zeros(2, 16, 6), dims={"B": 2, "H": 16, "W": 6})
    assert str(t["view"].out) == "[B, 8, 2, W]" and str(t.root.out) == "[B, 8, W]"
    assert t.remark.startswith("no symbolic H: at other sizes the model fails (images is [2, ")
    assert t.dims == {"B": 2, "H": 16, "W": 6}


def test_sizes_that_cannot_grow_together_leave_no_names():
    def model(a, b):
        if a.shape[0] > 3 and b.shape[0] > 3:
            raise ValueError("Too much at once.")
        return a * b.sum()

    t = trace(model, torch.zeros(3, 4), torch.zeros(3, 4), dims={"a": "A 4", "b": "B 4"})
    assert t.remark == "no symbolic dims: at other sizes the model fails (Too much at once.)"
    assert str(t.root.out) == "[3, 4]"
    t = trace(lambda a, b: a + b, torch.zeros(3, 4), torch.zeros(3, 4), dims={"a": "A 4", "b": "B 4"})
    assert t.remark.startswith("no symbolic dims: at other sizes the model fails (a is [8, 4] and b is [3, 4]")


def test_the_remark_is_the_last_line_of_what_is_shown():
    t = trace(nn.Sequential(nn.Flatten(0), nn.Linear(12, 2)), torch.zeros(3, 4), dims={"T": 3})
    for text in (str(t), t.text(depth=1), str(t.stages())):
        assert text.splitlines()[-1] == f"Remark: {t.remark}"
    assert t.remark.split("'")[0] in t.stages()._repr_html_() and t.remark.split("'")[0] in t._repr_html_()
    assert "Remark" not in str(t.table())
    without = trace(nn.Linear(4, 4), torch.zeros(3, 4))
    assert "Remark" not in str(without) + str(without.stages())


def test_random_state_is_untouched_by_the_probes():
    state = torch.get_rng_state()
    trace(nn.Dropout(), torch.zeros(3, 4), device="meta", dims={"B": 3})
    assert torch.equal(torch.get_rng_state(), state)
