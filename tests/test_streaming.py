"""Streams: one order for any number of workers and processes, taken up anywhere, mixed as a download is."""

from __future__ import annotations

import itertools
from collections import Counter
from types import SimpleNamespace

import pytest

from nanovlm.config import TrainConfig
from nanovlm.data.batches import Loader, StreamBatches, WeightedOrder
from nanovlm.data.streaming import Mixture, Source, StreamReader, fingerprint, num_bytes, read_ahead
from nanovlm.data.subsets import open_subsets, shares
from tests.test_loading import answers, first, loaders, quiet_cache, samples  # noqa: F401


def everything(_):
    return True


def numbers(size, subset=0):
    return [{"subset": subset, "number": number} for number in range(size)]


def reader(sizes=(40,), weights=None, buffer=10**9, seed=0):
    sources = [
        Source(f"subset {n}", numbers(size, n), weight)
        for n, (size, weight) in enumerate(zip(sizes, weights or sizes, strict=True))
    ]
    return StreamReader(Mixture(sources, everything), seed, buffer)


def encode(sample, number):
    return {"sample": (sample["subset"], sample["number"]), "truncated": False}


def collate(items):
    return {"samples": [item["sample"] for item in items]}


def loader(num_workers=0, batch_size=4, **options):
    return Loader(StreamBatches(reader(**options), encode, collate, batch_size), num_workers)


def drawn(batches):
    return list(itertools.chain.from_iterable(batch["samples"] for batch in batches))


@pytest.mark.parametrize("buffer", [10**9, 20_000])
def test_an_epoch_shows_every_sample_once_and_the_next_one_in_another_order(buffer):
    both = drawn(first(loader(sizes=(24, 8), buffer=buffer), 16))
    epochs = both[:32], both[32:]
    spread = 0 if buffer == 10**9 else 10  # a buffer's worth
    for epoch in epochs:
        assert len(set(epoch)) >= 32 - spread
    assert epochs[0] != epochs[1] and epochs[0] != sorted(epochs[0])


@pytest.mark.parametrize("num_workers", [1, 3])
def test_the_order_is_the_same_for_any_number_of_workers(num_workers):
    assert drawn(first(loader(num_workers), 14)) == drawn(first(loader(), 14))


@pytest.mark.parametrize("buffer", [10**9, 20_000])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_resuming_goes_on_and_reads_no_more_than_the_buffer(num_workers, buffer):
    whole = first(loader(sizes=(300, 100), buffer=buffer), 60)
    for stop in (1, 7, 40):
        source = loader(num_workers, sizes=(300, 100), buffer=buffer)
        first(source, stop)
        resumed = loader(num_workers, sizes=(300, 100), buffer=buffer)
        resumed.set_start(4 * stop, position=source.position)
        again = first(resumed, 10)
        assert again == whole[stop : stop + 10]
        ahead = 4 * (10 + 2 * num_workers + 4)  # what was given, and what waits to be given
        assert resumed.batches.reader.num_read <= min(buffer / 1_000, 2 * 400) + 1 + ahead


