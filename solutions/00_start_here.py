# %% [markdown]
# # 00 Exercises: how checks work
#
# The first exercise shows how all exercises work: you write, check, read what the check says, and mend. In the second
# you measure whether a model looks at its picture, in the third you mend a function that somebody else wrote, and in
# the last you write a test, which is graded by the wrong models that it catches.

# %% [markdown] tags=["stamped"]
# [Open in Colab][colab] ·
# [on GitHub][github] ·
# [the chapter](../chapters/00_start_here.ipynb) ·
# [the exercises](../exercises/00_start_here.ipynb) ·
# [notation and terms](../chapters/notation.md)
#
# [colab]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/solutions/00_start_here.ipynb
# [github]: https://github.com/nanovlm-course/nanovlm/blob/main/solutions/00_start_here.ipynb

# %% tags=["stamped"]
# @title Set-up: the nanovlm that is installed; Colab installs it first.
import subprocess
import sys
from importlib import import_module

try:
    import_module("nanovlm.course")
except ImportError:
    package = "nanovlm[notebook] @ git+https://github.com/nanovlm-course/nanovlm@main"
    if "google.colab" not in sys.modules:
        advice = f'In a clone run `make lab`, elsewhere pip install "{package}".'
        raise ModuleNotFoundError(f"This kernel has no nanovlm. {advice}") from None
    if subprocess.run([sys.executable, "-m", "pip", "install", "-q", package]).returncode:
        raise RuntimeError("pip could not install nanovlm (see above). Run this again.") from None
    import_module("nanovlm.course")

# %%
from collections.abc import Callable

from PIL import Image

from nanovlm.course import check, use

# %% [markdown] tags=["stamped"]
# ## Exercise 0.1 · How many are right?
# `start.score` · difficulty ●○○ · about 5 minutes
#
# **Why it matters.** Every claim about a model rests on a number like this one. If you count too generously, a
# model that sees nothing looks capable.

# %% [markdown] tags=["exercise"]
# A model gave `answers`, and the right answers are in `expected`, in the same order. Return the share of the answers
# that are right, where right means equal, letter for letter. For example, `["blue", "4"]` for `["red", "4"]` scores
# 0.5. With no answers at all, the score is 0.0.
#
# First run the two cells below as they are: the check says that nothing has been written yet. Then replace the line
# that raises, and run both again. Make a mistake on purpose once, for example count without dividing, and read what
# the check says.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# The two lists belong together, so go through both at the same time: zip does that.
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Count the pairs whose two texts are equal, then divide by how many pairs there are. Look after the empty list
# before you divide.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# if there are no answers: return 0.0
# right = how many pairs (a, e) of zip(answers, expected) have a == e
# return …
# ```
#
# </details>


# %%
def score(answers: list[str], expected: list[str]) -> float:
    """The share of right answers, between 0 and 1. Both lists are of one length."""
    # SOLUTION
    if not answers:
        return 0.0
    return sum(a == e for a, e in zip(answers, expected, strict=True)) / len(answers)
    # END SOLUTION


# %%
check("start.score", score)

# %% [markdown] tags=["stamped"]
# ## Exercise 0.2 · Measure it: does the model look?
# `start.looks` · difficulty ●●○ · about 8 minutes
#
# **Why it matters.** One score cannot tell a model that sees from one that guesses well. Two scores can,
# provided that nothing but the picture differs between them.

# %% [markdown] tags=["exercise"]
# **Measure it.** Chapter 00 asks each question twice: with its own picture, and with a wrong one. Write that
# measurement. `ask(image, question)` returns a model's answer, and the three lists belong together: question i is about
# picture i, and its right answer is `expected[i]`.
#
# Return two numbers: the share of right answers with their own pictures, and the share of right answers when each
# question meets the picture of the *next* question (the last one meets the first picture). Nothing but the picture may
# differ. There are at least two questions. `share` is your `score` of exercise 0.1.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Each question is asked twice. What has to be different the second time, and what must stay the same?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Make a second list of pictures that starts with the second one and ends with the first. Then score the answers
# to the same questions with both lists, against the same expected answers.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# others = …
# own = [ask(image, question) for image, question in zip(images, questions)]
# blind = the same with others
# return share(own, expected), share(blind, expected)
# ```
#
# </details>

# %%
share = use("start.score", score)  # yours, or the reference until it passes


