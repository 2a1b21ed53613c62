"""What a trace can be asked."""

import json
import sys
import xml.etree.ElementTree as ElementTree
from collections import namedtuple
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import nn

from nanovlm.trace import ShapeMismatch, trace, tracing
from tests.trace.zoo import MiniVLM, seeded, token_ids


@pytest.fixture(scope="module")
def inputs():
    return seeded(2, 3, 16, 16), token_ids(2, 5)


@pytest.fixture(scope="module")
def t(inputs):
    torch.manual_seed(0)
    return trace(MiniVLM().eval(), *inputs)


def test_stages_of_a_model_that_was_never_prepared_for_it(t):
    assert str(t.stages()).splitlines() == [
        "image                      [2, 3, 16, 16]",
        "after vision_encoder       [2, 16, 32]",
        "before pixel_shuffle       [2, 16, 32]",
        "after pixel_shuffle        [2, 4, 128]",
        "after proj                 [2, 4, 24]",
        "token embeddings           [2, 5, 24]",
        "combined                   [2, 9, 24]",
        "after decoder              [2, 9, 50]",
    ]


def test_functional_steps_are_rows(t):
    assert [row.path for row in t.find("cat")] == [""]
    assert t["pixel_shuffle"].kind == "function"
    assert t["pixel_shuffle"].inputs[0].shape == (2, 16, 32)
    assert t["pixel_shuffle"].out.shape == (2, 4, 128)


def test_find(t):
    assert len(t.find("decoder.blocks.*.qkv")) == 4
    assert len(t.find("Block")) == 7
    assert len(t.find("scaled_dot_product_attention")) == 7
    assert t.find("nothing") == []


def test_item_access_prefers_the_outermost(t):
    assert t["add"].path == "vision_encoder"
    with pytest.raises(KeyError, match=r"no step named 'projector'.*MP"):
        t["projector"]


@pytest.mark.parametrize(
    "name, near",
    [
        ("decoder.block.0", "'decoder.blocks.0'"),
        ("encoder", "'vision_encoder'"),
        ("blocks.0.qkv", "'decoder.blocks.0.qkv'"),
        ("pixel_shufle", "'pixel_shuffle'"),
        ("layernorm", "'LayerNorm'"),
    ],
)
def test_a_missing_step_is_told_what_is_near(t, name, near):
    with pytest.raises(KeyError) as caught:
        t[name]
    message = caught.value.args[0]
    assert message.startswith(f"The trace has no step named {name!r}. Near it: ") and near in message
    assert len(message) < 300


def test_where_nothing_is_near_the_modules_are_listed(t):
    with pytest.raises(KeyError, match=r"no step named 'xyz'\. Modules that ran: MP, MP\.proj, decoder, .*…"):
        t["xyz"]


def test_dict_outputs_and_inputs_have_names(t):
    assert t.root.out["logits"].shape == (2, 9, 50)
    assert t.root.out["num_image_tokens"] == 4
    assert list(t.inputs) == ["image", "ids"]


def test_kwargs_and_structures():
    Pair = namedtuple("Pair", "first second")

    @dataclass
    class Output:
        logits: torch.Tensor
        loss: torch.Tensor | None = None

    def model(pair, *, mask=None, options=None):
        return Output(pair.first + pair.second + options["bias"][0])

    t = trace(model, Pair(torch.zeros(2), torch.zeros(3, 1)), mask=torch.ones(2), options={"bias": [torch.zeros(2)]})
    assert t.inputs["pair"]["second"].shape == (3, 1)
    assert t.inputs["options"]["bias"][0].shape == (2,)
    assert t.root.out["logits"].shape == (3, 2) and t.root.out["loss"] is None


def test_bound_methods_partials_and_lambdas(inputs):
    model = MiniVLM()
    assert trace(model.vision_encoder.forward, inputs[0])["blocks.0"].shape == (2, 16, 32)
    assert trace(partial(model, ids=inputs[1]), inputs[0])["decoder"].shape == (2, 9, 50)
    assert trace(lambda: model(*inputs))["MP.proj"].shape == (2, 4, 24)


