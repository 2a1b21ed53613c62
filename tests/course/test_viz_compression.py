"""The pictures of chapter 16: what they say is what they were given."""

from __future__ import annotations

import pytest

from nanovlm.viz.compression import Variant, kinds_figure, probabilities_figure, steps_figure, variants_figure


@pytest.mark.parametrize(("step", "told"), [(1.0, "3 weights on 3 steps, of which 2 are used"), (0.01, "201 steps")])
def test_steps_count_what_is_used(step: float, told: str) -> None:
    values = [1.0, -0.2, 0.9]
    figure = steps_figure(values, [round(v / step) * step for v in values], step, "bits")
    assert told in figure.alt
    assert f"more than {0.2 if step == 1 else 0:.3f}" in figure.alt


def test_kinds_and_variants_tell_all_their_numbers() -> None:
    figure = kinds_figure("Which goes first?", {"8 bits": {"colour": 1.0, "read": 0.5}}, "bits")
    assert "8 bits: colour 100%, read 50%" in figure.alt and ">50<" in figure.markup
    rows = [Variant("float32", 5.36, 1.0, None, ""), Variant("int8", 1.65, 0.994, 0.8, "read")]
    figure = variants_figure("Table", rows)
    assert "float32: 5.36 MB, 100.0% right, loses most at nothing" in figure.alt
    assert "int8: 1.65 MB, 99.4% right, 0.80 times float32's speed, loses most at read" in figure.alt


def test_probabilities_are_shown_as_they_are() -> None:
    figure = probabilities_figure(["blue", "2"], [0.469, 0.01], "Which?", "temperature 4")
    assert figure.alt == "Which? temperature 4: blue 46.9%, 2 1.0%." and ">46.9%<" in figure.markup
