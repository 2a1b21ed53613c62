"""Chapter 07: answers as people write them, wrong in ways that people are wrong, and what they should be told."""

from __future__ import annotations

import hashlib
import io
import random
from collections import Counter

import numpy as np
import torch
from PIL import Image, ImageOps

# -- data.messages_of --------------------------------------------------------------------------------------------------


def _both(turn):
    return [{"role": "user", "content": turn["user"]}, {"role": "assistant", "content": turn["assistant"]}]


def none_is_zero(sample, min_ratings):
    messages = []
    for i, turn in enumerate(sample["texts"]):
        ratings = {n: (sample.get(f"{n}_ratings") or [5] * len(sample["texts"]))[i] or 0 for n in min_ratings}
        if all(ratings[n] >= low for n, low in min_ratings.items()):
            messages += _both(turn)
    if not messages:
        raise ValueError("empty")
    return messages


def strictly_greater(sample, min_ratings):
    messages = []
    for i, turn in enumerate(sample["texts"]):
        for name, low in min_ratings.items():
            ratings = sample.get(f"{name}_ratings")
            if ratings and ratings[i] is not None and ratings[i] <= low:
                break
        else:
            messages += _both(turn)
    return messages


def stops_at_the_first(sample, min_ratings):
    messages = []
    for i, turn in enumerate(sample["texts"]):
        for name, low in min_ratings.items():
            ratings = sample.get(f"{name}_ratings")
            if ratings and ratings[i] is not None and ratings[i] < low:
                return messages
        messages += _both(turn)
    return messages


def whole_sample_or_nothing(sample, min_ratings):
    for name, low in min_ratings.items():
        if any(r is not None and r < low for r in sample.get(f"{name}_ratings") or []):
            return []
    return [m for turn in sample["texts"] for m in _both(turn)]


def compares_none(sample, min_ratings):
    keep = [True] * len(sample["texts"])
    for name, low in min_ratings.items():
        for i, rating in enumerate(sample.get(f"{name}_ratings") or []):
            keep[i] = keep[i] and rating >= low
    return [m for turn, kept in zip(sample["texts"], keep, strict=True) if kept for m in _both(turn)]


def column_must_be_there(sample, min_ratings):
    messages = []
    for i, turn in enumerate(sample["texts"]):
        if all(sample[n + "_ratings"][i] is None or sample[n + "_ratings"][i] >= low for n, low in min_ratings.items()):
            messages += _both(turn)
    return messages


def deletes_from_the_sample(sample, min_ratings):
    for name, low in min_ratings.items():
        ratings = sample.get(f"{name}_ratings") or []
        for i in reversed(range(len(ratings))):
            if ratings[i] is not None and ratings[i] < low:
                del sample["texts"][i]
    return [m for turn in sample["texts"] for m in _both(turn)]


def empty_is_fine(sample, min_ratings):
    """Right, but for what happens when nothing is left."""
    keep = [True] * len(sample["texts"])
    for name, low in min_ratings.items():
        for i, rating in enumerate(sample.get(f"{name}_ratings") or []):
            keep[i] = keep[i] and (rating is None or rating >= low)
    return [m for turn, kept in zip(sample["texts"], keep, strict=True) if kept for m in _both(turn)]


# -- data.blind_score --------------------------------------------------------------------------------------------------


def one_guess_for_all(train, test):
    guess = Counter(a for _, a in train).most_common(1)[0][0]
    return sum(a == guess for _, a in test) / len(test)


def counts_in_the_test(train, test):
    best = {q: Counter(a for p, a in test if p == q).most_common(1)[0][0] for q, _ in test}
    return sum(best[q] == a for q, a in test) / len(test)


def unknown_is_wrong(train, test):
    right = 0
    for question, answer in test:
        answers = Counter(a for q, a in train if q == question)
        right += bool(answers) and answers.most_common(1)[0][0] == answer
    return right / len(test)