def test_a_model_behind_a_helper_function_is_found(inputs):
    model = MiniVLM()

    def helper():
        return model(*inputs)

    assert trace(lambda: helper())["MP.proj"].shape == (2, 4, 24)


def test_several_models_get_their_names(inputs):
    first, second = nn.Linear(4, 3), nn.Linear(3, 2)
    t = trace(lambda x: second(first(x)), torch.zeros(1, 4))
    assert t["first"].shape == (1, 3) and t["second"].shape == (1, 2)


def test_expect(t):
    t.expect({"vision_encoder": "B 16 32", "cat": "B 4+T 24", "decoder.token_embedding": "B T 24", "MP": "... 24"})
    with pytest.raises(ShapeMismatch) as caught:
        t.expect({"vision_encoder": "B 16 32", "cat": "B 10 24", "decoder": "B 11 50"})
    message = str(caught.value)
    assert "first step that differs is 'cat'" in message
    assert "expected [B, 10, 24]" in message and "[2, 9, 24]" in message
    assert "torch.cat((image, tokens), dim=1)" in message
    assert caught.value.row is t["cat"]


def test_expect_binds_a_name_once(t):
    with pytest.raises(ShapeMismatch, match="B = 2"):
        t.expect({"vision_encoder": "B 16 32", "cat": "9 B 24"})


@pytest.mark.parametrize("pattern", ["B 4+ 24", "B 4+X 24"])
def test_expect_refuses_a_pattern_that_it_cannot_read(t, pattern):
    with pytest.raises(ValueError, match=r"pattern|shape word"):
        t.expect({"cat": pattern})


def test_expect_refuses_a_pattern_that_is_no_text(t):
    with pytest.raises(TypeError, match=r"text such as .*; got \[2, 9, 24\]"):
        t.expect({"cat": [2, 9, 24]})


class Doubled:
    def __init__(self, x):
        self.x = x * 2


@dataclass
class Halved:
    x: torch.Tensor

    def __post_init__(self):
        self.x = self.x / 2


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 does not tell the class")
def test_an_object_that_is_made_in_the_run_has_the_name_of_its_class():
    t = trace(lambda x: Halved(Doubled(x).x).x, torch.zeros(3))
    assert t["Doubled"].shape == (3,)
    assert not t.find("<locals>")


def test_diff_of_equal_traces_is_empty(t, inputs):
    found = t.diff(trace(MiniVLM(), *inputs))
    assert not found and found.first is None and "same steps" in str(found)


def test_diff_names_the_first_step_that_differs(t, inputs):
    found = t.diff(trace(MiniVLM(), inputs[0], token_ids(2, 7)))
    assert found.first.here.name == "embedding"
    assert "[2, 5, 24], float32 -> [2, 7, 24], float32" in str(found)
    assert "(and 3 more like it)" in str(found)
    assert all("vision_encoder" not in str(change) for change in found)


def test_diff_shows_steps_gone_and_added(t, inputs):
    class WithDropout(MiniVLM):
        def __init__(self):
            super().__init__()
            self.decoder.blocks[1].norm = nn.Identity()
            self.decoder.head = nn.Sequential(nn.Dropout(), self.decoder.head)

    found = str(t.diff(trace(WithDropout().eval(), *inputs)))
    assert "- decoder.blocks.1.norm: layer_norm" in found
    assert "+ decoder.head.0  [2, 9, 24]" in found


def test_diff_sees_dtypes(inputs):
    model = nn.Linear(4, 4)
    a = trace(model, torch.zeros(1, 4))
    b = trace(model.bfloat16(), torch.zeros(1, 4, dtype=torch.bfloat16))
    assert "float32 -> [1, 4], bfloat16" in str(a.diff(b))


