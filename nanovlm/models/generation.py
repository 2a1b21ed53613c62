"""From logits to text: one decode loop for greedy, sampling and beam search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nanovlm.models.language_model import KVCache

if TYPE_CHECKING:
    from nanovlm.models.vision_language_model import VisionLanguageModel


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


class Sampler:
    """Picks one token a row: the most likely one at temperature 0, else a draw from what top-k and top-p leave."""

    def __init__(
        self, temperature: float, top_k: int | None, top_p: float | None, generator: torch.Generator | None
    ) -> None:
        if not temperature >= 0:  # so that NaN is refused too
            raise ValueError(f"temperature must be 0 (greedy) or more; it is {temperature}.")
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k must be at least 1; it is {top_k}.")
        if top_p is not None and not 0 < top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1; it is {top_p}.")
        self.temperature, self.top_k, self.top_p, self.generator = temperature, top_k, top_p, generator

    def __call__(self, logits: Tensor) -> Tensor:
        """logits [R, vocab_size] -> tokens [R]"""
        if self.temperature == 0:
            return logits.argmax(dim=-1)
        # Temperature comes first: what top-p keeps depends on it. The largest logit becomes 0, so that none overflows.
        logits = (logits - logits.amax(dim=-1, keepdim=True)) / self.temperature
        if self.top_k is not None:
            logits = keep_top_k(logits, self.top_k)
        if self.top_p is not None:
            logits = keep_top_p(logits, self.top_p)
        return torch.multinomial(logits.softmax(dim=-1), 1, generator=self.generator).squeeze(1)


class BeamSearch:
    """Keeps the num_beams best continuations of each prompt. A beam's score is the sum of its log-probabilities over
    length ** length_penalty; finished beams stay and compete."""

    def __init__(self, num_prompts: int, num_beams: int, length_penalty: float, device: torch.device) -> None:
        self.num_beams, self.length_penalty = num_beams, length_penalty
        self.total = torch.full((num_prompts, num_beams), float("-inf"), device=device)
        self.total[:, 0] = 0.0  # all beams start alike: let one of them speak first
        self.lengths = torch.zeros_like(self.total)

    def __call__(self, logits: Tensor, finished: Tensor, pad_token_id: int) -> tuple[Tensor, Tensor]:
        """logits [prompts * beams, vocab_size], finished [prompts * beams] -> tokens and source rows, each [R]"""
        log_probs = logits.float().log_softmax(dim=-1)
        log_probs[finished] = float("-inf")
        log_probs[finished, pad_token_id] = 0.0  # a finished beam goes on at no cost, as itself
        prompts, beams = self.total.shape
        vocab_size = logits.shape[-1]
        totals = self.total[:, :, None] + log_probs.view(prompts, beams, vocab_size)
        lengths = self.lengths + (~finished).view(prompts, beams)
        scores = (totals / lengths[:, :, None].clamp(min=1) ** self.length_penalty).view(prompts, -1)
        best = scores.topk(self.num_beams, dim=-1).indices  # [prompts, beams], the best first
        source = best // vocab_size
        self.total = totals.view(prompts, -1).gather(1, best)
        self.lengths = lengths.gather(1, source)
        rows = source + torch.arange(prompts, device=best.device)[:, None] * beams
        return (best % vocab_size).flatten(), rows.flatten()

    def settled(self, finished: Tensor, max_length: int) -> bool:
        """Whether no running beam can still overtake the best finished one: a sum of log-probabilities only falls, so
        that a running beam at best keeps its sum, and spreads it over max_length tokens."""
        finished = finished.view_as(self.total)
        longest = self.lengths.new_tensor(max_length) if self.length_penalty > 0 else self.lengths
        scores = self.total / torch.where(finished, self.lengths, longest) ** self.length_penalty
        best = [scores.masked_fill(others, float("-inf")).amax(dim=1) for others in (~finished, finished)]
        return bool((best[0] > best[1]).all())


class GenerationMixin:
    """Adds `generate` to the joint."""

    @torch.inference_mode()
    def generate_ids(
        self: VisionLanguageModel,
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
        x, attention_mask, _ = self.embed(input_ids, images, attention_mask)
        longest = self.config.language.max_positions
        if x.shape[1] + max_new_tokens > longest:
            raise ValueError(
                f"A prompt of {x.shape[1]} tokens and max_new_tokens={max_new_tokens} exceed the model's {longest} "
                "positions. Shorten the prompt or ask for fewer tokens."
            )
        generator = None if seed is None else torch.Generator(x.device).manual_seed(seed)
        sampler = Sampler(temperature, top_k, top_p, generator)
        beams = BeamSearch(x.shape[0], num_beams, length_penalty, x.device) if num_beams > 1 else None
        eos = self.config.eos_token_id

        # Read the prompts once; then every generation and beam goes on from the same cache.
        cache = KVCache(self.config.language, x.shape[0], x.shape[1] + max_new_tokens, like=x)
        logits = self.decoder.head(self.decoder(x, attention_mask, cache=cache)[:, -1])  # [B, vocab_size]
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
            done = bool(finished.all()) if beams is None else beams.settled(finished, max_new_tokens)
            if done or step + 1 == max_new_tokens:
                break
            x = self.decoder.token_embedding(tokens)[:, None]  # [rows, 1, dim]
            logits = self.decoder.head(self.decoder(x, cache=cache)[:, -1])
        return generated[::num_beams, : step + 1]

    def generate(
        self: VisionLanguageModel,
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
            return self.generate_ids(input_ids, images, attention_mask, **options)
        if prompt is None or any(x is not None for x in (input_ids, images, attention_mask)):
            raise TypeError(
                "Call generate with input_ids, images and attention_mask (tensors), or with prompt, image and on_text "
                "(text): one form or the other."
            )
        if self.tokenizer is None or self.image_processor is None:
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
        batch = self.prepare_prompts(prompts, pictures)
        stream = None
        if on_text is not None:
            if len(prompts) * options.get("num_generations", 1) > 1 or options.get("num_beams", 1) > 1:
                raise ValueError("on_text follows one answer: use one prompt, one generation and no beams.")
            if options.get("on_tokens") is not None:
                raise ValueError("on_text takes the place of on_tokens: give one of the two.")
            stream = options["on_tokens"] = _TextStream(self.tokenizer, on_text)
        ids = self.generate_ids(**batch, **options)
        answers = [self.tokenizer.decode(row).strip() for row in ids.tolist()]
        if stream is not None:
            stream.show(answers[0])  # what was held back to the end
        return answers[0] if single and len(answers) == 1 else answers

    def prepare_prompts(
        self: VisionLanguageModel, prompts: Sequence[str], pictures: Sequence[Any]
    ) -> dict[str, Tensor | None]:
        """One entry of `pictures` (None, a picture, or a list of them) for each prompt -> a left-padded batch."""
        if not prompts:
            raise ValueError("There is no prompt: the list is empty.")
        return self.collate_prompts([self.prepare_prompt(*each) for each in zip(prompts, pictures, strict=True)])

    def prepare_prompt(self: VisionLanguageModel, text: str, picture: Any) -> tuple[list[int], Tensor | None]:
        """A question and its picture, list of pictures or None -> ids, and [tiles, 3, H, W] or None."""
        if not isinstance(text, str):
            raise TypeError(f"A prompt is text; this one is {text!r}.")
        if not text.strip():
            raise ValueError('The prompt is empty. Ask something, for example "Describe the picture.".')
        entry = [] if picture is None else list(picture) if isinstance(picture, (list, tuple)) else [picture]
        pictures = [self.image_processor.open(one) for one in entry]
        # How a picture is cut into tiles decides what stands for it in the text.
        texts = self.image_processor.image_texts(pictures, self.tokenizer.image_token, self.config.num_image_tokens)
        ids = self.tokenizer.encode_prompt(text, len(pictures), self.config, texts)
        return ids, self.image_processor(pictures) if pictures else None

    def collate_prompts(
        self: VisionLanguageModel, prompts: Sequence[tuple[list[int], Tensor | None]]
    ) -> dict[str, Tensor | None]:
        """What prepare_prompt gave -> input_ids and attention_mask [B, T], padded on the left, and all pictures."""
        embedding = self.decoder.token_embedding.weight
        longest = max(len(ids) for ids, _ in prompts)
        padding = [longest - len(ids) for ids, _ in prompts]
        pad = self.tokenizer.pad_token_id
        rows = [[pad] * number + ids for number, (ids, _) in zip(padding, prompts, strict=True)]
        real = [[0] * number + [1] * (longest - number) for number in padding]
        tensors = [pixels for _, pixels in prompts if pixels is not None]
        return {
            "input_ids": torch.tensor(rows, device=embedding.device),
            "images": torch.cat(tensors).to(embedding.device, embedding.dtype) if tensors else None,
            "attention_mask": torch.tensor(real, device=embedding.device),
        }


class _TextStream:
    """Turns tokens into text pieces that join to the answer."""

    def __init__(self, tokenizer: Any, on_text: Callable[[str], Any]) -> None:
        self.tokenizer, self.on_text = tokenizer, on_text
        self.ids: list[int] = []
        self.shown = ""

    def __call__(self, tokens: Tensor) -> None:
        self.ids.append(int(tokens[0]))
        # Held back: bytes that are not yet a whole character, and white space, with which the answer may end.
        self.show(self.tokenizer.decode(self.ids).rstrip("\ufffd").strip())

    def show(self, text: str) -> None:
        if len(text) > len(self.shown):
            self.on_text(text[len(self.shown) :])
            self.shown = text