def test_memory_stays_flat_over_2000_samples():
    """Counted: how many samples live at the same time."""

    class Counted(dict):
        live = most = 0

        def __init__(self, **values):
            super().__init__(**values)
            Counted.live += 1
            Counted.most = max(Counted.most, Counted.live)

        def __del__(self):
            Counted.live -= 1

    class Made:
        def __iter__(self):
            return (Counted(subset=0, number=number) for number in range(900))

    buffer, batch_size, most = 60, 8, []
    stream = StreamReader(Mixture([Source("made", Made())], everything), 0, buffer * 1_000)
    batches = iter(Loader(StreamBatches(stream, encode, collate, batch_size)))
    for _ in range(4):
        Counted.most = Counted.live
        for _ in range(500 // batch_size + 1):
            next(batches)
        most.append(Counted.most)
    waiting = 6 * batch_size  # read ahead, in hand, and the sample behind the end
    assert max(most) <= buffer + waiting and stream.num_read >= 2_000
    batches.close()


def test_samples_are_told_apart_by_pictures_however_a_data_set_holds_them():
    def sample(images):
        return {"texts": [{"user": "q", "assistant": "a"}], "images": images}

    columns = [
        lambda b: {"bytes": b, "path": None},  # one alone
        lambda b: [{"bytes": b, "path": None}],
        lambda b: {"bytes": [b], "path": [None]},  # a struct of lists
        lambda b: b,
    ]
    for column in columns:
        assert fingerprint(sample(column(b"one"))) != fingerprint(sample(column(b"two")))
        assert fingerprint(sample(column(b"one"))) == fingerprint(sample([{"bytes": b"one", "path": None}]))
        assert num_bytes(sample(column(bytes(9_000)))) == 10_000
    assert fingerprint(sample(7)) != fingerprint(sample(None))


@pytest.mark.parametrize(("batch_size", "world"), [(8, 1), (2, 1), (4, 2), (1, 4)])
def test_another_batch_size_or_number_of_processes_goes_on_behind_what_was_seen(batch_size, world):
    source = loader(sizes=(96,))
    seen = drawn(first(source, 10))
    after = []
    for rank in range(world):
        resumed = loader(sizes=(96,), batch_size=batch_size)
        resumed.set_start(40, rank, world, source.position)
        after += drawn(first(resumed, 56 // batch_size // world))
    assert sorted(seen + after) == [(0, number) for number in range(96)]


def test_a_mixture_keeps_its_proportions_all_the_way():
    source = loader(sizes=(60, 30, 10), weights=(1, 1, 2), batch_size=20, buffer=40_000)
    for start in range(0, 400, 100):
        counts = Counter(subset for subset, _ in drawn(first(source, 20))[start : start + 100])
        assert all(abs(counts[subset] - share) <= 20 for subset, share in enumerate((25, 25, 50)))


def test_a_reader_ahead_hands_on_errors_and_stops_when_nobody_listens():
    def failing():
        yield 1
        raise OSError("the disk is gone")

    source = read_ahead(failing())
    assert next(source) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(source)
    endless = read_ahead(itertools.count())
    assert list(itertools.islice(endless, 5)) == [0, 1, 2, 3, 4]
    endless.close()


def write(path, tag, size):
    import datasets

    from nanovlm.data.thimble.hub_datasets import png

    rows = [{**row, "images": [png(row["images"][0])]} for row in samples(size)]
    for number, row in enumerate(rows):
        row["texts"] = [{"user": "Which?", "assistant": f"{tag} {number}"}]
    text = {name: datasets.Value("string") for name in ("user", "assistant")}
    features = datasets.Features({"images": [datasets.Image()], "texts": [text]})
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(rows, features=features).to_parquet(path)


def tree(root, sizes):
    for name, size in sizes.items():
        write(root / name / "train-0.parquet", name, size)
    return {"dataset_path": str(root), "dataset_names": tuple(sizes), "val_size": 2, "val_ratio": 0.01}


@pytest.mark.parametrize("weights", [(), (1, 1)])
def test_a_stream_and_a_download_are_mixed_alike(tmp_path, weights):
    config = tree(tmp_path, {"large": 48, "small": 16})
    found = {}
    for stream in (False, True):
        train, _ = loaders(**config, stream=stream, dataset_weights=weights)
        found[stream] = Counter(answer.split()[0] for answer in answers(first(train, 15)))
    assert abs(found[True]["small"] - found[False]["small"]) <= 6
    assert abs(found[True]["small"] - (15 if not weights else 30)) <= 4


def test_a_stream_of_files_resumes_exactly(tmp_path):
    config = tree(tmp_path, {"one": 20, "two": 12})
    write(tmp_path / "one" / "train-1.parquet", "more", 7)
    whole = answers(first(loaders(**config, stream=True)[0], 25))
    for stop in (3, 9, 17):
        source = loaders(**config, stream=True)[0]
        first(source, stop)
        resumed = loaders(**config, stream=True)[0]
        resumed.set_start(4 * stop, position=source.position)
        assert answers(first(resumed, 5)) == whole[4 * stop : 4 * stop + 20]


@pytest.mark.parametrize(
    "pattern",
    [
        "vqa/{}-00000-of-00001.parquet",
        "vqa/{}/0000.parquet",
        "vqa/partial-{}/0000.parquet",
        "vqa/vqa-{}-00000.parquet",
        "vqa/0000_{}.parquet",
        "{}/0000.parquet",
    ],
)
def test_only_training_files_are_trained_on_wherever_the_split_is_named(tmp_path, pattern):
    for split, size in (("train", 6), ("validation", 3), ("test", 3)):
        write(tmp_path / pattern.format(split), split, size)
    names = ("vqa",) if pattern.startswith("vqa") else ("all",)
    with pytest.warns(UserWarning, match="1 of 3 parquet files are for training; left out are those of test, valid"):
        (subset,) = open_subsets(TrainConfig(dataset_path=str(tmp_path), dataset_names=names))
    assert subset.size == 6 and all(turns[0]["assistant"].startswith("train") for turns in subset.data["texts"])


def test_a_subset_that_cannot_be_opened_is_left_out_and_said(tmp_path):
    tree(tmp_path, {"a [2024].v1": 4, "b": 4})
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "train.parquet").write_bytes(b"PAR1 and then nothing")
    names = ("a [2024].v1", "missing", "torn", "b")
    config = TrainConfig(dataset_path=str(tmp_path), dataset_names=names, dataset_weights=(1, 1, 1, 3))
    with pytest.warns(
        UserWarning, match=r"2 of 4 subsets cannot be opened and are left out: missing .*; torn .*torn/tr"
    ):
        found = open_subsets(config)
    assert [subset.name for subset in found] == ["a [2024].v1", "b"] and shares(found) == [1, 3]
    with pytest.raises(FileNotFoundError, match=r"missing holds no parquet files, .*it has"):
        open_subsets(TrainConfig(dataset_path=str(tmp_path), dataset_names=("missing",)))


@pytest.mark.parametrize("stream", [False, True])
def test_unequal_columns_and_empty_files_are_read_as_far_as_they_are_wanted(tmp_path, stream):
    import pyarrow.parquet

    config = tree(tmp_path, {"vqa": 6})
    table = pyarrow.parquet.read_table(tmp_path / "vqa" / "train-0.parquet")
    more = table.append_column("more", [[1] * len(table)])
    pyarrow.parquet.write_table(more, tmp_path / "vqa" / "train-1.parquet")
    pyarrow.parquet.write_table(table.slice(0, 0), tmp_path / "vqa" / "train-2.parquet")
    (subset,) = open_subsets(TrainConfig(**config, stream=stream))
    assert subset.size == 12 and len(list(subset.data)) == 12
    (tmp_path / "vqa" / "train-0.parquet").unlink()
    (tmp_path / "vqa" / "train-1.parquet").unlink()
    with pytest.raises(ValueError, match=r"train-2\.parquet holds no rows"):
        open_subsets(TrainConfig(**config, stream=stream))


@pytest.mark.parametrize("stream", [False, True])
def test_a_damaged_shard_is_named(tmp_path, stream):
    config = tree(tmp_path, {"vqa": 4})
    whole = (tmp_path / "vqa" / "train-0.parquet").read_bytes()
    (tmp_path / "vqa" / "train-1.parquet").write_bytes(whole[:4] + b"\xff" * 60 + whole[64:])
    with pytest.raises(ValueError, match=r" cannot be read.*vqa.train-1\.parquet is damaged \(") as caught:
        train, _ = loaders(**config, stream=stream)
        first(train, 5)
    assert "\n" not in str(caught.value)


def test_weights_hold_in_every_epoch_of_a_download():
    import torch

    order = WeightedOrder([torch.arange(30), torch.arange(30, 40)], [1, 1], 4, seed=0)
    for epoch in range(3):
        epoch_samples = order.samples(40 * epoch, 40)
        assert sum(index >= 30 for index in epoch_samples) == 20
        assert max(Counter(epoch_samples).values()) <= 2
    assert set(order.samples(0, 80)) == set(range(40))


def test_an_error_without_a_message_is_called_by_its_name(tmp_path, monkeypatch):
    config = tree(tmp_path, {"one": 4, "two": 4})
    monkeypatch.setattr("pyarrow.parquet.read_metadata", lambda _: (_ for _ in ()).throw(ValueError()))
    with pytest.raises(ValueError, match="is no whole parquet file: ValueError"):
        open_subsets(TrainConfig(dataset_path=config["dataset_path"], dataset_names=("one",)))


def test_a_disk_too_small_for_the_subsets_is_said_before_the_download(tmp_path, monkeypatch):
    def builder(path, name, revision):
        if name == "gone":
            raise FileNotFoundError
        info = SimpleNamespace(download_size=10**18, dataset_size=2 * 10**18)
        return SimpleNamespace(info=info, cache_dir=str(tmp_path / name))

    (tmp_path / "here").mkdir()
    monkeypatch.setattr("datasets.load_dataset_builder", builder)
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: pytest.fail("it was fetched"))
    config = TrainConfig(dataset_path="owner/data", dataset_names=("a", "gone", "here", "b"))
    with pytest.raises(OSError, match=r"owner/data takes 6,000,000,000.0 GB, .* or read it with --stream"):
        open_subsets(config)
