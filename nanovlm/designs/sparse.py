"""Computing less where there is less to see: experts that take turns, and image tokens that are dropped on the way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from nanovlm.config import LMConfig, VLMConfig
from nanovlm.designs.marked import DROPPED, MarkedLanguageModel, SeeingBlock, Seen
from nanovlm.models.language_model import BlockCache, LanguageModel, Rope, SwiGLU, apply_rope

BALANCE = 0.01  # weight of the load-balance loss, from Fedus et al.


def balance_loss(chances: Tensor, chosen: Tensor) -> Tensor:
    """Number of experts times sum over experts of (share of tokens) x (mean chance): 1 where all is even, up to the
    number of experts where one takes everything (Fedus et al. 2021, arXiv:2101.03961, equation 4).

    chances [tokens, experts], chosen [tokens] -> a scalar. Only the chances have a gradient: a share is a count.
    """
    num_experts = chances.shape[1]
    shares = torch.bincount(chosen, minlength=num_experts) / len(chosen)
    return num_experts * (shares.to(chances.dtype) * chances.mean(dim=0)).sum()


class WithLoss(torch.autograd.Function):
    """x, loss -> x, unchanged; in the backward pass `loss` gets the gradient that it would have as a term of the whole
    loss. So a part adds a term without the seam, and without the training loop, knowing of it. The term counts in full
    at every forward pass: neither accumulation over batches nor float16's loss scale is applied to it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, loss: Tensor) -> Tensor:
        ctx.save_for_backward(loss)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient, torch.ones_like(ctx.saved_tensors[0])


class RoutedMLP(nn.Module):
    """Two gated MLPs, of which each token goes through the one that a router likes best. [B, T, dim] -> [B, T, dim]

    Twice the weights at the operations of one (Switch Transformer, arXiv:2101.03961). The output is multiplied by the
    chance of the choice, because through the choice itself no gradient reaches the router. `shares` [experts] tells how
    the last tokens were distributed.
    """

    def __init__(self, config: LMConfig, num_experts: int = 2) -> None:
        super().__init__()
        self.router = nn.Linear(config.hidden_dim, num_experts, bias=False)
        self.experts = nn.ModuleList(SwiGLU(config) for _ in range(num_experts))
        self.shares: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, 1)  # [B * T, dim]
        chances = self.router(tokens).softmax(dim=-1)  # [B * T, experts]
        chance, chosen = chances.max(dim=-1)  # [B * T]
        out = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            own = (chosen == number).nonzero()[:, 0]
            out = out.index_add(0, own, chance[own, None] * expert(tokens[own]))
        self.shares = torch.bincount(chosen, minlength=len(self.experts)).detach() / len(chosen)
        if self.training and torch.is_grad_enabled():
            out = WithLoss.apply(out, BALANCE * balance_loss(chances, chosen))
        return out.view_as(x)


class ExpertsDecoder(LanguageModel):
    """[B, S, dim] -> [B, S, dim], with two experts in every block"""

    def __init__(self, config: VLMConfig) -> None:
        super().__init__(config.language)
        for block in self.blocks:
            block.mlp = RoutedMLP(config.language)


class DroppingBlock(SeeingBlock):
    """[B, S, dim] -> [B, S, dim]. Words no longer see the image tokens that are dropped; `keep`, of one block: how many
    tokens of each picture it leaves."""

    keep: int | None = None

    def forward(self, x: Tensor, rope: Rope, seen: Seen, cache: BlockCache | None = None) -> Tensor:
        if self.keep is not None and bool(seen.is_image[:, seen.start :].any()):
            self.drop(x, rope, seen, self.keep)
        dropped = (seen.kinds == DROPPED)[:, None, None, :] & ~seen.same_image[:, None]
        return super().forward(x, rope, replace(seen, mask=seen.mask & ~dropped), cache)

    @torch.no_grad()
    def drop(self, x: Tensor, rope: Rope, seen: Seen, keep: int) -> None:
        """Mark in `seen.kinds` all image tokens of x [B, S, dim] but the `keep` that are attended to most."""
        normed = self.norm1(x)
        q, k = (
            layer(normed).unflatten(-1, (-1, self.attn.head_dim)).transpose(1, 2)
            for layer in (self.attn.q_proj, self.attn.k_proj)
        )
        q, k = apply_rope(q, *rope), apply_rope(k, *rope)  # [B, heads, S, head_dim]
        scores = q @ k.repeat_interleave(q.shape[1] // k.shape[1], dim=1).mT * self.attn.head_dim**-0.5
        same = seen.same_image[:, :, seen.start :]  # [B, S, S]
        hidden = ~(same | seen.oneself[:, seen.start :])  # words see themselves: no row of nothing
        weights = scores.float().masked_fill(hidden[:, None], float("-inf")).softmax(dim=-1).mean(dim=1)  # [B, S, S]
        received = weights.sum(dim=1)  # [B, S]
        better = (same & (received[:, None, :] > received[:, :, None])).sum(dim=-1)  # of the same picture, [B, S]
        new = seen.kinds[:, seen.start :]  # a view
        new.masked_fill_((new != 0) & (better >= keep), DROPPED)


class DroppingDecoder(MarkedLanguageModel):
    """Half of the image tokens are dropped behind the first block. [B, S, dim] -> [B, S, dim]

    FastV (Chen et al. 2024, arXiv:2403.06764) ranks image tokens by the attention that they receive from the last token
    of the prompt. In training that would tell a word which words come later; here a picture's own tokens vote, with the
    queries and keys of the second block, and only what comes behind the picture no longer sees the losers. They are
    masked: taking them out of the sequence would save the operations as well, and tear rows of different lengths.
    """

    def __init__(self, config: VLMConfig, keep: float = 0.5) -> None:
        super().__init__(config)
        rest = [DroppingBlock(config.language) for _ in self.blocks[1:]]
        for block in rest[:1]:
            block.keep = max(1, round(keep * config.num_image_tokens))
        self.blocks = nn.ModuleList([self.blocks[0], *rest])
