"""Chapter 16 once more, written in other ways."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from nanovlm.course.exercises.ch16.graphs import prefill, whole


def divergence_from_torch(student_logits, teacher_logits, labels, temperature):
    keep = labels.ne(-100)
    q = F.log_softmax(student_logits[keep] / temperature, dim=-1)
    with torch.no_grad():
        p = F.softmax(teacher_logits[keep] / temperature, dim=-1)
    return temperature**2 * F.kl_div(q, p, reduction="batchmean")


def divergence_by_position(student_logits, teacher_logits, labels, temperature):
    total, count = 0.0, 0
    for row in range(labels.shape[0]):
        for place in range(labels.shape[1]):
            if labels[row, place] == -100:
                continue
            p = torch.distributions.Categorical(logits=teacher_logits[row, place].detach() / temperature)
            q = torch.distributions.Categorical(logits=student_logits[row, place] / temperature)
            total, count = total + torch.distributions.kl_divergence(p, q), count + 1
    return total / count * temperature * temperature


def entropy_subtracted(student_logits, teacher_logits, labels, temperature):
    keep = (labels != -100).flatten()
    s, t = student_logits.flatten(0, 1)[keep] / temperature, teacher_logits.flatten(0, 1)[keep].detach() / temperature
    p = t.softmax(-1)
    return (F.cross_entropy(s, p) - F.cross_entropy(t, p)) * temperature**2


def row_by_row(weight):
    numbers, scales = torch.zeros_like(weight, dtype=torch.int8), torch.ones(len(weight), 1)
    for i, row in enumerate(weight):
        largest = row.abs().max().item()
        if largest > 0:
            scales[i] = largest / 127
            numbers[i] = torch.round(row / scales[i]).to(torch.int8)
    return numbers, scales


def zeros_where_nothing_is(weight):
    most = torch.linalg.vector_norm(weight, ord=math.inf, dim=1, keepdim=True)
    scales = torch.where(most > 0, most / 127, 1.0)
    return weight.div(scales).round_().char(), scales


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight, bits):
        scales = weight.abs().amax(dim=-1, keepdim=True) / (2 ** (bits - 1) - 1)
        return (weight / scales).round() * scales

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


def own_backward(weight, bits):
    return Straight.apply(weight, bits)


def numbers_without_gradient(weight, bits):
    with torch.no_grad():
        scales = weight.abs().max(dim=-1, keepdim=True).values / (2 ** (bits - 1) - 1)
        off = torch.round(weight / scales) * scales - weight
    return off + weight


def by_sorting(gate, up, down, keep):
    scores = torch.cat([gate, up, down.T], dim=1).abs().sum(dim=1)
    kept = scores.argsort(descending=True)[:keep]
    return gate.index_select(0, kept), up.index_select(0, kept), down.index_select(1, kept)


def by_threshold(gate, up, down, keep):
    scores = gate.norm(p=1, dim=1) + up.norm(p=1, dim=1) + down.norm(p=1, dim=0)
    stays = scores >= scores.sort(descending=True).values[keep - 1]
    return gate[stays], up[stays], down[:, stays]


def several_conversations(decode):
    def answers(prompt, tokens):
        _, past = prefill(prompt)
        found = []
        for token in tokens:
            logits, past = decode(token, past)
            found.append(logits)
        return torch.stack(found)

    for prompt, tokens in (([1, 2, 3, 4, 5], [6, 7]), ([10], [0, 3, 3]), ([5, 5], [1, 2, 3])):
        wanted = whole([*prompt, *tokens])[len(prompt) :]
        assert (answers(prompt, tokens) - wanted).abs().max() < 1e-3
    _, past = prefill([6, 2])
    before = [x.clone() for x in past]
    decode(3, past)
    assert all(torch.equal(a, b) for a, b in zip(before, past, strict=True))


def tree_of_answers(decode):
    def follow(ids, past, depth):
        if depth == 0:
            return
        for token in (1, 8):
            logits, present = decode(token, past)
            assert torch.allclose(logits, whole([*ids, token])[-1], atol=1e-4)
            follow([*ids, token], present, depth - 1)

    for prompt in ([4], [7, 0, 2]):
        follow(prompt, prefill(prompt)[1], 2)


def ranks_by_counting(answer, clock, repeats, percents):
    answer()
    times = []
    while len(times) < repeats:
        before = clock()
        answer()
        times.append(clock() - before)
    return [min(t for t in times if sum(u <= t for u in times) >= p * repeats / 100) for p in percents]


def ranks_from_torch(answer, clock, repeats, percents):
    answer()
    ticks = [clock()]
    for _ in range(repeats):
        answer()
        ticks.append(clock())
    times = torch.tensor(ticks, dtype=torch.float64).diff()
    return [float(times.kthvalue(math.ceil(p * repeats / 100)).values) for p in percents]


VERSIONS = {
    "compress.kd_loss": (divergence_from_torch, divergence_by_position, entropy_subtracted),
    "compress.int8_rowwise": (row_by_row, zeros_where_nothing_is),
    "compress.fake_quant": (own_backward, numbers_without_gradient),
    "compress.prune_channels": (by_sorting, by_threshold),
    "compress.graph_test": (several_conversations, tree_of_answers),
    "compress.latency_percentiles": (ranks_by_counting, ranks_from_torch),
}
