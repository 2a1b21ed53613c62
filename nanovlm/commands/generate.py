"""`nanovlm generate`: a question about a picture, and what a model answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import UseAppendAction

from nanovlm.commands.options import parse

SAMPLE_PICTURE = "pictures/shapes.png"


@dataclass
class Options:
    """Ask a model about a picture.

    Several answers are drawn, so that you see how sure it is. With --temperature 0, --stream or --num-beams there is
    one: the most likely.
    """

    model: str = "pocket"  # a model directory or a Hub id; pocket: the model that ships
    image: Annotated[tuple[Path, ...], UseAppendAction] = ()  # a picture file; repeat it for several pictures
    prompt: str = "What is this?"
    generations: int | None = None  # how many answers; None: 5, or 1 where the most likely is asked for
    temperature: float | None = None  # 0: the most likely token; None: 0.5, or 0 where there is one answer
    top_k: int | None = None  # draw from the k most likely tokens
    top_p: float | None = None  # draw from the fewest tokens that together have this probability
    num_beams: int = 1
    max_new_tokens: int = 64
    seed: int | None = None  # the same draw every time
    stream: bool = False  # write the answer as it comes

    def __post_init__(self) -> None:
        most_likely = self.stream or self.num_beams > 1 or self.temperature == 0
        if self.generations is None:
            self.generations = 1 if most_likely else 5
        if self.temperature is None:
            self.temperature = 0.0 if self.generations == 1 else 0.5


def main(arguments: Sequence[str]) -> None:
    options = parse(Options, "generate", arguments)
    from nanovlm.assets import asset_path
    from nanovlm.commands.models import load_model

    model = load_model(options.model)
    pictures = options.image or (asset_path(SAMPLE_PICTURE),)
    print(f"picture  {', '.join(map(str, pictures))}\nprompt   {options.prompt}\n")
    answers = model.generate(
        prompt=options.prompt,
        image=list(pictures),
        num_generations=options.generations,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        num_beams=options.num_beams,
        max_new_tokens=options.max_new_tokens,
        seed=options.seed,
        on_text=write if options.stream else None,
    )
    if options.stream:
        print()
        return
    for number, answer in enumerate([answers] if isinstance(answers, str) else answers, start=1):
        print(f"{number}  {answer}")


def write(piece: str) -> None:
    print(piece, end="", flush=True)
