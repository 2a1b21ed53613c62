"""Chapter 04: the whole decoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nanovlm.config import LMConfig
from nanovlm.course.exercises.ch04.norm_and_mlp import SMALL
from nanovlm.course.exercises.common import expect_gradients, noise
from nanovlm.course.judge.differences import kind
from nanovlm.course.judge.exercise import Case, Complaint, Exercise, expect, with_weights
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
    minutes=8,
    why="With these lines, the whole language model behind the picture is your own code. The tied head saves a fifth of "
    "SmolLM2-135M's parameters.",
    hints=(
        "A new block for each place in the stack, and one Parameter that is used twice. In forward the angles are "
        "computed once, and every block gets them.",
        "The stack is an nn.ModuleList, so that PyTorch finds the parameters. Tying means that head.weight *is* the "
        "embedding's Parameter. In forward: angles from the positions, all blocks in turn, each with its own memory, "
        "then the last norm.",
        "self.blocks = nn.ModuleList(… for _ in range(config.num_blocks))\n"
        "if config.tie_weights: self.head.weight = …\n"
        "rope = self.rotary_embedding(…)\n"
        "for block, memory in zip(self.blocks, memories): x = block(x, rope, mask, memory)\n"
        "and then the norm",
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
    tolerance=1e-4,
)


@MODEL.property("gradients reach the input and every weight of the blocks and the norm")
def _(cls) -> None:
    module, right = (with_weights(made(UNTIED)) for made in (cls, LanguageModel))
    expect_gradients(
        lambda model, x: model.head(model(x)) + model.token_embedding.weight.sum(), module, right, noise(1, 4, 24)
    )


class _Model(nn.Module):
    """A decoder to build wrong versions from."""

    tie = True

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_dim)
        self.rotary_embedding = RotaryEmbedding(config.head_dim, config.rope_base)
        self.norm = RMSNorm(config.hidden_dim, config.rms_norm_eps)
        self.head = nn.Linear(config.hidden_dim, config.vocab_size, bias=False)
        self.blocks = self.stack(config)
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

    def after(self, x: Tensor) -> Tensor:
        """After each block."""
        return x

    def order(self, config: LMConfig) -> list[int]:
        return list(range(config.num_blocks))

    def cache_of(self, cache: KVCache | None, block: int):
        return None if cache is None else cache.blocks[block]

    def forward(self, x: Tensor, attention_mask=None, document_ids=None, cache=None) -> Tensor:
        positions, mask = self.layout(x, attention_mask, cache)
        for i in self.order(self.config):
            x = self.after(self.blocks[i](x, self.rotary_embedding(positions), mask, self.cache_of(cache, i)))
        return self.last(x)


@MODEL.mistake("The last norm is missing: self.norm comes after the last block.")
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


@MODEL.mistake("There is one cache for all blocks: each block has its own, cache.blocks[i], which `memories` holds.")
class _(_Model):
    def cache_of(self, cache: KVCache | None, block: int):
        return None if cache is None else cache.blocks[0]


@MODEL.mistake("The norm is applied after every block. There is one at the end, after the last block.")
class _(_Model):
    def after(self, x: Tensor) -> Tensor:
        return self.norm(x)

    def last(self, x: Tensor) -> Tensor:
        return x


@MODEL.mistake("The last block first: the stack runs backwards.")
class _(_Model):
    def order(self, config: LMConfig) -> list[int]:
        return super().order(config)[::-1]


@MODEL.mistake("Only the first block is used. Each takes what the one before it has made.")
class _(_Model):
    def order(self, config: LMConfig) -> list[int]:
        return [0]


@MODEL.mistake("Every block reads the input, and only the last one's result is kept: x = block(x, …).")
class _(_Model):
    def order(self, config: LMConfig) -> list[int]:
        return super().order(config)[-1:]

    def forward(self, x: Tensor, attention_mask=None, document_ids=None, cache=None) -> Tensor:
        positions, mask = self.layout(x, attention_mask, cache)
        for i, block in enumerate(self.blocks):
            out = block(x, self.rotary_embedding(positions), mask, self.cache_of(cache, i))
        return self.last(out)


@MODEL.mistake("The input is added once more round the whole stack. The blocks add by themselves.")
class _(_Model):
    def forward(self, x: Tensor, attention_mask=None, document_ids=None, cache=None) -> Tensor:
        positions, mask = self.layout(x, attention_mask, cache)
        y = x
        for i, block in enumerate(self.blocks):
            y = block(y, self.rotary_embedding(positions), mask, self.cache_of(cache, i))
        return self.last(x + y)


@MODEL.mistake("The head is tied although config.tie_weights is False: then it has a weight of its own.")
class _(_Model):
    def __init__(self, config: LMConfig) -> None:
        super().__init__(config)
        self.head.weight = self.token_embedding.weight


@MODEL.mistake("The base of the angles is built in as 10,000: use config.rope_base.")
class _(_Model):
    def __init__(self, config: LMConfig) -> None:
        super().__init__(config)
        self.rotary_embedding = RotaryEmbedding(config.head_dim, 10_000.0)


@MODEL.mistake("The last norm has an eps of its own: use config.rms_norm_eps.")
class _(_Model):
    def __init__(self, config: LMConfig) -> None:
        super().__init__(config)
        self.norm = RMSNorm(config.hidden_dim, 1e-6)


@MODEL.part
def _(code, learner) -> None:
    class Decoder(learner):
        """The learner's, which also keeps what comes between the blocks (output_hidden_states)."""

        def forward(self, x, attention_mask=None, document_ids=None, cache=None, hidden_states=None):
            if hidden_states is None:
                return super().forward(x, attention_mask, document_ids, cache)
            hooks = [b.register_forward_pre_hook(lambda _, given: hidden_states.append(given[0])) for b in self.blocks]
            try:
                out = super().forward(x, attention_mask, document_ids, cache)
            finally:
                for hook in hooks:
                    hook.remove()
            hidden_states.append(out)
            return out

    Decoder.__name__, Decoder.__qualname__ = learner.__name__, learner.__qualname__
    code.language_model.LanguageModel = Decoder
