"""Chapter 05: which tokens are learned, shifted once, and how many there are."""

from __future__ import annotations

import torch
from torch import Tensor

from nanovlm.course.exercises.ch05.text import ASSISTANT, END, IMAGE, SYSTEM, USER
from nanovlm.course.exercises.common import caught
from nanovlm.course.judge.exercise import Case, Exercise, expect

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
    why="The loss is the mean over the supervised tokens. Without the end token the model never learns to stop, and with "
    "the questions among them, a large part of the loss is about asking instead of answering.",
    hints=(
        "Read the sequence from left to right, and remember whether you are inside an answer.",
        "One flag is enough. The assistant's token switches it on, for the tokens behind it; the end token switches it "
        "off, and is itself still supervised.",
        "in_answer = False\nfor token in ids:\n"
        "    labels.append(… if … else -100)\n"
        "    then change in_answer: does an answer begin after this token, or end with it?",
    ),
    reference=labels_of,
    cases=lambda: [
        Case(TURN, ASSISTANT, END, note="picture, question, an answer of two tokens and its end"),
        Case([*TURN, USER, 43, ASSISTANT, 96, END], ASSISTANT, END, note="two turns"),
        Case([SYSTEM, 50, *TURN[:-2]], ASSISTANT, END, note="a system message, and an answer that is cut off"),
        Case([USER, 93, 42, ASSISTANT], ASSISTANT, END, note="a prompt: no answer yet"),
        Case([7, 20, 4, 8, 22, 0, 7, 23, 8, 24, 0], 8, 0, note="another tokenizer: assistant 8, end 0"),
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


def _wrong_labels(sentence: str, change) -> None:
    """change(ids, the right labels, assistant_id, end_id) -> wrong labels"""
    BUILD.mistake(sentence)(lambda ids, a, e: change(ids, labels_of(ids, a, e), a, e))


_wrong_labels(
    "The image tokens are supervised as well. They are no words that the model could write.",
    lambda ids, labels, a, e: [t if t == IMAGE else x for t, x in zip(ids, labels, strict=True)],
)
_wrong_labels(
    "It is the other way round: the questions are supervised, and the answers are not.",
    lambda ids, labels, a, e: [t if x == IGNORE else IGNORE for t, x in zip(ids, labels, strict=True)],
)
_wrong_labels(
    "All text is supervised, the question included. Only the answers are the model's part.",
    lambda ids, labels, a, e: [IGNORE if t in (USER, ASSISTANT, IMAGE, SYSTEM, a) else t for t in ids],
)
_wrong_labels(
    "Unsupervised places hold -1. The loss leaves out -100 and nothing else.",
    lambda ids, labels, a, e: [-1 if x == IGNORE else x for x in labels],
)
_wrong_labels(
    "Unsupervised places hold None. The loss leaves out -100, a number.",
    lambda ids, labels, a, e: [None if x == IGNORE else x for x in labels],
)
_wrong_labels(
    "The labels are shifted to the right: each belongs to its own token.",
    lambda ids, labels, a, e: [IGNORE, *labels[:-1]],
)
_wrong_labels(
    "These are flags, True or False. A label is the token itself, or -100.",
    lambda ids, labels, a, e: [x != IGNORE for x in labels],
)
_wrong_labels(
    "There have to be as many labels as tokens: write -100 where nothing is supervised.",
    lambda ids, labels, a, e: [x for x in labels if x != IGNORE],
)
_wrong_labels(
    "The ids of the special tokens are built in: use assistant_id and end_id.",
    lambda ids, labels, a, e: labels_of(ids, ASSISTANT, END),
)


# -- text.test_labels --------------------------------------------------------------------------------------------------

PLANTED = {
    "the end token is left out": lambda ids, a, e: [
        IGNORE if t == e else x for t, x in zip(ids, labels_of(ids, a, e), strict=True)
    ],
    "the opening token is supervised": lambda ids, a, e: [
        t if t == a else x for t, x in zip(ids, labels_of(ids, a, e), strict=True)
    ],
    "the first answer only": lambda ids, a, e: keep(ids, answers_of(ids, a, e)[0] if a in ids else []),
    "questions after the first answer are supervised": lambda ids, a, e: keep(
        ids, range(ids.index(a) + 1, len(ids)) if a in ids else []
    ),
    "an answer that was cut off is not supervised": lambda ids, a, e: keep(
        ids, [p for places in answers_of(ids, a, e) if places and ids[places[-1]] == e for p in places]
    ),
    "shifted already": lambda ids, a, e: [*labels_of(ids, a, e)[1:], IGNORE],
    "the ids 3 and 1 are built in": lambda ids, a, e: labels_of(ids, 3, 1),
    "0 in place of -100": lambda ids, a, e: [0 if x == IGNORE else x for x in labels_of(ids, a, e)],
    "a token with the id 0 is left out": lambda ids, a, e: [x or IGNORE for x in labels_of(ids, a, e)],
}


def test_labels(build) -> None:
    """Two turns, the second cut off, ids of one's own, and a token with the id 0 in an answer."""
    assert build([2, 4, 9, 8, 0, 6, 2, 9, 8, 5], 8, 6) == [IGNORE] * 4 + [0, 6] + [IGNORE] * 3 + [5]


test_labels.__test__ = False  # type: ignore[attr-defined]  # no test of ours: pytest would call it

TEST_LABELS = Exercise(
    id="text.test_labels",
    chapter="05",
    title="Write the test for the labels",
    difficulty=2,
    minutes=10,
    why="Labels can be wrong in nine ways that raise no error, and the loss goes down with each of them. One well chosen "
    "example catches them all.",
    hints=(
        "Write down a short conversation as ids, and its labels by hand. What must the conversation contain, so that each "
        "mistake shows?",
        "It needs two turns, of which the second is cut off before its end token, an assistant_id and an end_id that are "
        "not the usual 3 and 1, and an answer with a token whose id is 0.",
        "assert build([2, 4, 9, 8, 0, 6, 2, 9, 8, 5], 8, 6) == [-100, …]      # 8 opens an answer, 6 ends it",
    ),
    reference=test_labels,
    cases=lambda: [Case(note=f"your test, on a right build_labels and on {len(PLANTED)} wrong ones")],
    call=lambda test: caught(test, labels_of, PLANTED, "build_labels"),
)


@TEST_LABELS.mistake(
    "Your test looks at lengths alone, or asserts nothing that can fail: it passes with every wrong version."
)
def _(build):
    assert len(build([2, 4, 3, 1], 3, 1)) == 4


@TEST_LABELS.mistake("Your test says True or False. pytest, and everybody else, waits for an AssertionError.")
def _(build):
    return True


@TEST_LABELS.mistake(
    "Your example has one turn with the usual ids. What gets through shows in a second turn, and in other ids."
)
def _(build):
    assert build([2, 4, 3, 7, 1], 3, 1) == [IGNORE, IGNORE, IGNORE, 7, 1]


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
    why="At each place the model predicts the next token. Without a shift it learns to repeat what it reads, and with two "
    "shifts to leave out a word. In both cases the loss goes down smoothly.",
    hints=(
        "Write the sequence of tokens on paper, and below each of them the token that should follow it.",
        "Everything moves one place to the left, along the length. Nothing follows the last place, so its target is -100.",
        "targets = torch.full_like(labels, -100)\ntargets[:, …] = labels[:, …]\nreturn targets",
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


SHIFT.mistake("The last place holds -1. Nothing is asked there: -100.")(
    lambda x: torch.cat([x[:, 1:], torch.full_like(x[:, :1], -1)], 1)
)
SHIFT.mistake("The result is one shorter than the labels, and nothing has moved: the last place is cut off.")(
    lambda x: x[:, :-1]
)
SHIFT.mistake("One is added to each label, which makes it the next id. It is the next *place* that counts.")(
    lambda x: torch.where(x == IGNORE, x, x + 1)
)
SHIFT.mistake("A label that has nothing to its right stays where it was. Move all places, -100 too.")(
    lambda x: torch.where(shifted(x) == IGNORE, x, shifted(x))
)
SHIFT.mistake("The targets are float32; labels are whole numbers.")(lambda x: shifted(x).float())


@SHIFT.mistake("The labels that were given are changed in place. Make a new tensor: torch.full_like.")
def _(labels):
    labels[:, :-1] = labels[:, 1:].clone()
    labels[:, -1] = IGNORE
    return labels


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
    why="A sample that is cut before its answer has no supervised token, and alone in a batch it makes the loss NaN. In "
    "chapter 08 the same count makes gradient accumulation exact.",
    hints=(
        "A label teaches if it is not -100. Any other number is a token's id, 0 too.",
        "Cut the length first, then compare with -100 and add up along the length: a number for each sample.",
        "(labels[:, …] != -100) is True where a token is supervised; sum over dim 1, then .tolist()",
    ),
    reference=counts_of,
    cases=lambda: [
        Case(BATCH, note="two samples, of which one has a token with the id 0 as its answer"),
        Case(BATCH, 4, note="the same, cut after four tokens"),
        Case(BATCH, 1, note="the same, cut after one token"),
        Case(torch.full((3, 4), IGNORE), 9, note="three samples without an answer, shorter than max_length"),
        Case(random_labels(2, 5), 3, note="plain text"),
        Case(torch.tensor([[7, 7, 7, IGNORE, 9]]), None, note="one token three times"),
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


COUNT.mistake("You count the different tokens. A token that is supervised three times counts three times.")(
    lambda x, max_length=None: [len(set(row[:max_length].tolist()) - {IGNORE}) for row in x]
)
COUNT.mistake("Ids are compared with 0, so that -100 counts and the token with the id 0 does not. Compare with -100.")(
    lambda x, max_length=None: (x[:, :max_length] != 0).sum(1).tolist()
)
COUNT.mistake("You add up over the batch, which gives a number for each place. Add up along the length, dim 1.")(
    lambda x, max_length=None: (x[:, :max_length] != IGNORE).sum(0).tolist()
)
COUNT.mistake("The cut comes one token too early: the first max_length tokens are kept.")(
    lambda x, max_length=None: counts_of(x, None if max_length is None else max_length - 1)
)
COUNT.mistake("The cut comes one token too late: the first max_length tokens are kept, and no more.")(
    lambda x, max_length=None: counts_of(x, None if max_length is None else max_length + 1)
)
COUNT.mistake("This is the share of supervised tokens. Return how many there are.")(
    lambda x, max_length=None: (x[:, :max_length] != IGNORE).float().mean(1).tolist()
)
COUNT.mistake("These are True or False. Return how many there are.")(
    lambda x, max_length=None: (x[:, :max_length] != IGNORE).any(1).tolist()
)
COUNT.mistake("This is a tensor; expected a list: .tolist().")(
    lambda x, max_length=None: torch.tensor(counts_of(x, max_length))
)
COUNT.mistake("A count is a whole number: these are floats.")(
    lambda x, max_length=None: [float(number) for number in counts_of(x, max_length)]
)
COUNT.mistake("The ids are added up. Count the places that are not -100.")(
    lambda x, max_length=None: x[:, :max_length].clamp(min=0).sum(1).tolist()
)
