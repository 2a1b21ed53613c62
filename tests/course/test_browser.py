"""What `make lab` starts, in a real browser: chapters run from top to bottom, a lever moves its picture, which is still
there when the kernel is gone, an answer typed in passes.

NANOVLM_SCREENSHOTS=folder keeps pictures of the pages, light and dark, at 1280 and at 420 pixels of width.
"""

from __future__ import annotations

import contextlib
import html
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.course.learners import ROOT
from tests.waiting import wait_for_answer

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium or Chrome here: apt install chromium")

PATIENCE = 240_000  # milliseconds; the machine may be busy
# Every cell in the page, also those that are out of sight.
SETTINGS = {"notebook-extension/tracker": {"windowingMode": "none"}}
WIDTHS = (1280, 420)
THEMES = ("JupyterLab Light", "JupyterLab Dark")
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
# Make the first cell with a source the active one.
SELECT = """source => {
    const notebook = jupyterapp.shell.currentWidget.content;
    const index = notebook.widgets.findIndex(
        cell => cell.model.type === 'code' && cell.model.sharedModel.getSource().includes(source));
    notebook.activeCellIndex = index;
    notebook.deselectAll();
    return index >= 0;
}"""
# In the notebook that is in front.
HERE = ".jp-NotebookPanel:not(.lm-mod-hidden)"
# Pictures and buttons that reach beyond the right edge of their output.
CUT_OFF = """() => [...document.querySelectorAll('.jp-OutputArea-output :is(svg, img, button)')]
    .filter(x => x.getBoundingClientRect().right > x.closest('.jp-OutputArea-output').getBoundingClientRect().right + 1)
    .map(x => x.getAttribute('aria-label') || x.outerHTML.slice(0, 100))"""


LOST = "model not found"
# The saved controls are shown, or an error in their place, and none is still being loaded: one that is when the kernel
# goes is not found again.
WIDGETS_ARE_READ = f"""() => {{
    const notebook = document.querySelector('{HERE}');
    return (notebook.querySelector('.widget-toggle-button') || notebook.innerText.includes('{LOST}'))
        && !notebook.innerText.includes('Loading widget');
}}"""

# Each text of each drawing: its contrast with what lies under it, and whether it reaches beyond its drawing. Texts on a
# photo are left out: what lies under them has no one colour.
TEXTS = """() => {
    const numbers = colour => (colour.match(/[\\d.]+/g) || []).map(Number);
    const opacity = (colour, style) => (colour.length > 3 ? colour[3] : 1) * style.fillOpacity * style.opacity;
    const over = (below, colour, share) => below.map((v, i) => v * (1 - share) + colour[i] * share);
    const light = colour => colour.slice(0, 3).map(v => v / 255)
        .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    return [...document.querySelectorAll('svg')].flatMap(svg => {
        svg.scrollIntoView();
        const frame = svg.getBoundingClientRect();
        return [...svg.querySelectorAll('text')].filter(text => text.textContent.trim()).flatMap(text => {
            const box = text.getBoundingClientRect(), style = getComputedStyle(text);
            const under = document.elementsFromPoint(box.x + box.width / 2, box.y + box.height / 2)
                .filter(e => e.closest('svg') === svg && /^(rect|circle|path|polygon|ellipse|image)$/.test(e.tagName));
            if (under.some(e => e.tagName === 'image')) return [];
            let ground = numbers(getComputedStyle(document.body).backgroundColor).slice(0, 3);
            for (const style of under.reverse().map(e => getComputedStyle(e)).filter(style => style.fill !== 'none'))
                ground = over(ground, numbers(style.fill), opacity(numbers(style.fill), style));
            const ink = numbers(style.fill);
            const [a, b] = [light(over(ground, ink, opacity(ink, style))), light(ground)].sort((a, b) => b - a);
            return [{
                text: text.textContent, chapter: svg.dataset.chapter, contrast: (a + 0.05) / (b + 0.05),
                cut: box.right > frame.right + 1 || box.left < frame.left - 1,
            }];
        });
    });
}"""
READABLE = 4.5