def last_one_wins(train, test):
    guesses = {q: a for q, a in train}  # noqa: C416
    most = Counter(a for _, a in train).most_common(1)[0][0]
    return sum(guesses.get(q, most) == a for q, a in test) / len(test)


def a_count_not_a_share(train, test):
    right = 0
    most = Counter(a for _, a in train).most_common(1)[0][0]
    for question, answer in test:
        answers = Counter(a for q, a in train if q == question)
        right += (answers.most_common(1)[0][0] if answers else most) == answer
    return float(right)


def mean_over_questions(train, test):
    most = Counter(a for _, a in train).most_common(1)[0][0]
    scores = []
    for question in {q for q, _ in test}:
        answers = Counter(a for q, a in train if q == question)
        guess = answers.most_common(1)[0][0] if answers else most
        asked = [a for q, a in test if q == question]
        scores.append(asked.count(guess) / len(asked))
    return sum(scores) / len(scores)


# -- data.open_image -------------------------------------------------------------------------------------------------


def just_convert(content):
    return Image.open(io.BytesIO(content)).convert("RGB")


def no_exif(content):
    try:
        image = Image.open(io.BytesIO(content))
        image.load()
    except Exception as error:
        raise ValueError("bad") from error
    if image.mode == "I;16":
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba).convert("RGB")


def exif_after_convert(content):
    image = Image.open(io.BytesIO(content))
    if image.mode == "I;16":
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    if image.mode == "RGBA" or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.new("RGB", rgba.size, "white")
        image.paste(rgba, mask=rgba.split()[3])
    return Image.fromarray(np.asarray(image.convert("RGB")))  # the EXIF block is gone


def alpha_dropped(content):
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    if image.mode == "I;16":
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    return image.convert("RGB")


def deep_grey_clipped(content):
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    if image.mode == "RGBA" or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")


def palette_forgotten(content):
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    if image.mode == "I;16":
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _careful(content):
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    if image.mode == "I;16":
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    if image.mode == "RGBA" or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")


def black_on_error(content):
    try:
        return _careful(content)
    except Exception:
        return Image.new("RGB", (224, 224))


def lets_pillow_raise(content):
    return _careful(content)


def no_conversion(content):
    return Image.open(io.BytesIO(content))


# -- data.split_by_image ---------------------------------------------------------------------------------------------


def shuffles_samples(images, val_share, seed):
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).tolist()
    cut = int(len(order) * val_share)
    return order[cut:], order[:cut]


def python_hash(images, val_share, seed):
    train, val = [], []
    for i, image in enumerate(images):
        (val if hash((image, seed)) % 1000 < 1000 * val_share else train).append(i)
    return train, val


def shuffles_unique(images, val_share, seed):
    unique = list(dict.fromkeys(images))
    random.Random(seed).shuffle(unique)
    val = set(unique[: int(len(unique) * val_share)])
    return [i for i, p in enumerate(images) if p not in val], [i for i, p in enumerate(images) if p in val]


def _number(image, seed):
    return int.from_bytes(hashlib.sha256(b"%d" % seed + image).digest()[:4], "big") / 2**32


def swapped(images, val_share, seed):
    val = [i for i, p in enumerate(images) if _number(p, seed) < val_share]
    return val, sorted(set(range(len(images))) - set(val))


def without_seed(images, val_share, seed):
    val = [i for i, p in enumerate(images) if _number(p, 0) < val_share]
    return sorted(set(range(len(images))) - set(val)), val


def unseeded_coins(images, val_share, seed):
    coins = {p: random.random() for p in images}
    val = [i for i, p in enumerate(images) if coins[p] < val_share]
    return [i for i in range(len(images)) if i not in val], val


def the_last_ones(images, val_share, seed):
    start = int(len(images) * (1 - val_share))
    return list(range(start)), list(range(start, len(images)))


# -- data.pad_batch ----------------------------------------------------------------------------------------------------


def _padded(rows, value):
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)


