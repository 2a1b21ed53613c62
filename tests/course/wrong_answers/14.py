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


# -- inside.patch_activation -------------------------------------------------------------------------------------------


def states_of(decoder, x):
    states = []
    decoder(x, hidden_states=states)
    return states


def hooked(change, after=False, reverse=False, which=None, late=0):
    """A version in which change(x, from_source, positions) says what a block gets."""

    def patch(decoder, into, source, block, positions):
        if reverse:
            into, source = source, into
        states = states_of(decoder, source)
        at = block if which is None else which

        def before(module, args):
            return (change(args[0], states[at], positions), *args[1:])

        def behind(module, args, out):
            return change(out, states[block + late], positions)

        module = decoder.blocks[block if which is None else which]
        handle = module.register_forward_hook(behind) if after else module.register_forward_pre_hook(before)
        try:
            return decoder(into)
        finally:
            handle.remove()

    return patch


def put(x, source, positions):
    x = x.clone()
    x[:, positions] = source[:, positions]
    return x


one_block_late = hooked(put, after=True, late=1)
undoes_the_block = hooked(put, after=True)
other_way_round = hooked(put, reverse=True)
always_the_embeddings = hooked(put, which=0)
everything = hooked(lambda x, source, positions: source)
added = hooked(lambda x, source, positions: put(x, x + source, positions))
halfway = hooked(lambda x, source, positions: put(x, (x + source) / 2, positions))
all_others = hooked(lambda x, source, positions: put(source, x, positions))
one_too_far = hooked(lambda x, source, positions: put(x, source, [p + 1 for p in positions]))
first_of_them = hooked(lambda x, source, positions: put(x, source, positions[:1]))
zeroed = hooked(lambda x, source, positions: put(x, torch.zeros_like(x), positions))


def hook_without_return(decoder, into, source, block, positions):
    states = states_of(decoder, source)

    def swap(module, args):
        x = args[0].clone()
        x[:, positions] = states[block][:, positions]

    handle = decoder.blocks[block].register_forward_pre_hook(swap)
    try:
        return decoder(into)
    finally:
        handle.remove()


def embeddings_late(decoder, into, source, block, positions):
    """The source's embeddings, at the input of a later block."""
    handle = decoder.blocks[block].register_forward_pre_hook(
        lambda module, args: (put(args[0], source, positions), *args[1:])
    )
    try:
        return decoder(into)
    finally:
        handle.remove()


def in_every_later_block(decoder, into, source, block, positions):
    states = states_of(decoder, source)
    handles = [
        decoder.blocks[i].register_forward_pre_hook(
            lambda module, args, i=i: (put(args[0], states[i], positions), *args[1:])
        )
        for i in range(block, len(decoder.blocks))
    ]
    try:
        return decoder(into)
    finally:
        for handle in handles:
            handle.remove()


def hook_stays(decoder, into, source, block, positions):
    states = states_of(decoder, source)
    decoder.blocks[block].register_forward_pre_hook(
        lambda module, args: (put(args[0], states[block], positions), *args[1:])
    )
    return decoder(into)


def by_hand(decoder, into, source, block, positions, norm=True, stop=None):
    rope = decoder.rotary_embedding(torch.arange(into.shape[1])[None])
    states, x = states_of(decoder, source), into
    for i, each in enumerate(decoder.blocks):
        if i == block:
            x = put(x, states[i], positions)
            if stop:
                return x
        x = each(x, rope, None)
    return decoder.norm(x) if norm else x


def without_norm(*args):
    return by_hand(*args, norm=False)


def stops_there(*args):
    return by_hand(*args, stop=True)


def logits_too(decoder, *args):
    return decoder.head(by_hand(decoder, *args))


# -- inside.probe ------------------------------------------------------------------------------------------------------


def ridge_of(x, y, ridge):
    return torch.linalg.solve(x.T @ x + ridge * torch.eye(x.shape[1]), x.T @ y)


def hot(labels, n):
    return torch.nn.functional.one_hot(labels, n).float()


def no_bias(train, labels, test, num_classes, ridge):
    return test @ ridge_of(train, hot(labels, num_classes), ridge)


def no_mean_of_labels(train, labels, test, num_classes, ridge):
    y, mean = hot(labels, num_classes), train.mean(0)
    return (test - mean) @ ridge_of(train - mean, y, ridge)


def test_mean(train, labels, test, num_classes, ridge):
    y = hot(labels, num_classes)
    return (test - test.mean(0)) @ ridge_of(train - train.mean(0), y, ridge) + y.mean(0)


def mean_of_both(train, labels, test, num_classes, ridge):
    y, mean = hot(labels, num_classes), torch.cat([train, test]).mean(0)
    w = ridge_of(train - mean, y - y.mean(0), ridge)
    return (test - mean) @ w + y.mean(0)


