"""Chapter 05: which tokens are learned, shifted once, and how many there are."""

from __future__ import annotations

import torch
from torch import Tensor

from nanovlm.course.judge.exercise import Case, Exercise, expect
from nanovlm.course.exercises.ch05.text import ASSISTANT, END, IMAGE, SYSTEM, USER

IGNORE = -100

# -- text.build_labels -------------------------------------------------------------------------------------------------


def labels_of(ids: list[int], assistant_id: int, end_id: int) -> list[int]:
    labels, in_answer = [], False
    for token in ids:
        labels.append(token if in_answer else IGNORE)
        if token == assistant_id:
            in_answer = True
        elif token == end_id:
            in_answer = False
    return labels


def answers_of(ids: list[int], assistant_id: int, end_id: int) -> list[list[int]]:
    """For each answer the places that are supervised, to build wrong versions from."""
    places: list[list[int]] = []
    inside = False
    for place, token in enumerate(ids):
        if inside:
            places[-1].append(place)
        if token == assistant_id:
            inside = True
            places.append([])
        elif token == end_id:
            inside = False
    return places


def keep(ids: list[int], places: set[int] | list[int]) -> list[int]:
    return [token if place in set(places) else IGNORE for place, token in enumerate(ids)]


# One turn: <|user|> picture, two words <|assistant|> two words <|end|>
TURN = [USER, IMAGE, IMAGE, 93, 42, ASSISTANT, 94, 95, END]

BUILD = Exercise(
    id="text.build_labels",
    chapter="05",
    title="Which tokens are learned?",
    difficulty=2,
    minutes=10,
    why="The loss is a mean over supervised tokens and nothing else. Leave out the end token, and the model never "
    "stops; leave in the questions, and half of what it learns is to ask them.",
    hints=(
        "Read the line from left to right, as a person would, and keep in mind whether an answer is going on.",
        "One flag is enough. The assistant's token switches it on, for the tokens behind it; the end token switches it "
        "off, and is itself still learned.",
        "for token in ids:\n"
        "    labels.append(token if in_answer else -100)\n"
        "    then look at token: does an answer begin behind it, or end with it?",
    ),
    reference=labels_of,
    cases=lambda: [
        Case(TURN, ASSISTANT, END, note="picture, question, an answer of two tokens and its end"),
        Case([*TURN, USER, 43, ASSISTANT, 96, END], ASSISTANT, END, note="two turns"),
        Case([SYSTEM, 50, *TURN[:-2]], ASSISTANT, END, note="a system message, and an answer that is cut off"),
        Case([USER, 93, 42, ASSISTANT], ASSISTANT, END, note="a prompt: no answer yet"),
        Case([7, 20, 21, 8, 22, 0, 7, 23, 8, 0], 8, 0, note="another tokenizer: assistant 8, end 0"),
    ],
)


@BUILD.property("a label is the token at its own place, or -100")
def _(learner) -> None:
    ids = [*TURN, *TURN]
    labels = learner(list(ids), ASSISTANT, END)
    expect(len(labels) == len(ids), f"{len(ids)} tokens have {len(labels)} labels.")
    wrong = [(token, label) for token, label in zip(ids, labels, strict=True) if label not in (token, IGNORE)]
    expect(not wrong, f"Token {wrong[0][0]} has the label {wrong[0][1]}. Nothing is shifted yet." if wrong else "")


@BUILD.mistake("The end token is not supervised, so the model will never learn to stop.")
def _(ids, assistant_id, end_id):
    return [IGNORE if token == end_id else token for token in labels_of(ids, assistant_id, end_id)]


@BUILD.mistake(
    "The assistant's token is supervised too. The template writes it, not the model: learning starts behind it."
)
def _(ids, assistant_id, end_id):
    labels = labels_of(ids, assistant_id, end_id)
    return [token if token == assistant_id else label for token, label in zip(ids, labels, strict=True)]


@BUILD.mistake("Only the first answer is supervised. Every turn of the conversation teaches.")
def _(ids, assistant_id, end_id):
    return keep(ids, answers_of(ids, assistant_id, end_id)[0])


