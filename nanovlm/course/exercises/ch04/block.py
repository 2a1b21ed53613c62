"""Chapter 04: the block."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nanovlm.config import LMConfig
from nanovlm.course.exercises.ch04.attention import run_layer
from nanovlm.course.exercises.ch04.norm_and_mlp import SMALL
from nanovlm.course.exercises.common import expect_gradients, noise
from nanovlm.course.judge.exercise import Case, Exercise, expect, with_weights
from nanovlm.models.language_model import DecoderBlock, GroupedQueryAttention, RMSNorm, SwiGLU

# -- decoder.block -----------------------------------------------------------------------------------------------------


def run_block(cls, x: Tensor, config: LMConfig, padding=None, one_by_one: bool = False) -> Tensor:
    return run_layer(with_weights(cls(config), like=DecoderBlock(config)), x, config, padding, one_by_one)


BLOCK = Exercise(
    id="decoder.block",
    chapter="04",
    title="The block",
    difficulty=1,
    minutes=8,
    why="SmolLM2-135M stacks thirty of these blocks. The two additions keep a residual stream open, on which the gradient "
    "reaches the first block undiminished.",
    hints=(
        "Two halves of the same kind: normalise, work, add back. In the first the work is attention, in the second the "
        "MLP.",
        "Each half reads the normalised x and adds its result to the x that was not normalised. The second half works "
        "on what the first has made.",
        "x = x + self.attn(…, rope, mask, cache)\nreturn x + …            # the same with norm2 and mlp",
    ),
    reference=DecoderBlock,
    cases=lambda: [
        Case(noise(1, 3, 24), SMALL, note="three tokens of 24 numbers"),
        Case(noise(2, 4, 24, seed=1), SMALL, torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]]), note="two rows, one padded"),
        Case(noise(1, 4, 24, seed=2), SMALL, one_by_one=True, note="one token at a time, with a cache"),
    ],
    axes="batch length dim",
    call=run_block,
)


@BLOCK.property("gradients reach the input and every weight")
def _(cls) -> None:
    module, right = with_weights(cls(SMALL)), with_weights(DecoderBlock(SMALL))
    expect_gradients(lambda block, x: run_layer(block, x, SMALL), module, right, noise(1, 4, 24))


@BLOCK.property("norms take eps from the config")
def _(cls) -> None:
    config = LMConfig(**{**vars(SMALL), "rms_norm_eps": 0.5})
    x = noise(1, 3, 24)
    expect(
        torch.allclose(run_block(cls, x, config), run_block(DecoderBlock, x, config), atol=1e-5),
        "With another config.rms_norm_eps the result is wrong: hand it to both norms.",
    )


class _Block(nn.Module):
    """A block to build wrong versions from."""

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.norm1, self.norm2 = (RMSNorm(config.hidden_dim, config.rms_norm_eps) for _ in range(2))
        self.attn, self.mlp = GroupedQueryAttention(config), SwiGLU(config)

    def forward(self, x: Tensor, rope, mask, cache=None) -> Tensor:
        x = x + self.attn(self.norm1(x), rope, mask, cache)
        return x + self.mlp(self.norm2(x))


@BLOCK.mistake(
    "The norm comes after the addition, as in the first transformers (post-norm). Here each half normalises what it "
    "*reads*, and x itself passes unchanged."
)
class _(_Block):
    def forward(self, x: Tensor, rope, mask, cache=None) -> Tensor:
        x = self.norm1(x + self.attn(x, rope, mask, cache))
        return self.norm2(x + self.mlp(x))


@BLOCK.mistake("Nothing is added back: each half should add its result to the x that it read.")
class _(_Block):
    def forward(self, x: Tensor, rope, mask, cache=None) -> Tensor:
        return self.mlp(self.norm2(self.attn(self.norm1(x), rope, mask, cache)))


@BLOCK.mistake("You add to the normalised x. Add to the x that came in: the norm is for the half's own reading.")
class _(_Block):
    def forward(self, x: Tensor, rope, mask, cache=None) -> Tensor:
        x = self.norm1(x)
        x = self.norm2(x + self.attn(x, rope, mask, cache))
        return x + self.mlp(x)


@BLOCK.mistake(
    "The first half adds to the normalised x, so that what came in is lost. Add to x itself: only attention reads norm1."
)
class _(_Block):
    def forward(self, x: Tensor, rope, mask, cache=None) -> Tensor:
        x = self.norm1(x)
        x = x + self.attn(x, rope, mask, cache)
        return x + self.mlp(self.norm2(x))


@BLOCK.mistake("Both halves read the same x (a parallel block). Here the MLP reads what attention has just added to.")
class _(_Block):
    def forward(self, x: Tensor, rope, mask, cache=None) -> Tensor:
        return x + self.attn(self.norm1(x), rope, mask, cache) + self.mlp(self.norm2(x))


@BLOCK.mistake(
    "The two norms are swapped: attention reads norm1 of x, the MLP norm2. Trained weights know their places."
)
class _(_Block):
    def forward(self, x: Tensor, rope, mask, cache=None) -> Tensor:
        x = x + self.attn(self.norm2(x), rope, mask, cache)
        return x + self.mlp(self.norm1(x))


@BLOCK.mistake("The MLP comes first. Here attention does: tokens read from each other, then each works on what it has.")
class _(_Block):
    def forward(self, x: Tensor, rope, mask, cache=None) -> Tensor:
        x = x + self.mlp(self.norm2(x))
        return x + self.attn(self.norm1(x), rope, mask, cache)


@BLOCK.mistake("The mask does not reach attention, so padding can be seen. Hand it on: the third argument.")
class _(_Block):
    def forward(self, x: Tensor, rope, mask, cache=None) -> Tensor:
        return super().forward(x, rope, None, cache)


@BLOCK.mistake("norm1 serves both halves. The MLP has a norm of its own, norm2.")
class _(_Block):
    def forward(self, x: Tensor, rope, mask, cache=None) -> Tensor:
        x = x + self.attn(self.norm1(x), rope, mask, cache)
        return x + self.mlp(self.norm1(x))


@BLOCK.mistake("The halves read x as it is. Each needs its norm first.")
class _(_Block):
    def forward(self, x: Tensor, rope, mask, cache=None) -> Tensor:
        x = x + self.attn(x, rope, mask, cache)
        return x + self.mlp(x)


@BLOCK.mistake(
    "The cache does not reach attention, so in generation each new token sees only itself. Hand it on: the fourth "
    "argument."
)
class _(_Block):
    def forward(self, x: Tensor, rope, mask, cache=None) -> Tensor:
        return super().forward(x, rope, mask)


@BLOCK.mistake(
    "The first half adds nothing to x: attention's result replaces it, and the residual stream is interrupted."
)
class _(_Block):
    def forward(self, x: Tensor, rope, mask, cache=None) -> Tensor:
        x = self.attn(self.norm1(x), rope, mask, cache)
        return x + self.mlp(self.norm2(x))


@BLOCK.mistake(
    "The second half adds nothing to x: the MLP's result replaces it, and the residual stream is interrupted."
)
class _(_Block):
    def forward(self, x: Tensor, rope, mask, cache=None) -> Tensor:
        return self.mlp(self.norm2(x + self.attn(self.norm1(x), rope, mask, cache)))


@BLOCK.mistake("The norms have an eps of their own: take config.rms_norm_eps.")
class _(_Block):
    def __init__(self, config: LMConfig) -> None:
        super().__init__(config)
        self.norm1, self.norm2 = (RMSNorm(config.hidden_dim, 1e-6) for _ in range(2))


@BLOCK.mistake("The MLP is left out.")
class _(_Block):
    def forward(self, x: Tensor, rope, mask, cache=None) -> Tensor:
        return x + self.attn(self.norm1(x), rope, mask, cache)


@BLOCK.mistake("The attention is left out.")
class _(_Block):
    def forward(self, x: Tensor, rope, mask, cache=None) -> Tensor:
        return x + self.mlp(self.norm2(x))


@BLOCK.mistake(
    "The second half adds to the x that came in, so attention's own result is lost on the way. Add to what the first "
    "half has made."
)
class _(_Block):
    def forward(self, x: Tensor, rope, mask, cache=None) -> Tensor:
        return x + self.mlp(self.norm2(x + self.attn(self.norm1(x), rope, mask, cache)))


@BLOCK.part
def _(code, learner) -> None:
    code.language_model.DecoderBlock = learner
