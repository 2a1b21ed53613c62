"""Chapter 10: its quizzes."""

from __future__ import annotations

from nanovlm.course.quizzes import Quiz

Quiz(
    id="ch10.two_numbers",
    question="A README reports 35.3 % on MMStar for a model of 222 million parameters. The benchmark's card reports 30.3 % "
    "for one of 7 billion. What follows?",
    choices=(
        "the smaller model is better: 5 points are more than chance on 1,500 questions",
        "nothing yet: the two numbers may not measure the same thing",
        "the larger model was badly trained",
    ),
    right=1,
    because=(
        "Five points would be more than chance if both numbers came from one procedure. That is what you do not know yet.",
        "Prompt, parsing, sampling, and how the checkpoint was chosen all move such a number. This chapter measures by how "
        "much.",
        "Perhaps, but two numbers cannot show it.",
    ),
)

Quiz(
    id="ch10.saturated",
    question="The pocket model answers all test questions right. You remove a block of its encoder, and it still answers "
    "all of them right. What do you know about the block?",
    choices=("it is useless", "nothing: this test cannot see a difference", "it is needed for other data"),
    right=1,
    because=(
        "A test on which everybody is perfect cannot tell a useless part from a useful one.",
        "At 100 % there is no room above and none is lost. Take harder questions, or report the loss beside the accuracy.",
        "That may be, but this test did not show it.",
    ),
)

Quiz(
    id="ch10.all_right",
    question="A model answers 500 of 500 questions right. What is the 95 % interval of its accuracy?",
    choices=("100 % to 100 %", "about 99.2 % to 100 %", "about 95 % to 100 %"),
    right=1,
    because=(
        "That is the textbook formula, whose standard error is 0 here. But a model that fails once in 500 would often look "
        "like this too.",
        "Wilson's interval: a model that is right 99.2 % of the time still has a chance of a few per cent to look perfect.",
        "With 20 questions one would have to be so careful. 500 say more.",
    ),
)

Quiz(
    id="ch10.paired",
    question="Two models answer the same 240 questions. Their own intervals overlap widely. Can one of them be better "
    "beyond chance?",
    choices=(
        "no: overlapping intervals mean equal models",
        "yes, if they mostly fail on the same questions",
        "only with more questions",
    ),
    right=1,
    because=(
        "The intervals describe each model alone. What both share, the difficulty of the questions, is in both of them and "
        "cancels in the difference.",
        "Then only the few questions on which they differ decide, and those can all point the same way.",
        "More questions always help, but the paired difference may be clear already.",
    ),
)

Quiz(
    id="ch10.alphabet",
    question="A broken model answers every question with “A, B, C, D”. A scorer looks for the right letter as a separate "
    "word, anywhere in the answer. What does the model score on questions with four options?",
    choices=("0 %", "25 %", "100 %"),
    right=2,
    because=(
        "A strict scorer gives 0 %. This one only asks whether the letter occurs.",
        "That is what guessing one letter would give. This answer contains all four.",
        "Whatever the right letter is, it occurs. The scorer never asks whether the others do too.",
    ),
)

Quiz(
    id="ch10.length",
    question="You score the options “4” and “bottom right” by the sum of their tokens' log-probabilities. Which one has an "
    "advantage that has nothing to do with the picture?",
    choices=("the longer one", "the shorter one", "neither: the model is trained on both"),
    right=1,
    because=(
        "Each further token adds a negative number.",
        "Fewer tokens, fewer negative numbers. The mean over tokens removes most of this, and favours long options a little "
        "instead, whose later tokens follow from the earlier ones.",
        "Training does not change that a sum of negative numbers falls with its length.",
    ),
)

Quiz(
    id="ch10.selection",
    question="One model with a true accuracy of 33 % is evaluated 131 times on 1,500 questions, with fresh chance each "
    "time. What will the best of these scores be, roughly?",
    choices=("33 %", "34 %", "36 %", "40 %"),
    right=2,
    because=(
        "That is the average. The best of many lies above the average.",
        "One standard error is 1.2 points, and the best of 131 looks lies further out than one of them.",
        "The highest of 131 draws lies about 2.6 standard errors above the mean, and a standard error is 1.2 points.",
        "That would be six standard errors.",
    ),
)

Quiz(
    id="ch10.swap",
    question="A caption says “red circle” and “blue square” where the picture shows a red square and a blue circle. What "
    "does BLEU, which counts shared words and runs of words, make of it?",
    choices=("nearly zero, since both objects are wrong", "a high score: almost every word occurs in the reference"),
    right=1,
    because=(
        "BLEU does not know objects. It knows words, pairs, triples and quadruples of words.",
        "All single words are right, and so are most of the runs. A caption in other words that is right scores lower.",
    ),
)

Quiz(
    id="ch10.sure",
    question="The pictures are turned by 15 degrees, which the pocket model has never seen, and it is wrong in four of ten "
    "answers. How sure will it be of its answers, on average?",
    choices=("about 60 %, as often as it is right", "about 80 %", "above 90 %"),
    right=2,
    because=(
        "That would be calibrated. It learnt to be sure on pictures on which it was right, and nothing told it that these "
        "are different.",
        "Better than that would suggest, and still not what happens.",
        "It was trained until it was sure. On pictures of another kind the certainty stays and the accuracy does not.",
    ),
)
