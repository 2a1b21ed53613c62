"""Chapter 14 once more, written in other ways."""

from __future__ import annotations

import copy
import functools

import numpy as np
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


def ablate_by_a_hook(attention, x, head):
    """out_proj itself is watched: its input loses a stretch."""
    d = x.shape[-1] // attention.num_heads

    def without(module, args):
        mixed = args[0].clone()
        mixed[..., head * d : (head + 1) * d] = 0
        return (mixed,)

    handle = attention.out_proj.register_forward_pre_hook(without)
    try:
        return attention(x)
    finally:
        handle.remove()


def ablate_as_a_sum(attention, x, head):
    """The bias, and what each of the other heads adds."""
    d = x.shape[-1] // attention.num_heads
    q, k, v = attention.qkv_proj(x).chunk(3, dim=-1)
    out = attention.out_proj.bias.expand_as(x)
    for other in range(attention.num_heads):
        if other != head:
            own = slice(other * d, (other + 1) * d)
            weights = (torch.einsum("bid,bjd->bij", q[..., own], k[..., own]) / d**0.5).softmax(dim=-1)
            out = out + torch.einsum("bij,bjd,od->bio", weights, v[..., own], attention.out_proj.weight[:, own])
    return out


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


def lens_all_at_once(states, decoder):
    """The last state is put back after the norm."""
    stacked = torch.stack(states)
    normed = decoder.norm(stacked).index_copy(0, torch.tensor([len(states) - 1]), stacked[-1:])
    return decoder.head(normed).argmax(-1)


def lens_as_a_list(states, decoder):
    words = [decoder.head(decoder.norm(state)).argmax(dim=2) for state in states[: len(states) - 1]]
    words.append(torch.argmax(decoder.head(states[-1]), 2))
    return torch.stack(words, dim=0)


def lens_by_sorting(states, decoder):
    """Every vector on its own, in float64, its words in order."""
    vectors = torch.cat([torch.stack([decoder.norm(state) for state in states[:-1]]), states[-1].unsqueeze(0)])
    logits = torch.einsum("sbtd,vd->sbtv", vectors.double(), decoder.head.weight.double())
    return logits.sort(dim=-1, descending=True).indices[..., 0]


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


def rollout_by_einsum(maps):
    """One vector at a time flows through the blocks."""
    flow = torch.eye(maps.shape[-1])
    for block in maps:
        flow = 0.5 * flow + 0.5 * torch.einsum("hij,jk->ik", block, flow) / len(block)
    return flow


def rollout_by_reduce(maps):
    identity = torch.eye(maps.shape[-1])
    return functools.reduce(lambda flow, block: (block.mean(0) + identity).div(2).matmul(flow), maps, identity)


def rollout_in_numpy(maps):
    arrays, n = maps.numpy().astype(np.float64), maps.shape[-1]
    flow = np.identity(n)
    for i in range(len(arrays)):
        flow = (np.mean(arrays[i], axis=0) + np.identity(n)) / 2 @ flow
    return torch.from_numpy(flow).to(maps.dtype)


VERSIONS = {
    "inside.ablate_head": (
        ablate_in_the_weights,
        ablate_by_subtraction,
        ablate_the_values,
        ablate_by_a_hook,
        ablate_as_a_sum,
    ),
    "inside.logit_lens": (lens_by_loop, lens_by_embeddings, lens_all_at_once, lens_as_a_list, lens_by_sorting),
    "inside.rollout": (rollout_backwards, rollout_by_chain, rollout_by_einsum, rollout_by_reduce, rollout_in_numpy),
}