def everything_with_pad_id(ids, targets, images, pad_id):
    mask = _padded([torch.ones_like(row) for row in ids], 0)
    return _padded(ids, pad_id), mask, _padded(targets, pad_id), torch.cat(images)


def mask_by_comparison(ids, targets, images, pad_id):
    padded = _padded(ids, pad_id)
    return padded, (padded != pad_id).long(), _padded(targets, -100), torch.cat(images)


def left_padded(ids, targets, images, pad_id):
    length = max(map(len, ids))
    out = (
        torch.full((len(ids), length), pad_id),
        torch.zeros(len(ids), length).long(),
        torch.full((len(ids), length), -100),
    )
    for b, (row, learned) in enumerate(zip(ids, targets, strict=True)):
        out[0][b, -len(row) :], out[1][b, -len(row) :], out[2][b, -len(row) :] = row, 1, learned
    return (*out, torch.cat(images))


def stacked_images(ids, targets, images, pad_id):
    mask = _padded([torch.ones_like(row) for row in ids], 0)
    return _padded(ids, pad_id), mask, _padded(targets, -100), torch.stack(images)


def bool_mask(ids, targets, images, pad_id):
    mask = _padded([torch.ones_like(row) for row in ids], 0)
    return _padded(ids, pad_id), mask.bool(), _padded(targets, -100), torch.cat(images)


def pads_with_zero(ids, targets, images, pad_id):
    mask = _padded([torch.ones_like(row) for row in ids], 0)
    return _padded(ids, 0), mask, _padded(targets, 0), torch.cat(images)


def first_image_each(ids, targets, images, pad_id):
    mask = _padded([torch.ones_like(row) for row in ids], 0)
    return _padded(ids, pad_id), mask, _padded(targets, -100), torch.cat([i[:1] for i in images])


# -- data.test_pad_batch -----------------------------------------------------------------------------------------------


def _example(*lengths, pad=9, token=5):
    ids = [torch.full((n,), token) for n in lengths]
    return ids, [row.clone() for row in ids], [torch.full((1, 3, 1, 1), float(n)) for n in lengths], pad


def looks_at_shapes(pad_batch):
    ids, mask, targets, _ = pad_batch(*_example(2, 4))
    assert ids.shape == (2, 4) and mask.shape == (2, 4) and targets.shape == (2, 4)


def asserts_nothing(pad_batch):
    pad_batch(*_example(2, 4))


def returns_a_verdict(pad_batch):
    ids, _, _, _ = pad_batch(*_example(2, 4))
    return ids.shape == (2, 4)


def kind_example(pad_batch):
    ids, mask, targets, images = pad_batch(*_example(2, 4))
    assert ids.tolist() == [[5, 5, 9, 9], [5] * 4]
    assert mask.tolist() == [[1, 1, 0, 0], [1] * 4]
    assert targets.tolist() == [[5, 5, -100, -100], [5] * 4]
    assert images.flatten().tolist() == [2.0] * 3 + [4.0] * 3


def equal_rows(pad_batch):
    ids, mask, targets, images = pad_batch(*_example(3, 3))
    assert ids.tolist() == [[5] * 3] * 2 and mask.tolist() == [[1] * 3] * 2 and targets.tolist() == [[5] * 3] * 2
    assert images.flatten().tolist() == [3.0] * 6


def too_strict(pad_batch):
    _, mask, _, _ = pad_batch(*_example(2, 4))
    assert mask.dtype == torch.bool


# -- data.pack ---------------------------------------------------------------------------------------------------------


def _rows(order, lengths, max_length, fits=lambda used, n, m: used + n <= m):
    rows = []
    for i in order:
        for row in rows:
            if fits(sum(lengths[j] for j in row), lengths[i], max_length):
                row.append(i)
                break
        else:
            rows.append([i])
    return rows


def in_data_order(lengths, max_length):
    return _rows(range(len(lengths)), lengths, max_length)


