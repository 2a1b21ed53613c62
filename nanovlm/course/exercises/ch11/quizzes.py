"""Chapter 11: its quizzes."""

from __future__ import annotations

from nanovlm.course.quizzes import Quiz

Quiz(
    id="ch11.four_hours",
    question="The published 222M model was trained on 8.4 million samples. You have a free T4 for four hours, and it does "
    "a quarter of its peak. How many of those samples can you afford?",
    choices=("about 1 in 1,000", "about 1 in 8", "all of them", "1 in 2, with a smaller batch"),
    right=1,
    because=(
        "A T4 is slow beside an H100, but by a factor of about fifteen, not a thousand.",
        "About a million samples. That is short of the published run, and far more than a demonstration needs.",
        "On a T4 the whole run takes more than a day at this utilisation.",
        "The batch changes how often a step is taken, not how much a sample costs.",
    ),
)

Quiz(
    id="ch11.utilisation",
    question="The published run is said to have taken six hours on one H100. Which share of the chip's dense bf16 peak is "
    "that?",
    choices=("about 70 %", "about 35 %", "about 8 %", "less than 1 %"),
    right=2,
    because=(
        "Llama 3, tuned with much care, reports 38 to 43 % (arXiv:2407.21783).",
        "That is a good value for a model of this size, and would take an hour and a half.",
        "Samples times FLOPs, divided by six hours of the peak. For most of the time the GPU computed nothing that counts.",
        "That would take more than two days.",
    ),
)

Quiz(
    id="ch11.memory",
    question="222 million weights in float32, trained with AdamW, batches of 16 rows of 128 tokens on a T4. What takes the "
    "most memory?",
    choices=("the weights", "the gradients", "AdamW's two moments", "the activations"),
    right=3,
    because=(
        "0.8 GiB. They would be the largest part of a model that only answers.",
        "As many numbers as the weights, so 0.8 GiB as well.",
        "Twice the weights, 1.7 GiB. That is the largest of the parts that do not depend on the batch.",
        "They grow with the rows, and at 16 rows they have overtaken everything else.",
    ),
)

Quiz(
    id="ch11.new_rows",
    question="You add a row for the image placeholder to a trained embedding that is also the head, filled with random "
    "numbers of standard deviation 1. What happens to the loss of the first step?",
    choices=("it rises by a lot", "nothing: no text holds that token", "it falls a little", "it becomes NaN"),
    right=0,
    because=(
        "The head computes a logit for the new token at every position. A loud row gives it a large one, at random, which "
        "takes probability from all others.",
        "No text holds it as an input. As an output it competes at every position.",
        "There is nothing that it could have learnt.",
        "Large numbers, but finite ones.",
    ),
)

Quiz(
    id="ch11.two_ranks",
    question="One rank's batch has 10 supervised tokens and the mean loss 1, the other's has 90 and the mean loss 3. Each "
    "calls backward() on its own mean, and DDP averages the gradients. Which loss is being minimised?",
    choices=("2.8, the mean over all tokens", "2.0", "4.0", "1.2"),
    right=1,
    because=(
        "That would be right: 280 / 100. But nobody told the ranks about each other's tokens.",
        "The mean of the two means. A token of the first rank counts nine times as much as one of the second.",
        "DDP averages; it does not add.",
        "That is weighted the wrong way round.",
    ),
)

Quiz(
    id="ch11.gallery_a",
    question="Log A, above: which cause fits?",
    choices=(
        "the optimizer's state was lost at the resume",
        "the labels were not shifted",
        "pictures do not reach the decoder",
        "fp16 without a gradient scaler",
    ),
    right=2,
    because=(
        "Then the two curves would agree up to the resume, and this one leaves the other early.",
        "Then the loss would fall far below what the task allows, and quickly.",
        "The loss falls as long as words can be learnt, and stays where a picture would be needed.",
        "Small gradients would become zero: the loss would hardly fall at all, from the first step.",
    ),
)

Quiz(
    id="ch11.gallery_b",
    question="Log B, above: which cause fits?",
    choices=(
        "the model copies its input: labels that are not shifted",
        "a lucky seed",
        "the learning rate is too low",
        "the data is slow",
    ),
    right=0,
    because=(
        "It falls below every healthy run, to nothing: the answer is in the input.",
        "Seeds differ by a percent or two, not by a factor of a hundred.",
        "Then the loss would fall slowly.",
        "That shows in the samples per second, not in the loss.",
    ),
)

Quiz(
    id="ch11.same_protocol",
    question="Your model scores 38 % on MMStar's 1,500 questions, the published one 35.3 %. Is yours better?",
    choices=(
        "yes: 38 is more than 35.3",
        "no: below 50 % nothing counts",
        "yes, if both were run with temperature 0",
        "that cannot be said from the two numbers",
    ),
    right=3,
    because=(
        "Each has an interval of about 2.4 points on either side, and the two were not scored by the same rule.",
        "Chance is near 25 %, so 35 % can be real.",
        "The published number was sampled at temperature 1, scored by a lenient rule, on the best of many checkpoints.",
        "Score both with the same prompt, the same rule and the same questions, and compare question by question.",
    ),
)
