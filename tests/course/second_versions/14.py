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


def patch_by_hook(decoder, into, source, block, positions):
    states = []
    decoder(source, hidden_states=states)

    def swap(module, args):
        x = args[0].clone()
        x[:, positions] = states[block][:, positions]
        return (x, *args[1:])

    handle = decoder.blocks[block].register_forward_pre_hook(swap)
    try:
        return decoder(into)
    finally:
        handle.remove()


def patch_from_the_middle(decoder, into, source, block, positions):
    """Only the blocks from here on run again."""
    own, other = [], []
    decoder(into, hidden_states=own)
    decoder(source, hidden_states=other)
    chosen = torch.zeros(into.shape[1], dtype=torch.bool)
    chosen[torch.tensor(positions)] = True
    x = torch.where(chosen[None, :, None], other[block], own[block])
    rope = decoder.rotary_embedding(torch.arange(x.shape[1])[None])
    for i in range(block, len(decoder.blocks)):
        x = decoder.blocks[i](x, rope, None)
    return decoder.norm(x)


def patch_in_one_batch(decoder, into, source, block, positions):
    """Both runs side by side: the second half of the batch is the source."""
    x, rope = torch.cat([into, source]), decoder.rotary_embedding(torch.arange(into.shape[1])[None])
    half = len(into)
    for i, layer in enumerate(decoder.blocks):
        if i == block:
            x = x.clone()
            for position in positions:
                x[:half, position] = x[half:, position]
        x = layer(x, rope, None)
    return decoder.norm(x)[:half]


def patch_by_another_forward(decoder, into, source, block, positions):
    """The block's forward is exchanged for the time of the run."""
    states, layer = [], decoder.blocks[block]
    decoder(source, hidden_states=states)
    index = torch.tensor(positions)
    original = layer.forward

    def forward(x, *rest):
        return original(x.index_copy(1, index, states[block].index_select(1, index)), *rest)

    layer.forward = forward
    try:
        return decoder(into)
    finally:
        del layer.forward


def patch_in_a_copy(decoder, into, source, block, positions):
    """A deep copy may keep its hook."""
    states, broken = [], copy.deepcopy(decoder)
    decoder(source, hidden_states=states)
    difference = torch.zeros_like(into)
    keep = torch.ones(into.shape[1], 1)
    keep[positions] = 0
    difference[:, positions] = states[block][:, positions]
    broken.blocks[block].register_forward_pre_hook(lambda module, args: (args[0] * keep + difference, *args[1:]))
    return broken(into)


def probe_with_ones(train, labels, test, num_classes, ridge):
    """A column of ones, which the penalty leaves out."""
    x = torch.cat([train, torch.ones(len(train), 1)], dim=1).double()
    penalty = ridge * torch.eye(x.shape[1], dtype=torch.float64)
    penalty[-1, -1] = 0
    w = torch.linalg.inv(x.T @ x + penalty) @ x.T @ torch.eye(num_classes, dtype=torch.float64)[labels]
    return torch.cat([test, torch.ones(len(test), 1)], dim=1).double() @ w


def probe_by_kernel(train, labels, test, num_classes, ridge):
    """A number for each training vector instead of one for each dimension."""
    mean = train.mean(dim=0, keepdim=True)
    x, y = (train - mean).double(), F.one_hot(labels, num_classes).double()
    weights = torch.linalg.solve(x @ x.T + ridge * torch.eye(len(x), dtype=torch.float64), y - y.mean(0))
    return ((test - mean).double() @ x.T @ weights + y.mean(0)).float()


def probe_by_rows(train, labels, test, num_classes, ridge):
    """The ridge as rows of its own, so that ordinary least squares does it."""
    mean, dim = train.mean(0), train.shape[1]
    y = F.one_hot(labels, num_classes).double()
    rows = torch.cat([(train - mean).double(), ridge**0.5 * torch.eye(dim, dtype=torch.float64)])
    targets = torch.cat([y - y.mean(0), torch.zeros(dim, num_classes, dtype=torch.float64)])
    return ((test - mean).double() @ torch.linalg.lstsq(rows, targets).solution + y.mean(0)).to(train.dtype)


def probe_by_svd(train, labels, test, num_classes, ridge):
    mean = train.double().mean(0)
    u, s, vt = torch.linalg.svd(train.double() - mean, full_matrices=False)
    y = F.one_hot(labels, num_classes).double()
    w = vt.T @ torch.diag(s / (s**2 + ridge)) @ u.T @ y
    return (test.double() - mean) @ w + y.mean(0)


def probe_in_numpy(train, labels, test, num_classes, ridge):
    x, y = train.numpy().astype(np.float64), np.eye(num_classes)[labels.numpy()]
    mean, bias = x.mean(axis=0), y.mean(axis=0)
    w = np.linalg.solve((x - mean).T @ (x - mean) + ridge * np.identity(x.shape[1]), (x - mean).T @ (y - bias))
    return torch.from_numpy((test.numpy() - mean) @ w + bias)


def sink_by_slices(weights):
    return weights[:, :, 1:, 0].mean(dim=-1)


def sink_by_einsum(weights):
    length = weights.shape[-1]
    asks = torch.ones(length)
    asks[0] = 0
    return torch.einsum("bhts,t,s->bh", weights, asks, F.one_hot(torch.tensor(0), length).float()) / (length - 1)


def sink_by_difference(weights):
    """All queries, and the first one taken away again."""
    column = weights[..., 0]
    return (column.sum(-1) - column[..., 0]) / (weights.size(-1) - 1)


def sink_by_unbinding(weights):
    rows = torch.stack(weights.unbind(dim=2)[1:], dim=0)  # [T - 1, blocks, heads, T]
    return rows.select(-1, 0).mean(0)


def sink_in_numpy(weights):
    return torch.from_numpy(weights.numpy()[:, :, 1:, 0].mean(axis=-1))


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
    "inside.patch_activation": (
        patch_by_hook,
        patch_from_the_middle,
        patch_in_one_batch,
        patch_by_another_forward,
        patch_in_a_copy,
    ),
    "inside.probe": (probe_with_ones, probe_by_kernel, probe_by_rows, probe_by_svd, probe_in_numpy),
    "inside.sink_share": (sink_by_slices, sink_by_einsum, sink_by_difference, sink_by_unbinding, sink_in_numpy),
}
