"""JupyterLab in a real browser: chapters run from top to bottom, a lever moves its picture, an answer typed in passes.

NANOVLM_SCREENSHOTS=folder keeps pictures of the chapters, at 1280 and at 800 pixels of width.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.course.learners import ROOT

if TYPE_CHECKING:
    from playwright.sync_api import Page

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium or Chrome here: apt install chromium")

PATIENCE = 240_000  # milliseconds; the machine may be busy
SETTINGS = {
    # Every cell in the page, also those that are out of sight.
    "notebook-extension/tracker": {"windowingMode": "none"},
    # No question whether news may be fetched.
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
RUN_ALL = "() => jupyterapp.commands.execute('notebook:run-all-cells')"
# Cells in the order of the notebook: source, whether it ran, its error if it has one.
CELLS = """() => jupyterapp.shell.currentWidget.content.widgets
    .filter(cell => cell.model.type === 'code')
    .map(cell => ({
        source: cell.model.sharedModel.getSource(),
        count: cell.model.executionCount,
        error: cell.model.outputs.toJSON().filter(output => output.output_type === 'error').map(o => o.evalue)[0],
        tags: cell.model.getMetadata('tags') || [],
    }))"""
# Pictures that reach beyond the right edge of their output.
CUT_OFF = """() => [...document.querySelectorAll('.jp-OutputArea-output svg, .jp-OutputArea-output img')]
    .filter(x => x.getBoundingClientRect().right > x.closest('.jp-OutputArea-output').getBoundingClientRect().right + 1)
    .map(x => x.getAttribute('aria-label') || x.outerHTML.slice(0, 100))"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a JupyterLab of its own, over a copy of the notebooks."""
    folder = tmp_path_factory.mktemp("lab")
    for name in ("chapters", "exercises"):
        shutil.copytree(ROOT / name, folder / "work" / name)
    for name, values in SETTINGS.items():
        path = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values), encoding="utf-8")
    token = secrets.token_hex(16)
    places = {"CONFIG": "config", "RUNTIME": "runtime", "DATA": "data"}
    environment = {
        **os.environ,
        **{f"JUPYTER_{key}_DIR": str(folder / value) for key, value in places.items()},
        "NANOVLM_HOME": str(folder / "home"),
        "NANOVLM_BUDGET": "ci",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--port=0"]
    command += [
        "--expose-app-in-browser",
        f"--ServerApp.root_dir={folder / 'work'}",
        f"--IdentityProvider.token={token}",
        f"--LabApp.user_settings_dir={folder / 'settings'}",
        f"--LabApp.workspaces_dir={folder / 'workspaces'}",
    ]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            yield f"{address(server, folder)}lab/tree/{{}}?token={token}&reset"
        finally:
            server.terminate()
            server.wait(timeout=60)


def address(server: subprocess.Popen, folder: Path) -> str:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and server.poll() is None:
        for path in (folder / "runtime").glob("jpserver-*.json"):
            try:
                return json.loads(path.read_text())["url"]
            except json.JSONDecodeError:
                pass  # half written
        time.sleep(0.2)
    raise RuntimeError(f"JupyterLab did not start:\n{(folder / 'log').read_text()}")


@pytest.fixture(scope="module")
def page(lab: str) -> Iterator[Page]:
    from playwright.sync_api import sync_playwright

    quiet = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-sync"]
    as_root = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*quiet, *as_root])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(PATIENCE)
        yield page
        browser.close()


