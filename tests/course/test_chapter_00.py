"""Chapter 00's pictures in default and extreme states, its widget, and the sample pictures that it shows."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nanovlm import VisionLanguageModel
from nanovlm.assets import asset_path
from nanovlm.config import presets
from nanovlm.course import asking
from nanovlm.course.asking import IMAGES, QUESTIONS, ask, uploaded_bytes
from nanovlm.data.thimble import thimble_sample, thimble_scene
from nanovlm.data.thimble.__main__ import IMAGES as RECORDED
from nanovlm.data.thimble.__main__ import write_images
from nanovlm.viz.question_path import path_figure
from nanovlm.viz.start_here import Scored, answer_card, answers_row, sample_card, seeing_bars
from nanovlm.viz.style import MAX_WIDTH, PALETTE, Figure
from nanovlm.weights.from_preset import build_model

ROOT = Path(__file__).resolve().parents[2]
SVG = "{http://www.w3.org/2000/svg}"
LONG = "What is at the top left? " * 40


def shipped(name: str) -> Image.Image:
    return Image.open(asset_path(f"images/{name}.png"))


def drawn(figure: Figure) -> ElementTree.Element:
    """The drawing, parsed: it must be well-formed, fit a notebook, and keep all text and pictures on the card."""
    root = ElementTree.fromstring(figure.markup)
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    assert width <= MAX_WIDTH and figure.alt
    for element in root.iter():
        if element.tag in (f"{SVG}text", f"{SVG}image"):
            assert 0 <= float(element.get("x", -1)) <= width and 0 <= float(element.get("y", -1)) <= height
        if element.tag == f"{SVG}text" and element.get("text-anchor") == "start":
            # By the letters of DejaVu Sans, a wide font; bold ones are wider still.
            letter = 0.68 if element.get("font-weight") == "bold" else 0.6
            wide = letter * float(element.get("font-size", 0)) * len("".join(element.itertext()))
            assert float(element.get("x", 0)) + wide <= width + 12, "".join(element.itertext())
    return root


def words(root: ElementTree.Element) -> str:
    return " ".join("".join(element.itertext()) for element in root.iter(f"{SVG}text"))


def count(root: ElementTree.Element, colour: str) -> int:
    return sum(e.tag == f"{SVG}rect" and e.get("fill") == PALETTE[colour] for e in root.iter())


# -- cards -------------------------------------------------------------------------------------------------------------


def test_a_card_says_what_was_asked_and_what_the_model_says() -> None:
    figure = answer_card(shipped("shapes"), "Where is the red star?", "top left", 64)
    shown = words(drawn(figure))
    assert all(part in shown for part in ("Where is the red star?", "top left", "64 × 64 pixels"))
    assert "Where is the red star?" in figure.alt and "“top left”" in figure.alt


@pytest.mark.parametrize("size", [(1, 1), (4000, 3), (3, 4000), (64, 64)])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_a_card_shows_images_of_any_size_and_mode(size: tuple[int, int], mode: str) -> None:
    drawn(answer_card(Image.new(mode, size), "?", "a", 64))
    drawn(sample_card(Image.new(mode, size), [("?", "a")]))


def test_an_unfinished_card_has_a_cursor_and_an_empty_answer_is_said() -> None:
    image = shipped("charts")
    assert "▍" in words(drawn(answer_card(image, "?", "top", 64, writing=True)))
    assert "▍" not in words(drawn(answer_card(image, "?", "top", 64)))
    assert "(nothing)" in words(drawn(answer_card(image, "?", "", 64)))
    assert "(nothing)" not in words(drawn(answer_card(image, "?", "", 64, writing=True)))


def test_cards_grow_with_their_words() -> None:
    short = drawn(answer_card(shipped("glyphs"), "?", "a", 64))
    long = drawn(answer_card(shipped("glyphs"), LONG, LONG, 64))
    assert float(long.get("height", 0)) > float(short.get("height", 0))
    assert words(long).count("left?") == 80


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=60), st.text(max_size=60))
def test_no_text_breaks_a_drawing(question: str, answer: str) -> None:
    image = Image.new("RGB", (8, 8))
    ElementTree.fromstring(answer_card(image, question, answer, 64).markup)
    ElementTree.fromstring(answers_row(question, [image], [answer], ["a"]).markup)
    ElementTree.fromstring(sample_card(image, [(question, answer)]).markup)
    ElementTree.fromstring(path_figure(image, [question], [answer], [answer], 8, 2).markup)


# -- does it look ------------------------------------------------------------------------------------------------------


def test_right_and_wrong_answers_are_told_apart_by_form_and_words() -> None:
    images = [shipped(name) for name in ("shapes", "shapes_2", "shapes_3")]
    truth = ["top left", "bottom left", "top right"]
    right = answers_row("Where is the red star?", images, truth, truth)
    wrong = answers_row("Where is the red star?", images, ["top left", "", LONG], truth)
    assert "in truth" not in words(drawn(right)) and "in truth" not in right.alt
    assert words(drawn(wrong)).count("in truth:") == 2 and "in truth “top right”" in wrong.alt
    marks = {re.search(r"l3 3l5 -6|l6 6m0 -6l-6 6", f.markup[f.markup.rfind("<circle") :])[0] for f in (right, wrong)}
    assert len(marks) == 2


def test_the_lengths_of_the_bars_are_the_scores() -> None:
    figure = seeing_bars({"shapes": [Scored("colour", 0.5, 0.25, 1 / 6)], "glyphs": [Scored("read", 1.0, 0.0, 0.0)]})
    bars = [e for e in drawn(figure).iter(f"{SVG}rect") if e.get("fill") == PALETTE["blue"]][1:]  # after the legend
    assert [float(bar.get("width", 0)) for bar in bars] == [210, 420]
    assert "shapes colour: 50% with its own picture, 25% with another one's" in figure.alt
    drawn(seeing_bars({}))


# -- the path ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("grid", "factor"), [(8, 2), (14, 2), (32, 4), (4, 1), (1, 1)])
@pytest.mark.parametrize("num_words", [1, 6, 300])
def test_the_path_shows_as_many_patches_and_tokens_as_the_model_has(grid: int, factor: int, num_words: int) -> None:
    figure = path_figure(shipped("shapes"), ["<|user|>"], ["word"] * num_words, ["answer"] * num_words, grid, factor)
    root = drawn(figure)
    tokens = (grid // factor) ** 2
    assert count(root, "blue") == grid**2
    assert count(root, "orange") == 2 * tokens  # as a grid, and in the line
    assert f"{tokens} image tokens" in words(root) and f"{grid**2} patches" in words(root)
    line = [e for e in root.iter(f"{SVG}rect") if e.get("y") == "186"]
    ends = [float(e.get("x", 0)) + float(e.get("width", 0)) for e in line]
    assert max(ends) <= 720 and ends == sorted(ends)


def test_the_path_shows_the_words_of_the_prompt_and_of_the_answer() -> None:
    root = drawn(path_figure(shipped("shapes"), ["<|user|>"], ["Where", " is", "?"], [" top", " left"], 8, 2))
    assert re.search(r"<\|user\|>.*Where.*is.*\?.*top.*left", words(root))


# -- the widget --------------------------------------------------------------------------------------------------------


class Talker:
    """Answers with the size of the picture and the question, in three pieces."""

    config = SimpleNamespace(vision=SimpleNamespace(image_size=64))

    def __init__(self) -> None:
        self.asked = 0

    def generate(self, image: Any, prompt: str, on_text: Any = None, **options: Any) -> str:
        self.asked += 1
        if not prompt.strip():
            raise ValueError("The prompt is empty.")
        pieces = [f"{image.width} wide, ", f"{image.height} high, ", prompt]
        for piece in pieces if on_text else []:
            on_text(piece)
        return "".join(pieces)


def png(size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def talker() -> Talker:
    return Talker()


@pytest.fixture
def at(talker: Talker) -> SimpleNamespace:
    """The controls by name, and the cards that were shown."""
    cards: list[Figure] = []
    widget = ask(talker).controls(cards.append)  # type: ignore[arg-type]
    (choice, upload), (question, examples, button) = (box.children for box in widget.children)
    return SimpleNamespace(
        choice=choice, upload=upload, question=question, examples=examples, button=button, cards=cards
    )


def said_on(card: Figure) -> str:
    return re.sub(r"<[^>]*>", " ", card.markup)


def test_without_a_kernel_the_default_question_is_shown_with_its_answer(talker: Talker) -> None:
    card = ask(talker).figure()  # type: ignore[arg-type]
    assert "256 wide, 256 high, Where is the red star?" in card.alt
    drawn(card)


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("question", [*QUESTIONS, LONG])
def test_render_takes_every_image_and_question(talker: Talker, name: str, question: str) -> None:
    drawn(ask(talker).render(name, question))  # type: ignore[arg-type]


def test_a_question_streams_into_the_card(at: SimpleNamespace) -> None:
    at.question.value = "How many?"
    seen = [said_on(card) for card in at.cards]
    assert len(seen) == 4  # three pieces, and the finished card
    assert "▍" in seen[0] and "high" not in seen[0] and "high" in seen[1]
    assert "▍" not in seen[-1] and "How many?" in seen[-1]


def test_the_button_asks_once(at: SimpleNamespace, talker: Talker) -> None:
    before = talker.asked
    at.question.value = "How many?"  # what leaving the field does, on the way to the button
    at.button.click()
    assert talker.asked == before + 1


def test_an_example_is_put_into_the_question_as_often_as_it_is_chosen(at: SimpleNamespace) -> None:
    for _ in range(2):
        at.examples.value = "What does the sign say?"
        assert at.question.value == "What does the sign say?" and "What does the sign say?" in said_on(at.cards[-1])
        at.question.value = "Something else?"


@pytest.mark.parametrize(
    "value",
    [
        pytest.param({"a.png": {"metadata": {}, "content": png((30, 20))}}, id="ipywidgets 7"),
        pytest.param(({"name": "a.png", "content": memoryview(png((30, 20)))},), id="ipywidgets 8"),
    ],
)
def test_an_uploaded_file_is_found_in_both_versions(value: Any) -> None:
    assert uploaded_bytes(value) == png((30, 20))


def upload(at: SimpleNamespace, content: bytes) -> None:
    """As the front end would: only the observer is called, for the value's form depends on the version."""
    (observer,) = at.upload._trait_notifiers["value"]["change"]
    observer({"new": ({"name": "a.png", "content": memoryview(content)},)})


