"""The history of a run in pictures: SVG in the ink and the letters of the page around it."""

import importlib.util
import io
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from lossopt.plots import _axes, _page
from lossopt.plots._curves import history, loss_curves
from lossopt.training._run import Run

SIZE = 4.7, 3.1  # inches
PANELS = 12
NORMS = "gradient_norm", "update_ratio"
LETTERS = {"svg.fonttype": "none", "path.simplify_threshold": 0.5}
INKS = {  # of the pictures, and what the page has in their places, on white and on black
    "#000000": "var(--ink)",
    "#e6e6e6": "var(--line)",
    "#cccccc": "var(--line)",
    "#ffffff": "var(--paper)",
} | {color: f"var(--rank-{rank})" for rank, color in enumerate(_axes.RAMP)}
UNDATED = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def drawn(run: Run, rows: Mapping[str, np.ndarray]) -> str:
    """Curves of all columns, as HTML; nothing without rows, and a sentence without matplotlib."""
    if not len(rows["step"]):
        return ""
    if importlib.util.find_spec("matplotlib") is None:
        return _page.paragraph("Curves need matplotlib: pip install 'lossopt[plots]'.")
    panels = _panels(rows)
    draws = {name: partial(history, run, columns) for name, columns in panels.items()}
    draws = [("loss", partial(loss_curves, run)), *draws.items()]
    pictures = [
        (name, picture(name, draw, f"p{number}-"))
        for number, (name, draw) in enumerate(draws[:PANELS])
    ]
    left = ", ".join(name for name, _ in draws[PANELS:])
    return _page.figures(pictures) + (_page.paragraph(f"Not drawn: {left}.") if left else "")


def picture(
    name: str, draw: Callable[..., Any], prefix: str, size: tuple[float, float] = SIZE
) -> str:
    """What is drawn on an axis, as SVG.

    Args:
      name: of the picture, for those who do not see it.
      draw: `draw(axis=axis)` draws on an axis of matplotlib.
      prefix: what the identifiers of this picture begin with, and of no other on the page.
      size: in inches.
    """
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(["default", LETTERS]):
        figure = Figure(size, layout="constrained")
        axis = figure.subplots()
        draw(axis=axis)
        axis.spines[["top", "right"]].set_visible(False)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata=UNDATED)
    svg = file.getvalue().split("<svg", 1)[1]
    of_page = lambda ink: ink[1] + INKS.get(ink[2], ink[2])
    svg = re.sub(r"((?:stroke|fill): )(#\w{6})", of_page, svg)
    svg = re.sub(r'((?<!\w)id="|xlink:href="#|url\(#)', rf"\g<1>{prefix}", svg)
    return f'<svg role="img" aria-label="{_page.text(name)}"{svg}'


def _panels(rows):
    """Columns that are read together, by name; the value itself is drawn above them."""
    panels = {}
    for column in rows:
        part, _, name = column.partition("/")
        if name and not np.array_equal(rows[column], rows.get(f"{part}/value"), equal_nan=True):
            norm = next((norm for norm in NORMS if name.startswith(f"{norm}/")), name)
            panels.setdefault(norm.replace("_", " "), []).append(column)
    return panels
