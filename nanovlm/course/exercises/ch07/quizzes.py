"""Chapter 07: its quizzes."""

from __future__ import annotations

from nanovlm.course.quizzes import Quiz

Quiz(
    id="ch07.suspects",
    question="Same model, same first weights, same pictures in the same order, same number of steps. One run ends far "
    "below the other. What in a data pipeline could do that without any error or warning?",
    choices=(
        "Only broken picture files could, because everything else raises an error.",
        "Only the order of the samples could.",
        "Many things: turns that are dropped, pictures beside the wrong text, padding that is learned, neighbours that "
        "are read.",
        "Nothing: with the same pictures in the same order the runs must end alike.",
    ),
    right=2,
    because=(
        "A broken file is the case that does raise an error, if nobody catches it. The quiet mistakes are the others.",
        "The order is the same in both runs, and it matters less than you would think.",
        "All of these train without complaint: shapes fit, the loss falls, and only the result tells.",
        "The pictures are only half of a sample. Which of its questions reach the loss is decided by code.",
    ),
)

Quiz(
    id="ch07.unrated",
    question="A filter keeps turns with a visual dependency of 3 or more. One turn has the rating None. What should "
    "happen to it?",
    choices=(
        "It counts as 0 and is dropped.",
        "It is kept, because nothing speaks against it.",
        "The whole sample is dropped.",
        "An error ends the run.",
    ),
    right=1,
    because=(
        "None says that nobody looked, not that somebody looked and disliked it. Whole subsets were never rated.",
        "A filter removes what is known to be bad. What is not known stays, and is counted.",
        "The other turns of the picture are fine, and so may this one be.",
        "Missing ratings are ordinary in this data set: a run would end in its first minute.",
    ),
)

Quiz(
    id="ch07.blind",
    question='In the Thimble\'s charts, nine of ten turns with the answer "no", "1" or "2" are lost. What happens to the '
    "score of somebody who only counts answers?",
    choices=(
        "It falls, because there are fewer turns to count.",
        "It stays where it was, because the pictures did not change.",
        "It rises by several points.",
        "It becomes 100 %.",
    ),
    right=2,
    because=(
        "Hundreds of turns for a question are plenty to see which answer is the most frequent.",
        "The guesser never saw the pictures. It is the answers that changed.",
        'Each lost "no" makes "yes" a better guess, and the test has lost them as well.',
        "Every question still has more than one answer.",
    ),
)

Quiz(
    id="ch07.black",
    question="The pocket model answers nearly every question about ordinary pictures. How large is its loss on the same "
    "questions and answers when the picture is black?",
    choices=(
        "About the same: it has memorised the answers.",
        "A little larger.",
        "Hundreds of times larger or more.",
        "Zero, because there is nothing to learn.",
    ),
    right=2,
    because=(
        "It has never seen these pictures, and their answers differ for the same question.",
        "It is sure of what it sees, and being surely wrong is expensive: the loss is the negative logarithm of a very "
        "small probability.",
        "With the picture the right answer has a probability near 1 and a loss near 0. Without it the model describes a "
        "black square with confidence.",
        "The loss does not know that the picture shows nothing. It asks for the answer in the file.",
    ),
)

Quiz(
    id="ch07.split",
    question="500 pictures with seven turns each. A tenth of all turns is held out at random. How many of the pictures "
    "that validation asks about are in training too?",
    choices=("none", "about a tenth", "about half", "practically all"),
    right=3,
    because=(
        "A turn is held out, not its picture: the other turns of the picture stay behind.",
        "That is the share of turns. A picture would have to lose all seven of its turns to be out of training.",
        "Each of the other six turns is in training with a probability of 0.9.",
        "A picture is new to the model only if all seven of its turns were held out: 0.1 to the power of 7.",
    ),
)

Quiz(
    id="ch07.packing",
    question="256 samples with a long tail of lengths are packed into rows of 1,024 tokens, as tightly as a simple rule "
    "can. How much padding is left?",
    choices=("a few per cent at most", "about a quarter", "about a half", "as much as before"),
    right=0,
    because=(
        "The short samples fill the gaps that the long ones leave. The last row is usually the only one with room.",
        "That would mean that no sample is short enough for the gaps, and most are very short.",
        "Half-empty rows happen when each row takes only what comes next, without looking back.",
        "Padding filled each row up to the longest sample of its batch. Now other samples do.",
    ),
)
