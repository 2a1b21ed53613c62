"""Chapter 02: attention that never holds all scores, a test that notices a wrong attention, and one to mend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nanovlm.course.exercises import common
from nanovlm.course.exercises.ch02.attention import WRONG_ATTENTION, attend
from nanovlm.course.exercises.common import expect_same_gradients, noise
from nanovlm.course.judge.exercise import Case, Exercise, expect
from nanovlm.course.largest_tensor import largest_tensor

# -- vit.streaming_attention -------------------------------------------------------------------------------------------


def streaming_attention(q: Tensor, k: Tensor, v: Tensor, block: int) -> Tensor:
    """A running maximum, a running sum and a running mixture for each query."""
    best = q.new_full((*q.shape[:-1], 1), -torch.inf)
    total, mixed = torch.zeros_like(best), torch.zeros_like(q[..., :1] * v[..., :1, :])
    for start in range(0, k.shape[-2], block):
        keys, values = k[..., start : start + block, :], v[..., start : start + block, :]
        scores = q @ keys.mT / q.shape[-1] ** 0.5
        new = torch.maximum(best, scores.amax(-1, keepdim=True))
        weights, shrink = (scores - new).exp(), (best - new).exp()
        total = total * shrink + weights.sum(-1, keepdim=True)
        mixed = mixed * shrink + weights @ values
        best = new
    return mixed / total


STREAMING = Exercise(
    id="vit.streaming_attention",
    chapter="02",
    title="Attention that never holds all scores",
    difficulty=3,
    minutes=25,
    why="The table of scores grows with the square of the sequence, and is what runs out of memory first. Every fast "
    "attention kernel avoids it with this idea, the online softmax.",
    hints=(
        "Go through the keys block by block. What must you remember of the blocks before, so that a softmax over all "
        "keys can be finished at the end?",
        "Keep three things for each query: the largest score so far, the sum of exp(score - largest), and the values "
        "mixed with those weights. When a block brings a larger score, the sum and the mixture so far have to shrink "
        "by the same factor. Divide at the end.",
        "for keys, values in blocks:\n"
        "    scores = q @ keys.mT / head_dim ** 0.5\n"
        "    new = torch.maximum(best, scores.amax(-1, keepdim=True))\n"
        "    weights, shrink = (scores - new).exp(), …\n"
        "    total = total * shrink + weights.sum(-1, keepdim=True)\n"
        "    mixed = mixed * shrink + weights @ values\n"
        "    best = new\n"
        "return mixed / total",
    ),
    reference=streaming_attention,
    cases=lambda: [
        Case(noise(3, 4), noise(6, 4, seed=1), noise(6, 4, seed=2), 2, note="three queries, six keys in blocks of 2"),
        Case(
            3 * noise(2, 2, 5, 6), 3 * noise(2, 2, 7, 6, seed=1), noise(2, 2, 7, 6, seed=2), 3,
            note="two pictures, two heads, seven keys in blocks of 3: the last block is smaller",
        ),
        Case(-200 - noise(1, 1, 2, 9).abs(), noise(1, 1, 4, 9, seed=1).abs(), noise(1, 1, 4, 9, seed=2), 4,
             note="scores in the hundreds below zero, one block"),
    ],
    axes="batch num_heads num_queries head_dim",
)  # fmt: skip


@STREAMING.property("scores in the hundreds do no harm")
def _(fn) -> None:
    q, k, v = (noise(1, 1, 6, 4, seed=i) for i in range(3))
    for sign in (300, -300):
        out = fn(sign * q, k, v, 2)
        right = attend(sign * q, k, v)
        expect(
            torch.allclose(out, right, atol=1e-4),
            "With scores in the hundreds the result is wrong or not finite: exp() over- or underflows. Subtract the "
            "largest score so far.",
        )


@STREAMING.property("gradients reach queries, keys and values")
def _(fn) -> None:
    expect_same_gradients(lambda *x: fn(*x, 2), attend, *(noise(1, 2, 5, 6, seed=i) for i in range(3)))


def _score(fn: Callable[..., Tensor], length: int = 96, block: int = 8) -> int:
    """Numbers in the largest tensor that is made for so many queries and keys of head_dim 4; 768 is as good as it gets
    without blocks of queries."""
    q, k, v = (noise(1, 1, length, 4, seed=i) for i in range(3))
    return largest_tensor(fn, q, k, v, block)[1]


@STREAMING.property("no tensor is larger than one block of scores")
def _(fn) -> None:
    held, bound, whole = _score(fn), 2 * 96 * 8, 96 * 96
    expect(
        held <= bound,
        f"With 96 queries and 96 keys in blocks of 8 your largest tensor holds {held:,} numbers. One block of scores "
        f"holds {96 * 8:,}, the whole table {whole:,}: some tensor grows with all of the keys.",
    )


def _block_by_block(finish: str) -> Callable[..., Tensor]:
    """Wrong versions of the loop."""

    def version(q: Tensor, k: Tensor, v: Tensor, block: int) -> Tensor:
        best = q.new_full((*q.shape[:-1], 1), -torch.inf)
        total, mixed, count = torch.zeros_like(best), torch.zeros_like(q[..., :1] * v[..., :1, :]), 0
        for start in range(0, k.shape[-2], block):
            keys, values = k[..., start : start + block, :], v[..., start : start + block, :]
            scores = q @ keys.mT / (1 if finish == "not scaled" else q.shape[-1] ** 0.5)
            if finish == "softmax of each":
                mixed, count = mixed + scores.softmax(-1) @ values, count + 1
                continue
            if finish == "last block":
                mixed = scores.softmax(-1) @ values
                continue
            new = torch.maximum(best, scores.amax(-1, keepdim=True))
            if finish == "own maximum":
                new = scores.amax(-1, keepdim=True)
            weights, shrink = (scores - new).exp(), (best - new).exp()
            if finish == "upside down":
                shrink = torch.where(best.isinf(), 0.0, (new - best).exp())
            total = total * (1 if finish in ("sum not shrunk", "nothing shrunk", "own maximum") else shrink)
            mixed = mixed * (1 if finish in ("mixture not shrunk", "nothing shrunk", "own maximum") else shrink)
            total, mixed, best = total + weights.sum(-1, keepdim=True), mixed + weights @ values, new
        if finish == "softmax of each":
            return mixed / count
        if finish == "summed softmax":
            return mixed
        return mixed if finish in ("not divided", "last block") else mixed / total

    return version


for _name, _sentence in {
    "softmax of each": "Each block has a softmax of its own, and the results are averaged. A block with low scores must "
    "count less than one with high scores: keep the sum of exp over all blocks.",
    "last block": "Only the last block of keys counts: what the earlier ones gave is overwritten.",
    "sum not shrunk": "The sum does not shrink when a larger score comes, but the mixture does. Both hold exp(score - best) "
    "for the old best.",
    "mixture not shrunk": "The mixture does not shrink when a larger score comes, but the sum does. Both hold exp(score - "
    "best) for the old best.",
    "nothing shrunk": "Neither the sum nor the mixture shrinks when a larger score comes, so early blocks keep the weight "
    "that they had beside a smaller best.",
    "own maximum": "Each block subtracts its own maximum, and what was added before does not know of it. Use the largest "
    "score so far, and shrink the earlier sum and mixture.",
    "upside down": "The factor is upside down: exp(old best - new best), which is at most 1.",
    "not divided": "The mixture is not divided by the sum at the end.",
    "not scaled": "The scores are not scaled. Divide them by the square root of head_dim.",
}.items():
    STREAMING.mistake(_sentence)(_block_by_block(_name))


@STREAMING.mistake(
    "No maximum is subtracted before exp(), so that it over- or underflows. Subtract the largest score so far."
)
def _(q, k, v, block):
    weights = (q @ k.mT / q.shape[-1] ** 0.5).exp()
    return weights @ v / weights.sum(-1, keepdim=True)


@STREAMING.mistake("The last, smaller block is left out: the keys need not divide by the block.")
def _(q, k, v, block):
    whole = k.shape[-2] // block * block
    return streaming_attention(q, k[..., :whole, :], v[..., :whole, :], block)


@STREAMING.mistake("The first block starts at key block, so that the first keys are never read.")
def _(q, k, v, block):
    return (
        streaming_attention(q, k[..., block:, :], v[..., block:, :], block)
        if k.shape[-2] > block
        else v[..., :0, :] * q
    )


@STREAMING.mistake("Only the first block of keys is read: the return is inside the loop.")
def _(q, k, v, block):
    return attend(q, k[..., :block, :], v[..., :block, :])


# -- vit.test_attend ---------------------------------------------------------------------------------------------------

_PLANTED = {
    "no scale": "The scores are not scaled",
    "division by head_dim": "The scores are divided by head_dim",
    "softmax over the queries": "The softmax runs over the queries",
    "no softmax": "There is no softmax",
    "a scale after the softmax": "The scale comes after",
    "keys mixed instead of values": "The keys are mixed",
    "queries and keys swapped": "Keys and queries",
    "a causal mask": "This is causal",
}
PLANTED = {
    name: next(version for sentence, version in WRONG_ATTENTION.items() if sentence.startswith(beginning))
    for name, beginning in _PLANTED.items()
}


def test_attend(attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Against loops, with other numbers of queries and keys."""
    q, k, v = noise(4, 3), noise(4, 3, seed=1), noise(4, 3, seed=2)
    out = attend(q, k, v)
    for i in range(4):
        scores = torch.tensor([float(q[i] @ k[j]) / 3**0.5 for j in range(4)])
        weights = scores.exp() / scores.exp().sum()
        assert torch.allclose(out[i], sum(weights[j] * v[j] for j in range(4)), atol=1e-5)


