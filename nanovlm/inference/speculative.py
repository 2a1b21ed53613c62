"""Speculative decoding: a cheap draft proposes several tokens, the model reads them in one pass and keeps as many as
leave its own distribution unchanged (Leviathan et al. 2023, https://arxiv.org/abs/2211.17192)."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanovlm.models.language_model import KVCache, LanguageModel
from nanovlm.models.vision_language_model import VisionLanguageModel


class Speculation(NamedTuple):
    tokens: Tensor  # [1, new]
    passes: int  # of the whole model, the one over the prompt included
    proposed: int  # tokens that the draft wrote
    accepted: int  # of these


def accept(draft: Tensor, target: Tensor, proposed: Tensor, coins: Tensor) -> tuple[int, Tensor]:
    """How many proposed tokens stay, and the distribution of the one that follows them.

    draft [k, vocab_size] and target [k + 1, vocab_size]: the probabilities from which each token was, or would be,
    drawn; proposed [k] tokens, drawn from draft; coins [k], uniform between 0 and 1. Token i stays with probability
    min(1, target / draft). After the first that does not, the next one is drawn from what the target has more of than
    the draft; after all of them, from the target's last row. Tokens chosen in this way follow the target exactly.
    """
    own, theirs = (rows[: len(proposed)].gather(1, proposed[:, None])[:, 0] for rows in (target, draft))  # [k]
    stays = (coins * theirs < own).long().cumprod(dim=0)
    count = int(stays.sum())
    if count == len(proposed):
        return count, target[count]
    rest = (target[count] - draft[count]).clamp(min=0)
    return count, rest / rest.sum()


def early_exit(decoder: LanguageModel, num_blocks: int) -> LanguageModel:
    """The first blocks of a decoder with its own norm and head: a draft that needs no memory for weights."""
    if not 1 <= num_blocks < len(decoder.blocks):
        raise ValueError(f"A draft has at least one block, and fewer than the decoder with its {len(decoder.blocks)}.")
    draft = copy.copy(decoder)
    draft._modules = {**decoder._modules, "blocks": nn.ModuleList(decoder.blocks[:num_blocks])}
    draft.config = replace(decoder.config, num_blocks=num_blocks)
    return draft


@torch.no_grad()
def generate_speculatively(
    model: VisionLanguageModel,
    draft: LanguageModel,
    input_ids: Tensor,
    images: Tensor | None = None,
    *,
    lookahead: int = 3,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    seed: int | None = None,
) -> Speculation:
    """One prompt, input_ids [1, T] -> the answer that `generate_ids` would give (or, above temperature 0, one with the
    same probability). draft: a decoder that reads the model's embeddings, such as an early exit of its own."""
    if input_ids.shape[0] != 1:
        raise ValueError(f"Speculative decoding writes one answer at a time; got {input_ids.shape[0]} prompts.")
    if lookahead < 1 or max_new_tokens < 1:
        raise ValueError("lookahead and max_new_tokens must be at least 1.")
    x, _, _ = model.embed(input_ids, images, None)
    generator = torch.Generator(x.device)
    generator.manual_seed(seed) if seed is not None else generator.seed()
    room = x.shape[1] + max_new_tokens + lookahead + 1
    readers = [
        _Reader(decoder, KVCache(decoder.config, 1, room, like=x), temperature) for decoder in (model.decoder, draft)
    ]
    whole, cheap = readers
    ends = [model.config.eos_token_id, *model.config.stop_token_ids]
    answer = [_draw(whole.read(x)[-1], generator)]
    cheap.read(x)
    passes, proposed, accepted = 1, 0, 0
    while answer[-1] not in ends and len(answer) < max_new_tokens:
        guesses, chances = [], []
        unread = answer[cheap.cache.length - x.shape[1] :]
        for _ in range(min(lookahead, max_new_tokens - len(answer))):
            chances.append(cheap.read(model.decoder.token_embedding(torch.tensor([unread], device=x.device)))[-1])
            guesses.append(_draw(chances[-1], generator))
            unread = guesses[-1:]
        block = torch.tensor([answer[-1:] + guesses], device=x.device)
        target = whole.read(model.decoder.token_embedding(block))  # [k + 1, vocab_size]
        coins = torch.rand(len(guesses), generator=generator, device=x.device)
        count, following = accept(torch.stack(chances), target, block[0, 1:], coins)
        passes, proposed, accepted = passes + 1, proposed + len(guesses), accepted + count
        new = [*guesses[:count], _draw(following, generator)]
        stop = next((i for i, token in enumerate(new) if token in ends), len(new))
        answer = (answer + new[: stop + 1])[:max_new_tokens]
        for reader in readers:  # forget what was rejected; the last token of the answer is read in the next round
            reader.rewind(x.shape[1] + len(answer) - 1)
    return Speculation(torch.tensor([answer], device=x.device), passes, proposed, accepted)


def _draw(probabilities: Tensor, generator: torch.Generator) -> int:
    return int(torch.multinomial(probabilities, 1, generator=generator))


class _Reader:
    """A decoder and its cache: reads embeddings, gives the probabilities behind each of them."""

    def __init__(self, decoder: LanguageModel, cache: KVCache, temperature: float) -> None:
        self.decoder, self.cache, self.temperature = decoder, cache, temperature

    def read(self, x: Tensor) -> Tensor:
        """x [1, T, dim] -> probabilities [T, vocab_size]"""
        logits = self.decoder.head(self.decoder(x, cache=self.cache))[0].float()
        if self.temperature == 0:
            return F.one_hot(logits.argmax(dim=-1), logits.shape[-1]).float()
        return (logits / self.temperature).softmax(dim=-1)

    def rewind(self, length: int) -> None:
        for block in self.cache.blocks:
            block.length = min(block.length, length)
