"""What chapter 14 measures with: attention by quarters of a picture, encoders without a part, counts of colours."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from nanovlm.data.thimble.drawing import COLOURS, Draws
from nanovlm.data.thimble.shapes import CELLS, SHAPES, Scene, draw
from nanovlm.evaluation.scores import Evaluation, Question, answer_all, evaluate, questions_of
from nanovlm.models.vision_language_model import VisionLanguageModel
from nanovlm.models.vision_transformer import ViT, ViTBlock

MIDDLES = [[9, 10, 17, 18], [13, 14, 21, 22], [41, 42, 49, 50], [45, 46, 53, 54]]  # four patches in each quarter
QUARTERS = [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]  # the image tokens of each quarter
Contents = dict[str, str]  # place -> "red star" or "nothing"


def by_quarter(maps: Tensor) -> Tensor:
    """The shares of the picture's quarters, in reading order. [..., 64] -> [..., 4]"""
    return maps.unflatten(-1, (2, 4, 2, 4)).sum(dim=(-3, -1)).flatten(-2)


def drawn(cells: Sequence[str]) -> Image.Image:
    """Four shapes such as "red star", in reading order: always in the same places and in the same light."""
    return draw(Scene(tuple(tuple(each.split()) for each in cells), "any"), Draws("chapter 14"), 64)


def is_background(image: Image.Image, patch: int) -> bool:
    """Whether all pixels of the patch are nearly white."""
    row, column = divmod(patch, 8)
    crop = image.resize((64, 64)).crop((8 * column, 8 * row, 8 * column + 8, 8 * row + 8))
    return min(low for low, _ in crop.getextrema()) > 200


def contents_of(sample: dict[str, Any]) -> Contents:
    return dict(re.findall(r"(\w+ \w+): (\w+ \w+|nothing)\.", sample["texts"][-1]["assistant"]))


def shares_by(contents: Sequence[Contents], shares: Tensor) -> dict[str, dict[str, float]]:
    """How much a quarter gets from the shapes in other quarters, by its shape, its colour and its place.

    shares: [pictures, 4 that attend, 4 attended to]
    """
    found: dict[str, dict[str, list[float]]] = {"shape": {}, "colour": {}, "place": {}}
    for content, table in zip(contents, shares.tolist(), strict=True):
        for i, asking in enumerate(CELLS):
            for j, place in enumerate(CELLS):
                if i == j or content[asking] == "nothing":
                    continue
                colour, _, shape = content[place].partition(" ")
                found["shape"].setdefault(shape or "nothing", []).append(table[i][j])
                if shape:
                    found["colour"].setdefault(colour, []).append(table[i][j])
                    found["place"].setdefault(place, []).append(table[i][j])
    return {kind: {name: mean(each) for name, each in sorted(names.items())} for kind, names in found.items()}


def shares_by_asker(contents: Sequence[Contents], shares: Tensor) -> tuple[Tensor, float, float]:
    """The mean share from each colour to each colour, [6, 6]; and, where a shape has both to choose from, what one of
    its own colour and what one of another colour gets."""
    asked: dict[tuple[str, str], list[float]] = {}
    chosen: dict[bool, list[float]] = {True: [], False: []}
    for content, table in zip(contents, shares.tolist(), strict=True):
        colours = {i: content[place].split()[0] for i, place in enumerate(CELLS) if content[place] != "nothing"}
        for i, mine in colours.items():
            others = {j: theirs for j, theirs in colours.items() if j != i}
            both = len({theirs == mine for theirs in others.values()}) == 2
            for j, theirs in others.items():
                asked.setdefault((mine, theirs), []).append(table[i][j])
                if both:
                    chosen[theirs == mine].append(table[i][j])
    means = [[mean(asked.get((mine, theirs), [float("nan")])) for theirs in COLOURS] for mine in COLOURS]
    return torch.tensor(means), mean(chosen[True]), mean(chosen[False])


# -- parts taken away --------------------------------------------------------------------------------------------------


def with_blocks(model: VisionLanguageModel, block_class: type[ViTBlock]) -> ViT:
    """The model's encoder with other blocks and the same weights."""
    broken = ViT(model.config.vision).eval()
    broken.blocks = nn.ModuleList(block_class(model.config.vision) for _ in broken.blocks)
    broken.load_state_dict(model.vision_encoder.state_dict())  # strict, and it raises nothing: names and shapes fit
    return broken


def without_heads(model: VisionLanguageModel, heads: Sequence[int], block: int = 1) -> ViT:
    """The model's encoder without these heads of a block: out_proj reads zeros of them."""
    broken = with_blocks(model, ViTBlock)
    weight = broken.blocks[block].attn.out_proj.weight
    with torch.no_grad():
        weight.unflatten(1, (model.config.vision.num_heads, -1))[:, list(heads)] = 0
    return broken


def with_encoder(model: VisionLanguageModel, encoder: ViT) -> VisionLanguageModel:
    """The same model behind another encoder: projector and decoder are shared."""
    other = VisionLanguageModel(model.config, encoder, model.projector, model.decoder).eval()
    other.tokenizer, other.image_processor = model.tokenizer, model.image_processor
    return other


def scores_of(model: VisionLanguageModel, samples: Sequence[dict[str, Any]]) -> tuple[dict[str, float], Evaluation]:
    """The share of right answers, of all kinds together and of each kind; and the answers themselves."""
    result = evaluate(model, samples, blind=False)
    kinds = {kind.rpartition("/")[2]: score.accuracy for kind, score in result.scores.items()}
    return {"all": result.accuracy} | kinds, result


