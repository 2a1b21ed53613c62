"""Percent text <-> notebook files: the same bytes for the same source, and outputs only where they belong to it."""

from __future__ import annotations

import copy
import hashlib
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanovlm.course import percent
from nanovlm.course.percent import ANSWER_TAG, CLAIM_TAG, STAMPED

if TYPE_CHECKING:
    from nbformat import NotebookNode

WIDGET_VIEWS = ("application/vnd.jupyter.widget-view+json", "application/vnd.jupyter.widget-state+json")
SKIP = "skip-execution"
MAX_BYTES = 1_000_000  # GitHub shows no larger notebook


def _metadata() -> dict[str, Any]:
    """Of the notebook: the same whoever ran it."""
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    return {"kernelspec": kernel, "language_info": {"name": "python"}}


def to_notebook(text: str) -> NotebookNode:
    """A notebook with no outputs; cell ids follow from the cells' sources."""
    import nbformat

    notebook = nbformat.v4.new_notebook(metadata=_metadata())
    seen: dict[str, int] = {}
    for cell in percent.read(text).cells:
        name = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:10]
        seen[name] = seen.get(name, 0) + 1
        tags = cell.metadata.get("tags", [])
        # Not new_code_cell(), which checks each cell by itself, slowly: to_text() checks the whole.
        new = nbformat.from_dict({"cell_type": cell.cell_type, "source": cell.source, "metadata": {}})
        if tags:
            new.metadata["tags"] = list(tags)
        if cell.cell_type == "code":
            new.update(outputs=[], execution_count=None)
        # The set-up, the answers to exercises and the authors' asserts are folded, in JupyterLab and in Colab.
        if cell.cell_type == "code" and any(tag in (STAMPED, CLAIM_TAG) or tag.startswith(ANSWER_TAG) for tag in tags):
            new.metadata.update(jupyter={"source_hidden": True}, cellView="form")
        new["id"] = name if seen[name] == 1 else f"{name}-{seen[name]}"
        notebook.cells.append(new)
    return notebook


def source_hashes(notebook: NotebookNode) -> list[str | None]:
    """For each cell that runs, a hash of its source and of all code before it; None for the others. The builder's own
    cells do not count: a new version number makes no output stale."""
    chain = hashlib.sha256()
    hashes: list[str | None] = []
    for cell in notebook.cells:
        if cell.cell_type != "code":
            hashes.append(None)
            continue
        if STAMPED not in cell.metadata.get("tags", []):
            chain.update(cell.source.encode() + b"\0")
        hashes.append(None if SKIP in cell.metadata.get("tags", []) else chain.hexdigest()[:16])
    return hashes


def keep_outputs(notebook: NotebookNode, old: NotebookNode | None) -> list[int]:
    """Take over the outputs that the old file has for the very same source; returns the cells that have none."""
    known: dict[str, Any] = {}
    for cell in old.cells if old is not None else []:
        if cell.cell_type == "code" and cell.metadata.get("source_hash"):
            stamped = STAMPED in cell.metadata.get("tags", [])
            known[f"{stamped}{cell.metadata['source_hash']}"] = cell
    stale = []
    for number, (cell, source) in enumerate(zip(notebook.cells, source_hashes(notebook), strict=True)):
        if source is None:
            continue
        stamped = STAMPED in cell.metadata.get("tags", [])
        before = known.get(f"{stamped}{source}")
        if before is None:
            stale.append(number)
            continue
        cell.outputs, cell.execution_count = copy.deepcopy(before.outputs), before.execution_count
        cell.metadata["source_hash"] = source
    return stale


def run(notebook: NotebookNode, root: Path) -> None:
    """Execute all cells, in an empty folder and with an empty NANOVLM_HOME; outputs are cleaned and stored with the
    hash of the source that made them. Raises nbclient's CellExecutionError."""
    from nbclient import NotebookClient
    from nbformat import from_dict

    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None  # so that the last cell with a count is the last that began
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "NANOVLM_HOME": str(Path(folder, "home")), "PYTHONHASHSEED": "0"}
        here = Path(folder, "here")
        here.mkdir()
        client = NotebookClient(
            notebook,
            timeout=1800,
            kernel_name="python3",
            record_timing=False,
            skip_cells_with_tag=SKIP,
            resources={"metadata": {"path": str(here)}},
        )
        client.execute(env=environment)
        places = {folder: "…", str(root.resolve()): "…", sys.prefix: "…", str(Path.home()): "~"}
    notebook.metadata = from_dict(_metadata())
    for cell, source in zip(notebook.cells, source_hashes(notebook), strict=True):
        if cell.cell_type != "code":
            continue
        cell.metadata.pop("execution", None)
        if source is None:
            cell.outputs, cell.execution_count = [], None
            continue
        cell.outputs = clean(cell.outputs, places)
        cell.metadata["source_hash"] = source


def clean(outputs: list[Any], places: dict[str, str]) -> list[Any]:
    """Outputs without widget state, addresses, this machine's paths, and all but the last state of a progress bar."""
    cleaned: list[Any] = []
    for output in outputs:
        if output.output_type in ("display_data", "execute_result"):
            live = any(kind in output.data for kind in WIDGET_VIEWS)
            drawn = ("text/html",) if "image/svg+xml" in output.data else ()  # viz/style.py
            for kind in (*WIDGET_VIEWS, *drawn):
                output.data.pop(kind, None)
                output.metadata.pop(kind, None)
            if not output.data or (live and set(output.data) == {"text/plain"}):  # a progress bar: nothing to look at
                continue
            output.data = {k: _scrub(v, places) if k.startswith("text/") else v for k, v in output.data.items()}
        elif output.output_type == "stream":
            output.text = "\n".join(line.split("\r")[-1] for line in output.text.replace("\r\n", "\n").split("\n"))
            output.text = _scrub(output.text, places)
            if cleaned and cleaned[-1].output_type == "stream" and cleaned[-1].name == output.name:
                cleaned[-1].text += output.text
                continue
        elif output.output_type == "error":
            output.evalue = _scrub(output.evalue, places)
            output.traceback = [_scrub(line, places) for line in output.traceback]
        cleaned.append(output)
    return cleaned


def _scrub(text: Any, places: dict[str, str]) -> Any:
    if not isinstance(text, str):
        return text
    for place, name in sorted(places.items(), key=lambda item: -len(item[0])):
        if len(place) > 1:
            text = text.replace(place, name)
    text = re.sub(r"\S*/ipykernel_\d+/\d+\.py", "this notebook", text)
    return re.sub(r"\b0x[0-9a-fA-F]{6,}\b", "0x…", text)


def to_text(notebook: NotebookNode) -> str:
    import nbformat

    return nbformat.writes(notebook, version=nbformat.NO_CONVERT, indent=1, ensure_ascii=False).rstrip("\n") + "\n"


def read(path: Path) -> NotebookNode | None:
    """None where there is no notebook, or none that can be read: it is written anew."""
    import nbformat

    try:
        return nbformat.reads(path.read_text(encoding="utf-8"), as_version=4)
    except (OSError, ValueError, KeyError, AttributeError, nbformat.ValidationError):
        return None
