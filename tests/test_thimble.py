"""The Thimble: reproducible, fair, legible, and the same in every form."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import subprocess
import sys
from collections import Counter, defaultdict
from functools import cache
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanovlm.data.thimble import (
    KINDS,
    SPLITS,
    SUBSETS,
    Thimble,
    answers,
    chance,
    load_multiple_choice,
    load_thimble,
    multiple_choice_sample,
    thimble_sample,
    thimble_scene,
)
from nanovlm.data.thimble.__main__ import main, samples_per_second
from nanovlm.data.thimble.glyphs import CHARACTERS, GlyphScene, draw
from tests import thimble_reader

subsets, splits = st.sampled_from(SUBSETS), st.sampled_from(SPLITS)
indices, seeds = st.integers(0, 2**40), st.integers(0, 2**32)
quick = settings(max_examples=60, deadline=None)

# Run in a fresh interpreter too, hence as source.
DIGEST = """
import hashlib
from nanovlm.data.thimble import SPLITS, SUBSETS, thimble_sample
digest = hashlib.sha256()
for subset in SUBSETS:
    for split in SPLITS:
        for index in (5, 0, 70_000):
            sample = thimble_sample(subset, split, index, seed=3)
            digest.update(sample["images"][0].tobytes() + repr(sample["texts"]).encode())
