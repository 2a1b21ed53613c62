"""Which samples are held out: decided by their pictures, so that no picture is trained on and tested with."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from PIL import Image


def split_by_image(images: Sequence[bytes], val_share: float, seed: int = 0) -> tuple[list[int], list[int]]:
    """Deal samples into training and validation by the content of their pictures.

    A picture's side is a pure function of its bytes and the seed: equal pictures land on one side, and no sample moves
    when others are added, removed or reordered. The share holds on average, as in a toss of coins.

    Args:
        pictures: the bytes that tell the picture of each sample (its file, its pixels, its `average_hash`).
        val_share: the expected share of validation samples, between 0 and 1.
    Returns: (training indices, validation indices), each in rising order.
    """
    sides: tuple[list[int], list[int]] = ([], [])
    for index, image in enumerate(images):
        digest = hashlib.blake2b(f"{seed}:".encode() + image, digest_size=8).digest()
        sides[int.from_bytes(digest, "big") < val_share * 2**64].append(index)
    return sides


def average_hash(image: Image.Image, side: int = 8) -> bytes:
    """A perceptual hash of side x side bits: is each cell of the shrunken grey picture lighter than their mean?

    A picture that was saved again, or resized, keeps nearly all of its bits; two different pictures of one kind may
    share them too, so that equal hashes are a suspicion, not a proof.
    """
    small = image.convert("L").resize((side, side), Image.Resampling.BOX)
    grey = np.asarray(small, dtype=np.float64)
    return np.packbits(grey > grey.mean()).tobytes()


def bits_apart(a: bytes, b: bytes) -> int:
    """In how many bits two hashes of one length differ."""
    return sum((x ^ y).bit_count() for x, y in zip(a, b, strict=True))
