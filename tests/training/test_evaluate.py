"""Scores that can be trusted: intervals, strictness, a mean over kinds, and a blind model that shows."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from nanovlm.data.loading import get_dataloaders
from nanovlm.data.thimble import Thimble
from nanovlm.device import choose_precision
from nanovlm.evaluation.scores import (
    Evaluation,
    Score,
    answer_all,
    evaluate,
    evaluate_captions,
    evaluate_multiple_choice,
    interval,
    percentage,
    questions_of,
)
from nanovlm.models.vision_language_model import IGNORE
from nanovlm.training.validation import answer_accuracy, look_ahead, short_questions
from tests.tiny import IMAGE
from tests.tiny_tokenizer import tiny_tokenizer
from tests.training.tiny_run import new_model, recipe

CPU = torch.device("cpu")
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}
NAMES = {rgb: name for name, rgb in COLOURS.items()}


class Stub:
    """In place of a model: answers by a function of (picture, prompt), and remembers what it was asked."""

    def __init__(self, answer):
        self.answer, self.training, self.asked = answer, True, []
        self.tokenizer, self.room = tiny_tokenizer(), []

    def eval(self):
        return self.train(False)

    def train(self, mode=True):
        self.training = mode
        return self

    def generate(self, *, prompt, image, max_new_tokens):
        assert not self.training and len(prompt) == len(image)
        self.asked.append((list(prompt), list(image)))
        self.room.append(max_new_tokens)
        return [self.answer(images, text) for text, images in zip(prompt, image, strict=True)]


def samples(count=40):
    """One-coloured pictures, two kinds of questions, a caption; "exists" is asked three times as often."""
    made = []
    for i in range(count):
        name = list(COLOURS)[i % 4]
        turns = [("colour", "What colour is it?", name)]
        turns += [("exists", f"Is it {other}?", "yes" if other == name else "no") for other in ("red", "green", "blue")]
        turns += [("caption", "Describe the picture.", f"All of it is {name}.")]
        made.append(
            {
                "images": [Image.new("RGB", (4, 4), COLOURS[name])],
                "texts": [{"user": q, "assistant": a, "source": f"test/plain/{kind}"} for kind, q, a in turns],
            }
        )
    return made


def seeing(images, text):
    colour = NAMES[images[0].getpixel((0, 0))]
    if text.startswith("What"):
        return colour
    return "yes" if colour in text else "no"


def test_the_interval_of_wilson():
    """Newcombe (1998), Statistics in Medicine 17:857, table I, method 3, and the closed form for 0 of n."""
    for correct, total, low, high in [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (1, 29, 0.0061, 0.1718)]:
        assert interval(correct, total) == pytest.approx((low, high), abs=1e-4)
    assert interval(0, 20) == pytest.approx((0, 1.96**2 / (20 + 1.96**2)))
    assert interval(0, 0) == (0, 1)


@given(st.integers(1, 5000), st.data())
def test_the_interval_holds_the_shares_that_the_score_does_not_refute(total, data):
    correct = data.draw(st.integers(0, total))
    low, high = interval(correct, total)
    share = correct / total
    assert 0 <= low <= share + 1e-12 and share - 1e-12 <= high <= 1
    for bound in (low, high):  # both solve (share - p)^2 = z^2 p (1 - p) / n
        assert (share - bound) ** 2 == pytest.approx(1.96**2 * bound * (1 - bound) / total, abs=1e-9)
    mirrored = interval(total - correct, total)
    assert (1 - high, 1 - low) == pytest.approx(mirrored, abs=1e-9)
    assert high - low > interval(4 * correct, 4 * total)[1] - interval(4 * correct, 4 * total)[0]


def test_a_model_that_sees_and_one_that_guesses():
    def guessing(_, text):
        return "red" if text.startswith("What") else "no"

    sees, guesses = (evaluate(Stub(answer), samples()) for answer in (seeing, guessing))
    assert sees.accuracy == 1.0 and sees.blind_accuracy < 0.6
    assert guesses.accuracy == guesses.blind_accuracy == pytest.approx((0.25 + 0.75) / 2)
    assert set(sees.scores) == set(sees.blind) == {"colour", "exists"}, "captions are not scored"
    assert sees.scores["exists"].total == sees.blind["exists"].total == 120


@given(st.integers(2, 30), st.integers(0, 20))
def test_blind_no_sample_keeps_its_image(count, seed):
    numbered = [{"images": [i], "texts": [{"user": f"{i}", "assistant": "x", "source": "kind"}]} for i in range(count)]
    model = Stub(lambda *_: "x")
    evaluate(model, numbered, batch_size=7, seed=seed)
    asked = [(int(text), shown[0]) for texts, images in model.asked for text, shown in zip(texts, images, strict=True)]
    seen, blind = asked[:count], asked[count:]
    assert sorted(seen) == [(i, i) for i in range(count)]
    assert sorted(text for text, _ in blind) == sorted(image for _, image in blind) == list(range(count))
    assert all(text != image for text, image in blind)


def test_all_questions_of_a_sample_get_the_same_other_image():
    model = Stub(lambda *_: "x")
    data = samples(6)
    evaluate(model, data)
    given_to = defaultdict(set)
    texts, images = model.asked[1]  # blind
    own = {id(sample["images"][0]): i for i, sample in enumerate(data)}
    assert len(texts) == 6 * 4
    for number, shown in enumerate(images):
        given_to[own[id(shown[0])]].add(number)
    assert sorted(map(len, given_to.values())) == [4] * 6


def test_one_sample_cannot_be_blind_and_none_is_nothing():
    with pytest.raises(ValueError, match="at least two samples"):
        evaluate(Stub(seeing), samples(1))
    assert evaluate(Stub(seeing), samples(1), blind=False).accuracy == 1
    with pytest.raises(ValueError, match="the samples hold no question"):
        evaluate(Stub(seeing), [])


def test_accuracy_is_the_mean_over_kinds():
    result = Evaluation({"often": Score(90, 100), "rare": Score(0, 2)})
    assert result.accuracy == pytest.approx(0.45), "not 90 / 102"
    kinds = result.to_dict()["kinds"]
    assert kinds["rare"] == {"accuracy": 0, "interval": [0, pytest.approx(0.6576, abs=1e-3)], "correct": 0, "total": 2}
    table = result.table({"often": 0.5, "rare": 0.25})
    assert "45.0%" in table.splitlines()[-1] and "37.5%" in table.splitlines()[-1]
    assert "50.0%" in result.table({"often": 0.5}).splitlines()[1], "chance may be known of some kinds only"


@pytest.mark.parametrize(
    ("answer", "right"),
    [("A", 1), ("a", 0), ("A cat", 0), ("A.", 0), ("(A)", 0), ("B", 0), ("", 0), ("AB", 0), ("The answer is A", 0)],
)
def test_multiple_choice_takes_the_letter_and_nothing_else(answer, right):
    questions = [
        {"image": i, "question": "Which?\nA: a cat\nB: a dog", "answer": "A", "category": "animals"} for i in range(3)
    ]
    result = evaluate_multiple_choice(Stub(lambda *_: answer), questions)
    assert result.accuracy == result.blind_accuracy == right
    assert result.scores["animals"].total == 3


def test_multiple_choice_has_its_blind_score_too():
    letters = "ABCD"
    questions = [
        {"image": letters[i % 4], "question": "Which?", "answer": letters[i % 4], "category": "c"} for i in range(40)
    ]
    result = evaluate_multiple_choice(Stub(lambda images, _: images[0]), questions)
    assert result.accuracy == 1.0 and result.blind_accuracy < 0.6
    assert result.scores["c"].interval[0] > result.blind["c"].interval[1]


def test_captions_are_asked_for_at_once_and_counted_by_subset():
    data = [Thimble("captions", "test", 9)[i] for i in range(9)]
    captions = {id(sample["images"][0]): sample["texts"][0]["assistant"] for sample in data}
    stub = Stub(lambda images, text: captions[id(images[0])] if text == "Describe the picture." else "")
    result = evaluate_captions(stub, data)
    assert {kind: score.total for kind, score in result.scores.items()} == {"shapes": 3, "charts": 3, "glyphs": 3}
    assert result.accuracy == 1.0 and result.blind_accuracy == 0.0


@pytest.mark.parametrize(
    ("right", "shown"), [(3000, "100.0%"), (2999, "99.9%"), (2994, "99.8%"), (1, "0.0%"), (0, "0.0%")]
)
def test_only_all_is_shown_as_100_percent(right, shown):
    assert percentage(right / 3000) == shown


def test_exact_means_exact():
    data = [{"images": [0], "texts": [{"user": "q", "assistant": " red ", "source": "k"}]}]
    for answer, right in (("red", 1), ("Red", 0), ("red.", 0), ("a red", 0), ("", 0)):
        assert evaluate(Stub(lambda *_, answer=answer: answer), data, blind=False).accuracy == right


def test_an_answer_has_room_for_the_longest_right_one_and_its_end():
    """Twelve tokens for all would count a longer answer wrong, however right it is."""
    long = "a red circle, a green square, a blue triangle and nothing else at all in the whole picture"
    data = [{"images": [0], "texts": [{"user": "q", "assistant": a, "source": "k"}]} for a in ("yes", long)]
    model = Stub(lambda *_: long)
    assert evaluate(model, data, blind=False).accuracy == 0.5
    assert model.room == [len(model.tokenizer.encode(long)) + 1] and model.room[0] > 13


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 8))
def test_answers_come_in_the_order_of_the_questions(lengths, batch_size):
    data = [
        {"images": [i], "texts": [{"user": "x" * length, "assistant": "", "source": "k"}]}
        for i, length in enumerate(lengths)
    ]
    model = Stub(lambda images, _: str(images[0]))
    assert answer_all(model, questions_of(data), batch_size) == [str(i) for i in range(len(data))]
    sizes = [len(text) for texts, _ in model.asked for text in texts]
    assert all(a <= b for a, b in pairwise(sizes)), "like lengths together: little padding"
    assert max(len(texts) for texts, _ in model.asked) <= batch_size
    assert model.training, "the model is left as it was"


def test_every_turn_is_a_question_of_its_own():
    questions = questions_of(Thimble("shapes", "val", 2, image_size=16)[i] for i in range(2))
    assert [q.sample for q in questions] == [0] * 6 + [1] * 6
    assert {q.kind for q in questions} == {"colour", "shape", "count", "exists", "where", "compare"}


# Accuracy while training


def validation(**changes):
    model = new_model()
    config = recipe("", val_size=8, **changes)
    return model, get_dataloaders(config, model.config, model.tokenizer, model.image_processor)[1]


def test_accuracy_in_training_is_greedy_exact_match():
    """One forward pass against the decode loop. A third of the answers are made the model's own, a third so but for
    their last token."""
    model, loader = validation()
    model.eval()
    batches = short_questions(loader, 8)
    right = total = 0
    for batch in batches:
        for row, (ids, targets) in enumerate(zip(batch["input_ids"], batch["targets"], strict=True)):
            places = (targets != IGNORE).nonzero()[:, 0]
            prompt, image = ids[None, : places[0] + 1].clone(), batch["images"][row : row + 1]
            greedy = model.generate(prompt, image, max_new_tokens=len(places))[0]
            if len(greedy) == len(places) and IMAGE not in greedy and total % 3:
                targets[places] = greedy
                ids[places[1:]] = greedy[:-1]
                targets[places[-1]] += total % 3 == 2
            right += targets[places].tolist() == greedy.tolist()
            total += 1
    accuracy = answer_accuracy(model, batches, choose_precision("fp32", CPU), CPU)
    assert accuracy == pytest.approx(right / total) and 0.2 < accuracy < 0.5


def test_short_questions_are_spread_and_short():
    _, loader = validation()
    batches = short_questions(loader, 4)
    indices = {index for batch in batches for index in batch["sample_indices"]}
    assert indices == {0, 2, 4, 6}, "four of eight"
    assert all(len(batch["input_ids"]) <= 4 for batch in batches), "no larger than a training batch"
    supervised = torch.cat([(batch["targets"] != -100).sum(1) for batch in batches])
    assert supervised.min() >= 2 and supervised.max() <= 8
    assert short_questions(loader, 0) == []
    many = [index for batch in short_questions(loader, 1000) for index in batch["sample_indices"]]
    assert set(many) == set(range(8))


def test_half_an_answer_is_no_short_answer():
    _, loader = validation(max_length=27)
    tokenizer = loader.batches.dataset.tokenizer
    rows = [row[row != IGNORE] for batch in short_questions(loader, 8) for row in batch["targets"]]
    assert rows and all(row[-1] == tokenizer.eos_token_id for row in rows)


def test_a_run_without_images_or_answers_is_told_so_before_it_begins():
    _, loader = validation()
    data = loader.batches.dataset
    samples = [data.dataset[i] for i in range(8)]
    assert "picture" not in look_ahead(loader) and "used" not in look_ahead(loader)
    data.dataset = [{**sample, "images": []} for sample in samples]
    data.num_prefix_tokens = 0
    assert "not one of 8 validation samples has a picture" in look_ahead(loader)
    blank = [{**turn, "assistant": " "} for turn in samples[0]["texts"]]
    data.dataset = [*samples[:-1], {**samples[-1], "texts": blank}]
    assert "1 of 8 validation samples cannot be used, first: sample 7: turn 0 has no answer" in look_ahead(loader)


class Damaged(list):
    def __getitem__(self, index):
        if index == 4:
            raise OSError("the file ends too early")
        return super().__getitem__(index)


def test_damaged_samples_among_them_are_left_out():
    _, loader = validation()
    data = loader.batches.dataset
    samples = [data.dataset[i] for i in range(8)]
    samples[2] = {**samples[2], "images": [b"torn"]}
    data.dataset = Damaged(samples)
    indices = {index for batch in short_questions(loader, 4) for index in batch["sample_indices"]}
    assert indices == {0, 6}
