"""One page for a run or a sweep: how it went, why it ended, and what it takes to run it again."""

import math
import os
import pathlib
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from lossopt._paths import paths
from lossopt.plots import _page, _sweep_report
from lossopt.plots._drawn import drawn
from lossopt.plots._origin import batches, command, environment, key, written
from lossopt.plots._page import Section
from lossopt.sweeps._table import Table
from lossopt.training._resume import rows_of
from lossopt.training._run import BROKEN, Run
from lossopt.training._stop import Stopped

LEAVES = 24  # beyond these, layers of one shape share a line
UNDONE = {Stopped.INTERRUPTED, Stopped.TIME}


def report(
    run: Run | Table,
    path: str | os.PathLike[str],
    *,
    title: str | None = None,
    notes: str = "",
    hyperparameters: Mapping[str, Any] | None = None,
) -> None:
    """Writes one page of HTML about a run or a sweep, to be mailed, printed and read offline.

    Of a run it holds the curves, the best row of history and the last, why the run ended and where,
    hyperparameters, shapes and number of the parameters, and what it takes to run it again:
    the command, the key, the batches, a digest of the data, versions and devices. Of a sweep it
    holds all trials and the score over each hyperparameter in pictures, the best trials, the
    interval of good values and the importance of each hyperparameter, and the trials that diverged
    or wait. The page loads nothing: no script, no font, no picture. Without matplotlib it has no
    curves, without scikit-learn no importance, and says so.

    Command, versions and devices are those of the process that writes the page. The command stands
    there as it was typed: pass secrets another way.

    Args:
      run: of `fit` or `training.run`; only one of `fit` knows its hyperparameters, key and data.
        Or the `sweeps.Table` of a sweep.
      path: of the file, which is replaced; `~` is your home.
      title: of the page. None calls it a training run, or a sweep.
      notes: what you want to say about it, text.
      hyperparameters: more of them than `fit` was given, such as the width of a model, by name;
        of a sweep those that all trials share.

    Raises:
      TypeError: for what is neither.
      ValueError: for several runs at once, and for a run that is traced.
      FileNotFoundError: if the folder does not exist.

    Examples:
      >>> import pathlib, tempfile
      >>> objective = lambda w, x: {"fit": lo.mean((w - x) ** 2)}
      >>> data, key = jnp.arange(3.0), jax.random.key(0)
      >>> run = lo.fit(objective, 0.0, data, optax.sgd(0.1), epochs=9, key=key)
      >>> page = pathlib.Path(tempfile.mkdtemp(), "report.html")
      >>> lo.plots.report(run, page, title="A mean")
      >>> print("<h1>A mean</h1>" in page.read_text())
      True
    """
    swept = isinstance(run, Table)
    if not swept:
        _one(run)
    file = pathlib.Path(os.path.expanduser(path))
    if not file.parent.is_dir():
        raise FileNotFoundError(
            f"Expected path in a folder that exists, got {str(path)!r}: make {str(file.parent)!r} "
            "first, or choose another."
        )
    if swept:
        head, sections = _sweep_report.head(run), _sweep_report.sections(run, hyperparameters or {})
    else:
        head, sections = _of_run(run, hyperparameters)
    head += _page.paragraph(notes, "notes") if notes else ""
    title = ("Sweep" if swept else "Training run") if title is None else title
    page = _page.page(title, head, sections, written())
    file.write_text(page, encoding="utf-8", errors="replace")  # of names of files that are no text


def _of_run(run, hyperparameters):
    """What the page of a run says, and its parts."""
    rows = rows_of(run)
    sections = [
        Section("Curves", drawn(run, rows), wide=True),
        Section("Best and last", _best_and_last(run, rows), wide=True),
        Section("Hyperparameters", _hyperparameters(run, hyperparameters)),
        Section("Parameters", _parameters(run)),
        Section("To run it again", command() + key(run) + batches(run)),
        Section("Environment", environment()),
    ]
    return _ending(run) + _facts(run, rows), sections


def _one(run):
    """Raises for what is not one run whose numbers are known."""
    if not isinstance(run, Run):
        raise TypeError(
            f"Expected run as a lossopt.training.Run, got {type(run).__name__}. Take what "
            "lossopt.fit or lossopt.training.run returns, or the table of lossopt.sweep."
        )
    if any(isinstance(x, Tracer) for x in jax.tree.leaves(run)):
        raise ValueError(
            "A report tells the numbers of a run, and this one is traced by jit, vmap or grad. "
            "Return the run, and write the report outside."
        )
    if shape := np.shape(run.status):
        raise ValueError(
            f"A report tells of one run, and these are several, of shape {shape}. Take one of them "
            "by jax.tree.map(lambda x: x[i], runs)."
        )


