"""The Thimble: pictures and conversations rendered from a seed, in the_cauldron's schema.

the_cauldron (https://huggingface.co/datasets/HuggingFaceM4/the_cauldron) fills a disk; this fits on a finger. A sample
is a pure function of (subset, split, index, seed), so random access, streaming and any number of workers agree, and
nothing is downloaded. `python -m nanovlm.data.thimble --sheet sheet.png` shows what is in it.

A sample is `{"images": [PIL.Image], "texts": [{"user": str, "assistant": str, "source": str}, ...]}`. `source` is
"thimble/<subset>/<kind>". The caption comes last: in front it would answer the questions without the picture. The
training subset "captions" asks for it alone.

Splits: `train`, `val` and `test` share no scene, whatever their seeds; `unseen` scenes hold something that no other
split shows: a colour with a shape (nor does another split ask for it), two colours or characters side by side.
"""

from nanovlm.data.thimble.dataset import Thimble
from nanovlm.data.thimble.hub_datasets import load_multiple_choice, load_thimble
from nanovlm.data.thimble.multiple_choice import choice_sample, multiple_choice_sample
from nanovlm.data.thimble.samples import (
    KINDS,
    SPLITS,
    SUBSETS,
    answers,
    caption_sample,
    chance,
    thimble_sample,
    thimble_scene,
)

__all__ = [
    "KINDS",
    "SPLITS",
    "SUBSETS",
    "Thimble",
    "answers",
    "caption_sample",
    "chance",
    "choice_sample",
    "load_multiple_choice",
    "load_thimble",
    "multiple_choice_sample",
    "thimble_sample",
    "thimble_scene",
]
