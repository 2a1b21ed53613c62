"""The Thimble as a map-style data set."""

from __future__ import annotations

from nanovlm.data.thimble.multiple_choice import choice_sample
from nanovlm.data.thimble.samples import SUBSETS, american_sample, caption_sample, check, thimble_sample

CHOICE, CAPTIONS, AMERICAN = "choice", "captions", "american"


class Thimble:
    """`size` samples of one split as a map-style data set for `torch.utils.data.DataLoader`.

    Beside the three subsets there are three of their pictures to train on: "choice", with multiple-choice questions,
    "captions", with nothing but the caption, and "american", shapes whose questions say "color".

    It holds five values and no pictures, so it is cheap to send to workers.
    """

    def __init__(
        self, subset: str = "shapes", split: str = "train", size: int = 10_000, seed: int = 0, image_size: int = 64
    ):
        names = (*SUBSETS, CHOICE, CAPTIONS, AMERICAN)
        if subset not in names:
            raise ValueError(f"The Thimble has no subset {subset!r}; choose from {', '.join(names)}.")
        check(SUBSETS[0], split, 0)
        if size < 0 or image_size < 1:
            raise ValueError(f"The Thimble needs size >= 0 and image_size >= 1, not {size} and {image_size}.")
        self.subset, self.split, self.size, self.seed, self.image_size = subset, split, size, seed, image_size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict:
        if not -self.size <= index < self.size:
            raise IndexError(f"Sample {index} of a Thimble with {self.size} samples.")
        index = int(index) % self.size
        if self.subset == CHOICE:
            return choice_sample(index, self.split, self.seed, self.image_size)
        if self.subset == CAPTIONS:
            return caption_sample(index, self.split, self.seed, self.image_size)
        if self.subset == AMERICAN:
            return american_sample(index, self.split, self.seed, self.image_size)
        return thimble_sample(self.subset, self.split, index, self.seed, self.image_size)

    def __repr__(self) -> str:
        return (
            f"Thimble(subset={self.subset!r}, split={self.split!r}, size={self.size}, "
            f"seed={self.seed}, image_size={self.image_size})"
        )
