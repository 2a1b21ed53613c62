"""Chapter 02 once more, written in other ways."""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from nanovlm.models.vision_transformer import PatchEmbedding, ViT, ViTAttention, ViTBlock, ViTMLP


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One query at a time, and exp by hand."""
    rows = []
    for i in range(q.shape[-2]):
        scores = (k * q[..., i : i + 1, :]).sum(-1) / math.sqrt(k.shape[-1])  # [..., keys]
        shares = torch.exp(scores - scores.amax(-1, keepdim=True))
        rows.append((shares[..., None] * v).sum(-2) / shares.sum(-1, keepdim=True))
    return torch.stack(rows, dim=-2)


def split_heads(qkv: Tensor, num_heads: int) -> list[Tensor]:
    return list(rearrange(qkv, "b n (three h d) -> three b h n d", three=3, h=num_heads))


class Attention(nn.Module):
    """torch's own module, on the same weights."""

    def __init__(self, config) -> None:
        super().__init__()
        self.config = config
        self.qkv_proj = nn.Linear(config.hidden_dim, 3 * config.hidden_dim)
        self.out_proj = nn.Linear(config.hidden_dim, config.hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)  # [N, B, dim], as this function wants it
        out, _ = F.multi_head_attention_forward(
            x,
            x,
            x,
            self.config.hidden_dim,
            self.config.num_heads,
            self.qkv_proj.weight,
            self.qkv_proj.bias,
            None,
            None,
            False,
            0.0,
            self.out_proj.weight,
            self.out_proj.bias,
            need_weights=False,
        )
        return out.transpose(0, 1)


