"""Chapter 09: its quizzes."""

from __future__ import annotations

from nanovlm.course.quizzes import Quiz

Quiz(
    id="ch09.five_answers",
    question="You ask the pocket model five times to describe the same picture, and each token is drawn at random "
    "with the probability that the model gives it. How many different answers do you expect?",
    choices=(
        "five",
        "none: without a seed it fails",
        "two or three",
        "one, or nearly",
    ),
    right=3,
    because=(
        "That would be so if the model were unsure. Drawing is random, but a draw from 99.9 % and 0.1 % seldom is.",
        "A seed makes a draw repeatable. Without one it is only another draw each time.",
        "That depends on how sure the model is, and of a clear picture it is very sure.",
        "Where the picture decides the answer, one token has nearly all of the probability, and the draw has no choice.",
    ),
)

Quiz(
    id="ch09.work",
    question="Without a cache the model reads the whole text again for every new token. A prompt of 30 tokens, an "
    "answer of 60. With a cache it reads each token once. How many times more tokens does it read without "
    "one?",
    choices=(
        "2 times",
        "about 10 times",
        "about 40 times",
        "60 times",
    ),
    right=2,
    because=(
        "The text is 30 tokens long at first and 90 at the end, and all of it is read 60 times.",
        "Count again: 60 passes over 60 tokens on average, against about 90 tokens read once.",
        "60 passes over about 60 tokens each are 3,570 tokens; read once they are 89.",
        "That would be so if the prompt were read again and the answer were not there.",
    ),
)

Quiz(
    id="ch09.temperature",
    question="Two tokens have the probabilities 0.8 and 0.2. What are they at temperature 0.5?",
    choices=(
        "0.94 and 0.06",
        "0.9 and 0.1",
        "0.67 and 0.33",
        "0.8 and 0.2: temperature changes logits only",
    ),
    right=0,
    because=(
        "Halving the temperature doubles the logits, which squares the odds: 4 to 1 becomes 16 to 1.",
        "It makes the likelier one likelier, but by more: the odds are squared.",
        "That is temperature 2, where the odds become their square root, 2 to 1.",
        "Probabilities are made of the logits, so they change as well.",
    ),
)

Quiz(
    id="ch09.min_p",
    question="In one place the model gives its best token 0.9, in another 0.1. With min-p 0.1, what probability must"
    " a token have to be drawn?",
    choices=(
        "0.1 in both places",
        "the ten best are drawn in both places",
        "0.9 and 0.9",
        "0.09 and 0.01",
    ),
    right=3,
    because=(
        "That would be a fixed threshold: in the second place the best token alone would be left.",
        "A fixed number of tokens is top-k.",
        "The threshold is a share of the best token's probability, not what is left of 1.",
        "A tenth of the best one's: strict where the model is sure, open where it is not.",
    ),
)

Quiz(
    id="ch09.beams",
    question="Greedy decoding takes the likeliest token at every step. Is the answer that it writes the likeliest "
    "answer?",
    choices=(
        "Not always: a good first token can lead to places where every next one is unlikely.",
        "Yes: a product of the largest factors is the largest product.",
        "No, it never is.",
        "Only at temperature 0.",
    ),
    right=0,
    because=(
        "A slightly worse beginning may go on with certainty. Two beams keep both beginnings for a while.",
        "The factors of the second step depend on the first choice: another first token has other second ones.",
        "On clear pictures it mostly is. Beams differ where the model is unsure.",
        "Greedy decoding is temperature 0, and the question remains.",
    ),
)

Quiz(
    id="ch09.constrained",
    question="You show the model a picture that is all grey, ask for a colour, and let it answer with one of six "
    "colours only. Every answer is now a colour. Has the model become better at seeing?",
    choices=(
        "Yes: its answers are right more often than before.",
        "Yes, because the other tokens no longer distract it.",
        "No. The form is right, and what it does not know it now guesses in good form.",
        "No, its answers get worse.",
    ),
    right=2,
    because=(
        "A guess among six is right once in six times, which looks better than a word that is no colour.",
        "The logits are computed before the mask: the same picture, the same numbers.",
        "The mask removes the one sign by which you could have seen that it did not know.",
        "It can only gain points by guessing; that is the trouble.",
    ),
)

Quiz(
    id="ch09.speculative",
    question="A small draft model guesses three tokens, and the large model reads them in one pass and keeps those "
    "that its rule allows. With a bad draft, what happens to the text?",
    choices=(
        "It becomes worse, as bad as the draft.",
        "It has the same probabilities as before; it only takes longer.",
        "It becomes a mixture of both models.",
        "It stays the same only at temperature 0.",
    ),
    right=1,
    because=(
        "A guess that the large model would not make is rejected, as often as it would not have made it.",
        "The rule is exact for every draft. A bad draft is rejected more often, so that more passes are needed.",
        "A rule that is a little wrong would do that. The right one gives the large model's probabilities.",
        "The rule compares probabilities, and is exact at every temperature.",
    ),
)
