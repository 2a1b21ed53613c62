"""The chapters, in order. Titles have their home here; the builder holds the chapters' files to them."""

from __future__ import annotations

from typing import NamedTuple


class Chapter(NamedTuple):
    number: str
    topic: str  # of the file name: NN_topic.py
    title: str

    @property
    def stem(self) -> str:
        return f"{self.number}_{self.topic}"


CHAPTERS = tuple(
    Chapter(number, topic, title)
    for number, topic, title in (
        ("00", "start_here", "Start here"),
        ("01", "patch_embedding", "From pixels to patches"),
        ("02", "vision_transformer", "The vision transformer"),
        ("03", "pixel_shuffle_and_projector", "Pixel shuffle and the projector"),
        ("04", "rope_decoder", "The decoder"),
        ("05", "text_tokens", "Text, tokens and labels"),
        ("06", "vision_language_model", "The vision-language model"),
        ("07", "data", "Data"),
        ("08", "training", "Training"),
        ("09", "generation", "Generation"),
        ("10", "evaluation", "Evaluation"),
        ("11", "full_training", "Full training"),
        ("12", "shape_tracing", "Shape tracing"),
        ("13", "high_resolution", "High resolution and many pictures"),
        ("14", "looking_inside", "Looking inside"),
        ("15", "own_pictures", "Your own pictures"),
        ("16", "small_and_fast", "Small and fast"),
        ("17", "other_designs", "Other designs"),
    )
)


def chapter(number: str) -> Chapter | None:
    return next((c for c in CHAPTERS if c.number == number), None)
