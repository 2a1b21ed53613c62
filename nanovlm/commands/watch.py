"""`nanovlm watch`: one question, asked again and again about a camera, a video or a folder that fills up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from nanovlm.commands.options import parse

if TYPE_CHECKING:
    from nanovlm.inference.frames import Frame
    from nanovlm.inference.watching import Watched

PERCENTS = (50, 95)
NAMED = 10  # of the files that are no pictures; the others are counted


@dataclass
class WatchOptions:
    """Answer one question about a camera, a video or a folder, again and again.

    The answer is about the newest frame; frames that come while the model is busy are dropped. The latency is the time
    from a frame to its answer. It ends with the video, after --count answers, or with Ctrl-C.
    """

    source: str  # camera (a second one: camera:1), a video file, or a folder that is watched for new pictures
    every: str = "1s"  # how often a frame is looked at; also 0.5s or 200ms
    prompt: str = "Describe the picture."
    model: str = "pocket"  # a model directory or a Hub id; pocket: the model that ships
    max_new_tokens: int = 64
    count: int | None = None  # end after so many answers
    once: bool = False  # show the files of a folder one by one, the oldest first, and end

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 1:
            raise ValueError(f"--count must be at least 1; it is {self.count}.")
        if self.max_new_tokens < 1:
            raise ValueError(f"--max-new-tokens must be at least 1; it is {self.max_new_tokens}.")


def main(arguments: Sequence[str]) -> None:
    options = parse(WatchOptions, "watch", arguments)
    from nanovlm.inference.frames import open_source

    source = open_source(options.source, read_seconds(options.every), options.once)  # before a model is loaded
    try:
        from nanovlm.commands.models import load_model
        from nanovlm.device import peak_memory
        from nanovlm.inference.prompts import prepare_prompt
        from nanovlm.inference.watching import watch

        model = load_model(options.model)
        print(f"Watching {options.source}. Ctrl-C ends it.", flush=True)
        prepare_prompt(model, options.prompt, None)  # a bad prompt is told before the first frame
        answer = partial(model.generate, prompt=options.prompt, max_new_tokens=options.max_new_tokens, temperature=0.0)
        watched = watch(source, lambda image: answer(image=image), show, options.count)
    finally:
        source.close()
    print("\n".join(table(watched, peak_memory(model.decoder.token_embedding.weight.device))))


def read_seconds(text: str) -> float:
    """ "1s", "0.5" and "500ms" -> seconds. Raises: ValueError."""
    number, unit = text.strip(), 1.0
    if number.endswith("ms"):
        number, unit = number[:-2], 0.001
    try:
        return float(number.removesuffix("s")) * unit
    except ValueError:
        raise ValueError(f"--every is a time such as 1s, 0.5s or 200ms, not {text!r}.") from None


def show(frame: Frame, text: str, latency: float) -> None:
    print(f"{frame.name}  {latency:.2f} s  {text}", flush=True)


def table(watched: Watched, memory: float) -> list[str]:
    """memory: bytes; NaN where it is not known."""
    from nanovlm.inference.watching import latency_percentiles

    rows = {"frames seen": f"{watched.seen:,}", "answered": f"{len(watched.latencies):,}"}
    rows["dropped"] = f"{watched.dropped:,}"
    if watched.latencies:
        *percentiles, slowest = latency_percentiles(watched.latencies, (*PERCENTS, 100))
        rows |= {f"latency p{p}": f"{value:.2f} s" for p, value in zip(PERCENTS, percentiles, strict=True)}
        rows["latency max"] = f"{slowest:.2f} s"
    rows["peak memory"] = f"{memory / 1e6:,.0f} MB" if memory == memory else "unknown on this system"
    if watched.no_images:
        rows["unreadable"] = f"{len(watched.no_images):,}"
    sentences = list(watched.no_images.values())
    if len(sentences) > NAMED:
        sentences = [*sentences[:NAMED], f"and {len(sentences) - NAMED:,} more."]
    return ["", *(f"{name:<13}{value:>10}" for name, value in rows.items()), *sentences]
