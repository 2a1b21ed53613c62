"""Samples to items: every turn, answers only, whole pictures; what cannot be used is named, never fatal."""

from __future__ import annotations

import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nanovlm.assets import asset_path
from nanovlm.config import LMConfig, ProjectorConfig, ViTConfig, VLMConfig
from nanovlm.data.datasets import Skipped, VQADataset, messages_of
from nanovlm.data.processors import ImageProcessor
from nanovlm.data.thimble import Thimble
from nanovlm.data.thimble.parquet import write_parquet
from tests.tiny_tokenizer import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
PROCESSOR = ImageProcessor(16)
IMAGE = TOKENIZER.image_token_id


def vlm_config(num_prefix=False, prompt_format="chat"):
    """16-pixel pictures that become 4 tokens."""
    return VLMConfig(
        vision=ViTConfig(hidden_dim=8, inter_dim=8, num_blocks=1, num_heads=1, image_size=16, patch_size=4),
        projector=ProjectorConfig(vision_dim=8, language_dim=8, pixel_shuffle_factor=2),
        language=LMConfig(hidden_dim=8, inter_dim=8, num_blocks=1, num_heads=1, num_kv_heads=1, vocab_size=400),
        image_token_id=None if num_prefix else IMAGE,
        prompt_format=prompt_format,
    )


def random_image(colour="red", size=(20, 10)):
    return Image.new("RGB", size, colour)


def sample(num_turns=2, num_images=1):
    texts = [{"user": f"What is {i}?", "assistant": f"answer {i}", "source": "s"} for i in range(num_turns)]
    return {"images": [random_image()] * num_images, "texts": texts}


def dataset(samples, max_length=None, **config):
    return VQADataset(samples, TOKENIZER, PROCESSOR, vlm_config(**config), max_length)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(0, 3))
def test_all_turns_and_all_images(num_turns, num_images):
    item = dataset([sample(num_turns, num_images)])[0]
    assert item["images"].shape == (num_images, 3, 16, 16)
    ids, targets = item["input_ids"], item["targets"]
    assert ids.shape == targets.shape and ids.dtype == targets.dtype == torch.int64
    assert int((ids == IMAGE).sum()) == 4 * num_images
    learned = TOKENIZER.decode(targets[targets >= 0], skip_special_tokens=False)
    assert learned == "".join(f"answer {i}<|end|>" for i in range(num_turns))
    assert item["num_supervised"] == int((targets >= 0).sum())
    # A target is what follows: wherever there is one, it is the next input.
    places = (targets >= 0).nonzero().flatten()
    assert torch.equal(targets[places][:-1], ids[(places + 1)[:-1]]) and not item["truncated"]


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 90), st.integers(0, 2), st.booleans())
def test_truncation_keeps_images_whole_and_something_to_learn(max_length, num_images, num_prefix):
    num_images = 1 if num_prefix else num_images
    room = max_length - 4 * num_prefix
    if room < 2:
        with pytest.raises(ValueError, match="leaves no room"):
            dataset([], max_length, num_prefix=num_prefix)
        return
    full = dataset([sample(3, num_images)], num_prefix=num_prefix)[0]
    item = dataset([sample(3, num_images)], max_length, num_prefix=num_prefix)[0]
    if isinstance(item, Skipped):
        images_end = 0 if num_prefix else 1 + 4 * num_images  # after <|user|> and the placeholders
        assert ("pictures do not fit" in item.reason) == (num_images > 0 and room < images_end), item.reason
        assert "pictures do not fit" in item.reason or f"no answer within its first {room} tokens" in item.reason
        first_answer = int((full["targets"] >= 0).nonzero()[0])
        assert room < first_answer + 2, "a sample with a whole supervised token in reach was dropped"
    else:
        assert len(item["input_ids"]) == min(room, len(full["input_ids"]))
        assert item["truncated"] == (room < len(full["input_ids"]))
        assert item["num_supervised"] >= 1
        assert int((item["input_ids"] == IMAGE).sum()) == (0 if num_prefix else 4 * num_images)
        assert item["targets"][-1] == -100


def test_image_in_front_means_exactly_one():
    assert IMAGE not in dataset([sample(1, 1)], num_prefix=True)[0]["input_ids"]
    for number in (0, 2):
        assert f"{number} pictures" in dataset([sample(1, number)], num_prefix=True)[0].reason


