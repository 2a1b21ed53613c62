"""The quizzes of chapter 01."""

from __future__ import annotations

from nanovlm.course.quizzes import Quiz

Quiz(
    id="ch01.range",
    question="The pocket model was trained on pixels from -1 to 1. You forget to normalise and feed it the bytes, 0 to "
    "255, as floats. What happens?",
    choices=("an error about the range", "nothing: only the contrast differs", "it answers, at the level of guessing"),
    right=2,
    because=(
        "No layer checks a range. A tensor is a tensor.",
        "The numbers are over a hundred times as large as any that the weights have seen, and never negative.",
        "The shapes fit, words come out as ever, and they have little to do with the picture. Below you measure it.",
    ),
)

Quiz(
    id="ch01.pairs",
    question="A picture of 224 x 224 pixels. If each pixel were a token, attention would compare each with each. With "
    "patches of 16 x 16 pixels instead, how many times fewer pairs are there?",
    choices=("16 times", "256 times", "4,096 times", "65,536 times"),
    right=3,
    because=(
        "16 is one side of a patch. Both sides count, and then both ends of each pair.",
        "There are 256 times fewer tokens. Pairs are tokens times tokens.",
        "That is 16 three times; both ends of the pair have two sides each.",
        "256 times fewer tokens at one end of the pair, and 256 times fewer at the other.",
    ),
)

Quiz(
    id="ch01.order",
    question="You hand the same four vectors to an attention layer twice, the second time in another order. What comes "
    "out the second time?",
    choices=("other vectors", "the same vectors, in the other order", "the same vectors, in the first order"),
    right=1,
    because=(
        "Each output is a weighted sum over all vectors, and a sum does not ask for the order of what it adds.",
        "Each vector meets the same others as before, so it comes out as before. Only the line stands differently.",
        "That would need a memory of which was first. There is none: the second vector in is the second vector out.",
    ),
)

Quiz(
    id="ch01.blind_to_place",
    question="You take the position embeddings away from the pocket model: zeros in their place. Which kind of "
    "question suffers most?",
    choices=("Which colour is the star?", "Is there a star?", "Where is the star?", "all kinds the same"),
    right=2,
    because=(
        "It does suffer: to find the star's colour, the patches of one star must find each other. But not most.",
        "A star somewhere is a star. For this one place does not matter, and you will see how little it suffers.",
        "Without positions, a star at the top left and one at the bottom right are the same set of patches.",
        "Each kind needs place to another degree. That is what makes the experiment worth while.",
    ),
)

Quiz(
    id="ch01.neighbours",
    question="The pocket model has learned one vector for each of its 8 x 8 places. Take the vectors of two patches "
    "side by side, and those of two patches in opposite corners. Which two are more alike?",
    choices=("those side by side", "those in opposite corners", "neither"),
    right=2,
    because=(
        "So it is in large vision transformers, and so it looks further down in a model that has a reason to learn it. "
        "Not in this one.",
        "Nothing speaks for that: what would a model gain from it?",
        "To tell 64 places apart, 64 names are enough. The vectors began as random numbers, which have next to nothing "
        "in common, and training had no need to change that.",
    ),
)
