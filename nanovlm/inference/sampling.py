"""From logits to the next token: what top-k, top-p and min-p leave, one draw a row, or the best beams."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

COLDEST = torch.finfo(torch.float32).tiny


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Rule out (-inf) all but the k largest logits of each row. [R, vocab_size], same out"""
    kept = logits.topk(min(k, logits.shape[-1]), dim=-1)
    return torch.full_like(logits, float("-inf")).scatter(-1, kept.indices, kept.values)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the fewest likely tokens whose probabilities reach p, the one that crosses p included (nucleus sampling,
    Holtzman et al. 2020, https://arxiv.org/abs/1904.09751). [R, vocab_size], same out"""
    if p >= 1:  # everything; a sum of 49,152 rounded probabilities may reach 1 before its end
        return logits
    ordered, order = logits.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(dim=-1)
    # What stands before a token already reaches p: the token is not needed. Before the first one stands nothing.
    enough = probabilities.cumsum(dim=-1) - probabilities >= p
    return logits.masked_fill(enough.scatter(-1, order, enough), float("-inf"))


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Keep the tokens that have at least p times the probability of the row's likeliest (min-p, Nguyen et al. 2024,
    https://arxiv.org/abs/2407.01082). [R, vocab_size], same out"""
    probabilities = logits.softmax(dim=-1)
    return logits.masked_fill(probabilities < p * probabilities.amax(dim=-1, keepdim=True), float("-inf"))


def sample(
    logits: Tensor, temperature: float, keep: Callable[[Tensor], Tensor], generator: torch.Generator | None
) -> Tensor:
    """One token a row: the likeliest at temperature 0, else a draw from what `keep` leaves. [R, vocab_size] -> [R]"""
    if temperature == 0:
        return logits.argmax(dim=-1)
    # Temperature comes first: what top-p keeps depends on it. The largest logit becomes 0, so that none overflows.
    # A temperature too small for a float32 would divide it by 0.
    logits = keep((logits - logits.amax(dim=-1, keepdim=True)) / max(temperature, COLDEST))
    return torch.multinomial(logits.softmax(dim=-1), 1, generator=generator).squeeze(1)


class Sampler:
    """Picks one token a row: the most likely one at temperature 0, else a draw from what top-k, top-p and min-p leave,
    in this order. With `generators`, one a row, what a row draws does not depend on the other rows."""

    def __init__(
        self,
        temperature: float,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        generators: Sequence[torch.Generator] | None = None,
    ) -> None:
        if not 0 <= temperature < float("inf"):  # so that NaN is refused too
            raise ValueError(f"temperature must be 0 (greedy) or more, and finite; it is {temperature}.")
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k must be at least 1; it is {top_k}.")
        for name, p in (("top_p", top_p), ("min_p", min_p)):
            if p is not None and not 0 < p <= 1:
                raise ValueError(f"{name} must be above 0 and at most 1; it is {p}.")
        self.temperature, self.top_k, self.top_p, self.min_p = temperature, top_k, top_p, min_p
        self.generators = generators

    def keep(self, logits: Tensor) -> Tensor:
        if self.top_k is not None:
            logits = keep_top_k(logits, self.top_k)
        if self.top_p is not None:
            logits = keep_top_p(logits, self.top_p)
        if self.min_p is not None:
            logits = keep_min_p(logits, self.min_p)
        return logits

    def __call__(self, logits: Tensor) -> Tensor:
        """logits [R, vocab_size] -> tokens [R]"""
        if self.generators is None or self.temperature == 0:
            return sample(logits, self.temperature, self.keep, None)
        rows = zip(logits.split(1), self.generators, strict=True)
        return torch.cat([sample(row, self.temperature, self.keep, generator) for row, generator in rows])


def beam_step(
    logits: Tensor, totals: Tensor, lengths: Tensor, finished: Tensor, end: int, length_penalty: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The best continuations of a prompt's beams, as many as there were, the best first.

    logits [..., beams, vocab_size]; totals (sums of log-probabilities), lengths and finished [..., beams] ->
    tokens, the beams that they continue, their totals and their lengths, each [..., beams].
    """
    log_probs = logits.float().log_softmax(dim=-1)
    log_probs[finished] = float("-inf")
    log_probs[finished, end] = 0.0  # a finished beam goes on at no cost, as itself
    sums = totals[..., None] + log_probs
    lengths = lengths + ~finished
    scores = sums / lengths[..., None].clamp(min=1) ** length_penalty
    best = scores.flatten(-2).topk(logits.shape[-2], dim=-1).indices  # [..., beams]
    beams = best // logits.shape[-1]
    return best % logits.shape[-1], beams, sums.flatten(-2).gather(-1, best), lengths.gather(-1, beams)


class BeamSearch:
    """Keeps the num_beams best continuations of each prompt. A beam's score is the sum of its log-probabilities over
    length ** length_penalty; finished beams stay and compete."""

    def __init__(self, num_prompts: int, num_beams: int, length_penalty: float, device: torch.device) -> None:
        self.num_beams, self.length_penalty = num_beams, length_penalty
        self.total = torch.full((num_prompts, num_beams), float("-inf"), device=device)
        self.total[:, 0] = 0.0  # all beams start alike: let one of them speak first
        self.lengths = torch.zeros_like(self.total)

    def __call__(self, logits: Tensor, finished: Tensor, end: int) -> tuple[Tensor, Tensor]:
        """logits [prompts * beams, vocab_size], finished [prompts * beams] -> tokens and source rows, each [R]"""
        prompts, beams = self.total.shape
        tokens, source, self.total, self.lengths = beam_step(
            logits.view(prompts, beams, -1),
            self.total,
            self.lengths,
            finished.view(prompts, beams),
            end,
            self.length_penalty,
        )
        rows = source + torch.arange(prompts, device=source.device)[:, None] * beams
        return tokens.flatten(), rows.flatten()

    def should_stop(self, finished: Tensor, max_length: int) -> bool:
        """Whether no running beam can still overtake the best finished one: a sum of log-probabilities only falls, so
        that a running beam at best keeps its sum, and spreads it over max_length tokens."""
        finished = finished.view_as(self.total)
        longest = self.lengths.new_tensor(max_length) if self.length_penalty > 0 else self.lengths
        scores = self.total / torch.where(finished, self.lengths, longest) ** self.length_penalty
        best = [scores.masked_fill(others, float("-inf")).amax(dim=1) for others in (~finished, finished)]
        return bool((best[0] > best[1]).all())
