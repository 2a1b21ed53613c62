"""From a question and its pictures to an answer: the decode loop, and the one of beam search."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nanovlm.inference.logits_processors import Choices, LogitsProcessor, RepetitionPenalty, StopStrings
from nanovlm.inference.prompts import answer_ids, prepare_prompts
from nanovlm.inference.sampling import BeamSearch, Sampler
from nanovlm.inference.streaming import TextStream
from nanovlm.models.language_model import KVCache
from nanovlm.models.vision_language_model import VisionLanguageModel

MOST_ROWS = 2**16


def decode(
    logits: Tensor,
    step: Callable[[Tensor], Tensor],
    choose: Callable[[Tensor], Tensor],
    ends: Sequence[int],
    max_new_tokens: int,
    on_tokens: Callable[[Tensor], Any] | None = None,
) -> Tensor:
    """Choose, keep, look for the end, read on.

    logits [rows, vocab_size] behind the prompt; step(tokens [rows]) reads one token a row and returns the next logits;
    choose(logits) -> tokens [rows]. Any token of `ends` ends its row, which then holds ends[0]. Returns [rows, new].
    """
    stop = torch.tensor(ends, device=logits.device)
    finished = torch.zeros(logits.shape[0], dtype=torch.bool, device=logits.device)
    written: list[Tensor] = []
    while True:
        tokens = choose(logits).masked_fill(finished, ends[0])
        written.append(tokens)
        if on_tokens is not None:
            on_tokens(tokens)
        finished = finished | torch.isin(tokens, stop)
        if len(written) == max_new_tokens or bool(finished.all()):
            return torch.stack(written, dim=1)
        logits = step(tokens)


def decode_beams(
    logits: Tensor,
    step: Callable[[Tensor], Tensor],
    select: Callable[[Tensor], Any],
    beams: BeamSearch,
    ends: Sequence[int],
    max_new_tokens: int,
) -> Tensor:
    """As `decode`, for logits [prompts * beams, vocab_size]: the best beam of each prompt, [prompts, new].
    select(rows) lets row i of the cache go on from what row rows[i] has seen."""
    stop = torch.tensor(ends, device=logits.device)
    finished = torch.zeros(logits.shape[0], dtype=torch.bool, device=logits.device)
    written = logits.new_empty((logits.shape[0], 0), dtype=torch.long)
    while True:
        tokens, rows = beams(logits, finished, ends[0])
        select(rows)
        written = torch.cat([written[rows], tokens[:, None]], dim=1)
        finished = finished[rows] | torch.isin(tokens, stop)
        if written.shape[1] == max_new_tokens or beams.should_stop(finished, max_new_tokens):
            return written[:: beams.num_beams]
        logits = step(tokens)


@torch.no_grad()  # not inference_mode: its tensors can be neither changed nor trained on
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
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    num_beams: int = 1,
    length_penalty: float = 1.0,
    num_generations: int = 1,
    seed: int | Sequence[int] | None = None,
    logits_processors: Sequence[LogitsProcessor] = (),
    on_tokens: Callable[[Tensor], Any] | None = None,
) -> Tensor:
    """
    input_ids [B, T], padded on the left where attention_mask [B, T] is 0; images [P, 3, H, W] in reading order.
    seed: each row draws for itself, row i with seed + i; or one seed for each prompt, whose generation g draws with
        seed + g.
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
    if input_ids.shape[0] * num_beams * num_generations > MOST_ROWS:
        raise ValueError(
            f"{input_ids.shape[0]} prompts, {num_beams} beams and {num_generations} generations are more than the "
            f"{MOST_ROWS:,} rows that are decoded together: ask for fewer, and again."
        )
    if num_beams > 1 and (temperature != 0 or num_generations > 1):
        raise ValueError("Beam search is deterministic: use temperature 0 and num_generations 1 with num_beams.")
    if num_beams > 1 and (logits_processors or repetition_penalty != 1):
        raise ValueError("Beams change their past: repetition_penalty, stop and choices need num_beams=1.")
    if attention_mask is not None and not bool(attention_mask[:, -1].all()):
        raise ValueError(
            "The prompts are padded on the right. Pad on the left, so that each row ends in its last token."
        )
    longest, length = model.config.language.max_positions, _prompt_length(model, input_ids, images)
    if length + max_new_tokens > longest:  # before the encoder works for nothing
        raise ValueError(
            f"A prompt of {length} tokens and max_new_tokens={max_new_tokens} exceed the model's {longest} "
            "positions. Shorten the prompt or ask for fewer tokens."
        )
    x, attention_mask, _ = model.embed(input_ids, images, attention_mask)
    generators = None if seed is None else _generators(seed, x.shape[0], num_generations, x.device)
    sampler = Sampler(temperature, top_k, top_p, min_p, generators)
    processors = list(logits_processors)
    if repetition_penalty != 1:
        processors.insert(0, RepetitionPenalty(repetition_penalty))

    def choose(logits: Tensor) -> Tensor:
        logits = logits.float()
        for processor in processors:
            logits = processor(logits)
        tokens = sampler(logits)
        for processor in processors:
            processor.see(tokens)
        return tokens

    # Read the prompts once; then every generation and beam goes on from the same cache.
    cache = KVCache(model.config.language, x.shape[0], x.shape[1] + max_new_tokens, like=x)
    logits = model.decoder.head(model.decoder(x, attention_mask, cache=cache)[:, -1])  # [B, vocab_size]
    copies = num_beams * num_generations
    if copies > 1:
        rows = torch.arange(x.shape[0], device=x.device).repeat_interleave(copies)
        cache.select(rows)
        logits = logits[rows]

    def step(tokens: Tensor) -> Tensor:
        x = model.decoder.token_embedding(tokens)[:, None]  # [rows, 1, dim]
        return model.decoder.head(model.decoder(x, cache=cache)[:, -1])

    ends = [model.config.eos_token_id, *model.config.stop_token_ids]
    if num_beams > 1:
        beams = BeamSearch(x.shape[0], num_beams, length_penalty, x.device)
        return decode_beams(logits, step, cache.select, beams, ends, max_new_tokens)
    return decode(logits, step, choose, ends, max_new_tokens, on_tokens)


