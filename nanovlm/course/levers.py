"""Levers: widgets that only move the state of a pure render function. Works with ipywidgets 7.7 and 8.

The controls are a widget; the picture is an ordinary output, which they update by its display id. So it is saved with
the notebook, and stays when the kernel is gone, on GitHub, on paper and in a front end without widgets.
"""

from __future__ import annotations

import html
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nanovlm.viz.style import Figure, from_matplotlib

if TYPE_CHECKING:
    from PIL import Image

MENU_FROM = 7  # choices: fewer are buttons side by side


@dataclass(frozen=True)
class Cells:
    """Values for a lever that is set by a click: the cells of a picture cut into grid x grid, from 0 in reading order.

    Each cell is a button in the mean colour of what it covers.
    """

    image: Image.Image
    grid: int

    def colours(self) -> list[str]:
        from PIL import Image

        digits = self.image.convert("RGB").resize((self.grid,) * 2, Image.Resampling.BOX).tobytes().hex()
        return [f"#{digits[i : i + 6]}" for i in range(0, len(digits), 6)]


class Lever:
    """`defaults` is the state that it starts in; `figure(**state)` is the figure of a state."""

    def __init__(self, render: Callable[..., Any], levers: dict[str, Any], start: Mapping[str, Any]) -> None:
        accepted = inspect.signature(render).parameters
        takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in accepted.values())
        unknown = [name for name in levers if name not in accepted]
        if unknown and not takes_all:
            raise ValueError(f"{render.__name__} has no parameter {', '.join(unknown)}; it has {', '.join(accepted)}.")
        if not levers:
            raise ValueError("A lever needs at least one parameter to move, for example lever(render, r=[1, 2, 4]).")
        if homeless := [name for name in start if name not in levers]:
            raise ValueError(f"start names {', '.join(homeless)}; the levers are {', '.join(levers)}.")
        self.render = render
        self.levers = {name: _Scale(name, values, start) for name, values in levers.items()}
        self.defaults = {name: scale.default for name, scale in self.levers.items()}

    def figure(self, **state: Any) -> Figure:
        shown = self.render(**{**self.defaults, **state})
        if type(shown).__module__.startswith("matplotlib"):
            return from_matplotlib(shown, f"A plot: {self!r}")
        if isinstance(shown, Figure):
            return shown
        if isinstance(shown, str) or hasattr(shown, "_repr_html_"):
            return Figure(shown if isinstance(shown, str) else str(shown._repr_html_()), repr(self))
        raise TypeError(f"A lever's render function must return a Figure or HTML; it returned {type(shown).__name__}.")

    def controls(self, update: Callable[[Figure], Any]) -> Any:
        """An ipywidgets box, a row for each lever. `update` gets the picture of each new state."""
        import ipywidgets

        shown = dict(self.defaults)

        def redraw(**state: Any) -> None:
            if state == shown:  # ipywidgets 8 calls once when the box is made, 7 once when it is shown
                return
            shown.update(state)
            try:
                update(self.figure(**state))
            except Exception as error:  # told in the picture's place; an exception here would be lost
                update(told(f"{type(error).__name__}: {error}"))

        controls = {name: scale.control() for name, scale in self.levers.items()}
        box = ipywidgets.interactive(redraw, **controls)
        # Labels of our own, as wide as the longest: those of buttons and of sliders would not stand in line.
        width = f"{max(map(len, controls)) * 0.6 + 1:.1f}em"
        rows = [self.levers[name].row(control, width) for name, control in controls.items()]
        box.children = [*rows, box.out]
        return box

    def _ipython_display_(self) -> None:
        from IPython.display import DisplayHandle, display

        first = self.figure()
        try:
            import ipywidgets
        except ImportError:
            display(first)
            return
        if "google.colab" in sys.modules:  # there a callback cannot be trusted to update another output
            inside = ipywidgets.HTML(first.markup)
            display(ipywidgets.VBox([self.controls(lambda figure: setattr(inside, "value", figure.markup)), inside]))
            return
        output = DisplayHandle()
        display(self.controls(output.update))
        output.display(first)

    def __repr__(self) -> str:
        return f"lever({self.render.__name__}, {', '.join(f'{n}={v!r}' for n, v in self.defaults.items())})"


