"""Chapter 09: the learner's loop, cache, filters, draw, beams and stream write the answers of yours()."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nanovlm import VisionLanguageModel
from nanovlm.assets import asset_path
from nanovlm.course import yours
from nanovlm.course.judge.exercise import load_exercises

IMAGE = asset_path("images/shapes.png")
ASK = {"image": IMAGE, "prompt": "Describe the picture."}
PIECES: list[str] = []
USED_BY: dict[str, dict[str, Any]] = {
    "generation.greedy": {},
    "generation.cached_attention": {},
    "generation.min_p": {"temperature": 1.0, "min_p": 0.1, "seed": 0},
    "generation.top_p": {"temperature": 1.0, "top_p": 0.9, "seed": 0},
    "generation.sample": {"temperature": 1.0, "seed": 0},
    "generation.beam_step": {"num_beams": 2},
    "generation.stream_text": {"on_text": PIECES.append},
}


@pytest.fixture(scope="module")
def pocket() -> VisionLanguageModel:
    return VisionLanguageModel.from_pretrained(asset_path("pocket")).eval()


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOVLM_HOME", str(tmp_path))


@pytest.mark.parametrize("exercise_id", USED_BY)
def test_a_part_is_used_and_answers_as_the_package_does(pocket: VisionLanguageModel, exercise_id: str) -> None:
    reference, calls = load_exercises()[exercise_id].reference, []

    def own(*args: Any, **kwargs: Any) -> Any:
        calls.append(exercise_id)
        return reference(*args, **kwargs)

    model = yours(replace={exercise_id: own})
    options = USED_BY[exercise_id]
    assert model.parts[exercise_id] == "replaced"
    assert model.generate(**ASK, **options) == pocket.generate(**ASK, **options)
    assert calls
    before = len(calls)
    pocket.generate(**ASK, **options)
    assert len(calls) == before, "the package's own model runs the learner's code"


def test_the_loop_streams_with_the_learner_s_parts_as_well(pocket: VisionLanguageModel) -> None:
    exercises = load_exercises()
    parts = {name: exercises[name].reference for name in ("generation.greedy", "generation.stream_text")}
    pieces: list[str] = []
    answer = yours(replace=parts).generate(**ASK, on_text=pieces.append)
    assert "".join(pieces) == answer == pocket.generate(**ASK)


def test_batches_and_padding_go_through_the_learner_s_cache(pocket: VisionLanguageModel) -> None:
    cached = load_exercises()["generation.cached_attention"].reference
    model = yours(replace={"generation.cached_attention": cached})
    many = {"image": [IMAGE, IMAGE, None], "prompt": ["How many?", ASK["prompt"], "Where is the red star?"]}
    assert model.generate(**many) == pocket.generate(**many)


def test_a_wrong_part_changes_the_answer(pocket: VisionLanguageModel) -> None:
    mistakes = load_exercises()["generation.top_p"].mistakes
    wrong = next(mistake.version for mistake in mistakes if "least likely" in mistake.sentence)
    ask = {"prompt": "Which bar is the shortest?", "temperature": 1.0, "seed": 0, "top_p": 0.5, "num_generations": 12}
    best = pocket.generate(prompt=ask["prompt"])
    assert best in pocket.generate(**ask)
    assert best not in yours(replace={"generation.top_p": wrong}).generate(**ask)


def test_a_loop_that_never_stops_does_not_stop() -> None:
    mistakes = load_exercises()["generation.greedy"].mistakes
    wrong = next(mistake.version for mistake in mistakes if "never stops at an end" in mistake.sentence)
    model = yours(replace={"generation.greedy": wrong})
    ids = torch.tensor([model.tokenizer.encode_prompt("Where is the red star?", 0, model.config)])
    assert model.generate(ids, max_new_tokens=9).shape[1] == 9
