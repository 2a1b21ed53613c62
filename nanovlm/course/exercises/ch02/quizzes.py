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
        "Each patch distributes its own attention: 100 % over all that it attends to.",
        "Then every patch would receive the same amount of attention in all, the background as much as the tip, and a "
        "patch that asks could end up with next to nothing.",
        "Then the queries would compete: a query with large scores would leave nothing to the others.",
    ),
)

Quiz(
    id="ch02.scale",
    question="Queries and keys of independent random numbers, mean 0 and standard deviation 1. You make them four times "
    "as long, head_dim 16 to 64. What happens to the standard deviation of their dot products?",
    choices=("it stays", "it doubles", "it is four times as large"),
    right=1,
    because=(
        "Each product adds its own noise to the sum. They cancel in part, not in full.",
        "The variance is four times as large, since that many independent products are added, and the standard deviation "
        "is its square root.",
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
    id="ch02.sigmoid",
    question="A batch of 64 pairs is split over four machines, 16 pairs each. Which of the two losses can be computed "
    "without any machine ever holding all 64 x 64 similarities?",
    choices=("the softmax loss", "the sigmoid loss", "both", "neither"),
    right=1,
    because=(
        "The sum in each row's softmax runs over all 64 captions, so a row cannot be finished with a part of them.",
        "Each entry of the table is judged alone and the results are added up, so the table can be done in pieces.",
        "The softmax needs the sum over a whole row before any of its entries is done.",
        "The machines do have to exchange vectors, but each can meet them in pieces and forget them again.",
    ),
)
