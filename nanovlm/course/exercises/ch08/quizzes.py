"""Chapter 08: its quizzes."""

from __future__ import annotations

from nanovlm.course.quizzes import Quiz

Quiz(
    id="ch08.does_it_see",
    question="The loss of a run fell from 19 to 0.4 in 300 steps, on training and on validation data alike. Does the "
    "model see the pictures?",
    choices=(
        "Yes: it could not answer otherwise.",
        "Yes, because the validation loss fell as well.",
        "The two losses cannot tell.",
        "No: a model that sees has a loss of 0.",
    ),
    right=2,
    because=(
        "Most tokens of an answer follow from the question and from earlier answers: the ending, the form of a caption, "
        "that a yes-or-no question is answered by yes or no.",
        "Validation data shows that nothing was learnt by heart. The same forms of answers are in it, too.",
        "A model learns the form of the answers first, from text alone, and the loss falls for that. You have to ask "
        "the same questions with the wrong pictures.",
        "No model gets to 0 on new pictures, and this one may well see.",
    ),
)

Quiz(
    id="ch08.first_loss",
    question="A classifier that knows nothing gives each of the 444 tokens of the vocabulary the same probability. What "
    "is its cross-entropy loss?",
    choices=("0", "1", "ln 444 = 6.1", "444"),
    right=2,
    because=(
        "A loss of 0 means that the right token has probability 1.",
        "That would be a probability of 37 % for the right token.",
        "The loss is minus the logarithm of the right token's probability, and that is 1 / 444.",
        "The loss is a logarithm of the probability, not one over it.",
    ),
)

Quiz(
    id="ch08.memorise",
    question="You train on one batch of eight conversations until the loss is nearly 0. Then you do it again, with the "
    "pictures exchanged between the conversations, so that every answer is wrong. What happens to the loss?",
    choices=(
        "It stays where it began.",
        "It reaches the loss of guessing and stays there.",
        "It falls to nearly 0 again.",
        "It falls to half of what it was.",
    ),
    right=2,
    because=(
        "The gradient does not know that the answers are wrong.",
        "Guessing is the best for new pictures. These eight come back at every step.",
        "Eight conversations can be learnt by heart from their texts alone. So this test shows that weights, gradient "
        "and loss are connected, and says nothing about the pictures.",
        "Nothing about the batch is half right.",
    ),
)

Quiz(
    id="ch08.adam_size",
    question="Two weights have gradients of 10 and of 0.001 in every step. Adam's learning rate is 0.01. How far do they "
    "move in a step?",
    choices=(
        "0.1 and 0.00001",
        "both about 0.01",
        "10 and 0.001",
        "The second does not move.",
    ),
    right=1,
    because=(
        "That is plain gradient descent: the learning rate times the gradient.",
        "Adam divides the mean gradient by the root of the mean squared gradient. Where the gradient stays the same, "
        "that is 1, whatever its size.",
        "That would be a learning rate of 1.",
        "It moves as far as the first: its own size is divided out.",
    ),
)

Quiz(
    id="ch08.bfloat16",
    question="A weight of 1.0 in bfloat16 gets an update of +0.001, a thousand times. What is it afterwards?",
    choices=("2.0", "1.0", "about 1.5", "infinite"),
    right=1,
    because=(
        "So it would be in float32. bfloat16 has 8 bits of precision: next to 1.0 the numbers are 1 / 128 apart.",
        "1.001 is nearer to 1.0 than to the next bfloat16, 1.0078, so it is rounded back to 1.0. Every time.",
        "Rounding always goes to the nearest number, here always to the same one.",
        "bfloat16 reaches as far as float32.",
    ),
)

Quiz(
    id="ch08.accumulate",
    question="You accumulate the gradients of two batches. One has 5 supervised tokens, the other 500. Each loss is a mean "
    "over its own tokens, and you divide both by 2. How much does a token of the first batch weigh?",
    choices=(
        "as much as one of the second",
        "twice as much",
        "100 times as much",
        "a hundredth",
    ),
    right=2,
    because=(
        "It would, if the losses were added up as sums and divided by 505.",
        "Two is the number of batches. What counts is how many tokens share one half.",
        "Half of the gradient comes from 5 tokens and half from 500.",
        "The other way round: few tokens share the same half.",
    ),
)

Quiz(
    id="ch08.which_shuffled",
    question="In which of the eight runs has every conversation got its neighbour's picture?",
    choices=("A", "C", "F", "H"),
    right=2,
    because=(
        "A learns its training data by heart: its training loss goes on falling, while its validation loss rises.",
        "In C the loss is 0 from the first step. No model learns so fast: it has been told the answer.",
        "Both losses fall, and the right answers stay on the blind curve from the first step to the last.",
        "In H the right answers leave the blind curve: it sees.",
    ),
)

Quiz(
    id="ch08.resume",
    question="A run is stopped half-way and started again from its saved weights alone. Which part of it is kept?",
    choices=(
        "the optimizer's moments",
        "the place in the schedule and in the data",
        "the state of the random numbers",
        "what the model has learnt so far",
    ),
    right=3,
    because=(
        "They are tensors of the optimizer, two for each weight, and not part of the model.",
        "Both follow from the step, and the step is not in the weights.",
        "Dropout and the order of new data are drawn from them.",
        "That is in the weights. It is all that is left, and the first steps after the start damage some of it.",
    ),
)
