"""`nanovlm demo`: what is behind the page, the page through gradio_client, and the page in a browser.

NANOVLM_SCREENSHOTS=folder keeps pictures of the page, light and dark, at 1280 and at 420 pixels of width.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from nanovlm import VisionLanguageModel, cli
from nanovlm.assets import asset_path
from nanovlm.commands.demo import Answers, DemoOptions, answers, other_picture
from nanovlm.data.images import open_image
from nanovlm.inference.streaming import pieces
from tests.course.test_browser import CHROMIUM, PATIENCE
from tests.waiting import wait_for_answer

PICTURE = asset_path("images/shapes.png")
QUESTION = "How many shapes are there?"


@pytest.fixture(scope="module")
def pocket() -> VisionLanguageModel:
    return VisionLanguageModel.from_pretrained(asset_path("pocket")).eval()


@pytest.fixture(scope="module")
def address(pocket: VisionLanguageModel) -> Iterator[str]:
    pytest.importorskip("gradio", reason="gradio is not installed: pip install 'nanovlm[demo]'")
    from nanovlm.commands.demo_page import build_page, free_port, serve

    page, port = build_page(pocket, "pocket", max_new_tokens=16, max_waiting=4), free_port("127.0.0.1")
    with pytest.MonkeyPatch.context() as patch:
        # Gradio gives its server five seconds to start and three to answer. Here it has the time that it needs.
        patient = SimpleNamespace(time=lambda: time.monotonic() / 60, sleep=time.sleep)
        patch.setattr("gradio.http_server.time", patient)
        patch.setattr("gradio.networking.url_ok", lambda url: wait_for_answer(url, lambda: True) is None)
        serve(page, "127.0.0.1", port)
    yield f"http://127.0.0.1:{port}/"
    page.close()


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bad")
    large, text = folder / "large.png", folder / "text.png"
    Image.new("1", (10_000, 10_000)).save(large)
    text.write_text("Not a picture.")
    return {"large": large, "text": text}


def test_the_answer_grows_and_the_blind_one_follows(pocket: VisionLanguageModel) -> None:
    shown = list(answers(pocket, PICTURE, QUESTION, 16))
    last = shown[-1]
    assert last.problem == "" and last.other is not None
    assert " ".join(look.word for look in last.looks) == last.seeing and all(0 < look.share < 1 for look in last.looks)
    assert last.seeing == pocket.generate(image=PICTURE, prompt=QUESTION, max_new_tokens=16)
    assert last.blind == pocket.generate(image=other_picture(open_image(PICTURE)), prompt=QUESTION, max_new_tokens=16)
    for before, after in pairwise(shown):
        assert after.seeing.startswith(before.seeing) and after.blind.startswith(before.blind)


def test_the_blind_answer_is_never_about_the_same_picture() -> None:
    shown = open_image(PICTURE)
    assert other_picture(shown).tobytes() != shown.tobytes()
    assert other_picture(other_picture(shown)).tobytes() == shown.tobytes()


@pytest.mark.parametrize(
    ("file", "question", "said"),
    [
        ("large", QUESTION, "too large|pixels"),
        ("text", QUESTION, "not a picture"),
        (None, QUESTION, "no picture"),
        (PICTURE, "why " * 25_000, "100,000 characters"),
        (PICTURE, "why " * 400, "positions|tokens"),
        (PICTURE, "  ", "no question"),
    ],
)
def test_what_a_visitor_can_mend_is_one_sentence(
    pocket: VisionLanguageModel, bad_files: dict[str, Path], file: str | Path | None, question: str, said: str
) -> None:
    (only,) = answers(pocket, bad_files.get(file, file), question, 16)
    assert only == Answers(problem=only.problem)
    assert re.search(said, only.problem) and "\n" not in only.problem
    assert str(bad_files["text"].parent) not in only.problem


def test_pieces_raise_what_the_writer_raises_and_stop_it_when_nobody_reads() -> None:
    def fails(on_text) -> None:
        on_text("one")
        raise ValueError("two")

    read = pieces(fails)
    assert next(read) == "one"
    with pytest.raises(ValueError, match="two"):
        next(read)

    closed, ended = threading.Event(), threading.Event()

    def writes(on_text) -> None:
        on_text("one")
        closed.wait(60)
        try:
            on_text("two")
        except InterruptedError:
            ended.set()
            raise

    read = pieces(writes)
    next(read)
    read.close()
    closed.set()
    assert ended.wait(60)


def test_only_this_machine_reaches_the_page_unless_told() -> None:
    assert DemoOptions().host == "127.0.0.1"
    with pytest.raises(ValueError, match="--port"):
        DemoOptions(port=70_000)


def test_without_gradio_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "nanovlm.commands.demo_page", raising=False)
    assert cli.main(["demo"]) == 2
    assert 'pip install "nanovlm[demo]"' in capsys.readouterr().err


def test_a_program_asks_and_gets_both_answers_or_a_sentence(address: str, bad_files: dict[str, Path]) -> None:
    from gradio_client import Client, handle_file

    client = Client(address, verbose=False, analytics_enabled=False)
    seeing, blind, other, *_ = client.predict(handle_file(PICTURE), QUESTION, api_name="/ask")
    assert seeing and blind and other
    _, _, _, problem, *_ = client.predict(handle_file(bad_files["large"]), QUESTION, api_name="/ask")
    assert "pixels" in str(problem) or "large" in str(problem)


@pytest.mark.long
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium or Chrome here: apt install chromium")
def test_in_a_browser(address: str, bad_files: dict[str, Path]) -> None:
    sync_playwright = pytest.importorskip("playwright.sync_api").sync_playwright
    from playwright.sync_api import expect

    as_root = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--disable-gpu", *as_root])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(PATIENCE)
        expect.set_options(timeout=PATIENCE)
        asked_for: list[str] = []
        page.on("request", lambda request: asked_for.append(request.url))
        page.goto(address)
        question, problem = page.locator("#question textarea"), page.locator("#problem")
        upload = page.locator("#picture input[type=file]").first

        question.fill("why " * 25_000)
        upload.set_input_files(PICTURE)
        page.locator("#picture img").first.wait_for()
        page.locator("#ask").click()
        expect(problem).to_contain_text("100,000 characters")

        question.fill(QUESTION)
        page.locator("#ask").click()
        expect(page.locator("#seeing textarea")).not_to_have_value("")
        expect(page.locator("#blind textarea")).not_to_have_value("")
        expect(problem).not_to_be_visible()
        words, look = page.locator("#word label:has(input)"), page.locator("#look img")
        expect(words).to_have_count(1)  # the last that comes; a click before it would not be heard

        page.get_by_text("What does the sign say?").click()
        expect(question).to_have_value("What does the sign say?")
        page.locator("#ask").click()
        expect(page.locator("#seeing textarea")).to_have_value(re.compile("J4"))
        expect(page.locator("#blind textarea")).not_to_have_value("")
        expect(words).to_have_text(re.compile("J4"))

        question.fill("Describe the picture.")
        page.locator("#ask").click()
        expect(words.nth(1)).to_be_visible()
        before = look.get_attribute("src")
        words.last.click()
        expect(look).not_to_have_attribute("src", before)

        if folder := os.environ.get("NANOVLM_SCREENSHOTS"):
            for theme in ("light", "dark"):
                page.emulate_media(color_scheme=theme)
                page.evaluate("dark => document.body.classList.toggle('dark', dark)", theme == "dark")
                for width in (1280, 420):
                    page.set_viewport_size({"width": width, "height": 900})
                    page.wait_for_timeout(500)
                    page.screenshot(path=Path(folder) / f"demo-{theme}-{width}.png", full_page=True)

        page.reload()
        upload.set_input_files(bad_files["text"])
        page.locator("#picture img").first.wait_for(state="attached")
        page.locator("#ask").click()
        expect(problem).to_contain_text("is not a picture")
        elsewhere = [url for url in asked_for if not url.startswith((address, "data:", "blob:"))]
        assert elsewhere == [], "the page works with the network off"
        browser.close()
