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

Quiz(
    id="ch14.removed",
    question="The head above gives most of its weight to the star. The model says “top” with a probability of almost 1. "
    "We replace the two image tokens that the head attends to most by the mean of all image tokens. What is the "
    "probability then?",
    choices=("about 0: what it attended to is gone", "about 0.5", "about 1, as before", "a quarter, by guessing"),
    right=2,
    because=(
        "Then this head would be the only way from picture to answer, and what it attended to the only place that knows.",
        "Other heads attend elsewhere, so one may hope for half. Try it.",
        "As before. The likely reason: the encoder has told another of the star's tokens what these know.",
        "Guessing is what is left to a model that knows nothing of the star. Is all that it knows in so few tokens?",
    ),
)

Quiz(
    id="ch14.patch",
    question="Two pictures differ in one thing: the star is red in one and green in the other. The model is asked what "
    "colour the star is, sees the green one, and gets the star's image tokens from the red one just before its last "
    "block. What does it answer?",
    choices=("red, as in the picture that the tokens come from", "green, as in the picture that it sees", "neither"),
    right=0,
    because=(
        "The colour is still with the image tokens then: the last position fetches it in the last block.",
        "So it would be if the last position had fetched the colour in an earlier block. It has not.",
        "It could have lost its way between two pictures. But it holds no other opinion about the colour yet.",
    ),
)

Quiz(
    id="ch14.probe",
    question="The encoder's attention is taken out again, in both blocks. Where, on the way from the patches to the last "
    "block, can a probe still tell whether another shape in the picture has the same colour?",
    choices=("nowhere", "from the projector on", "from the decoder's first block on", "in the last block only"),
    right=2,
    because=(
        "The decoder has attention of its own, and its image tokens attend to each other.",
        "The projector joins 2 x 2 neighbouring patches. The other shape is in another quarter.",
        "There the image tokens meet for the first time. The probe reaches nearly what it reached before.",
        "That is where the last position fetches what it needs. The image tokens have attended to each other earlier.",
    ),
)
