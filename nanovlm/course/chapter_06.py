"""What chapter 06 measures with: the probabilities of whole answers, and scores by kind of question."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from nanovlm.evaluation.scores import questions_of
from nanovlm.inference.prompts import collate_prompts, prepare_prompt
from nanovlm.models.vision_language_model import VisionLanguageModel


@torch.inference_mode()
def chances(
    model: VisionLanguageModel, prompt_ids: Sequence[int], pixels: Tensor, answers: Sequence[str]
) -> tuple[list[float], Tensor]:
    """The probability of each answer, its end included, and the logits of the first token [1, vocab_size]."""
    found = []
    for answer in answers:
        tokens = [*model.tokenizer.encode(answer), model.tokenizer.eos_token_id]
        logits = model(torch.tensor([[*prompt_ids, *tokens]]), pixels).logits[0, len(prompt_ids) - 1 : -1]
        found.append(logits.log_softmax(-1)[range(len(tokens)), tokens].sum().exp().item())
    return found, logits[:1]


def scores(
    model: VisionLanguageModel,
    samples: Sequence[dict[str, Any]],
    change: Callable[[list[int]], list[int]] = lambda ids: ids,
) -> dict[str, float]:
    """The share of right answers by kind of question; `change` may change the ids of each prompt."""
    questions = questions_of(samples)
    prompts = [prepare_prompt(model, each.text, each.images) for each in questions]
    batch = collate_prompts(model, [(change(ids), pixels) for ids, pixels in prompts])
    written = model.generate(**batch, max_new_tokens=12).tolist()
    right: dict[str, list[bool]] = {each.kind: [] for each in questions}
    for each, row in zip(questions, written, strict=True):
        right[each.kind].append(model.tokenizer.decode(row).strip() == each.answer)
    return {kind: sum(each) / len(each) for kind, each in right.items()}
