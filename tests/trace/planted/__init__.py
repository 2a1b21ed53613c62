"""Shape bugs planted in models from outside, written down before the rules that explain them.

A wrong "Try" is worse than none: advice counts as right only if it holds one of the case's `right` parts.
"""

from tests.trace.planted import attention, convolution, functional, gather, library, losses, recurrent
from tests.trace.planted.cases import PLANTED

__all__ = ["PLANTED", "attention", "convolution", "functional", "gather", "library", "losses", "recurrent"]