def ascending(lengths, max_length):
    return _rows(sorted(range(len(lengths)), key=lengths.__getitem__), lengths, max_length)


def strictly_below(lengths, max_length):
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    return _rows(order, lengths, max_length, lambda used, n, m: used + n < m)


def the_lengths_themselves(lengths, max_length):
    rows = []
    for length in sorted(lengths, reverse=True):
        row = next((r for r in rows if sum(r) + length <= max_length), None)
        if row is None:
            rows.append([length])
        else:
            row.append(length)
    return rows


def next_fit(lengths, max_length):
    rows, used = [[]], 0
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if used + lengths[i] > max_length:
            rows.append([])
            used = 0
        rows[-1].append(i)
        used += lengths[i]
    return rows


def sorts_in_place(lengths, max_length):
    lengths.sort(reverse=True)
    return _rows(range(len(lengths)), lengths, max_length)


def long_ones_alone(lengths, max_length):
    """Right, but a sample that fits nowhere has a row that is too long."""
    return _rows(sorted(range(len(lengths)), key=lambda i: -lengths[i]), lengths, max_length)


# -- data.document_mask ------------------------------------------------------------------------------------------------


def _causal(ids):
    return torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()


def as_it_was(ids):
    T = ids.shape[1]
    return (_causal(ids) & (ids >= 0)[:, None, :] | torch.eye(T).bool())[:, None], torch.arange(T).expand_as(ids)


def positions_run_on(ids):
    mask = _causal(ids) & (ids[:, :, None] == ids[:, None, :])
    return mask[:, None], torch.arange(ids.shape[1]).expand_as(ids)


def sees_the_future(ids):
    mask = ids[:, :, None] == ids[:, None, :]
    return mask[:, None], (mask & _causal(ids)).sum(dim=2) - 1


def nothing_for_padding(ids):
    mask = _causal(ids) & (ids[:, :, None] == ids[:, None, :]) & (ids >= 0)[:, None, :]
    return mask[:, None], (mask.sum(dim=2) - 1).clamp(min=0)


def counts_from_one(ids):
    mask = _causal(ids) & (ids[:, :, None] == ids[:, None, :])
    return mask[:, None], mask.sum(dim=2)


def additive(ids):
    mask = _causal(ids) & (ids[:, :, None] == ids[:, None, :])
    return torch.where(mask, 0.0, float("-inf"))[:, None], mask.sum(dim=2) - 1


def no_axis_for_heads(ids):
    mask = _causal(ids) & (ids[:, :, None] == ids[:, None, :])
    return mask, mask.sum(dim=2) - 1


# -- data.resumable_order ----------------------------------------------------------------------------------------------


def _permutation(size, seed):
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed)).tolist()


def same_every_epoch(batch, size, batch_size, seed):
    order = _permutation(size, seed)
    return [order[p % size] for p in range(batch * batch_size, (batch + 1) * batch_size)]


