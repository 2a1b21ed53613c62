"""Chapter 17 once more, written in other ways."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from nanovlm.trace import trace


def depthwise_as_one_kernel(x, depthwise, pointwise):
    """The two halves multiplied out to a full kernel."""
    return F.conv2d(x, pointwise[:, :, None, None] * depthwise[None], padding="same")


def depthwise_by_unfold(x, depthwise, pointwise):
    b, c, h, w = x.shape
    patches = F.unfold(x, 3, padding=1).view(b, c, 9, h * w)
    mixed = torch.einsum("bckl,ck->bcl", patches, depthwise.flatten(1))
    return (pointwise @ mixed).view(b, -1, h, w)


def depthwise_by_channel(x, depthwise, pointwise):
    planes = [F.conv2d(x[:, i : i + 1], depthwise[i][None, None], padding=1) for i in range(x.shape[1])]
    return (torch.cat(planes, dim=1).permute(0, 2, 3, 1) @ pointwise.T).permute(0, 3, 1, 2)


class ResamplerBySdpa(nn.Module):
    def __init__(self, dim, num_queries):
        super().__init__()
        self.queries = nn.Parameter(0.02 * torch.randn(num_queries, dim))
        self.k_proj = nn.Linear(dim, dim, bias=False)
        self.v_proj = nn.Linear(dim, dim, bias=False)

    def forward(self, features):
        q = self.queries.expand(len(features), -1, -1)
        return q + F.scaled_dot_product_attention(q, self.k_proj(features), self.v_proj(features))


class ResamplerByEinsum(nn.Module):
    def __init__(self, dim, num_queries):
        super().__init__()
        self.queries = nn.Parameter(torch.empty(num_queries, dim))
        nn.init.normal_(self.queries)
        self.v_proj, self.k_proj = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)

    def forward(self, features):
        dim = features.size(-1)
        scores = torch.einsum("qd,pnd->pqn", self.queries, self.k_proj(features)) / dim**0.5
        weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
        return torch.einsum("pqn,pnd->pqd", weights, self.v_proj(features)) + self.queries[None]


def cross_by_sdpa(words, image, w_q, w_k, w_v, real, num_heads):
    """A row without a picture sees everything, and then nothing of it is kept."""
    q, k, v = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (words @ w_q, image @ w_k, image @ w_v))
    some = real.any(dim=1)
    mask = (real | ~some[:, None])[:, None, None, :]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out.transpose(1, 2).flatten(2) * some[:, None, None]


def cross_by_einsum(words, image, w_q, w_k, w_v, real, num_heads):
    b, t, dim = words.shape
    d = dim // num_heads
    q = (words @ w_q).view(b, t, num_heads, d)
    k = (image @ w_k).view(b, -1, num_heads, d)
    v = (image @ w_v).view(b, -1, num_heads, d)
    scores = torch.einsum("bthd,bnhd->bhtn", q, k) / d**0.5
    scores = scores.masked_fill(~real[:, None, None], -1e9)
    weights = scores.softmax(-1) * real[:, None, None]  # a row without a picture: all weights 0
    return torch.einsum("bhtn,bnhd->bthd", weights, v).reshape(b, t, dim)


class GatedByScalar(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.gate = nn.Parameter(torch.tensor(0.0))
        self.layer = layer

    def forward(self, x, image):
        return torch.add(x, self.layer(x, image) * self.gate.tanh())


class GatedBySigmoid(nn.Module):
    """tanh(g) = 2 sigmoid(2 g) - 1"""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.gate = layer, nn.Parameter(torch.zeros(1, 1, 1))

    def forward(self, x, image):
        return x + (2 * torch.sigmoid(2 * self.gate) - 1) * self.layer(x, image)


def route_by_masks(x, router, experts):
    chances = F.softmax(x @ router, dim=1)
    best, who = chances.topk(1, dim=1)
    who = who[:, 0]
    out = x.new_zeros(x.shape)
    for e in range(len(experts)):
        mine = who == e
        if mine.any():
            out[mine] = best[mine] * experts[e](x[mine])
    counts = F.one_hot(who, len(experts)).float().mean(0)
    return out, (counts * chances.mean(0)).sum() * len(experts)


def route_by_sorting(x, router, experts):
    chances = (x @ router).softmax(-1)
    chance, who = chances.max(-1)
    order = who.argsort(stable=True)
    counts = torch.bincount(who, minlength=len(experts))
    pieces = x[order].split(counts.tolist())
    done = torch.cat([expert(piece) if len(piece) else piece for expert, piece in zip(experts, pieces)])
    out = (done * chance[order, None])[order.argsort()]
    return out, len(experts) * (counts / len(x)) @ chances.mean(0)


def drop_test_by_topk(drop):
    torch.manual_seed(1)
    scores = torch.rand(4, 10)
    is_image = torch.zeros(4, 10, dtype=torch.bool)
    for row in range(4):
        is_image[row, row : row + 5] = True
    expected = ~is_image
    best = torch.where(is_image, scores, -1.0).topk(3, dim=1).indices
    expected = expected.scatter(1, best, True)
    return bool((drop(scores, is_image, 3) == expected).all())


def drop_test_by_asserting(drop):
    try:
        for seed in range(3):
            scores = torch.randn(2, 9, generator=torch.Generator().manual_seed(seed))
            is_image = torch.tensor([[0, 1, 1, 1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1, 1, 1, 1]]).bool()
            stays = drop(scores, is_image, 2)
            assert stays[~is_image].all()
            for s, i, st in zip(scores, is_image, stays):
                assert int((i & st).sum()) == 2
                assert s[i & st].min() > s[i & ~st].max()
    except AssertionError:
        return False
    return True


def equal_cost_by_loop(build, x, target):
    best, gap = None, 0.05 * target
    for count in range(1, 9):
        off = abs(trace(build(count), x).flops - target)
        if off <= gap:
            best, gap = count, off
    return best


def equal_cost_by_sorting(build, x, target):
    measured = sorted((abs(trace(build(n), x).flops / target - 1), n) for n in range(8, 0, -1))
    off, count = measured[0]
    return None if off > 0.05 else count


VERSIONS = {
    "designs.depthwise_separable": (depthwise_as_one_kernel, depthwise_by_unfold, depthwise_by_channel),
    "designs.resampler": (ResamplerBySdpa, ResamplerByEinsum),
    "designs.cross_attention": (cross_by_sdpa, cross_by_einsum),
    "designs.gate": (GatedByScalar, GatedBySigmoid),
    "designs.route": (route_by_masks, route_by_sorting),
    "designs.drop_test": (drop_test_by_topk, drop_test_by_asserting),
    "designs.equal_cost": (equal_cost_by_loop, equal_cost_by_sorting),
}