def test_json_holds_everything(t):
    data = json.loads(t.to_json())
    assert data["num_params"] == t.num_params and data["flops"] == t.flops
    names = []

    def collect(row):
        names.append(row["name"])
        for child in row.get("children", ()):
            collect(child)

    collect(data["root"])
    assert len(names) == len(t.rows)
    assert data["root"]["out"]["logits"] == {"shape": [2, 9, 50], "dtype": "float32", "device": "cpu"}


def test_table(t):
    table = t.table(depth=1)
    assert [row["module"] for row in table[:4]] == ["MiniVLM", "vision_encoder", "MP", "decoder.token_embedding"]
    assert table[-1]["params"] == t.num_params
    assert table[0]["FLOPs"] == t.flops
    assert table[1]["out bytes"] == 2 * 16 * 32 * 4
    assert "vision_encoder" in str(table) and "<table>" in table._repr_html_()
    assert len(t.table()) > len(table)


def test_svg_and_mermaid_show_what_flows(t):
    ElementTree.fromstring(t.svg())
    chart = t.mermaid()
    name = {line.split('"')[1].split("<")[0]: line.split("[")[0].strip() for line in chart.splitlines() if '["' in line}
    for a, b in [
        ("image", "vision_encoder"),
        ("vision_encoder", "pixel_shuffle"),
        ("MP.proj", "cat"),
        ("cat", "decoder"),
    ]:
        assert any(line.strip().startswith(f"{name[a]} --") and line.endswith(name[b]) for line in chart.splitlines())


def test_tied_weights_are_marked(t):
    assert "tied to decoder.token_embedding.weight" in str(t)


def test_folding_can_be_switched_off(t):
    assert "blocks.2: Block" not in t.text()
    assert "blocks.2: Block" in t.text(fold=False)
    assert len(t.text(depth=1).splitlines()) < 10


def test_html_is_escaped():
    t = trace(lambda x: x[x < 3], torch.zeros(4))
    assert "x[x &lt; 3]" in t._repr_html_()
    assert t.html().startswith("<!doctype html>")


def test_names_that_are_markup_stay_words():
    name = '<img src=x onerror="alert(1)">\n```'
    parts = {"forward": lambda self, x: self[name](x) + 1}
    model = type(name, (nn.ModuleDict,), parts)({name: nn.Linear(3, 3)})
    t = trace(model, torch.zeros(2, 3))
    page, drawing, chart = t.html(), t.svg(), t.mermaid()
    assert "<title>&lt;img" in page
    assert "<img" not in page + drawing + chart
    assert "&lt;img" in chart and "```" not in chart and len(chart.splitlines()) == 4


def test_loops_of_growing_shapes_fold():
    def generate(x):
        for _ in range(6):
            x = grow(x)
        return x

    def grow(x):
        return torch.cat([x, (x[:, -1:] * 2).relu()], dim=1)

    text = str(trace(generate, torch.zeros(2, 3)))
    assert "×6, first shown" in text and "[2, 4…9]" in text


def test_tracing_collects_several_calls():
    model, x = nn.Sequential(nn.Linear(3, 3)), torch.zeros(2, 3)
    with tracing(model) as t:
        for _ in range(3):
            model(x)
    assert [row.name for row in t.root.children] == ["Sequential"] * 3


@pytest.mark.parametrize(
    "options, error, words",
    [
        ({"device": "cuda"}, ValueError, "'meta'"),
        ({"level": "c++"}, ValueError, "'aten'"),
        ({"device": "meta", "values": True}, ValueError, "no values"),
    ],
)
def test_bad_options_are_refused(options, error, words):
    with pytest.raises(error, match=words):
        trace(nn.Linear(2, 2), torch.zeros(1, 2), **options)


def test_what_cannot_be_called_is_refused():
    with pytest.raises(TypeError, match="needs a model or a function"):
        trace(torch.zeros(2))
    with pytest.raises(TypeError, match="takes the models to watch"):
        tracing(lambda x: x)