test_attend.__test__ = False  # type: ignore[attr-defined]  # no test of ours: pytest would call it


def caught(test: Callable[[Any], None]) -> int:
    """How many of the planted versions make the learner's test fail, after it has passed with a right one."""
    return common.caught(test, attend, PLANTED, "attention")


TEST_ATTEND = Exercise(
    id="vit.test_attend",
    chapter="02",
    title="Write the test that tells attentions apart",
    difficulty=2,
    minutes=12,
    why="Eight wrong attentions have the right shape. A test of a few lines finds all of them, provided that its "
    "example is unkind: nothing in it may be symmetrical or equal by chance.",
    hints=(
        "Which example makes each mistake visible? If all scores are equal, no scale and no axis matters; if values "
        "equal keys, nobody can tell them apart.",
        "Take random q, k and v of few numbers. Write down what the output should be by another way than the one you "
        "test: loops over queries and keys, with exp and a sum.",
        "out = attend(q, k, v)\n"
        "for i in range(len(q)):\n"
        "    scores = torch.stack([(q[i] * k[j]).sum() for j in range(len(k))]) / …\n"
        "    weights = scores.exp() / scores.exp().sum()\n"
        "    assert torch.allclose(out[i], …, atol=1e-5)",
    ),
    reference=test_attend,
    cases=lambda: [Case(note=f"your test, on a right attention and on {len(PLANTED)} wrong ones")],
    call=caught,
)


