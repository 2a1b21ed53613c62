"""Paired comparisons, the number of questions, and what choosing buys."""

from __future__ import annotations

import pytest
import torch

from nanovlm.course.exercises.ch10.intervals import selection_gain
from nanovlm.evaluation.calibration import expected_calibration_error, reliability, risk_coverage
from nanovlm.evaluation.scores import interval
from nanovlm.evaluation.statistics import best_of, mcnemar, paired_bootstrap, questions_needed


def test_a_model_does_not_differ_from_itself_and_a_better_one_does() -> None:
    generator = torch.Generator().manual_seed(0)
    first = (torch.rand(200, generator=generator) < 0.6).float()
    assert tuple(paired_bootstrap(first, first)) == (0, 0, 0)
    second = torch.where(torch.arange(200) % 8 == 0, 1.0, first)
    found = paired_bootstrap(first, second)
    assert 0 < found.low < found.difference < found.high
    back = paired_bootstrap(second, first)
    assert back.difference == -found.difference and back.high == pytest.approx(-found.low, abs=0.01)
    with pytest.raises(ValueError, match="one score a question"):
        paired_bootstrap(first, second[:5])


def test_the_paired_interval_is_narrower_than_the_two_apart() -> None:
    generator = torch.Generator().manual_seed(1)
    hard = torch.rand(300, generator=generator) < 0.4
    first, second = (~hard).float(), (~hard | (torch.arange(300) % 25 == 0)).float()
    paired = paired_bootstrap(first, second)
    (_, high), (other_low, other_high) = (interval(int(x.sum()), 300) for x in (first, second))
    assert other_low < high  # the intervals overlap
    assert paired.low > 0  # and yet the second is better
    assert paired.high - paired.low < other_high - other_low


def test_mcnemar_counts_only_where_the_two_differ() -> None:
    assert mcnemar([True] * 9, [True] * 9) == 1
    assert mcnemar([False] * 5, [True] * 5) == pytest.approx(2 / 32)
    assert mcnemar([True] * 100 + [False] * 5, [True] * 105) == pytest.approx(2 / 32)


def test_questions_needed_is_the_first_number_that_is_enough() -> None:
    for share, half in ((0.35, 0.024), (0.5, 0.02), (0.0, 0.05)):
        needed = questions_needed(share, half)
        widths = [high - low for low, high in (interval(share * n, n) for n in (needed - 1, needed))]
        assert widths[0] > 2 * half >= widths[1]
    with pytest.raises(ValueError, match="from 0 to 1"):
        questions_needed(1.2, 0.1)


def test_the_best_of_many_looks_agrees_with_the_exact_expectation() -> None:
    for looks in (1, 40):
        measured = best_of(0.33, 1500, looks).mean().item() - 0.33
        assert measured == pytest.approx(selection_gain(0.33, 1500, looks), abs=1e-3)


def test_calibration() -> None:
    confidence, right = torch.tensor([0.95, 0.95, 0.95, 0.95, 0.55]), torch.tensor([1, 1, 0, 0, 1])
    bins = reliability(confidence, right)
    assert [b.count for b in bins] == [1, 4] and bins[1].accuracy == 0.5
    assert expected_calibration_error(confidence, right) == pytest.approx((4 * 0.45 + 0.45) / 5)
    coverage, risk = risk_coverage(torch.tensor([0.2, 0.9, 0.5]), torch.tensor([0, 1, 1]))
    assert risk.tolist() == pytest.approx([0, 0, 1 / 3]) and coverage[-1] == 1
    assert expected_calibration_error(torch.ones(3), torch.ones(3)) == 0
    with pytest.raises(ValueError, match="One confidence"):
        reliability(torch.ones(3), torch.ones(2))
