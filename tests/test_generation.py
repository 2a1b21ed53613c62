"""The decode loop: what it says, when it stops, how much work it does, and the one-call text form."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from nanovlm.config import VLMConfig
from nanovlm.data.processors import ImageProcessor
from nanovlm.models.language_model import KVCache
from nanovlm.models.vision_language_model import VisionLanguageModel
from tests.tiny import END, FIRST_WORD, IMAGE, ONE_IMAGE, VOCAB_SIZE, ids_of, random_images, tiny_model
from tests.tiny_tokenizer import tiny_tokenizer

words = st.integers(FIRST_WORD, VOCAB_SIZE - 1)
row = st.lists(st.one_of(words, words, st.just(ONE_IMAGE)), min_size=1, max_size=6)


@torch.no_grad()
def greedy_without_cache(model: VisionLanguageModel, ids: list[int], images: Tensor | None, steps: int) -> list[int]:
    """Ends at END, and at a placeholder: as a part of the prompt it would need a picture of its own."""
    answer: list[int] = []
    while len(answer) < steps and END not in answer and IMAGE not in answer:
        answer.append(int(model(torch.tensor([ids + answer]), images).logits[0, -1].argmax()))
    return answer


def left_padded(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    ids, real = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for i, tokens in enumerate(rows):
        ids[i, width - len(tokens) :], real[i, width - len(tokens) :] = torch.tensor(tokens), 1
    return ids, real


@given(batch=st.lists(row, min_size=1, max_size=4))
def test_greedy_is_the_argmax_of_full_forwards_for_every_row_of_a_batch(
    model: VisionLanguageModel, batch: list[list[int]]
) -> None:
    images = random_images(sum(items.count(ONE_IMAGE) for items in batch))
    ids, real = left_padded([ids_of(items) for items in batch])
    answers = model.generate(ids, images, real, max_new_tokens=6).tolist()
    taken = 0
    for items, answer in zip(batch, answers, strict=True):
        own = images[taken : taken + items.count(ONE_IMAGE)]
        taken += len(own)
        expected = greedy_without_cache(model, ids_of(items), own, steps=6)
        assert answer[: len(expected)] == expected
        assert IMAGE in expected or set(answer[len(expected) :]) <= {END}


def test_images_in_front_of_unequal_prompts(model_in_front: VisionLanguageModel) -> None:
    images, prompts = random_images(3), [[7, 8, 9, 10], [11], [12, 13]]
    ids, real = left_padded(prompts)
    answers = model_in_front.generate(ids, images, real, max_new_tokens=5).tolist()
    for i, prompt in enumerate(prompts):
        expected = greedy_without_cache(model_in_front, prompt, images[i : i + 1], steps=5)
        assert answers[i][: len(expected)] == expected


def test_generations_of_a_prompt_stand_together(model: VisionLanguageModel) -> None:
    ids, real = left_padded([[7, 8, 9], [10], ids_of([ONE_IMAGE, 11])])
    options = {"images": random_images(1), "attention_mask": real, "max_new_tokens": 4}
    once = model.generate(ids, **options)
    several = model.generate(ids, **options, temperature=1.0, top_k=1, num_generations=3)
    assert several.equal(once.repeat_interleave(3, dim=0))


@pytest.fixture(scope="module")
def ending() -> tuple[VisionLanguageModel, list[list[int]], list[int]]:
    """A model, prompts whose greedy answers end at different steps, the last one never, and those steps."""
    prompts = [[7 + i, 8, *range(9, 9 + i)] for i in range(8)]
    for seed in range(50):
        model = tiny_model(None, seed=seed)
        model.config.eos_token_id = 0
        answers = model.generate(*left_padded_without_images(prompts), max_new_tokens=10).tolist()
        for end in range(FIRST_WORD, VOCAB_SIZE):
            first = {answer.index(end) + 1: i for i, answer in enumerate(answers) if end in answer}
            never = [i for i, answer in enumerate(answers) if end not in answer and 0 not in answer]
            if len(first) >= 3 and never:
                model.config.eos_token_id = end
                return model, [prompts[i] for i in (*first.values(), never[0])], list(first)
    raise AssertionError("no seed makes rows that end at different steps")


def left_padded_without_images(rows: list[list[int]]) -> tuple[Tensor, None, Tensor]:
    ids, real = left_padded(rows)
    return ids, None, real


@contextmanager
def counted(model: VisionLanguageModel) -> Iterator[list[int]]:
    """How many positions each call of the decoder computes."""
    lengths: list[int] = []
    hook = model.decoder.register_forward_pre_hook(lambda _, arguments: lengths.append(arguments[0].shape[1]))
    yield lengths
    hook.remove()


def test_each_row_stops_at_its_end(ending: tuple[VisionLanguageModel, list[list[int]], list[int]]) -> None:
    model, prompts, steps = ending
    answers = model.generate(*left_padded_without_images(prompts), max_new_tokens=10).tolist()
    end = model.config.eos_token_id
    assert [answer.index(end) + 1 for answer in answers[:-1]] == steps
    for answer, length in zip(answers[:-1], steps, strict=True):
        assert set(answer[length:]) <= {end}, "after its end a row says nothing more"
    assert len(answers[-1]) == 10 and end not in answers[-1]


@pytest.mark.parametrize("num_beams", [1, 3])
def test_the_loop_ends_when_all_rows_have(
    ending: tuple[VisionLanguageModel, list[list[int]], list[int]], num_beams: int
) -> None:
    model, prompts, steps = ending
    ids, _, real = left_padded_without_images(prompts[:-1])
    with counted(model) as lengths:
        answers = model.generate(ids, None, real, max_new_tokens=50, num_beams=num_beams, length_penalty=0.0)
    assert answers.shape[1] < 50
    assert lengths == [ids.shape[1]] + [1] * (answers.shape[1] - 1), "one call for the prompts, one a further token"
    if num_beams == 1:
        assert answers.shape[1] == max(steps)


def test_the_cache_saves_work(ending: tuple[VisionLanguageModel, list[list[int]], list[int]]) -> None:
    """10 tokens after a prompt of T: T + 9 positions. Without a cache it would be T + (T + 1) + … + (T + 9)."""
    model, prompts, _ = ending
    with counted(model) as lengths:
        model.generate(torch.tensor(prompts[-1:]), max_new_tokens=10)
    assert sum(lengths) == len(prompts[-1]) + 9


def test_the_cache_stays_in_the_memory_it_reserved(model: VisionLanguageModel) -> None:
    x = model.decoder.token_embedding(torch.full((2, 5), 7))
    cache = KVCache(model.config.language, 2, 40, like=x)
    places = [block.keys.data_ptr() for block in cache.blocks]
    assert cache.blocks[0].keys.shape == (2, 2, 40, 8), "key/value heads, not query heads"
    with torch.no_grad():
        for _ in range(4):
            model.decoder(x, cache=cache)
    assert [block.keys.data_ptr() for block in cache.blocks] == places
    assert cache.length == 20


def test_on_tokens_sees_each_step(model: VisionLanguageModel) -> None:
    seen: list[Tensor] = []
    ids, real = left_padded([[7, 8, 9], [10]])
    answers = model.generate(ids, None, real, max_new_tokens=5, on_tokens=seen.append)
    assert torch.stack(seen, dim=1).equal(answers)


@pytest.mark.parametrize(
    ("ids", "options", "sentence"),
    [
        (torch.zeros(1, 0, dtype=torch.long), {}, r"The prompt is empty.*got \[1, 0\]"),
        (torch.tensor([7, 8]), {}, r"shape \[B, T\]; got \[2\]"),
        (torch.tensor([[7, 0]]), {"attention_mask": torch.tensor([[1, 0]])}, "padded on the right. Pad on the left"),
        (
            torch.tensor([[7, 8]]),
            {"attention_mask": torch.ones(1, 3)},
            r"\[1, 3\] needs the shape of input_ids, \[1, 2\]",
        ),
        (torch.full((1, 90), 7), {"max_new_tokens": 10}, "A prompt of 90 tokens and max_new_tokens=10 exceed.* 96"),
        (torch.full((1, 97), 7), {"max_new_tokens": 1}, "Shorten the prompt"),
    ],
    ids=["empty", "one row, not a batch", "right padding", "another mask", "too long an answer", "too long a prompt"],
)
def test_bad_prompts_are_refused(model: VisionLanguageModel, ids: Tensor, options: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        model.generate(ids, **options)


def test_a_prompt_that_does_not_fit_with_its_images_costs_no_encoding(model: VisionLanguageModel) -> None:
    images = torch.zeros(1, 3, 16, 16)
    room = 96 - model.config.num_image_tokens  # where they stand in front of the text
    hook = model.vision_encoder.register_forward_pre_hook(lambda *_: pytest.fail("the encoder ran"))
    try:
        with pytest.raises(ValueError, match="A prompt of 96 tokens and max_new_tokens=1 exceed"):
            model.generate(torch.full((1, room), 7), images, max_new_tokens=1)
    finally:
        hook.remove()


def test_the_last_position_can_be_used(model: VisionLanguageModel) -> None:
    assert model.generate(torch.full((1, 90), 7), max_new_tokens=6).shape[1] <= 6


# -- text -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def talker() -> VisionLanguageModel:
    tokenizer = tiny_tokenizer()
    model = tiny_model(vocab_size=tokenizer.vocab_size, max_positions=256)
    model.tokenizer, model.image_processor = tokenizer, ImageProcessor(16)
    return model


@pytest.fixture
def say(talker: VisionLanguageModel) -> Iterator[Callable[[str], VisionLanguageModel]]:
    """Makes the model answer a given text: its head reads the script, the loop is the real one."""

    class Script(nn.Module):
        def __init__(self, ids: list[int]) -> None:
            super().__init__()
            self.ids, self.step = ids, -1

        def forward(self, x: Tensor) -> Tensor:
            self.step += 1
            token = torch.tensor(self.ids[self.step % len(self.ids)])
            return torch.nn.functional.one_hot(token, talker.config.language.vocab_size).float().expand(len(x), -1)

    def set_script(text: str) -> VisionLanguageModel:
        talker.decoder.head = Script([*talker.tokenizer.encode(text), END])
        return talker

    head = talker.decoder.head
    yield set_script
    talker.decoder.head = head


def photo(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (20, 30, 3), dtype=np.uint8))


def test_one_call_from_a_photo_to_an_answer(talker: VisionLanguageModel, tmp_path: Path) -> None:
    photo().save(tmp_path / "photo.png")
    answer = talker.generate(image=tmp_path / "photo.png", prompt="What is this?", max_new_tokens=8)
    assert answer == talker.generate(image=photo(), prompt="What is this?", max_new_tokens=8)
    ids = torch.tensor([talker.tokenizer.encode_prompt("What is this?", 1, talker.config)])
    by_hand = talker.generate(ids, talker.image_processor(photo()), max_new_tokens=8)
    assert answer == talker.tokenizer.decode(by_hand[0]).strip() != ""


def test_many_prompts_are_answered_as_one_by_one(talker: VisionLanguageModel) -> None:
    questions = ["Where?", "How many shapes are there in this picture?", "What differs between the two?", "1 + 2?"]
    images = [photo(1), photo(2), [photo(3), photo(4)], None]
    together = talker.generate(image=images, prompt=questions, max_new_tokens=6)
    alone = [talker.generate(image=i, prompt=q, max_new_tokens=6) for i, q in zip(images, questions, strict=True)]
    assert together == alone and len(set(alone)) > 1
    assert talker.generate(prompt=["a", "b"], max_new_tokens=2) == [
        talker.generate(prompt=text, max_new_tokens=2) for text in "ab"
    ]
    assert len(talker.generate(prompt="a", num_generations=3, temperature=1.0, seed=0, max_new_tokens=2)) == 3


@pytest.mark.parametrize(
    "text", ["a red circle", "  two  spaces, and some after  \n", "Größe 🙂🙃 漢字 naïve", "", " ", "\ufffd?", "🙂"]
)
def test_streamed_pieces_join_to_the_answer(say: Callable[[str], VisionLanguageModel], text: str) -> None:
    pieces: list[str] = []
    answer = say(text).generate(prompt="What?", max_new_tokens=60, on_text=pieces.append)
    assert "".join(pieces) == answer == text.strip()
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces), "half a character was shown"
    assert len(text.split()) < 3 or len(pieces) > 2, "all at once is not a stream"


def test_a_stream_cut_in_the_middle_of_a_character(say: Callable[[str], VisionLanguageModel]) -> None:
    pieces: list[str] = []
    answer = say("ok 🙂").generate(prompt="What?", max_new_tokens=5, on_text=pieces.append)
    assert "".join(pieces) == answer
    assert answer.startswith("ok") and answer != "ok 🙂"


def test_text_form_says_what_is_wrong(talker: VisionLanguageModel, model: VisionLanguageModel) -> None:
    cases: list[tuple[type[Exception], str, dict]] = [
        (ValueError, "The prompt is empty. Ask something", {"prompt": "  \n"}),
        (ValueError, "The prompt is empty", {"prompt": ["What?", ""]}),
        (ValueError, "the list is empty", {"prompt": []}),
        (TypeError, "A prompt is text; this one is 7", {"prompt": ["What?", 7]}),
        (ValueError, "2 prompts need 2 entries of image; got 1", {"prompt": ["a", "b"], "image": photo()}),
        (ValueError, "2 prompts need 2 entries of image; got 3", {"prompt": ["a", "b"], "image": [None] * 3}),
        (ValueError, "on_text follows one answer", {"prompt": ["a", "b"], "on_text": print}),
        (ValueError, "on_text follows one answer", {"prompt": "a", "on_text": print, "num_beams": 2}),
        (ValueError, "give one of the two", {"prompt": "a", "on_text": print, "on_tokens": print}),
        (ValueError, "exceed the model's 256 positions", {"prompt": "word " * 300}),
        (FileNotFoundError, "No such picture: nowhere.png", {"prompt": "a", "image": "nowhere.png"}),
        (TypeError, "one form or the other", {}),
        (TypeError, "one form or the other", {"image": photo()}),
        (TypeError, "one form or the other", {"input_ids": "How many shapes are there?"}),  # prompt= left out
        (TypeError, "one form or the other", {"prompt": "a", "input_ids": torch.tensor([[7]])}),
        (TypeError, "one form or the other", {"prompt": "a", "images": random_images(1)}),
        (TypeError, "one form or the other", {"input_ids": torch.tensor([[7]]), "image": photo()}),
    ]
    for kind, sentence, options in cases:
        with pytest.raises(kind, match=sentence):
            talker.generate(**options)
    with pytest.raises(ValueError, match="takes only tensors"):
        model.generate(prompt="What?")


def test_question_answer_format_reaches_the_prompt(talker: VisionLanguageModel) -> None:
    config = VLMConfig(**{**vars(talker.config), "prompt_format": "question_answer"})
    ids = talker.tokenizer.encode_prompt("Why?", 0, config)
    assert talker.tokenizer.decode(ids) == "Question: Why? Answer:"