def test_question_answer_format():
    item = dataset([sample(1)], num_prefix=True, prompt_format="question_answer")[0]
    assert TOKENIZER.decode(item["input_ids"], False) == "Question: What is 0? Answer:answer 0<|end|>"


def jpeg(image):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG")
    return buffer.getvalue()


def test_a_photograph_is_turned_upright_once():
    """A telephone stores it lying; the picture is opened for its tiles first, then for its pixels."""
    upright = random_image(size=(16, 16))
    upright.paste("blue", (0, 0, 16, 5))
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = io.BytesIO()
    upright.transpose(Image.Transpose.ROTATE_90).save(stored, "PNG", exif=exif)
    lying, plain = ({**sample(1), "images": [image]} for image in (stored.getvalue(), upright))
    assert torch.equal(dataset([lying])[0]["images"], dataset([plain])[0]["images"])


class Failing:
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise OSError("disk on fire")


GOOD = sample()
BAD = [
    ([{**GOOD, "images": [jpeg(random_image(size=(200, 200)))[:700]]}], "cut short"),
    ([{**GOOD, "images": [{"bytes": b"no picture", "path": None}]}], "not a picture"),
    ([{**GOOD, "images": [None]}], "picture 0 of 1 is no picture but None"),
    ([{**GOOD, "images": [random_image(), 5]}], "picture 1 of 2 is no picture but 5"),
    ([{**GOOD, "images": 5}], "its images are pictures or a list of them, not 5"),
    ([{**GOOD, "images": [{"url": "x"}]}], "picture 0 of 1 is no picture"),
    ([{**GOOD, "images": {"bytes": 5, "path": None}}], "picture 0 of 1 is no picture"),
    ([{**GOOD, "images": {"bytes": [b"a", b"b"], "path": [None]}}], "lists do not have one length"),
    ([{**GOOD, "images": [{"bytes": None, "path": None}]}], "neither bytes nor a path"),
    ([{**GOOD, "texts": [{"user": "q", "assistant": " "}]}], "turn 0 has no answer"),
    ([{**GOOD, "texts": 5}], "its texts are a list of turns, not 5"),
    ([{**GOOD, "texts": []}], "no conversation"),
    ([{**GOOD, "texts": None}], "no conversation"),
    ([{**GOOD, "texts": [{"user": "q", "assistant": None}]}], "turn 0 has no assistant text"),
    ([{**GOOD, "texts": [{"question": "q"}]}], "turn 0 has no user text"),
    ([{**GOOD, "texts": ["q"]}], "turn 0 is no question with its answer but 'q'"),
    ([{"image": random_image(), "texts": []}], "it has image, texts, but images and texts are wanted"),
    ([7], "it has int"),
    (Failing(), "disk on fire"),
]


@pytest.mark.parametrize(("samples", "reason"), BAD)
def test_a_bad_sample_is_skipped_with_its_index_and_reason(samples, reason):
    item = dataset(samples)[0]
    assert isinstance(item, Skipped) and item.index == 0
    assert reason in item.reason and "\n" not in str(item)


@pytest.mark.parametrize(
    "images",
    [
        random_image(),
        {"bytes": jpeg(random_image()), "path": None},
        {"bytes": [jpeg(random_image())], "path": [None]},
        {"bytes": [jpeg(random_image())], "path": None},
        jpeg(random_image()),
        (random_image(),),
    ],
    ids=["one picture", "one undecoded", "a struct of lists", "a struct with a null", "bytes", "a tuple"],
)
def test_columns_that_hold_a_image_in_another_shape(images):
    assert len(dataset([{**GOOD, "images": images}])[0]["images"]) == 1


def test_texts_in_another_shape():
    expected = dataset([GOOD])[0]["input_ids"]
    struct = {key: [turn[key] for turn in GOOD["texts"]] for key in ("user", "assistant", "source")}
    assert torch.equal(dataset([{**GOOD, "texts": struct}])[0]["input_ids"], expected)
    alone = dataset([{**GOOD, "texts": GOOD["texts"][:1]}])[0]["input_ids"]
    assert torch.equal(dataset([{**GOOD, "texts": GOOD["texts"][0]}])[0]["input_ids"], alone)


def test_none_is_no_image():
    assert dataset([{**GOOD, "images": None}])[0]["images"].shape == (0, 3, 16, 16)