def _prompt_length(model: VisionLanguageModel, input_ids: Tensor, images: Tensor | None) -> int:
    """Tokens of a row, those of a picture in front of it included."""
    placeholder = model.config.image_token_id
    in_front = images is not None and (placeholder is None or not bool((input_ids == placeholder).any()))
    return input_ids.shape[1] + model.config.num_image_tokens * (in_front and len(images) > 0)


def _generators(
    seed: int | Sequence[int], num_prompts: int, num_generations: int, device: torch.device
) -> list[torch.Generator]:
    """One a row."""
    seeds = [seed + row * num_generations for row in range(num_prompts)] if isinstance(seed, int) else list(seed)
    if len(seeds) != num_prompts:
        raise ValueError(f"{num_prompts} prompts need {num_prompts} seeds, or a single one; got {len(seeds)}.")
    if not all(abs(seed) < 2**62 for seed in seeds):
        raise ValueError("A seed is a whole number below 2^62.")
    return [torch.Generator(device).manual_seed(first + g) for first in seeds for g in range(num_generations)]


def generate(
    model: VisionLanguageModel,
    input_ids: Tensor | None = None,
    images: Tensor | None = None,
    attention_mask: Tensor | None = None,
    *,
    image: Any = None,
    prompt: str | Sequence[str] | None = None,
    stop: str | Sequence[str] = (),
    choices: Sequence[str] = (),
    on_text: Callable[[str], Any] | None = None,
    **options: Any,
) -> Tensor | str | list[str]:
    """
    Tensor form: `generate(input_ids, images, attention_mask, …)` -> ids, as `generate_ids`.
    Text form: `generate(image="photo.jpg", prompt="What is this?")` -> the answer.
        image: a path, PIL picture or array; a list of them for a prompt about several pictures; None for none.
        prompt: one question, or a list of them with one entry of `image` each (a list of answers comes back).
        stop: a string, or several; the answer ends in front of the first that it would hold.
        choices: the only answers that the model may give.
        on_text: called with each new piece of the (single) answer as it is written.
    Options of both: those of `generate_ids`. With num_generations > 1 the text form returns a list.
    """
    text_only = image is not None or on_text is not None or stop or choices
    if isinstance(input_ids, Tensor) and prompt is None and not text_only:
        return generate_ids(model, input_ids, images, attention_mask, **options)
    if prompt is None or any(x is not None for x in (input_ids, images, attention_mask)):
        raise TypeError(
            "Call generate with input_ids, images and attention_mask (tensors), or with prompt, image, stop, choices "
            "and on_text (text): one form or the other."
        )
    if model.tokenizer is None or model.image_processor is None:
        raise ValueError(
            "This model has no tokenizer or image processor, so it takes only tensors. "
            "Load it with VisionLanguageModel.from_pretrained(directory), or set both attributes."
        )
    single = isinstance(prompt, str)
    prompts = [prompt] if single else list(prompt)
    if image is None:
        shown = [None] * len(prompts)
    else:
        shown = list(image) if isinstance(image, (list, tuple)) and not single else [image]
    if len(shown) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts need {len(prompts)} entries of image; got {len(shown)}.")
    batch = prepare_prompts(model, prompts, shown)
    if on_text is not None and len(prompts) > 1:
        raise ValueError("on_text follows one answer: use one prompt, one generation and no beams.")
    answers = answer_batch(model, batch, stop=stop, choices=choices, on_text=on_text, **options)
    return answers[0] if single and len(answers) == 1 else answers


def answer_batch(
    model: VisionLanguageModel,
    batch: Mapping[str, Tensor | None],
    *,
    stop: str | Sequence[str] = (),
    choices: Sequence[str] = (),
    on_text: Callable[[str], Any] | None = None,
    **options: Any,
) -> list[str]:
    """The answers to prepared prompts (inference.prompts makes the batch), num_generations of them for each. stop,
    choices and on_text: as in `generate`; options: those of `generate_ids`."""
    decode_ids, end = model.tokenizer.decode, model.config.eos_token_id
    processors = list(options.pop("logits_processors", ()))
    if choices:
        processors.append(Choices([answer_ids(model, choice) for choice in choices], end))
    stops = StopStrings([stop] if isinstance(stop, str) else stop, decode_ids, end) if stop else None
    if stops is not None:
        processors.append(stops)
    stream = None
    if on_text is not None:
        if options.get("num_generations", 1) > 1 or options.get("num_beams", 1) > 1:
            raise ValueError("on_text follows one answer: use one prompt, one generation and no beams.")
        if options.get("on_tokens") is not None:
            raise ValueError("on_text takes the place of on_tokens: give one of the two.")
        shown = decode_ids if stops is None else lambda ids: stops.ready(decode_ids(ids))
        stream = options["on_tokens"] = TextStream(shown, on_text)
    ids = generate_ids(model, **batch, logits_processors=processors, **options)
    answers = [decode_ids(row).strip() for row in ids.tolist()]
    if stops is not None:
        answers = [stops.cut(answer).strip() for answer in answers]
    if stream is not None:
        stream.finish(answers[0])
    return answers
