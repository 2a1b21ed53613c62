"""Finding the caption of a picture and the picture of a caption among many."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Recall(NamedTuple):
    image_to_text: float
    text_to_image: float


def ranks(scores: Tensor) -> Tensor:
    """[N, N] scores, the right pairs on the diagonal -> how many columns of each row are at least as good as the right
    one, itself included: 1 is the best. Ties count against the model, or equal scores would be perfect."""
    return (scores >= scores.diagonal()[:, None]).sum(dim=1)


def recall_at_k(scores: Tensor, k: int) -> Recall:
    """The share of pictures whose own text is among the k best, and the other way round. scores [pictures, texts]."""
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1] or not len(scores):
        raise ValueError(f"Retrieval needs as many texts as pictures, at least one; got {list(scores.shape)}.")
    if not 1 <= k <= len(scores):
        raise ValueError(f"k is from 1 to the number of candidates, {len(scores)}; it is {k}.")
    forth, back = ((ranks(each) <= k).double().mean().item() for each in (scores, scores.mT))
    return Recall(forth, back)


def caption_scores(model, images, captions, batch_size: int = 64) -> Tensor:
    """How probable the model finds each caption for each picture: mean log-probability a token, [pictures, texts]."""
    from nanovlm.data.thimble.samples import CAPTION_QUESTION
    from nanovlm.evaluation.likelihood import score_options

    options = [list(captions)] * len(images)
    asked = [CAPTION_QUESTION] * len(images)
    return torch.stack(score_options(model, asked, [[p] for p in images], options, "mean", batch_size))
