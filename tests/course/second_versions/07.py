"""Chapter 07 once more, written in other ways."""

from __future__ import annotations

import bisect
import functools
import hashlib
import io
import itertools
import random
import zlib
from collections import Counter

import numpy as np
import torch
from PIL import Image, ImageOps

ROLES = ("user", "assistant")


def messages_of(sample, min_ratings):
    """Rows of ratings, by zip."""
    turns = sample["texts"]
    columns = [(sample.get(f"{name}_ratings") or [None] * len(turns), low) for name, low in min_ratings.items()]
    kept = [t for i, t in enumerate(turns) if not any(c[i] is not None and c[i] < low for c, low in columns)]
    if kept:
        return [{"role": role, "content": turn[role]} for turn in kept for role in ROLES]
    raise ValueError("nothing left")


def messages_by_deletion(sample, min_ratings):
    """A set of numbers to drop, first."""
    drop = set()
    for key, ratings in sample.items():
        name = key.removesuffix("_ratings")
        if name != key and name in min_ratings:
            for number, rating in enumerate(ratings or []):
                if rating is not None and rating < min_ratings[name]:
                    drop.add(number)
    messages = []
    for number, turn in enumerate(sample["texts"]):
        if number not in drop:
            messages += [{"role": "user", "content": turn["user"]}, {"role": "assistant", "content": turn["assistant"]}]
    if len(messages) == 0:
        raise ValueError
    return messages


def blind_score(train, test):
    """max over the answers of each question; dicts keep the order."""

    def most(answers):
        return max(dict.fromkeys(answers), key=answers.count)

    guesses = {q: most([a for p, a in train if p == q]) for q, _ in train}
    fallback = most([a for _, a in train])
    return float(np.mean([guesses.get(q, fallback) == a for q, a in test]))


def blind_by_counter_of_pairs(train, test):
    pairs, overall = Counter(train), Counter(a for _, a in train)
    best = {}
    for (question, answer), count in pairs.items():
        if question not in best or count > pairs[question, best[question]]:
            best[question] = answer
    return sum(best.get(q, overall.most_common()[0][0]) == a for q, a in test) / len(test)


def open_image(content):
    """Pasting through a mask; the shift instead of the division; PIL's own errors gathered by name."""
    try:
        with Image.open(io.BytesIO(content)) as opened:
            image = opened.copy()
            turned = ImageOps.exif_transpose(opened) or image
    except (OSError, SyntaxError, EOFError, ValueError) as error:
        raise ValueError("unreadable") from error
    if turned.mode[:4] == "I;16":
        turned = Image.fromarray((np.array(turned) >> 8).astype("uint8"), "L")
    if "A" in turned.mode or turned.info.get("transparency") is not None:
        page = Image.new("RGB", turned.size, (255, 255, 255))
        turned = turned.convert("RGBA")
        page.paste(turned, mask=turned.getchannel("A"))
        return page
    return turned if turned.mode == "RGB" else turned.convert("RGB")


def open_in_numpy(content):
    """Alpha by hand, the turn at the end."""
    try:
        image = Image.open(io.BytesIO(content))
        image.load()
        orientation = image.getexif().get(0x0112, 1)
    except Exception as error:
        raise ValueError(str(error)) from error
    array = np.asarray(image)
    if array.dtype == np.uint16:
        rgb = np.repeat((array / 65535 * 255)[..., None], 3, axis=2)
    else:
        rgba = np.asarray(image.convert("RGBA")).astype(float)
        alpha = rgba[..., 3:] / 255
        rgb = rgba[..., :3] * alpha + 255 * (1 - alpha)
    turns = {6: lambda a: np.rot90(a, -1), 3: lambda a: np.rot90(a, 2), 8: np.rot90}
    rgb = turns.get(orientation, lambda a: a)(rgb)
    return Image.fromarray(np.round(rgb).astype(np.uint8))


def split_by_image(images, val_share, seed):
    """crc32, mixed once more."""
    side = [random.Random(zlib.crc32(p) * 1000 + seed).random() < val_share for p in images]
    return [i for i, v in enumerate(side) if not v], [i for i, v in enumerate(side) if v]


def split_by_seeded_random(images, val_share, seed):
    """random.Random takes text as a seed, and hashes it the same way everywhere."""
    numbers = np.array([random.Random(f"{seed}{p!r}").random() for p in images])
    return np.flatnonzero(numbers >= val_share).tolist(), np.flatnonzero(numbers < val_share).tolist()


def pad_batch(ids, targets, images, pad_id):
    """torch's own padding."""
    pad = functools.partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
    mask = pad([torch.ones(len(row), dtype=torch.int64) for row in ids])
    return pad(ids, padding_value=pad_id), mask, pad(targets, padding_value=-100), torch.cat(images, dim=0)


def pad_with_lists(ids, targets, images, pad_id):
    longest = max(map(len, ids))
    columns = ([], [], [])
    for row, learned in zip(ids, targets, strict=True):
        gap = longest - len(row)
        columns[0].append(row.tolist() + [pad_id] * gap)
        columns[1].append([1] * len(row) + [0] * gap)
        columns[2].append(learned.tolist() + [-100] * gap)
    return (*map(torch.tensor, columns), torch.cat([image[None] for sample in images for image in sample]))


