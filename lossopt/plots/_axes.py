"""Where a picture is drawn, and what tells its curves apart."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Of Okabe and Ito, in an order in which neighbors differ in brightness.
COLORS = "#000000", "#E69F00", "#0072B2", "#CC79A7", "#009E73", "#56B4E9", "#D55E00"
DASHES = "-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 3)), (0, (1, 3))
MARKERS = "o", "s", "^", "D", "v", "P", "X"
GREY = "0.45"
# From the best rank to the worst: of viridis, whose brightness rises, too.
RAMP = "#450155", "#46327f", "#365c8e", "#277f8f", "#1fa188", "#4ac16e", "#a0da3a", "#d4d920"
BEST, LOST = COLORS[6], "#999999"
SPAN = 10  # from the lowest to the highest number, from which on the axis is logarithmic
MARKED = 12  # markers of a curve
STAR = {"marker": "*", "markersize": 15, "markeredgecolor": "white", "linestyle": "", "zorder": 3}
CROSS = STAR | {"marker": "X", "markersize": 10}


def given(axis: "Axes | None") -> "Axes":
    """The axis, or one of a new figure; raises where matplotlib is not installed."""
    try:
        from matplotlib.axes import Axes
    except ImportError as error:
        raise ImportError(
            "lossopt.plots draws with matplotlib, which is not installed. Install it with "
            "pip install 'lossopt[plots]'."
        ) from error
    if axis is None:
        from matplotlib import pyplot

        return pyplot.subplots(layout="constrained")[1]
    if not isinstance(axis, Axes):
        raise TypeError(
            f"Expected axis as one Axes of matplotlib, got {type(axis).__name__}. Take one of "
            "several, axes[0]; of a figure, figure.subplots()."
        )
    return axis


def style(number: int, dash: int | None = None, points: int = 0) -> dict[str, Any]:
    """Color and marker of a number, dashes of another; both begin again after the last."""
    every = max(1, points // MARKED)
    return {
        "color": COLORS[number % len(COLORS)],
        "linestyle": DASHES[(number if dash is None else dash) % len(DASHES)],
        "marker": MARKERS[number % len(MARKERS)],
        "markersize": 4,
        "markevery": (number * every // len(MARKERS) % every, every),  # not all at one place
    }


def ranked(count: int) -> np.ndarray:
    """The colors of so many ranks, the best first."""
    return np.array(RAMP)[np.arange(count) * len(RAMP) // max(count, 1)]


def named(things: Any) -> dict[str, Any]:
    """A mapping of names to things; one thing alone has no name."""
    if not isinstance(things, Mapping):
        return {"": things}
    if not things:
        raise ValueError("Expected at least one thing to draw, got an empty mapping.")
    return {str(name): thing for name, thing in things.items()}


def logarithmic_where_it_helps(axis: "Axes", values: Any) -> None:
    """Decided by the finite ones of the values."""
    finite = np.asarray(values)[np.isfinite(values)]
    if finite.size and finite.min() > 0 and finite.max() > SPAN * finite.min():
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:g}")
        shown = "25" if finite.max() < SPAN**3 * finite.min() else ""
        axis.yaxis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:e}"[0] in shown else "")


def ended(axis: "Axes", values: Any, most: float) -> None:
    """Leaves out what is far above the rest, where all are above 0: else it flattens the rest."""
    finite = np.asarray(values)[np.isfinite(values)]
    if finite.size and finite.min() > 0 and finite.max() > most:
        axis.set_ylim(finite.min() / 1.5, most)


def whole(axis: "Axes") -> None:
    """No ticks between whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 2.5, 5, 10]))


def explained(axis: "Axes", x: str, y: str) -> None:
    """Labels, a faint grid, and a legend where a curve has a name."""
    axis.set(xlabel=x, ylabel=y)
    axis.grid(color="0.9", linewidth=0.6)
    axis.set_axisbelow(True)
    as_text(axis.xaxis.label, axis.yaxis.label)
    if axis.get_legend_handles_labels()[0]:
        as_text(*axis.legend(fontsize="small").get_texts())


def above(axis: "Axes", columns: int = 1, **options: Any) -> None:
    """A legend above the picture, where it hides nothing."""
    look = {"frameon": False, "fontsize": "small", "borderaxespad": 0.3}
    legend = axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, **look, **options)
    as_text(*legend.get_texts())


def as_text(*words: Any) -> None:
    """Names are the user's, and so are their dollars."""
    for text in words:
        text.set_parse_math(False)
