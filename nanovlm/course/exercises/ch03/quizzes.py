"""The quizzes of chapter 03."""

from __future__ import annotations

from nanovlm.course.quizzes import Quiz

Quiz(
    id="ch03.tokens",
    question="A 224-pixel picture, patches of 16 pixels, r = 2. How many image tokens does the decoder read?",
    choices=("196", "98", "49", "14"),
    right=2,
    because=(
        "That is the number of patches, 14 x 14, before pixel shuffle.",
        "r = 2 halves the rows and the columns: a quarter of the patches remains, not half.",
        "14 x 14 patches become 7 x 7 groups of 2 x 2.",
        "That is one side of the grid of patches.",
    ),
)

Quiz(
    id="ch03.lost",
    question="Pixel shuffle makes 196 vectors of 768 into 49 vectors. What does it lose?",
    choices=("three quarters of the numbers", "fine detail, as pooling does", "nothing", "the order of the patches"),
    right=2,
    because=(
        "The vectors get wider as they get fewer: 49 x 3,072 is as many numbers as 196 x 768.",
        "Pooling averages and cannot be undone. Pixel shuffle only moves numbers, and they can be moved back.",
        "It only moves numbers. What is lost is lost later, in the linear layer from 3,072 to 576.",
        "The order is another one, but a known one, the same for every picture: it can be undone.",
    ),
)

Quiz(
    id="ch03.cost",
    question="A prompt holds one picture and 64 text tokens. With r = 4 the picture's 1,024 patches become 64 image "
    "tokens. How much less does SmolVLM-256M's decoder have to compute?",
    choices=("4 times less", "about 8.5 times less", "about 11 times less", "16 times less"),
    right=2,
    because=(
        "r = 4 makes each side of the grid of patches four times shorter, and both sides count.",
        "The sequence gets 8.5 times shorter, from 1,088 tokens to 128. But one part of the work, attention, grows with "
        "the square of the length.",
        "The linear layers do 8.5 times less, attention 72 times less. Together that is about 11.",
        "There are 16 times fewer image tokens, but the text is as long as before.",
    ),
)

Quiz(
    id="ch03.reshape",
    question="x is [1, 16, dim]: a 4 x 4 grid of patches, numbered 0 to 15. What does token 0 of "
    "x.reshape(1, 4, 4 * dim) hold?",
    choices=("patches 0, 1, 4, 5", "patches 0, 1, 2, 3", "patches 0, 4, 8, 12", "an error: the shapes do not fit"),
    right=1,
    because=(
        "That is the group. reshape knows nothing of a grid, only of one long sequence.",
        "reshape takes numbers in the order of memory: four patches that follow each other, the top row.",
        "That would be a column, every fourth patch.",
        "16 * dim numbers are as many as 4 * (4 * dim). That is all that reshape asks.",
    ),
)

Quiz(
    id="ch03.mix",
    question="You change patch 0 of a 4 x 4 grid. Which image tokens of the projector's output change at r = 2?",
    choices=("all four", "only token 0", "the tokens of the top row", "none"),
    right=1,
    because=(
        "That would need attention, or another step that mixes tokens. There is none in the projector.",
        "Patch 0 went into token 0, and the linear layer works on each token alone.",
        "The top row of tokens is 0 and 1, but patch 0 belongs to the group of token 0.",
        "Its numbers are among those that the linear layer weighs and adds.",
    ),
)
