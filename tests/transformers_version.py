"""What the installed transformers cannot do. The newest one for Python 3.10 is 5.20."""

from __future__ import annotations

from importlib.metadata import version

OLD_SMOLVLM = tuple(map(int, version("transformers").split(".")[:2])) < (5, 21)
WHY_OLD = (
    "transformers before 5.21 (Python 3.10 has no newer one) takes only a number of image tokens that patch_size "
    "divides, and leaves pictures with transparency as they are: there is nothing to compare with"
)
