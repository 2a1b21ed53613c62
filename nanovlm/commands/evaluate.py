"""`nanovlm evaluate`: the score of a model on the Thimble, as a table, JSON and a contact sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nanovlm.commands.options import parse

MOST_IMAGES = 1_000_000


@dataclass
class EvaluateOptions:
    """Score a model on the Thimble, for each kind of question.

    "blind" is the accuracy when each question is asked about another sample's picture, so that a right answer can only
    come from the question. "chance" is the accuracy of the best guesser, who knows the question and not the picture.
    """

    model: str = "pocket"  # a model directory or a Hub id; pocket: the model that ships
    subsets: tuple[Literal["shapes", "charts", "glyphs"], ...] = ("shapes", "charts", "glyphs")
    split: Literal["val", "test", "unseen"] = "test"  # unseen: things that no training picture shows
    size: int = 400  # pictures per subset
    # how an answer is scored. exact: it has to equal the text. vqa: the same after VQA's normalisation. The others ask
    # SIZE questions with options, in MMStar's schema: letter, the letter alone; lenient, nanoVLM v0.1's regex;
    # likelihood, the option that is most probable as an answer
    protocol: Literal["exact", "vqa", "letter", "lenient", "likelihood"] = "exact"
    # also ask with options A to D, in MMStar's schema: SIZE questions in all, about every subset; a model has to have
    # learnt such questions (the subset choice of train), and pocket has not
    multiple_choice: bool = False
    # also ask for a description at once, without questions before it, of SIZE pictures of every subset
    captions: bool = False
    american: bool = False  # also ask for colours as "color", in SIZE pictures of shapes
    batch_size: int = 128  # questions answered together
    json: Path | None = None  # write the scores to this file
    sheet: Path | None = None  # write a contact sheet of answered pictures to this file (.png)

    def __post_init__(self) -> None:
        if not 2 <= self.size <= MOST_IMAGES or self.batch_size < 1 or not self.subsets:
            raise ValueError(
                f"Evaluation needs a subset, a size of at least 2 pictures (the blind score swaps them) and at most "
                f"{MOST_IMAGES:,}, and a batch_size of at least 1."
            )


def main(arguments: Sequence[str]) -> None:
    options = parse(EvaluateOptions, "evaluate", arguments)
    from nanovlm.commands import score_report
    from nanovlm.commands.models import load_model
    from nanovlm.files import write_json

    score_report.check_output(options.json, ".json")
    score_report.check_output(options.sheet, ".png")
    model = load_model(options.model)
    if options.protocol in score_report.CHOICE_TITLES:
        scores = score_report.score_choice(model, options.protocol, options.split, options.size, options.batch_size)
    else:
        right = score_report.RULES[options.protocol]
        size, batch_size = options.size, options.batch_size
        scores = score_report.score_thimble(model, options.subsets, options.split, size, batch_size, right)
    wanted = {"choice": options.multiple_choice, "captions": options.captions, "american": options.american}
    extras = [name for name, asked in wanted.items() if asked]
    extra = score_report.score_extras(model, extras, options.split, options.size, options.batch_size)
    print("\n\n".join(score_report.tables({**scores, **extra}, options.split)))
    results = {options.split: {subset: result.to_dict() for subset, result in scores.items()}}
    results |= {title: result.to_dict() for title, result in extra.items()}
    if options.json:
        write_json(results, options.json)
        print(f"\nscores         {options.json}")
    if options.sheet:
        score_report.write_sheet(options.sheet, f"nanoVLM {Path(options.model).name}", scores)
        print(f"contact sheet  {options.sheet}")
