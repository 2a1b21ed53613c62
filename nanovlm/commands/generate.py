"""`nanovlm generate`: a question about a picture, or about each of many, and what a model answers."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import UseAppendAction

from nanovlm.commands.options import parse

if TYPE_CHECKING:
    from nanovlm.models.vision_language_model import VisionLanguageModel

SAMPLE_IMAGE = "images/shapes.png"


@dataclass
class GenerateOptions:
    """Ask a model about a picture.

    Several answers are drawn, so that you see how certain the model is. With --temperature 0, --stream, --num-beams or
    --batch it gives one, the most likely. --batch asks about each of many pictures and writes lines of JSON.
    """

    model: str = "pocket"  # a model directory or a Hub id; pocket: the model that ships
    image: Annotated[tuple[Path, ...], UseAppendAction] = ()  # a picture file; repeat it for several pictures
    prompt: str = "Describe the picture."
    generations: int | None = None  # how many answers; None: 5, or 1 where the most likely is asked for
    temperature: float | None = None  # 0: the most likely token; None: 0.5, or 0 where there is one answer
    top_k: int | None = None  # draw from the k most likely tokens
    top_p: float | None = None  # draw from the fewest tokens that together have this probability
    min_p: float | None = None  # draw from tokens that have at least this share of the likeliest one's probability
    repetition_penalty: float = 1.0  # above 1: what the answer has said already becomes less likely
    num_beams: int = 1
    choices: Annotated[tuple[str, ...], UseAppendAction] = ()  # an allowed answer; repeat it for each of them
    stop: Annotated[tuple[str, ...], UseAppendAction] = ()  # the answer ends in front of this text; may be repeated
    max_new_tokens: int = 64
    draft_blocks: int | None = None  # speculative decoding: so many blocks of the decoder guess, the whole of it checks
    seed: int | None = None  # the same draw every time, whatever the batch size
    stream: bool = False  # write the answer as it comes
    batch: str | None = None  # a folder of pictures, or a pattern such as "photos/*.jpg"
    batch_size: int = 32  # pictures of --batch that are answered together
    out: Path | None = None  # where --batch writes (.jsonl); None: here

    def __post_init__(self) -> None:
        if self.batch is not None and (self.image or self.stream):
            raise ValueError("--batch asks about each picture on its own: leave --image and --stream out.")
        if self.batch is not None and not self.batch.strip():
            raise ValueError("--batch is empty: name a folder of pictures, or a pattern.")
        if self.out is not None and self.batch is None:
            raise ValueError("--out is for the answers of --batch.")
        if self.stream and (self.generations or 1) > 1:
            raise ValueError("--stream writes one answer as it comes: leave --generations out, or --stream.")
        drafted = self.draft_blocks is not None
        if drafted and (self.stream or self.batch is not None or self.num_beams > 1 or self.choices or self.stop):
            raise ValueError(
                "--draft-blocks writes one answer: leave --stream, --batch, --num-beams, --choices, --stop."
            )
        if drafted and (self.top_k or self.top_p or self.min_p or self.repetition_penalty != 1):
            raise ValueError("--draft-blocks draws at a temperature and nothing else: leave the filters out.")
        if drafted and (self.generations or 1) > 1:
            raise ValueError("--draft-blocks writes one answer: leave --generations out.")
        most_likely = drafted or self.stream or self.num_beams > 1 or self.temperature == 0 or self.batch is not None
        if self.generations is None:
            self.generations = 1 if most_likely else 5
        if self.temperature is None:
            self.temperature = 0.0 if self.generations == 1 else 0.5

    def sampling(self) -> dict[str, Any]:
        """What both forms hand to the decode loop."""
        return {
            "num_generations": self.generations,
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "choices": self.choices,
            "stop": self.stop,
            "num_beams": self.num_beams,
            "max_new_tokens": self.max_new_tokens,
            "seed": self.seed,
        }


def main(arguments: Sequence[str]) -> None:
    options = parse(GenerateOptions, "generate", arguments)
    if options.batch is None:
        ask(options)
    else:
        ask_each(options)


def ask(options: GenerateOptions) -> None:
    from nanovlm.assets import asset_path
    from nanovlm.commands.models import load_model
    from nanovlm.data.images import open_image

    images = options.image or (asset_path(SAMPLE_IMAGE),)
    for image in images:  # a wrong name is told before a model is loaded
        open_image(image)
    model = load_model(options.model)
    asked = f"picture  {', '.join(map(str, images))}\nprompt   {options.prompt}\n"
    ask_model = partial(model.generate, prompt=options.prompt, image=list(images), **options.sampling())
    if options.stream:
        print(asked)
        ask_model(on_text=write)
        print()
        return
    answers = ask_model() if options.draft_blocks is None else speculate(model, options, images)
    print(asked)
    if isinstance(answers, str):
        print(answers)
        return
    for answer, times in Counter(answers).most_common():
        print(f"{times} of {len(answers)} samples: {answer}")


def speculate(model: VisionLanguageModel, options: GenerateOptions, images: Sequence[Path]) -> str:
    """One answer; how many passes of the whole decoder it took goes to standard error."""
    from nanovlm.inference.prompts import prepare_prompts
    from nanovlm.inference.speculative import early_exit, generate_speculatively

    batch = prepare_prompts(model, [options.prompt], [list(images)])
    found = generate_speculatively(
        model,
        early_exit(model.decoder, options.draft_blocks or 0),
        batch["input_ids"],
        batch["images"],
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature or 0.0,
        seed=options.seed,
    )
    complain(
        f"{found.tokens.shape[1]} tokens, {found.passes} passes; {found.accepted} of {found.proposed} guesses kept"
    )
    return model.tokenizer.decode(found.tokens[0].tolist()).strip()


def write(piece: str) -> None:
    print(piece, end="", flush=True)


def ask_each(options: GenerateOptions) -> None:
    """One line of JSON a picture on --out; what was skipped, and how many, on standard error."""
    from nanovlm.commands.models import load_model
    from nanovlm.commands.score_report import check_output
    from nanovlm.inference.many_images import find_images, generate_batch, write_answers

    check_output(options.out, ".jsonl")
    paths = find_images(options.batch)
    rows = generate_batch(
        load_model(options.model), paths, options.prompt, batch_size=options.batch_size, **options.sampling()
    )
    rows = ({"image": row.pop("image"), "prompt": options.prompt, **row} for row in rows)
    with nullcontext(sys.stdout) if options.out is None else options.out.open("w", encoding="utf-8") as out:
        counts = write_answers(rows, out, report=complain)
    complain(f"{counts.answered:,} answered, {counts.skipped:,} skipped")


def complain(sentence: str) -> None:
    print(f"nanovlm: {sentence}", file=sys.stderr)
