"""The progress bar of a run."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Literal


@contextlib.contextmanager
def bar(unit: str, total: int, shown: bool | Literal["auto"]) -> Iterator[Callable]:
    """Gives `show(done, row)`; `"auto"` shows a bar on a terminal."""
    from rich import console
    from rich import progress as rich

    terminal = console.Console(stderr=True)
    visible = terminal.is_terminal if shown == "auto" else shown
    numbers = rich.TextColumn("{task.fields[numbers]}")
    columns = (*rich.Progress.get_default_columns(), rich.MofNCompleteColumn(), numbers)
    with rich.Progress(*columns, console=terminal, disable=not visible) as progress:
        task = progress.add_task(unit, total=total, numbers="")

        def show(done, row):
            numbers = "  ".join(f"{n} {x:.4g}" for n, x in row.items() if n.endswith("/value"))
            progress.update(task, completed=done, numbers=numbers)

        yield show
