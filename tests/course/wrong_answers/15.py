"""Chapter 15: answers as people write them, wrong in ways that people are wrong, and what they should be told."""

from __future__ import annotations

import itertools

import torch
from torch import nn

# -- adapt.lora_linear -------------------------------------------------------------------------------------------------


class Lora(nn.Module):
    """The usual way to write it, to be spoiled below."""

    def __init__(self, base, rank, alpha):
        super().__init__()
        self.base = base
        for p in base.parameters():
            p.requires_grad = False
        self.lora_a = nn.Parameter(torch.randn(rank, base.in_features) * 0.02)
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank))
        self.rank, self.alpha = rank, alpha

    def forward(self, x):
        return self.base(x) + self.alpha / self.rank * (x @ self.lora_a.T @ self.lora_b.T)


class NoScale(Lora):
    def forward(self, x):
        return self.base(x) + x @ self.lora_a.T @ self.lora_b.T


class AlphaAlone(Lora):
    def forward(self, x):
        return self.base(x) + self.alpha * (x @ self.lora_a.T @ self.lora_b.T)


class ScaleUpsideDown(Lora):
    def forward(self, x):
        return self.base(x) + self.rank / self.alpha * (x @ self.lora_a.T @ self.lora_b.T)


class DifferenceAlone(Lora):
    def forward(self, x):
        return self.alpha / self.rank * (x @ self.lora_a.T @ self.lora_b.T)


class BaseBiasLost(Lora):
    def forward(self, x):
        return x @ self.base.weight.T + self.alpha / self.rank * (x @ self.lora_a.T @ self.lora_b.T)


class AfterTheBase(Lora):
    """The adapter reads the output of the base."""

    def __init__(self, base, rank, alpha):
        super().__init__(base, rank, alpha)
        self.lora_a = nn.Parameter(torch.randn(rank, base.out_features) * 0.02)

    def forward(self, x):
        y = self.base(x)
        return y + self.alpha / self.rank * (y @ self.lora_a.T @ self.lora_b.T)


class BothRandom(Lora):
    def __init__(self, base, rank, alpha):
        super().__init__(base, rank, alpha)
        nn.init.normal_(self.lora_b)


class BothZero(Lora):
    def __init__(self, base, rank, alpha):
        super().__init__(base, rank, alpha)
        nn.init.zeros_(self.lora_a)


class BaseTrained(Lora):
    def __init__(self, base, rank, alpha):
        super().__init__(base, rank, alpha)
        base.weight.requires_grad = True


class BiasTrained(Lora):
    def __init__(self, base, rank, alpha):
        super().__init__(base, rank, alpha)
        if base.bias is not None:
            base.bias.requires_grad = True


class Detached(Lora):
    def forward(self, x):
        with torch.no_grad():
            y = self.base(x)  # "it is frozen anyway": and the blocks before get no gradient
        return y + self.alpha / self.rank * (x @ self.lora_a.T @ self.lora_b.T)


class Turned(Lora):
    """A [in, rank], B [rank, out]."""

    def __init__(self, base, rank, alpha):
        super().__init__(base, rank, alpha)
        self.lora_a = nn.Parameter(torch.randn(base.in_features, rank) * 0.02)
        self.lora_b = nn.Parameter(torch.zeros(rank, base.out_features))

    def forward(self, x):
        return self.base(x) + self.alpha / self.rank * (x @ self.lora_a @ self.lora_b)


class TensorsOnly(Lora):
    def __init__(self, base, rank, alpha):
        nn.Module.__init__(self)
        self.base = base.requires_grad_(False)
        self.lora_a = torch.randn(rank, base.in_features)
        self.lora_b = torch.zeros(base.out_features, rank)
        self.rank, self.alpha = rank, alpha


class Returned(Lora):
    def forward(self, x):
        self.base(x) + self.alpha / self.rank * (x @ self.lora_a.T @ self.lora_b.T)


# -- adapt.merge_lora --------------------------------------------------------------------------------------------------


def merged_transposed(weight, lora_a, lora_b, alpha):
    return weight + alpha / len(lora_a) * (lora_a.T @ lora_b.T).reshape(weight.shape)


def merged_without_scale(weight, lora_a, lora_b, alpha):
    return weight + lora_b @ lora_a


def merged_by_alpha(weight, lora_a, lora_b, alpha):
    return weight + alpha * lora_b @ lora_a


