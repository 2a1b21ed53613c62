"""From a question and its pictures to an answer: one decode loop for greedy, sampling and beam search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from nanovlm.inference.prompts import prepare_prompts
from nanovlm.inference.sampling import BeamSearch, Sampler
from nanovlm.inference.streaming import TextStream
from nanovlm.models.language_model import KVCache
from nanovlm.models.vision_language_model import VisionLanguageModel


@torch.inference_mode()
def generate_ids(
    model: VisionLanguageModel,
    input_ids: Tensor,
    images: Tensor | None = None,
    attention_mask: Tensor | None = None,
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    num_beams: int = 1,
    length_penalty: float = 1.0,
    num_generations: int = 1,
    seed: int | None = None,
    on_tokens: Callable[[Tensor], Any] | None = None,
) -> Tensor:
    """
    input_ids [B, T], padded on the left where attention_mask [B, T] is 0; images [P, 3, H, W] in reading order.
    Returns [B * num_generations, new tokens]: a row's generations stand together, its best beam alone. After its
    end-of-sequence token a row holds only that token again. `on_tokens` is called with [rows] after each step
    (not with beams, which may change their past).
    """
    if input_ids.ndim != 2 or input_ids.shape[1] == 0:
        raise ValueError(
            f"The prompt is empty: generation needs input_ids of shape [B, T]; got {list(input_ids.shape)}."
        )
    if num_beams < 1 or num_generations < 1 or max_new_tokens < 1:
        raise ValueError("num_beams, num_generations and max_new_tokens must be at least 1.")
    if num_beams > 1 and (temperature != 0 or num_generations > 1):
        raise ValueError("Beam search is deterministic: use temperature 0 and num_generations 1 with num_beams.")
    if attention_mask is not None and not bool(attention_mask[:, -1].all()):
        raise ValueError(
            "The prompts are padded on the right. Pad on the left, so that each row ends in its last token."
        )
    x, attention_mask, _ = model.embed(input_ids, images, attention_mask)
    longest = model.config.language.max_positions
    if x.shape[1] + max_new_tokens > longest:
        raise ValueError(
            f"A prompt of {x.shape[1]} tokens and max_new_tokens={max_new_tokens} exceed the model's {longest} "
            "positions. Shorten the prompt or ask for fewer tokens."
        )
    generator = None if seed is None else torch.Generator(x.device).manual_seed(seed)
    sampler = Sampler(temperature, top_k, top_p, generator)
    beams = BeamSearch(x.shape[0], num_beams, length_penalty, x.device) if num_beams > 1 else None
    eos = model.config.eos_token_id

    # Read the prompts once; then every generation and beam goes on from the same cache.
    cache = KVCache(model.config.language, x.shape[0], x.shape[1] + max_new_tokens, like=x)
    logits = model.decoder.head(model.decoder(x, attention_mask, cache=cache)[:, -1])  # [B, vocab_size]
    copies = num_beams * num_generations
    if copies > 1:
        rows = torch.arange(x.shape[0], device=x.device).repeat_interleave(copies)
        cache.select(rows)
        logits = logits[rows]
    finished = torch.zeros(logits.shape[0], dtype=torch.bool, device=x.device)
    generated = input_ids.new_full((logits.shape[0], max_new_tokens), eos)  # [rows, max_new_tokens]
    for step in range(max_new_tokens):
        if beams is None:
            tokens = sampler(logits.float()).masked_fill(finished, eos)
        else:
            tokens, rows = beams(logits, finished, eos)
            cache.select(rows)
            generated, finished = generated[rows], finished[rows]
        generated[:, step] = tokens
        finished = finished | (tokens == eos)
        if on_tokens is not None and beams is None:
            on_tokens(tokens)
        done = bool(finished.all()) if beams is None else beams.should_stop(finished, max_new_tokens)
        if done or step + 1 == max_new_tokens:
            break
        x = model.decoder.token_embedding(tokens)[:, None]  # [rows, 1, dim]
        logits = model.decoder.head(model.decoder(x, cache=cache)[:, -1])
    return generated[::num_beams, : step + 1]


def generate(
    model: VisionLanguageModel,
    input_ids: Tensor | None = None,
    images: Tensor | None = None,
    attention_mask: Tensor | None = None,
    *,
    image: Any = None,
    prompt: str | Sequence[str] | None = None,
    on_text: Callable[[str], Any] | None = None,
    **options: Any,
) -> Tensor | str | list[str]:
    """
    Tensor form: `generate(input_ids, images, attention_mask, …)` -> ids, as `generate_ids`.
    Text form: `generate(image="photo.jpg", prompt="What is this?")` -> the answer.
        image: a path, PIL picture or array; a list of them for a prompt about several pictures; None for none.
        prompt: one question, or a list of them with one entry of `image` each (a list of answers comes back).
        on_text: called with each new piece of the (single) answer as it is written.
    Options of both: those of `generate_ids`. With num_generations > 1 the text form returns a list.
    """
    if isinstance(input_ids, Tensor) and prompt is None and image is None and on_text is None:
        return generate_ids(model, input_ids, images, attention_mask, **options)
    if prompt is None or any(x is not None for x in (input_ids, images, attention_mask)):
        raise TypeError(
            "Call generate with input_ids, images and attention_mask (tensors), or with prompt, image and on_text "
            "(text): one form or the other."
        )
    if model.tokenizer is None or model.image_processor is None:
        raise ValueError(
            "This model has no tokenizer or image processor, so it takes only tensors. "
            "Load it with VisionLanguageModel.from_pretrained(directory), or set both attributes."
        )
    single = isinstance(prompt, str)
    prompts = [prompt] if single else list(prompt)
    if image is None:
        pictures = [None] * len(prompts)
    else:
        pictures = list(image) if isinstance(image, (list, tuple)) and not single else [image]
    if len(pictures) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts need {len(prompts)} entries of image; got {len(pictures)}.")
    batch = prepare_prompts(model, prompts, pictures)
    stream = None
    if on_text is not None:
        if len(prompts) * options.get("num_generations", 1) > 1 or options.get("num_beams", 1) > 1:
            raise ValueError("on_text follows one answer: use one prompt, one generation and no beams.")
        if options.get("on_tokens") is not None:
            raise ValueError("on_text takes the place of on_tokens: give one of the two.")
        stream = options["on_tokens"] = TextStream(model.tokenizer, on_text)
    ids = generate_ids(model, **batch, **options)
    answers = [model.tokenizer.decode(row).strip() for row in ids.tolist()]
    if stream is not None:
        stream.show(answers[0])  # what was held back to the end
    return answers[0] if single and len(answers) == 1 else answers
