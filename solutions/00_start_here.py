# %% [markdown]
# # 00 Exercises: how checks work
#
# This short exercise shows how all exercises work: you write, check, read what the check says, and mend.

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
from nanovlm.course import check

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
# return right / number of answers
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
