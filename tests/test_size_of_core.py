"""The promise of the README: what a learner builds stays small enough to read in an evening."""

from __future__ import annotations

import ast
import re
import tokenize
from pathlib import Path

import nanovlm

PROMISE = 750  # lines of code
PACKAGE = Path(nanovlm.__file__).parent
MODELS = ("attention", "vision_transformer", "modality_projector", "language_model", "vision_language_model")
CORE = [PACKAGE / "models" / f"{name}.py" for name in MODELS]
CORE += [PACKAGE / "training" / f"{name}.py" for name in ("step", "loop")]
NOT_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


def lines_of_code(file: Path) -> int:
    """Lines that hold a token of code: no blanks, no comments, no docstrings."""
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            docstrings |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    code: set[int] = set()
    with file.open("rb") as source:
        for token in tokenize.tokenize(source.readline):
            if token.type not in NOT_CODE:
                code |= set(range(token.start[0], token.end[0] + 1))
    return len(code - docstrings)


def test_the_counter_counts_code_only(tmp_path: Path) -> None:
    file = tmp_path / "example.py"
    file.write_text(
        '"""Two lines\nof docstring."""\n\n# a comment\nx = """text\nthat is data"""  # and a comment\n\n\n'
        'def f(\n    a,\n):\n    """Doc."""\n    # why\n    return a\n'
    )
    assert lines_of_code(file) == 2 + 3 + 1


def test_the_model_files_and_the_training_loop_keep_the_promise() -> None:
    sizes = {file.name: lines_of_code(file) for file in CORE}
    assert min(sizes.values()) > 10
    assert sum(sizes.values()) <= PROMISE, f"{sum(sizes.values())} lines of code: {sizes}"


def test_the_readme_makes_the_promise() -> None:
    readme = (PACKAGE.parent / "README.md").read_text(encoding="utf-8")
    promised = re.findall(rf"\b{PROMISE} lines", readme)
    assert promised, f"README.md does not say that the core has at most {PROMISE} lines"
