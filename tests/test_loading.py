"""Batches as a pure function of (seed, number), from memory, parquet and streams; bad data is counted, never fatal."""

from __future__ import annotations

import itertools
import pickle
import shutil
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nanovlm.assets import asset_path
from nanovlm.config import TrainConfig
from nanovlm.data.batches import BatchOrder, Loader, MapBatches, StreamBatches
from nanovlm.data.collators import VQACollator
from nanovlm.data.datasets import VQADataset
from nanovlm.data.loading import get_dataloaders, split_indices
from nanovlm.data.streaming import Mixture, Source, StreamReader
from nanovlm.data.thimble import Thimble
from nanovlm.data.thimble.hub_datasets import png
from tests.test_datasets import PROCESSOR, TOKENIZER, vlm_config

CONFIG = vlm_config()


def samples(size, bad=()):
    """Sample i asks for i; a bad one has a torn picture."""
    image = Image.new("RGB", (16, 16))
    return [
        {
            "images": [b"torn" if i in bad else image],
            "texts": [{"user": "Which?", "assistant": f"{i}", "source": "s"}],
        }
        for i in range(size)
    ]


def loader(size=10, batch_size=4, bad=(), endless=True, num_workers=0, seed=0):
    dataset = VQADataset(samples(size, bad), TOKENIZER, PROCESSOR, CONFIG)
    order = BatchOrder(torch.arange(size), batch_size, seed, shuffle=endless)
    return Loader(MapBatches(dataset, order, VQACollator(TOKENIZER.pad_token_id), endless), num_workers)


def first(loader, number):
    return list(itertools.islice(loader, number))


def indices(batches):
    return [batch["sample_indices"] for batch in batches]


def flat(lists):
    return list(itertools.chain.from_iterable(lists))


def same(a, b):
    return a.keys() == b.keys() and all(
        torch.equal(x, b[k]) if isinstance(x, torch.Tensor) else x == b[k] for k, x in a.items()
    )


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 2**31))
def test_every_epoch_has_every_sample_once(size, batch_size, seed):
    order = BatchOrder(torch.arange(100, 100 + size), batch_size, seed)
    batches = [order.batch_indices(n) for n in range(3 * size)]
    assert all(len(batch) == batch_size for batch in batches)
    laid_out = flat(batches)
    for epoch in range(3 * batch_size):
        assert sorted(laid_out[epoch * size : (epoch + 1) * size]) == list(range(100, 100 + size))
    assert (len(order) - 1) * batch_size < size <= len(order) * batch_size
    # No memory: a batch asked for on its own, in any order, is the same.
    again = BatchOrder(torch.arange(100, 100 + size), batch_size, seed)
    assert [again.batch_indices(n) for n in reversed(range(3 * size))][::-1] == batches


def test_epochs_and_seeds_differ():
    order = BatchOrder(torch.arange(50), 50, seed=0)
    other = BatchOrder(torch.arange(50), 50, seed=1)
    assert order.batch_indices(0) != order.batch_indices(1) != other.batch_indices(1)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 50), st.integers(0, 100))
def test_substitutes_are_all_the_others_once(size, batch):
    order = BatchOrder(torch.arange(size), 3, seed=0, shuffle=False)
    tried = [order.batch_indices(batch)[1], *order.substitutes(3 * batch + 1)]
    assert sorted(tried) == list(range(size))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_loader_goes_on_as_if_nothing_had_happened(num_workers):
    with pytest.warns(UserWarning, match="Skipped sample 3"):
        whole = first(loader(bad={3}), 9)
    resumed = loader(bad={3}, num_workers=num_workers)
    with pytest.warns(UserWarning, match="Skipped sample 3"):
        resumed.set_start(16)
        again = first(resumed, 5)
    assert all(same(a, b) for a, b in zip(again, whole[4:], strict=True))
    resumed.set_start(8)  # the same workers, asked anew
    assert same(first(resumed, 1)[0], whole[2])


def test_processes_share_the_batches():
    whole = indices(first(loader(), 8))
    for rank in range(2):
        own = loader()
        own.set_start(16, rank, world=2)
        assert indices(first(own, 2)) == whole[4 + rank :: 2]


def test_length_is_batches_per_epoch_and_the_loader_goes_on():
    endless = loader(size=10, batch_size=4)
    assert len(endless) == 3
    assert len(first(endless, 20)) == 20


def test_reading_data_draws_nothing_from_the_global_generator():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first(loader(), 3)
    assert torch.equal(before, torch.get_rng_state())


