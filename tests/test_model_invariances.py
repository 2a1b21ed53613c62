"""What must not change a logit: padding, batching, packing, the cache, what comes later."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nanovlm.models.language_model import KVCache
from nanovlm.models.vision_language_model import VisionLanguageModel, merge_image_tokens
from tests.tiny import FIRST_WORD, IMAGE, ONE_IMAGE, VOCAB_SIZE, ids_of, max_difference, random_images, tiny_model

TOLERANCE = 1e-5
words = st.integers(FIRST_WORD, VOCAB_SIZE - 1)
row = st.lists(st.one_of(words, words, st.just(ONE_IMAGE)), min_size=1, max_size=8)  # zero, one or several pictures
rows = st.lists(row, min_size=1, max_size=4)


def alone(model: VisionLanguageModel, batch: list[list[int]], images: Tensor) -> list[Tensor]:
    """The logits of each row by itself, with its own pictures."""
    results, taken = [], 0
    for items in batch:
        own = items.count(ONE_IMAGE)
        results.append(model(torch.tensor([ids_of(items)]), images[taken : taken + own]).logits[0])
        taken += own
    return results


def scattered(batch: list[list[int]], data: st.DataObject) -> tuple[Tensor, Tensor]:
    """Rows with padding wherever hypothesis puts it -> ids and attention_mask [B, T]; padding ids are noise."""
    encoded = [ids_of(items) for items in batch]
    width = max(map(len, encoded)) + data.draw(st.integers(0, 4), label="extra padding")
    ids, real = torch.full((len(batch), width), FIRST_WORD + 1), torch.zeros(len(batch), width, dtype=torch.bool)
    for i, tokens in enumerate(encoded):
        places = data.draw(st.permutations(range(width)), label=f"places of row {i}")[: len(tokens)]
        ids[i, sorted(places)] = torch.tensor(tokens)
        real[i, sorted(places)] = True
    return ids, real


@given(batch=rows, side=st.sampled_from(["left", "right"]))
@torch.no_grad()
def test_a_padded_batch_gives_what_each_row_gives_alone(
    model: VisionLanguageModel, batch: list[list[int]], side: str
) -> None:
    images = random_images(sum(items.count(ONE_IMAGE) for items in batch))
    encoded = [ids_of(items) for items in batch]
    width = max(map(len, encoded))
    ids, real = torch.zeros(len(batch), width, dtype=torch.long), torch.zeros(len(batch), width, dtype=torch.long)
    for i, tokens in enumerate(encoded):
        start = width - len(tokens) if side == "left" else 0
        ids[i, start : start + len(tokens)], real[i, start : start + len(tokens)] = torch.tensor(tokens), 1
    logits = model(ids, images, real).logits
    for i, expected in enumerate(alone(model, batch, images)):
        assert max_difference(logits[i, real[i].bool()], expected) < TOLERANCE


@given(batch=rows, data=st.data())
@torch.no_grad()
def test_padding_may_be_anywhere(model: VisionLanguageModel, batch: list[list[int]], data: st.DataObject) -> None:
    images = random_images(sum(items.count(ONE_IMAGE) for items in batch))
    ids, real = scattered(batch, data)
    logits = model(ids, images, real).logits
    for i, expected in enumerate(alone(model, batch, images)):
        assert max_difference(logits[i, real[i]], expected) < TOLERANCE


@given(texts=st.lists(st.lists(words, min_size=1, max_size=6), min_size=1, max_size=3), left=st.booleans())
@torch.no_grad()
def test_images_in_front_with_padding_between_them_and_the_text(
    model_in_front: VisionLanguageModel, texts: list[list[int]], left: bool
) -> None:
    images, width = random_images(len(texts)), max(map(len, texts)) + 2
    ids, real = torch.zeros(len(texts), width, dtype=torch.long), torch.zeros(len(texts), width, dtype=torch.bool)
    for i, tokens in enumerate(texts):
        place = slice(width - len(tokens), None) if left else slice(0, len(tokens))
        ids[i, place], real[i, place] = torch.tensor(tokens), True
    n = model_in_front.config.num_image_tokens
    logits = model_in_front(ids, images, real).logits
    for i, tokens in enumerate(texts):
        expected = model_in_front(torch.tensor([tokens]), images[i : i + 1]).logits[0]
        assert expected.shape[0] == n + len(tokens)
        kept = torch.cat([logits[i, :n], logits[i, n:][real[i]]])
        assert max_difference(kept, expected) < TOLERANCE


@given(documents=rows, padding=st.tuples(st.integers(0, 3), st.integers(0, 3)), both=st.booleans())
@torch.no_grad()
def test_packed_documents_do_not_see_each_other(
    model: VisionLanguageModel, documents: list[list[int]], padding: tuple[int, int], both: bool
) -> None:
    images = random_images(sum(items.count(ONE_IMAGE) for items in documents))
    encoded = [ids_of(items) for items in documents]
    which = [-1] * padding[0] + [d for d, tokens in enumerate(encoded) for _ in tokens] + [-1] * padding[1]
    ids = torch.full((1, len(which)), FIRST_WORD)
    ids[0, padding[0] : len(which) - padding[1]] = torch.tensor(ids_of([i for items in documents for i in items]))
    document_ids = torch.tensor([which])
    logits = model(ids, images, document_ids >= 0 if both else None, document_ids=document_ids).logits[0]
    for d, expected in enumerate(alone(model, documents, images)):
        assert max_difference(logits[document_ids[0] == d], expected) < TOLERANCE


@torch.no_grad()
def test_attention_mask_counts_in_packed_rows_too(model: VisionLanguageModel) -> None:
    ids = torch.tensor([[7, 8, 9, 10, 11, 12]])
    document_ids, real = torch.tensor([[0, 0, 0, 1, 1, 1]]), torch.tensor([[1, 0, 1, 1, 0, 1]])
    logits = model(ids, None, real, document_ids=document_ids).logits[0]
    assert max_difference(logits[[0, 2]], model(torch.tensor([[7, 9]])).logits[0]) < TOLERANCE
    assert max_difference(logits[[3, 5]], model(torch.tensor([[10, 12]])).logits[0]) < TOLERANCE


@given(batch=rows, data=st.data(), cuts=st.sets(st.integers(1, 40), max_size=4))
@torch.no_grad()
def test_the_cache_changes_no_logit_however_the_sequence_is_cut(
    model: VisionLanguageModel, batch: list[list[int]], data: st.DataObject, cuts: set[int]
) -> None:
    images = random_images(sum(items.count(ONE_IMAGE) for items in batch))
    ids, real = scattered(batch, data)
    width = ids.shape[1]
    x, _, _ = model.embed(ids, images, real)
    cache = KVCache(model.config.language, len(batch), width + 3, like=x)
    ends = sorted({0, width} | {cut for cut in cuts if cut < width})
    pieces = [model.decoder(x[:, a:b], real[:, a:b], cache=cache) for a, b in pairwise(ends)]
    assert max_difference(torch.cat(pieces, 1)[real], model.decoder(x, real)[real]) < TOLERANCE
    assert cache.length == width


@given(items=st.lists(st.one_of(words, st.just(ONE_IMAGE)), min_size=2, max_size=8), data=st.data())
@torch.no_grad()
def test_nothing_later_changes_an_earlier_logit(
    model: VisionLanguageModel, items: list[int], data: st.DataObject
) -> None:
    changed = data.draw(st.integers(0, len(items) - 1), label="changed item")
    images = random_images(items.count(ONE_IMAGE))
    before = model(torch.tensor([ids_of(items)]), images).logits[0]
    other, other_images, first = list(items), images.clone(), len(ids_of(items[:changed]))
    if items[changed] == ONE_IMAGE:
        other_images[items[:changed].count(ONE_IMAGE)] *= -1
    else:
        other[changed] = FIRST_WORD + (items[changed] - FIRST_WORD + 1) % (VOCAB_SIZE - FIRST_WORD)
    after = model(torch.tensor([ids_of(other)]), other_images).logits[0]
    assert max_difference(before[:first], after[:first]) < TOLERANCE
    assert max_difference(before[first], after[first]) > 1e-3, "the change itself went unnoticed"
    assert max_difference(before[-1], after[-1]) > 1e-4, "the last token does not see what changed"


@torch.no_grad()
def test_images_are_taken_in_reading_order(model: VisionLanguageModel) -> None:
    batch = [[ONE_IMAGE, 7, ONE_IMAGE, 8], [9, 10], [11, ONE_IMAGE, 12]]
    images = random_images(3)
    expected = alone(model, batch, images)
    ids, real = torch.zeros(3, 10, dtype=torch.long), torch.zeros(3, 10, dtype=torch.bool)
    for i, items in enumerate(batch):
        tokens = ids_of(items)
        ids[i, : len(tokens)], real[i, : len(tokens)] = torch.tensor(tokens), True
    logits = model(ids, images, real).logits
    assert max(max_difference(logits[i, real[i]], expected[i]) for i in range(3)) < TOLERANCE
    swapped = model(ids, images[[1, 0, 2]], real).logits
    assert max_difference(swapped[0, :8], logits[0, :8]) > 1e-2
    assert max_difference(swapped[2], logits[2]) < TOLERANCE
    turned = model(ids.flip(0), images[[2, 0, 1]], real.flip(0)).logits.flip(0)
    assert max_difference(turned[real], logits[real]) < TOLERANCE


@torch.no_grad()
def test_both_ways_to_join_agree(model_in_front: VisionLanguageModel) -> None:
    """A picture whose placeholders come first is a picture in front."""
    joined = tiny_model()
    joined.load_state_dict(model_in_front.state_dict())
    images, text = random_images(2), torch.randint(FIRST_WORD, VOCAB_SIZE, (2, 5))
    placeholders = torch.full((2, joined.config.num_image_tokens), IMAGE)
    expected = joined(torch.cat([placeholders, text], 1), images).logits
    assert max_difference(model_in_front(text, images).logits, expected) < TOLERANCE
    assert max_difference(joined(text, images).logits, expected) < TOLERANCE, "ids without any placeholder"


@pytest.mark.parametrize(
    ("image_token_id", "ids", "num_images"),
    [
        pytest.param(IMAGE, [ids_of([ONE_IMAGE, 7, 8]), ids_of([7, ONE_IMAGE, 8])], 3, id="a picture too many"),
        pytest.param(IMAGE, [ids_of([ONE_IMAGE, ONE_IMAGE])], 1, id="a picture too few"),
        pytest.param(IMAGE, [[7, IMAGE, IMAGE, IMAGE]], 1, id="a picture cut off"),
        pytest.param(IMAGE, [[IMAGE] * 5 + [7], [IMAGE] * 3 + [7] * 3], 2, id="torn over two rows, the sum is right"),
        pytest.param(IMAGE, [[7, 8], [7, 8]], 1, id="no placeholder, and not one picture a row"),
        pytest.param(None, [[7, 8], [7, 8]], 1, id="too few in front"),
        pytest.param(None, [[7, 8], [7, 8]], 3, id="too many in front"),
    ],
)
def test_placeholders_and_images_must_match(image_token_id: int | None, ids: list[list[int]], num_images: int) -> None:
    with pytest.raises(ValueError, match=r"placeholders|exactly one picture") as error:
        tiny_model(image_token_id)(torch.tensor(ids), random_images(num_images))
    assert "\n" not in str(error.value)


def test_other_bad_batches_are_refused_in_a_sentence(model: VisionLanguageModel) -> None:
    ids = torch.tensor([[7, 8, 9]])
    with pytest.raises(ValueError, match="no picture was given"):
        model(torch.tensor([ids_of([ONE_IMAGE])]), None)
    with pytest.raises(ValueError, match="Token id 48 is outside the vocabulary of 48"):
        model(torch.tensor([[7, VOCAB_SIZE]]))
    with pytest.raises(ValueError, match="Token id -100 is outside"):
        model(torch.tensor([[7, -100]]))
    with pytest.raises(ValueError, match=r"pictures of shape \[B, 3, 16, 16\]; got \[1, 3, 8, 8\]"):
        model(torch.tensor([ids_of([ONE_IMAGE])]), torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="longer than this model's 96 positions"):
        model(torch.full((1, 97), 7))
    with pytest.raises(ValueError, match="every target is -100"):
        model(ids, targets=torch.full_like(ids, -100))
    with pytest.raises(ValueError, match=r"targets \[.*\] needs the shape of input_ids"):
        model(ids, targets=ids[:, 1:])
    with pytest.raises(ValueError, match="a picture as prefix would belong to every document"):
        model(ids, random_images(1), document_ids=torch.tensor([[0, 0, 1]]))
    x = model.decoder.token_embedding(ids)
    with pytest.raises(ValueError, match="document_ids or a cache, not both"):
        model.decoder(x, document_ids=torch.zeros_like(ids), cache=KVCache(model.config.language, 1, 8, like=x))
    with pytest.raises(ValueError, match="room for 2 tokens"):
        model.decoder(x, cache=KVCache(model.config.language, 1, 2, like=x))
    with pytest.raises(ValueError, match="placeholders"):
        merge_image_tokens(torch.zeros(1, 4, 2), torch.ones(1, 3, 2), torch.ones(1, 4, dtype=torch.bool))
