"""What chapter 10 needs beside the package: the textbook interval, and two other versions of a Thimble caption."""

from __future__ import annotations


def wald(correct: int, total: int) -> tuple[float, float]:
    """share ± 1.96 standard errors, which is too narrow near 0 and 1, and has no width there."""
    share = correct / total
    half = 1.96 * (share * (1 - share) / total) ** 0.5
    return share - half, share + half


def reworded(caption: str) -> str:
    """The same facts, in another order."""
    facts = [fact.strip() + "." for fact in caption.split(".") if fact.strip()]
    return " ".join(facts[::-1])


def exchanged_shapes(caption: str) -> str:
    """The last words of the first two objects exchanged: other facts, in the same words."""
    words = caption.replace(".", " .").split()
    ends = [i - 1 for i, word in enumerate(words) if word == "." and words[i - 1] != "nothing"][:2]
    words[ends[0]], words[ends[-1]] = words[ends[-1]], words[ends[0]]
    return " ".join(words).replace(" .", ".")