@BUILD.mistake("Only the last answer is supervised. Every turn of the conversation teaches.")
def _(ids, assistant_id, end_id):
    return keep(ids, answers_of(ids, assistant_id, end_id)[-1])


@BUILD.mistake("From the first answer on everything is supervised, later questions included. The end token ends it.")
def _(ids, assistant_id, end_id):
    begin = ids.index(assistant_id) + 1
    return keep(ids, list(range(begin, len(ids))))


@BUILD.mistake("Every token is supervised. The model is to answer questions, not to ask them.")
def _(ids, assistant_id, end_id):
    return list(ids)


@BUILD.mistake("An answer that was cut off before its end token has no labels here. What is left of it still teaches.")
def _(ids, assistant_id, end_id):
    whole = [places for places in answers_of(ids, assistant_id, end_id) if places and ids[places[-1]] == end_id]
    return keep(ids, [place for places in whole for place in places])


@BUILD.mistake("Unsupervised places hold 0, which is a token's id: the loss would ask for it. Only -100 is left out.")
def _(ids, assistant_id, end_id):
    return [0 if label == IGNORE else label for label in labels_of(ids, assistant_id, end_id)]


@BUILD.mistake("The labels are shifted already. Here each stands at its own token; the shift comes once, later.")
def _(ids, assistant_id, end_id):
    return [*labels_of(ids, assistant_id, end_id)[1:], IGNORE]


# -- text.shift_once ---------------------------------------------------------------------------------------------------


def shifted(labels: Tensor) -> Tensor:
    targets = torch.full_like(labels, IGNORE)
    targets[:, :-1] = labels[:, 1:]
    return targets


def random_labels(batch: int, length: int) -> Tensor:
    return torch.randint(5, 90, (batch, length), generator=torch.Generator().manual_seed(0))


SHIFT = Exercise(
    id="text.shift_once",
    chapter="05",
    title="Shift once",
    difficulty=1,
    minutes=6,
    why="At each place the model says what comes next. Never shifted, it learns to repeat what it reads; shifted "
    "twice, it learns to leave out a word. In both cases the loss goes down nicely.",
    hints=(
        "Write the line of tokens on paper, and below each of them the token that should follow it.",
        "Everything moves one place to the left, along the length. Nothing follows the last place, so it asks nothing.",
        "targets = a tensor like labels, full of -100\ntargets[:, all but the last] = labels[:, all but the first]",
    ),
    reference=shifted,
    cases=lambda: [
        Case(
            torch.tensor([[IGNORE, IGNORE, IGNORE, 94, 95, 1]]),
            note="a prompt of three tokens, an answer of two, and its end",
        ),
        Case(random_labels(2, 5), note="two lines of plain text, in which every token is supervised"),
        Case(torch.tensor([[IGNORE, 94, 1, IGNORE, IGNORE], [IGNORE, IGNORE, 7, 8, 1]]), note="a padded batch"),
        Case(random_labels(3, 1), note="lines of one token, behind which nothing stands"),
    ],
    axes="batch length",
)


@SHIFT.property("each row is shifted alone")
def _(learner) -> None:
    labels = random_labels(4, 6)
    alone = torch.cat([learner(row[None].clone()) for row in labels])
    expect(torch.equal(learner(labels.clone()), alone), "A row's targets depend on the rows beside it.")


@SHIFT.mistake("torch.roll brings the first label round to the end, where nothing should be asked: set it to -100.")
def _(labels):
    return torch.roll(labels, -1, dims=1)


@SHIFT.mistake("Without dims, torch.roll runs on from row to row: each row ends in the first label of the next one.")
def _(labels):
    return torch.roll(labels, -1)


@SHIFT.mistake("The wrong way: here each place asks for the token before it. Move the labels to the left.")
def _(labels):
    return torch.cat([torch.full_like(labels[:, :1], IGNORE), labels[:, :-1]], dim=1)


@SHIFT.mistake("Nothing has moved. Each place would be asked for the very token that it reads.")
def _(labels):
    return labels.clone()