class MLP(nn.Module):
    """The tanh formula, spelt out."""

    def __init__(self, config) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_dim, config.inter_dim)
        self.fc2 = nn.Linear(config.inter_dim, config.hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        bent = x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        return self.fc2(bent)


class Block(nn.Module):
    """The norm by hand, and the two steps in a loop."""

    def __init__(self, config) -> None:
        super().__init__()
        self.eps = config.layer_norm_eps
        self.ln1, self.ln2 = (nn.LayerNorm(config.hidden_dim) for _ in range(2))
        self.attn, self.mlp = ViTAttention(config), ViTMLP(config)

    def forward(self, x: Tensor) -> Tensor:
        for norm, layer in ((self.ln1, self.attn), (self.ln2, self.mlp)):
            centred = x - x.mean(-1, keepdim=True)
            spread = (centred.square().mean(-1, keepdim=True) + self.eps).sqrt()
            x = x + layer(centred / spread * norm.weight + norm.bias)
        return x


class Encoder(nn.Module):
    """A Sequential for the stack."""

    def __init__(self, config) -> None:
        super().__init__()
        self.patch_embedding = PatchEmbedding(config)
        self.blocks = nn.Sequential(*(ViTBlock(config) for _ in range(config.num_blocks)))
        self.layer_norm = nn.LayerNorm(config.hidden_dim, config.layer_norm_eps)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer_norm(self.blocks(self.patch_embedding(images)))


def count_parameters(config) -> int:
    """From a list of shapes."""
    d, inter = config.hidden_dim, config.inter_dim
    block = [(3 * d, d), (3 * d,), (d, d), (d,), (inter, d), (inter,), (d, inter), (d,), (d,), (d,), (d,), (d,)]
    once = [(d, 3, config.patch_size, config.patch_size), (d,), (config.num_patches, d), (d,), (d,)]
    return sum(math.prod(shape) for shape in once + config.num_blocks * block)


def attend_einsum(q, k, v):
    scores = torch.einsum("...qd,...kd->...qk", q, k) * q.shape[-1] ** -0.5
    return torch.einsum("...qk,...kd->...qd", scores.softmax(-1), v)


def attend_built_in(query, key, value):
    """Keywords of its own, and torch's function."""
    return F.scaled_dot_product_attention(query, key, value, dropout_p=0.0)


def attend_in_double(q, k, v):
    """More precise on the way."""
    q64, k64, v64 = q.double(), k.double(), v.double()
    return (F.softmax(q64.matmul(k64.mT) / math.sqrt(q.size(-1)), dim=-1) @ v64).to(q.dtype)


def attend_log_sum_exp(q, k, v):
    scores = q / q.shape[-1] ** 0.25 @ (k / k.shape[-1] ** 0.25).transpose(-1, -2)
    return (scores - scores.logsumexp(-1, keepdim=True)).exp() @ v


def attend_in_place_on_its_own(q, k, v):
    scores = torch.matmul(q, k.transpose(-2, -1))
    scores.div_(math.sqrt(k.size(-1)))
    return torch.matmul(torch.softmax(scores, -1), v)


def split_by_chunks(qkv, num_heads):
    batch, n, width = qkv.shape
    shape = (batch, n, num_heads, width // 3 // num_heads)
    return tuple(part.view(shape).transpose(1, 2) for part in qkv.chunk(3, dim=2))


def split_by_unflatten(qkv, num_heads):
    q, k, v = qkv.unflatten(-1, (3, num_heads, -1)).movedim(2, 0).transpose(2, 3).unbind(0)
    return q, k, v


def split_by_slices(qkv, num_heads):
    d = qkv.shape[-1] // 3 // num_heads
    out = []
    for which in range(3):
        heads = [qkv[:, :, (which * num_heads + h) * d : (which * num_heads + h + 1) * d] for h in range(num_heads)]
        out.append(torch.stack(heads, 1))
    return out


def split_by_index(qkv, num_heads):
    """Every number fetched by its place."""
    width = qkv.shape[-1]
    index = torch.arange(width).view(3, num_heads, width // 3 // num_heads)
    return tuple(qkv[:, :, index[i]].swapaxes(1, 2).contiguous() for i in range(3))


class FusedAttention(nn.Module):
    """einops, and torch's attention."""

    def __init__(self, config):
        super().__init__()
        self.h = config.num_heads
        self.qkv_proj = nn.Linear(config.hidden_dim, config.hidden_dim * 3, bias=True)
        self.out_proj = nn.Linear(config.hidden_dim, config.hidden_dim, bias=True)

    def forward(self, x):
        q, k, v = rearrange(self.qkv_proj(x), "b n (t h d) -> t b h n d", t=3, h=self.h)
        return self.out_proj(rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)"))


class HeadByHead(FusedAttention):
    """A loop over heads, each with its rows of the weight."""

    def forward(self, x):
        dim = x.shape[-1]
        d, found = dim // self.h, []
        weight, bias = self.qkv_proj.weight, self.qkv_proj.bias
        for h in range(self.h):
            q, k, v = (
                F.linear(x, weight[i * dim + h * d : i * dim + h * d + d], bias[i * dim + h * d : i * dim + h * d + d])
                for i in range(3)
            )
            found.append(attend(q, k, v))
        return self.out_proj(torch.cat(found, dim=-1))


class HeadsInTheBatch(FusedAttention):
    """torch.bmm on batch times heads."""

    def forward(self, x):
        b, n, dim = x.size()
        q, k, v = (
            p.reshape(b, n, self.h, dim // self.h).transpose(1, 2).reshape(b * self.h, n, -1)
            for p in self.qkv_proj(x).split(dim, dim=2)
        )
        weights = F.softmax(torch.bmm(q, k.transpose(1, 2)) / math.sqrt(dim // self.h), dim=2)
        out = torch.bmm(weights, v).view(b, self.h, n, -1)
        return self.out_proj(out.permute(0, 2, 1, 3).contiguous().view(b, n, dim))


class EinsumAttention(FusedAttention):
    def forward(self, x):
        q, k, v = self.qkv_proj(x).unflatten(-1, (3, self.h, -1)).unbind(2)
        weights = torch.einsum("bqhd,bkhd->bhqk", q, k).mul(q.size(-1) ** -0.5).softmax(dim=3)
        return self.out_proj(torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2))


class MLPWithModule(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.fc1, self.act = nn.Linear(config.hidden_dim, config.inter_dim), nn.GELU("tanh")
        self.fc2 = nn.Linear(config.inter_dim, config.hidden_dim)

    def forward(self, x):
        for layer in (self.fc1, self.act, self.fc2):
            x = layer(x)
        return x


class MLPBySigmoid(MLP):
    """The same formula: (1 + tanh(y)) / 2 is sigmoid(2 y)."""

    def forward(self, x):
        x = self.fc1(x)
        return self.fc2(x * torch.sigmoid(2 * 0.7978845608 * (x + 0.044715 * x.pow(3))))


class MLPEinsum(MLP):
    def forward(self, x):
        h = torch.einsum("bnd,id->bni", x, self.fc1.weight) + self.fc1.bias
        return F.linear(F.gelu(h, approximate="tanh"), self.fc2.weight, self.fc2.bias)


class MLPFlat(MLP):
    """All patches of all pictures as one long table."""

    def forward(self, x):
        flat = torch.addmm(self.fc1.bias, x.flatten(0, 1), self.fc1.weight.T)
        return self.fc2(F.gelu(flat, approximate="tanh")).view_as(x)


class BlockByFunction(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.dim, self.eps = config.hidden_dim, config.layer_norm_eps
        self.ln1, self.ln2 = nn.LayerNorm(self.dim), nn.LayerNorm(self.dim)
        self.attn, self.mlp = ViTAttention(config), ViTMLP(config)

    def norm(self, x, layer):
        return F.layer_norm(x, (self.dim,), layer.weight, layer.bias, self.eps)

    def forward(self, x):
        x = torch.add(x, self.attn(self.norm(x, self.ln1)))
        return torch.add(x, self.mlp(self.norm(x, self.ln2)))


class BlockInPlaceOnItsOwn(ViTBlock):
    def forward(self, x):
        update = self.attn(self.ln1(x))
        update += x
        out = self.mlp(self.ln2(update))
        return out.add_(update)


class BlockOneLine(ViTBlock):
    def forward(self, x):
        return (y := self.attn(self.ln1(x)) + x) + self.mlp(self.ln2(y))


class BlockOfUpdates(ViTBlock):
    """The updates are added up apart, and once at the end."""

    def forward(self, x):
        from_attention = self.attn(self.ln1(x))
        from_mlp = self.mlp(self.ln2(x + from_attention))
        return torch.stack([x, from_attention, from_mlp]).sum(0)


class EncoderReduce(ViT):
    def forward(self, images):
        x = functools.reduce(lambda x, block: block(x), self.blocks, self.patch_embedding(images))
        return self.layer_norm(x)


class EncoderKeepsAll(ViT):
    """All states, the last of them normalised by hand."""

    def forward(self, images):
        states = [self.patch_embedding(images)]
        for i in range(len(self.blocks)):
            states.append(self.blocks[i](states[-1]))
        x, norm = states[-1], self.layer_norm
        centred = x - x.mean(-1, keepdim=True)
        return centred * torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + norm.eps) * norm.weight + norm.bias


class EncoderAddModule(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.patch_embedding = PatchEmbedding(config)
        self.blocks = nn.ModuleList()
        for _ in range(config.num_blocks):
            self.blocks.append(ViTBlock(config))
        self.layer_norm = nn.LayerNorm((config.hidden_dim,), eps=config.layer_norm_eps)

    def forward(self, images):
        x = self.patch_embedding(images)
        for block in self.blocks.children():
            x = block(x)
        return F.layer_norm(x, x.shape[-1:], self.layer_norm.weight, self.layer_norm.bias, self.layer_norm.eps)


class EncoderOneByOne(ViT):
    """Each picture on its own."""

    def forward(self, images):
        return torch.cat([super(EncoderOneByOne, self).forward(image[None]) for image in images])


def count_on_meta(config):
    """Build it without numbers, and let torch count."""
    with torch.device("meta"):
        return sum(p.numel() for p in ViT(config).parameters())


def count_polynomial(c):
    d, i = c.hidden_dim, c.inter_dim
    return d * (3 * c.patch_size**2 + c.num_patches + 3) + c.num_blocks * (4 * d * d + 2 * d * i + 9 * d + i)


def count_with_layers(c):
    """Small layers, counted one kind at a time."""

    def linear(a, b, bias=True):
        return a * b + (b if bias else 0)

    total = 0
    total += linear(c.patch_size * c.patch_size * 3, c.hidden_dim)
    total += (c.image_size // c.patch_size) ** 2 * c.hidden_dim
    for _ in range(c.num_blocks):
        for a, b in ((1, 3), (1, 1)):
            total += linear(a * c.hidden_dim, b * c.hidden_dim)
        total += linear(c.hidden_dim, c.inter_dim) + linear(c.inter_dim, c.hidden_dim)
        total += 4 * c.hidden_dim
    return int(total + c.hidden_dim * 2)


def count_one_block_and_multiply(c):
    sizes = {"hidden": c.hidden_dim, "inter": c.inter_dim}
    per_block = sum(
        (sizes[a] + 1) * sizes[b] * times
        for a, b, times in (("hidden", "hidden", 4), ("hidden", "inter", 1), ("inter", "hidden", 1))
    )
    norms = (2 * c.num_blocks + 1) * 2 * c.hidden_dim
    return c.num_blocks * per_block + norms + (3 * c.patch_size**2 + 1 + c.num_patches) * c.hidden_dim


def siglip_loss(images, texts, log_scale, bias):
    """As the paper's listing has it."""
    images, texts = (x / x.norm(dim=-1, keepdim=True) for x in (images, texts))
    logits = images @ texts.T * log_scale.exp() + bias
    labels = 2 * torch.eye(len(images)) - 1
    return -F.logsigmoid(labels * logits).sum() / len(images)


def siglip_pair_by_pair(images, texts, log_scale, bias):
    total = 0
    for i, image in enumerate(images):
        for j, text in enumerate(texts):
            logit = F.cosine_similarity(image, text, dim=0) * torch.exp(log_scale) + bias
            total = total + F.softplus(-logit if i == j else logit)
    return total / images.shape[0]


def siglip_positive_and_negative(images, texts, log_scale, bias):
    logits = torch.einsum("id,jd->ij", F.normalize(images), F.normalize(texts)) * log_scale.exp() + bias
    right = logits.diagonal()
    return (F.softplus(logits).sum() - F.softplus(right).sum() + F.softplus(-right).sum()) / len(logits)


def siglip_bce(images, texts, log_scale, bias):
    """The mean over the table, times its width."""
    logits = F.normalize(images, dim=1) @ F.normalize(texts, dim=1).mT * log_scale.exp() + bias
    return F.binary_cross_entropy_with_logits(logits, torch.eye(len(texts))) * len(texts)


def siglip_in_double(images, texts, log_scale, bias):
    a, b = F.normalize(images.double(), dim=-1), F.normalize(texts.double(), dim=-1)
    logits = (a @ b.T) * log_scale.double().exp() + bias.double()
    sign = torch.full_like(logits, -1).fill_diagonal_(1)
    return (F.softplus(-sign * logits).sum(1).mean()).float()


def sizes_by_hooks(encoder, images):
    """What goes into a block, and what its parts give, noted on the way."""
    found, sizes = [], []
    hooks = []
    for block in encoder.blocks:
        hooks.append(block.register_forward_pre_hook(lambda m, args: found.append(args[0])))
        hooks += [m.register_forward_hook(lambda m, args, out: found.append(out)) for m in (block.attn, block.mlp)]
    with torch.no_grad():
        encoder(images)
    for hook in hooks:
        hook.remove()
    for i in range(0, len(found), 3):
        x, a, m = found[i : i + 3]
        sizes += [
            float((a.norm(dim=-1) / x.norm(dim=-1)).mean()),
            float((m.norm(dim=-1) / (x + a).norm(dim=-1)).mean()),
        ]
    return sizes


@torch.inference_mode()
def sizes_as_a_tuple(encoder, images):
    x, out = encoder.patch_embedding(images), ()
    for block in encoder.blocks:
        a = block.attn(block.ln1(x))
        b = block.mlp(block.ln2(x + a))
        for update, before in ((a, x), (b, x + a)):
            out += ((update.square().sum(-1).sqrt() / before.square().sum(-1).sqrt()).mean().item(),)
        x = x + a + b
    return out


def sizes_in_double(encoder, images):
    x, out = encoder.patch_embedding(images), []
    for block in encoder.blocks:
        for part in ("attn", "mlp"):
            norm = block.ln1 if part == "attn" else block.ln2
            y = x + getattr(block, part)(norm(x))
            ratio = torch.linalg.vector_norm((y - x).double(), dim=2) / torch.linalg.vector_norm(x.double(), dim=2)
            out.append(ratio.mean().item())
            x = y
    return out


def sizes_flat(encoder, images):
    x, out = encoder.patch_embedding(images).detach(), []
    for block in encoder.blocks:
        for f in (lambda z, b=block: b.attn(b.ln1(z)), lambda z, b=block: b.mlp(b.ln2(z))):
            u = f(x).detach()
            out.append(
                sum(
                    torch.dist(p + q, p).item() / p.norm().item()
                    for p, q in zip(x.flatten(0, 1), u.flatten(0, 1), strict=True)
                )
                / x[..., 0].numel()
            )
            x = x + u
    return out


def sizes_from_blocks(encoder, images):
    """The MLP's update is what the block gives beyond attention's."""
    x, out = encoder.patch_embedding(images), []
    for block in encoder.blocks:
        middle, end = x + block.attn(block.ln1(x)), block(x)
        out.extend((((b - a).norm(dim=-1) / a.norm(dim=-1)).mean().item()) for a, b in ((x, middle), (middle, end)))
        x = end
    return out


def streaming_by_log_sum_exp(q, k, v, block):
    """Each block's own attention and log-sum-exp; two blocks are merged by these."""
    out, lse = None, None
    for keys, values in zip(k.split(block, dim=-2), v.split(block, dim=-2), strict=True):
        scores = q @ keys.transpose(-1, -2) / math.sqrt(q.shape[-1])
        new_lse, new = scores.logsumexp(-1, keepdim=True), scores.softmax(-1) @ values
        if out is None:
            out, lse = new, new_lse
        else:
            share = torch.sigmoid(new_lse - lse)
            out, lse = out + (new - out) * share, torch.logaddexp(lse, new_lse)
    return out


def streaming_in_two_passes(q, k, v, block):
    """First the largest score and the sum, then the mixture."""
    q = q / q.shape[-1] ** 0.5
    parts = range(0, k.shape[-2], block)
    best = functools.reduce(
        torch.maximum, [(q @ k[..., i : i + block, :].mT).amax(-1, keepdim=True) for i in parts]
    ).detach()
    total = mixed = 0
    for i in parts:
        weights = torch.exp(q @ k[..., i : i + block, :].mT - best)
        total, mixed = total + weights.sum(-1, keepdim=True), mixed + weights @ v[..., i : i + block, :]
    return mixed / total


def streaming_key_by_key(q, k, v, block):
    """Blocks of one."""
    scale, best, total, mixed = q.shape[-1] ** -0.5, None, None, None
    for j in range(k.shape[-2]):
        score = (q * k[..., j : j + 1, :]).sum(-1, keepdim=True) * scale
        value = v[..., j : j + 1, :]
        if best is None:
            best, total, mixed = score, torch.ones_like(score), torch.ones_like(score) * value
            continue
        new = torch.maximum(best, score)
        old, this = torch.exp(best - new), torch.exp(score - new)
        best, total, mixed = new, total * old + this, mixed * old + this * value
    return mixed / total


def streaming_built_in(q, k, v, block):
    return F.scaled_dot_product_attention(q, k, v)


def streaming_in_place(q, k, v, block):
    """torch.chunk, and where instead of -inf."""
    best = torch.full_like(q[..., :1], -1e30)
    total, mixed = torch.zeros_like(best), torch.zeros_like(q)
    for start in range(0, k.size(-2), block):
        stop = min(start + block, k.size(-2))
        scores = torch.matmul(q, k[..., start:stop, :].transpose(-2, -1)) / math.sqrt(q.size(-1))
        top = torch.where(scores.amax(-1, keepdim=True) > best, scores.amax(-1, keepdim=True), best)
        decay = torch.exp(best - top)
        p = torch.exp(scores - top)
        total, mixed, best = (
            total * decay + p.sum(-1, True),
            mixed * decay + torch.matmul(p, v[..., start:stop, :]),
            top,
        )
    return mixed / total


def test_against_torch(attend):
    torch.manual_seed(1)
    q, k, v = torch.randn(3, 5, 4).unbind(0)
    torch.testing.assert_close(attend(q, k, v), F.scaled_dot_product_attention(q, k, v))


def test_by_a_table(attend):
    q, k = torch.tensor([[2.0, 0], [0, 1]]), torch.tensor([[1.0, 0], [3, 1]])
    v = torch.tensor([[1.0, 0], [0, 5]])
    a, b = 2**0.5, 3 * 2**0.5
    first = math.exp(a) / (math.exp(a) + math.exp(b))
    second = 1 / (1 + math.exp(1 / 2**0.5))
    wanted = [[first, 5 * (1 - first)], [second, 5 * (1 - second)]]
    assert torch.allclose(attend(q, k, v), torch.tensor(wanted), atol=1e-4)


def test_with_batch(attend):
    q, k, v = (torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(i)) for i in range(3))
    wanted = torch.einsum("bhqk,bhkd->bhqd", torch.einsum("bhqd,bhkd->bhqk", q, k).div(5**0.5).softmax(-1), v)
    if not torch.allclose(attend(q, k, v), wanted, atol=1e-5):
        raise AssertionError("other numbers than by einsum")


def test_in_numpy(attend):
    import numpy as np

    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, 6, 3))
    e = np.exp(q @ k.T / np.sqrt(3))
    np.testing.assert_allclose(
        attend(*map(torch.tensor, (q, k, v))).numpy(), e / e.sum(1, keepdims=True) @ v, rtol=1e-4
    )


def test_in_plain_python(attend):
    q, k, v = [[1.0, 2.0], [0.0, -1.0]], [[0.5, 1.0], [2.0, -1.0]], [[3.0, 0.0], [0.0, 4.0]]
    out = attend(*map(torch.tensor, (q, k, v))).tolist()
    for i in range(2):
        e = [math.exp((q[i][0] * k[j][0] + q[i][1] * k[j][1]) / math.sqrt(2)) for j in range(2)]
        assert abs(out[i][0] - 3 * e[0] / sum(e)) < 1e-4
        assert abs(out[i][1] - 4 * e[1] / sum(e)) < 1e-4


for _test in (test_against_torch, test_by_a_table, test_with_batch, test_in_numpy, test_in_plain_python):
    _test.__test__ = False


def mended_with_modules(weights, num_heads, eps, x):
    """torch's modules, filled from the checkpoint."""
    dim, inter = x.shape[-1], len(weights["mlp.fc1.weight"])
    attention = nn.MultiheadAttention(dim, num_heads, batch_first=True)
    one, two = nn.LayerNorm(dim, eps), nn.LayerNorm(dim, eps)
    mlp = nn.Sequential(nn.Linear(dim, inter), nn.GELU(approximate="tanh"), nn.Linear(inter, dim))
    stacked = {
        f"in_proj_{kind}": torch.cat([weights[f"self_attn.{name}_proj.{kind}"] for name in "qkv"])
        for kind in ("weight", "bias")
    }
    for module, prefix in ((one, "layer_norm1"), (two, "layer_norm2"), (mlp[0], "mlp.fc1"), (mlp[2], "mlp.fc2")):
        module.load_state_dict({kind: weights[f"{prefix}.{kind}"] for kind in ("weight", "bias")})
    out = {f"out_proj.{kind}": weights[f"self_attn.out_proj.{kind}"] for kind in ("weight", "bias")}
    attention.load_state_dict(stacked | out)
    h = one(x)
    x = x + attention(h, h, h, need_weights=False)[0]
    return x + mlp(two(x))


def mended_head_by_head(weights, num_heads, eps, x):
    def linear(name, x):
        return x @ weights[name + ".weight"].T + weights[name + ".bias"]

    h = F.layer_norm(x, x.shape[-1:], weights["layer_norm1.weight"], weights["layer_norm1.bias"], eps)
    q, k, v = (linear(f"self_attn.{name}_proj", h).chunk(num_heads, dim=-1) for name in "qkv")
    mixed = []
    for i in range(num_heads):
        scores = q[i] @ k[i].mT / math.sqrt(q[i].shape[-1])
        mixed.append(scores.softmax(dim=-1) @ v[i])
    x = x + linear("self_attn.out_proj", torch.cat(mixed, dim=-1))
    h = F.layer_norm(x, x.shape[-1:], weights["layer_norm2.weight"], weights["layer_norm2.bias"], eps)
    return x + linear("mlp.fc2", F.gelu(linear("mlp.fc1", h), approximate="tanh"))


def mended_with_einops(weights, num_heads, eps, x):
    def norm(i, x):
        return F.layer_norm(x, x.shape[-1:], weights[f"layer_norm{i}.weight"], weights[f"layer_norm{i}.bias"], eps)

    def linear(name, x):
        return torch.einsum("bni,oi->bno", x, weights[f"{name}.weight"]) + weights[f"{name}.bias"]

    h = norm(1, x)
    q, k, v = (rearrange(linear(f"self_attn.{n}_proj", h), "b n (h d) -> b h n d", h=num_heads) for n in "qkv")
    mixed = rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)")
    x = linear("self_attn.out_proj", mixed) + x
    return linear("mlp.fc2", F.gelu(linear("mlp.fc1", norm(2, x)), approximate="tanh")) + x


def mended_by_formula(weights, num_heads, eps, x):
    """Norm and GELU as they are written in papers."""

    def norm(name, x):
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        return (x - mean) / (variance + eps) ** 0.5 * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def gelu(x):
        return 0.5 * x * (1 + torch.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x**3)))

    def linear(name, x):
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    batch, num_patches, dim = x.shape
    h = norm("layer_norm1", x)
    shape = (batch, num_patches, num_heads, dim // num_heads)
    q, k, v = (linear(f"self_attn.{name}_proj", h).reshape(shape).permute(0, 2, 1, 3) for name in "qkv")
    mixed = F.scaled_dot_product_attention(q, k, v).permute(0, 2, 1, 3).reshape(batch, num_patches, dim)
    x = x + linear("self_attn.out_proj", mixed)
    return x + linear("mlp.fc2", gelu(linear("mlp.fc1", norm("layer_norm2", x))))


def mended_in_double(weights, num_heads, eps, x):
    doubled = {name: tensor.double() for name, tensor in weights.items()}
    return mended_with_einops(doubled, num_heads, eps, x.double()).float()


VERSIONS = {
    "vit.attention": (
        attend,
        attend_einsum,
        attend_built_in,
        attend_in_double,
        attend_log_sum_exp,
        attend_in_place_on_its_own,
    ),
    "vit.split_heads": (split_heads, split_by_chunks, split_by_unflatten, split_by_slices, split_by_index),
    "vit.attention_module": (Attention, FusedAttention, HeadByHead, HeadsInTheBatch, EinsumAttention),
    "vit.mlp": (MLP, MLPWithModule, MLPBySigmoid, MLPEinsum, MLPFlat),
    "vit.block": (Block, BlockByFunction, BlockInPlaceOnItsOwn, BlockOneLine, BlockOfUpdates),
    "vit.encoder": (Encoder, EncoderReduce, EncoderKeepsAll, EncoderAddModule, EncoderOneByOne),
    "vit.count_parameters": (
        count_parameters,
        count_on_meta,
        count_polynomial,
        count_with_layers,
        count_one_block_and_multiply,
    ),
    "vit.siglip_loss": (
        siglip_loss,
        siglip_pair_by_pair,
        siglip_positive_and_negative,
        siglip_bce,
        siglip_in_double,
    ),
    "vit.update_sizes": (sizes_by_hooks, sizes_as_a_tuple, sizes_in_double, sizes_flat, sizes_from_blocks),
    "vit.streaming_attention": (
        streaming_by_log_sum_exp,
        streaming_in_two_passes,
        streaming_key_by_key,
        streaming_built_in,
        streaming_in_place,
    ),
    "vit.test_attend": (test_against_torch, test_by_a_table, test_with_batch, test_in_numpy, test_in_plain_python),
    "vit.mend_block": (
        mended_with_modules,
        mended_head_by_head,
        mended_with_einops,
        mended_by_formula,
        mended_in_double,
    ),
}
