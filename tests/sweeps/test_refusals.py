"""What a sweep refuses, and what it says then."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lossopt as lo
from lossopt import sweeps
from tests.sweeps.runs import KEY, TASK, TRIALS, sweep

TWO = {"x": np.arange(2.0, dtype=np.float32)}
IDENTITY = lambda numbers, key: numbers["x"]
STATIC = sweeps.grid({"name": sweeps.Static(("a", "b"))}, 1)


def _task(init=IDENTITY, advance=lambda state, steps: state, score=lambda state: state):
    return sweeps.Task(init, advance, score, steps=2)


REFUSED = {
    "no trials": (ValueError, r"at least one trial, got none", {"trials": {"x": np.zeros(0)}}),
    "nothing to vary": (ValueError, r"at least one hyperparameter, got none", {"trials": {}}),
    "other lengths": (
        ValueError,
        r"one leading axis.*'x': 2, 'y': 3",
        {"trials": {**TWO, "y": np.ones(3)}},
    ),
    "a space": (
        TypeError,
        r"got a space, with Linear\(.*\) at 'x'.*Draw trials",
        {"trials": {"x": lo.sweeps.Linear(0, 1)}},
    ),
    "no axis": (ValueError, r"one leading axis", {"trials": {"x": 1.0}}),
    "a number": (TypeError, r"run as a function", {"run": 3}),
    "vectors": (
        ValueError,
        r"real scalars, got the result of dtype float32 and shape \(3,\)",
        {"run": lambda numbers, key: jnp.ones(3) * numbers["x"]},
    ),
    "vectors of a name": (
        ValueError,
        r"got b of dtype float32 and shape \(3,\)",
        {"run": lambda numbers, key: {"a": numbers["x"], "b": jnp.ones(3)}},
    ),
    "complex": (ValueError, r"real scalars.*complex64", {"run": lambda x, key: x["x"] * 1j}),
    "keys": (ValueError, r"real scalars", {"run": lambda x, key: key}),
    "nothing": (ValueError, r"at least one scalar, got none", {"run": lambda x, key: {}}),
    "words": (TypeError, r"not a valid JAX", {"run": lambda x, key: "good"}),
    "no such score": (ValueError, r"score as one of 'loss', which", {"score": "accuracy"}),
    "a taken name": (
        ValueError,
        r"different names, got 'x' as both",
        {"run": lambda numbers, key: {"x": numbers["x"]}},
    ),
    "a fixed name": (
        ValueError,
        r"another name than 'seconds' of a score",
        {"run": lambda numbers, key: {"seconds": numbers["x"]}},
    ),
    "a fixed hyperparameter": (
        ValueError,
        r"another name than 'id' of a hyperparameter",
        {"run": lambda numbers, key: numbers["id"], "trials": {"id": np.arange(2.0)}},
    ),
    "other scores": (
        ValueError,
        r"the same scores, got a of trials of name=.*a.* and b of trials of name=.*b",
        {"run": lambda numbers, key: {numbers["name"]: 1.0}, "trials": STATIC},
    ),
    "a raw key": (TypeError, r"key", {"key": jax.random.PRNGKey(0)}),
    "several keys": (ValueError, r"key", {"key": jax.random.split(KEY, 2)}),
    "mode": (ValueError, r"mode.*'vmap'.*'vmapped'", {"mode": "vmapped"}),
    "chunk": (ValueError, r"chunk.*0", {"chunk": 0}),
    "a broken chunk": (TypeError, r"chunk.*1\.5", {"chunk": 1.5}),
    "no memory": (ValueError, r"memory.*0", {"memory": 0}),
    "no time": (ValueError, r"timeout", {"timeout": 0}),
    "devices": (TypeError, r"mesh as a jax\.sharding\.Mesh", {"mesh": jax.devices()}),
    "on_row": (TypeError, r"on_row", {"on_row": 3}),
    "another shape": (
        ValueError,
        r"advance to keep.*the state from float32\[\] to float32\[1\]",
        {"run": _task(advance=lambda state, steps: state[None])},
    ),
    "another dtype": (
        ValueError,
        r"advance to keep.*from float32\[\] to int32\[\]",
        {"run": _task(advance=lambda state, steps: state.astype(int))},
    ),
    "another tree": (
        ValueError,
        r"advance to return a state like that of init",
        {"run": _task(advance=lambda state, steps: (state,))},
    ),
    "scores of a task": (
        ValueError,
        r"real scalars.*shape \(4,\)",
        {"run": _task(score=lambda state: state * jnp.ones(4))},
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, tmp_path):
    error, said, options = REFUSED[case]
    given = {"run": IDENTITY, "trials": TWO, "checkpoint": tmp_path / "run"} | options
    with pytest.raises(error, match=f"(?s){said}"):
        sweep(**given)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("map", [jax.jit, jax.vmap, jax.grad])
def test_a_traced_call(map):
    call = lambda x: sweep(lambda numbers, key: numbers["x"] * x, TWO)["loss"][0]
    with pytest.raises(TypeError, match=r"sweep is the host's loop, and the call is traced"):
        map(call)(jnp.ones(2) if map is jax.vmap else 1.0)


def test_a_task_looks_at_each_group_first():
    seen = []

    def check(numbers, key):
        seen.append((numbers, jax.random.key_data(key).tolist()))
        raise ValueError("of the check")

    run = sweeps.Task(TASK.init, TASK.advance, TASK.score, steps=2, check=check)
    with pytest.raises(ValueError, match="of the check"):
        sweep(run, TRIALS[3:])
    ((numbers, key),) = seen
    assert numbers["rate"] == TRIALS["rate"][3]
    assert key == jax.random.key_data(jax.random.fold_in(KEY, 3)).tolist()


def test_an_error_of_the_run_is_its_own():
    def run(numbers, key):
        raise KeyError("of the run")

    with pytest.raises(KeyError, match="of the run"):
        lo.sweep(run, TWO, KEY)


def test_a_task_is_told_without_its_data():
    held = jnp.arange(1000.0)
    task = lo.sweeps.Task(lambda n, key: held, lambda state, steps: state, jnp.sum, steps=3)
    assert repr(task) == "Task of 3 steps"
