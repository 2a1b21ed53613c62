"""Chapter 16: answers that people write before they know better, and what the check should say of each."""

from __future__ import annotations

import statistics

import torch
import torch.nn.functional as F

from nanovlm.course.exercises.ch16.graphs import prefill, whole

# -- compress.kd_loss --------------------------------------------------------------------------------------------------


def _rows(student, teacher, labels):
    keep = labels != -100
    return student[keep], teacher[keep]


def no_square(student_logits, teacher_logits, labels, temperature):
    s, t = _rows(student_logits, teacher_logits, labels)
    p, q = (t / temperature).softmax(-1), (s / temperature).log_softmax(-1)
    return F.kl_div(q, p, reduction="batchmean")


def times_the_temperature(student_logits, teacher_logits, labels, temperature):
    return no_square(student_logits, teacher_logits, labels, temperature) * temperature


def only_the_student_is_warm(student_logits, teacher_logits, labels, temperature):
    s, t = _rows(student_logits, teacher_logits, labels)
    return F.kl_div((s / temperature).log_softmax(-1), t.softmax(-1), reduction="batchmean") * temperature**2


def only_the_teacher_is_warm(student_logits, teacher_logits, labels, temperature):
    s, t = _rows(student_logits, teacher_logits, labels)
    return F.kl_div(s.log_softmax(-1), (t / temperature).softmax(-1), reduction="batchmean") * temperature**2


def probabilities_into_kl_div(student_logits, teacher_logits, labels, temperature):
    s, t = _rows(student_logits, teacher_logits, labels)
    p, q = (t / temperature).softmax(-1), (s / temperature).softmax(-1)
    return F.kl_div(q, p, reduction="batchmean") * temperature**2


def the_other_direction(student_logits, teacher_logits, labels, temperature):
    s, t = _rows(student_logits, teacher_logits, labels)
    p, q = (t / temperature).log_softmax(-1), (s / temperature).log_softmax(-1)
    return (q.exp() * (q - p)).sum(-1).mean() * temperature**2


def kl_div_in_pythons_order(student_logits, teacher_logits, labels, temperature):
    s, t = _rows(student_logits, teacher_logits, labels)
    p, q = (t / temperature).log_softmax(-1), (s / temperature).softmax(-1)
    return F.kl_div(p, q, reduction="batchmean") * temperature**2


def every_position(student_logits, teacher_logits, labels, temperature):
    p = (teacher_logits / temperature).softmax(-1)
    q = (student_logits / temperature).log_softmax(-1)
    return (p * (p.log() - q)).sum(-1).mean() * temperature**2


def mean_of_everything(student_logits, teacher_logits, labels, temperature):
    s, t = _rows(student_logits, teacher_logits, labels)
    return F.kl_div((s / temperature).log_softmax(-1), (t / temperature).softmax(-1)) * temperature**2


def a_sum(student_logits, teacher_logits, labels, temperature):
    s, t = _rows(student_logits, teacher_logits, labels)
    p, q = (t / temperature).softmax(-1), (s / temperature).log_softmax(-1)
    return F.kl_div(q, p, reduction="sum") * temperature**2


def divided_by_all_positions(student_logits, teacher_logits, labels, temperature):
    p = (teacher_logits / temperature).softmax(-1)
    q = (student_logits / temperature).log_softmax(-1)
    return ((p * (p.log() - q)).sum(-1) * (labels != -100)).mean() * temperature**2


def soft_cross_entropy(student_logits, teacher_logits, labels, temperature):
    s, t = _rows(student_logits, teacher_logits, labels)
    return F.cross_entropy(s / temperature, (t / temperature).softmax(-1)) * temperature**2


def the_labels_again(student_logits, teacher_logits, labels, temperature):
    return F.cross_entropy(student_logits.flatten(0, 1), labels.flatten())


def the_teacher_learns_too(student_logits, teacher_logits, labels, temperature):
    s, t = _rows(student_logits, teacher_logits, labels)
    p, q = (t / temperature).softmax(-1), (s / temperature).log_softmax(-1)
    return F.kl_div(q, p, reduction="batchmean") * temperature**2