def test_batches_travel_by_pickle():
    """macOS and Windows start workers that way."""
    batches = loader(bad={2}).batches
    again = pickle.loads(pickle.dumps(batches))
    assert same(again[20].batch, batches[20].batch) and again[20].skipped == batches[20].skipped


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_samples_are_replaced_and_counted_once(num_workers):
    bad = {1, 4, 5}
    source = loader(size=10, bad=bad, num_workers=num_workers)
    with pytest.warns(UserWarning, match="not a picture") as caught:
        batches = first(source, 10)
    # torch has warnings of its own, about workers on a machine with one core.
    assert len([w for w in caught if "not a picture" in str(w.message)]) == 1, "one warning, then counting"
    seen = set(flat(indices(batches)))
    assert all(len(batch["sample_indices"]) == 4 for batch in batches)
    assert seen == set(range(10)) - bad
    assert sorted(skipped.index for skipped in source.skipped) == sorted(bad)
    assert all("not a picture" in skipped.reason for skipped in source.skipped)
    assert all("skipped" not in batch for batch in batches)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("size", [3, 2000])
@pytest.mark.filterwarnings("ignore:Skipped")
def test_nothing_but_bad_samples_is_one_clear_error(num_workers, size):
    source = loader(size=size, bad=range(size), num_workers=num_workers)
    with pytest.raises(
        ValueError, match=r"Not one usable sample among the last \d+ of the data: sample .*not a picture"
    ):
        next(iter(source))


@pytest.mark.filterwarnings("ignore:Skipped")
def test_one_good_sample_among_many_bad_ones_is_found():
    batch = first(loader(size=500, bad=set(range(500)) - {321}), 1)[0]
    assert batch["sample_indices"] == [321] * 4


@pytest.mark.filterwarnings("ignore:Skipped")
def test_validation_is_one_pass_in_order():
    source = loader(size=10, bad={2, 4, 5, 6, 7}, endless=False)
    for _ in range(2):
        assert indices(source) == [[0, 1, 3], [8, 9]]  # the batch of 4 to 7 has nothing left
    assert len(source.skipped) == 5


def train_config(**values):
    options = {"dataset_size": 20, "val_size": 6, "batch_size": 4, "max_length": 512}
    return TrainConfig(**{**options, **values})


def loaders(**values):
    return get_dataloaders(train_config(**values), CONFIG, TOKENIZER, PROCESSOR)


def answers(batches):
    """The supervised text of each sample: what tells the samples apart."""
    return [TOKENIZER.decode(row[row >= 0]) for batch in batches for row in batch["targets"]]


def test_thimble_subsets_are_joined_and_shuffled():
    train, val = loaders(dataset_names=("shapes", "charts"))
    epoch = flat(indices(first(train, 10)))
    assert sorted(epoch) == list(range(40)) and epoch != sorted(epoch)
    assert len(train) == 10 and flat(indices(val)) == list(range(12))
    assert first(train, 1)[0]["images"].shape == (4, 3, 16, 16)
    captions = {
        turn["assistant"] for sample in Thimble("shapes", "val", 6, image_size=16) for turn in sample["texts"][-1:]
    }
    assert all(any(caption in text for text in answers(val)) for caption in captions)


def test_cutoff():
    train, _ = loaders(dataset_names=("all",), data_cutoff_idx=7)
    assert len(set(flat(indices(first(train, 9))))) == 7


def test_packing_sees_the_same_samples():
    padded, _ = loaders(max_length=1024)
    packed, _ = loaders(packing=True, max_length=1024)
    for a, b in zip(first(padded, 5), first(packed, 5), strict=True):
        assert sorted(a["sample_indices"]) == sorted(b["sample_indices"])
        learned = [Counter(batch["targets"][batch["targets"] >= 0].tolist()) for batch in (a, b)]
        assert learned[0] == learned[1]
        images = [dict(zip(batch["sample_indices"], batch["images"], strict=True)) for batch in (a, b)]
        assert all(torch.equal(images[0][i], images[1][i]) for i in a["sample_indices"])
        assert b["input_ids"].shape[0] < 4 and b["document_ids"].max() >= 1


def test_truncated_samples_are_counted():
    train, _ = loaders(max_length=40)
    first(train, 2)
    assert train.num_truncated == 8


def test_one_name_is_not_a_list_of_letters():
    with pytest.raises(ValueError, match=r"dataset_names is a list of names, such as \['shapes'\]"):
        train_config(dataset_names="shapes")