def without_ridge(train, labels, test, num_classes, ridge):
    y, mean = hot(labels, num_classes), train.mean(0)
    return (test - mean) @ (torch.linalg.pinv(train - mean) @ y) + y.mean(0)


def ridge_on_bias(train, labels, test, num_classes, ridge):
    ones = torch.cat([train, torch.ones(len(train), 1)], dim=1)
    w = ridge_of(ones, hot(labels, num_classes), ridge)
    return torch.cat([test, torch.ones(len(test), 1)], dim=1) @ w


def right_probe(train, labels, test, num_classes, ridge):
    y, mean = hot(labels, num_classes), train.mean(0)
    return (test - mean) @ ridge_of(train - mean, y, ridge) + y.mean(0)


def classes(*args):
    return right_probe(*args).argmax(-1)


def probabilities(*args):
    return right_probe(*args).softmax(-1)


def on_train(train, labels, test, num_classes, ridge):
    return right_probe(train, labels, train, num_classes, ridge)


def class_numbers(train, labels, test, num_classes, ridge):
    y, mean = labels.float(), train.mean(0)
    return (test - mean) @ ridge_of(train - mean, y[:, None], ridge) + y.mean()


def ridge_by_rows(train, labels, test, num_classes, ridge):
    return right_probe(train, labels, test, num_classes, ridge * len(train))


def standardised(train, labels, test, num_classes, ridge):
    std = train.std(0)
    return right_probe(train / std, labels, test / std, num_classes, ridge)


def transposed_scores(*args):
    return right_probe(*args).T


def class_means(train, labels, test, num_classes, ridge):
    means = torch.stack([train[labels == c].mean(0) for c in range(num_classes)])
    return -torch.cdist(test, means)


# -- inside.sink_share -------------------------------------------------------------------------------------------------


def with_the_first_query(weights):
    return weights[..., 0].mean(-1)


def last_query(weights):
    return weights[:, :, -1, 0]


def summed(weights):
    return weights[:, :, 1:, 0].sum(-1)


def a_row(weights):
    return weights[:, :, 0, 1:].mean(-1)


def heads_averaged(weights):
    return weights[:, :, 1:, 0].mean((1, 2))


def most_attended(weights):
    return weights[:, :, 1:].amax(-1).mean(-1)


def largest_mean(weights):
    return weights[:, :, 1:].mean(-2).amax(-1)


def blocks_averaged(weights):
    return weights[:, :, 1:, 0].mean((0, 2))


def second_column(weights):
    return weights[:, :, 1:, 1].mean(-1)


def each_query(weights):
    return weights[:, :, 1:, 0]


def last_column(weights):
    return weights[:, :, 1:, -1].mean(-1)


def every_query_divided(weights):
    return weights[:, :, 1:, 0].sum(-1) / weights.shape[-1]


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
    "inside.patch_activation": [
        (one_block_late, "behind the block"),
        (undoes_the_block, "undone"),
        (other_way_round, "other way round"),
        (always_the_embeddings, "first block"),
        (everything, "whole sequence"),
        (added, "added"),
        (halfway, "halfway"),
        (all_others, "all other positions"),
        (one_too_far, "one position too far"),
        (first_of_them, "only the first"),
        (zeroed, "zeros"),
        (hook_without_return, "Nothing is swapped"),
        (embeddings_late, "embeddings"),
        (in_every_later_block, "every later block"),
        (hook_stays, "as before"),
        (without_norm, "final norm"),
        (stops_there, "stops"),
        (logits_too, "logits"),
    ],
    "inside.probe": [
        (no_bias, "bias"),
        (no_mean_of_labels, "mean of the targets"),
        (test_mean, "test vectors' own mean"),
        (mean_of_both, "the test vectors"),
        (without_ridge, "without the ridge"),
        (ridge_on_bias, "penalised"),
        (classes, "argmax"),
        (probabilities, "softmax"),
        (on_train, "training vectors"),
        (class_numbers, "one-hot"),
        (ridge_by_rows, "number of rows"),
        (standardised, "standard deviation"),
        (transposed_scores, "transposed"),
        (class_means, "class means"),
    ],
    "inside.sink_share": [
        (with_the_first_query, "first query"),
        (last_query, "last query"),
        (summed, "summed"),
        (a_row, "row"),
        (heads_averaged, "heads"),
        (most_attended, "each query's largest"),
        (largest_mean, "most attended position"),
        (blocks_averaged, "blocks"),
        (second_column, "position 1"),
        (each_query, "each query"),
        (last_column, "last position"),
        (every_query_divided, "T - 1"),
    ],
}