def merged_by_out_features(weight, lora_a, lora_b, alpha):
    return weight + alpha / len(lora_b) * (lora_b @ lora_a)


def merged_by_in_features(weight, lora_a, lora_b, alpha):
    return weight + alpha / lora_a.shape[1] * (lora_b @ lora_a)


def merged_in_place(weight, lora_a, lora_b, alpha):
    weight += (alpha / len(lora_a) * (lora_b.float() @ lora_a.float())).to(weight.dtype)
    return weight


def merged_in_float32(weight, lora_a, lora_b, alpha):
    return weight.float() + alpha / len(lora_a) * (lora_b.float() @ lora_a.float())


def difference_alone(weight, lora_a, lora_b, alpha):
    return (alpha / len(lora_a) * (lora_b.float() @ lora_a.float())).to(weight.dtype)


def merged_twice(weight, lora_a, lora_b, alpha):
    return (weight.float() + 2 * alpha / len(lora_a) * (lora_b.float() @ lora_a.float())).to(weight.dtype)


def subtracted(weight, lora_a, lora_b, alpha):
    return (weight.float() - alpha / len(lora_a) * (lora_b.float() @ lora_a.float())).to(weight.dtype)


def multiplied(weight, lora_a, lora_b, alpha):
    return (weight.float() * (1 + alpha / len(lora_a) * (lora_b.float() @ lora_a.float()))).to(weight.dtype)


def low_precision_product(weight, lora_a, lora_b, alpha):
    """Everything rounded to the weight's own 16 bits on the way."""
    low = weight.dtype
    return weight + (alpha / len(lora_a) * (lora_b.to(low) @ lora_a.to(low))).to(low)


# -- adapt.quantise_blocks ---------------------------------------------------------------------------------------------


def _quantise(weight, code_book, block, scale_of=lambda rows: rows.abs().amax(1), nearest=None, pad=True):
    flat = weight.flatten()
    rows = torch.cat([flat, flat.new_zeros(-len(flat) % block)]).view(-1, block)
    scales = scale_of(rows)
    scaled = rows / scales.clamp(min=1e-30)[:, None]
    codes = nearest(scaled) if nearest else (scaled[..., None] - code_book).abs().argmin(-1)
    return codes.flatten()[: len(flat)].to(torch.uint8), scales


def one_scale(weight, code_book, block):
    return _quantise(weight, code_book, block, lambda rows: rows.abs().max().expand(len(rows)).clone())


def largest_signed(weight, code_book, block):
    return _quantise(weight, code_book, block, lambda rows: rows.amax(1))


def by_range(weight, code_book, block):
    return _quantise(weight, code_book, block, lambda rows: (rows.amax(1) - rows.amin(1)) / 2)


def by_deviation(weight, code_book, block):
    return _quantise(weight, code_book, block, lambda rows: rows.std(1))


def by_mean(weight, code_book, block):
    return _quantise(weight, code_book, block, lambda rows: rows.abs().mean(1))


def rounded_down(weight, code_book, block):
    def below(scaled):
        return (torch.searchsorted(code_book, scaled.contiguous(), right=True) - 1).clamp(min=0)

    return _quantise(weight, code_book, block, nearest=below)


def evenly_spaced(weight, code_book, block):
    def even(scaled):
        return ((scaled + 1) / 2 * (len(code_book) - 1)).round().long()

    return _quantise(weight, code_book, block, nearest=even)


def not_scaled(weight, code_book, block):
    codes, scales = _quantise(weight, code_book, block)
    return (weight.flatten()[:, None] - code_book).abs().argmin(-1).to(torch.uint8), scales


def values_for_codes(weight, code_book, block):
    codes, scales = _quantise(weight, code_book, block)
    return code_book[codes.long()], scales


def per_row(weight, code_book, block):
    """A scale for each row of the matrix, whatever the block."""
    scales = weight.abs().amax(1)
    return ((weight / scales[:, None])[..., None] - code_book).abs().argmin(-1).flatten().to(torch.uint8), scales


