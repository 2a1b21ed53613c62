"""Chapter 04: answers as people write them, wrong in ways that people are wrong, and what they should be told."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from nanovlm.models.language_model import DecoderBlock, RMSNorm, RotaryEmbedding, apply_rope, attention_layout


def cls(name, base, **members):
    """A class `name` that differs from `base` in a few members."""
    return type(name, (base,), members)


def fn(name, function):
    function.__name__ = name
    return function


# -- decoder.rms_norm --------------------------------------------------------------------------------------------------


class Norm(nn.Module):
    def __init__(self, dim, eps):
        super().__init__()
        self.weight, self.eps, self.dim = nn.Parameter(torch.ones(dim)), eps, dim


def norm(name, forward):
    return cls(name, Norm, forward=forward)


def _rms(self, x, eps=None):
    wide = x.float()
    return (wide * (wide.pow(2).mean(-1, keepdim=True) + (self.eps if eps is None else eps)).rsqrt()).to(x.dtype)


class ForgetsTheWeight(Norm):
    def __init__(self, dim, eps):
        nn.Module.__init__(self)
        self.scale, self.eps = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x):
        return _rms(self, x) * self.scale


class StartsAtZero(Norm):
    def __init__(self, dim, eps):
        super().__init__(dim, eps)
        self.weight = nn.Parameter(torch.zeros(dim))

    def forward(self, x):
        return _rms(self, x) * self.weight


class WithBias(Norm):
    def __init__(self, dim, eps):
        super().__init__(dim, eps)
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x):
        return _rms(self, x) * self.weight + self.bias


RMS = [
    (norm("layer_norm", lambda s, x: F.layer_norm(x, x.shape[-1:], s.weight, None, s.eps)), "LayerNorm"),
    (
        norm(
            "over_the_tokens",
            lambda s, x: x * (x.float().pow(2).mean(1, keepdim=True) + s.eps).rsqrt().to(x.dtype) * s.weight,
        ),
        "over the tokens",
    ),
    (
        norm("one_mean", lambda s, x: (x.float() * (x.float().pow(2).mean() + s.eps).rsqrt()).to(x.dtype) * s.weight),
        "One mean",
    ),
    (norm("eps_written_in", lambda s, x: _rms(s, x, 1e-5) * s.weight), "eps is built in"),
    (norm("eps_1e6", lambda s, x: _rms(s, x, 1e-6) * s.weight), "eps is built in"),
    (norm("no_eps", lambda s, x: _rms(s, x, 0.0) * s.weight), "eps is left out"),
    (
        norm(
            "eps_outside",
            lambda s, x: (x.float() / (x.float().pow(2).mean(-1, keepdim=True).sqrt() + s.eps)).to(x.dtype) * s.weight,
        ),
        "eps is added behind the root",
    ),
    (
        norm("half_precision", lambda s, x: x * (x.pow(2).mean(-1, keepdim=True) + s.eps).rsqrt() * s.weight),
        "half precision",
    ),
    (norm("sum_of_squares", lambda s, x: F.normalize(x.float(), dim=-1).to(x.dtype) * s.weight), "*sum* of squares"),
    (
        norm(
            "no_root",
            lambda s, x: (x.float() / (x.float().pow(2).mean(-1, keepdim=True) + s.eps)).to(x.dtype) * s.weight,
        ),
        "root is missing",
    ),
    (norm("weight_unused", lambda s, x: _rms(s, x)), "learned weight is not used"),
    (norm("weight_before", lambda s, x: _rms(s, x * s.weight)), "before the size is measured"),
    (norm("stays_in_float32", lambda s, x: _rms(s, x.float()) * s.weight.float()), "type that came in"),
    (
        norm(
            "standard_deviation",
            lambda s, x: (x.float() / (x.float().std(-1, keepdim=True) + s.eps)).to(x.dtype) * s.weight,
        ),
        "standard deviation",
    ),
    (
        norm(
            "detached_scale",
            lambda s, x: (
                (x.float() * (x.detach().float().pow(2).mean(-1, keepdim=True) + s.eps).rsqrt()).to(x.dtype) * s.weight
            ),
        ),
        "gradient",
    ),
    (norm("detached_weight", lambda s, x: _rms(s, x) * s.weight.data), "gradient"),
    (ForgetsTheWeight, "no parameter weight"),
    (StartsAtZero, "weight of ones"),
    (WithBias, "bias"),
]

# -- decoder.swiglu ----------------------------------------------------------------------------------------------------


class MLP(nn.Module):
    bias = False

    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_dim, config.inter_dim, bias=self.bias)
        self.up_proj = nn.Linear(config.hidden_dim, config.inter_dim, bias=self.bias)
        self.down_proj = nn.Linear(config.inter_dim, config.hidden_dim, bias=self.bias)

    def forward(self, x):
        return self.down_proj(self.mix(self.gate_proj(x), self.up_proj(x)))


def mlp(name, mix):
    return cls(name, MLP, mix=lambda self, gate, up: mix(gate, up))


def _no_grad(self, x):
    with torch.no_grad():
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def _residual(self, x):
    return x + self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def _inplace(self, x):
    gate = F.silu(self.gate_proj(x))
    return self.down_proj(gate) * self.down_proj(self.up_proj(x))


SWIGLU = [
    (mlp("silu_on_up", lambda g, u: g * F.silu(u)), "wrong branch"),
    (mlp("silu_on_both", lambda g, u: F.silu(g) * F.silu(u)), "Both branches"),
    (mlp("no_activation", lambda g, u: g * u), "no activation"),
    (mlp("glu", lambda g, u: torch.sigmoid(g) * u), "plain sigmoid"),
    (mlp("glu_swapped", lambda g, u: torch.sigmoid(u) * g), "plain sigmoid"),
    (mlp("gelu", lambda g, u: F.gelu(g) * u), "GELU"),
    (mlp("gelu_tanh", lambda g, u: F.gelu(g, approximate="tanh") * u), "GELU"),
    (mlp("relu", lambda g, u: F.relu(g) * u), "ReLU"),
    (mlp("added", lambda g, u: F.silu(g) + u), "added"),
    (mlp("gate_alone", lambda g, u: F.silu(g)), "up_proj is not used"),
    (mlp("up_alone", lambda g, u: F.silu(u)), "gate_proj is not used"),
    (mlp("after_the_product", lambda g, u: F.silu(g * u)), "product goes through"),
    (mlp("softmax_gate", lambda g, u: g.softmax(-1) * u), "softmax"),
    (mlp("detached_gate", lambda g, u: F.silu(g.detach()) * u), "gradient"),
    (cls("no_grad", MLP, forward=_no_grad), "gradient"),
    (cls("residual_inside", MLP, forward=_residual), "block adds"),
    (cls("down_on_each", MLP, forward=_inplace), "down_proj reads the product"),
    (cls("biases", MLP, bias=True, mix=lambda s, g, u: F.silu(g) * u), "biases"),
]

# -- rope.angles -------------------------------------------------------------------------------------------------------


def angles(name, frequencies=None, positions=lambda p: p, lay=None, out=None, dtype=torch.float32):
    """frequencies(head_dim, base) -> [n]; lay(angles) -> [B, T, head_dim]; out(cos, sin)"""

    def forward(self, given):
        f = (frequencies or (lambda d, b: b ** (-torch.arange(0, d, 2) / d)))(self.head_dim, self.base)
        turned = positions(given)[..., None].to(dtype) * f.to(dtype)
        turned = (lay or (lambda a: torch.cat([a, a], -1)))(turned)[:, None]
        return (out or (lambda c, s: (c, s)))(turned.cos(), turned.sin())

    def init(self, head_dim, base):
        nn.Module.__init__(self)
        self.head_dim, self.base = head_dim, base

    return cls(name, nn.Module, __init__=init, forward=forward)


class StoredFrequencies(nn.Module):
    def __init__(self, head_dim, base):
        super().__init__()
        self.register_buffer("inv_freq", base ** (-torch.arange(0, head_dim, 2).float() / head_dim))

    def forward(self, positions):
        a = positions[:, None, :, None].to(self.inv_freq.dtype) * self.inv_freq
        a = torch.cat([a, a], -1)
        return a.cos(), a.sin()


class Unpersisted(StoredFrequencies):
    def __init__(self, head_dim, base):
        super().__init__(head_dim, base)
        self.register_buffer("inv_freq", self.inv_freq, persistent=False)


class LearnedFrequencies(StoredFrequencies):
    def __init__(self, head_dim, base):
        nn.Module.__init__(self)
        self.inv_freq = nn.Parameter(base ** (-torch.arange(0, head_dim, 2).float() / head_dim))


def _count_oneself(p):
    return torch.arange(p.shape[1]).expand(p.shape)


ANGLES = [
    (angles("from_one", positions=lambda p: p + 1), "positions begin at 1"),
    (angles("minus_one", positions=lambda p: p - 1), "one step too few"),
    (angles("base_10000", lambda d, b: 10_000.0 ** (-torch.arange(0, d, 2) / d)), "base is built in"),
    (angles("base_100000", lambda d, b: 100_000.0 ** (-torch.arange(0, d, 2) / d)), "base is built in"),
    (angles("growing", lambda d, b: b ** (torch.arange(0, d, 2) / d)), "grow from pair to pair"),
    (angles("half_as_fast", lambda d, b: b ** (-torch.arange(d // 2) / d)), "half as fast"),
    (angles("twice_as_fast", lambda d, b: b ** (-torch.arange(0, d, 2) / (d // 2))), "twice as fast"),
    (angles("linspace", lambda d, b: b ** (-torch.linspace(0, 1, d // 2))), "down to 1 / base"),
    (angles("shifted_pair", lambda d, b: b ** (-torch.arange(2, d + 2, 2) / d)), "first pair"),
    (angles("interleaved", lay=lambda a: a.repeat_interleave(2, -1)), "next to its double"),
    (angles("not_twice", lay=lambda a: a), "lay the angles twice"),
    (angles("one_for_each", lambda d, b: b ** (-torch.arange(d) / d), lay=lambda a: a), "an angle of its own"),
    (angles("swapped", out=lambda c, s: (s, c)), "swapped"),
    (angles("no_head_axis", out=lambda c, s: (c[:, 0], s[:, 0])), "axis for the heads"),
    (angles("head_axis_behind", out=lambda c, s: (c.transpose(1, 2), s.transpose(1, 2))), "behind the positions"),
    (angles("counts_itself", positions=_count_oneself), "count 0, 1, 2"),
    (angles("two_pi", lambda d, b: 2 * torch.pi * b ** (-torch.arange(0, d, 2) / d)), "2 pi"),
    (angles("degrees", lambda d, b: torch.rad2deg(b ** (-torch.arange(0, d, 2) / d))), "degrees"),
    (angles("float64", dtype=torch.float64), "float32"),
    (StoredFrequencies, "weights does not hold them"),
    (Unpersisted, "bfloat16"),
    (LearnedFrequencies, "Parameter"),
]

# -- rope.apply --------------------------------------------------------------------------------------------------------


def _halves(x):
    return x.chunk(2, dim=-1)


def _turned(x, sign=-1):
    a, b = _halves(x)
    return torch.cat([sign * b, a], -1)


def _neighbours(x):
    return torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)


def _inplace_rope(x, cos, sin):
    a, b = _halves(x.clone())
    a *= cos[..., : a.shape[-1]]
    a -= b * sin[..., : a.shape[-1]]
    b = b * cos[..., : b.shape[-1]] + a * sin[..., : b.shape[-1]]
    return torch.cat([a, b], -1)


APPLY = [
    (fn("neighbours", lambda x, cos, sin: x * cos + _neighbours(x) * sin), "pair neighbours"),
    (fn("first_row", lambda x, cos, sin: x * cos[:1] + _turned(x) * sin[:1]), "first row"),
    (fn("first_position", lambda x, cos, sin: x * cos[:, :, :1] + _turned(x) * sin[:, :, :1]), "one position"),
    (fn("last_position", lambda x, cos, sin: x * cos[:, :, -1:] + _turned(x) * sin[:, :, -1:]), "one position"),
    (fn("backwards", lambda x, cos, sin: x * cos - _turned(x) * sin), "runs backwards"),
    (fn("no_minus", lambda x, cos, sin: x * cos + _turned(x, 1) * sin), "minus sign is missing"),
    (
        fn("not_swapped", lambda x, cos, sin: x * cos + torch.cat([-_halves(x)[0], _halves(x)[1]], -1) * sin),
        "not swapped",
    ),
    (fn("x_times_sin", lambda x, cos, sin: x * cos + x * sin), "x itself"),
    (fn("swapped", lambda x, cos, sin: x * sin + _turned(x) * cos), "Sine and cosine"),
    (fn("only_cos", lambda x, cos, sin: x * cos), "sine is not used"),
    (fn("only_sin", lambda x, cos, sin: _turned(x) * sin), "cosine is not used"),
    (
        fn(
            "half_turned",
            lambda x, cos, sin: torch.cat([(x * cos + _turned(x) * sin).chunk(2, -1)[0], _halves(x)[1]], -1),
        ),
        "Only one number of each pair",
    ),
    (fn("in_place", _inplace_rope), "already been turned"),
    (fn("float32", lambda x, cos, sin: x.float() * cos + _turned(x).float() * sin), "bfloat16"),
    (fn("rolled", lambda x, cos, sin: x * cos + torch.roll(x, 1, -1) * sin), "runs round by one"),
    (fn("reversed_vector", lambda x, cos, sin: x * cos + x.flip(-1) * sin), "backwards along the vector"),
    (fn("nothing", lambda x, cos, sin: x.clone()), "nothing has been turned"),
    (fn("detached", lambda x, cos, sin: x.detach() * cos + _turned(x.detach()) * sin), "gradient"),
    (fn("heads_and_length", lambda x, cos, sin: x.mT * cos.mT + _turned(x).mT * sin.mT), "transposed"),
]

# -- decoder.positions -------------------------------------------------------------------------------------------------

POSITIONS = [
    (fn("counts_padding", lambda m: torch.arange(m.shape[1]).expand(m.shape)), "count padding"),
    (fn("from_one", lambda m: m.cumsum(1)), "begin at 1"),
    (fn("over_the_batch", lambda m: m.cumsum(0) - 1), "along the batch"),
    (fn("from_behind", lambda m: m.flip(1).cumsum(1).flip(1) - 1), "from the end"),
    (fn("padding_counted", lambda m: (1 - m).cumsum(1)), "number of padding tokens"),
    (fn("only_the_first_pads", lambda m: torch.arange(m.shape[1]) - m.argmax(1, keepdim=True)), "padding in front"),
    (fn("minus_all_pads", lambda m: torch.arange(m.shape[1]) - (1 - m).sum(1, keepdim=True)), "all padding of the row"),
    (fn("row_zero", lambda m: (m[:1].cumsum(1) - 1).expand(m.shape)), "first row"),
    (fn("floats", lambda m: m.float().cumsum(1) - 1), "whole numbers"),
    (fn("one_too_few", lambda m: m.cumsum(1) - 2), "less 1"),
    (fn("clamped_at_one", lambda m: (m.cumsum(1) - 1).clamp(min=1)), "begin at 1"),
    (fn("flat", lambda m: (m.flatten().cumsum(0) - 1).view(m.shape)), "runs on from row to row"),
    (fn("no_batch", lambda m: m[0].cumsum(0) - 1), "one row"),
    (fn("times_the_mask", lambda m: torch.arange(m.shape[1]) * m), "count padding"),
]

# -- decoder.who_sees_whom ---------------------------------------------------------------------------------------------


def _parts(m):
    T = m.shape[1]
    return torch.ones(T, T, dtype=torch.bool).tril()[None], m.bool()[:, None, :], torch.eye(T, dtype=torch.bool)[None]


def mask(name, make):
    return fn(name, lambda m: make(*_parts(m))[:, None])


MASKS = [
    (mask("no_future_hidden", lambda c, r, e: r | e), "future is not"),
    (mask("no_padding_hidden", lambda c, r, e: c.expand(len(r), -1, -1)), "padding is not"),
    (mask("triu", lambda c, r, e: (c.mT & r) | e), "Past and future"),
    (mask("rows_not_columns", lambda c, r, e: (c & r.mT) | e), "rows instead of its columns"),
    (mask("rows_and_columns", lambda c, r, e: (c & r & r.mT) | e), "rows as well"),
    (mask("inverted_padding", lambda c, r, e: (c & ~r) | e), "hide the real tokens"),
    (mask("empty_rows", lambda c, r, e: c & r), "nothing to look at"),
    (mask("not_oneself", lambda c, r, e: c & r & ~e), "sees itself"),
    (mask("upside_down", lambda c, r, e: ~((c & r) | e)), "upside down"),
    (mask("inverted_triangle", lambda c, r, e: (~c & r) | e), "Past and future"),
    (mask("or_for_and", lambda c, r, e: c | r), "or where"),
    (mask("whole_pads", lambda c, r, e: (c & r) | ~r.mT), "padding token sees everything"),
    (
        fn(
            "additive",
            lambda m: torch.where(((_parts(m)[0] & _parts(m)[1]) | _parts(m)[2])[:, None], 0.0, float("-inf")),
        ),
        "Return bools",
    ),
    (fn("integers", lambda m: ((_parts(m)[0] & _parts(m)[1]) | _parts(m)[2])[:, None].long()), "Return bools"),
    (fn("no_axis_for_heads", lambda m: (_parts(m)[0] & _parts(m)[1]) | _parts(m)[2]), "axis for the heads"),
    (fn("transposed", lambda m: ((_parts(m)[0] & _parts(m)[1]) | _parts(m)[2])[:, None].mT), "Queries are rows"),
    (
        fn(
            "first_row_for_all",
            lambda m: ((_parts(m)[0] & _parts(m)[1][:1]) | _parts(m)[2])[:, None].expand(len(m), -1, -1, -1),
        ),
        "first row",
    ),
]

# -- decoder.prefix_mask -----------------------------------------------------------------------------------------------


def prefix(name, make):
    def answer(m, p):
        c, r, e = _parts(m)
        p = p.bool()
        return make(c, r, e, p[:, :, None], p[:, None, :])[:, None]

    return fn(name, answer)


PREFIX = [
    (prefix("plain_causal", lambda c, r, e, pq, pk: (c & r) | e), "prefix is not used"),
    (prefix("sees_everything", lambda c, r, e, pq, pk: r | e + 0 * pk), "answer sees its future"),
    (prefix("prefix_sees_all", lambda c, r, e, pq, pk: ((c | pq) & r) | e), "prefix sees the answer"),
    (prefix("everybody_sees_prefix", lambda c, r, e, pq, pk: ((c | pk) & r) | e), "stand before the prefix"),
    (prefix("prefix_alone", lambda c, r, e, pq, pk: (pq & pk & r) | e), "answer sees nothing"),
    (prefix("same_side", lambda c, r, e, pq, pk: (c & (pq == pk) & r) | (pq & pk & r) | e), "cut off from the prefix"),
    (prefix("padding_seen", lambda c, r, e, pq, pk: c | (pq & pk)), "padding"),
    (prefix("padding_of_the_prefix", lambda c, r, e, pq, pk: (c & r) | (pq & pk) | e), "padding"),
    (prefix("answer_bidirectional", lambda c, r, e, pq, pk: ((c | (pq == pk)) & r) | e), "answer sees its future"),
    (prefix("inverted_prefix", lambda c, r, e, pq, pk: ((c | (~pq & ~pk)) & r) | e), "inverted"),
    (prefix("empty_rows", lambda c, r, e, pq, pk: (c | (pq & pk)) & r), "nothing to look at"),
    (prefix("and_for_or", lambda c, r, e, pq, pk: (c & (pq & pk) & r) | e), "and where"),
    (prefix("upside_down", lambda c, r, e, pq, pk: ~(((c | (pq & pk)) & r) | e)), "upside down"),
    (prefix("padding_rows_causal", lambda c, r, e, pq, pk: ((c | (pq & pk & r.mT)) & r) | e), "only the *keys*"),
    (prefix("or_for_and", lambda c, r, e, pq, pk: ((c | pq | pk) & r) | e), "one of the two"),
]

# -- decoder.mend_mask -------------------------------------------------------------------------------------------------


def _scores(q, k):
    return q @ k.mT / q.shape[-1] ** 0.5


def as_it_was(q, k, v, real):
    smallest = torch.finfo(torch.float32).min
    T = q.shape[2]
    future = torch.ones(T, T).triu(1) * smallest
    padding = (1 - real.float())[:, None, None, :] * smallest
    return (_scores(q, k) + (future + padding).to(q.dtype)).softmax(-1) @ v


def smallest_of_the_type(q, k, v, real):
    smallest = torch.finfo(q.dtype).min
    T = q.shape[2]
    bias = torch.ones(T, T, dtype=q.dtype).triu(1) * smallest + (1 - real.to(q.dtype))[:, None, None, :] * smallest
    return (_scores(q, k) + bias).softmax(-1) @ v


def _see(real):
    c, r, e = _parts(real)
    return c & r, e


def infinities(q, k, v, real):
    see, _ = _see(real)
    return _scores(q, k).masked_fill(~see[:, None], float("-inf")).softmax(-1) @ v


def nan_to_num(q, k, v, real):
    return infinities(q, k, v, real).nan_to_num(0.0)


def after_softmax(q, k, v, real):
    see, e = _see(real)
    return (_scores(q, k).softmax(-1) * (see | e)[:, None]) @ v


def inverted(q, k, v, real):
    see, e = _see(real)
    return _scores(q, k).masked_fill((see | e)[:, None], float("-inf")).softmax(-1).nan_to_num() @ v


def no_padding(q, k, v, real):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def no_future(q, k, v, real):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=(real.bool()[:, None] | _parts(real)[2])[:, None])


def both(q, k, v, real):
    mask = (real.bool()[:, None] | _parts(real)[2])[:, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask.expand(-1, 1, q.shape[2], -1), is_causal=True)


def minus_ten(q, k, v, real):
    see, e = _see(real)
    return (_scores(q, k) + (~(see | e))[:, None] * -10.0).to(q.dtype).softmax(-1) @ v


def minus_ten_thousand(q, k, v, real):
    see, e = _see(real)
    return _scores(q, k).masked_fill(~(see | e)[:, None], -1e4).softmax(-1) @ v


def no_scale(q, k, v, real):
    see, e = _see(real)
    return (q @ k.mT).masked_fill(~(see | e)[:, None], float("-inf")).softmax(-1) @ v


def zero_scores(q, k, v, real):
    see, e = _see(real)
    return (_scores(q, k) * (see | e)[:, None]).softmax(-1) @ v


def wrong_axis(q, k, v, real):
    see, e = _see(real)
    return _scores(q, k).masked_fill(~(see | e)[:, None], float("-inf")).softmax(-2).nan_to_num() @ v


def float32_out(q, k, v, real):
    see, e = _see(real)
    mask = (see | e)[:, None]
    return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask)


MEND = [
    (as_it_was, "code that was to be mended"),
    (minus_ten_thousand, "lower still"),
    (smallest_of_the_type, "smallest number of the type"),
    (infinities, "nothing to look at"),
    (nan_to_num, "gradient"),
    (after_softmax, "after the softmax"),
    (inverted, "upside down"),
    (no_padding, "padding can be seen"),
    (no_future, "future can be seen"),
    (both, "one of the two"),
    (minus_ten, "-10"),
    (no_scale, "head_dim"),
    (zero_scores, "score of 0"),
    (wrong_axis, "over the queries"),
    (float32_out, "type that came in"),
]

# -- decoder.gqa -------------------------------------------------------------------------------------------------------


class GQA(nn.Module):
    """Written out, so that each step can go wrong."""

    bias = False

    def __init__(self, config):
        super().__init__()
        wide, self.size = config.num_kv_heads * config.head_dim, config.head_dim
        self.q_proj = nn.Linear(config.hidden_dim, config.hidden_dim, bias=self.bias)
        self.k_proj = nn.Linear(config.hidden_dim, wide, bias=self.bias)
        self.v_proj = nn.Linear(config.hidden_dim, wide, bias=self.bias)
        self.out_proj = nn.Linear(config.hidden_dim, config.hidden_dim, bias=self.bias)

    def cut(self, x):
        return x.unflatten(2, (-1, self.size)).transpose(1, 2)

    def store(self, q, k, v, rope, cache):
        q, k = apply_rope(q, *rope), apply_rope(k, *rope)
        return (q, k, v) if cache is None else (q, *cache.update(k, v))

    def share(self, x, n):
        return x.repeat_interleave(n, dim=1)

    def weights(self, scores, mask, length):
        if mask is None:
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril(scores.shape[-1] - length)
        return scores.masked_fill(~mask, float("-inf")).softmax(-1)

    def scale(self, config_dim):
        return self.size**0.5

    def join(self, x):
        return x.transpose(1, 2).flatten(2)

    def forward(self, x, rope, mask, cache=None):
        q, k, v = self.cut(self.q_proj(x)), self.cut(self.k_proj(x)), self.cut(self.v_proj(x))
        q, k, v = self.store(q, k, v, rope, cache)
        n = q.shape[1] // k.shape[1]
        k, v = self.share(k, n), self.share(v, n)
        return self.out_proj(self.join(self.weights(q @ k.mT / self.scale(x.shape[-1]), mask, x.shape[1]) @ v))


def gqa(name, **members):
    return cls(name, GQA, **members)


def _cache_first(self, q, k, v, rope, cache):
    if cache is not None:
        k, v = cache.update(k, v)
    cos, sin = rope
    return apply_rope(q, *rope), apply_rope(k, cos[:, :, -k.shape[2] :], sin[:, :, -k.shape[2] :]), v


def _averaged(self, x, n):
    return x.mean(1, keepdim=True).expand(-1, n * x.shape[1], -1, -1)


def _reversed(self, x, n):
    return x.flip(1).repeat_interleave(n, dim=1)


def _first_head(self, x, n):
    return x[:, :1].expand(-1, n * x.shape[1], -1, -1)


def _mask_inverted(self, scores, mask, length):
    if mask is None:
        return GQA.weights(self, scores, mask, length)
    return scores.masked_fill(mask, float("-inf")).softmax(-1).nan_to_num()


def _mask_after(self, scores, mask, length):
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril(scores.shape[-1] - length)
    return scores.softmax(-1) * mask


def _first_key_only(self, scores, mask, length):
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    return scores.masked_fill(~mask, float("-inf")).softmax(-1)


def _no_causal(self, scores, mask, length):
    return scores.softmax(-1) if mask is None else GQA.weights(self, scores, mask, length)


def _over_queries(self, scores, mask, length):
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril(scores.shape[-1] - length)
    return scores.masked_fill(~mask, float("-inf")).softmax(-2).nan_to_num()


def _both(self, x, rope, mask, cache=None):
    q, k, v = self.cut(self.q_proj(x)), self.cut(self.k_proj(x)), self.cut(self.v_proj(x))
    q, k, v = self.store(q, k, v, rope, cache)
    n, causal = q.shape[1] // k.shape[1], x.shape[1] > 1
    k, v = k.repeat_interleave(n, 1), v.repeat_interleave(n, 1)
    return self.out_proj(self.join(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)))


def _rope_values(self, q, k, v, rope, cache):
    return GQA.store(self, q, k, apply_rope(v, *rope), rope, cache)


def _no_rope(self, q, k, v, rope, cache):
    return (q, k, v) if cache is None else (q, *cache.update(k, v))


def _rope_q(self, q, k, v, rope, cache):
    q = apply_rope(q, *rope)
    return (q, k, v) if cache is None else (q, *cache.update(k, v))


def _detached_v(self, q, k, v, rope, cache):
    return GQA.store(self, q, k, v.detach(), rope, cache)


class Untouched(GQA):
    def forward(self, x, rope, mask, cache=None):
        out_proj, self.out_proj = self.out_proj, nn.Identity()
        out = GQA.forward(self, x, rope, mask, cache)
        self.out_proj = out_proj
        return out


GQAS = [
    (gqa("averaged", share=_averaged), "averaged"),
    (gqa("reversed_groups", share=_reversed), "reversed"),
    (gqa("first_head_for_all", share=_first_head), "first key/value head"),
    (gqa("repeat", share=lambda s, x, n: x.repeat(1, n, 1, 1)), "wrong order"),
    (gqa("mask_inverted", weights=_mask_inverted), "inverted"),
    (gqa("mask_after_softmax", weights=_mask_after), "after the softmax"),
    (gqa("cache_before_rope", store=_cache_first), "before they are turned"),
    (gqa("rope_on_values", store=_rope_values), "values are turned"),
    (gqa("no_rope", store=_no_rope), "no RoPE"),
    (gqa("rope_on_queries", store=_rope_q), "Only the queries"),
    (gqa("no_scale", scale=lambda s, d: 1.0), "too large"),
    (gqa("scale_by_dim", scale=lambda s, d: d**0.5), "width of the whole vector"),
    (gqa("scale_by_head_dim", scale=lambda s, d: s.size), "root"),
    (gqa("future_seen", weights=_no_causal), "future"),
    (gqa("first_key_only", weights=_first_key_only), "very first"),
    (gqa("softmax_over_queries", weights=_over_queries), "over the queries"),
    (gqa("joined_without_swap", join=lambda s, x: x.reshape(x.shape[0], x.shape[2], -1)), "without swapping back"),
    (gqa("cut_with_a_view", cut=lambda s, x: x.reshape(x.shape[0], -1, x.shape[1], s.size)), "view alone"),
    (gqa("cut_as_columns", cut=lambda s, x: x.unflatten(2, (s.size, -1)).permute(0, 3, 1, 2)), "every so-many-th"),
    (gqa("detached_values", store=_detached_v), "gradient"),
    (gqa("mask_and_causal", forward=_both), "one of the two"),
    (Untouched, "out_proj is not used"),
    (gqa("biases", bias=True), "biases"),
]

# -- decoder.block -----------------------------------------------------------------------------------------------------


def block(name, forward):
    return cls(name, DecoderBlock, forward=forward)


class OneNorm(DecoderBlock):
    def __init__(self, config):
        super().__init__(config)
        self.norm2 = self.norm1


class EpsBuiltIn(DecoderBlock):
    def __init__(self, config):
        super().__init__(config)
        self.norm1, self.norm2 = RMSNorm(config.hidden_dim, 1e-6), RMSNorm(config.hidden_dim, 1e-6)


def _blk(self, x, rope, mask, cache, a=None, m=None):
    x = x + self.attn(self.norm1(x), rope, mask, cache) if a is None else a(x)
    return x + self.mlp(self.norm2(x)) if m is None else m(x)


BLOCKS = [
    (
        block(
            "no_first_residual", lambda s, x, r, m, c=None: _blk(s, s.attn(s.norm1(x), r, m, c), r, m, c, lambda y: y)
        ),
        "first half adds nothing",
    ),
    (
        block("no_second_residual", lambda s, x, r, m, c=None: s.mlp(s.norm2(x + s.attn(s.norm1(x), r, m, c)))),
        "second half adds nothing",
    ),
    (
        block("no_residual", lambda s, x, r, m, c=None: s.mlp(s.norm2(s.attn(s.norm1(x), r, m, c)))),
        "Nothing is added back",
    ),
    (
        block("post_norm", lambda s, x, r, m, c=None: s.norm2((y := s.norm1(x + s.attn(x, r, m, c))) + s.mlp(y))),
        "post-norm",
    ),
    (
        block(
            "adds_to_the_normalised",
            lambda s, x, r, m, c=None: (y := s.norm2((z := s.norm1(x)) + s.attn(z, r, m, c))) + s.mlp(y),
        ),
        "normalised x",
    ),
    (block("parallel", lambda s, x, r, m, c=None: x + s.attn(s.norm1(x), r, m, c) + s.mlp(s.norm2(x))), "parallel"),
    (
        block("norms_swapped", lambda s, x, r, m, c=None: (y := x + s.attn(s.norm2(x), r, m, c)) + s.mlp(s.norm1(y))),
        "norms are swapped",
    ),
    (
        block("mlp_first", lambda s, x, r, m, c=None: (y := x + s.mlp(s.norm2(x))) + s.attn(s.norm1(y), r, m, c)),
        "MLP comes first",
    ),
    (block("no_mask", lambda s, x, r, m, c=None: _blk(s, x, r, None, c)), "mask does not reach"),
    (block("no_cache", lambda s, x, r, m, c=None: _blk(s, x, r, m, None)), "cache does not reach"),
    (
        block("norm1_twice", lambda s, x, r, m, c=None: (y := x + s.attn(s.norm1(x), r, m, c)) + s.mlp(s.norm1(y))),
        "norm1 serves both",
    ),
    (block("no_norms", lambda s, x, r, m, c=None: (y := x + s.attn(x, r, m, c)) + s.mlp(y)), "as it is"),
    (block("no_mlp", lambda s, x, r, m, c=None: x + s.attn(s.norm1(x), r, m, c)), "MLP is left out"),
    (block("no_attention", lambda s, x, r, m, c=None: x + s.mlp(s.norm2(x))), "attention is left out"),
    (
        block("old_x", lambda s, x, r, m, c=None: x + s.mlp(s.norm2(x + s.attn(s.norm1(x), r, m, c)))),
        "second half adds to the x that came in",
    ),
    (block("detached", lambda s, x, r, m, c=None: _blk(s, x.detach(), r, m, c)), "gradient"),
    (
        block(
            "adds_to_norm1",
            lambda s, x, r, m, c=None: _blk(s, y := s.norm1(x), r, m, c, lambda _: y + s.attn(y, r, m, c)),
        ),
        "adds to the normalised x",
    ),
    (OneNorm, "norm2"),
    (EpsBuiltIn, "rms_norm_eps"),
]

# -- decoder.language_model --------------------------------------------------------------------------------------------


class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_dim)
        self.rotary_embedding = RotaryEmbedding(config.head_dim, config.rope_base)
        self.blocks = self.stack(config)
        self.norm = RMSNorm(config.hidden_dim, config.rms_norm_eps)
        self.head = nn.Linear(config.hidden_dim, config.vocab_size, bias=False)
        self.tie(config)

    def stack(self, config):
        return nn.ModuleList(DecoderBlock(config) for _ in range(config.num_blocks))

    def tie(self, config):
        if config.tie_weights:
            self.head.weight = self.token_embedding.weight

    def angles(self, positions, x):
        return self.rotary_embedding(positions)

    def run(self, x, rope, mask, memories):
        for layer, memory in zip(self.blocks, memories, strict=True):
            x = layer(x, rope, mask, memory)
        return self.norm(x)

    def forward(self, x, attention_mask=None, document_ids=None, cache=None):
        if cache is None:
            positions, mask = attention_layout(attention_mask, document_ids, x.shape[1], x.device)
            memories = [None] * len(self.blocks)
        else:
            positions, mask = cache.layout(attention_mask, x.shape[1])
            memories = cache.blocks
        return self.run(x, self.angles(positions, x), mask, memories)


def model(name, **members):
    return cls(name, Model, **members)


def _base_built_in(self, config):
    Model.tie(self, config)
    self.rotary_embedding = RotaryEmbedding(config.head_dim, 10_000.0)


def _eps_built_in(self, config):
    Model.tie(self, config)
    self.norm = RMSNorm(config.hidden_dim, 1e-6)


def _copied(self, config):
    if config.tie_weights:
        self.head.weight.data = self.token_embedding.weight.data.clone()


def _always_tied(self, config):
    self.head.weight = self.token_embedding.weight


def _norm_in_loop(self, x, rope, mask, memories):
    for layer, memory in zip(self.blocks, memories, strict=True):
        x = self.norm(layer(x, rope, mask, memory))
    return x


def _no_norm(self, x, rope, mask, memories):
    for layer, memory in zip(self.blocks, memories, strict=True):
        x = layer(x, rope, mask, memory)
    return x


def _backwards(self, x, rope, mask, memories):
    for layer, memory in reversed(list(zip(self.blocks, memories, strict=True))):
        x = layer(x, rope, mask, memory)
    return self.norm(x)


def _one_cache(self, x, rope, mask, memories):
    for layer in self.blocks:
        x = layer(x, rope, mask, memories[0])
    return self.norm(x)


def _first_block(self, x, rope, mask, memories):
    return self.norm(self.blocks[0](x, rope, mask, memories[0]))


def _residual(self, x, rope, mask, memories):
    start = x
    for layer, memory in zip(self.blocks, memories, strict=True):
        x = layer(x, rope, mask, memory)
    return self.norm(x + start)


def _same_input(self, x, rope, mask, memories):
    for layer, memory in zip(self.blocks, memories, strict=True):
        out = layer(x, rope, mask, memory)
    return self.norm(out)


def _without(what):
    def run(self, x, rope, mask, memories):
        if what == "mask":
            mask = None
        if what == "cache":
            memories = [None] * len(self.blocks)
        return Model.run(self, x, rope, mask, memories)

    return run


class OneBlockInTheOrderOfTheExercise(Model):
    """The exercise gives norm and head before the line that asks for the blocks."""

    def stack(self, config):
        return None

    def tie(self, config):
        del self.blocks
        self.blocks = nn.ModuleList([DecoderBlock(config)] * config.num_blocks)
        Model.tie(self, config)


MODELS = [
    (OneBlockInTheOrderOfTheExercise, "same one"),
    (model("own_head", tie=lambda s, c: None), "weight of its own"),
    (model("copied_head", tie=_copied), "weight of its own"),
    (model("always_tied", tie=_always_tied), "tie_weights is False"),
    (model("base_10000", tie=_base_built_in), "rope_base"),
    (model("eps_1e6", tie=_eps_built_in), "rms_norm_eps"),
    (model("one_block_repeated", stack=lambda s, c: nn.ModuleList([DecoderBlock(c)] * c.num_blocks)), "same one"),
    (model("plain_list", stack=lambda s, c: [DecoderBlock(c) for _ in range(c.num_blocks)]), "plain list"),
    (model("norm_in_the_loop", run=_norm_in_loop), "after every block"),
    (model("no_norm", run=_no_norm), "last norm is missing"),
    (model("backwards", run=_backwards), "last block first"),
    (model("one_cache", run=_one_cache), "one cache for all"),
    (model("only_the_first_block", run=_first_block), "Only the first block"),
    (model("residual_round_all", run=_residual), "added once more"),
    (model("same_input", run=_same_input), "Every block reads the input"),
    (model("no_mask", run=_without("mask")), "mask does not reach"),
    (model("no_cache", run=_without("cache")), "cache does not reach"),
    (
        model("own_positions", angles=lambda s, p, x: s.rotary_embedding(torch.arange(x.shape[1])[None])),
        "instead of `positions`",
    ),
    (model("gives_logits", run=lambda s, x, r, m, c: s.head(Model.run(s, x, r, m, c))), "caller applies the head"),
    (model("detached", run=lambda s, x, r, m, c: Model.run(s, x.detach(), r, m, c)), "gradient"),
]

# -- decoder.measure_mask ----------------------------------------------------------------------------------------------


def measure(name, poke, transpose=False, threshold=1e-6):
    def answer(model, x):
        base, T = model(x), x.shape[1]
        seen = torch.zeros(T, T, dtype=torch.bool)
        for j in range(T):
            changed = x.clone()
            changed[:, j] = poke(changed[:, j])
            seen[:, j] = (model(changed) - base).abs().amax(-1)[0] > threshold
        return seen.mT if transpose else seen

    return fn(name, answer)


def gradient_of_the_sum(model, x):
    x = x.clone().requires_grad_()
    rows = [torch.autograd.grad(model(x)[0, i].sum(), x)[0][0].abs().sum(-1) > 1e-5 for i in range(x.shape[1])]
    return torch.stack(rows)


def only_the_last(model, x):
    seen = torch.eye(x.shape[1], dtype=torch.bool)
    for j in range(x.shape[1]):
        changed = x.clone()
        changed[:, j] = torch.randn(x.shape[-1])
        seen[-1, j] = bool((model(changed) - model(x))[0, -1].abs().max() > 1e-6)
    return seen


def assumes_causal(model, x):
    return torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()


def changes_the_input(model, x):
    base, T = model(x), x.shape[1]
    seen = torch.zeros(T, T, dtype=torch.bool)
    for j in range(T):
        x[:, j] += torch.randn(x.shape[-1])
        seen[:, j] = (model(x) - base).abs().amax(-1)[0] > 1e-6
    return seen


def one_output_for_all(model, x):
    base, T = model(x), x.shape[1]
    seen = torch.zeros(T, T, dtype=torch.bool)
    for j in range(T):
        changed = x.clone()
        changed[:, j] = torch.randn(x.shape[-1])
        seen[:, j] = (model(changed) - base).abs().max() > 1e-6
    return seen


def cumulative(model, x):
    base, T, changed = model(x), x.shape[1], x.clone()
    seen = torch.zeros(T, T, dtype=torch.bool)
    for j in range(T):
        changed[:, j] = torch.randn(x.shape[-1])
        seen[:, j] = (model(changed) - base).abs().amax(-1)[0] > 1e-6
    return seen


def first_number_only(model, x):
    base, T = model(x), x.shape[1]
    seen = torch.zeros(T, T, dtype=torch.bool)
    for j in range(T):
        changed = x.clone()
        changed[:, j] = torch.randn(x.shape[-1])
        seen[:, j] = (model(changed) - base).mean(-1)[0].abs() > 1e-5
    return seen


MEASURE = [
    (measure("adds_one", lambda row: row + 1), "same number to every place"),
    (measure("doubles", lambda row: 2 * row), "only makes it longer"),
    (measure("tiny_step", lambda row: row + 1e-7), "too small"),
    (measure("wrong_threshold", lambda row: torch.randn_like(row), threshold=1.0), "threshold"),
    (measure("transposed", lambda row: torch.randn_like(row), transpose=True), "transpose"),
    (measure("exact_zero", lambda row: row), "Nothing is changed"),
    (gradient_of_the_sum, "sum of an output"),
    (only_the_last, "Only the last output"),
    (assumes_causal, "without asking the model"),
    (changes_the_input, "changed input"),
    (one_output_for_all, "each output by itself"),
    (cumulative, "stay changed"),
    (first_number_only, "mean of the change"),
    (fn("counts", lambda m, x: measure("x", lambda r: torch.randn_like(r))(m, x).sum(1)), "counts"),
    (fn("floats", lambda m, x: measure("x", lambda r: torch.randn_like(r))(m, x).float()), "bools"),
]

# -- decoder.test_decoder ----------------------------------------------------------------------------------------------


def _x(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def looks_at_shapes(decoder):
    assert decoder(_x(2, 5, 24), torch.ones(2, 5)).shape == (2, 5, 24)


def asserts_nothing(decoder):
    decoder(_x(2, 5, 24), torch.ones(2, 5))


def returns_a_verdict(decoder):
    x = _x(1, 5, 24)
    return bool(torch.isfinite(decoder(x, torch.ones(1, 5))).all())


def only_the_future(decoder):
    x = _x(1, 6, 24)
    changed = x.clone()
    changed[:, 4] += _x(24)
    torch.testing.assert_close(decoder(x, torch.ones(1, 6))[:, :4], decoder(changed, torch.ones(1, 6))[:, :4])


def only_the_padding(decoder):
    x = _x(1, 4, 24)
    padded = torch.cat([_x(1, 2, 24), x], 1)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1]])
    torch.testing.assert_close(decoder(padded, mask)[:, 2:], decoder(x, torch.ones(1, 4)), atol=1e-4, rtol=1e-4)


def padding_behind(decoder):
    only_the_future(decoder)
    x = _x(1, 4, 24)
    padded = torch.cat([x, _x(1, 2, 24)], 1)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0]])
    torch.testing.assert_close(decoder(padded, mask)[:, :4], decoder(x, torch.ones(1, 4)), atol=1e-4, rtol=1e-4)


def last_token_changed(decoder):
    only_the_padding(decoder)
    x = _x(1, 6, 24)
    changed = x.clone()
    changed[:, 5] += _x(24)
    torch.testing.assert_close(decoder(x, torch.ones(1, 6))[:, :3], decoder(changed, torch.ones(1, 6))[:, :3])


def too_strict(decoder):
    x = _x(1, 5, 24)
    assert torch.equal(decoder(x, torch.ones(1, 5)), decoder(x.flip(1), torch.ones(1, 5)).flip(1))


def no_order(decoder):
    only_the_future(decoder)
    only_the_padding(decoder)


def nothing_seen(decoder):
    x = _x(1, 6, 24)
    changed = x.clone()
    changed[:, 1] += _x(24)
    assert not torch.allclose(decoder(x, torch.ones(1, 6))[:, 4], decoder(changed, torch.ones(1, 6))[:, 4])


def finite(decoder):
    assert decoder(_x(2, 5, 24), torch.tensor([[0, 0, 1, 1, 1], [1] * 5])).isfinite().all()


def numbers_written_down(decoder):
    assert abs(float(decoder(_x(1, 5, 24), torch.ones(1, 5)).detach().sum()) - 12.5) < 1e-3


TESTS = [
    (looks_at_shapes, "shapes alone"),
    (asserts_nothing, "asserts nothing"),
    (returns_a_verdict, "AssertionError"),
    (only_the_future, "What gets through"),
    (only_the_padding, "What gets through"),
    (padding_behind, "What gets through"),
    (last_token_changed, "What gets through"),
    (too_strict, "decoder that is right"),
    (no_order, "What gets through"),
    (nothing_seen, "What gets through"),
    (finite, "What gets through"),
    (numbers_written_down, "decoder that is right"),
]

for _test, _ in TESTS:
    _test.__test__ = False  # pytest would take these for tests of ours

WRONG = {
    "decoder.rms_norm": RMS,
    "decoder.swiglu": SWIGLU,
    "rope.angles": ANGLES,
    "rope.apply": APPLY,
    "decoder.positions": POSITIONS,
    "decoder.who_sees_whom": MASKS,
    "decoder.prefix_mask": PREFIX,
    "decoder.mend_mask": MEND,
    "decoder.gqa": GQAS,
    "decoder.block": BLOCKS,
    "decoder.language_model": MODELS,
    "decoder.measure_mask": MEASURE,
    "decoder.test_decoder": TESTS,
}
