"""Chapter 12's checks: what one who is nearly right is told."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import Tensor, nn

from nanovlm.config import VLMConfig
from nanovlm.course.exercises.ch12.bugs import SharedHeads
from nanovlm.course.exercises.ch12.costs import _shares, shares_of
from nanovlm.course.exercises.ch12.reading import Projector
from nanovlm.course.judge.engine import judge
from nanovlm.course.judge.exercise import load_exercises
from nanovlm.models.modality_projector import pixel_shuffle

EXERCISES = load_exercises()


def told(exercise_id: str, learner: Callable[..., object]) -> str:
    result = judge(EXERCISES[exercise_id], learner)
    assert not result.passed
    return str(result)


def scaled(**factors: float) -> Callable[[VLMConfig, int], dict[str, float]]:
    """Shares in which these parts have so many times their FLOPs."""

    def shares(config: VLMConfig, num_text_tokens: int) -> dict[str, float]:
        flops = {part: share * factors.get(part, 1) for part, share in shares_of(config, num_text_tokens).items()}
        return {part: count / sum(flops.values()) for part, count in flops.items()}

    return shares


def test_the_part_that_is_wrong_is_named_and_no_other() -> None:
    assert "vision_encoder, projector and head fit each other." in told("trace.flops", scaled(decoder=1.5))
    assert "Measured by them, decoder has 1.5 times" in told("trace.flops", scaled(decoder=1.5))
    assert "Measured by them, vision_encoder has 0.25 times" in told("trace.flops", scaled(vision_encoder=0.25))
    assert "decoder has 3 and head has 0.5 times" in told("trace.flops", scaled(decoder=3, head=0.5))


def test_one_of_two_mistakes_at_once_is_not_named_as_the_only_one() -> None:
    words = told("trace.flops", lambda *args: _shares(*args, no_conv=True, head_line=1))
    assert "vision_encoder has" in words and "head has" in words and "convolution" not in words


@pytest.mark.parametrize(("times", "kind"), [(1e7, "These are FLOPs"), (100, "These are percent"), (0.9, "Return")])
def test_shares_sum_to_1(times: float, kind: str) -> None:
    words = told("trace.flops", lambda *args: {part: times * share for part, share in shares_of(*args).items()})
    assert f"{kind}" in words and "shares that sum to 1" in words


class OtherName(nn.Module):
    def __init__(self, vision_dim: int, language_dim: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.layer_norm = nn.LayerNorm(vision_dim)
        self.proj = nn.Linear(vision_dim * factor**2, language_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(pixel_shuffle(self.layer_norm(x), self.factor))


class NoNorm(Projector):
    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        del self.norm

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.tokens(x))


def test_another_name_is_no_wrong_number() -> None:
    assert "Keep the name `norm`: yours is called `layer_norm`." in told("trace.bug_projector", OtherName)
    assert "Keep the name `norm`: your module has none." in told("trace.bug_projector", NoNorm)


class WideKeys(SharedHeads):
    def __init__(self, dim: int, num_heads: int, num_kv_heads: int) -> None:
        super().__init__(dim, num_heads, num_heads)


class OneCopied(SharedHeads):
    copied = True  # the keys

    def share(self, x: Tensor, is_key: bool) -> Tensor:
        if is_key == self.copied:
            return super().share(x, is_key)
        return x.unflatten(-1, (self.num_kv_heads, -1)).transpose(1, 2)


class ValuesCopied(OneCopied):
    copied = False


class FusedKeysCopied(OneCopied):
    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k, v = self.share(self.k(x), True), self.share(self.v(x), False)
        return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def test_shared_heads_half_mended() -> None:
    assert "k.weight is [8, 8] and should be [4, 8]" in told("trace.bug_heads", WideKeys)
    for half in (OneCopied, FusedKeysCopied):
        assert "the values need the same copies as the keys" in told("trace.bug_heads", half)
    assert "the values need" not in told("trace.bug_heads", ValuesCopied)


def test_a_claim_is_one_word_a_dim() -> None:
    reference = EXERCISES["trace.symbolic_shapes"].reference
    words = told("trace.symbolic_shapes", lambda c: reference(c) | {"vision_encoder": "[B, 16, 16]"})
    assert "'[B, 16, 16]'" in words and "no brackets and no commas" in words
