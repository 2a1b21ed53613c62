"""Chapter 12's picture of costs in default and extreme states, and its quizzes' numbers."""

from __future__ import annotations

import pytest
import torch

from nanovlm.config import VLMConfig
from nanovlm.course.judge.exercise import load_exercises
from nanovlm.course.quizzes import QUIZZES
from nanovlm.viz.shape_tracing import Part, parts_figure
from nanovlm.viz.style import PALETTE
from tests.course.test_viz_pixel_shuffle import SVG, drawn, words


def bars(figure, colour: str) -> list[float]:
    found = [float(e.get("width", 0)) for e in drawn(figure).iter(f"{SVG}rect") if e.get("fill") == PALETTE[colour]]
    return found[1:]  # the first is the legend's


def test_bars_are_shares() -> None:
    figure = parts_figure([Part("encoder", 1_000_000, 6_000), Part("decoder", 3_000_000, 2_000)], "a model")
    grey, blue = bars(figure, "grey"), bars(figure, "blue")
    assert grey[1] == pytest.approx(3 * grey[0], rel=0.01) and blue[0] == pytest.approx(3 * blue[1], rel=0.01)
    assert sum(grey) == pytest.approx(sum(blue), rel=0.01)
    assert "75.0%  ·  3 million" in words(drawn(figure)) and "encoder: 25.0% of the parameters, 75.0%" in figure.alt


@pytest.mark.parametrize("flops", [0, 1, 999_999_999, 4_200_000_000_000_000])
def test_extreme_costs_fit(flops: int) -> None:
    names = ("vision encoder", "projector", "decoder blocks", "embedding, head")
    drawn(parts_figure([Part(name, flops // (i + 1), flops * i) for i, name in enumerate(names)], "x" * 60))
    drawn(parts_figure([Part("all", flops, flops)] * 8))


def test_what_has_no_cost_is_said_in_a_sentence() -> None:
    for parts in ([], [Part("a", -1, 0)]):
        with pytest.raises(ValueError, match="at least one part"):
            parts_figure(parts)


def test_the_quiz_about_work_is_right() -> None:
    """The part with the most FLOPs, and the one with the most parameters, of the 222M model."""
    from nanovlm import VisionLanguageModel
    from nanovlm.trace import trace

    load_exercises()  # their modules hold the quizzes too
    with torch.device("meta"):
        model = VisionLanguageModel(VLMConfig())
    t = trace(model, torch.zeros(1, 79, dtype=torch.long), torch.zeros(1, 3, 224, 224), device="meta")
    rows = {name: t[name] for name in ("vision_encoder", "projector", "decoder", "decoder.head")}
    quiz = QUIZZES["ch12.work"]
    assert max(rows, key=lambda name: rows[name].flops) == "vision_encoder"
    assert "encoder" in quiz.choices[quiz.right] and any("decoder" in choice for choice in quiz.choices)
    blocks = rows["decoder"].params - rows["decoder.head"].params  # the decoder holds the head and does not run it
    assert blocks > max(rows[name].params for name in ("vision_encoder", "projector", "decoder.head"))
    assert rows["decoder"].flops + rows["decoder.head"].flops > rows["vision_encoder"].flops  # "just ahead already"