def test_an_upload_is_asked_about_until_another_image_is_chosen(at: SimpleNamespace) -> None:
    assert uploaded_bytes({}) is None and uploaded_bytes(()) is None
    upload(at, png((30, 20)))
    assert "30 wide, 20 high" in said_on(at.cards[-1])
    at.question.value = "And this?"
    assert "30 wide" in said_on(at.cards[-1]) and "And this?" in said_on(at.cards[-1])
    at.choice.value = "shapes 1"
    assert "256 wide" in said_on(at.cards[-1])
    upload(at, png((30, 20)))
    assert "30 wide" in said_on(at.cards[-1])
    at.choice.value = "shapes 1"
    assert "256 wide" in said_on(at.cards[-1])


@pytest.mark.parametrize("content", [b"no picture", b""])
def test_what_is_no_image_is_told_once_and_the_one_of_before_stays(at: SimpleNamespace, content: bytes) -> None:
    upload(at, content)
    assert "is not a picture" in at.cards[-1].alt and not at.cards[-1].is_svg
    at.question.value = "And now?"
    assert "256 wide" in said_on(at.cards[-1]) and "And now?" in said_on(at.cards[-1])
    at.question.value = " "
    assert "The prompt is empty" in at.cards[-1].alt


def test_asking_needs_something_to_begin_with(talker: Talker) -> None:
    with pytest.raises(ValueError, match="at least one picture"):
        ask(talker, images={})  # type: ignore[arg-type]