@pytest.mark.parametrize("values", [{"dataset_names": ("cubes",)}, {"val_size": 0}, {"dataset_names": ()}])
def test_wrong_thimble_settings(values):
    with pytest.raises(ValueError, match="Thimble"):
        loaders(**values)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 200), st.floats(0, 0.5), st.none() | st.integers(2, 300), st.integers(1, 20))
def test_split_is_disjoint_and_complete(size, ratio, cutoff, most):
    train, val = split_indices(size, ratio, cutoff, most)
    dealt = train.tolist() + val.tolist()
    assert len(set(dealt)) == len(dealt) == min(size, cutoff or size) and set(dealt) <= set(range(size))
    assert len(train) and 1 <= len(val) <= most
    again = split_indices(size, ratio, cutoff, most)
    assert torch.equal(train, again[0]) and torch.equal(val, again[1])


def test_split_needs_two():
    with pytest.raises(ValueError, match="1 samples cannot be split"):
        split_indices(1, 0.1, None)


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    """Two subsets of 10 and 14 samples in two files each; sample 3 of the first has a torn picture."""
    import datasets

    root = tmp_path_factory.mktemp("parquet")
    features = datasets.Features(
        {
            "images": [datasets.Image()],
            "texts": [{name: datasets.Value("string") for name in ("user", "assistant", "source")}],
        }
    )
    for name, size in (("one", 10), ("two", 14)):
        rows = samples(size)
        for i, row in enumerate(rows):
            row["texts"][0]["assistant"] = f"{name} {i}"
        (root / name).mkdir()
        for part in range(2):
            table = datasets.Dataset.from_list(rows[part::2], features=features)
            if name == "one" and part == 1:
                broken = table.cast_column("images", [datasets.Image(decode=False)]).to_list()
                broken[1]["images"] = [{"bytes": b"torn", "path": None}]
                table = datasets.Dataset.from_list(broken).cast(features)
            table.to_parquet(root / name / f"train-{part}.parquet")
    return root


@pytest.fixture(autouse=True)
def quiet_cache(tmp_path, monkeypatch):
    """Nothing is left in the user's cache of data sets; the library need not rest 5 s after each pass of a stream."""
    import datasets

    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.01, raising=False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


@pytest.mark.filterwarnings("ignore:Skipped")
@pytest.mark.parametrize(("names", "size"), [(("one",), 10), (("one", "two"), 24), (("all",), 24)])
def test_a_directory_of_parquet(parquet, names, size):
    train, val = loaders(dataset_path=str(parquet), dataset_names=names, val_ratio=0.2)
    held_out = answers(val)
    epoch = set(answers(first(train, size)))
    assert not epoch & set(held_out) and "one 3" not in epoch
    assert len(epoch) + len(held_out) == size - 1, "all but the torn one"
    bad = train.skipped + val.skipped
    assert len(bad) == 1 and "not a picture" in bad[0].reason
    again, _ = loaders(dataset_path=str(parquet), dataset_names=names, val_ratio=0.2)
    assert indices(first(again, 3)) == indices(first(train, 3))
    other, _ = loaders(dataset_path=str(parquet), dataset_names=names, val_ratio=0.2, seed=5)
    assert indices(first(other, 3)) != indices(first(train, 3))


@pytest.mark.parametrize("stream", [False, True])
def test_turns_below_a_rating_are_left_out(tmp_path, stream):
    (tmp_path / "rated").mkdir()
    shutil.copy(asset_path("samples/finevision.parquet"), tmp_path / "rated" / "train.parquet")
    source = {"dataset_path": str(tmp_path), "dataset_names": ("rated",), "stream": stream, "val_size": 1}
    supervised = []
    for ratings in ({}, {"visual_dependency": 3}):
        train, val = loaders(**source, min_ratings=ratings, batch_size=1, max_length=512)
        supervised.append(sum(int((b["targets"] != -100).sum()) for b in [*first(train, 2), *val]))
    assert 0 < supervised[1] < supervised[0]
    with pytest.raises(ValueError, match="sharpness_ratings"):
        loaders(**source, min_ratings={"sharpness": 3})
    with pytest.raises(ValueError, match="columns of ratings"):
        loaders(min_ratings={"relevance": 3})
    with pytest.raises(ValueError, match="min_ratings must be an object that maps a text to a whole number"):
        train_config(min_ratings={"relevance": "high"})


