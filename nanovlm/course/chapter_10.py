"""What chapter 10 needs beside the package: two other versions of a Thimble caption, a true one and a false one."""

from __future__ import annotations


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
