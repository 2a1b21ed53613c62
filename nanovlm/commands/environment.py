"""Is this environment fit for the course? What was found, and what to do where it is not."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from packaging.requirements import Requirement

GIB = 2**30
NEEDED_MEMORY, NEEDED_DISK = 4 * GIB, 1 * GIB
OLDEST_PYTHON = (3, 10)
# What each group of packages is for; "" is what `pip install nanovlm` brings.
GROUPS = {
    "": "the package",
    "data": "data sets other than the Thimble",
    "notebook": "the notebooks",
    "lab": "JupyterLab",
    "wandb": "logging to Weights & Biases",
    "adapt": "comparing adapters with peft's",
    "compress": "comparing 8-bit weights with torchao's",
    "onnx": "nanovlm export --to onnx",
    "demo": "nanovlm demo",
    "watch": "nanovlm watch on videos and cameras",
    "dev": "every chapter, and work on the course",
    "tests": "the tests",
}
MARKS = {"ok": "ok", "note": "--", "problem": "!!"}


@dataclass(frozen=True)
class Finding:
    subject: str
    found: str
    state: Literal["ok", "note", "problem"] = "ok"  # note: something optional is missing or slow
    advice: str = ""


def examine() -> list[Finding]:
    """Everything, in the order in which a problem would show itself. Takes some seconds: torch is imported."""
    findings = [python(), machine(), memory(), disk(), progress(), *packages()]
    if not any(f.state == "problem" for f in findings):  # without torch or tokenizers there is nothing to ask
        findings += [device(), notebook_sizes(), pocket_model()]
    return findings


def report(findings: list[Finding], columns: int | None = None) -> str:
    """One line each, advice below the line that it is about, wrapped between words. columns: None, the terminal's."""
    width = max(len(f.subject) for f in findings)
    columns = max(columns or shutil.get_terminal_size().columns, width + 30)
    wrapper = textwrap.TextWrapper(columns, break_long_words=False, break_on_hyphens=False)
    wrapper.subsequent_indent = " " * (width + 6)
    lines = []
    for f in findings:
        wrapper.initial_indent = f"{MARKS[f.state]}  {f.subject:<{width}}  "
        lines += wrapper.wrap(f.found)
        wrapper.initial_indent = wrapper.subsequent_indent
        lines += wrapper.wrap(f.advice)
    problems = sum(f.state == "problem" for f in findings)
    verdict = "Everything that the course needs is here." if not problems else f"{problems} to mend: the lines with !!."
    return "\n".join([*lines, "", verdict])


def python() -> Finding:
    found = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info >= OLDEST_PYTHON:
        return Finding("Python", found)
    return Finding("Python", found, "problem", f"Make an environment with Python {'.'.join(map(str, OLDEST_PYTHON))}+.")


def machine() -> Finding:
    return Finding("machine", f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores")


def memory() -> Finding:
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows, and systems that do not tell
        return Finding("memory", "not told by this system", "note", f"The course needs {NEEDED_MEMORY / GIB:.0f} GiB.")
    state: Literal["ok", "note"] = "ok" if size >= NEEDED_MEMORY else "note"
    return Finding("memory", f"{size / GIB:.1f} GiB", state, "" if state == "ok" else "Close other programs.")


def disk() -> Finding:
    folder = Path.cwd()
    free = shutil.disk_usage(folder).free
    if free >= NEEDED_DISK:
        return Finding("disk", f"{free / GIB:.1f} GiB free in {folder}")
    advice = f"A training run and its checkpoints need {NEEDED_DISK / GIB:.0f} GiB: free some, or use --output-dir."
    return Finding("disk", f"{free / GIB:.2f} GiB free in {folder}", "note", advice)


def progress() -> Finding:
    """Whether exercises that pass will still be known tomorrow."""
    from nanovlm.course.progress import home

    folder = home()
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if nearest.is_dir() and os.access(nearest, os.W_OK):
        return Finding("progress", f"kept in {folder}")
    advice = "What you have passed is forgotten after each session. Set NANOVLM_HOME to a folder that you may write."
    return Finding("progress", f"cannot be written to {folder}", "problem", advice)


def packages() -> list[Finding]:
    """Installed versions against the floors in the package's own metadata, group by group."""
    from packaging.requirements import Requirement

    from nanovlm import __version__

    here = Path(__file__).parents[1]
    findings = [Finding("nanovlm", f"{__version__} in {here}")]
    try:
        requirements = importlib.metadata.requires("nanovlm") or []
    except importlib.metadata.PackageNotFoundError:
        advice = 'Versions are not checked. Install it: pip install -e ".[dev]" -c constraints.txt'
        return [Finding("nanovlm", f"{__version__} in {here}, not installed", "note", advice)]
    groups: dict[str, list[Requirement]] = {extra: [] for extra in GROUPS}
    named = {"nanovlm"}  # an extra that contains others repeats their packages
    for requirement in map(Requirement, requirements):
        found = re.search(r"extra == ['\"](\w+)['\"]", str(requirement.marker))
        groups[found[1] if found else ""].append(requirement)
    for extra, wanted in groups.items():
        findings.append(_group(extra, [r for r in wanted if r.name not in named]))
        named |= {r.name for r in wanted}
    return findings


def _group(extra: str, requirements: list[Requirement]) -> Finding:
    found, wrong = [], []
    for requirement in requirements:
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        found.append(f"{requirement.name} {version}")
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version} is not {requirement.specifier}")
    subject = f"nanovlm[{extra}]" if extra else "dependencies"
    if not wrong:
        return Finding(subject, ", ".join(found))
    advice = f'For {GROUPS[extra]}: pip install "nanovlm{f"[{extra}]" if extra else ""}"'
    return Finding(subject, ", ".join(wrong), "note" if extra else "problem", advice)


def device() -> Finding:
    import torch

    from nanovlm.device import choose_precision, find_device

    found = find_device()
    precision = choose_precision("auto", found)
    count = torch.get_num_threads()
    threads = f", {count} thread{'s' * (count > 1)}" if found.type == "cpu" else ""
    advice = ""
    if found.type == "cpu":  # measured on two cores of each kind (LOG.md)
        minutes = "about 5 minutes" if precision.name == "bf16" else "about 12 minutes"
        advice = f"`make train` takes {minutes} on two cores of this kind; the chapters need nothing faster."
    return Finding("device", f"{found}{threads}; trains in {precision.name}: {precision.reason}", "ok", advice)


def notebook_sizes() -> Finding:
    from nanovlm.course.budgets import budget

    try:
        found = budget()
    except ValueError as error:
        return Finding("budget", str(error), "problem", "Unset it, and this machine decides.")
    return Finding("budget", f"{found.name}: {found.reason}")


def pocket_model() -> Finding:
    """The shipped model answers a question about a shipped picture."""
    from nanovlm.assets import asset_path
    from nanovlm.models.vision_language_model import VisionLanguageModel

    question = "How many shapes are there?"
    try:
        model = VisionLanguageModel.from_pretrained(asset_path("pocket"))
        start = time.perf_counter()
        answer = model.generate(image=asset_path("images/shapes.png"), prompt=question)
    except (OSError, ValueError) as error:
        advice = "Install the package again; in a clone: git checkout assets"
        return Finding("pocket model", str(error), "problem", advice)
    return Finding("pocket model", f"{question} {answer} ({(time.perf_counter() - start) * 1000:.0f} ms)")
