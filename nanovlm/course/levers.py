"""Levers: widgets that only move the state of a pure render function. Works with ipywidgets 7.7 and 8.

The picture of the default state is part of the output, so that a page with no kernel (GitHub, a printed notebook) and a
front end without widgets show it.
"""

from __future__ import annotations

import html
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nanovlm.viz.style import Figure, from_matplotlib

if TYPE_CHECKING:
    from PIL import Image

VIEW = "application/vnd.jupyter.widget-view+json"


@dataclass(frozen=True)
class Cells:
    """Values for a lever that is set by a click: the cells of a picture cut into grid x grid, from 0 in reading order.

    Each cell is a button in the mean colour of what it covers.
    """

    picture: Image.Image
    grid: int
    start: int = 0

    def colours(self) -> list[str]:
        from PIL import Image

        digits = self.picture.convert("RGB").resize((self.grid,) * 2, Image.Resampling.BOX).tobytes().hex()
        return [f"#{digits[i : i + 6]}" for i in range(0, len(digits), 6)]


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
        shown = [self.levers[name].around(control) for name, control in controls.items()]
        picture = ipywidgets.HTML(value=self.show())

        def moved(change: Any) -> None:
            try:
                picture.value = self.show(**{name: control.value for name, control in controls.items()})
            except Exception as error:  # a bad state is told in the picture's place; an exception here would be lost
                picture.value = f"<p><b>{type(error).__name__}:</b> {html.escape(str(error))}</p>"

        for control in controls.values():
            control.observe(moved, names="value")
        return ipywidgets.VBox([ipywidgets.HBox(shown), picture])

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
    (a check box), a str (a text box) or `Cells` (a picture whose cells are clicked).
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
        elif isinstance(values, Cells):
            self.kind, self.default, self.low, self.high, self.step = "cell", values.start, 0, values.grid**2 - 1, 1
            if not 0 <= values.start <= self.high:
                raise ValueError(f"The lever {name} starts at cell {values.start} of 0 to {self.high}.")
        else:
            raise TypeError(
                f"The lever {name}={values!r} must be a list, (low, high[, step[, start]]), a bool, a str or Cells."
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
        slider = ipywidgets.FloatSlider if self.kind == "real" else ipywidgets.IntSlider
        return slider(value=self.default, min=self.low, max=self.high, step=self.step, description=label)

    def around(self, control: Any) -> Any:
        """The control as it is shown: cells to click stand below the slider that holds their number."""
        if self.kind != "cell":
            return control
        import ipywidgets

        side = "24px"
        buttons = []
        for i, colour in enumerate(self.values.colours()):
            layout = ipywidgets.Layout(width=side, height=side, margin="0", padding="0")
            button = ipywidgets.Button(style={"button_color": colour}, layout=layout, tooltip=f"{self.name} {i}")
            button.on_click(lambda _, i=i: setattr(control, "value", i))
            buttons.append(button)

        def mark(_: Any = None) -> None:
            for i, button in enumerate(buttons):
                button.layout.border = "3px solid #111" if i == control.value else "1px solid #8886"

        mark()
        control.observe(mark, names="value")
        columns = ipywidgets.Layout(grid_template_columns=f"repeat({self.values.grid}, {side})", margin="0 0 0 90px")
        return ipywidgets.VBox([control, ipywidgets.GridBox(buttons, layout=columns)])


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
