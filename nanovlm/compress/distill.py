"""A small model that learns from a large one (Hinton et al. 2015, arXiv:1503.02531)."""

from __future__ import annotations

from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor, nn

from nanovlm.config import IGNORE, VLMConfig


def kd_loss(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float = 1.0, reverse: bool = False
) -> Tensor:
    """Mean KL over the supervised positions, times T^2; logits [..., vocab_size], labels [...] with IGNORE.

    KL(teacher || student), or with `reverse` KL(student || teacher) (Gu et al. 2023, arXiv:2306.08543). A temperature
    divides the gradient by about T^2, which the factor makes good: the share of the two losses stays what it was.
    """
    if temperature <= 0:
        raise ValueError(f"The temperature is more than 0; it is {temperature}.")
    supervised = labels != IGNORE
    if not supervised.any():
        raise ValueError("No position is supervised: every label is -100, so there is no mean.")
    student = (student_logits[supervised].float() / temperature).log_softmax(dim=-1)
    teacher = (teacher_logits[supervised].detach().float() / temperature).log_softmax(dim=-1)
    given, wanted = (teacher, student) if reverse else (student, teacher)
    return F.kl_div(given, wanted, reduction="batchmean", log_target=True) * temperature**2


class FeatureLoss(nn.Module):
    """Mean squared distance of the student's vectors, projected to the teacher's width (FitNets, arXiv:1412.6550).

    student [..., student_dim], teacher [..., teacher_dim] -> a number. The projection is trained along, then dropped.
    """

    def __init__(self, student_dim: int, teacher_dim: int) -> None:
        super().__init__()
        self.projection = nn.Linear(student_dim, teacher_dim, bias=False)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return F.mse_loss(self.projection(student), teacher.detach())


def attention_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared distance of attention maps, each [B, num_heads, T, keys] (TinyBERT, arXiv:1909.10351)."""
    if student.shape != teacher.shape:
        raise ValueError(f"Attention maps {list(student.shape)} and {list(teacher.shape)} need one shape: equal heads.")
    return F.mse_loss(student, teacher.detach())


def distribution_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Distance of means and covariances of two clouds of vectors, [n, dim] and [m, dim] (Sun and Saenko 2016,
    arXiv:1607.01719): where no vector of the one belongs to a vector of the other."""
    teacher = teacher.detach()
    return F.mse_loss(student.mean(dim=0), teacher.mean(dim=0)) + F.mse_loss(student.T.cov(), teacher.T.cov())


def student_config(config: VLMConfig, width: float = 0.5) -> VLMConfig:
    """The same model with a share of the width: fewer heads of the same size, so vision and language keep their
    head_dim, and the key/value groups their ratio. Raises: ValueError if no whole head is left."""
    vision, language = config.vision, config.language
    heads, groups = round(vision.num_heads * width), round(language.num_kv_heads * width)
    if not heads or not groups:
        raise ValueError(f"A width of {width} leaves no whole head; take a larger one.")
    per_group = language.num_heads // language.num_kv_heads
    vision_dim = heads * (vision.hidden_dim // vision.num_heads)
    language_dim = groups * per_group * language.head_dim
    return replace(
        config,
        vision=replace(
            vision, hidden_dim=vision_dim, num_heads=heads, inter_dim=max(1, round(vision.inter_dim * width))
        ),
        projector=replace(config.projector, vision_dim=vision_dim, language_dim=language_dim),
        language=replace(
            language,
            hidden_dim=language_dim,
            num_heads=groups * per_group,
            num_kv_heads=groups,
            inter_dim=max(1, round(language.inter_dim * width)),
        ),
    )
