"""The quizzes of chapter 01."""

from __future__ import annotations

from nanovlm.course.quizzes import Quiz

Quiz(
    id="ch01.range",
    question="The pocket model was trained on pixels from -1 to 1. You forget to normalise and give it the bytes, 0 to "
    "255, as floats. What happens?",
    choices=("it raises an error about the range", "only the contrast differs", "it answers, at the level of guessing"),
    right=2,
    because=(
        "No layer checks the range of its input, so there is nothing that could raise.",
        "The numbers are over a hundred times as large as any that the weights were trained on, and never negative.",
        "The shapes fit and the model produces words as usual, but they have little to do with the picture. You measure "
        "this below.",
    ),
)

Quiz(
    id="ch01.pairs",
    question="Suppose that each pixel of a picture of 224 x 224 pixels were a token, and that attention compared each "
    "token with each. By which factor do patches of 16 x 16 pixels reduce the number of pairs?",
    choices=("16", "256", "4,096", "65,536"),
    right=3,
    because=(
        "16 is one side of a patch. Both sides count, and so do both ends of each pair.",
        "There are 256 times fewer tokens, but the number of pairs is the square of the number of tokens.",
        "This is 16 to the third power, but both ends of a pair have two sides each.",
        "There are 256 times fewer tokens at one end of a pair and 256 times fewer at the other.",
    ),
)

Quiz(
    id="ch01.order",
    question="You give the same four vectors to an attention layer twice, the second time in another order. What is its "
    "second output?",
    choices=("other vectors", "the same vectors, in the other order", "the same vectors, in the first order"),
    right=1,
    because=(
        "Each output is a weighted sum over all vectors, and a sum does not depend on the order of its terms.",
        "Each vector is compared with the same others as before, so its output is the same. Only the order of the sequence "
        "has changed.",
        "To restore the first order, the layer would have to remember it, and it has no memory of earlier calls.",
    ),
)

Quiz(
    id="ch01.blind_to_place",
    question="You replace the position embeddings of the pocket model by zeros. Which kind of question loses most accuracy?",
    choices=("Which colour is the star?", "Is there a star?", "Where is the star?", "all kinds lose the same"),
    right=2,
    because=(
        "It loses some, because the patches of one star have to find each other before its colour can be named. But "
        "another kind loses more.",
        "A star anywhere is a star, so the place does not matter for this question, and it loses little.",
        "Without positions, a star at the top left and one at the bottom right are the same set of patches.",
        "The kinds depend on places to different degrees, which makes the experiment informative.",
    ),
)

Quiz(
    id="ch01.neighbours",
    question="The pocket model has learned one vector for each of its 8 x 8 places. Compare the vectors of two adjacent "
    "patches with those of two patches in opposite corners. Which pair is more similar?",
    choices=("the adjacent ones", "the ones in opposite corners", "neither"),
    right=2,
    because=(
        "This holds in large vision transformers, and further down in a small model that has a reason to learn it, but not "
        "in the pocket model.",
        "There is no reason for it, because the model would gain nothing.",
        "To tell 64 places apart, 64 names are enough. The vectors started as random numbers, whose similarity is close to "
        "zero, and training had no reason to change that.",
    ),
)
