"""Chapter 04: its quizzes."""

from __future__ import annotations

from nanovlm.course.quizzes import Quiz

Quiz(
    id="ch04.order",
    question="Attention without a mask and without positions reads the tokens A B C. You swap A and B in the input. "
    "What changes in the output of C?",
    choices=("nothing", "its sign", "it moves to another place", "everything: the order matters"),
    right=0,
    because=(
        "C sums over all tokens, weighted by products. A sum does not know in which order it was taken.",
        "No number changes: the same products, the same weights, the same sum.",
        "C did not move, and what it reads are the same two vectors.",
        "It should matter, and that is why this chapter needs RoPE. Attention alone does not see it.",
    ),
)

Quiz(
    id="ch04.relative",
    question="A query at position 10 and a key at position 7 have the product 0.42. The same two vectors stand at 110 "
    "and 107 in another text. With RoPE their product is:",
    choices=("smaller: they are further from the start", "0.42", "larger", "it depends on the base"),
    right=1,
    because=(
        "How far they are from the start does not count, only how far from each other.",
        "Both are turned by 100 more steps. The angle between them stays.",
        "A rotation makes no vector longer, and both are turned by the same.",
        "The base sets how fast each pair turns. But it turns both vectors, and the difference is 3 steps either way.",
    ),
)

Quiz(
    id="ch04.norm",
    question="A vector holds the numbers 10, 10, 10 and 10. What do LayerNorm and RMSNorm make of it? (Both fresh: "
    "weights 1, bias 0.)",
    choices=(
        "LayerNorm: zeros. RMSNorm: ones.",
        "Both: ones.",
        "Both: zeros.",
        "LayerNorm: ones. RMSNorm: zeros.",
    ),
    right=0,
    because=(
        "LayerNorm subtracts the mean, 10, and nothing is left. RMSNorm only divides by the size, 10.",
        "LayerNorm subtracts the mean before it divides.",
        "RMSNorm subtracts nothing.",
        "The other way round: it is LayerNorm that subtracts the mean.",
    ),
)

Quiz(
    id="ch04.tied",
    question="SmolLM2-135M has a vocabulary of 49,152 and vectors of 576 numbers. Its head is its token embedding. How "
    "many parameters would a head of its own add?",
    choices=("576", "49,152", "about 28 million", "about 135 million"),
    right=2,
    because=(
        "That is one vector. The head has one for each token of the vocabulary.",
        "That would be one number for each token: the bias that the head does not have.",
        "49,152 rows of 576 numbers are 28,311,552: a fifth as many as the whole model has.",
        "That is the whole model.",
    ),
)

Quiz(
    id="ch04.future",
    question="A decoder reads five tokens. You change the last one. Which of the five predictions change?",
    choices=("all five", "only the last", "the last two", "none"),
    right=1,
    because=(
        "That is an encoder, where everyone sees everyone. Here the earlier tokens cannot see the last one.",
        "Token 4 is seen by itself alone. The predictions after tokens 0 to 3 cannot know of it.",
        "Token 3 stands before it and cannot see it.",
        "The prediction after the last token starts from that token.",
    ),
)

Quiz(
    id="ch04.cache",
    question="SmolLM2-135M keeps the keys and values of every token while it writes: 30 blocks, 3 key/value heads of "
    "64 numbers. How much larger would that be if each of its 9 query heads had its own?",
    choices=("as large", "3 times", "9 times", "27 times"),
    right=1,
    because=(
        "Queries are not kept, but each head's keys and values are.",
        "9 heads instead of 3, with keys and values as long as before.",
        "That is against one single key/value head (multi-query attention). It has three.",
        "Keys and values are both counted already, in both cases.",
    ),
)
