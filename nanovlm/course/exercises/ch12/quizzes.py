"""Chapter 12: what to predict before looking."""

from __future__ import annotations

from nanovlm.course.quizzes import Quiz

Quiz(
    id="ch12.hooks",
    question="pixel_shuffle is a function, called in the projector's forward. What does a tool that hooks modules show "
    "of it?",
    choices=("its own line, with the shape", "nothing", "a line for each reshape", "an error"),
    right=1,
    because=(
        "A hook is called when a module is called, and no module is.",
        "Between the encoder's line, 64 x 128, and the linear layer's, 16 x 128, there is a gap: no line has 16 x 512.",
        "reshape is a method of a tensor. Hooks hang on modules.",
        "Nothing fails. The step is simply not there, which is worse.",
    ),
)

Quiz(
    id="ch12.work",
    question="The 222M model reads one picture and 79 text tokens. Which of these has the most FLOPs? (The head is not "
    "counted with the blocks.)",
    choices=(
        "the head: 49,152 words to choose from",
        "the projector: it is what joins the two",
        "the decoder's blocks: they have the most parameters",
        "the vision encoder: it runs on the most tokens",
    ),
    right=3,
    because=(
        "It is one matrix, though a large one: about a tenth of the work.",
        "One linear layer on 49 tokens: less than a hundredth.",
        "They have, but each weight works once for each token, and the blocks see 128 positions.",
        "196 patches, against 128 positions in the decoder's blocks. With a longer text they overtake it; "
        "blocks and head together are just ahead already.",
    ),
)

Quiz(
    id="ch12.names",
    question="A batch of 12 pictures goes through an encoder of 12 heads. A tensor inside is [12, 12, 196, 64]. Which "
    "12 is the batch?",
    choices=(
        "the first: the batch always stands in front",
        "the second",
        "the numbers do not say; another batch size would",
        "both: it is the batch times itself",
    ),
    right=2,
    because=(
        "Mostly it does. But permute(2, 0, 3, 1, 4) puts q, k and v there, [3, 12, 12, 196, 64].",
        "Here that is the heads. How would you know, from the numbers alone?",
        "Run it with 17 pictures and see which of them changes.",
        "It is 12 pictures with 12 heads each.",
    ),
)

Quiz(
    id="ch12.nan",
    question="Scores, a mask of -inf, softmax, times v, linear. The row's first two positions are padding, and each "
    "position sees the past only. In which step does the first NaN appear?",
    choices=("q @ k", "masked_fill, which writes -inf", "softmax", "the linear layer at the end"),
    right=2,
    because=(
        "The scores of padding are numbers like others: nobody has hidden anything yet.",
        "-inf is not NaN. Masks are meant to be -inf.",
        "A row of nothing but -inf: each term is exp(-inf) = 0, and their sum is 0. It is 0 / 0.",
        "It only hands on what it gets.",
    ),
)

Quiz(
    id="ch12.finds",
    question="The tidy projector gives other answers than the old one. Which tool says what is wrong with it?",
    choices=(
        "t.expect: a shape must have changed",
        "first_nan: some number must have gone wild",
        "patch_map: it looks at which patches are in a token",
        "the table: the FLOPs must differ",
    ),
    right=2,
    because=(
        "All shapes are as they were.",
        "Every number is an ordinary one. They only stand in the wrong places.",
        "The shape is right and the content is not. So look at the content.",
        "reshape and transpose cost nothing, and the linear layer is the same.",
    ),
)