@SHIFT.mistake("This is shifted twice: each place asks for the token after the next one.")
def _(labels):
    return shifted(shifted(labels))


@SHIFT.mistake(
    "The result is one shorter than the labels. That works only if the logits lose their last place as well; here both "
    "keep their length, and the last place holds -100."
)
def _(labels):
    return labels[:, 1:]


@SHIFT.mistake("Rows have moved, not places: [1:] cuts along the batch. Slice the second axis, [:, 1:].")
def _(labels):
    targets = torch.full_like(labels, IGNORE)
    targets[:-1] = labels[1:]
    return targets


@SHIFT.mistake("Rows have moved, not places, and the last row stays as it was. Slice the second axis, [:, 1:].")
def _(labels):
    return torch.cat([labels[1:], labels[-1:]])


@SHIFT.mistake("The last place keeps its own label. Nothing follows it, so nothing is asked there: -100.")
def _(labels):
    return torch.cat([labels[:, 1:], labels[:, -1:]], dim=1)


@SHIFT.mistake("The last place holds 0, which is a token's id. Nothing is asked there: -100.")
def _(labels):
    return torch.cat([labels[:, 1:], torch.zeros_like(labels[:, :1])], dim=1)


# -- text.count_supervised ---------------------------------------------------------------------------------------------


def counts_of(labels: Tensor, max_length: int | None = None) -> list[int]:
    return [sum(int(label) != IGNORE for label in row[:max_length]) for row in labels]


BATCH = torch.tensor([[IGNORE, IGNORE, 94, 95, 1, IGNORE], [IGNORE, IGNORE, IGNORE, IGNORE, 0, 1]])

COUNT = Exercise(
    id="text.count_supervised",
    chapter="05",
    title="Does this sample teach anything?",
    difficulty=1,
    minutes=5,
    why="A sample that is cut before its answer has no supervised token. Alone in a batch it makes the loss NaN. "
    "In chapter 08 the same count makes gradient accumulation exact.",
    hints=(
        "A label teaches if it is not -100. Any other number is a token's id, 0 too.",
        "Cut the length first, then compare with -100 and add up along the length: a number for each sample.",
        "(labels[:, :max_length] != -100) is True where something is learned; sum over dim 1, then .tolist()",
    ),
    reference=counts_of,
    cases=lambda: [
        Case(BATCH, note="two samples, of which one has a token with the id 0 as its answer"),
        Case(BATCH, 4, note="the same, cut after four tokens"),
        Case(BATCH, 1, note="the same, cut after one token"),
        Case(torch.full((3, 4), IGNORE), 9, note="three samples without an answer, shorter than max_length"),
        Case(random_labels(2, 5), 3, note="plain text"),
    ],
)


@COUNT.property("padding changes no count")
def _(learner) -> None:
    padded = torch.cat([BATCH, torch.full((2, 3), IGNORE)], dim=1)
    expect(learner(padded.clone()) == learner(BATCH.clone()), "Three places of -100 more change the counts.")


@COUNT.mistake("max_length is ignored: what is cut off teaches nothing.")
def _(labels, max_length=None):
    return counts_of(labels)


@COUNT.mistake("Ids are compared with 0, so the token with the id 0 is not counted. Compare with -100.")
def _(labels, max_length=None):
    return (labels[:, :max_length] > 0).sum(dim=1).tolist()


@COUNT.mistake("This is one number for the whole batch. One empty sample would hide behind the others: count each.")
def _(labels, max_length=None):
    return sum(counts_of(labels, max_length))


@COUNT.mistake("You count the places that are left out. Those that are not -100 teach.")
def _(labels, max_length=None):
    return (labels[:, :max_length] == IGNORE).sum(dim=1).tolist()


@COUNT.mistake("The slice cuts the batch, not the length: samples are missing. Slice the second axis.")
def _(labels, max_length=None):
    return counts_of(labels[:max_length])


@COUNT.mistake("You keep the end of each sample. Cutting takes tokens away from the end and keeps the beginning.")
def _(labels, max_length=None):
    return counts_of(labels[:, -(max_length or 0) :])
