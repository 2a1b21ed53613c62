"""Scoring answers instead of generating one: how probable does a model find a given text?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from nanovlm.config import IGNORE
from nanovlm.data.collators import VQACollator
from nanovlm.data.datasets import Skipped, VQADataset

if TYPE_CHECKING:
    from nanovlm.models.vision_language_model import VisionLanguageModel

NORMALISATIONS = ("sum", "mean", "unconditional")


@torch.inference_mode()
def answer_log_probs(
    model: VisionLanguageModel,
    questions: Sequence[str],
    images: Sequence[Sequence[Any]],
    answers: Sequence[str],
    batch_size: int = 64,
) -> tuple[Tensor, Tensor]:
    """The log-probability of each answer to its question, and its number of tokens, both [answers].

    Tokens are those that training would supervise: the answer's and the one that ends it. Without the end, "1" would be
    at least as probable as "14". Raises: ValueError that names a sample which cannot be encoded.
    """
    data = VQADataset([], model.tokenizer, model.image_processor, model.config)
    device = model.decoder.token_embedding.weight.device
    items = []
    for index, (question, own_images, answer) in enumerate(zip(questions, images, answers, strict=True)):
        turn = {"user": question, "assistant": answer}
        item = data.encode({"images": list(own_images), "texts": [turn]}, index)
        if isinstance(item, Skipped):
            raise ValueError(f"The answer {answer!r} cannot be scored: {item}.")
        items.append(item)
    order = sorted(range(len(items)), key=lambda i: len(items[i]["input_ids"]))
    collate = VQACollator(model.tokenizer.pad_token_id)
    sums, counts = torch.zeros(len(items)), torch.zeros(len(items), dtype=torch.int64)
    training = model.training
    model.eval()
    for start in tqdm(range(0, len(order), batch_size), desc="scoring", leave=False, disable=None):
        chosen = order[start : start + batch_size]
        batch = collate([items[i] for i in chosen])
        ids, mask, targets = (batch[key].to(device) for key in ("input_ids", "attention_mask", "targets"))
        pixels = None if batch["images"] is None else batch["images"].to(device)
        # With targets the head runs on supervised positions only: logits [supervised, vocab_size], row after row.
        log_probs = model(ids, pixels, mask, targets).logits.float().log_softmax(dim=-1)
        supervised = targets != IGNORE
        values = torch.zeros(targets.shape, device=device)
        values[supervised] = log_probs.gather(1, targets[supervised][:, None])[:, 0]
        sums[chosen] = values.sum(dim=1).cpu()
        counts[chosen] = supervised.sum(dim=1).cpu()
    model.train(training)
    return sums, counts


def score_options(
    model: VisionLanguageModel,
    questions: Sequence[str],
    images: Sequence[Sequence[Any]],
    options: Sequence[Sequence[str]],
    normalise: str = "mean",
    batch_size: int = 64,
) -> list[Tensor]:
    """A score for each option of each question, the highest of which is the model's choice: a list of [options].

    normalise: "sum" is the log-probability of the whole option, which favours short ones; "mean" divides it by its
    number of tokens; "unconditional" subtracts the option's log-probability without the picture (after Holtzman et al.
    2021, arXiv:2104.08315), which removes how frequent the option is as such.
    """
    if normalise not in NORMALISATIONS:
        raise ValueError(f"normalise is one of {', '.join(NORMALISATIONS)}, not {normalise!r}.")
    sizes = [len(each) for each in options]
    if min(sizes, default=0) < 1:
        raise ValueError("Each question needs at least one option to score.")
    flat = [option for each in options for option in each]
    asked = [question for question, size in zip(questions, sizes, strict=True) for _ in range(size)]
    shown = [own_images for own_images, size in zip(images, sizes, strict=True) for _ in range(size)]
    sums, counts = answer_log_probs(model, asked, shown, flat, batch_size)
    if normalise == "mean":
        sums = sums / counts
    elif normalise == "unconditional":
        blank = [[_blank(image) for image in own_images] for own_images in shown]
        sums = sums - answer_log_probs(model, asked, blank, flat, batch_size)[0]
    return list(sums.split(sizes))


def _blank(image: Any) -> Any:
    """A grey picture of the same size: models that put the picture in front of the text cannot do without one."""
    from PIL import Image

    return Image.new("RGB", image.size, (128, 128, 128))