def _ending(run):
    """Why it ended, and where."""
    why = run.stopped.value
    kind = "lead alarm" if run.stopped in BROKEN else "lead"
    lines = _page.paragraph(f"{why[0].upper()}{why[1:]}.", kind)
    if run.stopped_at:
        epoch, step, term = run.stopped_at
        where = "the parameters after it" if term is None else f"the term {term}"
        lines += _page.paragraph(
            f"It was in epoch {epoch + 1}, at step {step + 1}, in {where}, counted from 1. The "
            "parameters are the last ones that were finite."
        )
    if run.stopped in UNDONE:
        lines += _page.paragraph("lossopt.fit(..., start=run) goes on from here.")
    return lines


def _facts(run, rows):
    """What is read first."""
    facts, best = [], _best(run)
    if best is not None:
        facts.append((f"best {run.judge}", _told(rows[run.judge][best])))
    facts += [("last train/value", _told(x)) for x in rows["train/value"][-1:]]
    facts += [("parameters", f"{_size(run.params):,}"), ("steps", f"{int(run.steps):,}")]
    facts += [("seconds", f"{x:,.1f}") for x in rows.get("seconds", [])[-1:]]
    return _page.facts(facts)


def _best_and_last(run, rows):
    """The best row of history and the last, beside each other."""
    count, best = len(rows["step"]), _best(run)
    if not count:
        return _page.paragraph("The run came to no row of history.")
    last = count - 1
    places = {"last": last} if best is None else {"best": best, "last": last}
    if best == last:
        places = {"best and last": last}
    if run.judge is None:
        caption = "Nothing judged what is best: there was no validation."
    elif best is None:
        caption = f"No row had a finite {run.judge}: none is best."
    else:
        caption = f"{run.judge} judged what is best."
    if left := int(run.steps) - int(rows["step"][-1]):
        caption += f" {_count(left, 'step')} after the last row: in none."
    names = [f"{name}, row {place + 1} of {count}" for name, place in places.items()]
    cells = ((name, *(_told(x[at]) for at in places.values())) for name, x in rows.items())
    return _page.table(cells, ["", *names], caption=caption, numbers=True, bold=run.judge)


def _hyperparameters(run, more):
    """Those of `fit`, and those that are named here."""
    origin = run.origin or {}
    known = {**(origin.get("hyperparameters") or {}), **(more or {})}
    if known:
        return _page.table((name or "it", _shown(x)) for name, x in known.items())
    if "hyperparameters" in origin:
        return _page.paragraph("None were given.")
    return _page.paragraph("This run does not know them. Name them: report(hyperparameters=...).")


def _parameters(run):
    """Of each leaf its shape and how many numbers it has, and of the states their sums."""
    leaves = list(zip(paths(run.params), jax.tree.leaves(run.params)))
    like = lambda path: re.sub(r"\d+", "*", path) if len(leaves) > LEAVES else path
    kinds = Counter((like(path) or "it", _form(x), math.prod(x.shape)) for path, x in leaves)
    times = lambda shape, many: shape if many == 1 else f"{many} x {shape}"
    rows = [(path, times(shape, n), f"{n * size:,}") for (path, shape, size), n in kinds.items()]
    rows.append(("all", _count(len(leaves), "leaf", "leaves"), f"{_size(run.params):,}"))
    states = {"optimizer's state": run.opt_state, "model state": run.model_state}
    rows += [(name, "", f"{_size(tree):,}") for name, tree in states.items() if _size(tree)]
    return _page.table(rows, ["", "shape", "numbers"], numbers=True, bold="all")


def _best(run):
    """The row that is best; None if there is none."""
    return None if run.best_epoch is None or run.best_epoch < 0 else int(run.best_epoch)


def _size(tree):
    return sum(math.prod(np.shape(x)) for x in jax.tree.leaves(tree))


def _form(x):
    return f"{x.dtype}{list(x.shape)}"


def _shown(x):
    return _form(x) if getattr(x, "shape", ()) else str(x)


def _told(number):
    whole = np.issubdtype(number.dtype, np.integer)
    return f"{int(number):,}" if whole else f"{float(number):.6g}"


def _count(number, one, many=""):
    return f"{int(number):,} {one if number == 1 else many or one + 's'}"
