"""The judge of what `Checkpoints` makes of damage.

Owed after every damage: never a wrong value without an error, never the loss of an older good step,
a reason that names step and file and says what to do, and a number that can be saved again.
"""

import warnings
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

import lossopt as lo
from lossopt.checkpoint._store import Store
from tests.checkpoint.damage import Harm, contents, state, steps_of

WAYS = {  # how a reason says what gave a damage away
    "manifest": "manifest.json",
    "missing": " is missing",
    "size": " bytes of ",
    "hash": "its SHA-256 differs",
    "digest": "its digest differs",
    "TensorStore": " cannot be read",
}


def judge(directory: Path, harms: dict[int, Harm], on: bool = True) -> dict[int, str]:
    """Holds what is owed after every damage; returns the reasons that were given.

    Training goes on past the damage, too, unless `on` is false.
    """
    before, steps = contents(directory), steps_of(directory)
    good = [step for step in steps if step not in harms]
    with lo.checkpoint.Checkpoints(directory, keep=100) as checkpoints:
        report = checkpoints.verify()
        assert (report.verified, set(report.damaged)) == (tuple(good), set(harms)), (harms, report)
        assert contents(directory) == before
        for step, reason in report.damaged.items():
            assert any(name in reason for name in harms[step].names), (harms, reason)
        if not good:
            _no_refuge(checkpoints, harms, before)
            return dict(report.damaged)
        newest, skipped = good[-1], [step for step in steps if step > good[-1]]
        moved = _moved(directory, before, skipped)
        restored, told, opened = restore(checkpoints)
        assert restored.step == newest, harms
        assert_same(restored.state, state(newest))
        assert contents(directory) == moved
        assert opened <= {newest, *(step for step in skipped if harms[step].fits)}
        _hold_words(directory, {step: harms[step] for step in skipped}, restored.skipped, told)
        for step in [*skipped, steps[-1] + 10] if on else []:
            checkpoints.save(step, state(step))
            restored, told, _ = restore(checkpoints)
            assert (restored.step, dict(restored.skipped), told) == (step, {}, [])
            assert_same(restored.state, state(step))
        assert set(checkpoints.verify().damaged) == set(harms) - set(skipped)
    now = contents(directory)
    assert {name: now[name] for name in moved} == moved
    return dict(report.damaged)


def judge_fitting(directory: Path) -> str:
    """Holds what is owed where the hashes fit whatever damage the newest step has.

    Returns what found it. Damage that no leaf feels may pass; what only Orbax feels is an error.
    """
    *_, older, step = steps_of(directory)
    before, moved = contents(directory), _moved(directory, contents(directory), [step])
    with lo.checkpoint.Checkpoints(directory, keep=100) as checkpoints:
        try:
            restored, told, _ = restore(checkpoints)
        except RuntimeError as error:
            restored, told = None, [str(error)]
    if restored is None:
        assert f"{directory}/{step:08d} verifies, but Orbax could not restore it" in told[0]
        assert contents(directory) == before
        return "error"
    assert_same(restored.state, state(restored.step))
    if restored.step == step:
        assert (dict(restored.skipped), told, contents(directory)) == ({}, [], before)
        return "harmless"
    assert (restored.step, set(restored.skipped)) == (older, {step})
    assert contents(directory) == moved
    return way(restored.skipped[step])


def restore(checkpoints, like=None):
    """What was restored, the warnings, and the steps whose files Orbax was given."""
    spy = mock.patch.object(Store, "read", autospec=True, side_effect=Store.read)
    with warnings.catch_warnings(record=True) as heard, spy as read:
        warnings.simplefilter("always")
        restored = checkpoints.restore(state(0) if like is None else like)
    told = [str(w.message) for w in heard if issubclass(w.category, UserWarning)]
    return restored, told, {int(call.args[1].name) for call in read.call_args_list}


def way(reason: str) -> str:
    """What gave the damage away."""
    return next(name for name, text in WAYS.items() if text in reason)


def assert_same(got, want):
    """The same kinds of leaves with the same bits."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
        assert type(one) is type(other)
        if isinstance(one, jax.Array) and jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        one, other = np.asarray(one), np.asarray(other)
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert one.tobytes() == other.tobytes()


def _hold_words(directory, harms, reasons, told):
    """A warning for each step that was skipped, which helps."""
    assert (set(reasons), len(told)) == (set(harms), len(harms)), (harms, reasons)
    for step, done in harms.items():
        message = next(text for text in told if f"Step {step} in {directory} " in text)
        assert f"set aside as {directory}/{step:08d}.damaged" in message
        assert "Look after the disk" in message
        for text in (message, reasons[step]):
            assert any(name in text for name in done.names), (done, text)


def _no_refuge(checkpoints, harms, before):
    """All steps are damaged: an error names each, and all stay where they are."""
    try:
        restored = checkpoints.restore(state(0))
    except RuntimeError as error:
        said = str(error)
    else:
        raise AssertionError(f"step {restored.step} was restored after {harms}")
    for step, done in harms.items():
        (line,) = (line for line in said.splitlines() if line.startswith(f"step {step}: "))
        assert any(name in line for name in done.names), (done, line)
    assert "Bring a copy of a step back" in said
    assert contents(checkpoints.directory) == before


def _moved(directory, before, skipped):
    """The contents after these steps were set aside under the first names that are free."""
    aside = {}
    for step in (f"{step:08d}" for step in skipped):
        names = [f"{step}.damaged", *(f"{step}.damaged-{k}" for k in range(2, 99))]
        aside[step] = next(name for name in names if not (directory / name).exists())
    parts = {name: name.split("/", 1) for name in before}
    return {
        "/".join([aside.get(first, first), *rest]): before[name]
        for name, (first, *rest) in parts.items()
    }
