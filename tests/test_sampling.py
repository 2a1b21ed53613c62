"""How the next token is chosen: temperature, top-k, top-p, beams; each against a slow and plain reference."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from nanovlm.inference.sampling import BeamSearch, Sampler, keep_top_k, keep_top_p
from nanovlm.models.vision_language_model import VisionLanguageModel
from tests.tiny import END, IMAGE, tiny_model

weights = st.lists(st.integers(1, 1000), min_size=1, max_size=12)


def log(weights: list[int]) -> Tensor:
    """[1, len(weights)]"""
    return torch.tensor([weights], dtype=torch.float64).log()


def kept_weights(logits: Tensor, weights: list[int]) -> list[int]:
    return sorted((w for w, kept in zip(weights, logits[0].isfinite(), strict=True) if kept), reverse=True)


@given(weights=weights, k=st.integers(1, 15))
def test_top_k_keeps_the_k_likeliest(weights: list[int], k: int) -> None:
    kept = keep_top_k(log(weights), k)
    assert kept_weights(kept, weights) == sorted(weights, reverse=True)[:k]
    assert torch.equal(kept[kept.isfinite()], log(weights)[kept.isfinite()]), "what is kept keeps its logit"


@given(weights=weights, p=st.fractions(0, 1).filter(bool))
def test_top_p_keeps_the_fewest_that_reach_p(weights: list[int], p: Fraction) -> None:
    reached, expected = Fraction(0), []
    for weight in sorted(weights, reverse=True):
        expected.append(weight)
        reached += Fraction(weight, sum(weights))
        assume(p == 1 or abs(reached - p) > 1e-9)  # exactly at p, rounding decides
        if reached >= p:
            break
    kept = keep_top_p(log(weights), float(p))
    assert kept_weights(kept, weights) == expected
    assert torch.equal(kept[kept.isfinite()], log(weights)[kept.isfinite()])


@given(scale=st.floats(0.1, 30))
def test_top_p_of_1_keeps_every_token_even_in_float32(scale: float) -> None:
    logits = torch.randn(2, 5000) * scale
    assert torch.equal(keep_top_p(logits, 1.0), logits)


def test_top_p_keeps_the_token_that_crosses_the_threshold() -> None:
    logits = torch.tensor([[0.1, 0.6, 0.3], [0.3, 0.1, 0.6]]).log()
    assert keep_top_p(logits, 0.5).isfinite().tolist() == [[False, True, False], [False, False, True]]
    assert keep_top_p(logits, 0.7).isfinite().tolist() == [[False, True, True], [True, False, True]]
    assert keep_top_p(logits, 1e-9).isfinite().sum(1).tolist() == [1, 1], "the likeliest always stays"


def frequencies(logits: Tensor, draws: int = 20_000, **settings: float | int | None) -> list[float]:
    settings = {"temperature": 1.0, "top_k": None, "top_p": None} | settings
    sampler = Sampler(**settings)
    torch.manual_seed(0)
    return (sampler(logits.expand(draws, -1)).bincount(minlength=logits.shape[1]) / draws).tolist()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_samples_follow_the_tempered_distribution(temperature: float) -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    expected = [math.exp(x / temperature) for x in logits[0].tolist()]
    expected = [x / sum(expected) for x in expected]
    assert frequencies(logits, temperature=temperature) == pytest.approx(expected, abs=0.015)


def test_temperature_comes_before_top_p() -> None:
    """At temperature 2 two tokens hold only 67 %, so that a third one is needed to reach 75 %."""
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    drawn = {t: [f > 0 for f in frequencies(logits, temperature=t, top_p=0.75)] for t in (1.0, 2.0)}
    assert drawn == {1.0: [True, True, False, False], 2.0: [True, True, True, False]}


def test_top_k_comes_before_top_p() -> None:
    """Of the two that top-k leaves, the first alone holds 0.5 / 0.8 = 62.5 %."""
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    assert [f > 0 for f in frequencies(logits, top_k=2, top_p=0.6)] == [True, False, False]


@pytest.mark.parametrize("temperature", [0.0, 1e-30, 1e-42])
def test_a_cold_sampler_takes_the_likeliest(temperature: float) -> None:
    logits = torch.tensor([[30.0, 31.0, -40.0], [5.0, -5.0, 4.0]])
    assert Sampler(temperature)(logits).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"temperature": -1.0}, "temperature must be 0"),
        ({"temperature": float("nan")}, "temperature must be 0"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"top_p": 0.0}, "top_p must be above 0"),
        ({"top_p": 1.5}, "top_p must be above 0"),
        ({"num_beams": 0}, "must be at least 1"),
        ({"max_new_tokens": 0}, "must be at least 1"),
        ({"num_beams": 2, "temperature": 1.0}, "Beam search is deterministic"),
        ({"num_beams": 2, "num_generations": 2}, "Beam search is deterministic"),
    ],
    ids=str,
)
def test_settings_without_a_meaning_are_refused(model: VisionLanguageModel, settings: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        model.generate(torch.tensor([[7]]), **settings)


def test_a_seed_fixes_the_samples_and_leaves_the_global_generator_alone(model: VisionLanguageModel) -> None:
    ids = torch.tensor([[7, 8, 9]])
    before = torch.get_rng_state()
    first = model.generate(ids, temperature=1.0, num_generations=4, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(model.generate(ids, temperature=1.0, num_generations=4, seed=3), first)
    assert not torch.equal(model.generate(ids, temperature=1.0, num_generations=4, seed=4), first)
    assert len({tuple(row) for row in first.tolist()}) > 1, "several generations are several samples"


# -- beams ------------------------------------------------------------------------------------------------------------


def score(model: VisionLanguageModel, prompt: list[int], answer: list[int], length_penalty: float) -> float:
    log_probs = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
    total = sum(log_probs[len(prompt) - 1 + i, token].item() for i, token in enumerate(answer))
    return total / len(answer) ** length_penalty


def all_answers(vocab_size: int, longest: int) -> list[list[int]]:
    """Every sequence that ends with END, or is as long as it may be."""
    words = [token for token in range(vocab_size) if token != END]
    ended = [[*w, END] for n in range(longest) for w in product(words, repeat=n)]
    return ended + [list(w) for w in product(words, repeat=longest)]


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 3.0, -1.0])
@pytest.mark.parametrize("seed", [1, 2, 5])  # their best answers change with the penalty
@torch.no_grad()
def test_beams_enough_for_everything_find_the_best_answer(seed: int, length_penalty: float) -> None:
    model = tiny_model(None, seed=seed, vocab_size=6, num_blocks=1)
    model.decoder.token_embedding.weight *= 0.5  # closer to even, so that length matters
    prompt = [2, 5, 3]
    answers = all_answers(6, longest=3)
    best = max(answers, key=lambda answer: score(model, prompt, answer, length_penalty))
    options = {"max_new_tokens": 3, "num_beams": 6**3, "length_penalty": length_penalty}
    found = model.generate(torch.tensor([prompt]), **options)[0].tolist()
    assert found[: len(best)] == best
    assert set(found[len(best) :]) <= {END}


def plain_beam_search(model: VisionLanguageModel, prompt: list[int], num_beams: int, steps: int) -> list[int]:
    """Beam search as one would write it down: every step reads every beam from its beginning."""
    beams: list[tuple[list[int], float]] = [([], 0.0)]
    for _ in range(steps):
        candidates = [beam for beam in beams if END in beam[0]]
        for answer, total in beams:
            if END not in answer:
                log_probs = model(torch.tensor([prompt + answer])).logits[0, -1].log_softmax(-1)
                candidates += [([*answer, token], total + p) for token, p in enumerate(log_probs.tolist())]
        beams = sorted(candidates, key=lambda beam: beam[1] / len(beam[0]), reverse=True)[:num_beams]
    return beams[0][0]


@pytest.mark.parametrize("num_beams", [2, 5])
@torch.no_grad()
def test_beams_go_on_from_what_they_have_seen_themselves(num_beams: int) -> None:
    model = tiny_model(None)
    model.decoder.token_embedding.weight *= 0.3  # closer to even, so that beams change places
    for first in range(6, 14):
        prompt = [first, first + 5, 2 * first]
        found = model.generate(torch.tensor([prompt]), num_beams=num_beams, max_new_tokens=6)[0].tolist()
        expected = plain_beam_search(model, prompt, num_beams, steps=6)
        assert found[: len(expected)] == expected


def test_length_penalty_chooses_between_short_and_long() -> None:
    """By its sum an answer of one token wins, by its mean one of two."""
    best = {}
    for penalty in (0.0, 2.0):
        beams = BeamSearch(1, 2, penalty, torch.device("cpu"))
        tokens, _ = beams(torch.tensor([[0.0, 1.0, 0.9]]).expand(2, -1), torch.zeros(2, dtype=torch.bool), END)
        assert tokens.tolist() == [END, 2], "the likeliest two, once each"
        tokens, rows = beams(torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 3.0]]), tokens == END, END)
        best[penalty] = (tokens[0].item(), rows[0].item())
    assert best == {0.0: (END, 0), 2.0: (2, 1)}


@torch.no_grad()
def test_one_beam_is_greedy() -> None:
    beam = BeamSearch(3, 1, 1.0, torch.device("cpu"))
    finished = torch.zeros(3, dtype=torch.bool)
    for _ in range(4):
        logits = torch.randn(3, 9)
        tokens, rows = beam(logits, finished, END)
        assert tokens.equal(logits.argmax(-1)) and rows.tolist() == [0, 1, 2]


def test_beams_of_a_batch_are_those_of_each_prompt_alone(model: VisionLanguageModel) -> None:
    prompts = [[7, 8, 9, 10, 11], [12], [13, 14, 15]]
    ids, real = torch.full((3, 5), IMAGE + 1), torch.zeros(3, 5, dtype=torch.long)
    for i, prompt in enumerate(prompts):
        ids[i, 5 - len(prompt) :], real[i, 5 - len(prompt) :] = torch.tensor(prompt), 1
    options = {"num_beams": 3, "max_new_tokens": 6}
    together = model.generate(ids, None, real, **options)
    alone = [model.generate(torch.tensor([prompt]), **options)[0].tolist() for prompt in prompts]
    assert [row[: len(a)] for row, a in zip(together.tolist(), alone, strict=True)] == alone
    greedy = model.generate(ids, None, real, max_new_tokens=6)
    assert not torch.equal(together, greedy), "beams that never differ from greedy search for nothing"
