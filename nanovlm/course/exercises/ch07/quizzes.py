"""Chapter 07: its quizzes."""

from __future__ import annotations

from nanovlm.course.quizzes import Quiz