@TEST_ATTEND.mistake(
    "Your test catches none: it asserts nothing, or looks at the shape alone, which every wrong version gets right. "
    "Compare numbers that you got in another way."
)
def _(attend):
    out = attend(noise(4, 3), noise(4, 3, seed=1), noise(4, 3, seed=2))
    assert out.shape == (4, 3) and out.isfinite().all()


@TEST_ATTEND.mistake(
    "Your test only shows that the weights sum to 1, as it does where all values are the same vector, and catches what "
    "breaks that. Compare the mixture of different values."
)
def _(attend):
    same = torch.ones(4, 1) * noise(3)
    assert torch.allclose(attend(noise(4, 3), noise(4, 3, seed=1), same), same, atol=1e-5)


@TEST_ATTEND.mistake(
    "Queries, keys and values are one tensor in your example, so that a version that takes one for the other gets "
    "through. Make them different."
)
def _(attend):
    x = noise(4, 3)
    assert torch.allclose(attend(x, x, x), (x @ x.T / 3**0.5).softmax(-1) @ x, atol=1e-5)


@TEST_ATTEND.mistake(
    "Your example has a single query and a single key: its weight is 1 whatever the scores are. Take several."
)
def _(attend):
    v = noise(1, 3, seed=2)
    assert torch.allclose(attend(noise(1, 3), noise(1, 3, seed=1), v), v, atol=1e-5)


@TEST_ATTEND.mistake(
    "The scores of your example are all zero, so every weight is equal and no scale can be seen. Take random queries."
)
def _(attend):
    v = noise(4, 3, seed=2)
    assert torch.allclose(attend(torch.zeros(4, 3), noise(4, 3, seed=1), v), v.mean(0).expand(4, 3), atol=1e-5)
