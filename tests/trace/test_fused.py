"""torch's transformer layers run fused kernels in eval without gradients, but not while anything watches. Traced, they
give what they give unwatched all the same, bit by bit."""

import copy

import pytest
import torch
from torch import nn

from nanovlm.trace import trace, tracing
from tests.trace.zoo import seeded

DIM, HEADS = 32, 4
PADDING = torch.tensor([[False] * 9, [False] * 6 + [True] * 3])
pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")


def encoder(**options):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(DIM, HEADS, 64, batch_first=True, **options)
    model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=not options).eval()
    for p in model.parameters():  # layer norms start at 1 and 0, and biases at 0: too plain to show a difference
        nn.init.normal_(p, std=0.3)
    return model


class OneByOne(nn.Module):
    """A model that owns an encoder and calls its layers itself."""

    def __init__(self):
        super().__init__()
        self.encoder = encoder()
        self.head = nn.Linear(DIM, 2)

    def forward(self, x):
        for layer in self.encoder.layers:
            x = layer(x)
        return self.head(x)


class OwnLayer(nn.TransformerEncoderLayer):
    """Somebody's own layer that counts its calls; its attention is torch's."""

    calls = 0

    def forward(self, src, src_mask=None, src_key_padding_mask=None, is_causal=False):
        self.calls += 1
        return src + self.self_attn(src, src, src, need_weights=False)[0]


def own_layers():
    return nn.TransformerEncoder(OwnLayer(DIM, HEADS, 64, batch_first=True), 2, enable_nested_tensor=False).eval()


def with_a_hook():
    model = encoder().layers[0].self_attn
    model.register_forward_hook(lambda module, args, out: (out[0] * 3, out[1]))
    return model


def with_a_hook_inside():
    model = encoder()
    model.layers[1].linear1.register_forward_hook(lambda module, args, out: out * 3)
    return model


CASES = {
    "encoder": (encoder, lambda m, x: m(x)),
    "norm first": (lambda: encoder(norm_first=True), lambda m, x: m(x)),
    "padding": (encoder, lambda m, x: m(x, src_key_padding_mask=PADDING)),
    "mask": (encoder, lambda m, x: m(x, mask=torch.ones(9, 9, dtype=torch.bool).triu(1))),
    "layer": (lambda: encoder().layers[0], lambda m, x: m(x)),
    "attention": (lambda: encoder().layers[0].self_attn, lambda m, x: m(x, x, x)),
    "other keys": (lambda: encoder().layers[0].self_attn, lambda m, x: m(x, x * 2, x * 3)),
    "no weights": (lambda: encoder().layers[0].self_attn, lambda m, x: m(x, x, x, need_weights=False)),
    "layers one by one": (OneByOne, lambda m, x: m(x)),
    "own layers": (own_layers, lambda m, x: m(x)),
    "own hook": (with_a_hook, lambda m, x: m(x, x, x)),
    "own hook inside": (with_a_hook_inside, lambda m, x: m(x)),
    "bfloat16": (lambda: encoder().bfloat16(), lambda m, x: m(x.bfloat16())),
    "train": (lambda: encoder(dropout=0.0).train(), lambda m, x: m(x)),
}


@pytest.mark.parametrize("grad", ["no_grad", "inference_mode", "frozen", "grad"])
@pytest.mark.parametrize("case", CASES)
def test_the_result_is_bitwise_the_same(case, grad):
    make, call = CASES[case]
    model, x = make(), seeded(2, 9, DIM)
    if grad == "frozen":
        model.requires_grad_(False)
    context = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}.get(grad, torch.enable_grad)
    with context():
        expected = call(model, x)
        with tracing(model) as t:
            found = call(model, x)
        again = call(model, x)
    for a, b, c in zip(*[r if isinstance(r, tuple) else (r,) for r in (expected, found, again)], strict=True):
        assert (a is None and b is None) or (torch.equal(a, b) and torch.equal(a, c))
        if a is not None:
            assert a.stride() == b.stride()  # or the next product may add up in another order
    assert t.find("softmax") or t.find("scaled_dot_product_attention")  # the inside is shown all the same


def test_the_two_paths_do_differ():
    """If torch gave the same on both, the test above would show nothing."""
    model, x = encoder(), seeded(2, 9, DIM)
    with torch.no_grad():
        fused = model(x)
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            ordinary = model(x)
        finally:
            torch.backends.mha.set_fastpath_enabled(True)
    assert not torch.equal(fused, ordinary)
    torch.testing.assert_close(fused, ordinary, rtol=1e-4, atol=1e-4)


def test_padding_stays_at_zero():
    model, x = encoder(), seeded(2, 9, DIM)
    with torch.no_grad(), tracing(model):
        assert (model(x, src_key_padding_mask=PADDING)[PADDING] == 0).all()


def test_somebodys_own_layer_is_called_once():
    model = own_layers()
    with torch.no_grad():
        trace(model, seeded(2, 9, DIM))
    assert [layer.calls for layer in model.layers] == [1, 1]


def test_the_inside_is_shown_once_and_leads_to_the_result():
    model = OneByOne().eval()
    with torch.no_grad():
        t = trace(model, seeded(2, 9, DIM), values=True, time=True, level="aten")
    assert len(t.find("softmax") or t.find("scaled_dot_product_attention")) == 3
    assert not [row for row in t.rows if "_native_multi_head_attention" in row.name or "fwd_default" in row.name]
    last, head = t["encoder.layers.2"], t["head"]
    assert last.outs[0].uid == head.inputs[0].uid
    assert last.outs[0].uid in {info.uid for row in last.children for info in row.outs}
    assert last.stats is not None


def test_hooks_and_modes_are_as_before():
    model, x = with_a_hook(), seeded(2, 9, DIM)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        trace(model, x, x, x)
        trace(model, x, x, x)
    for a, b in zip(model.modules(), twin.modules(), strict=True):
        assert len(a._forward_hooks) == len(b._forward_hooks) and len(a._forward_pre_hooks) == 0
    assert torch._C._len_torch_function_stack() == 0


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_error_in_the_second_call_leaves_nothing_behind(monkeypatch, error):
    def stopped(*args):
        raise error

    model, x = encoder(), seeded(2, 9, DIM)
    monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", stopped)  # the fused kernel
    with torch.no_grad(), pytest.raises(error):
        trace(model, x)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch._C._len_torch_function_stack() == 0


def test_a_device_context_of_the_model_is_left_in_place():
    """With a torch-function mode of its own around it the layer is not fused unwatched either."""
    model, x = encoder(), seeded(2, 9, DIM)
    with torch.no_grad(), torch.device("cpu"):
        expected = model(x)
        with tracing(model):
            assert torch.equal(model(x), expected)
