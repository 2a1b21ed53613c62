"""The page of `nanovlm demo`, in Gradio. Everything it loads comes from this machine."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

from nanovlm.assets import asset_path
from nanovlm.commands.demo import SAMPLES, answers

if TYPE_CHECKING:
    import gradio as gr

    from nanovlm.commands.demo_attention import Look
    from nanovlm.models.vision_language_model import VisionLanguageModel

LARGEST_FILE = "32mb"
SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
STYLE = "#problem p { color: var(--error-text-color); font-weight: 600 }"


def import_gradio() -> ModuleType:
    """Gradio, with its statistics off, which it asks about when it is imported."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import gradio

    return gradio


def file_as_it_is(component: Any, payload: Any) -> str | None:
    """In place of gr.Image.preprocess, which decodes: a stranger's picture is opened in nanovlm.data.images alone.

    Set on the class: Gradio makes the box anew when a sample fills it, and of a subclass it would look for a front end.
    """
    return payload.path if payload else None


def build_page(model: VisionLanguageModel, name: str, max_new_tokens: int, max_waiting: int) -> gr.Blocks:
    """One question is answered at a time; of those that wait, more than `max_waiting` are turned away."""
    gr = import_gradio()
    gr.Image.preprocess = file_as_it_is

    def ask(file: str | None, question: str) -> Iterator[tuple[Any, ...]]:
        for now in answers(model, file, question, max_new_tokens):
            problem = gr.Markdown(now.problem, visible=bool(now.problem))
            other = gr.Image(now.other, visible=now.other is not None)
            names = [(look.word, i) for i, look in enumerate(now.looks)]
            word = gr.Radio(names, value=0 if names else None, visible=bool(names))
            yield now.seeing, now.blind, other, problem, word, now.looks, look_at(now.looks, 0)

    def look_at(looks: tuple[Look, ...], word: int | None) -> Any:
        if not looks or word is None:
            return gr.Image(None, visible=False)
        return gr.Image(
            looks[word].shaded, label=f"{looks[word].share:.0%} of the word's attention is on the picture", visible=True
        )

    with gr.Blocks(title="nanoVLM", analytics_enabled=False) as page:
        gr.Markdown(f"## Ask about a picture\nYou are asking the model `{name}`.")
        with gr.Row():
            with gr.Column():
                picture = gr.Image(label="Picture", sources=["upload", "webcam"], height=320, elem_id="picture")
                question = gr.Textbox(label="Question", value="Describe the picture.", elem_id="question")
                button = gr.Button("Ask", variant="primary", elem_id="ask")
                problem = gr.Markdown(visible=False, elem_id="problem")
                samples = [[str(asset_path(path)), asked] for path, asked in SAMPLES.items()]
                gr.Examples(samples, [picture, question], label="Samples")
            with gr.Column():
                seeing = gr.Textbox(label="Answer", lines=3, interactive=False, elem_id="seeing")
                blind = gr.Textbox(
                    label="Blind answer",
                    info="The same question about another picture. If both answers agree, the model may have read them "
                    "off the question alone.",
                    lines=3,
                    interactive=False,
                    elem_id="blind",
                )
                other = gr.Image(label="The other picture", interactive=False, visible=False, height=200, buttons=[])
                word = gr.Radio(
                    [],
                    label="Where it looked",
                    info="For each word of the answer: the attention over your picture, averaged over all blocks and "
                    "heads. It is a hint, and no proof: chapter 14 shows how it can mislead.",
                    visible=False,
                    elem_id="word",
                )
                look = gr.Image(interactive=False, visible=False, height=280, buttons=[], elem_id="look")
                looks = gr.State(())
        gr.on(
            [button.click, question.submit],
            ask,
            [picture, question],
            [seeing, blind, other, problem, word, looks, look],
            api_name="ask",
            concurrency_limit=1,
            show_progress="minimal",
        )
        word.input(look_at, [looks, word], look, api_visibility="private", queue=False)
    return page.queue(max_size=max_waiting, default_concurrency_limit=1)


def serve(page: gr.Blocks, host: str, port: int, open_browser: bool = False) -> None:
    """Start the server and return."""
    gr = import_gradio()
    page.launch(
        server_name=host,
        server_port=port,
        inbrowser=open_browser,
        share=False,
        ssr_mode=False,
        quiet=True,
        prevent_thread_lock=True,
        max_file_size=LARGEST_FILE,
        footer_links=[],
        theme=gr.themes.Base(font=SANS, font_mono=MONO).set(block_info_text_color="*neutral_600"),
        css=STYLE,
    )


def free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]
