"""Chapter 04: the block, the whole decoder, and the chapter's quizzes about attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nanovlm.config import LMConfig
from nanovlm.course.checks.decoder import SMALL
from nanovlm.course.checks.decoder_attention import run_layer
from nanovlm.course.checks.exercise import Case, Exercise, expect, with_weights
from nanovlm.course.checks.rope import noise
from nanovlm.course.quizzes import Quiz
from nanovlm.models.language_model import (
    DecoderBlock,
    GroupedQueryAttention,
    KVCache,
    LanguageModel,
    RMSNorm,
    RotaryEmbedding,
    SwiGLU,
    attention_layout,
)

# -- decoder.block -----------------------------------------------------------------------------------------------------


def run_block(cls, x: Tensor, config: LMConfig, padding=None, one_by_one: bool = False) -> Tensor:
    return run_layer(with_weights(cls(config), like=DecoderBlock(config)), x, config, padding, one_by_one)


BLOCK = Exercise(
    id="decoder.block",
    chapter="04",
    title="The block",
    difficulty=1,
    minutes=8,
    why="SmolLM2-135M is thirty of these on top of each other. The two additions are the road on which the gradient "
    "reaches the first of them.",
    hints=(
        "Two halves of the same kind: normalise, work, add back. In the first the work is attention, in the second the "
        "MLP.",
        "Each half reads the normalised x and adds its result to the x that was not normalised. The second half works "
        "on what the first has made.",
        "x = x + self.attn(self.norm1(x), rope, mask, cache)\nreturn x + … the same with norm2 and mlp",
    ),
    reference=DecoderBlock,
    cases=lambda: [
        Case(noise(1, 3, 8), SMALL, note="three tokens of eight numbers"),
        Case(noise(2, 4, 8, seed=1), SMALL, torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]]), note="two rows, one padded"),
        Case(noise(1, 4, 8, seed=2), SMALL, one_by_one=True, note="one token at a time, with a cache"),
    ],
    axes="batch length dim",
    call=run_block,
)


@BLOCK.property("every weight gets a gradient")
def _(cls) -> None:
    block = with_weights(cls(SMALL))
    run_layer(block, noise(1, 4, 8), SMALL).pow(2).sum().backward()
    idle = [name for name, p in block.named_parameters() if p.grad is None or not p.grad.any()]
    expect(not idle, f"No gradient reaches {', '.join(idle)}.")


@BLOCK.property("norms take eps from the config")
def _(cls) -> None:
    config = LMConfig(**{**vars(SMALL), "rms_norm_eps": 0.5})
    x = noise(1, 3, 8)
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
    "The norm stands behind the addition, as in the first transformers (post-norm). Here each half normalises what it "
    "*reads*, and x itself passes unharmed."
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


@BLOCK.mistake("Both halves read the same x (a parallel block). Here the MLP reads what attention has just added to.")
class _(_Block):
    def forward(self, x: Tensor, rope, mask, cache=None) -> Tensor:
        return x + self.attn(self.norm1(x), rope, mask, cache) + self.mlp(self.norm2(x))


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


@BLOCK.part
def _(code, learner) -> None:
    code.language_model.DecoderBlock = learner


# -- decoder.language_model --------------------------------------------------------------------------------------------

UNTIED = LMConfig(**{**vars(SMALL), "tie_weights": False})


def run_model(cls, ids: Tensor, config: LMConfig, padding: Tensor | None = None, one_by_one: bool = False) -> Tensor:
    model = with_weights(cls(config), like=LanguageModel(config))
    x = model.token_embedding(ids)
    if not one_by_one:
        return model.head(model(x, padding))
    cache = KVCache(config, *ids.shape, like=x)
    return model.head(torch.cat([model(x[:, i : i + 1], cache=cache) for i in range(ids.shape[1])], dim=1))


MODEL = Exercise(
    id="decoder.language_model",
    chapter="04",
    title="The decoder",
    difficulty=2,
    minutes=12,
    why="With this, everything that stands behind the picture in a vision-language model is your own code.",
    hints=(
        "__init__ holds five things: embedding, angles, blocks, a last norm, a head. forward uses three of them: the "
        "embedding comes before it, the head after it.",
        "Compute the angles once, from the positions, and hand them to every block with the mask and that block's part "
        "of the cache. Behind the last block comes the norm. Tying: the head's weight *is* the embedding's, one "
        "Parameter.",
        "self.blocks = nn.ModuleList(DecoderBlock(config) for _ in range(config.num_blocks))\n"
        "if config.tie_weights: self.head.weight = self.token_embedding.weight\n"
        "in forward, for i, block in enumerate(self.blocks):\n"
        "    keep x in hidden_states, if there is such a list\n"
        "    x = block(x, rope, mask, cache.blocks[i] if cache is not None else None)\n"
        "then the norm, keep that too, return",
    ),
    reference=LanguageModel,
    cases=lambda: [
        Case(torch.tensor([[1, 5, 2]]), SMALL, note="three tokens, two blocks, a tied head"),
        Case(torch.tensor([[0, 3, 1, 0, 2, 6]]), SMALL, torch.tensor([[0, 1, 1, 0, 1, 1]]), note="with padding"),
        Case(torch.tensor([[6, 4, 2, 1]]), SMALL, one_by_one=True, note="one token at a time, with a cache"),
        Case(torch.tensor([[3, 3], [0, 1]]), UNTIED, note="a head of its own (tie_weights=False)"),
    ],
    axes="batch length vocab_size",
    call=run_model,
)


@MODEL.property("hidden_states collects every block's input, and the output")
def _(cls) -> None:
    model, x = with_weights(cls(SMALL)), noise(1, 3, 8)
    collected: list[Tensor] = []
    out = model(x, hidden_states=collected)
    wanted = SMALL.num_blocks + 1
    expect(
        len(collected) == wanted, f"With two blocks the list should hold {wanted} tensors; it holds {len(collected)}."
    )
    same = torch.equal(collected[0], x) and torch.equal(collected[-1], out)
    expect(same, "The first tensor of hidden_states should be the input, the last one the output, behind the norm.")


class _Model(nn.Module):
    """A decoder to build wrong versions from."""

    tie = True

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_dim)
        self.rotary_embedding = RotaryEmbedding(config.head_dim, config.rope_base)
        self.blocks = self.stack(config)
        self.norm = RMSNorm(config.hidden_dim, config.rms_norm_eps)
        self.head = nn.Linear(config.hidden_dim, config.vocab_size, bias=False)
        if config.tie_weights and self.tie:
            self.head.weight = self.token_embedding.weight

    def stack(self, config: LMConfig) -> nn.ModuleList:
        return nn.ModuleList(DecoderBlock(config) for _ in range(config.num_blocks))

    def layout(self, x: Tensor, attention_mask, cache) -> tuple[Tensor, Tensor | None]:
        if cache is not None:
            return cache.layout(attention_mask, x.shape[1])
        return attention_layout(attention_mask, None, x.shape[1], x.device)

    def last(self, x: Tensor) -> Tensor:
        return self.norm(x)

    def cache_of(self, cache: KVCache | None, block: int):
        return None if cache is None else cache.blocks[block]

    def forward(self, x: Tensor, attention_mask=None, document_ids=None, cache=None, hidden_states=None) -> Tensor:
        positions, mask = self.layout(x, attention_mask, cache)
        for i, block in enumerate(self.blocks):
            x = block(x, self.rotary_embedding(positions), mask, self.cache_of(cache, i))
        return self.last(x)


@MODEL.mistake("The last norm is missing: behind the last block comes self.norm.")
class _(_Model):
    def last(self, x: Tensor) -> Tensor:
        return x


@MODEL.mistake(
    "The head has a weight of its own although config.tie_weights is True: let head.weight be the embedding's weight, "
    "the same Parameter."
)
class _(_Model):
    tie = False


@MODEL.mistake(
    "All blocks are the same one: [block] * n repeats a reference. Build a new DecoderBlock for each of them."
)
class _(_Model):
    def stack(self, config: LMConfig) -> nn.ModuleList:
        return nn.ModuleList([DecoderBlock(config)] * config.num_blocks)


@MODEL.mistake("The mask does not reach the blocks, so padding can be seen: hand it on with rope.")
class _(_Model):
    def layout(self, x: Tensor, attention_mask, cache) -> tuple[Tensor, Tensor | None]:
        return super().layout(x, attention_mask, cache)[0], None


@MODEL.mistake(
    "The angles come from 0, 1, 2 … instead of `positions`, which skip padding and go on behind what is in the cache."
)
class _(_Model):
    def layout(self, x: Tensor, attention_mask, cache) -> tuple[Tensor, Tensor | None]:
        return torch.arange(x.shape[1])[None], super().layout(x, attention_mask, cache)[1]


@MODEL.mistake(
    "The cache does not reach the blocks, so in generation each new token sees only itself: cache.blocks[i]."
)
class _(_Model):
    def cache_of(self, cache: KVCache | None, block: int):
        return None


@MODEL.part
def _(code, learner) -> None:
    code.language_model.LanguageModel = learner


# -- quizzes -----------------------------------------------------------------------------------------------------------

Quiz(
    id="ch04.future",
    question="A decoder reads five tokens. You change the last one. Which of the five predictions change?",
    choices=("all five", "only the last", "the last two", "none"),
    right=1,
    because=(
        "That is an encoder, where everyone sees everyone. Here the earlier tokens cannot see the last one.",
        "Token 4 is seen by itself alone. The predictions after tokens 0 to 3 cannot know of it.",
        "Token 3 stands before it and cannot see it.",
        "The prediction after the last token starts from that token.",
    ),
)

Quiz(
    id="ch04.cache",
    question="SmolLM2-135M keeps the keys and values of every token while it writes: 30 blocks, 3 key/value heads of "
    "64 numbers. How much larger would that be if each of its 9 query heads had its own?",
    choices=("as large", "3 times", "9 times", "27 times"),
    right=1,
    because=(
        "Queries are not kept, but each head's keys and values are.",
        "9 heads instead of 3, with keys and values as long as before.",
        "That is against one single key/value head (multi-query attention). It has three.",
        "Keys and values are both counted already, in both cases.",
    ),
)
