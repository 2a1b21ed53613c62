"""The one bug that no shape can show."""

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from nanovlm.models.modality_projector import pixel_shuffle
from nanovlm.trace import patch_map


def test_a_true_pixel_shuffle_makes_tiles():
    found = patch_map(lambda x: pixel_shuffle(x, 2), grid=14)
    assert len(found) == 49
    assert found[0] == [0, 1, 14, 15]
    assert {found.shape_of(token) for token in range(49)} == {"a 2x2 tile"}
    assert found.is_partition
    assert found.token_of(15) == [0] and found.token_of(195) == [48]


def test_a_plain_reshape_of_the_same_shape_makes_strips():
    found = patch_map(lambda x: x.reshape(1, 49, -1), grid=14)
    assert found[0] == [0, 1, 2, 3]
    assert found.shape_of(0) == "a 1x4 strip" and found.is_partition


@pytest.mark.parametrize("grid, factor", [(4, 2), (6, 3), (8, 4), (8, 1)])
def test_other_grids(grid, factor):
    found = patch_map(lambda x: pixel_shuffle(x, factor), grid=grid)
    assert len(found) == (grid // factor) ** 2
    assert found[0] == [row * grid + column for row in range(factor) for column in range(factor)]


def test_a_width_that_is_written_into_the_function_is_found():
    assert patch_map(lambda x: x.reshape(1, 49, 3072))[0] == [0, 1, 2, 3]
    assert patch_map(lambda x: x.reshape(1, 4, 4 * 40), grid=4, channels=40)[0] == [0, 1, 2, 3]


def test_pixel_unshuffle_keeps_tiles():
    def fn(x):
        x = rearrange(x, "b (h w) c -> b c h w", h=8)
        return rearrange(F.pixel_unshuffle(x, 2), "b c h w -> b (h w) c")

    assert patch_map(fn, grid=8)[0] == [0, 1, 8, 9]


def test_dropped_and_doubled_patches_are_noticed():
    found = patch_map(lambda x: torch.cat([x[:, :8], x[:, :8]], dim=1), grid=4)
    assert not found.is_partition and found.token_of(0) == [0, 8] and found.token_of(15) == []
    assert "several tokens or in none" in str(found)


def test_a_function_that_computes_is_refused():
    torch.manual_seed(0)
    layer = nn.Linear(4, 2)
    with pytest.raises(ValueError, match="more than move patches"):
        patch_map(lambda x: layer(pixel_shuffle(x, 2)), grid=4, channels=1)


def test_a_grid_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"does not take \[1, 25, channels\]"):
        patch_map(lambda x: pixel_shuffle(x, 2), grid=5)


def test_a_wrong_result_is_refused():
    with pytest.raises(ValueError, match="to \\[1, tokens, dim\\]; it gave \\[16, 1\\]"):
        patch_map(lambda x: x[0], grid=4)


def test_it_draws():
    found = patch_map(lambda x: pixel_shuffle(x, 2), grid=4)
    assert found.svg().count("<rect") == 16
    assert "a 2x2 tile" in found._repr_html_() and "<script" not in found._repr_html_()
