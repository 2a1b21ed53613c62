"""Chapter 16: a decoder that remembers nothing itself, and a test of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from nanovlm.config import LMConfig
from nanovlm.course.exercises import common
from nanovlm.course.judge.exercise import Case, Exercise, with_weights
from nanovlm.inference.onnx_graphs import GrownCache
from nanovlm.models.language_model import LanguageModel

VOCABULARY = 11
Past = list[Tensor]  # keys and values of the two blocks in turn, [1, 1, seen, 8] each
Decode = Callable[[int, Past], tuple[Tensor, Past]]  # token, past -> logits [11], and the past with the token
EXAMPLE = [9, 2, 6]  # what the wrong graphs were exported with


@cache
def decoder() -> LanguageModel:
    config = LMConfig(16, 24, 2, num_heads=2, num_kv_heads=1, vocab_size=VOCABULARY, max_positions=32, rope_base=50.0)
    model = with_weights(LanguageModel(config)).eval()
    with torch.no_grad():
        model.token_embedding.weight.mul_(8)  # so that every token changes the logits visibly
    return model


@torch.no_grad()
def _read(ids: list[int], past: Past) -> tuple[Tensor, Past]:
    """Logits [T, 11] of the tokens read behind `past`, and the past with them."""
    model, grown = decoder(), GrownCache(past, 2)
    logits = model.head(model(model.token_embedding(torch.tensor([ids])), cache=grown))[0]
    return logits, grown.tensors()


def prefill(ids: list[int]) -> tuple[Tensor, Past]:
    """The right prefill: the logits behind the prompt, [11], and the cache after it."""
    logits, past = _read(ids, [])
    return logits[-1], past


def whole(ids: list[int]) -> Tensor:
    """The model without a cache: the logits behind each token, [T, 11]."""
    return _read(ids, [])[0]


def decode(token: int, past: Past) -> tuple[Tensor, Past]:
    """The right decode graph."""
    logits, present = _read([token], past)
    return logits[-1], present


# -- wrong graphs ------------------------------------------------------------------------------------------------------


def cache_of_the_example(token: int, past: Past) -> tuple[Tensor, Past]:
    """The cache was traced as a constant."""
    return decode(token, prefill(EXAMPLE)[1])


def position_of_the_example(token: int, past: Past) -> tuple[Tensor, Past]:
    """The length of the cache was traced as a number, so that each token has the same position."""
    model, grown = decoder(), GrownCache(past, 2)
    grown.length = len(EXAMPLE)
    with torch.no_grad():
        logits = model.head(model(model.token_embedding(torch.tensor([[token]])), cache=grown))[0, -1]
    return logits, grown.tensors()


def past_comes_back(token: int, past: Past) -> tuple[Tensor, Past]:
    """The outputs are the inputs: what was read is forgotten."""
    return decode(token, past)[0], past


def the_new_token_alone(token: int, past: Past) -> tuple[Tensor, Past]:
    logits, present = decode(token, past)
    return logits, [x[:, :, -1:] for x in present]


def keys_and_values_change_places(token: int, past: Past) -> tuple[Tensor, Past]:
    logits, (k, v, *rest) = decode(token, past)
    return logits, [v, k, *rest]


def remembers_itself() -> Decode:
    """The first conversation stays in the graph, and later ones go on from it."""
    kept: Past = []

    def decode_on(token: int, past: Past) -> tuple[Tensor, Past]:
        nonlocal kept
        logits, kept = decode(token, kept or past)
        return logits, kept

    return decode_on


def writes_into_the_past(token: int, past: Past) -> tuple[Tensor, Past]:
    """Right, and spoils what it was given: a second answer from the same prompt starts from another cache."""
    logits, present = decode(token, past)
    for x in past:
        x[:, :, 0] = 0.0
    return logits, present


def fresh() -> dict[str, Decode]:
    """What is wrong -> such a graph, new for each test."""
    return {
        "the cache of the export's example is a constant in the graph": cache_of_the_example,
        "the position is a constant": position_of_the_example,
        "the cache comes back as it went in": past_comes_back,
        "the cache that comes back holds the new token alone": the_new_token_alone,
        "keys and values of the first block change places": keys_and_values_change_places,
        "the graph keeps the first conversation to itself": remembers_itself(),
        "the cache that is handed in is overwritten": writes_into_the_past,
    }


# -- compress.graph_test -----------------------------------------------------------------------------------------------


def check_graph(decode: Decode) -> None:
    """Two conversations of several steps, and the same prompt continued twice."""
    for prompt, answer in (([3, 1], [4, 1, 5]), ([2, 7, 1, 8], [2, 8, 1])):
        ids, past = list(prompt), prefill(prompt)[1]
        for token in answer:
            ids.append(token)
            logits, past = decode(token, past)
            torch.testing.assert_close(logits, whole(ids)[-1], atol=1e-4, rtol=1e-4)
    _, past = prefill([3, 1, 4])
    for token in (5, 9):
        logits, _ = decode(token, past)
        torch.testing.assert_close(logits, whole([3, 1, 4, token])[-1], atol=1e-4, rtol=1e-4)


def caught(test: Callable[[Any], None]) -> int:
    """How many wrong graphs make the learner's test fail, after it has passed with the right one."""
    return common.caught(test, decode, fresh(), "decode graph")