def what_make_lab_starts() -> list[str]:
    """The arguments behind `jupyter lab` in the Makefile."""
    (words,) = re.findall(r"^\t\$\(BIN\)/jupyter lab (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return words.split()


class Lab:
    """A JupyterLab of its own, over a copy of the repository's notebooks."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.work, self.token = folder, folder / "work", secrets.token_hex(16)
        for name in ("chapters", "exercises", "solutions", ".jupyter"):
            shutil.copytree(ROOT / name, self.work / name, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
        for name, values in SETTINGS.items():
            path = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(values), encoding="utf-8")
        self.environment = {
            **os.environ,
            **{f"JUPYTER_{kind}_DIR": str(folder / kind.lower()) for kind in ("CONFIG", "RUNTIME", "DATA")},
            "NANOVLM_HOME": str(folder / "home"),
            "NANOVLM_BUDGET": "ci",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        }
        self.server: subprocess.Popen | None = None

    def start(self) -> None:
        notebooks = [str(path) for path in self.work.rglob("*.ipynb")]
        trust = [sys.executable, "-m", "nbformat.sign", *notebooks]  # as the Makefile does
        subprocess.run(trust, env=self.environment, check=True, stdout=subprocess.DEVNULL)
        command = [sys.executable, "-m", "jupyterlab", *what_make_lab_starts()]
        command += ["--no-browser", "--port=0", "--expose-app-in-browser", f"--IdentityProvider.token={self.token}"]
        command += [f"--LabApp.user_settings_dir={self.folder / 'settings'}"]
        command += [f"--LabApp.workspaces_dir={self.folder / 'workspaces'}"]
        with (self.folder / "log").open("w") as log:
            self.server = subprocess.Popen(
                command, cwd=self.work, env=self.environment, stdout=log, stderr=subprocess.STDOUT
            )

    def found(self, pattern: str, read: Callable[[str], str]) -> str:
        """What `read` makes of a file that the server writes when it starts."""
        while self.lives():
            for path in (self.folder / "runtime").glob(pattern):
                with contextlib.suppress(ValueError, AttributeError):  # half written
                    return read(path.read_text())
            time.sleep(0.2)
        raise RuntimeError(f"JupyterLab did not start:\n{(self.folder / 'log').read_text()}")

    def lives(self) -> bool:
        return self.server is not None and self.server.poll() is None

    def address(self) -> str:
        """Of a server that answers: it writes its address into a file before it listens there."""
        root = self.found("jpserver-*.json", lambda text: json.loads(text)["url"])
        wait_for_answer(f"{root}api", self.lives)
        return root

    def first_page(self) -> str:
        """What a person's browser is sent to."""
        self.address()
        return html.unescape(
            self.found("jpserver-file-to-run-*-open.html", lambda text: re.search(r'href="([^"]+)"', text)[1])
        )

    def notebook(self, name: str) -> str:
        return f"{self.address()}lab/tree/{name}?token={self.token}&reset"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    made = Lab(tmp_path_factory.mktemp("lab"))
    made.start()
    try:
        yield made
    finally:
        made.server.terminate()
        made.server.wait()


@pytest.fixture(scope="module")
def page(lab: Lab) -> Iterator[Page]:
    from playwright.sync_api import sync_playwright

    quiet = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-sync"]
    as_root = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*quiet, *as_root])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(PATIENCE)
        yield page
        browser.close()


def wait_for_notebook(page: Page) -> None:
    page.wait_for_selector(f"{HERE} .jp-Notebook .jp-CodeCell")
    page.wait_for_function("() => jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'")


def open_notebook(page: Page, lab: Lab, name: str, anew: bool = False) -> None:
    """`anew`: in a JupyterLab that has just been loaded, which takes seconds; else in the one that is in the page."""
    if anew or not page.url.startswith("http"):
        page.goto(lab.notebook(name))
    else:
        page.evaluate("async path => { await jupyterapp.commands.execute('docmanager:open', { path }); }", name)
        page.wait_for_function("path => jupyterapp.shell.currentWidget.context?.path === path", arg=name)
    wait_for_notebook(page)
    page.evaluate("() => jupyterapp.shell.collapseLeft()")


def run_to(page: Page, source: str) -> None:
    """Run the notebook's cells up to the first one with this source, which runs too."""
    assert page.evaluate(SELECT, source), f"no cell holds {source!r}"
    page.evaluate("() => jupyterapp.commands.execute('notebook:run-all-above')")
    page.evaluate(SELECT, source)
    page.evaluate("() => jupyterapp.commands.execute('notebook:run-cell')")


def run_all(page: Page) -> list[dict[str, Any]]:
    page.evaluate(RUN_ALL)
    return page.evaluate(CELLS)


def in_every_light_and_width(page: Page, name: str) -> Iterator[tuple[str, int]]:
    """Go through the themes and widths; the whole notebook is kept as pictures where somebody wants them, and then
    each theme at each width: what is where depends on the width alone."""
    notebook, folder = (
        f"document.querySelector('{HERE} .jp-WindowedPanel-outer')",
        os.environ.get("NANOVLM_SCREENSHOTS"),
    )
    for theme, width in product(THEMES, WIDTHS) if folder else zip(THEMES, WIDTHS, strict=True):
        page.evaluate("theme => jupyterapp.commands.execute('apputils:change-theme', { theme })", theme)
        page.wait_for_selector(f"body[data-jp-theme-name='{theme}']", state="attached")
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(500)
        yield theme, width
        if folder:
            height = page.evaluate(f"() => {notebook}.scrollHeight")
            page.set_viewport_size({"width": width, "height": min(height + 150, 16_000)})
            page.evaluate(f"() => {{ {notebook}.scrollTop = 0 }}")
            page.wait_for_timeout(1500)
            page.screenshot(path=Path(folder) / f"{name}-{theme.split()[1].lower()}-{width}.png")
    page.evaluate("theme => jupyterapp.commands.execute('apputils:change-theme', { theme })", THEMES[0])
    page.set_viewport_size({"width": WIDTHS[0], "height": 900})


