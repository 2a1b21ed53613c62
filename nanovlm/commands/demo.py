"""`nanovlm demo`: a page in the browser that asks a model about a picture, and asks the same question blind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanovlm.commands.options import parse

if TYPE_CHECKING:
    from PIL import Image

    from nanovlm.commands.demo_attention import Look
    from nanovlm.models.vision_language_model import VisionLanguageModel

SAMPLES = {
    "images/shapes.png": "How many shapes are there?",
    "images/charts.png": "Describe the picture.",
    "images/glyphs.png": "What does the sign say?",
}
MOST_CHARACTERS = 2_000  # of a question


@dataclass
class DemoOptions:
    """Ask a model about pictures on a page in the browser.

    Each question is asked twice: about your picture, and blind, about another one. An answer that stays the same was
    perhaps read off the question alone. Only this machine reaches the page, unless --host says otherwise.
    """

    model: str = "pocket"  # a model directory or a Hub id; pocket: the model that ships
    host: str = "127.0.0.1"  # 0.0.0.0: everybody in your network can ask
    port: int = 7860  # 0: any that is free
    max_new_tokens: int = 64
    max_waiting: int = 16  # questions that wait at most, while one is answered
    browser: bool = True  # open the page

    def __post_init__(self) -> None:
        if not 0 <= self.port < 2**16:
            raise ValueError(f"--port is a number from 0 to 65535, not {self.port}.")
        if self.max_new_tokens < 1 or self.max_waiting < 1:
            raise ValueError("--max-new-tokens and --max-waiting must be at least 1.")


@dataclass(frozen=True)
class Answers:
    """What the page shows at one moment. `problem` is a sentence; the rest is empty then."""

    seeing: str = ""
    blind: str = ""
    other: Image.Image | None = None  # what the blind answer was given about
    looks: tuple[Look, ...] = ()  # where the model looked for each word of the seeing answer; with the last item alone
    problem: str = ""


def main(arguments: Sequence[str]) -> None:
    options = parse(DemoOptions, "demo", arguments)
    from nanovlm.commands.demo_page import build_page, free_port, import_gradio, serve
    from nanovlm.commands.models import load_model

    import_gradio()  # where it is missing, that is said before a model loads
    port = options.port or free_port(options.host)
    page = build_page(load_model(options.model), options.model, options.max_new_tokens, options.max_waiting)
    serve(page, options.host, port, open_browser=options.browser)
    print(f"The page is at http://{options.host}:{port}/ until you press Ctrl-C.", flush=True)
    try:
        page.block_thread()
    finally:
        page.close()


def answers(model: VisionLanguageModel, file: Any, question: str, max_new_tokens: int) -> Iterator[Answers]:
    """Both answers as they are written, the seeing one first. `file`: a path, or None where no picture was chosen.
    What the visitor can mend comes as the only, or last, item's `problem`."""
    from nanovlm.commands.demo_attention import word_looks
    from nanovlm.inference.streaming import pieces

    try:
        image = read_picture(file)
        check_question(question)
        seeing, other, blind = "", other_picture(image), ""
        for piece in pieces(model.generate, image=image, prompt=question, max_new_tokens=max_new_tokens):
            seeing += piece
            yield Answers(seeing)
        yield Answers(seeing, other=other)
        for piece in pieces(model.generate, image=other, prompt=question, max_new_tokens=max_new_tokens):
            blind += piece
            yield Answers(seeing, blind, other)
        yield Answers(seeing, blind, other, tuple(word_looks(model, image, question, seeing)))
    except (ValueError, OSError) as error:
        yield Answers(problem=str(error))


def read_picture(file: Any) -> Image.Image:
    """Raises: ValueError, with a sentence that does not say where this machine keeps its files."""
    from nanovlm.data.images import open_image

    if file is None:
        raise ValueError("There is no picture: upload one, take one with the camera, or click on a sample.")
    return open_image(Path(file).read_bytes())


def check_question(question: str) -> None:
    if not question.strip():
        raise ValueError("There is no question: write one, for example “Describe the picture.”")
    if len(question) > MOST_CHARACTERS:
        raise ValueError(
            f"The question has {len(question):,} characters, and this page takes {MOST_CHARACTERS:,}: shorten it."
        )


def other_picture(image: Image.Image) -> Image.Image:
    """The first sample that is not this picture: the blind baseline, for a single question."""
    from nanovlm.assets import asset_path
    from nanovlm.data.images import open_image

    samples = (open_image(asset_path(name)) for name in SAMPLES)
    return next(sample for sample in samples if sample.size != image.size or sample.tobytes() != image.tobytes())