digest = digest.hexdigest()
"""


@pytest.fixture(scope="module", params=SUBSETS)
def turns_of(request):
    """turns_of(split, index, seed) of one subset: each scene is drawn once for all tests that read it."""
    subset = request.param
    turns = cache(lambda split, index, seed=0: thimble_scene(subset, split, index, seed)[1])
    turns.subset = subset
    yield turns
    turns.cache_clear()


def texts_of(sample: dict) -> list[tuple[str, str, str]]:
    return [(turn["source"].split("/")[-1], turn["user"], turn["assistant"]) for turn in sample["texts"]]


@quick
@given(subsets, splits, indices, seeds)
def test_a_sample_has_the_schema_and_is_a_pure_function_of_its_key(subset, split, index, seed):
    sample = thimble_sample(subset, split, index, seed)
    assert set(sample) == {"images", "texts"}
    (image,) = sample["images"]
    assert image.mode == "RGB" and image.size == (64, 64)
    for turn in sample["texts"]:
        assert set(turn) == {"user", "assistant", "source"}
        assert turn["source"] in {f"thimble/{subset}/{kind}" for kind in (*KINDS[subset], "caption")}
        assert all(isinstance(value, str) and value for value in turn.values())
    again = thimble_sample(subset, split, index, seed)
    assert again["texts"] == sample["texts"] and again["images"][0].tobytes() == image.tobytes()
    assert texts_of(sample) == thimble_scene(subset, split, index, seed)[1]


def test_another_process_with_another_hash_seed_renders_the_same_bytes():
    here: dict = {}
    exec(DIGEST, here)
    for hash_seed in ("1", "77"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-c", DIGEST + "print(digest)"]
        there = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()
        assert there == here["digest"]


@pytest.mark.parametrize("subset", SUBSETS)
def test_neighbouring_keys_give_different_samples(subset):
    keys = [(subset, split, index, seed) for split in SPLITS for index in range(6) for seed in range(3)]
    digests = {hashlib.sha256(thimble_sample(*key)["images"][0].tobytes()).hexdigest() for key in keys}
    assert len(digests) == len(keys)


def test_order_pickling_and_workers_do_not_matter():
    from torch.utils.data import DataLoader

    data = Thimble("glyphs", "val", size=12, seed=4)
    forward = [texts_of(sample) for sample in data]
    assert len(forward) == len(data) == 12
    assert [texts_of(data[i]) for i in reversed(range(12))] == forward[::-1]
    assert texts_of(data[-1]) == forward[-1] and texts_of(data[np.int64(3)]) == forward[3]
    for outside in (12, -13):
        with pytest.raises(IndexError, match=f"Sample {outside} of a Thimble with 12 samples"):
            data[outside]
    assert len(pickle.dumps(data)) < 500
    assert [texts_of(sample) for sample in pickle.loads(pickle.dumps(data))] == forward
    loader = DataLoader(data, batch_size=3, num_workers=2, collate_fn=list)
    assert [texts_of(sample) for batch in loader for sample in batch] == forward


@quick
@given(subsets, splits, indices)
def test_answers_agree_with_an_independent_reading_of_the_scene(subset, split, index):
    turns = thimble_scene(subset, split, index)[1]
    *questions, (kind, _, caption) = turns
    assert kind == "caption"
    for kind, question, answer in questions:
        assert answer == thimble_reader.answer(subset, caption, question), (question, caption)
        choices = answers(subset, kind)
        assert choices is None or answer in choices


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(("shapes", "charts")), splits, indices)
def test_captions_agree_with_an_independent_reading_of_the_pixels(subset, split, index):
    sample = thimble_sample(subset, split, index, image_size=192)
    see = {"shapes": thimble_reader.see_shapes, "charts": thimble_reader.see_charts}[subset]
    assert see(sample["images"][0]) == sample["texts"][-1]["assistant"]


def test_no_two_characters_look_alike():
    class Still:
        """Draws that never vary anything."""

        def below(self, n: int) -> int:
            return 0

    images = {c: np.asarray(draw(GlyphScene(c * 4, "blue"), Still(), 64)).astype(int) for c in CHARACTERS}
    for one, other in combinations(CHARACTERS, 2):
        clearly_different = (np.abs(images[one] - images[other]).max(axis=-1) > 90).sum() / 4
        assert clearly_different >= 6, (one, other, clearly_different)


def test_turns_are_dense_in_training_and_complete_in_the_other_splits(turns_of):
    asked, subset = Counter(), turns_of.subset
    for index in range(150):
        turns = turns_of("train", index)
        assert len({question for _, question, _ in turns}) == len(turns) >= 7
        asked.update(kind for kind, _, _ in turns)
        for split in ("val", "test", "unseen"):
            assert [kind for kind, _, _ in turns_of(split, index)] == [*KINDS[subset], "caption"]
    assert set(asked) == {*KINDS[subset], "caption"}
    if subset == "glyphs":
        assert asked["exists"] > max(asked[kind] for kind in ("read", "first", "last", "count"))
    if subset == "shapes":
        assert asked["where"] > max(asked[kind] for kind in ("colour", "shape", "count", "compare"))


def test_splits_share_no_scene_whatever_the_seeds(turns_of):
    def content(split: str, seed: int, index: int) -> str:
        caption = turns_of(split, index, seed)[-1][2]
        return caption.split(": ")[1] if turns_of.subset == "glyphs" else caption

    seen = {s: {content(s, seed, i) for seed in (0, 1) for i in range(500)} for s in SPLITS}
    for one, other in combinations(SPLITS, 2):
        assert not seen[one] & seen[other], (one, other)


def said_pairs(subset: str, text: str) -> set[str]:
    if subset == "glyphs":
        return {a + b for word in re.findall(r"[A-Z0-9]{2,}", text) for a, b in pairwise(word)}
    if subset == "charts":
        return {" ".join(pair) for pair in re.findall(r"(\w+) \d, (?=(\w+) \d)", text)}
    return set(re.findall(rf"(?:{'|'.join(thimble_reader.COLOURS)}) (?:circle|square|triangle|star|heart)", text))


def test_unseen_pairs_are_never_shown_asked_or_told_elsewhere(turns_of):
    def pairs_of(split: str, index: int) -> set[str]:
        return {pair for turn in turns_of(split, index) for pair in said_pairs(turns_of.subset, " ".join(turn))}

    trained = {pair for split in ("train", "val", "test") for index in range(1000) for pair in pairs_of(split, index)}
    unseen = [pairs_of("unseen", index) for index in range(300)]
    assert all(pairs - trained for pairs in unseen)
    halves = {half for pair in trained for half in (pair.split() if " " in pair else pair)}
    assert halves >= {half for pairs in unseen for pair in pairs for half in (pair.split() if " " in pair else pair)}


def test_a_guesser_that_reads_the_question_but_sees_no_image_stays_at_chance(turns_of):
    """It learns the most frequent answer to each question text from many samples, and is tested on others."""
    subset = turns_of.subset
    learnt: dict[str, Counter] = defaultdict(Counter)
    overall: dict[str, Counter] = defaultdict(Counter)
    for index in range(8_000 if subset == "shapes" else 4_000):
        for kind, question, answer in turns_of("train", index):
            learnt[question][answer] += 1
            overall[kind][answer] += 1

    def guess(kind: str, question: str) -> str:
        return (learnt[question] or overall[kind]).most_common(1)[0][0]

    for split, seed in (("train", 1), ("test", 0)):
        right, asked = Counter(), Counter()
        for index in range(1200):
            for kind, question, answer in turns_of(split, index, seed)[:-1]:
                right[kind] += guess(kind, question) == answer
                asked[kind] += 1
        for kind, expected in chance(subset).items():
            accuracy = right[kind] / asked[kind]
            # Three points for the held-out pairs, and three standard errors.
            margin = 0.03 + 3 * (expected * (1 - expected) / asked[kind]) ** 0.5
            assert accuracy < expected + margin, (split, kind, accuracy)


@settings(max_examples=20, deadline=None)
@given(subsets, indices, st.sampled_from((32, 100, 224)))
def test_a_image_is_the_same_scene_at_every_size(subset, index, image_size):
    def coloured(image) -> np.ndarray:
        return np.ptp(np.asarray(image.resize((32, 32))).astype(int), axis=-1) > 60

    large = thimble_sample(subset, "train", index, image_size=512)
    sample = thimble_sample(subset, "train", index, image_size=image_size)
    assert sample["texts"] == large["texts"] and sample["images"][0].size == (image_size, image_size)
    # Borders may fall on either side of a pixel.
    assert (coloured(sample["images"][0]) != coloured(large["images"][0])).mean() < 0.08


@quick
@given(splits, st.integers(0, 10_000), seeds)
def test_multiple_choice_has_mmstars_schema_and_one_right_option(split, index, seed):
    sample = multiple_choice_sample(index, split, seed)
    assert set(sample) == {"index", "question", "image", "answer", "category", "l2_category", "meta_info"}
    assert sample["index"] == index and sample["image"].size == (64, 64) and sample["category"] in SUBSETS
    question, listed = sample["question"].split("\nOptions: ")
    options = dict(re.findall(r"([A-D]): (.+?)(?:, |$)", listed))
    assert list(options) == list("ABCD") and len(set(options.values())) == 4
    turns = thimble_scene(sample["category"], split, index, seed)[1]
    right = options[sample["answer"]]
    assert (sample["l2_category"], question, right) in turns
    if sample["l2_category"] == "read":
        # No option is more like the others than any other is.
        likeness = {sum(a == b for other in options.values() for a, b in zip(option, other, strict=True))
                    for option in options.values()}  # fmt: skip
        assert len(likeness) == 1


def test_captions_alone_are_asked_of_every_subset():
    data = Thimble("captions", "train", size=30, seed=3)
    for index, sample in enumerate(data):
        whole = thimble_sample(SUBSETS[index % len(SUBSETS)], "train", index, seed=3)
        assert sample["texts"] == whole["texts"][-1:] and sample["texts"][0]["user"] == "Describe the picture."
        assert sample["images"][0].tobytes() == whole["images"][0].tobytes()


def test_american_spelling_is_the_only_difference():
    asked = ""
    for index, sample in enumerate(Thimble("american", "train", size=30, seed=3)):
        british = thimble_sample("shapes", "train", index, seed=3)
        assert sample["images"][0].tobytes() == british["images"][0].tobytes()
        assert [{**turn, "user": turn["user"].replace("color", "colour")} for turn in sample["texts"]] == british[
            "texts"
        ]
        asked += " ".join(turn["user"] for turn in sample["texts"])
    assert "What color is" in asked and "colour" not in asked


def test_the_letters_of_multiple_choice_are_uniform():
    letters = Counter(multiple_choice_sample(index, image_size=8)["answer"] for index in range(432))
    # 432 draws at 1/4 have a standard deviation of 9.
    assert set(letters) == set("ABCD") and all(abs(count - 108) < 4.5 * 9 for count in letters.values())


def test_data_sets_have_image_features_concatenate_and_survive_parquet(tmp_path):
    import datasets

    parts = [load_thimble(subset, "test", size=4, seed=2) for subset in SUBSETS]
    data = datasets.concatenate_datasets(parts)
    data.to_parquet(str(tmp_path / "thimble.parquet"))
    back = datasets.Dataset.from_parquet(str(tmp_path / "thimble.parquet"), cache_dir=str(tmp_path / "cache"))
    assert back.features == data.features and isinstance(back.features["images"].feature, datasets.Image)
    expected = [thimble_sample(subset, "test", index, seed=2) for subset in SUBSETS for index in range(4)]
    for sample, row in zip(expected, back, strict=True):
        assert row["texts"] == sample["texts"]
        assert [image.tobytes() for image in row["images"]] == [image.tobytes() for image in sample["images"]]


def test_multiple_choice_as_a_data_set():
    row = load_multiple_choice(size=5)[4]
    sample = multiple_choice_sample(4)
    assert row.pop("image").tobytes() == sample.pop("image").tobytes() and row == sample


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: thimble_sample("colours", "train", 0), "no subset 'colours'; choose from shapes, charts, glyphs"),
        (lambda: thimble_sample("shapes", "valid", 0), "no split 'valid'; choose from train, val, test, unseen"),
        (lambda: thimble_sample("shapes", "train", -1), "counts from 0, not -1"),
        (lambda: thimble_sample("shapes", "train", 0, image_size=0), "image_size of at least 1"),
        (
            lambda: Thimble("nothing"),
            "no subset 'nothing'; choose from shapes, charts, glyphs, choice, captions, american",
        ),
        (lambda: Thimble("choice", "valid"), "no split 'valid'"),
        (lambda: Thimble(size=-1), "size >= 0"),
        (lambda: answers("charts", "colour"), "no question kind 'colour'; choose from tallest"),
    ],
)
def test_bad_arguments_get_one_clear_sentence(call, says):
    with pytest.raises(ValueError, match=re.escape(says)) as raised:
        call()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("subset", SUBSETS)
def test_a_sample_costs_little_wherever_it_stands(subset):
    """A trainer is to be fed by one core. Calls of functions are counted, of which every machine makes as many."""

    def calls_for(indices):
        calls = 0

        def count(frame, event, arg):
            nonlocal calls
            calls += event in ("call", "c_call")

        sys.setprofile(count)
        try:
            for index in indices:
                thimble_sample(subset, "train", index)
        finally:
            sys.setprofile(None)
        return calls / len(indices)

    calls_for(range(200))  # caches are filled once
    first, later = calls_for(range(200)), calls_for(range(10**9, 10**9 + 200))
    assert later == pytest.approx(first, rel=0.2)
    assert first < 2000


def test_samples_per_second_are_measured_on_request():
    assert samples_per_second("shapes", image_size=8, seconds=0.001) > 0


def test_the_contact_sheet_is_written(tmp_path, monkeypatch, capsys):
    from PIL import Image

    monkeypatch.setattr(sys, "argv", ["thimble", "--sheet", str(tmp_path / "sheet.png"), "--count", "2"])
    main()
    assert "sheet.png" in capsys.readouterr().out
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 1000
