"""Chapter 16: what to predict."""

from __future__ import annotations

from nanovlm.course.quizzes import Quiz

Quiz(
    id="ch16.int8_gain",
    question="You store a decoder's weights in one byte each instead of four, and still multiply floats. Which part of an "
    "answer can become up to four times as fast?",
    choices=("reading the prompt", "writing each further token", "both", "neither, since the products are the same"),
    right=1,
    because=(
        "A prompt of a hundred tokens uses each weight a hundred times once it has been fetched: there the products decide.",
        "For one token each weight is fetched, used once and left, so that fetching takes most of the time. Fewer bytes are "
        "less time, if nothing else slows the product down.",
        "Reading a prompt does a hundred products with each weight that it fetches, and those stay as they were.",
        "The products are the same, and they are not what a single token waits for.",
    ),
)

Quiz(
    id="ch16.first_to_go",
    question="The pocket model's weights get fewer and fewer bits. It answers about colours and places of shapes, about bars "
    "of a chart and about the characters on a sign. Which questions does it lose first?",
    choices=("colours", "places", "the heights of bars", "reading the sign", "all of them together"),
    right=3,
    because=(
        "There are six colours, far from each other, and one token says each. They are among the last.",
        "Places are learnt late, and yet they hold longer than some.",
        "Heights are compared with each other, and a small shift of all of them changes little.",
        "A sign has several characters, each drawn in few pixels and one of many, and all of them have to be right.",
        "The weights are shared, but the margins are not: kinds of questions differ in how close the second-best answer is.",
    ),
)

Quiz(
    id="ch16.faster",
    question="The pocket model with its weights in int8, each matrix restored to floats when it is needed, on one thread of a "
    "CPU and in plain PyTorch. What becomes of the time for an answer?",
    choices=("a quarter of it", "a little less", "the same or more"),
    right=2,
    because=(
        "That is the bytes' share. But this model fits into the processor's cache, and restoring is work of its own.",
        "Fewer bytes are read from memory. But they are turned into floats first, which writes four bytes for each of them.",
        "Restoring a matrix reads the small numbers and writes the large ones, before the same product as ever. Only a kernel "
        "that restores on the way into the product, or multiplies whole numbers, gains time.",
    ),
)

Quiz(
    id="ch16.qat",
    question="Two bits a weight in groups of 32 have cost a third of the answers. We train sixty more steps in two ways: with "
    "rounded weights in the forward pass, and in floats with the rounding afterwards. What comes back?",
    choices=(
        "much with both: it is the training that helps",
        "much with rounded weights, little or nothing in floats",
        "little with both: two bits are too few",
    ),
    right=1,
    because=(
        "The float model was right already. More training does not move its weights to where rounding is harmless.",
        "Only a forward pass that sees the rounding has a loss that tells about it, and a gradient that repairs it.",
        "Two bits in groups still are three values and a scale for 32 weights, and training may choose which weight has which.",
    ),
)

Quiz(
    id="ch16.student",
    question="Students of half the width train for the same number of steps on the same 1,536 pictures: alone, or with one or "
    "all of the four losses. What do you expect of the differences to the student alone?",
    choices=(
        "every loss helps, and all together help most",
        "some help, and others may be no better than none",
        "none helps, since the labels are all that is tested",
    ),
    right=1,
    because=(
        "Each loss pulls the same few weights towards something of its own. What does not serve the answer competes with it.",
        "The losses differ in how much they say about the answer. Which of them help is to be measured, seed by seed.",
        "What is tested is what the student can see, and a teacher can show it more about a picture than one label does.",
    ),
)

Quiz(
    id="ch16.prune",
    question="We leave out three quarters of the pocket model in two ways: the smallest 75 % of all weights become zero, or 75 % "
    "of the channels of every MLP are cut out. Which keeps more answers, and which is smaller?",
    choices=(
        "the zeros keep more, since the best weights of every matrix stay; both are as small",
        "the zeros keep more, and the channels are smaller",
        "the channels keep more, and only they are smaller",
    ),
    right=2,
    because=(
        "A zero in a matrix takes four bytes, too. And 75 % of all linear weights are more than 75 % of the MLPs' channels.",
        "The zeros are chosen one by one, but they are also taken from attention, which the channels leave alone.",
        "Zeros are stored. And cutting channels leaves attention and projector whole, so that fewer weights are lost in all.",
    ),
)

Quiz(
    id="ch16.constant",
    question="A decode graph was exported with an example cache of seven tokens, and the number 7 became a constant in the "
    "position of the new token. What do its answers look like?",
    choices=(
        "it raises an error for any other length",
        "it writes noise from the first token on",
        "the first token is right, and later ones grow worse or repeat",
    ),
    right=2,
    because=(
        "All shapes still fit: a position is a number inside, and the cache may have any length.",
        "The first token comes from the prefill, which is a graph of its own.",
        "The prefill gives the first token. From then on each new token is turned by the angle of position 7, whatever its "
        "place, so that its distances to all earlier tokens are wrong.",
    ),
)

Quiz(
    id="ch16.queue",
    question="A camera gives 25 frames a second, and an answer takes one second. A program answers every frame, in order. How "
    "old is the scene of an answer that it gives after one minute?",
    choices=("a second", "about two seconds", "nearly a minute"),
    right=2,
    because=(
        "That is the newest frame, if all others have been dropped.",
        "Each answer falls behind by 24 frames, and these add up.",
        "After a minute it has answered 60 of 1,500 frames, and the sixtieth was taken after 2.4 seconds.",
    ),
)
