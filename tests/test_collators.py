"""Batches lose nothing and mix nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanovlm.data.collators import PackingCollator, VQACollator, pack
from nanovlm.data.datasets import Skipped

PAD = 999
sizes = st.lists(st.tuples(st.integers(1, 30), st.integers(0, 3)), min_size=1, max_size=12)


def items_of(sizes):
    """Items whose every id and pixel tells where it comes from: ids 1000 i + t, pictures filled with 10 i + p."""
    items = []
    for i, (length, num_images) in enumerate(sizes):
        ids = 1000 * i + torch.arange(length)
        targets = torch.cat([ids[1:], torch.tensor([-100])])
        one_by_one = [torch.full((3, 2, 2), 10.0 * i + p) for p in range(num_images)]
        images = torch.stack(one_by_one) if one_by_one else torch.empty(0, 3, 2, 2)
        items.append({"input_ids": ids, "targets": targets, "images": images, "index": 100 + i})
    return items


@given(sizes, st.sampled_from([1, 8]))
def test_padding_keeps_every_token_in_its_place(sizes, multiple):
    batch = VQACollator(PAD, multiple)(items_of(sizes))
    longest = max(length for length, _ in sizes)
    assert batch["input_ids"].shape[1] == -(-longest // multiple) * multiple
    for i, (length, _) in enumerate(sizes):
        real = batch["attention_mask"][i].bool()
        assert int(real.sum()) == length
        assert real[:length].all()
        assert batch["input_ids"][i, real].tolist() == [1000 * i + t for t in range(length)]
        assert (batch["input_ids"][i, ~real] == PAD).all() and (batch["targets"][i, ~real] == -100).all()
        assert batch["targets"][i, real].tolist() == [*(1000 * i + t for t in range(1, length)), -100]
    assert batch["sample_indices"] == [100 + i for i in range(len(sizes))]
    check_images(batch, [(i, p) for i, (_, number) in enumerate(sizes) for p in range(number)])


def check_images(batch, expected):
    if not expected:
        assert batch["images"] is None
    else:
        assert batch["images"][:, 0, 0, 0].tolist() == [10.0 * i + p for i, p in expected]


@given(sizes, st.integers(30, 64))
def test_packed_rows_hold_every_document_whole_and_apart(sizes, max_length):
    batch = PackingCollator(PAD, max_length)(items_of(sizes))
    assert batch["input_ids"].shape[1] == max_length
    found = []
    for ids, targets, documents, mask in zip(
        batch["input_ids"], batch["targets"], batch["document_ids"], batch["attention_mask"], strict=True
    ):
        assert torch.equal(mask.bool(), documents >= 0)
        assert (ids[documents < 0] == PAD).all() and (targets[documents < 0] == -100).all()
        assert documents[documents >= 0].diff().ge(0).all(), "documents follow each other"
        for d in range(int(documents.max()) + 1):
            own = ids[documents == d]
            i = int(own[0]) // 1000
            assert own.tolist() == [1000 * i + t for t in range(sizes[i][0])]
            # The last token of a document asks for nothing: what follows it is somebody else's.
            assert targets[documents == d].tolist() == [*own[1:].tolist(), -100]
            found.append(i)
    assert sorted(found) == list(range(len(sizes)))
    assert batch["sample_indices"] == [100 + i for i in found]
    check_images(batch, [(i, p) for i in found for p in range(sizes[i][1])])


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(50, 80))
def test_pack_fills_rows_well(lengths, max_length):
    rows = pack(lengths, max_length)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    used = [sum(lengths[i] for i in row) for row in rows]
    assert all(0 < total <= max_length for total in used)
    # First fit: no two rows could be one.
    assert all(a + b > max_length for k, a in enumerate(used) for b in used[k + 1 :])


def test_pack_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="51 tokens does not fit into rows of 50"):
        pack([3, 51], 50)


def test_packing_wastes_less_than_padding():
    items = items_of([(5 + 9 * (i % 3), 0) for i in range(24)])
    packed, padded = (collate(items)["attention_mask"] for collate in (PackingCollator(PAD, 64), VQACollator(PAD)))
    assert (packed == 0).float().mean() < 0.5 * (padded == 0).float().mean()


def test_packed_rows_of_long_tailed_lengths_waste_less_than_a_twentieth():
    """Half of the samples are short and a few fill most of a row, as in mixtures of captions and documents."""
    lengths = torch.distributions.LogNormal(5.5, 1.0).icdf((torch.arange(256) + 0.5) / 256).clamp(max=4096).int()
    rows = pack(lengths.tolist(), 4096)
    assert 1 - float(lengths.sum()) / (4096 * len(rows)) < 0.05
    assert 1 - float(lengths.sum()) / (256 * int(lengths.max())) > 0.6, "padded"


@pytest.mark.parametrize("collator", [VQACollator(PAD), PackingCollator(PAD, 32)])
def test_skipped_items_are_set_aside(collator):
    skipped = Skipped(7, "torn")
    batch = collator([skipped, *items_of([(4, 1), (3, 0)])])
    assert batch["skipped"] == [skipped]
    assert sorted(batch["sample_indices"]) == [100, 101]
    assert "skipped" not in collator(items_of([(4, 1)]))
    with pytest.raises(ValueError, match="No sample of the batch can be used: sample 7: torn"):
        collator([skipped])
