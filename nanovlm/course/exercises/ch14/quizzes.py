"""Chapter 14: what to predict."""

from __future__ import annotations

from nanovlm.course.quizzes import Quiz

Quiz(
    id="ch14.head",
    question="In this picture, the seeker looks from the star mostly at one other shape. What does it look for?",
    choices=("a shape like this one", "this place", "this colour", "one picture cannot tell"),
    right=3,
    because=(
        "It may be. But no other thing here has its colour, and no other lies in its place.",
        "It may be. But what lies there is also the only one of its shape, and the only one of its colour.",
        "It may be. But the only thing of this colour is also the only one of its shape, and has its own place.",
        "Three explanations fit. Pictures that pull them apart can decide.",
    ),
)

Quiz(
    id="ch14.ablate",
    question="We take attention out of both blocks of the pocket model's encoder, so that no patch sees another there, "
    "and ask it about shapes and signs again. Guessing gets about a third of the questions about shapes right, and "
    "fewer than a fifth of those about signs. What happens?",
    choices=(
        "both fall to guessing",
        "the shapes stay, reading is lost: a character is spread over several patches",
        "little is lost in either",
    ),
    right=2,
    because=(
        "So one would think. But look at what comes after the encoder.",
        "It is spread over several patches. But the encoder is not the only place where patches meet.",
        "The projector joins neighbouring patches, and the decoder's own attention reads all image tokens. That is "
        "enough for most of these questions; only counting suffers.",
    ),
)

Quiz(
    id="ch14.norm",
    question="The pocket model's weights, loaded without an error into blocks that normalise after each addition "
    "instead of before each sub-layer. What do its answers do?",
    choices=("nothing changes", "it answers a little worse", "it falls back to guessing"),
    right=2,
    because=(
        "Every parameter finds a place of its own name and shape. But each then does its work on other numbers.",
        "A part that was trained gets numbers of another size and centre than any it has seen.",
        "Every shape fits, and no part gets the numbers that it was trained on.",
    ),
)