def test_a_mistake_in_a_program_comes_out():
    """Skipped samples would hide it: of a whole data set, perhaps."""

    class Wrong(ImageProcessor):
        def to_tensor(self, opened):
            return opened.tensor

    samples = VQADataset([GOOD], TOKENIZER, Wrong(16), vlm_config())
    with pytest.raises(AttributeError, match="tensor"):
        samples[0]
    with pytest.raises(ZeroDivisionError):
        dataset(Raising(ZeroDivisionError()))[0]
    for error in (EOFError("short"), SyntaxError("not a TIFF"), Image.DecompressionBombError("large")):
        assert "cannot be read" in dataset(Raising(error))[0].reason


class Raising:
    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise self.error


def test_missing_columns_are_named_at_once():
    import datasets

    table = datasets.Dataset.from_dict({"image": [1], "question": ["q"]})
    with pytest.raises(ValueError, match="columns image, question, but images and texts are wanted"):
        dataset(table)


def test_tokenizer_and_model_must_agree():
    with pytest.raises(ValueError, match="do not belong together"):
        VQADataset([], tiny_tokenizer("chatml"), PROCESSOR, vlm_config())


def test_the_end_of_the_data_is_an_index_error():
    samples = dataset([sample()] * 3)
    assert len(list(samples)) == len(samples) == 3
    with pytest.raises(IndexError):
        samples[3]


def test_the_thimble_goes_through():
    samples = dataset(Thimble("shapes", "train", 8, image_size=16))
    for item, raw in zip(samples, Thimble("shapes", "train", 8, image_size=16), strict=True):
        learned = TOKENIZER.decode(item["targets"][item["targets"] >= 0], False)
        assert learned == "".join(turn["assistant"] + "<|end|>" for turn in raw["texts"])


def rated(ratings, name="visual_dependency"):
    return {**sample(len(ratings)), f"{name}_ratings": ratings}


@given(st.lists(st.one_of(st.none(), st.integers(1, 5)), min_size=1, max_size=6), st.integers(1, 6))
def test_turns_below_a_rating_go_question_and_answer(ratings, lowest):
    kept = [i for i, rating in enumerate(ratings) if rating is None or rating >= lowest]
    if not kept:
        with pytest.raises(ValueError, match="rated high enough"):
            messages_of(rated(ratings), {"visual_dependency": lowest})
        return
    messages = messages_of(rated(ratings), {"visual_dependency": lowest})
    assert [m["content"] for m in messages] == [f"{word} {i}{end}" for i in kept for word, end in PAIRS]
    assert [m["role"] for m in messages] == ["user", "assistant"] * len(kept)


PAIRS = (("What is", "?"), ("answer", ""))


def test_ratings_that_are_not_asked_for_or_not_there_change_nothing():
    everything = messages_of(sample(3))
    assert messages_of(rated([1, 1, 1]), {"relevance": 5}) == everything
    assert messages_of(rated([1, 1, 1])) == everything
    assert messages_of({**sample(3), "relevance_ratings": None}, {"relevance": 5}) == everything


def test_ratings_that_do_not_fit_the_turns_skip_the_sample():
    data = VQADataset([rated([5, 5, 5]) | sample(2)], TOKENIZER, PROCESSOR, vlm_config(), min_ratings={"relevance": 2})
    assert not isinstance(data[0], Skipped)  # another rating than the one that is asked for
    data = VQADataset(
        [rated([5, 5, 5]) | sample(2)], TOKENIZER, PROCESSOR, vlm_config(), None, {"visual_dependency": 2}
    )
    assert "2 turns but 3 ratings of visual_dependency" in data[0].reason
    with pytest.raises(ValueError, match="no rating called beauty"):
        VQADataset([], TOKENIZER, PROCESSOR, vlm_config(), min_ratings={"beauty": 2})


def test_the_sample_tables_that_ship_are_what_their_command_makes(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    for path in write_parquet(tmp_path):
        shipped = asset_path(f"samples/{path.name}")
        assert parquet.read_table(shipped).to_pylist() == parquet.read_table(path).to_pylist()
        data = VQADataset(parquet.read_table(shipped).to_pylist(), TOKENIZER, PROCESSOR, vlm_config())
        assert len(data) == 3 and not any(isinstance(data[i], Skipped) for i in range(3))