GRAPH = Exercise(
    id="compress.graph_test",
    chapter="16",
    title="Write the test: does the graph take its memory from outside?",
    difficulty=3,
    minutes=18,
    why="An exporter follows one example. Whatever it takes for a constant is right for that example, and nothing else "
    "raises an error: the exported model answers fluently, from another conversation's cache.",
    hints=(
        "You have the model without a cache, whole(ids), and so the right logits for any sequence. On which sequences would "
        "a graph with a constant in it still agree?",
        "Prompts of two lengths, several steps for each, every one compared with whole(ids)[-1]. The past of one step is the "
        "input of the next. Then start twice from one past, with two tokens: both have to be right.",
        "for prompt, answer in (([3, 1], [4, 1, 5]), (…, …)):\n"
        "    ids, past = list(prompt), prefill(prompt)[1]\n"
        "    for token in answer:\n"
        "        ids.append(token)\n"
        "        logits, past = decode(token, past)\n"
        "        torch.testing.assert_close(logits, …, atol=1e-4, rtol=1e-4)\n"
        "and once more from a single past, with two different tokens",
    ),
    reference=check_graph,
    cases=lambda: [Case(note=f"your test, on a right decode graph and on {len(fresh())} wrong ones")],
    call=caught,
)


def _steps(decode: Decode, prompt: list[int], answer: list[int], close: Callable[..., None] | None = None) -> None:
    compare = close or (lambda a, b: torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4))
    ids, past = list(prompt), prefill(prompt)[1]
    for token in answer:
        ids.append(token)
        logits, past = decode(token, past)
        compare(logits, whole(ids)[-1])


@GRAPH.mistake("Your test asserts nothing that can fail: compare the logits with whole(ids)[-1].")
def _(decode):
    _steps(decode, [3, 1], [4, 1], lambda a, b: None)


@GRAPH.mistake("Your test returns a bool. A test speaks by assert, so that pytest, and everybody else, hears it.")
def _(decode):
    return True


@GRAPH.mistake(
    "Your test takes one step behind each prompt. What comes back as the cache is an input of the next step: take several, "
    "each with the past of the one before."
)
def _(decode):
    for prompt in ([3, 1, 4], [2, 7, 1]):
        _steps(decode, prompt, [5])


@GRAPH.mistake(
    "Your test takes one step behind prompts of two lengths. What comes back as the cache is an input of the next step: take "
    "several, each with the past of the one before."
)
def _(decode):
    for prompt in ([3, 1], [2, 7, 1, 8]):
        _steps(decode, prompt, [5])


@GRAPH.mistake("Your test takes one step of one conversation, and nearly every wrong graph agrees on that.")
def _(decode):
    _steps(decode, [3, 1, 4], [5])


@GRAPH.mistake(
    "Your test has one conversation. A graph that keeps it to itself is found in a second conversation, and one that "
    "overwrites its input where two answers start from one past."
)
def _(decode):
    _steps(decode, [3, 1], [4, 1, 5])


@GRAPH.mistake(
    "Your test never starts twice from the same past, so that a graph that overwrites what it is given gets through."
)
def _(decode):
    _steps(decode, [3, 1], [4, 1, 5])
    _steps(decode, [2, 7, 1, 8], [2, 8, 1])


@GRAPH.mistake(
    "Your test looks at shapes alone. Six of the seven wrong graphs have the right ones, or nearly: compare logits."
)
def _(decode):
    _, past = prefill([3, 1, 4])
    logits, present = decode(5, past)
    assert logits.shape == (VOCABULARY,) and all(x.shape[2] == 4 for x in present)


@GRAPH.mistake(
    "Your test compares the graph with itself: the same mistake on both sides. Compare it with whole(ids)[-1]."
)
def _(decode):
    _, past = prefill([3, 1, 4])
    torch.testing.assert_close(decode(5, past)[0], decode(5, past)[0])


@GRAPH.mistake(
    "Your test fails with the right graph. If it asks for equality to the last bit: a sum in another order has other last bits, "
    "so give a tolerance."
)
def _(decode):
    raise AssertionError