def a_distance_of_logits(student_logits, teacher_logits, labels, temperature):
    return F.mse_loss(*_rows(student_logits, teacher_logits, labels))


# -- compress.int8_rowwise ---------------------------------------------------------------------------------------------


def one_scale_for_all(weight):
    scales = (weight.abs().max() / 127).expand(len(weight), 1).clone()
    return (weight / scales).round().to(torch.int8), scales


def a_scale_a_column(weight):
    scales = weight.abs().amax(dim=0, keepdim=True) / 127
    return (weight / scales.clamp(min=1e-12)).round().to(torch.int8), scales


def cut_off_instead_of_rounded(weight):
    scales = (weight.abs().amax(dim=1, keepdim=True) / 127).clamp(min=1e-12)
    return (weight / scales).to(torch.int8), scales


def a_hundred_and_twenty_eight(weight):
    scales = (weight.abs().amax(dim=1, keepdim=True) / 128).clamp(min=1e-12)
    return (weight / scales).round().to(torch.int8), scales


def clamped_from_128(weight):
    scales = (weight.abs().amax(dim=1, keepdim=True) / 128).clamp(min=1e-12)
    return (weight / scales).round().clamp(-128, 127).to(torch.int8), scales


def the_largest_not_the_largest_size(weight):
    scales = (weight.amax(dim=1, keepdim=True) / 127).clamp(min=1e-12)
    return (weight / scales).round().clamp(-127, 127).to(torch.int8), scales


def zero_by_zero(weight):
    scales = weight.abs().amax(dim=1, keepdim=True) / 127
    return (weight / scales).round().nan_to_num(-128).to(torch.int8), scales


def zeros_through_nan(weight):
    scales = weight.abs().amax(dim=1, keepdim=True) / 127
    return (weight / scales).round().to(torch.int8), scales


def upside_down_scales(weight):
    scales = 127 / weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-12)
    return (weight * scales).round().to(torch.int8), scales


def whole_but_still_floats(weight):
    scales = (weight.abs().amax(dim=1, keepdim=True) / 127).clamp(min=1e-12)
    return (weight / scales).round(), scales


def scales_without_an_axis(weight):
    scales = (weight.abs().amax(dim=1) / 127).clamp(min=1e-12)
    return (weight / scales[:, None]).round().to(torch.int8), scales


def from_least_to_most(weight):
    low, high = weight.amin(dim=1, keepdim=True), weight.amax(dim=1, keepdim=True)
    scales = ((high - low) / 255).clamp(min=1e-12)
    return ((weight - low) / scales - 128).round().clamp(-128, 127).to(torch.int8), scales


# -- compress.fake_quant -----------------------------------------------------------------------------------------------


def as_it_was(weight, bits):
    scales = weight.abs().amax(dim=-1, keepdim=True) / (2**bits - 1)
    return (weight / scales).round() * scales


def the_range_alone(weight, bits):
    scales = weight.abs().amax(dim=-1, keepdim=True) / (2 ** (bits - 1) - 1)
    return (weight / scales).round() * scales


def the_gradient_alone(weight, bits):
    scales = weight.abs().amax(dim=-1, keepdim=True) / (2**bits - 1)
    return weight + ((weight / scales).round() * scales - weight).detach()


def nothing_learns(weight, bits):
    scales = weight.abs().amax(dim=-1, keepdim=True) / (2 ** (bits - 1) - 1)
    return ((weight / scales).round() * scales).detach()


def through_the_scale_as_well(weight, bits):
    scales = weight.abs().amax(dim=-1, keepdim=True) / (2 ** (bits - 1) - 1)
    steps = weight / scales
    return (steps + (steps.round() - steps).detach()) * scales


def the_rounded_part_detached(weight, bits):
    scales = (weight.abs().amax(dim=-1, keepdim=True) / (2 ** (bits - 1) - 1)).detach()
    return (weight / scales).round().detach() * scales


def not_rounded_at_all(weight, bits):
    return weight + 0


