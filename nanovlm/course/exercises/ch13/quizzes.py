"""Chapter 13: what to predict."""

from __future__ import annotations

from nanovlm.course.quizzes import Quiz

Quiz(
    id="ch13.icon",
    question="SmolVLM-256M's processor gets an icon of 64 x 64 pixels. How many views of 512 x 512 are encoded?",
    choices=("none: it is too small", "1", "2", "17"),
    right=3,
    because=(
        "The processor takes any picture and brings it to a size that it can cut.",
        "That is what the icon needs, and what our own default gives. SmolVLM's rule enlarges every picture first.",
        "One tile and the whole would be the same view twice.",
        "The longer side becomes 2,048, whatever it was: 4 x 4 tiles, and the whole.",
    ),
)

Quiz(
    id="ch13.order",
    question="With SmolVLM's weights you hand over the pixels of the whole first, as nanoVLM does. You leave the text "
    "as it is: there the whole stands last. What happens?",
    choices=(
        "an error: the shapes do not fit",
        "an error: a placeholder stays empty",
        "no error, and other logits",
        "nothing: attention does not care about the order",
    ),
    right=2,
    because=(
        "All views have one shape, so they can stand in any order.",
        "There are as many placeholders as before, and as many views.",
        "The text still names the first tile first, but behind that name there are now the pixels of the "
        "whole, and each tile is behind the name of the next one. No shape shows it.",
        "The decoder has positions, and the tokens around the tiles say which tile comes. A cell below measures it.",
    ),
)

Quiz(
    id="ch13.read",
    question="The letters of a page are 12 pixels tall. The page is shrunk by 4 in both directions. Of the pixels on "
    "which a letter stood, how many remain?",
    choices=("one in 2", "one in 4", "one in 8", "one in 16"),
    right=3,
    because=(
        "That would be a shrinking by 1.4 in each direction.",
        "A quarter of the rows remains, and in each of them a quarter of the columns.",
        "Both directions shrink by the same factor, so the number of pixels falls by its square.",
        "4 times fewer rows and 4 times fewer columns: the letter is 3 pixels tall.",
    ),
)

Quiz(
    id="ch13.cut",
    question="In a tile, letters are half their size, and the probe reads nearly all of them. Tiles do not overlap, so "
    "some letters lie on the border between two. How well does a probe read left halves of this size, if it has "
    "learned from left halves?",
    choices=(
        "by chance, 1 in 33",
        "about a third of them",
        "clearly worse than whole letters, but most of them",
        "as well",
    ),
    right=2,
    because=(
        "Half a letter rules out a lot: no left half of an A looks like that of an L.",
        "That is too low: look at the letters. Most of them already differ on the left.",
        "B and E, F and P, 9 and S differ in their right halves only. Most others differ on the left as well.",
        "B and E, F and P, 9 and S differ in their right halves only, so this cannot be.",
    ),
)