def rest_dropped(weight, code_book, block):
    flat = weight.flatten()[: weight.numel() // block * block]
    return _quantise(flat, code_book, block)


def padding_kept(weight, code_book, block):
    flat = weight.flatten()
    padded = torch.cat([flat, flat.new_zeros(-len(flat) % block)])
    return _quantise(padded, code_book, block)


def nan_for_zeros(weight, code_book, block):
    flat = weight.flatten()
    rows = torch.cat([flat, flat.new_zeros(-len(flat) % block)]).view(-1, block)
    scales = rows.abs().amax(1)
    codes = ((rows / scales[:, None])[..., None] - code_book).abs().argmin(-1)
    return codes.flatten()[: len(flat)].to(torch.uint8), scales


def long_codes(weight, code_book, block):
    codes, scales = _quantise(weight, code_book, block)
    return codes.long(), scales


def column_by_column(weight, code_book, block):
    return _quantise(weight.T.contiguous(), code_book, block)


# -- adapt.freeze_parts ------------------------------------------------------------------------------------------------


def looks_at_nothing(freeze, model, step):
    freeze(model, ["decoder"])
    step(model)


def looks_at_flags(freeze, model, step):
    freeze(model, ["decoder"])
    for p in model.decoder.parameters():
        assert not p.requires_grad
    for name in ("encoder", "decoder_norm"):
        for p in getattr(model, name).parameters():
            assert p.requires_grad


def looks_at_the_frozen(freeze, model, step):
    before = [p.clone() for p in model.decoder.parameters()]
    freeze(model, ["decoder"])
    step(model)
    for p, old in zip(model.decoder.parameters(), before, strict=True):
        assert torch.equal(p, old)


def looks_at_the_others(freeze, model, step):
    before = {name: p.clone() for name, p in model.named_parameters()}
    freeze(model, ["decoder"])
    step(model)
    for name, p in model.named_parameters():
        if not name.startswith("decoder."):
            assert not torch.equal(p, before[name])


def no_second_stage(freeze, model, step):
    before = {name: p.clone() for name, p in model.named_parameters()}
    freeze(model, ["decoder"])
    step(model)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) == name.startswith("decoder.")


def compares_with_itself(freeze, model, step):
    """The old weights are no copies, so that they move along."""
    before = dict(model.named_parameters())
    freeze(model, ["decoder"])
    step(model)
    for name, p in model.named_parameters():
        if name.startswith("decoder."):
            assert torch.equal(p, before[name])


def too_strict(freeze, model, step):
    before = {name: p.clone() for name, p in model.named_parameters()}
    freeze(model, ["decoder"])
    step(model)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name])


def by_prefix(freeze, model, step):
    before = {name: p.clone() for name, p in model.named_parameters()}
    freeze(model, ["decoder"])
    step(model)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) == name.startswith("decoder")


def returns_a_bool(freeze, model, step):
    before = [p.clone() for p in model.decoder.parameters()]
    freeze(model, ["decoder"])
    step(model)
    return all(torch.equal(p, old) for p, old in zip(model.decoder.parameters(), before, strict=True))


# -- adapt.replay_mix --------------------------------------------------------------------------------------------------


def _mix(new, old, share, batch_size, num_batches, count):
    fresh, known, rows = itertools.cycle(new.tolist()), itertools.cycle(old.tolist()), []
    for number in range(num_batches):
        of_old = count(number)
        row = [next(fresh) for _ in range(batch_size - of_old)] + [next(known) for _ in range(of_old)]
        rows.append(row)
    return torch.tensor(rows)


def rounded_each_time(new, old, share, batch_size, num_batches):
    return _mix(new, old, share, batch_size, num_batches, lambda n: round(share * batch_size))


def cut_each_time(new, old, share, batch_size, num_batches):
    return _mix(new, old, share, batch_size, num_batches, lambda n: int(share * batch_size))


def at_least_one(new, old, share, batch_size, num_batches):
    return _mix(new, old, share, batch_size, num_batches, lambda n: max(1, int(share * batch_size)))


def share_of_the_new(new, old, share, batch_size, num_batches):
    """share old ones for each new one."""
    other = share / (1 + share)

    def due(n):
        return int(other * batch_size * n + 1e-9)

    return _mix(new, old, share, batch_size, num_batches, lambda n: due(n + 1) - due(n))


def the_other_way_round(new, old, share, batch_size, num_batches):
    def due(n):
        return int(share * batch_size * n + 1e-9)

    return _mix(old, new, share, batch_size, num_batches, lambda n: due(n + 1) - due(n))


def old_first(new, old, share, batch_size, num_batches):
    def due(n):
        return int(share * batch_size * n + 1e-9)

    rows = _mix(new, old, share, batch_size, num_batches, lambda n: due(n + 1) - due(n))
    return rows.flip(1)


