"""Chapter 04 once more, written in other ways."""

from __future__ import annotations

import einops
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanovlm.models import language_model as package


def like(base, **members):
    """`base` with another forward, or other members."""
    return type(f"{base.__name__}Again", (base,), members)


# -- decoder.rms_norm --------------------------------------------------------------------------------------------------


class Norm(nn.Module):
    """The size of a vector by its length: |x| / sqrt(n) is its root mean square."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps, self.dim = nn.Parameter(torch.ones(dim)), eps, dim

    def forward(self, x: Tensor) -> Tensor:
        length = x.double().norm(dim=-1, keepdim=True)
        return (self.weight * x / (length**2 / self.dim + self.eps).sqrt()).to(x.dtype)


def _norm_by_einsum(self, x: Tensor) -> Tensor:
    wide = x.float()
    square = torch.einsum("...d,...d->...", wide, wide)[..., None] / self.dim
    return (self.weight.float() * wide / torch.sqrt(square + self.eps)).type_as(x)


def _norm_in_place(self, x: Tensor) -> Tensor:
    wide = x.to(torch.float32, copy=True)
    scale = wide.square().mean(-1, keepdim=True).add(self.eps).rsqrt()
    return wide.mul(scale).to(x.dtype).mul(self.weight)


def _norm_by_vector(self, x: Tensor) -> Tensor:
    rows = [row * (row.float().pow(2).mean() + self.eps) ** -0.5 for row in x.flatten(0, -2).float()]
    return torch.stack(rows).view(x.shape).to(x.dtype) * self.weight


class TorchNorm(nn.RMSNorm):
    """torch's own module."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__(dim, eps=eps)


# -- decoder.swiglu ----------------------------------------------------------------------------------------------------


