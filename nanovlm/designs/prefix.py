"""A mask that is causal for words and open inside a picture (prefix LM, Raffel et al. 2019, arXiv:1910.10683; for
pictures PaliGemma, Beyer et al. 2024, arXiv:2407.07726)."""

from __future__ import annotations

from torch import Tensor

from nanovlm.designs.marked import MarkedLanguageModel, Seen


class PrefixDecoder(MarkedLanguageModel):
    """[B, S, dim] -> [B, S, dim]. A picture is not written from left to right, so all of its tokens see one another.

    PaliGemma opens the question as well. The seam does not tell the decoder where an answer begins, and a word that saw
    the next one would have nothing to predict, so here only pictures are open. A picture must come in one call.
    """

    def mask(self, seen: Seen) -> Tensor:
        return seen.visible | seen.same_image[:, None]