def same_old_ones(new, old, share, batch_size, num_batches):
    """Every batch begins with the old samples from the start."""
    due, fresh, rows = (lambda n: int(share * batch_size * n + 1e-9)), itertools.cycle(new.tolist()), []
    for number in range(num_batches):
        of_old = due(number + 1) - due(number)
        known = itertools.cycle(old.tolist())
        rows.append([next(fresh) for _ in range(batch_size - of_old)] + [next(known) for _ in range(of_old)])
    return torch.tensor(rows)


def same_new_ones(new, old, share, batch_size, num_batches):
    due, known, rows = lambda n: int(share * batch_size * n + 1e-9), itertools.cycle(old.tolist()), []
    for number in range(num_batches):
        of_old, fresh = due(number + 1) - due(number), itertools.cycle(new.tolist())
        rows.append([next(fresh) for _ in range(batch_size - of_old)] + [next(known) for _ in range(of_old)])
    return torch.tensor(rows)


def whole_batches_of_old(new, old, share, batch_size, num_batches):
    def due(n):
        return int(share * n + 1e-9)

    return _mix(new, old, share, batch_size, num_batches, lambda n: batch_size * (due(n + 1) - due(n)))


def rounded_up(new, old, share, batch_size, num_batches):
    import math

    def due(n):
        return math.ceil(share * batch_size * n - 1e-9)

    return _mix(new, old, share, batch_size, num_batches, lambda n: due(n + 1) - due(n))


def nothing_old(new, old, share, batch_size, num_batches):
    return _mix(new, old, share, batch_size, num_batches, lambda n: 0)


def on_top(new, old, share, batch_size, num_batches):
    """The old ones come in addition."""
    due, fresh, known, rows = (
        lambda n: int(share * batch_size * n + 1e-9),
        itertools.cycle(new.tolist()),
        itertools.cycle(old.tolist()),
        [],
    )
    for number in range(num_batches):
        of_old = due(number + 1) - due(number)
        rows.append([next(fresh) for _ in range(batch_size)] + [next(known) for _ in range(of_old)])
    longest = max(map(len, rows))
    return torch.tensor([row + row[: longest - len(row)] for row in rows])


# -- adapt.task_weights ------------------------------------------------------------------------------------------------


def powers(sizes, temperature):
    weights = torch.tensor([float(n) ** temperature for n in sizes])
    return weights / weights.sum()


def softmax_of_sizes(sizes, temperature):
    return (torch.tensor(sizes, dtype=torch.float32) / temperature).softmax(0)


def by_size_alone(sizes, temperature):
    sizes = torch.tensor(sizes, dtype=torch.float32)
    return sizes / sizes.sum()


def unnormalised(sizes, temperature):
    return torch.tensor([float(n) ** (1 / temperature) for n in sizes])


def divided_by_the_largest(sizes, temperature):
    weights = torch.tensor([float(n) ** (1 / temperature) for n in sizes])
    return weights / weights.max()


def shares_divided(sizes, temperature):
    sizes = torch.tensor(sizes, dtype=torch.float32)
    return (sizes / sizes.sum() / temperature).softmax(0)


def logs_alone(sizes, temperature):
    logs = torch.tensor(sizes, dtype=torch.float32).log() / temperature
    return logs / logs.sum()


def evenly(sizes, temperature):
    return torch.full((len(sizes),), 1 / len(sizes))


def rare_first(sizes, temperature):
    return (-torch.tensor(sizes, dtype=torch.float32).log() / temperature).softmax(0)


def times_temperature(sizes, temperature):
    return (torch.tensor(sizes, dtype=torch.float32).log() * temperature).softmax(0)


def overflows(sizes, temperature):
    weights = torch.tensor(sizes, dtype=torch.float32) ** (1 / temperature)
    return weights / weights.sum()


# -- adapt.largest_batch -----------------------------------------------------------------------------------------------


def one_by_one(fits, most):
    n = 0
    while n < most and fits(n + 1):
        n += 1
    return n


def doubling_alone(fits, most):
    n = 0
    while max(1, 2 * n) <= most and fits(max(1, 2 * n)):
        n = max(1, 2 * n)
    return n


def first_that_does_not_fit(fits, most):
    high = 1
    while high <= most and fits(high):
        high *= 2
    low, high = high // 2, min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return high


