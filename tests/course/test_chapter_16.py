"""Chapter 16: what it stores fits the code that made it, and its losses compare what they say."""

from __future__ import annotations

import pytest
import torch

from nanovlm.assets import asset_path
from nanovlm.bench import distillation_runs, small_and_fast
from nanovlm.compress.distill import FeatureLoss, student_config
from nanovlm.course.chapter_16 import Slides, gains, schedule, table
from nanovlm.course.runs import stored_runs
from nanovlm.inference.watching import watch
from nanovlm.models.vision_language_model import VisionLanguageModel

IDS = torch.tensor([[*[4] * 16, 7, 8, 9]])
TARGETS = torch.tensor([[*[-100] * 17, 9, 1]])


@pytest.fixture(scope="module")
def pair() -> list[VisionLanguageModel]:
    torch.manual_seed(0)
    teacher = VisionLanguageModel.from_pretrained(asset_path("pocket"), torch.float32).eval()
    return [VisionLanguageModel(student_config(teacher.config)), teacher]


def test_stored_runs_are_those_of_the_code() -> None:
    stored = stored_runs("16_small_and_fast")
    assert set(stored["variants"]) == set(small_and_fast.FIXED)
    assert set(stored["trained"]) == set(small_and_fast.TRAINED) and all(stored["trained"].values())
    assert stored["steps"] == small_and_fast.STEPS
    assert set(stored["speeds"]) == set(small_and_fast.TIMED) and set(stored) >= set(small_and_fast.COSTS)
    runs = stored_runs("16_distillation")
    assert runs["steps"] == distillation_runs.STEPS and set(runs["runs"]) <= set(distillation_runs.ARMS)
    assert runs["pictures"] == distillation_runs.BATCH * distillation_runs.POOL
    rows = table(stored)
    assert (
        rows[0].name == "float32"
        and rows[0].worst == ""
        and len(rows) == len(stored["variants"]) + len(stored["trained"])
    )


@pytest.mark.parametrize("name", ["logits", "logits, reverse", "features", "attention", "distribution"])
def test_each_lesson_reaches_the_student_alone(pair: list[VisionLanguageModel], name: str) -> None:
    student, teacher = pair
    batch = {"input_ids": IDS, "images": torch.randn(1, 3, 64, 64), "targets": TARGETS}
    ours, theirs = (distillation_runs.read(model, batch) for model in pair)
    assert torch.allclose(ours["maps"].sum(dim=-1), torch.ones(1, 2, 64)) and ours["tokens"].shape == (1, 16, 64)
    distillation_runs.lessons(name, batch, ours, theirs, FeatureLoss(64, 128)).backward()
    assert student.vision_encoder.blocks[0].attn.qkv_proj.weight.grad.any()
    assert all(p.grad is None for p in teacher.parameters())
    student.zero_grad()


def test_a_gain_has_the_interval_of_two_shares() -> None:
    runs = {"alone": {"0": {"right": {"a": 0.5}}}, "logits": {"0": {"right": {"a": 0.7}}}}
    (gain, low, high) = gains({"runs": runs, "questions": 100})["logits, seed 0"]
    assert gain == pytest.approx(0.2) and high - gain == pytest.approx(1.96 * 0.0046**0.5) == pytest.approx(gain - low)


def test_slides_never_end_by_themselves_and_are_dropped() -> None:
    seen = watch(Slides(["a", "b"], 1e-4), lambda image: image, lambda frame, text, seconds: None, count=3)
    assert len(seen.latencies) == 3 and seen.seen >= 3


def test_continuous_batching_writes_the_same_tokens_and_leaves_no_row_waiting_for_a_batch() -> None:
    lengths = [5, 1, 1, 2]
    static, continuous = (schedule(lengths, 2, continuous=way) for way in (False, True))
    assert static == ["AAAAAC", "B····DD"]
    assert continuous == ["AAAAA", "BCDD"]
