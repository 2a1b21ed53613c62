"""Chapter 04: what to predict before the cell is run."""

from __future__ import annotations

from nanovlm.course.quizzes import Quiz

Quiz(
    id="ch04.order",
    question="Attention without a mask and without positions reads the tokens A, B and C. You exchange A and B in the "
    "input. What changes in the output of C?",
    choices=("nothing", "its sign", "it moves to another place", "everything: the order matters"),
    right=0,
    because=(
        "The output of C is a sum over all tokens, weighted by products, and a sum does not depend on the order of its "
        "terms.",
        "No number changes, because the products, the weights and the sum are the same as before.",
        "C was not moved, and it attends to the same two vectors as before.",
        "The order should matter, and that is why this chapter adds positions. Attention alone does not depend on it.",
    ),
)

Quiz(
    id="ch04.relative",
    question="A query at position 10 and a key at position 7 have the product 0.42. The same two vectors are at 110 and 107 "
    "in another text. With RoPE their product is:",
    choices=("smaller: they are further from the start", "0.42", "larger", "it depends on the base"),
    right=1,
    because=(
        "The distance from the start does not count, only the distance from each other.",
        "Both vectors are turned by 100 more steps, so the angle between them stays.",
        "A rotation makes no vector longer, and both are turned by the same angle.",
        "The base determines how fast each pair turns. But it turns both vectors, and they are 3 steps apart either way.",
    ),
)

Quiz(
    id="ch04.norm",
    question="A vector holds the numbers 10, 10, 10 and 10. What do LayerNorm and RMSNorm return for it, if both are fresh "
    "(weights 1, bias 0)?",
    choices=(
        "LayerNorm: zeros. RMSNorm: ones.",
        "Both: ones.",
        "Both: zeros.",
        "LayerNorm: ones. RMSNorm: zeros.",
    ),
    right=0,
    because=(
        "LayerNorm subtracts the mean, 10, and nothing is left. RMSNorm only divides by the size, 10.",
        "LayerNorm subtracts the mean before it divides, and here the mean is all there is.",
        "RMSNorm subtracts nothing, so it cannot return zeros for this vector.",
        "It is the other way round: LayerNorm subtracts the mean.",
    ),
)

Quiz(
    id="ch04.tied",
    question="SmolLM2-135M has a vocabulary of 49,152 tokens and vectors of 576 numbers. Its head is its token embedding. "
    "How many parameters would a head of its own add?",
    choices=("576", "49,152", "about 28 million", "about 135 million"),
    right=2,
    because=(
        "That is one vector. The head has one for each token of the vocabulary.",
        "That would be one number for each token, as a bias has. The head has a whole vector for each.",
        "49,152 rows of 576 numbers are 28,311,552, a fifth of the parameters of the whole model.",
        "That is the number of parameters of the whole model.",
    ),
)

Quiz(
    id="ch04.future",
    question="A decoder reads five tokens. You change the last one. Which of the five predictions change?",
    choices=("all five", "only the last", "the last two", "none"),
    right=1,
    because=(
        "That would be an encoder, in which every token attends to every other. In a decoder the earlier tokens do not "
        "attend to the last one.",
        "Only the last token attends to itself, so the predictions after the first four tokens cannot depend on it.",
        "The fourth token comes before the last one and does not attend to it.",
        "The prediction after the last token is computed from that token, so it changes.",
    ),
)

Quiz(
    id="ch04.cache",
    question="SmolLM2-135M keeps the keys and values of every token while it writes: 30 blocks, with 3 key/value heads of "
    "64 numbers. How much larger would the cache be if each of its 9 query heads had keys and values of its own?",
    choices=("as large as now", "3 times", "9 times", "27 times"),
    right=1,
    because=(
        "Queries are not kept, but the keys and values of each head are, so more heads need more memory.",
        "There would be 9 heads instead of 3, with keys and values as long as before.",
        "That is the factor against a single key/value head (multi-query attention). The model has three.",
        "Keys and values are both counted already, in both cases.",
    ),
)