def the_weight_is_added_twice(weight, bits):
    scales = (weight.abs().amax(dim=-1, keepdim=True) / (2 ** (bits - 1) - 1)).detach()
    return weight + ((weight / scales).round() * scales).detach()


def a_step_of_half_the_range(weight, bits):
    scales = (weight.abs().amax(dim=-1, keepdim=True) / 2 ** (bits - 1)).detach()
    return weight + ((weight / scales).round() * scales - weight).detach()


def one_scale(weight, bits):
    scales = (weight.abs().max() / (2 ** (bits - 1) - 1)).detach()
    return weight + ((weight / scales).round() * scales - weight).detach()


def rounds_down(weight, bits):
    scales = (weight.abs().amax(dim=-1, keepdim=True) / (2 ** (bits - 1) - 1)).detach()
    return weight + (torch.floor(weight / scales) * scales - weight).detach()


def away_from_the_rounded(weight, bits):
    scales = (weight.abs().amax(dim=-1, keepdim=True) / (2 ** (bits - 1) - 1)).detach()
    return weight - ((weight / scales).round() * scales - weight).detach()


# -- compress.prune_channels -------------------------------------------------------------------------------------------


def _scores(gate, up, down):
    return gate.abs().sum(1) + up.abs().sum(1) + down.abs().sum(0)


def only_a_mask(gate, up, down, keep):
    kept = _scores(gate, up, down).topk(keep).indices
    mask = torch.zeros(len(gate)).index_fill(0, kept, 1.0)
    return gate * mask[:, None], up * mask[:, None], down * mask


def the_least_important(gate, up, down, keep):
    kept = _scores(gate, up, down).argsort()[:keep]
    return gate[kept], up[kept], down[:, kept]


def each_its_own(gate, up, down, keep):
    a, b = gate.abs().sum(1).topk(keep).indices, up.abs().sum(1).topk(keep).indices
    return gate[a], up[b], down[:, down.abs().sum(0).topk(keep).indices]


def the_gate_decides(gate, up, down, keep):
    kept = gate.abs().sum(1).topk(keep).indices
    return gate[kept], up[kept], down[:, kept]


def down_is_forgotten(gate, up, down, keep):
    kept = (gate.abs().sum(1) + up.abs().sum(1)).topk(keep).indices
    return gate[kept], up[kept], down[:, kept]


def down_decides(gate, up, down, keep):
    kept = down.abs().sum(0).topk(keep).indices
    return gate[kept], up[kept], down[:, kept]


def with_signs(gate, up, down, keep):
    kept = (gate.sum(1) + up.sum(1) + down.sum(0)).topk(keep).indices
    return gate[kept], up[kept], down[:, kept]


def squares(gate, up, down, keep):
    kept = (gate.square().sum(1) + up.square().sum(1) + down.square().sum(0)).topk(keep).indices
    return gate[kept], up[kept], down[:, kept]


def the_first_ones(gate, up, down, keep):
    return gate[:keep], up[:keep], down[:, :keep]


def so_many_less(gate, up, down, keep):
    kept = _scores(gate, up, down).topk(len(gate) - keep).indices
    return gate[kept], up[kept], down[:, kept]


def down_in_its_old_order(gate, up, down, keep):
    kept = _scores(gate, up, down).topk(keep).indices
    return gate[kept], up[kept], down[:, kept.sort().values]


def down_stays_wide(gate, up, down, keep):
    kept = _scores(gate, up, down).topk(keep).indices
    return gate[kept], up[kept], down


# -- compress.graph_test -----------------------------------------------------------------------------------------------


def believes_everything(decode):
    logits, past = prefill([3, 1, 4])
    decode(5, past)


def says_true(decode):
    return True


def one_step(decode):
    logits, _ = decode(5, prefill([3, 1, 4])[1])
    torch.testing.assert_close(logits, whole([3, 1, 4, 5])[-1])


def one_conversation(decode):
    _, past = prefill([3, 1])
    for seen in ([3, 1, 4], [3, 1, 4, 1], [3, 1, 4, 1, 5]):
        logits, past = decode(seen[-1], past)
        torch.testing.assert_close(logits, whole(seen)[-1])


