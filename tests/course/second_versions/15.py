"""Chapter 15 once more, written in other ways."""

from __future__ import annotations

import bisect
import itertools
import math
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import nn


class LoraBeside(nn.Module):
    """The base is kept whole; einsum for the difference."""

    def __init__(self, base, rank, alpha):
        super().__init__()
        self.base, self.scale = base, alpha / rank
        for p in self.base.parameters():
            p.requires_grad_(False)
        self.lora_a = nn.Parameter(torch.empty(rank, base.in_features).normal_(std=rank**-0.5))
        self.lora_b = nn.Parameter(base.weight.new_zeros(base.out_features, rank))

    def forward(self, x):
        return self.base(x) + torch.einsum("...i,ri,or->...o", x, self.lora_a, self.lora_b) * self.scale


class LoraAsMatrix(nn.Linear):
    """One matrix, made anew in each pass."""

    def __init__(self, base, rank, alpha):
        super().__init__(base.in_features, base.out_features, bias=base.bias is not None)
        self.weight, self.bias = base.weight, base.bias
        self.requires_grad_(False)
        self.lora_a = nn.Parameter(torch.rand(rank, base.in_features) - 0.5)
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank))
        self.rank, self.alpha = rank, alpha

    def forward(self, x):
        return F.linear(x, self.weight + self.lora_b @ self.lora_a * (self.alpha / self.rank), self.bias)


def merge_in_double(weight, lora_a, lora_b, alpha):
    rank = lora_a.shape[0]
    return (weight.double() + torch.einsum("or,ri->oi", lora_b.double(), lora_a.double()) * alpha / rank).to(
        weight.dtype
    )


def merge_by_outer_products(weight, lora_a, lora_b, alpha):
    merged = weight.clone().float()
    for a, b in zip(lora_a, lora_b.T, strict=True):
        merged += alpha / len(lora_a) * torch.outer(b, a)
    return merged.type_as(weight)


def quantise_by_loop(weight, code_book, block):
    codes, scales, entries = [], [], code_book.tolist()
    for part in weight.reshape(-1).split(block):
        scale = part.abs().max()
        scales.append(scale)
        for number in part.tolist():
            scaled = number / scale.item() if scale > 0 else 0.0
            codes.append(min(range(len(entries)), key=lambda i: abs(scaled - entries[i])))
    return torch.tensor(codes, dtype=torch.uint8), torch.stack(scales)


def quantise_by_bisection(weight, code_book, block):
    flat = weight.flatten()
    scales = torch.stack([part.norm(p=float("inf")) for part in flat.split(block)])
    each = scales.repeat_interleave(block)[: len(flat)]
    scaled = torch.where(each > 0, flat / each.where(each > 0, torch.ones(())), torch.zeros(()))
    middles = ((code_book[1:] + code_book[:-1]) / 2).tolist()
    return torch.tensor([bisect.bisect_left(middles, s) for s in scaled.tolist()], dtype=torch.uint8), scales


def freeze_test_by_state(freeze, model, step):
    """Frozen two, then one, by the state dict."""
    import copy

    for frozen in (("encoder", "decoder"), ("decoder",), ("decoder_norm",)):
        old = copy.deepcopy(model.state_dict())
        freeze(model, list(frozen))
        step(model)
        moved = {name for name, value in model.state_dict().items() if (value != old[name]).any()}
        wanted = {name for name in old if name.split(".")[0] not in frozen}
        assert moved == wanted, f"{moved ^ wanted}"


def freeze_test_in_words(freeze, model, step):
    def weights(part):
        return torch.cat([p.detach().flatten() for p in part.parameters()])

    def every_moved(part, old):
        return all(not torch.equal(p, q) for p, q in zip(part.parameters(), old, strict=True))

    parts = dict(model.named_children())
    for frozen in (["decoder"], ["encoder", "decoder_norm"]):
        whole = {name: weights(part).clone() for name, part in parts.items()}
        each = {name: [p.detach().clone() for p in part.parameters()] for name, part in parts.items()}
        freeze(model, frozen)
        step(model)
        for name, part in parts.items():
            if name in frozen:
                assert torch.equal(weights(part), whole[name]), f"{name} is frozen and moved"
            else:
                assert every_moved(part, each[name]), f"{name} should have moved"


def mix_with_a_debt(new, old, share, batch_size, num_batches):
    """What is owed is carried over, as a fraction."""
    fresh, known, owed, rows = itertools.cycle(new.tolist()), itertools.cycle(old.tolist()), Fraction(0), []
    for _ in range(num_batches):
        owed += Fraction(share) * batch_size
        count = int(owed)
        owed -= count
        rows.append([next(fresh) for _ in range(batch_size - count)] + [next(known) for _ in range(count)])
    return torch.tensor(rows)


def mix_by_slices(new, old, share, batch_size, num_batches):
    ends = torch.tensor([math.floor(share * batch_size * n) for n in range(num_batches + 1)])
    total = num_batches * batch_size
    new_long, old_long = (x.repeat(total // len(x) + 1) for x in (new, old))
    rows = []
    for n in range(num_batches):
        a, b = int(ends[n]), int(ends[n + 1])
        rows.append(torch.cat([new_long[n * batch_size - a : (n + 1) * batch_size - b], old_long[a:b]]))
    return torch.stack(rows)


def weights_by_power(sizes, temperature):
    powers = [float(size) ** (1 / temperature) for size in sizes]
    return torch.tensor([power / sum(powers) for power in powers])


def weights_by_largest(sizes, temperature):
    """Shares of the largest, which cannot overflow."""
    relative = torch.tensor(sizes, dtype=torch.float64) / max(sizes)
    powers = torch.exp(torch.log(relative) / temperature)
    return powers / powers.sum()


def largest_in_steps(fits, most):
    """Steps that double, then steps that halve, as in a binary lifting."""
    step = 1
    found = 0
    tried = {}

    def ask(n):
        if n not in tried:
            tried[n] = n <= most and fits(n)
        return tried[n]

    while ask(found + step):
        found += step
        step *= 2
        if found + step > 2 * found:
            step = found
    while step > 1:
        step = (step + 1) // 2
        if found + step <= most and ask(found + step):
            found += step
        elif step == 1:
            break
    return found


def largest_by_recursion(fits, most):
    def between(low, high):
        if high - low <= 1:
            return low
        middle = (low + high) // 2
        return between(middle, high) if fits(middle) else between(low, middle)

    last = 0
    for exponent in range(60):
        size = 2**exponent
        if size > most:
            return between(last, most + 1)
        if not fits(size):
            return between(last, size)
        last = size
    return last


VERSIONS = {
    "adapt.lora_linear": (LoraBeside, LoraAsMatrix),
    "adapt.merge_lora": (merge_in_double, merge_by_outer_products),
    "adapt.quantise_blocks": (quantise_by_loop, quantise_by_bisection),
    "adapt.freeze_parts": (freeze_test_by_state, freeze_test_in_words),
    "adapt.replay_mix": (mix_with_a_debt, mix_by_slices),
    "adapt.task_weights": (weights_by_power, weights_by_largest),
    "adapt.largest_batch": (largest_in_steps, largest_by_recursion),
}
