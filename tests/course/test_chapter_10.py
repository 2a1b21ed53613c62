"""After the checks of chapters 08 to 10: yours() trains, answers and is scored with the learner's own code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nanovlm.bench.training_runs import small_recipe
from nanovlm.course import check, use, yours
from nanovlm.data.loading import get_dataloaders
from nanovlm.data.thimble import Thimble
from nanovlm.evaluation.scores import answer_all, questions_of
from nanovlm.models.vision_language_model import init_weights
from tests.course.learners import handed_in

LOOP = ("training.get_lr", "training.param_groups", "training.train_step")
SPEECH = ("generation.greedy", "generation.cached_attention", "generation.top_p", "generation.sample")
METRICS = ("evaluation.normalise_answer", "evaluation.vqa_accuracy", "evaluation.wilson")


def test_a_model_is_trained_asked_and_scored_with_the_learners_own_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NANOVLM_HOME", str(tmp_path))
    for number, ids in (("08", LOOP), ("09", SPEECH), ("10", METRICS)):
        for exercise_id in ids:
            check(exercise_id, handed_in("solutions", number)[exercise_id])
    capsys.readouterr()

    get_lr, param_groups, train_step = map(use, LOOP)
    model = yours()
    assert {model.parts[exercise_id] for exercise_id in SPEECH} == {"yours"}
    sample = Thimble("shapes", "test")[0]
    questions = questions_of([sample])
    right = sum(a == q.answer for a, q in zip(answer_all(model, questions), questions, strict=True))
    assert right == len(questions), "the shipped weights, answered by the learner's loop and cache"
    drawn = model.generate(image=sample["images"][0], prompt="Which?", temperature=2.0, top_p=0.9, seed=0)
    assert isinstance(drawn, str)

    torch.manual_seed(0)
    init_weights(model.train())
    recipe = small_recipe(batch_size=4)
    loader, _ = get_dataloaders(recipe, model.config, model.tokenizer, model.image_processor)
    optimizer, batches, losses = torch.optim.AdamW(param_groups(model, 4e-3, 4e-3, 0.01)), iter(loader), []
    for step in range(4):
        for group in optimizer.param_groups:
            group["lr"] = get_lr(step, 4e-3, 4)
        losses.append(train_step(model, [next(batches)], optimizer, 1.0))
    assert losses[-1] < losses[0] - 1

    normalise, vqa_accuracy, wilson = map(use, METRICS)
    answers = [normalise(answer) for answer in answer_all(model.eval(), questions)]
    scores = [vqa_accuracy(answer, [q.answer] * 10) for answer, q in zip(answers, questions, strict=True)]
    low, high = wilson(round(sum(scores)), len(scores))
    assert 0 <= low < high <= 1
    assert "reference stands in" not in capsys.readouterr().out
