"""Chapter 14: answers as people write them, wrong in ways that people are wrong, and what they should be told."""

from __future__ import annotations

import torch

# -- inside.ablate_head ------------------------------------------------------------------------------------------------


def parts(attention, x):
    b, n, d = x.shape
    return attention.qkv_proj(x).view(b, n, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)


def mixture(q, k, v):
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v


def untouched(attention, x, head):
    return attention(x)


def query_of_zeros(attention, x, head):
    q, k, v = parts(attention, x)
    q = q.clone()
    q[:, head] = 0
    return attention.out_proj(mixture(q, k, v).transpose(1, 2).reshape(x.shape))


def keeps_only_this(attention, x, head):
    m = mixture(*parts(attention, x))
    kept = torch.zeros_like(m)
    kept[:, head] = m[:, head]
    return attention.out_proj(kept.transpose(1, 2).reshape(x.shape))


def a_patch(attention, x, head):
    m = mixture(*parts(attention, x)).clone()
    m[:, :, head] = 0
    return attention.out_proj(m.transpose(1, 2).reshape(x.shape))


def a_number(attention, x, head):
    m = mixture(*parts(attention, x)).clone()
    m[..., head] = 0
    return attention.out_proj(m.transpose(1, 2).reshape(x.shape))


def the_output(attention, x, head):
    out, d = attention(x).clone(), x.shape[-1] // attention.num_heads
    out[..., head * d : (head + 1) * d] = 0
    return out


def without_bias(attention, x, head):
    m = mixture(*parts(attention, x)).clone()
    m[:, head] = 0
    return m.transpose(1, 2).reshape(x.shape) @ attention.out_proj.weight.T


def without_out_proj(attention, x, head):
    m = mixture(*parts(attention, x)).clone()
    m[:, head] = 0
    return m.transpose(1, 2).reshape(x.shape)


def weights_changed(attention, x, head):
    d = x.shape[-1] // attention.num_heads
    with torch.no_grad():
        attention.out_proj.weight[:, head * d : (head + 1) * d] = 0
    return attention(x)


def from_one(attention, x, head):
    m = mixture(*parts(attention, x)).clone()
    m[:, head - 1] = 0
    return attention.out_proj(m.transpose(1, 2).reshape(x.shape))


# -- inside.logit_lens -------------------------------------------------------------------------------------------------


def no_norm(states, decoder):
    return torch.stack([decoder.head(s).argmax(-1) for s in states])


def norm_everywhere(states, decoder):
    return torch.stack([decoder.head(decoder.norm(s)).argmax(-1) for s in states])


def without_embeddings(states, decoder):
    return torch.stack(
        [decoder.head(decoder.norm(s)).argmax(-1) for s in states[1:-1]] + [decoder.head(states[-1]).argmax(-1)]
    )


def without_output(states, decoder):
    return torch.stack([decoder.head(decoder.norm(s)).argmax(-1) for s in states[:-1]])


def least_likely(states, decoder):
    return torch.stack(
        [decoder.head(decoder.norm(s)).argmin(-1) for s in states[:-1]] + [decoder.head(states[-1]).argmin(-1)]
    )


def logits_themselves(states, decoder):
    return torch.stack([decoder.head(decoder.norm(s)) for s in states[:-1]] + [decoder.head(states[-1])])


def last_position(states, decoder):
    rows = [decoder.head(decoder.norm(s)).argmax(-1) for s in states[:-1]] + [decoder.head(states[-1]).argmax(-1)]
    return torch.stack(rows)[..., -1:]


def over_positions(states, decoder):
    return decoder.head(torch.stack([decoder.norm(s) for s in states[:-1]] + [states[-1]])).argmax(dim=-2)


def unweighted_norm(states, decoder):
    normed = [s * (s.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt() for s in states[:-1]]
    return decoder.head(torch.stack([*normed, states[-1]])).argmax(-1)


# -- inside.rollout ----------------------------------------------------------------------------------------------------


def chained(maps, residual=0.5, right=False, heads=None):
    flow = torch.eye(maps.shape[-1])
    for block in maps:
        step = block.mean(0) if heads is None else heads(block)
        step = (1 - residual) * step + residual * torch.eye(len(step))
        flow = flow @ step if right else step @ flow
    return flow


def no_residual(maps):
    return chained(maps, residual=0)


def not_halved(maps):
    flow = torch.eye(maps.shape[-1])
    for block in maps:
        flow = (block.mean(0) + torch.eye(len(flow))) @ flow
    return flow


def wrong_order(maps):
    return chained(maps, right=True)


def mean_of_blocks(maps):
    return (maps.mean((0, 1)) + torch.eye(maps.shape[-1])) / 2


def sum_of_heads(maps):
    return chained(maps, heads=lambda b: b.sum(0))


def first_head(maps):
    return chained(maps, heads=lambda b: b[0])


def strongest_head(maps):
    return chained(maps, heads=lambda b: b.max(0).values)


def transposed(maps):
    return chained(maps.transpose(-1, -2))


def last_block(maps):
    return chained(maps[-1:])


def identity_at_the_end(maps):
    return (no_residual(maps) + torch.eye(maps.shape[-1])) / 2


WRONG = {
    "inside.ablate_head": [
        (untouched, "Nothing is taken away"),
        (query_of_zeros, "evenly"),
        (keeps_only_this, "takes all others away"),
        (a_patch, "not a head"),
        (a_number, "one number"),
        (the_output, "before it"),
        (without_bias, "bias"),
        (without_out_proj, "out_proj is missing"),
        (weights_changed, "in place"),
        (from_one, "from 1"),
    ],
    "inside.logit_lens": [
        (no_norm, "norm is missing"),
        (norm_everywhere, "twice"),
        (without_embeddings, "first state"),
        (without_output, "last state"),
        (least_likely, "argmin"),
        (logits_themselves, "These are the logits"),
        (last_position, "last position"),
        (over_positions, "over the positions"),
        (unweighted_norm, "learned weight"),
    ],
    "inside.rollout": [
        (no_residual, "residual connection is missing"),
        (not_halved, "halve"),
        (wrong_order, "wrong order"),
        (mean_of_blocks, "averaged"),
        (sum_of_heads, "summed"),
        (first_head, "only the first"),
        (strongest_head, "largest weight"),
        (transposed, "transposed"),
        (last_block, "last block"),
        (identity_at_the_end, "once, at the end"),
    ],
}