def runs_from_top_to_bottom(page: Page) -> None:
    cells = run_all(page)
    assert len(cells) > 10
    for cell in cells:
        assert cell["error"] is None or "raises-exception" in cell["tags"], cell
        assert cell["count"] is not None or "skip-execution" in cell["tags"], f"this cell never ran: {cell['source']}"


def stored_drawings() -> dict[str, list[str]]:
    """Chapter -> the SVG of its stored figures."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "chapters").glob("[0-9][0-9]_*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        kept = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
        text = "".join("".join(data.get("image/svg+xml", data.get("text/html", ""))) for data in kept)
        found[path.name[:2]] = re.findall(r'<svg[^>]*role="img".*?</svg>', text, re.DOTALL)
    return found


@pytest.mark.parametrize("light", ["true", "false"])
def test_every_stored_figure_can_be_read_in_both_schemes(page: Page, light: str) -> None:
    drawings = stored_drawings()
    assert len(drawings) == 18 and all(drawings.values())
    marked = [svg.replace("<svg", f'<svg data-chapter="{n}"', 1) for n, found in drawings.items() for svg in found]
    ground = "white" if light == "true" else "#111"
    page.set_content(f'<body data-jp-theme-light="{light}" style="background:{ground}">{"".join(marked)}</body>')
    texts = page.evaluate(TEXTS)
    assert {text["chapter"] for text in texts} == drawings.keys()
    assert [text for text in texts if text["cut"] or text["contrast"] < READABLE] == []


def lever_cell(page: Page) -> Locator:
    """The code cell with the lever in which a patch is chosen by a click."""
    return page.locator(f"{HERE} .jp-CodeCell").filter(has=page.locator(".widget-gridbox")).first


def drawing(cell: Locator) -> Locator:
    return cell.locator(".jp-OutputArea-output svg[role=img]")


def open_until_all_widgets_are_back(page: Page, lab: Lab, name: str) -> None:
    """JupyterLab asks for widgets twice at once: the notebook and, when it connects, the kernel. On a busy machine the
    kernel may answer first; what the notebook has not given by then is lost for good (ipywidgets issues 3231, 3823):
    a person loads the page again, and so does this, a few times."""
    from playwright.sync_api import TimeoutError

    for _ in range(5):
        open_notebook(page, lab, name, anew=True)
        with contextlib.suppress(TimeoutError):
            page.wait_for_function(WIDGETS_ARE_READ, timeout=PATIENCE / 4)
            if page.get_by_text(LOST).count() == 0:
                return
    raise AssertionError("five times in a row JupyterLab did not find the widgets that are saved in the notebook")


def stored_figures_fit(page: Page) -> None:
    """Nothing has run yet: JupyterLab shows what the notebook holds as <img>, which only our custom.css shrinks."""
    page.set_viewport_size({"width": WIDTHS[1], "height": 900})
    images = f"[...document.querySelectorAll('{HERE} .jp-RenderedSVG img')]"
    page.wait_for_function(f"() => {images}.length > 5 && {images}.every(x => x.complete && x.naturalWidth > 420)")
    assert page.evaluate(CUT_OFF) == []
    page.set_viewport_size({"width": WIDTHS[0], "height": 900})


def test_a_lever_moves_its_image_which_stays_when_the_kernel_is_gone(page: Page, lab: Lab) -> None:
    from playwright.sync_api import expect

    name = "chapters/14_looking_inside.ipynb"
    open_notebook(page, lab, name)
    stored_figures_fit(page)
    run_to(page, "patch=Cells(photo")
    cell = lever_cell(page)
    cell.scroll_into_view_if_needed()
    assert "patch 17 attends" in drawing(cell).get_attribute("aria-label")
    cell.locator(".widget-gridbox button").nth(10).click()
    cell.locator("svg[aria-label*='patch 10 attends']").wait_for()
    before = drawing(cell).get_attribute("aria-label")
    cell.locator(".widget-toggle-button", has_text="0").first.click()
    expect(drawing(cell)).not_to_have_attribute("aria-label", before, timeout=PATIENCE)
    moved = drawing(cell).get_attribute("aria-label")
    assert "patch 10 attends" in moved and drawing(cell).count() == 1
    for theme, width in in_every_light_and_width(page, "lever"):
        assert page.evaluate(CUT_OFF) == [], (theme, width)

    page.evaluate("() => jupyterapp.commands.execute('docmanager:save')")
    page.wait_for_function("() => !jupyterapp.shell.currentWidget.context.model.dirty")
    page.evaluate("() => jupyterapp.shell.currentWidget.sessionContext.shutdown()")
    open_until_all_widgets_are_back(page, lab, name)
    page.evaluate("() => jupyterapp.shell.currentWidget.sessionContext.shutdown()")
    cell = lever_cell(page)
    assert drawing(cell).get_attribute("aria-label") == moved
    for _ in in_every_light_and_width(page, "reopened"):
        assert drawing(cell).is_visible()
        assert page.get_by_text(LOST).count() == 0


def write(page: Page, cell: Locator, code: str) -> None:
    """Replace what is in a cell, and run it."""
    editor = cell.locator(".cm-content")
    editor.scroll_into_view_if_needed()
    editor.click()
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.insert_text(code)
    page.keyboard.press("Control+Enter")


def test_from_the_first_page_through_its_chapter_to_a_solved_exercise_and_a_quiz(page: Page, lab: Lab) -> None:
    from playwright.sync_api import expect

    page.goto(lab.first_page())
    wait_for_notebook(page)
    assert page.get_by_text("Jupyter news").count() == 0
    page.evaluate("() => jupyterapp.commands.execute('filebrowser:go-to-path', {path: 'chapters'})")
    page.locator(".jp-DirListing-itemText", has_text="00_start_here.ipynb").first.wait_for()
    listed = page.locator(".jp-DirListing-itemText").all_inner_texts()
    assert "00_start_here.ipynb" in listed and not [name for name in listed if name.endswith(".py")]
    setup = page.locator(f"{HERE} .jp-CodeCell").first
    expect(setup.locator(".cm-content"), "the set-up cell is folded").not_to_be_visible(timeout=PATIENCE)
    page.evaluate("() => jupyterapp.shell.collapseLeft()")
    runs_from_top_to_bottom(page)
    for theme, width in in_every_light_and_width(page, "00_start_here"):
        assert page.evaluate(CUT_OFF) == [], (theme, width)

    page.locator(f"{HERE} .jp-MarkdownCell a", has_text="exercises").first.click()
    page.wait_for_function("() => jupyterapp.shell.currentWidget.context?.path === 'exercises/00_start_here.ipynb'")
    wait_for_notebook(page)
    page.evaluate("() => jupyterapp.shell.collapseLeft()")

    exercise = "start.score"
    cells = run_all(page)
    starter = next(i for i, cell in enumerate(cells) if f'NotImplementedError("{exercise}")' in cell["source"])
    checked = next(i for i, cell in enumerate(cells) if f'check("{exercise}"' in cell["source"])
    boxes = page.locator(f"{HERE} .jp-CodeCell")
    output = boxes.nth(checked).locator(".jp-OutputArea")
    for code, said in (
        (None, "not written yet"),
        (f"{solution(exercise)}\n    return (", "still the one of before"),
        (solution(exercise), "passed"),
    ):
        if code is not None:
            write(page, boxes.nth(starter), code)
            boxes.nth(checked).locator(".cm-content").click()
            page.keyboard.press("Control+Enter")
        output.get_by_text(said).first.wait_for()
    for theme, width in in_every_light_and_width(page, "exercise-00"):
        assert page.evaluate(CUT_OFF) == [], (theme, width)

    answer_a_quiz(page, lab, boxes.nth(1))


def answer_a_quiz(page: Page, lab: Lab, cell: Locator) -> None:
    write(page, cell, 'from nanovlm.course import quiz\nquiz("ch00.tokens")')
    cell.locator(".widget-radio-box label", has_text="16").first.click()
    cell.get_by_text("Right.").first.wait_for()
    assert cell.locator("details").count() == 0, "the fold is for readers without a kernel"
    for theme, width in in_every_light_and_width(page, "quiz"):
        assert page.evaluate(CUT_OFF) == [], (theme, width)
    kept = json.loads(Path(lab.environment["NANOVLM_HOME"], "progress.json").read_text(encoding="utf-8"))
    assert kept["quizzes"]["ch00.tokens"] == {"tries": 1, "right": True}


def solution(exercise: str) -> str:
    """The solved cell of an exercise, markers left out."""
    text = (ROOT / "solutions" / "00_start_here.py").read_text(encoding="utf-8")
    before = text[: text.index(f'check("{exercise}"')]
    cells = re.split(r"^# %%.*\n", before, flags=re.MULTILINE)
    cell = next(cell for cell in reversed(cells) if "# SOLUTION" in cell)
    return "\n".join(line for line in cell.strip().splitlines() if "# SOLUTION" not in line and "# END" not in line)