def test_a_real_model_answers_and_its_stream_joins_to_the_answer() -> None:
    torch.manual_seed(0)
    model = build_model(presets()["pocket"]).eval()
    asked = ask(model, max_new_tokens=4)
    cards: list[Figure] = []
    done = asked.ask("sign", "What does the sign say?", on_card=cards.append)
    assert done.alt == asked.render("sign", "What does the sign say?").alt
    with pytest.raises(ValueError, match="positions"):
        asked.render("sign", LONG * 4)


# -- sample pictures ---------------------------------------------------------------------------------------------------


def test_the_recorded_command_makes_the_images_that_ship(tmp_path: Path) -> None:
    for made in write_images(tmp_path / "new"):
        here = np.asarray(Image.open(made), dtype=int)
        ships = np.asarray(shipped(made.stem), dtype=int)
        assert np.abs(here - ships).max() <= 1, made.name  # other builds of Pillow may round otherwise
    assert {f"images/{name}" for name in RECORDED} == set(asking.IMAGES.values())


def test_the_red_star_is_where_the_chapter_says() -> None:
    text = (ROOT / "chapters" / "00_start_here.py").read_text(encoding="utf-8")
    truth = re.findall(r'"([^"]+)"', re.search(r"truth = \[(.*)\]", text)[1])
    names = re.findall(r'"([^"]+)"', re.search(r"for name in \(([^)]*)\)\s*\]", text)[1])
    assert len(truth) == len(set(truth)) == len(names) == 3
    for name, cell in zip(names, truth, strict=True):
        subset, index = RECORDED[f"{name}.png"]
        scene, _ = thimble_scene(subset, "test", index)
        assert scene.cells.index(("red", "star")) == ("top left", "top right", "bottom left", "bottom right").index(
            cell
        )


