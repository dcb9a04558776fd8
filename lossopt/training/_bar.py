"""How a run goes, for whoever watches: a bar on a terminal, lines now and then elsewhere."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Literal

RARELY = 60.0  # seconds between two lines, at most


@contextlib.contextmanager
def bar(unit: str, total: int, shown: bool | Literal["auto"]) -> Iterator[Callable]:
    """Gives `show(done, row, seconds)`; `"auto"` shows a bar on a terminal.

    Args:
      unit: what is counted, in the plural.
      total: how many there are to be.
      shown: whether anything is.
    """
    from rich import console
    from rich import progress as rich

    terminal = console.Console(stderr=True)
    alive = terminal.is_terminal or terminal.is_jupyter
    pace = _pace(unit, total)
    if shown is True and not alive:
        with _lines(unit, total, pace, terminal) as show:
            yield show
        return
    visible = terminal.is_terminal if shown == "auto" else shown
    columns = "{task.description}", rich.BarColumn(), rich.MofNCompleteColumn()
    numbers = rich.TextColumn("{task.fields[numbers]}")
    with rich.Progress(*columns, numbers, console=terminal, disable=not visible) as progress:
        task = progress.add_task(unit, total=total, numbers="")

        def show(done, row, seconds):
            progress.update(task, completed=done, numbers=f"{_values(row)}{pace(done, seconds)}")

        yield show


@contextlib.contextmanager
def _lines(unit, total, pace, terminal):
    """A line after 1, 2, 4, ... seconds, then each minute, and one at the end."""
    due, line = 1, ""

    def write(text):
        terminal.print(text, highlight=False, markup=False, soft_wrap=True)

    def show(done, row, seconds):
        nonlocal due, line
        line = f"{unit} {int(done)}/{total}  {_values(row)}{pace(done, seconds)}".rstrip()
        if seconds >= due:
            write(line)
            due, line = seconds + min(seconds, RARELY), ""

    try:
        yield show
    finally:
        if line:
            write(line)


def _pace(unit, total):
    """Gives the text of how long a unit takes and all that are left, once the first are done."""
    begun = None

    def pace(done, now):
        nonlocal begun
        if begun is None:  # until here it compiled
            begun = now, done
        if done <= begun[1]:
            return ""
        each = (now - begun[0]) / (done - begun[1])
        return f"  {each:.2g} s/{unit.removesuffix('s')}  {_span(each * (total - done))} left"

    return pace


def _values(row):
    return "  ".join(f"{name} {x:.4g}" for name, x in row.items() if name.endswith("/value"))


def _span(seconds):
    minutes, seconds = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
