"""The quizzes of chapter 00."""

from __future__ import annotations

from nanovlm.course.quizzes import Quiz

Quiz(
    id="ch00.looks",
    question="The same question about three pictures, in which the red star stands in three places. What would a model "
    "say that reads the question, ignores the picture and always takes the most likely token?",
    choices=("three different answers", "the same answer three times", "nothing: it needs a picture to speak"),
    right=1,
    because=(
        "To differ, it needs something that differs. The question does not: only the picture does.",
        "Always the most likely token: so the same input gives the same answer. Without the picture, the three inputs "
        "are the same.",
        "A decoder always finds some next token more likely than the others. It speaks, whether or not it knows.",
    ),
)

Quiz(
    id="ch00.blind",
    question="“Is there a heart?” is asked about many pictures; half of them hold one. But the model is shown another "
    "picture each time, picked at random. How often is its answer right?",
    choices=("never", "about half of the time", "as often as before"),
    right=1,
    because=(
        "Then the wrong picture would have to know the right one's answer, in order to say the opposite.",
        "What it sees has nothing to do with what is asked. Of two answers, equally frequent, chance picks the right "
        "one every second time.",
        "Only if it never looked at the picture in the first place. That is what the experiment is to find out.",
    ),
)

Quiz(
    id="ch00.tokens",
    question="A picture of 64 × 64 pixels is cut into patches of 8 × 8. Then each 2 × 2 of them become one image "
    "token. How many image tokens does the decoder read?",
    choices=("4,096", "64", "16", "8"),
    right=2,
    because=(
        "That is how many pixels there are. A patch holds 64 of them.",
        "That is how many patches there are: 8 along each side. Four of them share a token.",
        "8 × 8 patches make 4 × 4 tokens.",
        "That is how many patches stand along one side.",
    ),
)
