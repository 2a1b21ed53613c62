"""Ask a model about a picture: choose or upload one, type a question, and the answer streams. See levers.py: the widget
only moves the state, and the card is an output of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanovlm.course.levers import Lever, told
from nanovlm.viz.start_here import answer_card
from nanovlm.viz.style import Figure

if TYPE_CHECKING:
    from nanovlm.models.vision_language_model import VisionLanguageModel

# What ships, by the names that the widget shows.
IMAGES = {
    "shapes 1": "images/shapes.png",
    "shapes 2": "images/shapes_2.png",
    "shapes 3": "images/shapes_3.png",
    "chart": "images/charts.png",
    "sign": "images/glyphs.png",
}
# One of most kinds that the Thimble asks, and what its `captions` ask for.
QUESTIONS = (
    "Where is the red star?",
    "What colour is the square?",
    "Which shape is orange?",
    "How many shapes are there?",
    "Is there a triangle?",
    "Are there more squares than hearts?",
    "Which bar is the tallest?",
    "How tall is the blue bar?",
    "Is the orange bar taller than the blue bar?",
    "What does the sign say?",
    "What is the first character?",
    "Describe the picture.",
)
YOURS = "your own"
EXAMPLES = "examples …"  # what the menu of questions shows


class Ask(Lever):
    """`render(image, question)` asks the model and returns the card; a picture is a name, or anything that opens."""

    def __init__(
        self, model: VisionLanguageModel, images: Mapping[str, Any], questions: Sequence[str], max_new_tokens: int
    ) -> None:
        if not images or not questions:
            raise ValueError("ask needs at least one picture and one question to begin with.")
        self.model, self.images, self.questions = model, dict(images), tuple(questions)
        self.max_new_tokens = max_new_tokens
        super().__init__(self.ask, {"image": list(self.images), "question": self.questions[0]}, {})

    def ask(self, image: Any, question: str, on_card: Callable[[Figure], Any] | None = None) -> Figure:
        """The card of the whole answer. `on_card` gets each unfinished one on the way, as the answer grows.

        Raises: FileNotFoundError, ValueError or TypeError, with one sentence, for what cannot be asked.
        """
        from nanovlm.data.images import open_image

        source = self.images.get(image, image) if isinstance(image, str) else image
        opened, size = open_image(source), self.model.config.vision.image_size
        written = ""

        def more(piece: str) -> None:
            nonlocal written
            written += piece
            on_card(answer_card(opened, question, written, size, writing=True))  # type: ignore[misc]

        stream = {} if on_card is None else {"on_text": more}
        answer = self.model.generate(
            image=opened, prompt=question, max_new_tokens=self.max_new_tokens, temperature=0, **stream
        )
        return answer_card(opened, question, str(answer), size)

    def controls(self, update: Callable[[Figure], Any]) -> Any:
        """Picture and upload, question and examples, a button. `update` gets the card, again and again as it grows."""
        import ipywidgets

        from nanovlm.data.images import open_image

        choice = ipywidgets.ToggleButtons(options=list(self.images), style={"button_width": "auto"})
        upload = ipywidgets.FileUpload(accept="image/*", multiple=False, description=YOURS)
        # Not continuous: the question is complete when Enter is pressed or the field is left.
        question = ipywidgets.Text(
            value=self.questions[0],
            placeholder="your question",
            continuous_update=False,
            layout=ipywidgets.Layout(width="340px", max_width="100%"),
        )
        examples = ipywidgets.Dropdown(
            options=[EXAMPLES, *self.questions], layout=ipywidgets.Layout(width="220px", max_width="100%")
        )
        button = ipywidgets.Button(
            description="Ask", button_style="primary", layout=ipywidgets.Layout(width="100px", flex="0 0 auto")
        )
        own: dict[str, bytes] = {}
        last = dict(self.defaults)

        def answer() -> None:
            state = {"image": own.get("image", choice.value), "question": question.value}
            if state == last:  # leaving the field has asked already
                return
            last.update(state)
            try:
                update(self.ask(**state, on_card=update))
            except Exception as error:  # told in the card's place; in a callback it would be lost
                update(told(str(error) or type(error).__name__))

        def chosen(change: Any) -> None:
            if change["new"] is not None:
                own.clear()
                answer()

        def uploaded(change: Any) -> None:
            content = uploaded_bytes(change["new"])
            if content is None:
                return
            upload.set_trait("value", type(upload.value)())  # so that the same file can be chosen again
            try:
                open_image(content)
            except Exception as error:  # the picture of before stays the one that is asked about
                last.clear()
                update(told(str(error) or type(error).__name__))
                return
            own["image"] = content
            choice.value = None  # so that each of the others can be chosen again
            answer()

        def example(change: Any) -> None:
            if change["new"] in self.questions:
                question.value = change["new"]
                examples.value = EXAMPLES  # so that the same one can be chosen again

        choice.observe(chosen, names="value")
        upload.observe(uploaded, names="value")
        question.observe(lambda change: answer(), names="value")
        examples.observe(example, names="value")
        button.on_click(lambda _: answer())
        rows = ([choice, upload], [question, examples, button])
        wrap = ipywidgets.Layout(flex_flow="row wrap")
        return ipywidgets.VBox([ipywidgets.HBox(row, layout=wrap) for row in rows])


def ask(
    model: VisionLanguageModel,
    images: Mapping[str, Any] | None = None,
    questions: Sequence[str] = QUESTIONS,
    max_new_tokens: int = 40,
) -> Ask:
    """Show this as the last expression of a cell.

    Args:
        model: with its tokenizer and image processor, as from_pretrained gives it.
        pictures: name -> anything that `open_image` takes; None: the ones that ship. The first one, with the first of
            `questions`, is the default that a page without a kernel shows.
    """
    if images is None:
        images = {name: _shipped(path) for name, path in IMAGES.items()}
    return Ask(model, images, questions, max_new_tokens)


def uploaded_bytes(value: Any) -> bytes | None:
    """The file in a FileUpload's value: a dict by file name in ipywidgets 7, a tuple of dicts in 8."""
    files = list(value.values()) if isinstance(value, dict) else list(value)
    return bytes(files[-1]["content"]) if files else None


def _shipped(path: str) -> Path:
    from nanovlm.assets import asset_path

    return asset_path(path)