def a_test(pad_batch):
    """Against torch's own padding, on a random example with everything in it."""
    ids = [torch.tensor([3, 5, 3]), torch.tensor([7, 3, 9, 4, 3]), torch.tensor([3])]
    targets = [row.flip(0) for row in ids]
    images = [torch.rand(n, 3, 2, 2) for n in (1, 2, 1)]
    out = pad_batch(ids, targets, images, 3)
    lengths = [3, 5, 1]
    for b, n in enumerate(lengths):
        assert out[0][b, :n].equal(ids[b]) and (out[0][b, n:] == 3).all()
        assert out[1][b].sum() == n and out[1][b, :n].all()
        assert out[2][b, :n].equal(targets[b]) and (out[2][b, n:] == -100).all()
    assert out[0].shape[1] == max(lengths)
    assert torch.equal(out[3], torch.cat(images))


def b_test(pad_batch):
    """Errors raised by hand."""
    ids, targets = [torch.tensor([4, 4]), torch.tensor([4])], [torch.tensor([4, -100]), torch.tensor([4])]
    images = [torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1)]
    a, b, c, d = pad_batch(ids, targets, images, 4)
    if [a.tolist(), b.tolist(), c.tolist(), d[:, 0, 0, 0].tolist()] != [
        [[4, 4], [4, 4]],
        [[1, 1], [1, 0]],
        [[4, -100], [4, -100]],
        [0.0, 1.0],
    ]:
        raise AssertionError("not what I wrote down")


for _test in (a_test, b_test):
    _test.__test__ = False


def pack(lengths, max_length):
    """Rows as dicts, chosen by next."""
    if any(length > max_length for length in lengths):
        raise ValueError("too long")
    rows = []
    for length, number in sorted((-length, i) for i, length in enumerate(lengths)):
        home = next((r for r in rows if r["used"] - length <= max_length), None)
        if home is None:
            home = {"used": 0, "samples": []}
            rows.append(home)
        home["used"] -= length
        home["samples"].append(number)
    return [r["samples"] for r in rows]


def pack_in_numpy(lengths, max_length):
    """As many rows as samples, and the first in which the sum stays within bounds."""
    lengths = np.array(lengths)
    if lengths.max() > max_length:
        raise ValueError("too long")
    used, rows = np.zeros(len(lengths), dtype=int), [[] for _ in lengths]
    for sample in np.argsort(-lengths, kind="stable"):
        row = int(np.argmax(used + lengths[sample] <= max_length))
        used[row] += lengths[sample]
        rows[row].append(int(sample))
    return [row for row in rows if row]


def document_mask(document_ids):
    """Query by query."""
    batch, length = document_ids.shape
    mask = torch.zeros(batch, 1, length, length, dtype=torch.bool)
    positions = torch.zeros_like(document_ids)
    for b, row in enumerate(document_ids.tolist()):
        start = {}
        for q, document in enumerate(row):
            first = start.setdefault(document, q)
            if document < 0:
                mask[b, 0, q, q] = True
            else:
                mask[b, 0, q, first : q + 1] = True
                positions[b, q] = q - first
    return mask, positions


def document_mask_by_starts(document_ids):
    """Where the number changes a document begins; padding may see padding, and that is all right."""
    index = torch.arange(document_ids.shape[1])
    changes = torch.ones_like(document_ids, dtype=torch.bool)
    changes[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    starts = torch.where(changes, index, 0).cummax(dim=1).values
    mask = (index[None, None, :] >= starts[:, :, None]) & (index[None, None, :] <= index[None, :, None])
    return mask.unsqueeze(1), index - starts


def batch_indices(batch, size, batch_size, seed):
    """One long list, cut at the end."""
    epochs = (batch + 1) * batch_size // size + 1
    orders = [random.Random(f"{seed}/{epoch}").sample(range(size), size) for epoch in range(epochs)]
    return list(itertools.chain(*orders))[batch * batch_size : (batch + 1) * batch_size]


def batch_by_sorting_hashes(batch, size, batch_size, seed):
    """Each sample's place in an epoch is the rank of its hash."""

    def order(epoch):
        keys = [(hashlib.md5(b"%d %d %d" % (seed, epoch, i)).digest(), i) for i in range(size)]
        ranked = []
        for key in keys:
            bisect.insort(ranked, key)
        return [i for _, i in ranked]

    return [order(p // size)[p % size] for p in range(batch * batch_size, batch * batch_size + batch_size)]


VERSIONS = {
    "data.messages_of": (messages_of, messages_by_deletion),
    "data.blind_score": (blind_score, blind_by_counter_of_pairs),
    "data.open_image": (open_image, open_in_numpy),
    "data.split_by_image": (split_by_image, split_by_seeded_random),
    "data.pad_batch": (pad_batch, pad_with_lists),
    "data.test_pad_batch": (a_test, b_test),
    "data.pack": (pack, pack_in_numpy),
    "data.document_mask": (document_mask, document_mask_by_starts),
    "data.resumable_order": (batch_indices, batch_by_sorting_hashes),
}
