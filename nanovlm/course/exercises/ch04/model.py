"""Chapter 04: the whole decoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nanovlm.config import LMConfig
from nanovlm.course.judge.differences import kind
from nanovlm.course.exercises.ch04.norm_and_mlp import SMALL
from nanovlm.course.judge.exercise import Case, Complaint, Exercise, expect, with_weights
from nanovlm.course.exercises.common import noise
from nanovlm.models.language_model import (
    DecoderBlock,
    KVCache,
    LanguageModel,
    RMSNorm,
    RotaryEmbedding,
    attention_layout,
)

# -- decoder.language_model --------------------------------------------------------------------------------------------

UNTIED = LMConfig(**{**vars(SMALL), "tie_weights": False})


def run_model(cls, ids: Tensor, config: LMConfig, padding: Tensor | None = None, one_by_one: bool = False) -> Tensor:
    """The caller's side: embedding, the learner's forward, head."""
    model = with_weights(cls(config), like=LanguageModel(config))
    x = model.token_embedding(ids)
    model.token_embedding.register_forward_pre_hook(_not_again)
    if not one_by_one:
        return model.head(_vectors(model(x, padding), x))
    cache = KVCache(config, *ids.shape, like=x)
    steps = [_vectors(model(x[:, i : i + 1], cache=cache), x[:, :1]) for i in range(ids.shape[1])]
    return model.head(torch.cat(steps, dim=1))


def _not_again(embedding: nn.Module, given: tuple) -> None:
    raise Complaint("forward calls token_embedding. It is given vectors: the caller has looked up the tokens' ids.")


def _vectors(out: Tensor, x: Tensor) -> Tensor:
    wanted = f"It should return vectors {list(x.shape)}"
    expect(isinstance(out, Tensor), f"forward returned {kind(out)}. {wanted}.")
    logits = out.shape == (*x.shape[:2], SMALL.vocab_size)
    expect(not logits, f"forward returned {list(out.shape)}, logits. {wanted}: the caller applies the head.")
    expect(out.shape == x.shape, f"forward returned {list(out.shape)}. {wanted}, as many as it was given.")
    return out


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
        Case(torch.tensor([[0, 3, 1, 0, 2, 6]]), SMALL, torch.tensor([[0, 1, 1, 0, 1, 1]]), note="a row with padding"),
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
    expect(
        collected, "hidden_states came empty and stayed empty. An empty list is false in Python: test `is not None`."
    )
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

    def stack(self, config: LMConfig) -> nn.ModuleList | list[DecoderBlock]:
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


@MODEL.mistake(
    "The blocks are in a plain list, in which PyTorch does not look for parameters: they would be neither trained nor "
    "saved. Use nn.ModuleList."
)
class _(_Model):
    def stack(self, config: LMConfig) -> list[DecoderBlock]:
        return [DecoderBlock(config) for _ in range(config.num_blocks)]


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
