"""check, hint and the verdict of a quiz are seen wherever they stand in a cell, and once."""

from __future__ import annotations

import nbformat
import pytest
from nbclient import NotebookClient

from nanovlm.course import hint, quiz

WRONG = "check('pixel_shuffle.shuffle', lambda x, factor: x)"
CELLS = [  # source, and how each of its outputs begins
    ("from nanovlm.course import check, hint, quiz", []),
    (WRONG, ["✗ "]),
    (f"{WRONG}\nNone", ["✗ "]),
    (f"result = {WRONG}\nresult", ["✗ "]),
    ("result", ["✗ "]),
    ("display(result)", ["✗ "]),
    ("hint('pixel_shuffle.shuffle')\nhint('pixel_shuffle.shuffle')", ["Hint 1", "Hint 2"]),
    ("for _ in range(2):\n    hint('pixel_shuffle.shuffle')", ["Hint 3", "You have seen all"]),
    ("quiz('ch03.tokens')", ["Predict first"]),
    ("quiz('ch03.tokens', 'b')\n1 + 1", ["b) ", "2"]),
]


def test_each_answer_is_seen_once_in_a_notebook() -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source, _ in CELLS])
    NotebookClient(notebook, kernel_name="python3").execute()
    for cell, (source, wanted) in zip(notebook.cells, CELLS, strict=True):
        seen = [output["data"]["text/plain"] for output in cell.outputs if "data" in output]
        assert len(seen) == len(wanted) == len(cell.outputs), (source, cell.outputs)
        assert all(text.startswith(start) for text, start in zip(seen, wanted, strict=True)), (source, seen)


def test_a_script_prints_them(capsys: pytest.CaptureFixture[str]) -> None:
    hint("pixel_shuffle.shuffle")
    quiz("ch03.tokens", "b")
    said = capsys.readouterr().out
    assert said.count("Hint 1 of 3") == 1 and said.count("b) ") == 1
