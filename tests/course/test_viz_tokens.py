"""Chapter 05's pictures in default and extreme states; its exercises, against the package."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest
import torch
from PIL import Image

from nanovlm.assets import asset_path
from nanovlm.course.exercises.ch05.ids import expand, safe_ids
from nanovlm.course.exercises.ch05.labels import labels_of, shifted
from nanovlm.course.exercises.ch05.text import SPECIAL, rendered
from nanovlm.data.chat import ChatTokenizer, shift_labels
from nanovlm.data.datasets import messages_of
from nanovlm.data.thimble import SUBSETS, thimble_sample
from nanovlm.viz.style import MAX_WIDTH, PALETTE, Figure
from nanovlm.viz.tokens import KINDS, aligned_rows, cut_rows, score_bars, shown, token_strip

SVG = "{http://www.w3.org/2000/svg}"


def drawn(figure: Figure) -> ElementTree.Element:
    """The drawing, parsed: well-formed, not too wide, and all of it on the card."""
    root = ElementTree.fromstring(figure.markup)
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    assert width <= MAX_WIDTH and figure.alt
    for element in root.iter():
        if element.tag in (f"{SVG}text", f"{SVG}image", f"{SVG}rect"):
            x, y = float(element.get("x", 0)), float(element.get("y", 0))
            assert x >= 0 and y >= 0
            assert x + float(element.get("width", 0)) <= width and y + float(element.get("height", 0)) <= height
        if element.tag == f"{SVG}text" and element.get("text-anchor") == "start":
            wide = 0.62 * float(element.get("font-size", 0)) * len("".join(element.itertext()))
            assert float(element.get("x", 0)) + wide <= width, "".join(element.itertext())
    return root


def words(root: ElementTree.Element) -> list[str]:
    return ["".join(element.itertext()) for element in root.iter(f"{SVG}text")]


def boxes(root: ElementTree.Element, colour: str) -> list[ElementTree.Element]:
    return [e for e in root.iter(f"{SVG}rect") if e.get("fill") == PALETTE[colour]]


@pytest.fixture(scope="module")
def tokenizer() -> ChatTokenizer:
    return ChatTokenizer.from_pretrained(asset_path("pocket"))


# -- the strip ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subset", SUBSETS)
@pytest.mark.parametrize("view", ["pieces", "ids"])
def test_a_sample_is_drawn_with_each_token_once(tokenizer: ChatTokenizer, subset: str, view: str) -> None:
    sample = thimble_sample(subset, "test", 0, image_size=32)
    ids, supervised = tokenizer.encode_chat(messages_of(sample), 1, 16)
    kinds = ["answer" if learn else "picture" if i == 4 else "text" for i, learn in zip(ids, supervised, strict=True)]
    pieces = [str(i) if view == "ids" else shown(tokenizer.decode([i], False)) for i in ids]
    figure = token_strip(pieces, kinds, sample["images"][0])
    root = drawn(figure)
    assert len(boxes(root, "green")) == sum(supervised) + 1  # and one in the legend
    assert len(boxes(root, "sky")) == 16 + 1
    assert f"{sum(supervised)} of {len(ids)} tokens" in words(root)
    assert f"{sum(supervised)} supervised" in figure.alt


def test_kinds_differ_by_more_than_colour() -> None:
    def marks(kinds: list[str]) -> tuple[int, ...]:
        elements = list(ElementTree.fromstring(token_strip(["a"] * len(kinds), kinds).markup).iter())
        return (
            sum(e.get("stroke-dasharray") is not None for e in elements),
            sum(e.tag == f"{SVG}line" for e in elements),
            sum(e.get("font-weight") == "bold" for e in elements),
        )

    legend = marks([])
    own = {tuple(n - m for n, m in zip(marks([kind]), legend, strict=True)) for kind in KINDS}
    assert own == {(1, 0, 0), (0, 3, 0), (0, 0, 0), (0, 0, 1)}  # dashed, a grid, plain, bold


def test_strips_in_extreme_states() -> None:
    drawn(token_strip([], []))
    drawn(token_strip(["x" * 500], ["text"]))
    drawn(token_strip(["<|user|>"] * 600, ["answer"] * 600, Image.new("L", (1, 1))))


def test_a_strip_names_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="no kind of token called prompt"):
        token_strip(["a"], ["prompt"])
    with pytest.raises(ValueError, match="2 tokens need as many kinds"):
        token_strip(["a", "b"], ["text"])


# -- cuts, targets, scores ---------------------------------------------------------------------------------------------


def test_cuts_show_every_piece_and_white_space() -> None:
    root = drawn(cut_rows({"few": ["Where", "Ġis", "\n"], "none": []}))
    assert words(root)[2:5] == ["Where", "·is", "⏎"]
    assert "3 tokens" in words(root) and "0 tokens" in words(root)
    drawn(cut_rows({"long": list("a" * 400)}))


def test_targets_stand_below_what_is_read() -> None:
    figure = aligned_rows(["?", "<|assistant|>", "top"], {"once": [None, "top", "left"]})
    root = drawn(figure)
    assert len(boxes(root, "green")) == 2
    assert "at <|assistant|> top" in figure.alt and "at ? nothing" in figure.alt
    with pytest.raises(ValueError, match="too many to stand in one row"):
        aligned_rows(["<|assistant|>"] * 9, {"once": [None] * 9})


def test_bars_are_as_long_as_the_scores() -> None:
    root = drawn(score_bars({"a": 1.0, "b" * 51: 0.25, "c": 0.0}, 120))
    wide = [float(e.get("width", 0)) for colour in ("blue", "orange") for e in boxes(root, colour)]
    assert wide[0] / wide[1] == pytest.approx(4) and wide[2] <= 1
    assert "25%" in words(root)


# -- the exercises against the package ---------------------------------------------------------------------------------


@pytest.mark.parametrize("subset", SUBSETS)
def test_the_references_make_the_packages_ids_and_targets(tokenizer: ChatTokenizer, subset: str) -> None:
    messages = messages_of(thimble_sample(subset, "test", 1, image_size=8))
    assert {name: tokenizer.tokenizer.token_to_id(name) for name in SPECIAL} == SPECIAL
    for asking in (False, True):
        assert rendered(messages, asking) == tokenizer.render(messages, asking)
    ids = safe_ids(messages, SPECIAL, tokenizer.encode)
    assert ids == tokenizer.encode_chat(messages)[0]
    ids = expand([ids[0], SPECIAL["<|image|>"], *ids[1:]], SPECIAL["<|image|>"], 16)
    theirs, supervised = tokenizer.encode_chat(messages, 1, 16)
    assert ids == theirs
    labels = torch.tensor([labels_of(ids, SPECIAL["<|assistant|>"], SPECIAL["<|end|>"])])
    assert shifted(labels)[0].tolist() == shift_labels(theirs, supervised)


def test_the_quiz_about_turns_is_right(tokenizer: ChatTokenizer) -> None:
    """About one in twenty of the supervised tokens are in the first of seven turns."""
    first = every = 0
    for index in range(30):
        texts = thimble_sample("shapes", "train", index, image_size=8)["texts"]
        assert len(texts) == 7
        first += sum(tokenizer.encode_chat(messages_of({"texts": texts[:1]}))[1])
        every += sum(tokenizer.encode_chat(messages_of({"texts": texts}))[1])
    assert 16 < every / first < 24
