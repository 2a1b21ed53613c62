"""Chapter 02: what to predict."""

from __future__ import annotations

from nanovlm.course.quizzes import Quiz

Quiz(
    id="ch02.axis",
    question="A row of the table belongs to the patch that asks, a column to a patch that is asked. What should "
    "sum to 1?",
    choices=("each row", "each column", "the whole table"),
    right=0,
    because=(
        "Each patch shares out its own attention: 100 % over all that it looks at.",
        "Then every patch would be looked at by the same amount in all, the background as much as the tip, and a patch "
        "that asks could end up with next to nothing.",
        "Then the patches would compete for attention: if one asks loudly, the others get nothing.",
    ),
)

Quiz(
    id="ch02.scale",
    question="Queries and keys of independent random numbers, mean 0 and spread 1. You make them four times as long, "
    "head_dim 16 to 64. What happens to the spread of their dot products?",
    choices=("it stays", "it doubles", "it is four times as large"),
    right=1,
    because=(
        "Each product adds its own noise to the sum. They cancel in part, not in full.",
        "The variance is four times as large, since that many independent products are added; the spread is its square "
        "root.",
        "That would be so if all products pointed the same way. These are independent: they cancel in part.",
    ),
)

Quiz(
    id="ch02.heads",
    question="SigLIP-B cuts its 768 numbers into 12 heads of 64. What does a block with 12 heads cost, compared with "
    "one head of 768?",
    choices=("twelve times the weights", "the same weights, the same number of products", "a twelfth of the weights"),
    right=1,
    because=(
        "The layers that make q, k and v stay 768 wide in all. The heads share their outputs.",
        "The layers are the same. A score has 64 products for 768, but there are twelve scores for one. Only the "
        "softmax has more to do.",
        "Each head is smaller, and there are twelve of them.",
    ),
)

Quiz(
    id="ch02.reshape",
    question="[batch, num_patches, dim] must become [batch, num_heads, num_patches, head_dim]. Does one reshape do?",
    choices=("yes, the shape is all that counts", "no, it raises an error", "no, it runs and mixes the patches up"),
    right=2,
    because=(
        "A shape says how many numbers there are, not which ones.",
        "It has as many numbers on both sides, so nothing raises.",
        "A reshape deals numbers out in reading order: the first head would get all of the first patches.",
    ),
)

Quiz(
    id="ch02.head",
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
    id="ch02.ablate",
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
    id="ch02.norm",
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