def test_the_sample_that_the_chapter_shows_is_the_one_it_describes() -> None:
    *_, caption = thimble_sample("shapes", "test", 610)["texts"]
    assert caption["assistant"].startswith("top left: orange triangle. top right: blue square. bottom left: red star.")


@pytest.fixture(scope="module")
def pocket() -> VisionLanguageModel:
    return VisionLanguageModel.from_pretrained(asset_path("pocket")).eval()


def said_of(pocket: VisionLanguageModel, samples: list[dict[str, Any]], questions: list[str]) -> list[str]:
    """What it says when sample i is asked question i, in batches."""
    said: list[str] = []
    for i in range(0, len(samples), 100):
        images = [sample["images"] for sample in samples[i : i + 100]]
        said += pocket.generate(prompt=questions[i : i + 100], image=images, max_new_tokens=40)
    return said


@pytest.mark.parametrize("subset", ["shapes", "charts", "glyphs"])
def test_it_describes_any_image_when_asked(pocket: VisionLanguageModel, subset: str) -> None:
    samples = [thimble_sample(subset, "test", i) for i in range(24)]
    said = said_of(pocket, samples, ["Describe the picture."] * len(samples))
    assert sum(a == s["texts"][-1]["assistant"] for a, s in zip(said, samples, strict=True)) >= 21, said


def test_asked_for_the_second_tallest_bar_it_names_the_tallest(pocket: VisionLanguageModel) -> None:
    """Chapter 00 says so, and chapter 00's own chart shows it."""
    samples, tallest, second = [], [], []
    for i in range(60):
        sample = thimble_sample("charts", "test", i)
        bars = re.findall(r"(\w+) (\d)", sample["texts"][-1]["assistant"].split(":")[1])
        colours = [colour for colour, _ in sorted(bars, key=lambda bar: bar[1], reverse=True)]
        if len({height for _, height in bars}) == len(bars):
            samples.append(sample)
            tallest.append(colours[0])
            second.append(colours[1])
    assert len(samples) > 25
    for question in ("Which bar is the tallest?", "Which bar is the second tallest?"):
        said = said_of(pocket, samples, [question] * len(samples))
        assert sum(a == b for a, b in zip(said, tallest, strict=True)) > 0.9 * len(samples), (question, said)
        assert sum(a == b for a, b in zip(said, second, strict=True)) < 0.1 * len(samples), (question, said)
        assert pocket.generate(image=shipped("charts"), prompt=question) == "orange"


def test_a_question_in_american_spelling_is_understood(pocket: VisionLanguageModel) -> None:
    """Of the pictures that a newcomer sees first; tests/test_model_card.py asks about others."""
    for name in ("shapes", "shapes_2", "shapes_3"):
        usual, american = (f"What {word} is the star?" for word in ("colour", "color"))
        assert pocket.generate(image=shipped(name), prompt=american) == pocket.generate(
            image=shipped(name), prompt=usual
        )


def test_it_counts_all_shapes_and_is_off_by_one_now_and_then_when_it_has_to_choose(pocket: VisionLanguageModel) -> None:
    """Chapter 00 says so."""
    samples = [thimble_sample("shapes", "test", i) for i in range(400)]
    everything = "How many shapes are there?"
    said = said_of(pocket, samples[:200], [everything] * 200)
    in_all = [str(4 - sample["texts"][-1]["assistant"].count("nothing")) for sample in samples]
    assert sum(a == b for a, b in zip(said, in_all[:200], strict=True)) >= 199
    turns = [(sample, turn) for sample in samples for turn in sample["texts"]]
    asked = [(s, t) for s, t in turns if t["user"].startswith("How many") and t["user"] != everything]
    said = said_of(pocket, [sample for sample, _ in asked], [turn["user"] for _, turn in asked])
    slips = [(t["user"], a, t["assistant"]) for a, (_, t) in zip(said, asked, strict=True) if a != t["assistant"]]
    assert 0 < len(slips) < 0.1 * len(asked), slips
    assert sum(abs(int(answer) - int(truth)) == 1 for _, answer, truth in slips) > len(slips) / 2, slips
