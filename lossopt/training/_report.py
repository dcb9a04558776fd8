"""What is told of a run: in a few lines, and as tables of its history."""

import csv
import importlib
import json
import math
import os
from collections import Counter
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from lossopt._paths import paths
from lossopt._typing import ArrayLike, PyTree

SHOWN = 8  # leaves
MANY = 100  # leaves, in a note


def shapes(name: str, tree: PyTree) -> list[str]:
    """Lines that tell the leaves of a tree, not their numbers."""
    leaves = jax.tree.leaves(tree)
    kinds = [f"{getattr(x, 'dtype', type(x).__name__)}{list(_shape(x))}" for x in leaves]
    size = sum(math.prod(_shape(x)) for x in leaves)
    head = f"{name}: {size:,} numbers in {len(leaves)} leaves"
    if len(leaves) > SHOWN:
        kinds = [f"{count} x {kind}" for kind, count in Counter(kinds).most_common(SHOWN)]
        return [head, *(f"  {kind}" for kind in kinds)]
    return [head, *(f"  {path or '.'}: {kind}" for path, kind in zip(paths(tree), kinds))]


def told(run: Any) -> str:
    """A run in a few lines; of several at once, or traced ones, shapes alone."""
    facts = jax.tree.leaves((run.status, run.position, run.best_epoch, run.steps, run.history)) or [
        None
    ]
    if not all(map(_known, facts)) or np.ndim(run.status):
        return "\n".join(["Run", *shapes("params", run.params), f"history: {list(run.history)}"])
    rows = np.count_nonzero(np.asarray(run.history["step"]))
    lines = [f"Run: {run.stopped.value}", *shapes("params", run.params)]
    lines += [f"history: {rows} rows, {int(run.steps)} steps"]
    if run.stopped_at:
        lines += ["stopped at: epoch {}, step {}, term {}".format(*run.stopped_at)]
    if run.best_epoch is not None:
        at = int(run.best_epoch)
        value = "none was finite" if at < 0 else f"{run.history[run.judge][at]:.6g}"
        lines += [f"best: row {at}, {run.judge} {value}"]
    return "\n".join(lines)


def to_csv(history: Mapping[str, ArrayLike], path: str | os.PathLike) -> None:
    """A line of names, and one for each row."""
    names, rows = _rows(history)
    with open(os.path.expanduser(path), "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([names, *rows])


def to_jsonl(history: Mapping[str, ArrayLike], path: str | os.PathLike) -> None:
    """An object for each row; JSON has no NaN and no infinity, which are null."""
    names, rows = _rows(history)
    with open(os.path.expanduser(path), "w", encoding="utf-8") as file:
        for row in rows:
            known = {name: x if np.isfinite(x) else None for name, x in zip(names, row)}
            file.write(json.dumps(known) + "\n")


def to_pandas(history: Mapping[str, ArrayLike]) -> Any:
    """A data frame."""
    try:
        pandas = importlib.import_module("pandas")
    except ImportError as error:
        raise ImportError("to_pandas needs the package pandas, which is not installed.") from error
    _rows(history)
    return pandas.DataFrame({name: np.asarray(column) for name, column in history.items()})


def as_json(tree: PyTree) -> dict[str, Any]:
    """What JSON has of the leaves of a tree, by path; of a large one its dtype and shape."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    return {named(path): _number(x) for path, x in leaves[:MANY]}


def _number(x):
    kind = jax.numpy.result_type(x)
    plain = jax.numpy.issubdtype(kind, np.integer) or kind.name == "bool"
    if np.shape(x) or not (plain or jax.numpy.issubdtype(kind, np.floating)):
        return f"{kind}{list(np.shape(x))}"
    value = np.asarray(x)[()]
    if plain:
        return value.item()
    return float(str(value)) if np.isfinite(value) else str(value)  # 0.1 in float32 is 0.1


def _known(x):
    """Whether there are numbers, not a tracer, a shape or an array that was given away."""
    if isinstance(x, jax.Array):
        return not isinstance(x, Tracer) and not x.is_deleted()
    return isinstance(x, np.ndarray | np.generic)


def _rows(history):
    """Names, and rows of Python numbers; raises for several runs."""
    for name, column in history.items():
        if isinstance(column, Tracer) or np.ndim(column) != 1:
            raise ValueError(
                f"A table holds the history of one run, and the column {name!r} has the shape "
                f"{np.shape(column)}{' while it is traced' * isinstance(column, Tracer)}. Take "
                "one of several by jax.tree.map(lambda x: x[i], runs), outside of jit."
            )
    columns = [np.asarray(column).tolist() for column in history.values()]
    return list(history), list(zip(*columns))


def _shape(x):
    return getattr(x, "shape", ())
