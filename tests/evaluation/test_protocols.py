"""Three protocols on the Thimble's multiple choice, in MMStar's schema; likelihood; probes; the adapter."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nanovlm import VisionLanguageModel
from nanovlm.assets import asset_path
from nanovlm.data.thimble import load_multiple_choice, multiple_choice_sample, thimble_scene
from nanovlm.evaluation.likelihood import NORMALISATIONS, answer_log_probs, score_options
from nanovlm.evaluation.lmms import Requests, lmms_model
from nanovlm.evaluation.multiple_choice import (
    circular_accuracy,
    evaluate_choice,
    lenient_letter,
    rotated,
    split_options,
    strict_letter,
)
from nanovlm.evaluation.probes import NEGATIVES, probes, yes_no
from nanovlm.inference.prompts import prepare_prompts


@pytest.fixture(scope="module")
def pocket() -> VisionLanguageModel:
    return VisionLanguageModel.from_pretrained(asset_path("pocket")).eval()


SAMPLES = [multiple_choice_sample(i) for i in range(9)]


def test_options_are_found_in_the_spellings_of_mmstar() -> None:
    stem, options = split_options("Which one?\nOptions: A: red, B: dark, deep blue, C: green, D: yellow")
    assert stem == "Which one?"
    assert options == {"A": "red", "B": "dark, deep blue", "C": "green", "D": "yellow"}
    assert split_options("Which?\nChoices:\n(A) one\n(B) two")[1] == {"A": "one", "B": "two"}
    with pytest.raises(ValueError, match="No options"):
        split_options("Which one is it?")


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda s: s["l2_category"])
def test_rotating_options_keeps_the_right_text_and_comes_round(sample: dict[str, Any]) -> None:
    text = split_options(sample["question"])[1][sample["answer"]]
    seen = set()
    for by in range(5):
        turned = rotated(sample, by)
        assert split_options(turned["question"])[1][turned["answer"]] == text
        seen.add(turned["answer"])
    assert seen == set("ABCD") and turned["answer"] == sample["answer"]


def test_strict_and_lenient_disagree_about_a_cat() -> None:
    for answer in ("A", "a", "(A)", "A.", " A "):
        assert strict_letter(answer, "A")
    for answer in ("A cat", "A, B, C, D", "", "B", "Apple", "The answer is A"):
        assert not strict_letter(answer, "A")
    assert lenient_letter("A cat", "A") and all(lenient_letter("A, B, C, D", letter) for letter in "ABCD")
    assert lenient_letter("(an Animal)", "A") and not lenient_letter("Apple", "A")


def test_log_probs_are_those_of_the_forward_pass_and_count_the_end(pocket: VisionLanguageModel) -> None:
    sample = SAMPLES[0]
    question, options = split_options(sample["question"])
    texts = [*options.values(), "top left"]
    images = [[sample["image"]]] * len(texts)
    sums, counts = answer_log_probs(pocket, [question] * len(texts), images, texts)
    for text, total, count in zip(texts, sums.tolist(), counts.tolist(), strict=True):
        prompt = prepare_prompts(pocket, [question], [sample["image"]])
        ids = [*pocket.tokenizer.encode(text), pocket.config.eos_token_id]
        whole = torch.cat([prompt["input_ids"], torch.tensor([ids])], dim=1)
        with torch.no_grad():
            log_probs = pocket(whole, prompt["images"]).logits[0].log_softmax(dim=-1)
        start = prompt["input_ids"].shape[1]
        by_hand = sum(log_probs[start - 1 + i, token].item() for i, token in enumerate(ids))
        assert count == len(ids) and total == pytest.approx(by_hand, abs=1e-3)
    alone, _ = answer_log_probs(pocket, [question], images[:1], texts[:1], batch_size=1)
    assert alone.item() == pytest.approx(sums[0].item(), abs=1e-3)


def test_likelihood_knows_what_letters_do_not(pocket: VisionLanguageModel) -> None:
    by_letter, by_likelihood = (evaluate_choice(pocket, SAMPLES, name) for name in ("letter", "likelihood"))
    assert by_likelihood.accuracy > 0.8 > 0.4 > by_letter.accuracy
    assert all(answer in "ABCD" for _, answer in by_likelihood.answers)
    assert circular_accuracy(pocket, SAMPLES[:2]) <= by_likelihood.accuracy
    with pytest.raises(ValueError, match="protocol is"):
        evaluate_choice(pocket, SAMPLES, "guess")
    with pytest.raises(ValueError, match="nothing to evaluate"):
        evaluate_choice(pocket, [], "likelihood")


@pytest.mark.parametrize("normalise", NORMALISATIONS)
def test_each_normalisation_gives_one_score_an_option(pocket: VisionLanguageModel, normalise: str) -> None:
    scores = score_options(
        pocket, ["Is it?", "How?"], [[SAMPLES[0]["image"]]] * 2, [["yes", "no"], ["1", "2", "3"]], normalise
    )
    assert [len(score) for score in scores] == [2, 3] and all(score.isfinite().all() for score in scores)


@pytest.mark.parametrize("negatives", NEGATIVES)
def test_probes_are_balanced_and_true(negatives: str) -> None:
    for question in probes(negatives, 20):
        scene, _ = thimble_scene("shapes", "test", question.sample)
        item = tuple(question.text.rstrip("?").split()[-2:])
        assert (item in scene.items) == (question.answer == "yes")
        if negatives == "adversarial" and question.answer == "no":
            assert any(set(item) & set(other) for other in scene.items)


def test_always_yes_is_half_right_and_biased() -> None:
    expected = [question.answer for question in probes("random", 10)]
    result = yes_no(["yes"] * len(expected), expected)
    assert (result.accuracy, result.recall, result.yes_share) == (0.5, 1, 1)
    assert yes_no(["maybe"], ["no"]).true_no == 1


def _request(*args: Any) -> Any:
    return SimpleNamespace(args=args)


def test_requests_of_lmms_eval_are_answered_in_their_order(pocket: VisionLanguageModel) -> None:
    adapter = Requests(pocket, batch_size=2)
    adapter.task_dict = {"choice": {"test": SAMPLES}}
    tail = [(lambda doc: [doc["image"]], i, "choice", "test") for i in range(3)]
    stems = [split_options(sample["question"])[0] for sample in SAMPLES[:3]]
    settings = [{"max_new_tokens": 8}, {"max_new_tokens": 4}, {"max_new_tokens": 8, "until": [" "]}]
    requests = [_request(stem, each, *rest) for stem, each, rest in zip(stems, settings, tail, strict=True)]
    answers = adapter.generate_until(requests)
    plain = pocket.generate(prompt=stems, image=[s["image"] for s in SAMPLES[:3]], max_new_tokens=8)
    assert answers[0] == plain[0] and answers[2] == plain[2].split(" ")[0]
    scored = adapter.loglikelihood(
        [_request(stem, f" {text}", *rest) for stem, text, rest in zip(stems, plain, tail, strict=True)]
    )
    assert all(greedy and value <= 0 for value, greedy in scored)
    with pytest.raises(NotImplementedError, match="one round"):
        adapter.generate_until_multi_round([])


def test_the_adapter_is_an_lmms_where_lmms_eval_is_installed(pocket: VisionLanguageModel) -> None:
    api = pytest.importorskip("lmms_eval.api.model", reason="lmms-eval is not installed")
    adapter = lmms_model(pocket, batch_size=4)
    assert isinstance(adapter, api.lmms) and adapter.world_size == 1
    adapter.task_dict = {"choice": {"test": SAMPLES}}
    request = _request("What is this?", {"max_new_tokens": 2}, lambda doc: [doc["image"]], 0, "choice", "test")
    assert isinstance(adapter.generate_until([request])[0], str)


TASK = """
task: thimble_choice
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {folder}/choice.parquet}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function task.doc_to_visual
doc_to_text: !function task.doc_to_text
doc_to_target: !function task.doc_to_target
generation_kwargs: {{max_new_tokens: 8, temperature: 0, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
metadata: [{{version: 0.0}}]
"""
TASK_CODE = """
from nanovlm.evaluation.multiple_choice import split_options

def doc_to_visual(doc):
    return [doc["image"].convert("RGB")]

def doc_to_text(doc, lmms_eval_specific_kwargs=None):
    return split_options(doc["question"])[0]

def doc_to_target(doc):
    return split_options(doc["question"])[1][doc["answer"]]
"""


def test_lmms_eval_runs_a_task_of_our_own(pocket: VisionLanguageModel, tmp_path: Path) -> None:
    pytest.importorskip("lmms_eval.evaluator", reason="lmms-eval is not installed")
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    load_multiple_choice(6).to_parquet(tmp_path / "choice.parquet")
    (tmp_path / "thimble_choice.yaml").write_text(TASK.format(folder=tmp_path))
    (tmp_path / "task.py").write_text(TASK_CODE)
    tasks = TaskManager(include_path=str(tmp_path), include_defaults=False)
    results = simple_evaluate(model=lmms_model(pocket, 4), tasks=["thimble_choice"], task_manager=tasks, batch_size=4)
    assert results["results"]["thimble_choice"]["exact_match,none"] > 0.8


def test_without_lmms_eval_one_sentence_says_what_to_install(
    pocket: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "lmms_eval.api.model", None)
    with pytest.raises(ImportError, match="pip install lmms-eval"):
        lmms_model(pocket)