def short_last_batch(batch, size, batch_size, seed):
    per_epoch = (size + batch_size - 1) // batch_size
    order = _permutation(size, seed + batch // per_epoch)
    start = batch % per_epoch * batch_size
    return order[start : start + batch_size]


def drops_the_rest(batch, size, batch_size, seed):
    per_epoch = size // batch_size
    order = _permutation(size, 17 * seed + batch // per_epoch) if per_epoch else list(range(size))
    start = batch % max(1, per_epoch) * batch_size
    return order[start : start + batch_size]


def global_generator(batch, size, batch_size, seed):
    order = torch.randperm(size).tolist()
    return [order[p % size] for p in range(batch * batch_size, (batch + 1) * batch_size)]


def draws_each_batch(batch, size, batch_size, seed):
    return random.Random(f"{seed} {batch}").choices(range(size), k=batch_size)


def unshuffled(batch, size, batch_size, seed):
    return [p % size for p in range(batch * batch_size, (batch + 1) * batch_size)]


def epoch_of_the_first(batch, size, batch_size, seed):
    start = batch * batch_size
    order = _permutation(size, seed + 999 * (start // size))
    return [order[p % size] for p in range(start, start + batch_size)]


WRONG = {
    "data.messages_of": [
        (none_is_zero, "as if None were 0"),
        (strictly_greater, "equals the minimum"),
        (stops_at_the_first, "continue"),
        (whole_sample_or_nothing, "drop the turn, keep the sample"),
        (compares_none, "rating is not None"),
        (column_must_be_there, "sample.get"),
        (deletes_from_the_sample, "delete the low turns"),
        (empty_is_fine, "raise ValueError"),
    ],
    "data.blind_score": [
        (one_guess_for_all, "for each question separately"),
        (counts_in_the_test, "Count in training"),
        (unknown_is_wrong, "never asked counts as wrong"),
        (last_one_wins, "a dict keeps one"),
        (a_count_not_a_share, "A score is a share"),
        (mean_over_questions, "average over the questions"),
    ],
    "data.open_image": [
        (just_convert, "and nothing else"),
        (no_exif, "EXIF"),
        (exif_after_convert, "EXIF"),
        (alpha_dropped, "drops the alpha"),
        (deep_grey_clipped, "16-bit grey is clipped"),
        (palette_forgotten, "palette"),
        (black_on_error, "a black picture"),
        (lets_pillow_raise, "raise ValueError"),
        (no_conversion, "comes back as it was opened"),
    ],
    "data.split_by_image": [
        (shuffles_samples, "shuffled and cut"),
        (python_hash, "hash() of bytes is salted"),
        (shuffles_unique, "Decide for each picture alone"),
        (swapped, "swapped"),
        (without_seed, "The seed does not reach"),
        (unseeded_coins, "not seeded"),
        (the_last_ones, "its end is held out"),
    ],
    "data.pad_batch": [
        (everything_with_pad_id, "trained to write padding"),
        (mask_by_comparison, "take it from the lengths"),
        (left_padded, "on the left"),
        (stacked_images, "stack"),
        (bool_mask, "not True or False"),
        (pads_with_zero, "filled with one value"),
        (first_image_each, "first picture of each sample"),
    ],
    "data.test_pad_batch": [
        (looks_at_shapes, "shapes alone"),
        (asserts_nothing, "no assert in it can fail"),
        (returns_a_verdict, "says True or False"),
        (kind_example, "none of its tokens has"),
        (equal_rows, "rows of one length"),
        (too_strict, "right pad_batch does not do"),
    ],
    "data.pack": [
        (in_data_order, "in the order of the data"),
        (ascending, "shortest come first"),
        (strictly_below, "compare with >="),
        (the_lengths_themselves, "The rows hold lengths"),
        (next_fit, "next-fit"),
        (sorts_in_place, "sorted in place"),
        (long_ones_alone, "Raise ValueError"),
    ],
    "data.document_mask": [
        (as_it_was, "the code that was to be mended"),
        (positions_run_on, "positions run on"),
        (sees_the_future, "the future is not hidden"),
        (nothing_for_padding, "0 / 0"),
        (counts_from_one, "first position of a document is 1"),
        (additive, "Return bools"),
        (no_axis_for_heads, "axis of the heads is missing"),
    ],
    "data.resumable_order": [
        (same_every_epoch, "Every epoch has the same order"),
        (short_last_batch, "last batch of an epoch is short"),
        (drops_the_rest, "samples are lost or come twice"),
        (global_generator, "global generator"),
        (draws_each_batch, "draws its own samples"),
        (unshuffled, "Nothing is shuffled"),
        (epoch_of_the_first, "samples are lost or come twice"),
    ],
}

# pytest would take these for tests of ours.
for _test in (looks_at_shapes, asserts_nothing, returns_a_verdict, kind_example, equal_rows, too_strict):
    _test.__test__ = False
