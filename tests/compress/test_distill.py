"""Distillation: zero for equals, the right direction, a gradient that temperature leaves its size, padding left out."""

from __future__ import annotations

import pytest
import torch

from nanovlm.compress.distill import FeatureLoss, attention_loss, distribution_loss, kd_loss, student_config
from nanovlm.config import pocket_vlm, presets
from nanovlm.models.vision_language_model import VisionLanguageModel
from tests.tiny import tiny_config

LABELS = torch.tensor([[1, -100, 2]])


def two(seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, 3, 9, generator=generator, dtype=torch.float64) for _ in "st"]


@pytest.mark.parametrize("reverse", [False, True])
def test_it_is_the_mean_divergence_of_supervised_positions(reverse: bool) -> None:
    student, teacher = two()
    assert kd_loss(teacher, teacher, LABELS, 2.0, reverse).abs() < 1e-6
    p, q = ((x / 2)[0, [0, 2]].softmax(-1) for x in (teacher, student))
    if reverse:
        p, q = q, p
    wanted = 4 * (p * (p / q).log()).sum(-1).mean()
    assert kd_loss(student, teacher, LABELS, 2.0, reverse).item() == pytest.approx(wanted.item(), rel=1e-4)
    student[0, 1] += 100 * torch.randn(9)
    assert kd_loss(student, teacher, LABELS, 2.0, reverse).item() == pytest.approx(wanted.item(), rel=1e-4)


def test_gradient_is_the_difference_of_probabilities_and_the_teacher_gets_none() -> None:
    student, teacher = (x.requires_grad_() for x in two())
    kd_loss(student, teacher, LABELS).backward()
    wanted = (student.softmax(-1) - teacher.softmax(-1)).detach() / 2
    assert torch.allclose(student.grad[0, [0, 2]], wanted[0, [0, 2]], atol=1e-6)
    assert not student.grad[0, 1].any() and teacher.grad is None


def test_temperature_squared_keeps_the_size_of_the_gradient() -> None:
    norms = []
    for temperature in (20.0, 40.0):
        student, teacher = two()
        kd_loss(student.requires_grad_(), teacher, LABELS, temperature).backward()
        norms.append(student.grad.norm().item())
    assert norms[1] == pytest.approx(norms[0], rel=0.1)


def test_bad_input_gets_a_sentence() -> None:
    student, teacher = two()
    with pytest.raises(ValueError, match="every label is -100"):
        kd_loss(student, teacher, torch.full_like(LABELS, -100))
    with pytest.raises(ValueError, match="more than 0"):
        kd_loss(student, teacher, LABELS, 0)
    with pytest.raises(ValueError, match="equal heads"):
        attention_loss(torch.zeros(1, 2, 3, 3), torch.zeros(1, 4, 3, 3))
    with pytest.raises(ValueError, match="whole head"):
        student_config(tiny_config(), 0.1)


def test_features_are_compared_in_the_teachers_width() -> None:
    loss, student = FeatureLoss(4, 6), torch.randn(2, 5, 4, requires_grad=True)
    assert loss(student, loss.projection(student).detach()).item() == 0
    loss(student, torch.randn(2, 5, 6)).backward()
    assert student.grad.any() and loss.projection.weight.grad.any()


def test_distributions_do_not_care_for_order() -> None:
    x = torch.randn(50, 4)
    assert distribution_loss(x[torch.randperm(50)], x) < 1e-8
    assert distribution_loss(x + 1, x) > 0.5
    assert distribution_loss(2 * (x - x.mean(0)) + x.mean(0), x) > 0.5


def test_a_student_is_a_model_of_half_the_width() -> None:
    for config in (tiny_config(), pocket_vlm(), presets()["colab"].vlm):
        small = student_config(config)
        assert small.language.head_dim == config.language.head_dim
        assert small.num_image_tokens == config.num_image_tokens
        assert small.vision.hidden_dim * 2 == config.vision.hidden_dim
    assert VisionLanguageModel(student_config(tiny_config())).config.language.hidden_dim == 16
