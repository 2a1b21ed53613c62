"""Chapter 05: what to predict before the cell is run."""

from __future__ import annotations

from nanovlm.course.quizzes import Quiz

Quiz(
    id="ch05.unknown",
    question="The pocket tokenizer learned from the words of the Thimble. You ask about a zebra, which is none of "
    "them. What happens to the word?",
    choices=("it becomes <unknown>", "it is dropped", "it becomes several short tokens", "an error"),
    right=2,
    because=(
        "Vocabularies of whole words need such a token. One that begins at bytes does not.",
        "Then the model would answer another question than yours, and nobody would know.",
        "No merge ever joined z and e, so the letters stay as they are. Every text can be written in bytes.",
        "There is nothing that the 256 bytes cannot spell.",
    ),
)

Quiz(
    id="ch05.template",
    question="The pocket model gets nearly all of 120 questions right. You put one newline behind <|assistant|>, as "
    "many templates have it, and ask again. How many are right?",
    choices=("as many: white space does not matter", "about 110", "about 60", "fewer than 15"),
    right=3,
    because=(
        "That holds for a person. For the model the newline is a token, in the place where the answer should begin.",
        "To the model this is no small change, because it never saw a newline in training.",
        "The newline is in all prompts, so nearly all answers suffer from it, not every second one.",
        "The answer has to begin right behind <|assistant|>; behind a newline the model is lost.",
    ),
)

Quiz(
    id="ch05.labels",
    question="<|user|> picture Where is the red star? <|assistant|> top left <|end|>. Which of these tokens should the "
    "model be trained to write?",
    choices=("all of them", "top left", "top left <|end|>", "<|assistant|> top left <|end|>"),
    right=2,
    because=(
        "Then most of the loss is about guessing questions that nobody wants it to ask, and placeholders, which are no "
        "words at all.",
        "Then the model never learns to stop: it would write on behind the answer.",
        "The answer and the token that ends it are the model's part of the conversation.",
        "Your program writes <|assistant|>, in every prompt. The model's part begins behind it.",
    ),
)

Quiz(
    id="ch05.turns",
    question="A sample of the Thimble has seven turns about one picture; the last is a caption. A loader takes only "
    "the first turn. How many of the supervised tokens are left?",
    choices=("one in seven", "about one in twenty", "about a half", "all: the picture is the same"),
    right=1,
    because=(
        "It would be, if all answers were of one length. The first is a word, the caption a few sentences.",
        "The first answer is a word and its end token. The caption alone is longer than all other answers together.",
        "Seven turns become one, and its answer is among the shortest.",
        "The picture costs as much as before. What it teaches is in the answers.",
    ),
)

Quiz(
    id="ch05.shift",
    question="By mistake nobody shifts the labels: at each place the model is asked for the token that stands there. "
    "You train the pocket model on that. What does the loss do?",
    choices=("it rises", "it stays where it is", "it falls to nearly zero", "it becomes NaN"),
    right=2,
    because=(
        "It is high at the start, because the trained model expects another task, and then training makes it smaller.",
        "The task is easy to learn, so the loss does fall, and the mistake is easy to miss.",
        "Repeating what one reads is the easiest of tasks. A loss that is too good is a reason to look.",
        "All numbers are finite and all shapes fit. Nothing warns you.",
    ),
)