def never_the_most(fits, most):
    high = 1
    while high < most and fits(high):
        high *= 2
    low, high = high // 2, min(high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def doubling_past_the_most(fits, most):
    n = 1
    while n <= most and fits(n):
        n *= 2
    low, high = n // 2, min(n, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def at_least_one_row(fits, most):
    low = 1
    while 2 * low <= most and fits(2 * low):
        low *= 2
    high = min(2 * low, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def from_the_middle(fits, most):
    """Bisects at once: the first try is half of the most, which no machine holds."""
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def beyond_the_most(fits, most):
    high = 1
    while fits(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def endless(fits, most):
    low, high = 0, most + 1
    while low < high:
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low


def powers_of_two_below(fits, most):
    n = most
    while n and not fits(n):
        n //= 2
    return n


def asks_twice(fits, most):
    high = 1
    while high <= most and fits(high) and fits(high):
        high *= 2
    low, high = high // 2, min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle) and fits(middle):
            low = middle
        else:
            high = middle
    return low


WRONG = {
    "adapt.lora_linear": [
        (NoScale, "scale is missing"),
        (AlphaAlone, "divided by the rank"),
        (ScaleUpsideDown, "upside down"),
        (DifferenceAlone, "base's own output"),
        (BaseBiasLost, "bias"),
        (AfterTheBase, "lora_a"),
        (BothRandom, "other than the base"),
        (BothZero, "neither"),
        (BaseTrained, "weight"),
        (BiasTrained, "bias"),
        (Detached, "input"),
        (Turned, "lora_a"),
        (TensorsOnly, "parameter"),
        (Returned, "None"),
    ],
    "adapt.merge_lora": [
        (merged_transposed, "transpos"),
        (merged_without_scale, "scale"),
        (merged_by_alpha, "rank"),
        (merged_by_out_features, "rank"),
        (merged_by_in_features, "rank"),
        (merged_in_place, "change"),
        (merged_in_float32, "round to its dtype"),
        (difference_alone, "difference"),
        (merged_twice, "twice"),
        (subtracted, "taken away"),
        (multiplied, "multipl"),
        (low_precision_product, "float32"),
    ],
    "adapt.quantise_blocks": [
        (one_scale, "whole tensor"),
        (largest_signed, "absolute"),
        (by_range, "range"),
        (by_deviation, "standard deviation"),
        (by_mean, "mean"),
        (rounded_down, "below"),
        (evenly_spaced, "evenly"),
        (not_scaled, "divide"),
        (values_for_codes, "uint8"),
        (per_row, "row"),
        (rest_dropped, "dropped"),
        (padding_kept, "filling"),
        (nan_for_zeros, "zeros"),
        (long_codes, "uint8"),
        (column_by_column, "reading order"),
    ],
    "adapt.freeze_parts": [
        (looks_at_nothing, "0 of"),
        (looks_at_flags, "second time"),
        (looks_at_the_frozen, "frozen part alone"),
        (looks_at_the_others, "frozen"),
        (no_second_stage, "second"),
        (compares_with_itself, "0 of"),
        (too_strict, "right"),
        (by_prefix, "right"),
        (returns_a_bool, "returns"),
    ],
    "adapt.replay_mix": [
        (rounded_each_time, "rounded in each batch"),
        (cut_each_time, "cut off"),
        (at_least_one, "at least one"),
        (share_of_the_new, "of all"),
        (the_other_way_round, "exchanged"),
        (old_first, "new ones first"),
        (same_old_ones, "same old"),
        (same_new_ones, "same new"),
        (whole_batches_of_old, "whole batches"),
        (rounded_up, "rounded up"),
        (nothing_old, "No old"),
        (on_top, "batch_size"),
    ],
    "adapt.task_weights": [
        (powers, "1 / temperature"),
        (softmax_of_sizes, "log"),
        (by_size_alone, "temperature"),
        (unnormalised, "sum to 1"),
        (divided_by_the_largest, "largest"),
        (shares_divided, "log"),
        (logs_alone, "logarithms"),
        (evenly, "evenly"),
        (rare_first, "smallest"),
        (times_temperature, "1 / temperature"),
        (overflows, "infin"),
    ],
    "adapt.largest_batch": [
        (one_by_one, "tries"),
        (doubling_alone, "doubling"),
        (first_that_does_not_fit, "does not fit"),
        (never_the_most, "most"),
        (doubling_past_the_most, "The most itself is never tried"),
        (at_least_one_row, "0"),
        (from_the_middle, "far"),
        (beyond_the_most, "beyond"),
        (endless, "far"),
        (powers_of_two_below, "far"),
        (asks_twice, "twice"),
    ],
}
