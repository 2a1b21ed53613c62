"""The gallery holds what it says, and the package sees in each file what a person would, or says why it cannot."""

from __future__ import annotations

import io
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from nanovlm.data.bad_images import odd_images, opened
from nanovlm.data.images import open_image

SIDE = 96
ODD = odd_images(SIDE)


def pixels(image):
    return np.asarray(image, dtype=int)


@pytest.mark.parametrize("odd", [odd for odd in ODD if odd.whole and odd.name != "1 x 1"], ids=lambda odd: odd.name)
def test_whole_files_show_the_scene(odd):
    scene = pixels(open_image(ODD[0].content))
    opened = open_image(odd.content)
    assert opened.mode == "RGB" and opened.size == (SIDE, SIDE)
    if odd.name == "16-bit grey":
        scene = pixels(Image.fromarray(scene.astype(np.uint8)).convert("L").convert("RGB"))
    difference = np.abs(pixels(opened) - scene)
    assert difference.mean() < (20 if odd.name == "alpha" else 5)  # its background is white, the scene's is cream


@pytest.mark.parametrize("odd", [odd for odd in ODD if not odd.whole], ids=lambda odd: odd.name)
def test_broken_files_are_refused_with_a_sentence(odd):
    with pytest.raises(ValueError, match="picture"):
        open_image(odd.content)


def test_pillow_alone_stumbles_over_each_of_the_others():
    plain = pixels(Image.open(io.BytesIO(ODD[0].content)).convert("RGB"))
    for odd in ODD[1:]:
        if odd.name in ("palette", "CMYK", "1 x 1"):  # convert can do these; what stumbles there comes before it
            continue
        try:
            there = pixels(Image.open(io.BytesIO(odd.content)).convert("RGB"))
        except Exception:
            continue
        assert np.abs(there - plain).mean() > 20, odd.name


def test_a_long_comment_before_or_behind_the_pixels_is_no_reason_to_refuse_a_image():
    content = ODD[0].content
    text = b"comment\0\0" + zlib.compress(b"x" * (2 * PngImagePlugin.MAX_TEXT_CHUNK))
    chunk = len(text).to_bytes(4, "big") + b"zTXt" + text + zlib.crc32(b"zTXt" + text).to_bytes(4, "big")
    end = content.rindex(b"IEND") - 4
    for place in (33, end):  # behind the header; before the end
        with_text = content[:place] + chunk + content[place:]
        assert open_image(with_text).tobytes() == open_image(content).tobytes()
        assert open_image(io.BytesIO(with_text)).tobytes() == open_image(content).tobytes()


def test_what_raises_is_none():
    assert [image is None for image in opened(open_image, ODD)] == [not odd.whole for odd in ODD]
