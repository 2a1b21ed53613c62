"""Answers that are seen wherever they were asked for: in the middle of a cell as well as on its last line."""

from __future__ import annotations

import sys
from typing import Any, TypeVar

S = TypeVar("S", bound="ShowsItself")


class ShowsItself:
    """Something with a text and, for notebooks, `_repr_html_`."""

    _shown_in: tuple[Any, int] | None = None  # the cell in which show() displayed it

    def show(self: S) -> S:
        """Display it now; the cell that does so does not show it again where it ends with it."""
        cell = _cell()
        if cell is not None:
            from IPython.display import display

            display(self)
            self._shown_in = cell
        elif not hasattr(sys, "ps1"):  # the prompt shows what is returned
            print(self)
        return self

    def _ipython_display_(self) -> None:
        if self._shown_in is None or self._shown_in != _cell():
            raise NotImplementedError  # IPython's word for: as usual


def _cell() -> tuple[Any, int] | None:
    """The cell that runs, None outside of notebooks."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return (shell, shell.execution_count) if shell is not None else None
