"""The quizzes of chapter 06."""

from __future__ import annotations

from nanovlm.course.quizzes import Quiz

Quiz(
    id="ch06.order",
    question="You shuffle the 16 image tokens before the decoder reads them, and ask where the red star is. Before, "
    "nearly every such answer was right. How often is it right now?",
    choices=("a quarter of the time, by guessing", "most of the time", "never", "always, nothing changes"),
    right=1,
    because=(
        "So it would be if its position in the sequence were the only sign of where a token's part of the picture is.",
        "The encoder added each patch's position to its vector, so that a token carries its place with it. The "
        "position in the sequence (RoPE) is only a second hint, and now a wrong one.",
        "To be wrong every time, the model would have to know the right answer and avoid it.",
        "The decoder does use positions in the sequence, so a wrong order costs something.",
    ),
)

Quiz(
    id="ch06.behind",
    question="The image tokens are moved from in front of the question to behind it. Which words of the question can "
    "still attend to the picture, in the decoder?",
    choices=("all", "none", "only the last", "every second one"),
    right=1,
    because=(
        "The decoder is causal: a token attends to itself and to what comes before it.",
        "The picture comes after them all, and only what follows the picture can attend to it.",
        "The last word of the question too stands before the picture.",
        "The causal mask is a triangle: it does not leave out every second position.",
    ),
)

Quiz(
    id="ch06.counts",
    question="A batch of two rows, 16 image tokens a picture. Row 0 has 17 placeholders, row 1 has 15, and two "
    "pictures come. What happens if only the sum is checked?",
    choices=(
        "an error: the shapes do not fit",
        "each row gets its own picture, but for one token",
        "row 0 reads a token of row 1's picture, and nobody notices",
        "both rows get the same picture",
    ),
    right=2,
    because=(
        "32 image tokens for 32 places: every shape fits.",
        "Row 0 does get its own 16, but then it has a place left.",
        "The places are filled in reading order. The first token of picture 1 lands in row 0, and row 1 gets the rest, "
        "each one place too early.",
        "Each image token is used once, so the second row cannot get the first picture again.",
    ),
)

Quiz(
    id="ch06.strict",
    question="The projector's weight has another name in a file, and load_state_dict(strict=False) leaves it random. "
    "Encoder and decoder are loaded. How often are the answers right?",
    choices=(
        "as often as before: it is one layer of many",
        "about as often as by guessing",
        "never: the output is noise",
        "not at all, it raises an error",
    ),
    right=1,
    because=(
        "It is the only way from the picture to the words.",
        "The decoder works: it reads the question, and what it says nearly always looks like an answer. It only cannot "
        "see. That is why it is so hard to notice.",
        "The decoder still knows how answers look, and which are frequent.",
        "That is what strict=False switches off.",
    ),
)