def lever(render: Callable[..., Any], start: Mapping[str, Any] | None = None, **levers: Any) -> Lever:
    """A picture with controls. render(**state) is pure and returns a Figure, an HTML string or a matplotlib figure.

    Each lever is a list (a choice), a tuple (low, high[, step]) (a slider), a bool (a check box), a str (a text box) or
    `Cells` (a picture whose cells are clicked). `start`: name -> value that it starts at, where that is not the first
    of a list, the low end of a slider or the first cell.
    """
    return Lever(render, levers, start or {})


def told(sentence: str) -> Figure:
    """A sentence in the place of a picture."""
    return Figure(f"<p><b>{html.escape(sentence)}</b></p>", sentence)


class _Scale:
    """The values that one lever runs over."""

    def __init__(self, name: str, values: Any, start: Mapping[str, Any]) -> None:
        self.name, self.values = name, values
        if isinstance(values, (bool, str)):
            self.kind, first = "switch" if isinstance(values, bool) else "text", values
            valid = type(start.get(name, values)) is type(values)
        elif isinstance(values, list) and values:
            self.kind, first = "choice", values[0]
            valid = start.get(name, first) in values
        elif isinstance(values, Cells):
            self.kind, first, self.low, self.high = "cell", 0, 0, values.grid**2 - 1
            valid = start.get(name, 0) in range(self.high + 1)
        elif isinstance(values, tuple) and 2 <= len(values) <= 3 and all(type(v) in (int, float) for v in values):
            self.low, self.high = values[:2]
            self.kind = "whole" if all(isinstance(v, int) for v in values) else "real"
            self.step = values[2] if len(values) > 2 else 1 if self.kind == "whole" else (self.high - self.low) / 50
            first = self.low
            valid = self.low <= start.get(name, first) <= self.high
            if self.step <= 0:
                raise ValueError(f"The lever {name}={values!r} needs a step above 0.")
        else:
            raise TypeError(
                f"The lever {name}={values!r} must be a list, (low, high[, step]), a bool, a str or Cells. "
                f"Where it starts is start={{{name!r}: …}}."
            )
        self.default = start.get(name, first)
        if not valid:
            raise ValueError(
                f"The lever {name}={values!r} cannot start at {self.default!r}: that is none of its values."
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

        wide = ipywidgets.Layout(width="20em", max_width="100%")
        if self.kind == "switch":
            return ipywidgets.Checkbox(value=self.default, indent=False)
        if self.kind == "text":
            return ipywidgets.Text(value=self.default, continuous_update=False, layout=wide)
        if self.kind == "choice":
            options = [(str(value), value) for value in self.values]
            if len(options) >= MENU_FROM:
                return ipywidgets.Dropdown(value=self.default, options=options, layout=wide)
            return ipywidgets.ToggleButtons(value=self.default, options=options, style={"button_width": "auto"})
        if self.kind == "real":
            slider, step = ipywidgets.FloatSlider, self.step
        else:
            slider, step = ipywidgets.IntSlider, 1 if self.kind == "cell" else self.step
        return slider(value=self.default, min=self.low, max=self.high, step=step, layout=wide)

    def row(self, control: Any, width: str) -> Any:
        """The control as it is shown, behind its name."""
        import ipywidgets

        control.description = ""  # `interactive` has put the name there
        name = ipywidgets.Label(self.name.replace("_", " "), layout=ipywidgets.Layout(width=width, flex="0 0 auto"))
        return ipywidgets.HBox([name, self.around(control)], layout=ipywidgets.Layout(flex_flow="row wrap"))

    def around(self, control: Any) -> Any:
        """Cells to click stand below the slider that holds their number."""
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
        columns = ipywidgets.Layout(grid_template_columns=f"repeat({self.values.grid}, {side})")
        return ipywidgets.VBox([control, ipywidgets.GridBox(buttons, layout=columns)])