def looks(
    ask: Callable[[Image.Image, str], str],
    images: list[Image.Image],
    questions: list[str],
    expected: list[str],
) -> tuple[float, float]:
    """The share of right answers with their own pictures, and with those of the next question."""
    # SOLUTION
    others = images[1:] + images[:1]
    own = [ask(image, question) for image, question in zip(images, questions, strict=True)]
    blind = [ask(image, question) for image, question in zip(others, questions, strict=True)]
    return share(own, expected), share(blind, expected)
    # END SOLUTION


# %%
check("start.looks", looks)

# %% [markdown] tags=["stamped"]
# ## Exercise 0.3 · Mend it: a guesser who is too bad
# `start.best_guess` · difficulty ●●○ · about 8 minutes
#
# **Why it matters.** A score means something only beside what guessing gives. If the guesser is too bad, every
# model looks as if it could see.

# %% [markdown] tags=["exercise"]
# **Mend it.** How much is right by guessing alone? The best guesser does not see the picture but hears the question, so
# for each kind of question (colour, count, exists, …) it always gives the most frequent answer. This function should
# return the share of right answers of that guesser for each kind, which is where the black ticks of the chapter are:
#
# ```python
# def best_guess(kinds, expected):
#     favourite = max(set(expected), key=expected.count)
#     right = sum(answer == favourite for answer in expected)
#     return {kind: right / len(expected) for kind in kinds}
# ```
#
# The symptom: all ticks are at the same place, far to the left, and every model seems to see. For the kinds `["colour",
# "colour", "exists", "exists", "exists"]` with the answers `["red", "blue", "yes", "no", "yes"]` it returns 0.4 twice;
# right is 0.5 for `"colour"` and 2/3 for `"exists"`.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Which questions does the code look at when it chooses the guess, and which ones when it counts?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# The guesser hears the question, so there is one favourite answer for each kind. Choose it among the answers of
# that kind, and divide by how many questions of that kind there are.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# for each kind:
#     own = the expected answers of the questions of this kind
#     favourite = max(set(own), key=own.count)
#     shares[kind] = …
# ```
#
# </details>


# %%
def best_guess(kinds: list[str], expected: list[str]) -> dict[str, float]:
    """Kind of question -> the share that its most frequent answer gets right. Both lists are of one length."""
    # SOLUTION
    shares = {}
    for kind in kinds:
        own = [e for k, e in zip(kinds, expected, strict=True) if k == kind]
        favourite = max(set(own), key=own.count)
        shares[kind] = own.count(favourite) / len(own)
    return shares
    # END SOLUTION


# %%
check("start.best_guess", best_guess)

# %% [markdown] tags=["stamped"]
# ## Exercise 0.4 · Write the test: does this model look?
# `start.test_looks` · difficulty ●●○ · about 10 minutes
#
# **Why it matters.** A demonstration shows a model where it is right. A test is written to find the model that
# only seems to look, and it is worth as much as the wrong models that it catches.

# %% [markdown] tags=["exercise"]
# Write a test that finds out whether a model looks at its picture. Your test gets the model, as a function
# `ask(image, question)` that returns its answer, and a function `picture(colour)`, which makes a picture of one colour:
# `"red"`, `"green"` or `"blue"`. To the question `"What colour is it?"` a model that looks answers with the colour, and
# to `"Is it red?"` (or green, or blue) with `"yes"` or `"no"`, always in lower case.
#
# Your test raises `AssertionError` if the model is wrong, and does nothing if it is right. The check runs it with a
# model that looks, where it has to pass, and with nine others, where it has to fail: one of them ignores the picture,
# and the rest look, but get one colour or one kind of question wrong.
#
# Write the simplest test that comes to your mind first, and let the check tell you which models get through.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Think of a model that would pass your test without looking. Which further question would give it away?
#
# </details>
# <details><summary>Hint 2: a plan</summary>
#
# Go through all three colours. For the picture of each, ask for the name, and ask a yes-or-no question about
# each of the three, so that sometimes yes and sometimes no is right.
#
# </details>
# <details><summary>Hint 3: almost code</summary>
#
# ```python
# for colour in ("red", "green", "blue"):
#     assert ask(picture(colour), "What colour is it?") == …
#     for other in the same three colours:
#         assert ask(picture(colour), f"Is it {other}?") == …
# ```
#
# </details>


# %%
def test_looks(ask: Callable, picture: Callable) -> None:
    """Raises AssertionError if the answers of `ask` do not come from the picture."""
    # SOLUTION
    colours = ("red", "green", "blue")
    for shown in colours:
        assert ask(picture(shown), "What colour is it?") == shown
        for named in colours:
            right = "yes" if named == shown else "no"
            assert ask(picture(shown), f"Is it {named}?") == right, f"{shown}: is it {named}?"
    # END SOLUTION


# %%
check("start.test_looks", test_looks)
