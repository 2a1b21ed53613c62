"""A picture is on one side, whatever else is in the data; and what was saved again is found again."""

from __future__ import annotations

import io

from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from nanovlm.data.splits import average_hash, bits_apart, split_by_image
from nanovlm.data.thimble import Thimble

images = st.lists(st.binary(min_size=0, max_size=3), max_size=60)


@given(images, st.integers(0, 3), st.floats(0, 1))
def test_every_sample_is_dealt_once_and_equal_images_together(images, seed, share):
    train, val = split_by_image(images, share, seed)
    assert sorted(train + val) == list(range(len(images)))
    assert not {images[i] for i in train} & {images[i] for i in val}
    assert train == sorted(train) and val == sorted(val)


@given(images, images, st.integers(0, 3))
def test_what_is_added_moves_no_one(images, more, seed):
    before = split_by_image(images, 0.3, seed)[1]
    after = split_by_image(images + more, 0.3, seed)[1]
    assert before == [i for i in after if i < len(images)]


def test_the_share_holds_on_average_and_the_seed_deals_anew():
    images = [str(i).encode() for i in range(4000)]
    assert split_by_image(images, 0.0)[1] == [] and split_by_image(images, 1.0)[0] == []
    first, second = (set(split_by_image(images, 0.2, seed)[1]) for seed in (0, 1))
    assert 700 < len(first) < 900 and 700 < len(second) < 900  # 800, and eight standard deviations of 25 in all
    assert 100 < len(first & second) < 220  # 160 by chance


def test_a_image_saved_again_keeps_its_hash():
    images = [Thimble("shapes", "train", image_size=128)[i]["images"][0] for i in range(6)]
    again = []
    for image in images:
        buffer = io.BytesIO()
        image.resize((90, 90)).save(buffer, "JPEG", quality=60)
        again.append(Image.open(buffer))
    for i, image in enumerate(images):
        apart = [bits_apart(average_hash(image), average_hash(other)) for other in again]
        assert apart[i] <= 6 and apart[i] == min(apart)
