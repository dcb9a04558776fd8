"""What every gradient transformation must do."""

import inspect
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lossopt._typing import Array, Number
from lossopt.testing._laws import close, require

STEPS = 4


class Subject(NamedTuple):
    """A transformation and how to call it."""

    make: Callable[..., optax.GradientTransformation]
    numbers: dict[str, Number]
    extra: dict[str, Any]
    wide: bool


def check_transform(
    make: Callable[..., optax.GradientTransformation],
    numbers: Mapping[str, Number],
    *,
    extra: Mapping[str, Any] | None = None,
    wide: bool = False,
) -> None:
    """Asserts the laws of a gradient transformation.

    Updates look like the parameters; the state keeps its structure, shapes and dtypes in `scan`,
    behind another transformation in `optax.chain`, for bfloat16 parameters and traced numbers; a
    second step compiles nothing; `vmap` over each number is a loop over it; each number may be a
    schedule; it works inside `optax.masked`, `optax.partition` and `optax.inject_hyperparams`.

    Args:
      make: builds the transformation: `make(**numbers)`. Bind all else by `functools.partial`.
      numbers: its numbers by name, each away from the ends of its range.
      extra: further arguments of `update`, such as `{"value": 1.0}`.
      wide: whether updates of low-precision parameters are float32.

    Raises:
      AssertionError: at the first law that does not hold; the message says which, and for which
        number or inside of what.

    Examples:
      >>> lo.testing.check_transform(lo.transforms.sgd, {"learning_rate": 0.1})
    """
    subject = Subject(make, dict(numbers), dict(extra or {}), wide)
    for law in LAWS:
        try:
            law(subject)
        except Exception as error:
            raise AssertionError(f"{inspect.getdoc(law)} Got: {_told(error)}") from error


def updates_look_like_params(subject):
    """Structure, shapes and dtypes are those of the parameters."""
    transform = optax.with_extra_args_support(subject.make(**subject.numbers))
    params = _params()
    update = lambda params: transform.update(
        params, transform.init(params), params, **subject.extra
    )
    updates, _ = jax.eval_shape(update, params)
    want = jax.tree.map(lambda x: x.astype(jnp.float32), params) if subject.wide else params
    _same_types("updates must look like the parameters", updates, want)


def state_is_fixed_in_scan(subject):
    """Structure, shapes and dtypes of the state outlast a step."""
    jax.eval_shape(lambda: _walk(subject.make(**subject.numbers), subject.extra))


def a_second_step_compiles_nothing(subject):
    """The state that comes out of a step has the type of the one that went in."""
    transform = optax.with_extra_args_support(subject.make(**subject.numbers))
    traces = []

    @jax.jit
    def step(params, state):
        traces.append(1)
        return transform.update(params, state, params, **subject.extra)[1]

    params = _params()
    state = transform.init(params)
    for _ in range(3):
        state = step(params, state)
    once = len(traces) == 1
    require(once, "a second step must not compile again; the state's types changed")


def numbers_may_be_vmapped(subject):
    """A `vmap` over the numbers, each changed in its turn, gives what a loop over them gives."""
    _for_all_or_each(_vmapped, subject)


def numbers_may_be_schedules(subject):
    """A schedule that is constant does what its number does."""
    _for_all_or_each(_scheduled, subject)


def it_works_inside_optax(subject):
    """In `masked`, `partition` and `inject_hyperparams`, leaf by leaf as alone."""
    first = {"w": True, "b": False}
    static = set(inspect.signature(subject.make).parameters) - set(subject.numbers)
    hosts = {
        "masked": lambda: optax.masked(subject.make(**subject.numbers), first),
        "partition": lambda: optax.partition(
            {True: subject.make(**subject.numbers), False: optax.set_to_zero()}, first
        ),
        "inject_hyperparams": lambda: optax.masked(
            optax.inject_hyperparams(subject.make, static_args=static)(**subject.numbers), first
        ),
    }

    def walk(name):
        with _case(f"inside optax.{name}"):
            return _walk(hosts[name](), subject.extra)

    @jax.jit
    def walked():
        with _case("on one leaf alone"):
            alone = _walk(subject.make(**subject.numbers), subject.extra, {"w": _params()["w"]})
        return alone, {name: walk(name) for name in hosts}

    alone, hosted = walked()
    for name, got in hosted.items():
        _close(f"it must work inside optax.{name}", got["w"], alone["w"])


LAWS = (
    updates_look_like_params,
    state_is_fixed_in_scan,
    a_second_step_compiles_nothing,
    numbers_may_be_vmapped,
    numbers_may_be_schedules,
    it_works_inside_optax,
)


def _for_all_or_each(law, subject):
    """For all numbers at once; where that fails, for one after the other, to name it."""
    try:
        law(subject, list(subject.numbers))
    except Exception:
        for name in subject.numbers:
            with _case(name):
                law(subject, [name])
        raise


def _vmapped(subject, names):
    if not names:
        return
    walk = lambda some: _walk(subject.make(**subject.numbers | some), subject.extra)
    some = {name: subject.numbers[name] for name in names}
    each = [{n: _other(x) if n == name else x for n, x in some.items()} for name in names]
    stacked = jax.tree.map(lambda *xs: np.stack(xs), some, *each)
    together, looped = jax.jit(lambda xs: (jax.vmap(walk)(xs), jax.lax.map(walk, xs)))(stacked)
    _close("vmap must be a loop", together, looped)


def _scheduled(subject, names):
    numbers = {name: jnp.asarray(x) for name, x in subject.numbers.items()}
    constant = lambda x: lambda count: x + 0 * count.astype(x.dtype)
    schedules = numbers | {name: constant(numbers[name]) for name in names}
    walk = lambda numbers: _walk(subject.make(**numbers), subject.extra)
    _close("numbers may be schedules", *jax.jit(lambda: (walk(schedules), walk(numbers)))())


@contextmanager
def _case(name):
    """Names the case in what is raised."""
    try:
        yield
    except Exception as error:
        raise AssertionError(f"{name}: {_told(error)}") from error


def _told(error):
    known = isinstance(error, AssertionError)
    return f"{error}" if known else f"{type(error).__name__}: {error}"


def _params() -> dict[str, Array]:
    w = jnp.array([[0.5, -1.0, 2.0], [-0.25, 0.125, -1.5]])
    return {"w": w, "b": jnp.array([1.0, -0.5, 0.25], jnp.bfloat16)}


def _walk(transform, extra, params=None) -> Any:
    """Parameters after some steps on a quadratic, behind a clip."""
    params = _params() if params is None else params
    optimizer = optax.chain(optax.clip(3.0), transform)
    start = params, optimizer.init(params)

    def step(carry, i):
        params, state = carry
        gradients = jax.tree.map(lambda x: x * (1 + i / STEPS).astype(x.dtype), params)
        updates, new = optimizer.update(gradients, state, params, **extra)
        _same_types("a state must keep its structure, shapes and dtypes", new, state)
        return (optax.apply_updates(params, updates), new), None

    return jax.lax.scan(step, start, jnp.arange(STEPS))[0][0]


def _other(number):
    return 0.9 * number if jnp.issubdtype(jnp.result_type(number), jnp.floating) else number + 1


def _same_types(law, got, want):
    types = lambda tree: jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), tree)
    require(types(got) == types(want), f"{law}; got {types(got)} for {types(want)}")


def _close(law, got, want):
    close(law, *(jax.tree.map(lambda x: np.asarray(x, np.float32), tree) for tree in (got, want)))
