"""Chapter 15: what to predict."""

from __future__ import annotations

from nanovlm.course.quizzes import Quiz

Quiz(
    id="ch15.zero_shot",
    question="The pocket model reads printed digits on coloured signs. Guessing would get a tenth of handwritten ones "
    "right. What does it answer to “Which digit is this?” about a card with a written digit?",
    choices=("mostly the right digit", "some digit, right about a tenth of the time", "often no digit at all"),
    right=2,
    because=(
        "Its reading was trained on strokes of one width, on signs with two characters or more. These cards are neither.",
        "That would need a model that has understood the question, and this question was never asked before.",
        "It has never seen this question, so letters, empty answers and even colours come; it is worse than a guesser.",
    ),
)

Quiz(
    id="ch15.split",
    question="A nearest-neighbour classifier names a scan by the most similar one in the training part. With a shuffled "
    "split it scores higher than with a split into stretches of the file. Which number is the one for new writers?",
    choices=("the shuffled split's", "that of the stretches", "the mean of both"),
    right=1,
    because=(
        "In a shuffled split nearly every writer is in both parts, and their other 7 is the neighbour that is found.",
        "Neighbours in the file are mostly one person's, so a stretch holds writers that the training part lacks.",
        "One of the two answers another question, so that their mean answers none.",
    ),
)

Quiz(
    id="ch15.forgetting",
    question="We train all weights on the cards alone until nine of ten digits are right. What becomes of the questions "
    "about shapes, charts and signs, none of which is in the training data?",
    choices=(
        "nothing: no sample asked for another answer there",
        "all of them fall, signs the most",
        "signs improve, since digits are characters",
    ),
    right=1,
    because=(
        "No sample asked for another answer, and none asked for the old one either. The same weights serve both.",
        "All of them share their weights with the digits, and reading signs shares the most, as far as one can tell from the result.",
        "One would hope so. But a sign has up to four characters among thirty-three, and the answer “7” was always enough.",
    ),
)

Quiz(
    id="ch15.zero_start",
    question="An adapter adds (alpha / r) B A x. Which start lets it learn, and leaves the model as it was at step 0?",
    choices=("A and B both zero", "A random, B zero", "A and B both random and small"),
    right=1,
    because=(
        "The model is as it was, and stays so: the gradient of each matrix is multiplied by the other.",
        "B A is zero at first, B gets a gradient at once through A, and A as soon as B has moved.",
        "It learns, but from a model that the random difference has already damaged.",
    ),
)

Quiz(
    id="ch15.outlier",
    question="A weight matrix has numbers around 0.05 and a single one of 3. Its 4-bit code has sixteen values from -1 "
    "to 1, and one scale for the whole matrix. What is left of the small numbers?",
    choices=("about four bits of precision", "nearly all of them become zero", "they become too large"),
    right=1,
    because=(
        "Four bits are there, but the codes must reach up to 3, so that the small numbers share one or two of them.",
        "Divided by 3 they are near 0.02, and the nearest of the sixteen values is zero.",
        "The scale is used in both directions, so the error is in both directions.",
    ),
)

Quiz(
    id="ch15.mirror",
    question="Mirroring pictures is a usual augmentation. What does it do to handwritten digits?",
    choices=(
        "it helps, as with photographs",
        "it teaches wrong labels: a mirrored 2 is no 2",
        "nothing, since the model never sees mirrored digits in the test",
    ),
    right=1,
    because=(
        "A mirrored dog is a dog. Which of the ten digits stay what they are?",
        "Only 0, 8 and a plain 1 survive a mirror. An augmentation must change what the answer does not depend on.",
        "The model has to find room for shapes that no test asks about, and some of them are close to other digits.",
    ),
)