def open_notebook(page: Page, lab: str, name: str) -> None:
    page.goto(lab.format(name))
    page.wait_for_selector(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Notebook .jp-CodeCell")
    page.wait_for_function("() => jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'")
    page.evaluate("() => jupyterapp.shell.collapseLeft()")


def run_all(page: Page) -> list[dict[str, Any]]:
    page.evaluate(RUN_ALL)
    return page.evaluate(CELLS)


def keep_screenshots(page: Page, name: str) -> None:
    """The whole notebook, at the width of a screen and at half of one."""
    notebook = "document.querySelector('.jp-NotebookPanel:not(.lm-mod-hidden) .jp-WindowedPanel-outer')"
    if folder := os.environ.get("NANOVLM_SCREENSHOTS"):
        for width in (1280, 800):
            page.set_viewport_size({"width": width, "height": 900})
            height = page.evaluate(f"() => {notebook}.scrollHeight")
            page.set_viewport_size({"width": width, "height": min(height + 150, 16_000)})
            page.evaluate(f"() => {{ {notebook}.scrollTop = 0 }}")
            page.wait_for_timeout(1500)
            page.screenshot(path=Path(folder) / f"{name}-{width}.png")
        page.set_viewport_size({"width": 1280, "height": 900})


@pytest.mark.parametrize("number", ["00", "03"])
def test_a_chapter_runs_from_top_to_bottom(page: Page, lab: str, number: str) -> None:
    (notebook,) = (ROOT / "chapters").glob(f"{number}_*.ipynb")
    open_notebook(page, lab, f"chapters/{notebook.name}")
    cells = run_all(page)
    assert len(cells) > 10
    for cell in cells:
        assert cell["error"] is None or "raises-exception" in cell["tags"], cell
        assert cell["count"] is not None or "skip-execution" in cell["tags"], f"this cell never ran: {cell['source']}"
    page.set_viewport_size({"width": 800, "height": 900})
    page.wait_for_timeout(500)
    assert page.evaluate(CUT_OFF) == []
    keep_screenshots(page, notebook.stem)


def test_a_lever_moves_its_picture(page: Page, lab: str) -> None:
    open_notebook(page, lab, "chapters/03_pixel_shuffle_and_projector.ipynb")
    run_all(page)
    box = page.locator(".jp-OutputArea-output .widget-vbox").filter(has=page.locator(".widget-html-content")).first
    picture = box.locator(".widget-html-content")
    before = picture.inner_html()
    assert "<svg" in before
    other = box.locator(".widget-toggle-button:not(.mod-active)").first
    other.scroll_into_view_if_needed()
    other.click()
    page.wait_for_function(
        "([element, before]) => element.innerHTML !== before", arg=[picture.element_handle(), before]
    )
    assert "<svg" in picture.inner_html()
    assert "mod-active" in (other.get_attribute("class") or "") or box.locator(".mod-active").count() == 1


def test_a_click_on_a_patch_shows_where_it_looks(page: Page, lab: str) -> None:
    open_notebook(page, lab, "chapters/02_vision_transformer.ipynb")
    run_all(page)
    box = page.locator(".jp-OutputArea-output .widget-vbox").filter(has=page.locator(".widget-gridbox")).first
    picture = box.locator(".widget-html-content")
    assert "Patch 17 looks" in picture.inner_text()
    patch = box.locator(".widget-gridbox button").nth(10)
    patch.scroll_into_view_if_needed()
    patch.click()
    picture.get_by_text("Patch 10 looks:").wait_for()


def test_an_answer_typed_into_an_exercise_passes(page: Page, lab: str) -> None:
    exercise = "pixel_shuffle.shuffle"
    open_notebook(page, lab, "exercises/03_pixel_shuffle_and_projector.ipynb")
    cells = run_all(page)
    starter = next(i for i, cell in enumerate(cells) if f'NotImplementedError("{exercise}")' in cell["source"])
    checked = next(i for i, cell in enumerate(cells) if f'check("{exercise}"' in cell["source"])
    boxes = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-CodeCell")
    assert "not written yet" in boxes.nth(checked).inner_text().lower()

    editor = boxes.nth(starter).locator(".cm-content")
    editor.scroll_into_view_if_needed()
    editor.click()
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.insert_text(solution(exercise))
    page.keyboard.press("Control+Enter")
    boxes.nth(checked).locator(".cm-content").click()
    page.keyboard.press("Control+Enter")
    output = boxes.nth(checked).locator(".jp-OutputArea")
    output.get_by_text(re.compile("passed|right|correct", re.IGNORECASE)).first.wait_for()
    assert "not written yet" not in output.inner_text().lower()
    keep_screenshots(page, "exercise-03")


def solution(exercise: str) -> str:
    """The solved cell of an exercise, markers left out."""
    text = next((ROOT / "solutions").glob("03_*.py")).read_text(encoding="utf-8")
    before = text[: text.index(f'check("{exercise}"')]
    cells = re.split(r"^# %%.*\n", before, flags=re.MULTILINE)
    cell = next(cell for cell in reversed(cells) if "# SOLUTION" in cell)
    return "\n".join(line for line in cell.strip().splitlines() if "# SOLUTION" not in line and "# END" not in line)
