"""The chapters that are held to the bounds of the prose and whose answers are folded: all that are written."""

from nanovlm.course.outline import CHAPTERS

REWRITTEN = tuple(chapter.number for chapter in CHAPTERS)
