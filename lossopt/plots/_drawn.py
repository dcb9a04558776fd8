"""The history of a run in pictures: SVG in the ink and the letters of the page that holds it."""

import importlib.util
import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lossopt.plots import _page
from lossopt.plots._axes import GRID
from lossopt.plots._curves import history, loss_curves
from lossopt.training._run import Run

SIZE = 5.2, 3.4  # inches
PANELS = 12
LETTERS = {"svg.fonttype": "none", "path.simplify_threshold": 0.5}
INKS = {"#000000": "currentColor", GRID: "var(--line)", "#ffffff": "var(--paper)"}
UNDATED = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def drawn(run: Run, rows: Mapping[str, np.ndarray]) -> str:
    """Curves of all columns, as HTML; a sentence where there is nothing to draw, or to draw with."""
    if not len(rows["step"]):
        return _page.paragraph("There is no row of history to draw.")
    if importlib.util.find_spec("matplotlib") is None:
        return _page.paragraph("Curves need matplotlib: pip install 'lossopt[plots]'.")
    pictures = [("loss", picture("loss", lambda axis: loss_curves(run, axis=axis)))]
    panels = _panels(rows)
    for name, columns in list(panels.items())[:PANELS]:
        draw = lambda axis, columns=columns: history(run, columns, axis=axis)
        pictures.append((name, picture(name, draw)))
    left = ", ".join(list(panels)[PANELS:])
    return _page.figures(pictures) + (_page.paragraph(f"Not drawn: {left}.") if left else "")


def picture(name: str, draw: Callable[[Any], Any]) -> str:
    """What is drawn on an axis, as SVG.

    Args:
      name: of the picture, for those who do not see it.
      draw: draws on an axis of matplotlib.
    """
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(["default", LETTERS]):
        figure = Figure(SIZE, layout="constrained")
        axis = figure.subplots()
        draw(axis)
        axis.spines[["top", "right"]].set_visible(False)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata=UNDATED)
    _, svg = file.getvalue().split("<svg", 1)
    for ink, of_page in INKS.items():
        svg = svg.replace(ink, of_page)
    return f'<svg role="img" aria-label="{_page.text(name)}"{svg}'


def _panels(rows):
    """Columns that are read together, by name; those that show the value itself are drawn above."""
    panels = {}
    for column in rows:
        part, _, name = column.partition("/")
        if name and name != "value":
            head = name.split("/")[0] if name.startswith(("gradient_norm", "update_ratio")) else name
            panels.setdefault(head.replace("_", " "), []).append(column)
    return panels