def only_the_shapes(decode):
    _, past = prefill([3, 1, 4])
    logits, present = decode(5, past)
    assert logits.shape == (11,) and all(x.shape[2] == 4 for x in present)


def against_itself(decode):
    _, past = prefill([3, 1, 4])
    torch.testing.assert_close(decode(5, past)[0], decode(5, past)[0])


def to_the_last_bit(decode):
    for ids in ([3, 1], [2, 7, 1, 8]):
        _, past = prefill(ids)
        for token in (2, 6, 5):
            ids = [*ids, token]
            logits, past = decode(token, past)
            assert torch.equal(logits, whole(ids)[-1])


def prompts_of_one_length(decode):
    for ids in ([3, 1, 4], [2, 7, 1]):
        logits, _ = decode(5, prefill(ids)[1])
        torch.testing.assert_close(logits, whole([*ids, 5])[-1])


def the_likeliest_only(decode):
    for ids in ([3, 1], [2, 7, 1, 8]):
        _, past = prefill(ids)
        for token in (2, 6):
            ids = [*ids, token]
            logits, past = decode(token, past)
            assert logits.argmax() == whole(ids)[-1].argmax() + 1


def never_starts_twice(decode):
    for ids, answer in (([3, 1], [4, 1, 5]), ([2, 7, 1, 8], [2, 8])):
        _, past = prefill(ids)
        for token in answer:
            ids = [*ids, token]
            logits, past = decode(token, past)
            assert (logits - whole(ids)[-1]).abs().max() < 1e-3


def asks_the_prefill(decode):
    for ids in ([3, 1], [2, 7, 1, 8]):
        logits, past = prefill(ids)
        decode(4, past)
        torch.testing.assert_close(logits, whole(ids)[-1])


def the_same_past_for_ever(decode):
    for ids in ([3, 1], [2, 7, 1, 8]):
        _, past = prefill(ids)
        for token in (2, 6, 5):
            ids = [*ids, token]
            logits, _ = decode(token, past)
            torch.testing.assert_close(logits, whole(ids)[-1], atol=1e-4, rtol=1e-4)


# -- compress.latency_percentiles --------------------------------------------------------------------------------------


def _times(answer, clock, repeats):
    times = []
    for _ in range(repeats):
        start = clock()
        answer()
        times.append(clock() - start)
    return times


