"""Chapter 14 once more, written in other ways."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F


def ablate_in_the_weights(attention, x, head):
    """Columns of out_proj, in a copy."""
    broken, d = copy.deepcopy(attention), x.shape[-1] // attention.num_heads
    with torch.no_grad():
        broken.out_proj.weight[:, head * d : (head + 1) * d] = 0
    return broken(x)


def ablate_by_subtraction(attention, x, head):
    """What the head adds, computed alone and taken away."""
    d = x.shape[-1] // attention.num_heads
    columns = slice(head * d, (head + 1) * d)
    q, k, v = (part[..., columns] for part in attention.qkv_proj(x).chunk(3, dim=-1))
    return attention(x) - F.scaled_dot_product_attention(q, k, v) @ attention.out_proj.weight[:, columns].T


def ablate_the_values(attention, x, head):
    """Values of zeros make a mixture of zeros."""
    b, n, dim = x.shape
    q, k, v = attention.qkv_proj(x).view(b, n, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    keep = torch.ones(attention.num_heads, 1, 1)
    keep[head] = 0
    return attention.out_proj(F.scaled_dot_product_attention(q, k, v * keep).transpose(1, 2).reshape(b, n, dim))


def lens_by_loop(states, decoder):
    rows = []
    for i, state in enumerate(states):
        if i < len(states) - 1:
            state = decoder.norm(state)
        rows.append(decoder.head(state).max(dim=-1).indices)
    return torch.stack(rows)


def lens_by_embeddings(states, decoder):
    """The head's rows as word vectors; topk instead of argmax."""
    *inner, last = states
    normed = torch.cat([decoder.norm(torch.stack(inner)), last[None]])
    return (normed @ decoder.head.weight.T).softmax(-1).topk(1).indices[..., 0]


def rollout_backwards(maps):
    """From the last block to the first."""
    steps = maps.mean(dim=1) * 0.5 + 0.5 * torch.eye(maps.size(-1))
    flow = steps[-1]
    for step in reversed(steps[:-1]):
        flow = flow @ step
    return flow


def rollout_by_chain(maps):
    steps = [(m + torch.eye(len(m))) / (m + torch.eye(len(m))).sum(-1, keepdim=True) for m in maps.mean(1)]
    return torch.linalg.multi_dot([*steps[::-1], torch.eye(maps.shape[-1])])


VERSIONS = {
    "inside.ablate_head": (ablate_in_the_weights, ablate_by_subtraction, ablate_the_values),
    "inside.logit_lens": (lens_by_loop, lens_by_embeddings),
    "inside.rollout": (rollout_backwards, rollout_by_chain),
}
