"""Levers: widgets that only move the state of a pure render function. Works with ipywidgets 7.7 and 8.

The picture of the default state is part of the output, so that a page with no kernel (GitHub, a printed notebook) and a
front end without widgets show it.
"""

from __future__ import annotations

import html
import inspect
import sys
from collections.abc import Callable
from typing import Any

from nanovlm.viz.style import Figure, from_matplotlib

VIEW = "application/vnd.jupyter.widget-view+json"


class Lever:
    """`defaults` is the state that it starts in; `show(**state)` is the picture of a state, as HTML."""

    def __init__(self, render: Callable[..., Any], levers: dict[str, Any]) -> None:
        accepted = inspect.signature(render).parameters
        takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in accepted.values())
        unknown = [name for name in levers if name not in accepted]
        if unknown and not takes_all:
            raise ValueError(f"{render.__name__} has no parameter {', '.join(unknown)}; it has {', '.join(accepted)}.")
        if not levers:
            raise ValueError("A lever needs at least one parameter to move, for example lever(render, r=[1, 2, 4]).")
        self.render = render
        self.levers = {name: _Scale(name, values) for name, values in levers.items()}
        self.defaults = {name: scale.default for name, scale in self.levers.items()}

    def show(self, **state: Any) -> str:
        return _as_html(self.render(**{**self.defaults, **state}))

    def widget(self) -> Any:
        """The controls above the picture, as an ipywidgets box."""
        import ipywidgets

        controls = {name: scale.control() for name, scale in self.levers.items()}
        picture = ipywidgets.HTML(value=self.show())

        def moved(change: Any) -> None:
            try:
                picture.value = self.show(**{name: control.value for name, control in controls.items()})
            except Exception as error:  # a bad state is told in the picture's place; an exception here would be lost
                picture.value = f"<p><b>{type(error).__name__}:</b> {html.escape(str(error))}</p>"

        for control in controls.values():
            control.observe(moved, names="value")
        return ipywidgets.VBox([ipywidgets.HBox(list(controls.values())), picture])

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        shown = _as_figure(self.render(**self.defaults))
        bundle: dict[str, Any] = {"text/plain": repr(self), "text/html": shown}
        if isinstance(shown, Figure):
            bundle = dict(shown._repr_mimebundle_()[0])
        try:
            widget = self.widget()
        except ImportError:
            return bundle
        # The id that a front end finds the widget by: public since 8, in 7 too.
        view = {"version_major": 2, "version_minor": 0, "model_id": widget.model_id}
        if "google.colab" in sys.modules:  # it would show the static picture below the moving one
            return {"text/plain": bundle["text/plain"], VIEW: view}
        return bundle | {VIEW: view}

    def __repr__(self) -> str:
        return f"lever({self.render.__name__}, {', '.join(f'{n}={v!r}' for n, v in self.defaults.items())})"


def lever(render: Callable[..., Any], **levers: Any) -> Lever:
    """A picture with controls. render(**state) is pure and returns a Figure, an HTML string or a matplotlib figure.

    Each lever is a list (a choice, the first is the default), a tuple (low, high[, step[, start]]) (a slider), a bool
    (a check box) or a str (a text box).
    """
    return Lever(render, levers)


class _Scale:
    """The values that one lever runs over."""

    def __init__(self, name: str, values: Any) -> None:
        self.name, self.values = name, values
        if isinstance(values, tuple) and 2 <= len(values) <= 4 and all(type(v) in (int, float) for v in values):
            self.low, self.high = values[:2]
            whole = all(isinstance(v, int) for v in values)
            self.step = values[2] if len(values) > 2 else 1 if whole else (self.high - self.low) / 50
            self.default = values[3] if len(values) > 3 else self.low
            self.kind = "whole" if whole else "real"
            if not self.low <= self.default <= self.high or self.step <= 0:
                raise ValueError(f"The lever {name}={values!r} needs low <= start <= high and a step above 0.")
        elif isinstance(values, bool):
            self.kind, self.default = "switch", values
        elif isinstance(values, str):
            self.kind, self.default = "text", values
        elif isinstance(values, list) and values:
            self.kind, self.default = "choice", values[0]
        else:
            raise TypeError(
                f"The lever {name}={values!r} must be a list, (low, high[, step[, start]]), a bool or a str."
            )

    def extremes(self) -> list[Any]:
        """Values that a test should try."""
        if self.kind == "switch":
            return [True, False]
        if self.kind == "text":
            return [self.default, ""]
        return list(self.values) if self.kind == "choice" else [self.low, self.high]

    def control(self) -> Any:
        import ipywidgets

        label = self.name.replace("_", " ")
        if self.kind == "switch":
            return ipywidgets.Checkbox(value=self.default, description=label)
        if self.kind == "text":
            return ipywidgets.Text(value=self.default, description=label, continuous_update=False)
        if self.kind == "choice":
            options = [(str(value), value) for value in self.values]
            if len(options) > 6:
                return ipywidgets.Dropdown(options=options, value=self.default, description=label)
            return ipywidgets.ToggleButtons(
                options=options, value=self.default, description=label, style={"button_width": "auto"}
            )
        slider = ipywidgets.IntSlider if self.kind == "whole" else ipywidgets.FloatSlider
        return slider(value=self.default, min=self.low, max=self.high, step=self.step, description=label)


def _as_figure(shown: Any) -> Figure | str:
    if type(shown).__module__.startswith("matplotlib"):
        return from_matplotlib(shown, "A plot.")
    if isinstance(shown, (Figure, str)):
        return shown
    if hasattr(shown, "_repr_html_"):
        return str(shown._repr_html_())
    raise TypeError(f"A lever's render function must return a Figure or HTML; it returned {type(shown).__name__}.")


def _as_html(shown: Any) -> str:
    shown = _as_figure(shown)
    return shown.markup if isinstance(shown, Figure) else shown
