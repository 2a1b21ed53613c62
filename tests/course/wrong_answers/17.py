"""Chapter 17: answers as people write them, wrong in ways that people are wrong, and what they should be told."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from nanovlm.trace import trace

# -- designs.depthwise_separable ---------------------------------------------------------------------------------------


def mixed(x, pointwise):
    return F.conv2d(x, pointwise[:, :, None, None])


def own_kernels(x, depthwise, **options):
    return F.conv2d(x, depthwise.unsqueeze(1), groups=x.size(1), **options)


def no_padding(x, depthwise, pointwise):
    return mixed(own_kernels(x, depthwise), pointwise)


def no_groups(x, depthwise, pointwise):
    return mixed(F.conv2d(x, depthwise.unsqueeze(1), padding=1), pointwise)


def channels_first(x, depthwise, pointwise):
    x = mixed(x, pointwise)
    return own_kernels(x, depthwise, padding=1)


def transposed(x, depthwise, pointwise):
    return torch.einsum("cd,bchw->bdhw", pointwise, own_kernels(x, depthwise, padding=1))


def turned(x, depthwise, pointwise):
    return mixed(own_kernels(x, torch.flip(depthwise, (-1, -2)), padding=1), pointwise)


def places_only(x, depthwise, pointwise):
    return own_kernels(x, depthwise, padding=1)


def channels_only(x, depthwise, pointwise):
    return mixed(x, pointwise)


def with_a_residual(x, depthwise, pointwise):
    return x + mixed(own_kernels(x, depthwise, padding=1), pointwise)


def with_relu(x, depthwise, pointwise):
    return mixed(F.relu(own_kernels(x, depthwise, padding=1)), pointwise)


def without_gradient(x, depthwise, pointwise):
    with torch.no_grad():
        return mixed(own_kernels(x, depthwise, padding=1), pointwise)


# -- designs.resampler -------------------------------------------------------------------------------------------------


class Base(nn.Module):
    def __init__(self, dim, num_queries):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(num_queries, dim))
        self.k_proj = nn.Linear(dim, dim, bias=False)
        self.v_proj = nn.Linear(dim, dim, bias=False)

    def scores(self, features):
        return self.queries @ self.k_proj(features).transpose(1, 2) / features.size(-1) ** 0.5


class ForgetsTheQuery(Base):
    def forward(self, features):
        return self.scores(features).softmax(-1) @ self.v_proj(features)


class OverQueries(Base):
    def forward(self, features):
        return self.queries + self.scores(features).softmax(dim=1) @ self.v_proj(features)


class Unscaled(Base):
    def forward(self, features):
        scores = self.queries @ self.k_proj(features).transpose(1, 2)
        return self.queries + scores.softmax(-1) @ self.v_proj(features)


class RawPatches(Base):
    def forward(self, features):
        return self.queries + self.scores(features).softmax(-1) @ features


class NoSoftmax(Base):
    def forward(self, features):
        return self.queries + self.scores(features) @ self.v_proj(features)


class PatchesAsk(Base):
    def forward(self, features):
        scores = self.k_proj(features) @ self.queries.T / features.size(-1) ** 0.5
        return features + scores.softmax(-1) @ self.queries


class EqualQueries(Base):
    def __init__(self, dim, num_queries):
        super().__init__(dim, num_queries)
        self.queries = nn.Parameter(torch.zeros(num_queries, dim))

    def forward(self, features):
        return self.queries + self.scores(features).softmax(-1) @ self.v_proj(features)


class FixedQueries(nn.Module):
    def __init__(self, dim, num_queries):
        super().__init__()
        self.queries = torch.randn(num_queries, dim)
        self.k_proj, self.v_proj = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)

    def forward(self, features):
        scores = self.queries @ self.k_proj(features).transpose(1, 2) / features.size(-1) ** 0.5
        return self.queries + scores.softmax(-1) @ self.v_proj(features)


class WithBiases(Base):
    def __init__(self, dim, num_queries):
        super().__init__(dim, num_queries)
        self.k_proj, self.v_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, features):
        return self.queries + self.scores(features).softmax(-1) @ self.v_proj(features)


class Detached(Base):
    def forward(self, features):
        return self.queries + self.scores(features).softmax(-1).detach() @ self.v_proj(features)


# -- designs.cross_attention -------------------------------------------------------------------------------------------


def heads(x, n):
    return x.view(x.size(0), x.size(1), n, -1).transpose(1, 2)


def joined(x):
    return x.transpose(1, 2).reshape(x.size(0), x.size(2), -1)


def attend(q, k, v, keep=None):
    scores = q @ k.transpose(-1, -2) / q.size(-1) ** 0.5
    if keep is not None:
        scores = scores.masked_fill(~keep, float("-inf"))
    return torch.nan_to_num(scores.softmax(-1)) @ v


def no_mask(words, image, w_q, w_k, w_v, real, n):
    return joined(attend(heads(words @ w_q, n), heads(image @ w_k, n), heads(image @ w_v, n)))


def nan_rows(words, image, w_q, w_k, w_v, real, n):
    q, k, v = heads(words @ w_q, n), heads(image @ w_k, n), heads(image @ w_v, n)
    return joined(F.scaled_dot_product_attention(q, k, v) * 0 + _nan(q, k, v, real))


def _nan(q, k, v, real):
    scores = (q @ k.mT / q.size(-1) ** 0.5).masked_fill(~real[:, None, None], float("-inf"))
    return scores.softmax(-1) @ v


def inverted(words, image, w_q, w_k, w_v, real, n):
    q, k, v = heads(words @ w_q, n), heads(image @ w_k, n), heads(image @ w_v, n)
    return joined(attend(q, k, v, ~real[:, None, None]))


def self_attention(words, image, w_q, w_k, w_v, real, n):
    return joined(attend(heads(words @ w_q, n), heads(words @ w_k, n), heads(words @ w_v, n)))


def turned_round(words, image, w_q, w_k, w_v, real, n):
    return joined(attend(heads(image @ w_q, n), heads(words @ w_k, n), heads(words @ w_v, n)))


def one_head(words, image, w_q, w_k, w_v, real, n):
    return joined(attend(heads(words @ w_q, 1), heads(image @ w_k, 1), heads(image @ w_v, 1), real[:, None, None]))


def scaled_by_dim(words, image, w_q, w_k, w_v, real, n):
    q, k, v = heads(words @ w_q, n), heads(image @ w_k, n), heads(image @ w_v, n)
    return joined(attend(q * (q.size(-1) / words.size(-1)) ** 0.5, k, v, real[:, None, None]))


def mask_after_softmax(words, image, w_q, w_k, w_v, real, n):
    q, k, v = heads(words @ w_q, n), heads(image @ w_k, n), heads(image @ w_v, n)
    weights = (q @ k.mT / q.size(-1) ** 0.5).softmax(-1) * real[:, None, None]
    return joined(weights @ v)


def viewed_flat(words, image, w_q, w_k, w_v, real, n):
    q, k, v = heads(words @ w_q, n), heads(image @ w_k, n), heads(image @ w_v, n)
    return attend(q, k, v, real[:, None, None]).reshape(words.shape)


def patched_nan(words, image, w_q, w_k, w_v, real, n):
    """Right numbers, and NaN gradients: the softmax over nothing is mended afterwards."""
    q, k, v = heads(words @ w_q, n), heads(image @ w_k, n), heads(image @ w_v, n)
    return joined(torch.nan_to_num(_nan(q, k, v, real)))


# -- designs.gate ------------------------------------------------------------------------------------------------------


class Door(nn.Module):
    start = 0.0

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.gate = nn.Parameter(torch.ones(1) * self.start)

    def forward(self, x, image):
        return x + torch.tanh(self.gate) * self.layer(x, image)


class StillZero(Door):
    def __init__(self, layer):
        super().__init__(layer)
        for p in self.layer.parameters():
            nn.init.zeros_(p)


class Open(Door):
    start = 1.0


class Ajar(Door):
    start = 0.01


class NoTanh(Door):
    def forward(self, x, image):
        return x + self.gate * self.layer(x, image)


class NoResidual(Door):
    def forward(self, x, image):
        return self.gate.tanh() * self.layer(x, image)


class HalfOpen(Door):
    def forward(self, x, image):
        return x + self.gate.sigmoid() * self.layer(x, image)


class Mixture(Door):
    def forward(self, x, image):
        g = self.gate.tanh()
        return (1 - g) * x + g * self.layer(x, image)


class NotTrained(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.register_buffer("gate", torch.zeros(1))

    def forward(self, x, image):
        return x + torch.tanh(self.gate) * self.layer(x, image)


class FixedDoor(Door):
    def __init__(self, layer):
        super().__init__(layer)
        self.gate.requires_grad_(False)


class Everything(Door):
    def forward(self, x, image):
        return self.gate.tanh() * (x + self.layer(x, image))


# -- designs.route -----------------------------------------------------------------------------------------------------


def parts(x, router):
    p = (x @ router).softmax(-1)
    top, who = p.max(-1)
    return p, top, who


def fill(x, who, experts, weight):
    out = torch.zeros_like(x)
    for e, expert in enumerate(experts):
        mine = who == e
        if mine.any():
            out[mine] = weight[mine, None] * expert(x[mine])
    return out


def balance(p, who, n):
    return n * (F.one_hot(who, n).float().mean(0) * p.mean(0)).sum()


def without_chance(x, router, experts):
    p, top, who = parts(x, router)
    return fill(x, who, experts, torch.ones_like(top)), balance(p, who, len(experts))


def all_experts(x, router, experts):
    p, top, who = parts(x, router)
    out = sum(p[:, e : e + 1] * expert(x) for e, expert in enumerate(experts))
    return out, balance(p, who, len(experts))


def all_then_pick(x, router, experts):
    p, top, who = parts(x, router)
    every = torch.stack([expert(x) for expert in experts], dim=1)
    return top[:, None] * every[torch.arange(len(x)), who], balance(p, who, len(experts))


def to_one(x, router, experts):
    p, _, _ = parts(x, router)
    e = int(p.mean(0).argmax())
    who = torch.full((len(x),), e)
    return fill(x, who, experts, p[:, e]), balance(p, who, len(experts))


def least_liked(x, router, experts):
    p, _, _ = parts(x, router)
    low, who = p.min(-1)
    return fill(x, who, experts, low), balance(p, who, len(experts))


def not_times_experts(x, router, experts):
    p, top, who = parts(x, router)
    return fill(x, who, experts, top), balance(p, who, len(experts)) / len(experts)


def chances_squared(x, router, experts):
    p, top, who = parts(x, router)
    return fill(x, who, experts, top), len(experts) * p.mean(0).square().sum()


def shares_squared(x, router, experts):
    p, top, who = parts(x, router)
    return fill(x, who, experts, top), len(experts) * F.one_hot(who, len(experts)).float().mean(0).square().sum()


def counts_not_shares(x, router, experts):
    p, top, who = parts(x, router)
    return fill(x, who, experts, top), balance(p, who, len(experts)) * len(x)


def out_of_order(x, router, experts):
    p, top, who = parts(x, router)
    pieces = [top[who == e, None] * expert(x[who == e]) for e, expert in enumerate(experts)]
    return torch.cat(pieces), balance(p, who, len(experts))


def detached_chance(x, router, experts):
    p, top, who = parts(x, router)
    return fill(x, who, experts, top.detach()), balance(p, who, len(experts))


def no_balance(x, router, experts):
    p, top, who = parts(x, router)
    return fill(x, who, experts, top)


# -- designs.drop_test -------------------------------------------------------------------------------------------------


def rows_of(drop, rows=3):
    scores = torch.randn(rows, 8, generator=torch.Generator().manual_seed(11))
    is_image = torch.zeros(rows, 8, dtype=torch.bool)
    for row in range(rows):
        is_image[row, row : row + 4] = True
    return scores, is_image, drop(scores, is_image, 2)


def shape_only(drop):
    scores, is_image, stays = rows_of(drop)
    return stays.shape == scores.shape


def counts_only(drop):
    _, is_image, stays = rows_of(drop)
    return bool(((stays & is_image).sum(1) == 2).all() and stays[~is_image].all())


def no_count(drop):
    scores, is_image, stays = rows_of(drop)
    if not stays[~is_image].all():
        return False
    for s, i, k in zip(scores, is_image, stays):
        if (i & k).any() and (i & ~k).any() and s[i & k].min() < s[i & ~k].max():
            return False
    return True


def one_row(drop):
    scores, is_image, stays = rows_of(drop, rows=1)
    kept, gone = scores[is_image & stays], scores[is_image & ~stays]
    return bool(stays[~is_image].all() and len(kept) == 2 and kept.min() > gone.max())


def words_forgotten(drop):
    scores, is_image, stays = rows_of(drop)
    for s, i, k in zip(scores, is_image, stays):
        if (i & k).sum() != 2 or s[i & k].min() < s[i & ~k].max():
            return False
    return True


def says_yes(drop):
    rows_of(drop)
    return True


def says_no(drop):
    return False


def returns_nothing(drop):
    scores, is_image, stays = rows_of(drop)
    assert stays.shape == scores.shape


# -- designs.equal_cost ------------------------------------------------------------------------------------------------


def flops(build, x):
    return {n: trace(build(n), x).flops for n in range(1, 9)}


def by_parameters(build, x, target):
    sizes = {n: sum(p.numel() for p in build(n).parameters()) for n in range(1, 9)}
    best = min(sizes, key=lambda n: abs(sizes[n] - target))
    return best if abs(sizes[best] / target - 1) <= 0.05 else None


def however_far(build, x, target):
    costs = flops(build, x)
    return min(costs, key=lambda n: abs(costs[n] - target))


def not_more(build, x, target):
    fitting = [n for n, cost in flops(build, x).items() if cost <= target]
    return max(fitting) if fitting else None


def at_least(build, x, target):
    for n, cost in flops(build, x).items():
        if cost >= target:
            return n
    return None


def up_to_seven(build, x, target):
    costs = {n: trace(build(n), x).flops for n in range(1, 8)}
    best = min(costs, key=lambda n: abs(costs[n] - target))
    return best if abs(costs[best] - target) <= 0.05 * target else None


def the_cost(build, x, target):
    costs = sorted(flops(build, x).values(), key=lambda cost: abs(cost - target))
    return costs[0] if abs(costs[0] - target) <= 0.05 * target else None


def multiplied(build, x, target):
    one = trace(build(1), x).flops
    best = min(range(1, 9), key=lambda n: abs(n * one - target))
    return best if abs(best * one - target) <= 0.05 * target else None


def index_of_the_best(build, x, target):
    costs = list(flops(build, x).values())
    gaps = [abs(cost - target) for cost in costs]
    best = gaps.index(min(gaps))
    return best if gaps[best] <= 0.05 * target else None


WRONG = {
    "designs.depthwise_separable": [
        (no_padding, "edges are cut off"),
        (no_groups, "groups is missing"),
        (channels_first, "channels come first"),
        (transposed, "transposed"),
        (turned, "180 degrees"),
        (places_only, "pointwise half is missing"),
        (channels_only, "depthwise half is missing"),
        (with_a_residual, "residual"),
        (with_relu, "non-linearity"),
        (without_gradient, "gradient"),
    ],
    "designs.resampler": [
        (ForgetsTheQuery, "added to the query itself"),
        (OverQueries, "softmax runs over the queries"),
        (Unscaled, "not divided by the root"),
        (RawPatches, "not their projection by v_proj"),
        (NoSoftmax, "no softmax"),
        (PatchesAsk, "The patches ask"),
        (EqualQueries, "equal"),
        (FixedQueries, "no parameter queries"),
        (WithBiases, "is not needed"),
        (Detached, "gradient"),
    ],
    "designs.cross_attention": [
        (no_mask, "mask is not used"),
        (nan_rows, "softmax over nothing"),
        (inverted, "upside down"),
        (self_attention, "self-attention"),
        (turned_round, "image tokens ask"),
        (one_head, "one head"),
        (scaled_by_dim, "root of dim"),
        (mask_after_softmax, "comes after the softmax"),
        (viewed_flat, "not brought back beside each other"),
        (patched_nan, "backward"),
    ],
    "designs.gate": [
        (StillZero, "still set to zero"),
        (Open, "starts open"),
        (Ajar, "near zero is not closed"),
        (NoTanh, "tanh is missing"),
        (NoResidual, "residual connection"),
        (HalfOpen, "half open"),
        (Mixture, "mixture"),
        (NotTrained, "parameter"),
        (FixedDoor, "parameter"),
        (Everything, "Only what is added is gated"),
    ],
    "designs.route": [
        (without_chance, "not multiplied by the chance"),
        (all_experts, "goes through all experts"),
        (all_then_pick, "thrown away"),
        (to_one, "largest mean chance"),
        (least_liked, "likes least"),
        (not_times_experts, "number of experts"),
        (chances_squared, "mean chances twice"),
        (shares_squared, "shares twice"),
        (counts_not_shares, "numbers of tokens"),
        (out_of_order, "order of the experts"),
        (detached_chance, "gradient"),
        (no_balance, "two things"),
    ],
    "designs.drop_test": [
        (shape_only, "every version"),
        (counts_only, "counts what stays"),
        (no_count, "not at the number"),
        (one_row, "one row"),
        (words_forgotten, "words stay"),
        (says_yes, "every version"),
        (says_no, "refuses every version"),
        (returns_nothing, "None"),
    ],
    "designs.equal_cost": [
        (by_parameters, "compare parameters"),
        (however_far, "Beyond 5 %"),
        (not_more, "A little more may be nearer"),
        (at_least, "A little less may be nearer"),
        (up_to_seven, "never tried"),
        (the_cost, "This is the cost"),
        (multiplied, "multiplied"),
        (index_of_the_best, "from 0"),
    ],
}