def share_right(model: VisionLanguageModel, samples: Sequence[dict[str, Any]], kind: str) -> float:
    """The share of right answers to the questions of one kind, such as "colour"."""
    questions = [question for question in questions_of(samples) if question.kind == kind]
    return mean(a == q.answer for q, a in zip(questions, answer_all(model, questions), strict=True))


def counts_of(result: Evaluation) -> dict[str, float]:
    """The share of right answers to the counting questions, by what is counted."""
    right: dict[str, list[bool]] = {"all shapes": [], "a shape": [], "a colour": []}
    for question, answer in result.answers:
        if question.kind == "count":
            word = question.text.split()[2]  # How many ... are there?
            kind = "all shapes" if word == "shapes" else "a colour" if word in COLOURS else "a shape"
            right[kind].append(answer == question.answer)
    return {kind: mean(each) for kind, each in right.items()}


@dataclass(frozen=True)
class ColourCounts:
    """counted: the share of right counts. repeated: the share of pictures of which the counts tell rightly whether two
    shapes have one colour. most: the share of the more frequent of the two answers, yes and no."""

    counted: float
    repeated: float
    most: float
    questions: int


def count_colours(
    model: VisionLanguageModel, samples: Sequence[dict[str, Any]], contents: Sequence[Contents]
) -> ColourCounts:
    """Asks for the number of every colour in every picture."""
    questions = []
    for i, content in enumerate(contents):
        for colour, number in Counter(each.split()[0] for each in content.values() if each != "nothing").items():
            text = f"How many {colour} shapes are there?"
            questions.append(Question(i, samples[i]["images"], text, str(number), "count"))
    said, truth, right = [False] * len(samples), [False] * len(samples), 0
    for question, answer in zip(questions, answer_all(model, questions), strict=True):
        right += answer == question.answer
        said[question.sample] |= answer in ("2", "3", "4")
        truth[question.sample] |= question.answer != "1"
    agree = mean(a == b for a, b in zip(said, truth, strict=True))
    return ColourCounts(right / len(questions), agree, max(mean(truth), 1 - mean(truth)), len(questions))


# -- what a layer holds ------------------------------------------------------------------------------------------------


@torch.inference_mode()
def states_by_quarter(model: VisionLanguageModel, images: Sequence[Image.Image]) -> dict[str, Tensor]:
    """For each layer on the way from the patches to the last block, a vector for each quarter: [pictures, 4, dim].

    In the encoder it is the mean of the four patches in the middle of the quarter, behind it of its four image tokens.
    """
    states, x = {}, model.vision_encoder.patch_embedding(model.image_processor(list(images)))
    states["patches"] = x[:, MIDDLES].mean(dim=2)
    for i, block in enumerate(model.vision_encoder.blocks):
        x = block(x)
        states[f"enc. {i}"] = x[:, MIDDLES].mean(dim=2)
    x = model.projector(model.vision_encoder.layer_norm(x))
    hidden: list[Tensor] = []
    first = model.tokenizer.encode_prompt("?", 0, model.config)[
        :1
    ]  # what comes before a picture; later words are not seen
    start = model.decoder.token_embedding(torch.tensor([first])).expand(len(x), -1, -1)
    model.decoder(torch.cat([start, x], dim=1), hidden_states=hidden)
    states["tokens"] = x[:, QUARTERS].mean(dim=2)
    for i, state in enumerate(hidden[1:]):
        states[f"dec. {i}"] = state[:, 1:][:, QUARTERS].mean(dim=2)
    return states


@dataclass(frozen=True)
class AboutShapes:
    """One question about every shape of every picture. where: [shapes, 2] of picture and quarter; labels: [shapes]"""

    name: str
    where: Tensor
    labels: Tensor

    @property
    def is_test(self) -> Tensor:
        """The shapes of the last third of the pictures: no picture is on both sides."""
        return self.where[:, 0] >= (self.where[-1, 0] + 1) * 2 // 3

    @property
    def most_frequent(self) -> float:
        """What always giving the training set's most frequent answer reaches."""
        return (self.labels[self.is_test] == self.labels[~self.is_test].mode().values).double().mean().item()

    def share_right(self, vectors: Tensor, probe: Callable[[Tensor, Tensor, Tensor, int, float], Tensor]) -> float:
        """A probe for these vectors, [pictures, 4, dim], and its share of right answers on the test shapes."""
        x, test = vectors[self.where[:, 0], self.where[:, 1]], self.is_test
        scores = probe(x[~test], self.labels[~test], x[test], int(self.labels.max()) + 1, 1.0)
        return (scores.argmax(dim=-1) == self.labels[test]).double().mean().item()


def questions_about_shapes(contents: Sequence[Contents]) -> list[AboutShapes]:
    where, answers = [], []
    for i, content in enumerate(contents):
        items = [content[place].split() for place in CELLS]  # ["red", "star"] or ["nothing"]
        for j, item in enumerate(items):
            if len(item) == 2:
                again = any(other[0] == item[0] for k, other in enumerate(items) if k != j)
                where.append((i, j))
                answers.append((COLOURS.index(item[0]), SHAPES.index(item[1]), int(again)))
    names = ("its colour", "its shape", "its colour again?")
    return [
        AboutShapes(name, torch.tensor(where), labels)
        for name, labels in zip(names, torch.tensor(answers).T, strict=True)
    ]
