"""Chapter 14's tables in default and extreme states."""

from __future__ import annotations

import pytest
import torch

from nanovlm.viz.looking_inside import share_tables
from tests.course.test_viz_decoder import drawn, words


def test_every_share_is_told_and_the_largest_is_the_darkest() -> None:
    tables = {"first": torch.tensor([[0.0, 1.0], [0.25, 0.5]]), "second": torch.full((2, 2), 0.1)}
    figure = share_tables(tables, ["block 0", "block 1"], ["head 0", "head 1"], ("a row", "a column"))
    told = words(drawn(figure))
    assert all(part in told for part in ("first", "second", "100%", "25%", "a row", "a column"))
    assert "block 1 head 0 25%, head 1 50%" in figure.alt


def test_wide_tables_and_empty_places_fit() -> None:
    table = torch.rand(7, 24)
    table[3, 5] = torch.nan
    drawn(share_tables({"positions": table}, [f"row {i}" for i in range(7)], [str(i) for i in range(24)]))


def test_names_and_numbers_have_to_match() -> None:
    with pytest.raises(ValueError, match=r"each table is \[1, 2\]; got a \[2, 1\]"):
        share_tables({"a": torch.zeros(2, 1)}, ["x"], ["y", "z"])
