"""What a probe asks, and that blind means blind."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nanovlm.assets import asset_path
from nanovlm.data.thimble import Thimble
from nanovlm.evaluation.scores import answer_all, questions_of
from nanovlm.models.vision_language_model import IGNORE, VisionLanguageModel
from nanovlm.training.probe import Probe, mean
from tests.training.tiny_run import new_model, weights


def samples(count: int = 6) -> list:
    split = Thimble("shapes", "val", count, image_size=16)
    return [split[i] for i in range(count)]


def test_it_agrees_with_greedy_answers():
    """Of a model that is right about most and wrong about some: it was not made for other pictures' questions."""
    model = VisionLanguageModel.from_pretrained(asset_path("pocket")).eval()
    split = Thimble("shapes", "unseen", 12)
    asked = [split[i] for i in range(12)]
    probe = Probe(model, asked, batch_size=7)
    questions = questions_of(asked)
    assert probe.kinds == [question.kind for question in questions]
    for blind in (False, True):
        if blind:
            questions = [replace(q, images=asked[(q.sample + 1) % len(asked)]["images"]) for q in questions]
        hits = {kind: [] for kind in probe.kinds}
        for question, answer in zip(questions, answer_all(model, questions), strict=True):
            hits[question.kind].append(answer == question.answer)
        assert probe.accuracy(model, blind) == {kind: sum(h) / len(h) for kind, h in hits.items()}


def test_a_kind_s_loss_is_the_mean_over_its_questions_of_what_the_model_says_to_each():
    model, asked = new_model().eval(), samples(3)
    probe, alone = Probe(model, asked, batch_size=5), Probe(model, asked, batch_size=1)
    expected: dict[str, list[float]] = {}
    for kind, batch in zip(alone.kinds, alone.batches, strict=True):
        loss = model(batch["input_ids"], batch["images"], targets=batch["targets"]).loss
        expected.setdefault(kind, []).append(loss.item() * int((batch["targets"] != IGNORE).sum()))
    losses = probe.losses(model)
    assert losses == pytest.approx({kind: sum(each) / len(each) for kind, each in expected.items()}, rel=1e-4)
    assert probe.losses(model, blind=True) != losses


def test_blind_shows_another_image_and_changes_nothing_else():
    model = new_model().train()
    probe, before = Probe(model, samples()), weights(model)
    for batch, other in zip(probe.batches, probe.blind_images, strict=True):
        assert other.shape == batch["images"].shape
        assert not any(torch.equal(a, b) for a, b in zip(batch["images"], other, strict=True))
    probe.accuracy(model, blind=True)
    assert model.training and all(torch.equal(before[name], p) for name, p in model.named_parameters())


def test_one_sample_cannot_be_blind():
    with pytest.raises(ValueError, match="at least two"):
        Probe(new_model(), samples(1))


def test_each_kind_counts_the_same():
    assert mean({"colour": 1.0, "where": 0.0, "count": 0.5}) == 0.5