@pytest.mark.filterwarnings("ignore:Skipped")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_stream_of_parquet(parquet, num_workers):
    config = {"dataset_path": str(parquet), "dataset_names": ("all",), "stream": True, "val_size": 4}
    train, val = loaders(**config, num_workers=num_workers)
    held_out = answers(val)
    assert held_out == ["one 0", "one 2", "two 0", "two 2"], "the first of each subset"
    batches = first(train, 16)
    seen = set(answers(batches))
    assert not seen & set(held_out), "validation samples are kept out of training"
    assert len(seen) == 24 - 4 - 1 and len(train.skipped) >= 1
    resumed, _ = loaders(**config, num_workers=num_workers)
    resumed.set_start(20)
    assert answers(first(resumed, 4)) == answers(batches[5:9])
    with pytest.raises(TypeError, match="number of training steps"):
        len(train)


@pytest.mark.filterwarnings("ignore:Skipped")
def test_a_stream_survives_a_missing_image(tmp_path):
    import datasets

    rows = [{**row, "images": [png(row["images"][0])]} for row in samples(8)]
    rows[5]["images"] = [None]
    (tmp_path / "one").mkdir()
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "one" / "train.parquet")
    train, _ = loaders(dataset_path=str(tmp_path), dataset_names=("one",), stream=True, val_size=1)
    assert set(answers(first(train, 3))) == {"1", "2", "3", "4", "6", "7"}
    assert "no picture but None" in train.skipped[0].reason


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"val_size": 0}, "val_size is 1 or more, not 0"),
        ({"val_size": 6, "data_cutoff_idx": 6}, "data_cutoff_idx 6 leaves nothing to train on.* lower val_size"),
        ({"val_size": 50}, "no sample to train on beside those held out for validation"),
    ],
)
def test_a_stream_that_leaves_nothing_to_train_or_validate_on(parquet, values, sentence):
    with pytest.raises(ValueError, match=sentence):
        train, _ = loaders(dataset_path=str(parquet), dataset_names=("all",), stream=True, **values)
        next(iter(train))


def reader(stream, buffer_bytes=10**9):
    return StreamReader(Mixture([Source("one", stream)], lambda sample: True), 0, buffer_bytes)


def test_processes_share_a_stream():
    def stream(rank, world):
        dataset = VQADataset([], TOKENIZER, PROCESSOR, CONFIG)
        collate = VQACollator(TOKENIZER.pad_token_id)
        source = Loader(StreamBatches(reader(samples(12)), dataset.encode, collate, 2))
        source.set_start(0, rank, world)
        return source

    dealt = [answers(first(stream(rank, 2), 3)) for rank in range(2)]
    assert sorted(dealt[0] + dealt[1], key=int) == [str(i) for i in range(12)]


@pytest.mark.filterwarnings("ignore:Skipped")
@pytest.mark.parametrize("size", [0, 4])
def test_a_stream_without_a_usable_sample_ends(size):
    dataset = VQADataset([], TOKENIZER, PROCESSOR, CONFIG)
    collate = VQACollator(TOKENIZER.pad_token_id)
    bad = samples(size, bad=range(size))
    with pytest.raises(ValueError, match=r"no sample to train on|Not one usable sample"):
        next(iter(Loader(StreamBatches(reader(bad), dataset.encode, collate, 2))))


def test_wrong_places_get_one_sentence(parquet, tmp_path):
    import datasets

    (tmp_path / "empty").mkdir()
    datasets.Dataset.from_dict({"question": ["q"] * 4}).to_parquet(tmp_path / "wrong" / "a.parquet")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "a.parquet").write_bytes(b"PAR1 and then nothing")
    for path, names, error, sentence in [
        (
            parquet,
            ("three",),
            FileNotFoundError,
            r"three holds no parquet files, .*; it has one, two\.",
        ),
        (parquet / "one", ("shapes",), FileNotFoundError, 'say dataset_names "all"'),
        (tmp_path / "empty", ("all",), FileNotFoundError, "holds no parquet files"),
        (tmp_path, ("wrong",), ValueError, "has the columns question, but images and texts are wanted"),
        (tmp_path, ("torn",), ValueError, "cannot be read as a data set"),
        (tmp_path / "nowhere", ("all",), FileNotFoundError, "There is no directory"),
    ]:
        for stream in (False, True):
            with pytest.raises(error, match=sentence) as caught:
                loaders(dataset_path=str(path), dataset_names=names, stream=stream)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("names", [("vqav2",), ("all",)])
def test_no_network_for_a_hub_id(monkeypatch, names):
    import datasets
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="owner/unheard-of is no directory here, and the Hub cannot be reached"):
        loaders(dataset_path="owner/unheard-of", dataset_names=names)
