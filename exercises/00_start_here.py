# %% [markdown]
# # 00 Exercises: how checks work
#
# One short exercise, to see how an exercise goes: write, check, read what it says, mend.

# %% [markdown] tags=["stamped"]
# [Open in Colab][colab] ·
# [on GitHub][github] ·
# [the chapter](../chapters/00_start_here.ipynb) ·
# [the solutions](../solutions/00_start_here.ipynb) ·
# [notation and terms](../chapters/notation.md)
#
# [colab]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/exercises/00_start_here.ipynb
# [github]: https://github.com/nanovlm-course/nanovlm/blob/main/exercises/00_start_here.ipynb

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
from nanovlm.course import check

# %% [markdown] tags=["stamped"]
# ## Exercise 0.1 · How many are right?
# `start.score` · difficulty ●○○ · about 5 minutes
#
# **Why it matters.** Every claim about a model ends in a number like this one. Count a little too kindly and a
# model that sees nothing looks clever.

# %% [markdown] tags=["exercise"]
# A model gave `answers`; the right ones are in `expected`, in the same order. What share of the answers is right?
#
# Right means equal, letter for letter. `["blue", "4"]` for `["red", "4"]` scores 0.5. The score of no answers at all is
# 0.0.
#
# Run the two cells below as they are, first. The check says that nothing is written yet. Then replace the line that
# raises, and run both again. Be wrong on purpose once: count instead of dividing, and read what the check says.

# %% [markdown] tags=["stamped"]
# <details><summary>Hint 1: a nudge</summary>
#
# Two lists that belong together are walked through together: zip does it.
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
# return right / number of answers
# ```
#
# </details>


# %%
def score(answers: list[str], expected: list[str]) -> float:
    """The share of right answers, between 0 and 1. Both lists are of one length."""
    raise NotImplementedError("start.score")


# %%
check("start.score", score)
