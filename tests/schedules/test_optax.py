"""The table of the page: each row is the same schedule in both libraries, at all counts."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lossopt import schedules
from tests.schedule_cases import SCHEDULES

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


def test_every_schedule_of_optax_works_in_ours():
    theirs = [_schedule(theirs, optax.schedules) for theirs, _ in ROWS]
    around = lambda x: schedules.per_epoch(schedules.scale(schedules.warmup(x, 3), 2.0), 0.5)
    of = lambda schedule, counts: jax.vmap(schedule)(np.array(counts))
    both = lambda: [(of(around(x), [0, 1, 2, 5]), of(x, [0, 0, 1, 7])) for x in theirs]
    for got, want in jax.jit(both)():
        np.testing.assert_allclose(got, want * np.array([2 / 3, 2, 2, 2]), rtol=1e-5)


@pytest.mark.parametrize("case", SCHEDULES.values(), ids=SCHEDULES)
def test_every_schedule_of_ours_works_in_optax(case):
    ours = case.make(**case.arguments)
    optimizer = optax.sgd(optax.join_schedules([optax.constant_schedule(0.0), ours], [2]))

    def step(state, _):
        update, state = optimizer.update(jnp.ones(()), state)
        return state, update

    _, updates = jax.lax.scan(step, optimizer.init(jnp.zeros(())), length=8)
    want = [0, 0, *(-case.reference(count) for count in range(6))]
    np.testing.assert_allclose(updates, want, rtol=1e-5, atol=1e-7)
