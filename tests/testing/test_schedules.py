"""Each law of a schedule is broken by a schedule that breaks no other."""

from functools import partial

import jax
import jax.numpy as jnp
import optax
import pytest

import lossopt as lo

check = partial(lo.testing.check_schedule, steps=10, start=1.0, end=0.1)


def _line(count):
    return 1.0 - 0.09 * jnp.minimum(count, 10)


def _traced(factor):
    def schedule(count):
        return _line(count) * (factor if isinstance(count, jax.core.Tracer) else 1.0)

    return schedule


def _under_vmap_only(count):
    """Wrong where it is mapped, right where it is compiled."""

    @jax.custom_batching.custom_vmap
    def line(count):
        return _line(count)

    line.def_vmap(lambda size, batched, count: (1.01 * _line(count), True))
    return line(count)


@pytest.mark.parametrize(
    "schedule",
    [
        _line,
        optax.linear_schedule(1.0, 0.1, 10),
        optax.join_schedules(
            [optax.linear_schedule(1.0, 0.5, 5), lambda t: 0.5 - 0.08 * jnp.minimum(t, 5)], [5]
        ),
        lambda count: 1.0 - 0.09 * min(count, 10) if isinstance(count, int) else _line(count),
    ],
)
def test_good_schedules_pass(schedule):
    check(schedule)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (lambda count: _line(count) * jnp.ones(1), "shape"),
        (lambda count: _line(count) / jnp.where(count == 3, 0, 1), "finite"),
        (lambda count: _line(count) / jnp.where(count == 13, 0, 1), "finite"),
        (lambda count: _line(count) + jnp.where(count == 0, jnp.nan, 0), "finite"),
        (_traced(1.01), "jit must agree"),
        (_under_vmap_only, "vmap must agree"),
        (lambda count: _line(count) + jnp.where(count == 0, 0.1, 0), "the start"),
        (lambda count: _line(count) + jnp.where(count == 10, 0.1, 0), "the end must be held"),
        (lambda count: _line(count) + jnp.where(count == 13, 0.1, 0), "the end must be held"),
        (lambda count: 1.0 - 0.09 * count, "the end must be held"),
    ],
)
def test_bad_schedules_are_caught(schedule, message):
    with pytest.raises(AssertionError, match=message):
        check(schedule)


def test_an_open_start_or_end_is_not_asked():
    endless = lambda count: 1.0 / (1.0 + count)
    lo.testing.check_schedule(endless, 5)
    lo.testing.check_schedule(endless, 5, start=1.0)
    with pytest.raises(AssertionError, match="the end"):
        lo.testing.check_schedule(endless, 5, end=1 / 6)
    with pytest.raises(AssertionError, match="the start"):
        lo.testing.check_schedule(endless, 5, start=2.0)


@pytest.mark.parametrize("size", [0.0, 1e-3])
def test_small_numbers_are_told_apart(size):
    lo.testing.check_schedule(lambda count: size + 0 * count, 3, start=size, end=size)
    for other in ({"start": size + 1e-5}, {"end": size + 1e-5}):
        with pytest.raises(AssertionError):
            lo.testing.check_schedule(lambda count: size + 0 * count, 3, **other)


def test_what_cannot_be_traced_is_told_so():
    branching = lambda count: 1.0 - 0.09 * count if count < 10 else 0.1
    with pytest.raises(AssertionError, match="jit"):
        check(branching)