class MLP(nn.Module):
    """Gate and up in one product of stacked weights, silu written out."""

    def __init__(self, config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_dim, config.inter_dim, bias=False)
        self.up_proj = nn.Linear(config.hidden_dim, config.inter_dim, bias=False)
        self.down_proj = nn.Linear(config.inter_dim, config.hidden_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        both = x @ torch.cat([self.gate_proj.weight, self.up_proj.weight]).mT
        gate, up = both.chunk(2, dim=-1)
        return self.down_proj(gate / (1 + (-gate).exp()) * up)


def _mlp_by_einsum(self, x: Tensor) -> Tensor:
    gate = torch.einsum("btd,id->bti", x, self.gate_proj.weight)
    up = torch.einsum("btd,id->bti", x, self.up_proj.weight)
    return torch.einsum("bti,di->btd", gate * gate.sigmoid() * up, self.down_proj.weight)


def _mlp_by_token(self, x: Tensor) -> Tensor:
    tokens = [self.down_proj(nn.SiLU()(self.gate_proj(t)) * self.up_proj(t)) for t in x.flatten(0, 1)]
    return torch.stack(tokens).view(x.shape)


def _mlp_in_place(self, x: Tensor) -> Tensor:
    hidden = F.silu(self.gate_proj(x), inplace=False)
    hidden = hidden.mul(self.up_proj(x))
    return F.linear(hidden, self.down_proj.weight)


class DictMLP(nn.Module):
    """Layers made in a loop."""

    def __init__(self, config) -> None:
        super().__init__()
        sizes = {"gate_proj": (1, 0), "up_proj": (1, 0), "down_proj": (0, 1)}
        dims = (config.hidden_dim, config.inter_dim)
        for name, (out, into) in sizes.items():
            self.add_module(name, nn.Linear(in_features=dims[into], out_features=dims[out], bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.up_proj(x) * F.silu(self.gate_proj(x)))


# -- rope.angles -------------------------------------------------------------------------------------------------------


class Angles:
    """No module at all but for .to(): a table of loops, in Python's own floats."""

    def __init__(self, head_dim: int, base: float) -> None:
        self.frequencies = [base ** (-2 * (i % (head_dim // 2)) / head_dim) for i in range(head_dim)]

    def to(self, *args, **kwargs) -> Angles:
        return self

    def state_dict(self) -> dict:
        return {}

    def __call__(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        angles = torch.stack([positions.double() * f for f in self.frequencies], dim=-1).unsqueeze(1)
        return angles.cos().float(), angles.sin().float()


class AnglesBase(nn.Module):
    def __init__(self, head_dim: int, base: float) -> None:
        super().__init__()
        self.head_dim, self.base = head_dim, base

    def frequencies(self) -> Tensor:
        return 1.0 / (self.base ** (torch.arange(0, self.head_dim, 2).float() / self.head_dim))


def _sine_by_cosine(self, positions: Tensor) -> tuple[Tensor, ...]:
    angles = torch.einsum("bt,f->btf", positions.float(), self.frequencies())[:, None].repeat(1, 1, 1, 2)
    return angles.cos(), torch.cos(angles - torch.pi / 2)


def _as_a_list(self, positions: Tensor) -> list[Tensor]:
    angles = einops.repeat(positions.float()[..., None] * self.frequencies(), "b t f -> b 1 t (two f)", two=2)
    return [f(angles) for f in (torch.cos, torch.sin)]


def _by_exp(self, positions: Tensor) -> tuple[Tensor, Tensor]:
    i = torch.arange(self.head_dim // 2, dtype=torch.float64)
    angles = positions.double()[:, None, :, None] * torch.exp(-2 * i / self.head_dim * torch.tensor(self.base).log())
    return torch.cat([angles.cos()] * 2, -1).float(), torch.cat([angles.sin()] * 2, -1).float()


def _by_polar(self, positions: Tensor) -> tuple[Tensor, Tensor]:
    turn = torch.polar(torch.tensor(1.0), positions.float()[:, None, :, None] * self.frequencies())
    return turn.real.tile(2), turn.imag.tile(2)


# -- rope.apply --------------------------------------------------------------------------------------------------------


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """A pair is a complex number; turning is multiplying."""
    half = x.shape[-1] // 2
    turn = torch.complex(cos[..., :half].double(), sin[..., :half].double())
    turned = torch.complex(x[..., :half].double(), x[..., half:].double()) * turn
    return torch.cat([turned.real, turned.imag], dim=-1).to(x.dtype)


def rotate_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    (a, b), (c, _), (s, _) = (t.to(x.dtype).chunk(2, dim=-1) for t in (x, cos, sin))
    return torch.cat([a * c - b * s, b * c + a * s], dim=-1)


def rotate_by_roll(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    sign = torch.tensor([-1.0] * half + [1.0] * half)
    return (x * cos + torch.roll(x, half, -1) * sign * sin).to(x.dtype)


def rotate_in_place(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    out, half = (x * cos).to(x.dtype), x.shape[-1] // 2
    out[..., :half] -= (x[..., half:] * sin[..., :half]).to(x.dtype)
    out[..., half:] += (x[..., :half] * sin[..., half:]).to(x.dtype)
    return out


def rotate_by_matrix(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    dim, half = x.shape[-1], x.shape[-1] // 2
    swap = torch.zeros(dim, dim)
    for i in range(half):
        swap[i, i + half], swap[i + half, i] = -1, 1
    return (x.float() * cos + torch.einsum("ij,bhtj->bhti", swap, x.float()) * sin).to(x.dtype)


def rotate_with_einops(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = einops.rearrange(x, "... (two f) -> two ... f", two=2)
    swapped = einops.rearrange(torch.stack([-b, a]), "two ... f -> ... (two f)")
    return x * cos.type_as(x) + swapped * sin.type_as(x)


# -- decoder.positions -------------------------------------------------------------------------------------------------


def positions_by_loops(attention_mask: Tensor) -> Tensor:
    out = torch.zeros(attention_mask.shape, dtype=torch.long)
    for b, row in enumerate(attention_mask.tolist()):
        seen = 0
        for t, real in enumerate(row):
            out[b, t] = seen
            seen += real != 0
    return out


def positions_by_matrix(attention_mask: Tensor) -> Tensor:
    length = attention_mask.shape[1]
    return (attention_mask.float() @ torch.ones(length, length).triu(1)).long()


def positions_int32(attention_mask: Tensor) -> Tensor:
    return (attention_mask.bool().cumsum(dim=-1, dtype=torch.int32) - 1).to(torch.int32)


def positions_masked(attention_mask: Tensor) -> Tensor:
    return (torch.cumsum(attention_mask, 1) - 1).masked_fill(attention_mask == 0, 1)


def positions_by_row(attention_mask: Tensor) -> Tensor:
    return torch.stack([F.pad(row.cumsum(0), (1, -1)) for row in attention_mask])


# -- decoder.who_sees_whom and decoder.prefix_mask ---------------------------------------------------------------------


def who_by_loops(attention_mask: Tensor) -> Tensor:
    batch, length = attention_mask.shape
    mask = torch.zeros(batch, 1, length, length, dtype=torch.bool)
    for b in range(batch):
        for query in range(length):
            for key in range(length):
                mask[b, 0, query, key] = query == key or (key < query and attention_mask[b, key] != 0)
    return mask


def who_by_tril(attention_mask: Tensor) -> Tensor:
    length = attention_mask.shape[1]
    real = einops.repeat(attention_mask != 0, "b k -> b 1 q k", q=length)
    return real.tril() | torch.eye(length, dtype=torch.bool)


def who_by_hiding(attention_mask: Tensor) -> Tensor:
    length = attention_mask.shape[1]
    hidden = torch.ones(length, length, dtype=torch.bool).triu(1) | (attention_mask == 0)[:, None, None]
    hidden.diagonal(dim1=-2, dim2=-1).fill_(False)
    return ~hidden


def who_by_products(attention_mask: Tensor) -> Tensor:
    index = torch.arange(attention_mask.shape[1])
    mask = (index.view(-1, 1) >= index).float() * attention_mask.bool().float()[:, None, None, :]
    return torch.logical_or(mask.bool(), index.view(-1, 1) == index)


def who_by_where(attention_mask: Tensor) -> Tensor:
    index = torch.arange(attention_mask.shape[1])
    key = torch.where(attention_mask.bool(), index, 10_000)  # padding is later than everything
    return ((key[:, None, :] <= index[:, None]) | (index[:, None] == index))[:, None]


def prefix_by_loops(attention_mask: Tensor, prefix: Tensor) -> Tensor:
    batch, length = attention_mask.shape
    mask = torch.zeros(batch, 1, length, length, dtype=torch.bool)
    for b in range(batch):
        for q in range(length):
            for k in range(length):
                seen = k <= q or (prefix[b, q] and prefix[b, k])
                mask[b, 0, q, k] = q == k or bool(seen and attention_mask[b, k])
    return mask


def prefix_by_outer(attention_mask: Tensor, prefix: Tensor) -> Tensor:
    length = prefix.shape[1]
    both = torch.einsum("bq,bk->bqk", prefix.float(), prefix.float()) > 0
    mask = both.logical_or(torch.tril(torch.ones(length, length)).bool()) & attention_mask.bool().unsqueeze(1)
    return (mask | torch.eye(length).bool()).unsqueeze(1)


def prefix_by_rank(attention_mask: Tensor, prefix: Tensor) -> Tensor:
    """Each token gets the place up to which it sees: its own, or the last one of its prefix."""
    index = torch.arange(prefix.shape[1])
    last = torch.where(prefix.bool(), index, -1).amax(1, keepdim=True)
    until = torch.where(prefix.bool(), last, index)
    mask = (index <= until[:, :, None]) & (attention_mask != 0)[:, None]
    return (mask | (index[:, None] == index))[:, None]


def prefix_in_place(attention_mask: Tensor, prefix: Tensor) -> Tensor:
    mask = who_by_tril(attention_mask).clone()
    for b in range(len(mask)):
        inside = prefix[b].bool().nonzero().flatten()
        real = inside[attention_mask[b, inside] != 0]
        mask[b, 0, inside[:, None], real] = True
    return mask


def prefix_by_cumsum(attention_mask: Tensor, prefix: Tensor) -> Tensor:
    """As big_vision does it: within a block of equal numbers everything is visible."""
    p = prefix.bool()
    block = (~p | (p & ~F.pad(p, (1, -1)))).long().cumsum(1)
    mask = (block[:, None, :] <= block[:, :, None]) & attention_mask.bool()[:, None, :]
    return (mask | torch.eye(p.shape[1], dtype=torch.bool))[:, None]


# -- decoder.mend_mask -------------------------------------------------------------------------------------------------


def mended_by_hand(q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor) -> Tensor:
    scores = (q.float() @ k.float().mT) * q.shape[-1] ** -0.5
    return (scores.masked_fill(~who_by_tril(attention_mask), -torch.inf).softmax(dim=-1) @ v.float()).to(q.dtype)


def mended_in_half(q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor) -> Tensor:
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / 2
    return torch.where(who_by_tril(attention_mask), scores, float("-inf")).softmax(-1) @ v


def mended_by_head(q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor) -> Tensor:
    mask = who_by_tril(attention_mask)[:, 0]
    heads = [
        F.scaled_dot_product_attention(q[:, h], k[:, h], v[:, h], attn_mask=mask, is_causal=False)
        for h in range(q.shape[1])
    ]
    return torch.stack(heads, dim=1)


def mended_by_bias(q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor) -> Tensor:
    bias = torch.zeros(q.shape[0], 1, q.shape[2], q.shape[2], dtype=q.dtype)
    bias = bias.masked_fill(~who_by_tril(attention_mask), float("-inf"))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def mended_by_exp(q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor) -> Tensor:
    scores = (q.double() @ k.double().mT) / q.shape[-1] ** 0.5
    weights = (scores - scores.amax(-1, keepdim=True)).exp() * who_by_tril(attention_mask)
    return ((weights / weights.sum(-1, keepdim=True)) @ v.double()).to(q.dtype)


# -- decoder.gqa -------------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """One query head after the other, softmax by hand, the mask made here."""

    def __init__(self, config) -> None:
        super().__init__()
        self.config, width = config, config.num_kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_dim, config.hidden_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_dim, width, bias=False)
        self.v_proj = nn.Linear(config.hidden_dim, width, bias=False)
        self.out_proj = nn.Linear(config.hidden_dim, config.hidden_dim, bias=False)

    def heads(self, x: Tensor) -> Tensor:
        return torch.stack(x.split(self.config.head_dim, dim=-1), dim=1)

    def prepared(self, x: Tensor, rope, mask, cache):
        q, k, v = self.heads(self.q_proj(x)), self.heads(self.k_proj(x)), self.heads(self.v_proj(x))
        q, k = package.apply_rope(q, *rope), package.apply_rope(k, *rope)
        if cache is not None:
            k, v = cache.update(k, v)
        if mask is None:  # the queries are the last of the keys
            mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2])[None, None]
        return q, k, v, mask

    def forward(self, x: Tensor, rope, mask, cache=None) -> Tensor:
        q, k, v, mask = self.prepared(x, rope, mask, cache)
        heads = []
        for head in range(self.config.num_heads):
            shared = head * self.config.num_kv_heads // self.config.num_heads
            scores = q[:, head] @ k[:, shared].mT / self.config.head_dim**0.5
            weights = scores.masked_fill(~mask[:, 0], -torch.inf).softmax(dim=-1)
            heads.append(weights @ v[:, shared])
        return self.out_proj(torch.cat(heads, dim=-1))


def _gqa_by_einsum(self, x: Tensor, rope, mask, cache=None) -> Tensor:
    q, k, v, mask = self.prepared(x, rope, mask, cache)
    q = einops.rearrange(q, "b (kv g) t d -> b kv g t d", kv=k.shape[1])
    scores = torch.einsum("bkgtd,bksd->bkgts", q, k) / self.config.head_dim**0.5
    weights = scores.masked_fill(~mask[:, :, None], float("-inf")).softmax(-1)
    out = torch.einsum("bkgts,bksd->bkgtd", weights, v)
    return self.out_proj(einops.rearrange(out, "b k g t d -> b t (k g d)"))


def _gqa_enable(self, x: Tensor, rope, mask, cache=None) -> Tensor:
    q, k, v, mask = self.prepared(x, rope, mask, cache)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    return self.out_proj(out.transpose(1, 2).flatten(-2))


def _gqa_expand(self, x: Tensor, rope, mask, cache=None) -> Tensor:
    q, k, v, mask = self.prepared(x, rope, mask, cache)
    n = q.shape[1] // k.shape[1]
    k, v = (t[:, :, None].expand(-1, -1, n, -1, -1).flatten(1, 2) for t in (k, v))
    bias = torch.zeros(mask.shape).masked_fill(~mask, float("-inf"))
    return self.out_proj(F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).reshape(x.shape))


def _gqa_indexed(self, x: Tensor, rope, mask, cache=None) -> Tensor:
    q, k, v, mask = self.prepared(x, rope, mask, cache)
    which = torch.arange(q.shape[1]) * k.shape[1] // q.shape[1]
    scores = (q * self.config.head_dim**-0.5) @ k[:, which].transpose(-2, -1)
    weights = torch.where(mask, scores, torch.tensor(float("-inf"))).softmax(-1)
    return self.out_proj(torch.cat((weights @ v[:, which]).unbind(1), dim=-1))


# -- decoder.block -----------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """The two halves in a loop."""

    def __init__(self, config) -> None:
        super().__init__()
        self.norm1 = package.RMSNorm(config.hidden_dim, config.rms_norm_eps)
        self.norm2 = package.RMSNorm(config.hidden_dim, config.rms_norm_eps)
        self.attn, self.mlp = package.GroupedQueryAttention(config), package.SwiGLU(config)

    def forward(self, x: Tensor, rope, mask, cache=None) -> Tensor:
        for norm, work in (
            (self.norm1, lambda y: self.attn(y, rope, mask, cache)),
            (self.norm2, self.mlp),
        ):
            x = x + work(norm(x))
        return x


def _block_by_name(self, x: Tensor, rope, mask, cache=None) -> Tensor:
    attended = self.attn(x=self.norm1(x), rope=rope, mask=mask, cache=cache)
    middle = attended + x
    return middle.add(self.mlp(self.norm2(middle)))


def _block_with_delta(self, x: Tensor, rope, mask, cache=None) -> Tensor:
    stream = x.clone()
    stream = torch.add(stream, self.attn(self.norm1(stream), rope, mask, cache))
    return torch.stack([stream, self.mlp(self.norm2(stream))]).sum(0)


def _block_sums(self, x: Tensor, rope, mask, cache=None) -> Tensor:
    one = self.attn(self.norm1(x), rope, mask, cache)
    two = self.mlp(self.norm2(x + one))
    return x + one + two


def _block_functions(self, x: Tensor, rope, mask, cache=None) -> Tensor:
    def residual(work, x):
        return x + work(x)

    x = residual(lambda y: self.attn(self.norm1(y), rope, mask, cache), x)
    return residual(lambda y: self.mlp(self.norm2(y)), x)


# -- decoder.language_model --------------------------------------------------------------------------------------------


class Model(nn.Module):
    """The embedding tied to the head, not the head to the embedding; the angles made in forward."""

    def __init__(self, config) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_dim)
        self.head = nn.Linear(config.hidden_dim, config.vocab_size, bias=False)
        if config.tie_weights:
            self.token_embedding.weight = self.head.weight
        self.blocks = nn.ModuleList()
        for _ in range(config.num_blocks):
            self.blocks.append(package.DecoderBlock(config))
        self.norm = package.RMSNorm(config.hidden_dim, config.rms_norm_eps)
        self.config = config

    def forward(self, x, attention_mask=None, document_ids=None, cache=None, hidden_states=None) -> Tensor:
        length = x.shape[1]
        if cache is None:
            positions, mask = package.attention_layout(attention_mask, document_ids, length, x.device)
        else:
            positions, mask = cache.layout(attention_mask, length)
        rope = package.RotaryEmbedding(self.config.head_dim, self.config.rope_base)(positions)
        seen = [x]
        for block, memory in zip(self.blocks, cache.blocks if cache else [None] * len(self.blocks), strict=True):
            seen.append(block(seen[-1], rope, mask, memory))
        seen[-1] = self.norm(seen[-1])
        if hidden_states is not None:
            hidden_states.extend(seen)
        return seen[-1]


def _forward_with(run):
    def forward(self, x, attention_mask=None, document_ids=None, cache=None):
        if cache is None:
            positions, mask = package.attention_layout(attention_mask, document_ids, x.shape[1], x.device)
        else:
            positions, mask = cache.layout(attention_mask, x.shape[1])
        rope = package.RotaryEmbedding(self.config.head_dim, self.config.rope_base)(positions)
        return run(self, x, rope, mask, cache)

    return forward


def _by_index(self, x, rope, mask, cache):
    for i in range(len(self.blocks)):
        x = self.blocks[i](x, rope, mask, None if cache is None else cache.blocks[i])
    return self.norm(x)


def _by_iterator(self, x, rope, mask, cache):
    memories = iter(cache.blocks) if cache is not None else None
    for block in self.blocks.children():
        x = block(x=x, rope=rope, mask=mask, cache=next(memories) if memories else None)
    return F.rms_norm(x, x.shape[-1:], self.norm.weight, self.config.rms_norm_eps)


def _by_recursion(self, x, rope, mask, cache, i=0):
    if i == self.config.num_blocks:
        return self.norm(x)
    return _by_recursion(self, self.blocks[i](x, rope, mask, cache and cache.blocks[i]), rope, mask, cache, i + 1)


class TiedByLinear(package.LanguageModel):
    """The package's, with the head built from the table."""

    def __init__(self, config) -> None:
        super().__init__(config)
        if config.tie_weights:
            self.head = nn.Linear(config.hidden_dim, config.vocab_size, bias=False)
            self.head.weight = self.get_parameter("token_embedding.weight")


# -- decoder.measure_mask ----------------------------------------------------------------------------------------------


def by_jacobian(model, x: Tensor) -> Tensor:
    jacobian = torch.autograd.functional.jacobian(lambda t: model(t)[0], x)  # [T, dim, 1, T, dim]
    return jacobian[:, :, 0].abs().amax(dim=(1, 3)) > 1e-6


def by_weighted_gradient(model, x: Tensor) -> Tensor:
    x = x.detach().clone().requires_grad_()
    out = model(x)[0] * torch.randn(x.shape[-1])
    return torch.stack([torch.autograd.grad(row.sum(), x, retain_graph=True)[0][0].abs().sum(-1) > 1e-5 for row in out])


def by_exchange(model, x: Tensor) -> Tensor:
    """Row by row, each place exchanged for another vector."""
    with torch.no_grad():
        columns = []
        for j in range(x.shape[1]):
            other = torch.cat([x[:, :j], torch.randn_like(x[:, :1]), x[:, j + 1 :]], 1)
            columns.append(~torch.isclose(model(other), model(x), atol=1e-6).all(-1)[0])
    return torch.stack(columns).mT


def by_flip(model, x: Tensor) -> Tensor:
    seen = torch.zeros(x.shape[1], x.shape[1]).bool()
    for j in range(x.shape[1]):
        changed = x.clone()
        changed[0, j] = changed[0, j].flip(0) * 1.7
        moved = (model(changed) - model(x)).square().sum(-1)[0]
        for i in range(x.shape[1]):
            seen[i, j] = bool(moved[i] > 1e-10)
    return seen


def by_one_number(model, x: Tensor) -> Tensor:
    """Each number of each input by itself."""
    seen = torch.zeros(x.shape[1], x.shape[1], dtype=torch.bool)
    for j in range(x.shape[1]):
        for d in range(0, x.shape[2], 6):
            changed = x.clone()
            changed[0, j, d] += 3
            seen[:, j] |= (model(changed) - model(x)).abs().amax(-1)[0] > 1e-6
    return seen


# -- decoder.test_decoder ----------------------------------------------------------------------------------------------


def _mapped(decoder, x: Tensor, mask: Tensor) -> Tensor:
    """Who sees whom, by changing each input."""
    base = decoder(x, mask)
    columns = []
    for j in range(x.shape[1]):
        changed = x.clone()
        changed[:, j] = torch.randn(x.shape[-1])
        columns.append((decoder(changed, mask) - base).abs().amax(-1)[0] > 1e-6)
    return torch.stack(columns, 1)


def check_by_map(decoder) -> None:
    torch.manual_seed(1)
    x, mask = torch.randn(1, 6, 24), torch.tensor([[0, 1, 1, 0, 1, 1]])
    seen = _mapped(decoder, x, mask)
    for i in range(6):
        for j in range(6):
            assert seen[i, j] == (i == j or (j < i and bool(mask[0, j]))), (i, j)
    both = decoder(torch.cat([x, x]), torch.cat([mask, torch.ones_like(mask)]))
    torch.testing.assert_close(both[1:], decoder(x, torch.ones_like(mask)))
    alone = decoder(x[:, mask[0] == 1], torch.ones(1, 4))
    torch.testing.assert_close(both[:1, mask[0] == 1], alone, atol=1e-4, rtol=1e-4)
    a = decoder(x, torch.ones_like(mask))
    b = decoder(x[:, [2, 1, 0, 3, 4, 5]], torch.ones_like(mask))
    assert (a[:, 5] - b[:, 5]).abs().max() > 1e-3


def check_with_errors(decoder) -> None:
    """Raises AssertionError by hand."""
    x, real = torch.linspace(-1, 1, 96).sin().view(1, 4, 24) + torch.eye(24)[:4], torch.ones(1, 4, dtype=torch.bool)
    out = decoder(x, real)
    changed = x.clone()
    changed[:, 2] = -changed[:, 2].flip(-1)
    moved = (decoder(changed, real) - out).abs().amax(-1)[0] > 1e-6
    if moved.tolist() != [False, False, True, True]:
        raise AssertionError(f"input 2 moves {moved}")
    if torch.allclose(decoder(x[:, [1, 0, 2, 3]], real)[:, 3], out[:, 3], atol=1e-4):
        raise AssertionError("the order")
    padded = torch.stack([torch.cat([x[0, :2], 0 * x[0, :2], x[0, 2:]]), torch.cat([0 * x[0, :2], x[0]])])
    rows = torch.tensor([[1, 1, 0, 0, 1, 1], [0, 0, 1, 1, 1, 1]])
    got = decoder(padded, rows)
    if not bool(got.isfinite().all()):
        raise AssertionError("NaN")
    for row in (0, 1):
        torch.testing.assert_close(got[row, rows[row] == 1], out[0], atol=1e-4, rtol=1e-4)


check_by_map.__test__ = check_with_errors.__test__ = False

VERSIONS = {
    "decoder.rms_norm": (
        Norm,
        *(like(Norm, forward=f) for f in (_norm_by_einsum, _norm_in_place, _norm_by_vector)),
        TorchNorm,
    ),
    "decoder.swiglu": (MLP, *(like(MLP, forward=f) for f in (_mlp_by_einsum, _mlp_by_token, _mlp_in_place)), DictMLP),
    "rope.angles": (
        Angles,
        *(like(AnglesBase, forward=f) for f in (_sine_by_cosine, _as_a_list, _by_exp, _by_polar)),
    ),
    "rope.apply": (rotate, rotate_halves, rotate_by_roll, rotate_in_place, rotate_by_matrix, rotate_with_einops),
    "decoder.positions": (
        positions_by_loops,
        positions_by_matrix,
        positions_int32,
        positions_masked,
        positions_by_row,
    ),
    "decoder.who_sees_whom": (who_by_loops, who_by_tril, who_by_hiding, who_by_products, who_by_where),
    "decoder.prefix_mask": (prefix_by_loops, prefix_by_outer, prefix_by_rank, prefix_in_place, prefix_by_cumsum),
    "decoder.mend_mask": (mended_by_hand, mended_in_half, mended_by_head, mended_by_bias, mended_by_exp),
    "decoder.gqa": (
        Attention,
        *(like(Attention, forward=f) for f in (_gqa_by_einsum, _gqa_enable, _gqa_expand, _gqa_indexed)),
    ),
    "decoder.block": (
        Block,
        *(like(Block, forward=f) for f in (_block_by_name, _block_with_delta, _block_sums, _block_functions)),
    ),
    "decoder.language_model": (
        Model,
        *(like(Model, forward=_forward_with(run)) for run in (_by_index, _by_iterator, _by_recursion)),
        TiedByLinear,
    ),
    "decoder.measure_mask": (by_jacobian, by_weighted_gradient, by_exchange, by_flip, by_one_number),
    "decoder.test_decoder": (check_by_map, check_with_errors),
}
