"""The table of the page: each row is the same schedule in both libraries, at all counts."""

import re
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from lossopt import schedules

PAGE = (Path(__file__).parents[2] / "docs" / "schedules.md").read_text()
TABLE = PAGE.split("## From optax")[1].split("\n\nA warmup")[0]
ROWS = re.findall(r"^\| `([^`]+)` \| `([^`]+)` \|", TABLE, re.MULTILINE)
NUMBERS = {"a": 0.8, "p": 1.5, "e": 0.05, "W": 5, "B": 3, "T": 12, "log": np.log}
COUNTS = np.arange(60)


def _schedule(text, room):
    return eval(text, {**vars(room), **NUMBERS})


@pytest.mark.parametrize(("theirs", "ours"), ROWS, ids=[theirs for theirs, _ in ROWS])
def test_a_row_is_one_schedule(theirs, ours):
    counts = COUNTS[:36] if theirs.startswith("sgdr") else COUNTS
    both = [_schedule(theirs, optax.schedules), _schedule(ours, schedules)]
    want, got = jax.jit(lambda: [jax.vmap(schedule)(counts) for schedule in both])()
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-6)


def test_no_schedule_of_optax_is_left_out():
    public = {n for n in dir(optax.schedules) if re.fullmatch(r"[a-z].*_(schedule|decay)", n)}
    shown = set(re.findall(r"\w+(?:_schedule|_decay)\b", " ".join(theirs for theirs, _ in ROWS)))
    assert shown == public
    assert len(ROWS) == TABLE.count("\n| `")


def test_a_length_of_zero():
    assert optax.linear_schedule(1.0, 0.1, 0)(5) == 1.0
    assert schedules.linear(1.0, 0.1, 0)(5) == np.float32(0.1)