def _rank(times, percents):
    ordered = sorted(times)
    return [ordered[-(-p * len(ordered) // 100) - 1] for p in percents]


def no_warm_up(answer, clock, repeats, percents):
    return _rank(_times(answer, clock, repeats), percents)


def interpolated(answer, clock, repeats, percents):
    answer()
    times = torch.tensor(_times(answer, clock, repeats), dtype=torch.float64)
    return torch.quantile(times, torch.tensor([p / 100 for p in percents], dtype=torch.float64)).tolist()


def one_further(answer, clock, repeats, percents):
    answer()
    ordered = sorted(_times(answer, clock, repeats))
    return [ordered[min(p * repeats // 100, repeats - 1)] for p in percents]


def in_the_order_of_time(answer, clock, repeats, percents):
    answer()
    times = _times(answer, clock, repeats)
    return [times[-(-p * repeats // 100) - 1] for p in percents]


def from_the_slowest(answer, clock, repeats, percents):
    answer()
    ordered = sorted(_times(answer, clock, repeats), reverse=True)
    return [ordered[-(-p * repeats // 100) - 1] for p in percents]


def the_mean_for_all(answer, clock, repeats, percents):
    answer()
    return [statistics.mean(_times(answer, clock, repeats))] * len(percents)


def all_in_one_go(answer, clock, repeats, percents):
    answer()
    start = clock()
    for _ in range(repeats):
        answer()
    return [(clock() - start) / repeats] * len(percents)


def a_share_of_the_slowest(answer, clock, repeats, percents):
    answer()
    slowest = max(_times(answer, clock, repeats))
    return [slowest * p / 100 for p in percents]


def since_the_start(answer, clock, repeats, percents):
    answer()
    start, times = clock(), []
    for _ in range(repeats):
        answer()
        times.append(clock() - start)
    return _rank(times, percents)


def one_too_few(answer, clock, repeats, percents):
    answer()
    return _rank(_times(answer, clock, repeats - 1), percents)


def rounded_down(answer, clock, repeats, percents):
    answer()
    ordered = sorted(_times(answer, clock, repeats))
    return [ordered[max(int(p / 100 * repeats) - 1, 0)] for p in percents]


def always_the_slowest(answer, clock, repeats, percents):
    answer()
    return [max(_times(answer, clock, repeats))] * len(percents)


WRONG = {
    "compress.kd_loss": [
        (no_square, "squared"),
        (times_the_temperature, "temperature once"),
        (only_the_student_is_warm, "student's logits alone"),
        (only_the_teacher_is_warm, "teacher's logits alone"),
        (probabilities_into_kl_div, "log-probabilities"),
        (the_other_direction, "other direction"),
        (kl_div_in_pythons_order, "other direction"),
        (every_position, "every position"),
        (mean_of_everything, "vocabulary"),
        (a_sum, "sum"),
        (divided_by_all_positions, "divided by all"),
        (soft_cross_entropy, "entropy"),
        (the_labels_again, "labels"),
        (the_teacher_learns_too, "teacher"),
        (a_distance_of_logits, "logits themselves"),
    ],
    "compress.int8_rowwise": [
        (one_scale_for_all, "whole matrix"),
        (a_scale_a_column, "column"),
        (cut_off_instead_of_rounded, "rounded"),
        (a_hundred_and_twenty_eight, "128"),
        (clamped_from_128, "128"),
        (the_largest_not_the_largest_size, "absolute"),
        (zero_by_zero, "zeros"),
        (zeros_through_nan, "zeros"),
        (upside_down_scales, "upside down"),
        (whole_but_still_floats, "int8"),
        (scales_without_an_axis, "[rows, 1]"),
        (from_least_to_most, "zero point"),
    ],
    "compress.fake_quant": [
        (as_it_was, "Both faults"),
        (the_range_alone, "gradient"),
        (the_gradient_alone, "sign"),
        (nothing_learns, "No gradient"),
        (through_the_scale_as_well, "scale"),
        (the_rounded_part_detached, "No gradient"),
        (not_rounded_at_all, "Nothing is rounded"),
        (the_weight_is_added_twice, "twice"),
        (a_step_of_half_the_range, "2^(bits - 1) - 1"),
        (one_scale, "whole matrix"),
        (rounds_down, "rounded down"),
        (away_from_the_rounded, "sign of the difference"),
    ],
    "compress.prune_channels": [
        (only_a_mask, "mask"),
        (the_least_important, "least important"),
        (each_its_own, "own channels"),
        (the_gate_decides, "gate alone"),
        (down_is_forgotten, "down"),
        (down_decides, "down"),
        (with_signs, "absolute"),
        (squares, "squares"),
        (the_first_ones, "first"),
        (so_many_less, "left out"),
        (down_in_its_old_order, "same order"),
        (down_stays_wide, "columns"),
    ],
    "compress.graph_test": [
        (believes_everything, "nothing"),
        (says_true, "bool"),
        (one_step, "one step"),
        (one_conversation, "second conversation"),
        (only_the_shapes, "shapes"),
        (against_itself, "with itself"),
        (to_the_last_bit, "last bit"),
        (prompts_of_one_length, "one step"),
        (the_likeliest_only, "right"),
        (never_starts_twice, "twice"),
        (asks_the_prefill, "nothing"),
        (the_same_past_for_ever, "right"),
    ],
    "compress.latency_percentiles": [
        (no_warm_up, "first call"),
        (interpolated, "between two"),
        (one_further, "one place"),
        (in_the_order_of_time, "sorted"),
        (from_the_slowest, "slowest first"),
        (the_mean_for_all, "mean"),
        (all_in_one_go, "mean"),
        (a_share_of_the_slowest, "slowest"),
        (since_the_start, "since the start"),
        (one_too_few, "calls"),
        (rounded_down, "rounded down"),
        (always_the_slowest, "slowest"),
    ],
}
