"""The quizzes of chapter 00."""

from __future__ import annotations

from nanovlm.course.quizzes import Quiz

Quiz(
    id="ch00.looks",
    question="You ask the same question about three pictures, in which the red star is in three different places. What "
    "would a model answer that reads the question, ignores the picture and always picks its most likely token?",
    choices=("three different answers", "the same answer three times", "nothing, because it needs a picture"),
    right=1,
    because=(
        "For different answers the inputs would have to differ. The question does not, and the picture is ignored.",
        "A model that always picks the most likely token gives the same answer to the same input, and without the "
        "picture the three inputs are the same.",
        "A decoder always finds some next token more likely than the others, so it answers whether it knows or not.",
    ),
)

Quiz(
    id="ch00.blind",
    question="“Is there a heart?” is asked about many pictures, half of which contain one. But each time the model is "
    "shown another picture, picked at random. How often is its answer right?",
    choices=("never", "about half of the time", "as often as before"),
    right=1,
    because=(
        "To be always wrong, the model would have to know the right answer and say the opposite.",
        "What the model sees is unrelated to what is asked. Since both answers are equally frequent, half of them are "
        "right by chance.",
        "That would only happen if the model had never used the picture, which is what the experiment has to find out.",
    ),
)

Quiz(
    id="ch00.tokens",
    question="A picture of 64 × 64 pixels is cut into patches of 8 × 8 pixels. Then each group of 2 × 2 patches becomes "
    "one image token. How many image tokens does the decoder read?",
    choices=("4,096", "64", "16", "8"),
    right=2,
    because=(
        "This is the number of pixels, and each patch contains 64 of them.",
        "This is the number of patches, 8 along each side. Four of them share one token.",
        "There are 8 × 8 patches, and a group of 2 × 2 becomes one token, so 4 × 4 tokens remain.",
        "This is the number of patches along one side.",
    ),
)
