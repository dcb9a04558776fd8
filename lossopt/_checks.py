"""Refusals. Every message says what came, what was wanted, what to do.

Shapes, dtypes and Python numbers are known while tracing and raise at once. Values of arrays are
not: a `condition` costs nothing in a compiled program and speaks only under
`jax.experimental.checkify.checkify`.
"""

import operator
from collections.abc import Hashable
from typing import Any, SupportsIndex, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental import checkify

from lossopt._numerics import still, wide
from lossopt._typing import Array, ArrayLike, Axis, PyTree


def shape(name: str, array: ArrayLike) -> tuple[int, ...]:
    """The shape of an array or number; raises for all else, such as a list."""
    if not hasattr(array, "dtype") and not isinstance(array, bool | int | float | complex):
        raise TypeError(
            f"Expected {name} as an array or a number, got {type(array).__name__}. "
            "Make an array of it first, with jnp.asarray."
        )
    return jnp.shape(array)


def dtype(name: str, array: ArrayLike) -> np.dtype:
    """The dtype of an array or number; raises for all else, such as a list."""
    shape(name, array)
    return jnp.result_type(array)


def floats(**arrays: ArrayLike) -> list[Array]:
    """The named arrays in one dtype, float32 or wider: low precision never reaches a sum."""
    dtypes = {name: dtype(name, array) for name, array in arrays.items()}
    for name, kind in dtypes.items():
        if jnp.issubdtype(kind, jnp.complexfloating):
            raise TypeError(f"Expected real {name}, got {kind}. Take its parts apart.")
    widest = wide(*dtypes.values())  # of Python numbers, too
    return [jnp.asarray(array, widest) for array in arrays.values()]


def same_shape(**arrays: ArrayLike) -> list[Array]:
    """The named arrays as `floats`, all of one shape, because broadcasting hides bugs.

    They have no slope where one of them is -inf, as padding may be.
    """
    shapes = {name: shape(name, array) for name, array in arrays.items()}
    if len(set(shapes.values())) > 1:
        got = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"Expected equal shapes, got {got}. Reshape one of them explicitly.")
    return still(*floats(**arrays))


def prefix_shape(leading: tuple[int, ...], **arrays: ArrayLike) -> None:
    """Raises unless the named arrays index the leading axes of a shape."""
    for name, array in arrays.items():
        got = shape(name, array)
        if leading[: len(got)] != got:
            raise ValueError(
                f"Expected {name} to match the leading axes of {leading}, got {got}: "
                "one number per example, or one per element."
            )


def exact_shape(wanted: tuple[int, ...], **arrays: ArrayLike) -> None:
    """Raises unless the named arrays have this shape."""
    for name, array in arrays.items():
        got = shape(name, array)
        if got != wanted:
            raise ValueError(
                f"Expected {name} of shape {wanted}, got {got}. Reshape it explicitly."
            )


def rank_at_least(rank: int, **arrays: ArrayLike) -> None:
    """Raises where an array has fewer axes than `rank`."""
    for name, array in arrays.items():
        got = shape(name, array)
        if len(got) < rank:
            raise ValueError(f"Expected {name} with at least {rank} axes, got shape {got}.")


def floating(**arrays: ArrayLike) -> None:
    """Raises where a leaf of the parameters is no floating array, and so has no step."""
    for name, array in arrays.items():
        if not jnp.issubdtype(jnp.result_type(array), jnp.inexact):
            raise ValueError(
                f"Expected floating {name}, got {jnp.result_type(array)}. Name the leaves that "
                "are meant with lossopt.regularizers.by_path. (optax.inject_hyperparams takes a "
                "regularizer for a schedule: name it in static_args.)"
            )


def integers(**arrays: ArrayLike) -> list[Array]:
    """The named arrays, which must hold integers."""
    for name, array in arrays.items():
        if not jnp.issubdtype(dtype(name, array), jnp.integer):
            raise TypeError(
                f"Expected integer {name}, got {jnp.result_type(array)}. "
                "Convert class numbers with astype(int); pass distributions where they are taken."
            )
    fits(**arrays)
    return [jnp.asarray(array) for array in arrays.values()]


def mask(name: str, array: ArrayLike | None, *shapes: tuple[int, ...]) -> Array:
    """A boolean array of one of the shapes, broadcast to the first; None is True everywhere."""
    array = jnp.ones(shapes[0], bool) if array is None else array
    if shape(name, array) not in shapes:
        wanted = " or ".join(map(str, shapes))
        raise ValueError(f"Expected {name} of shape {wanted}, got {jnp.shape(array)}.")
    if dtype(name, array) != jnp.bool_:
        raise TypeError(
            f"Expected a boolean {name}, got {dtype(name, array)}. Compare with `!= 0`."
        )
    return jnp.broadcast_to(array, shapes[0])


def axes(axis_name: Axis) -> tuple[Hashable, ...]:
    """The names of axes of an enclosing map as a tuple; None and () name none."""
    if not isinstance(axis_name, Hashable):
        raise TypeError(
            f"Expected axis_name as a name, a tuple of names or None, got {axis_name!r}. "
            "Write several names as a tuple."
        )
    if axis_name is None:
        return ()
    return axis_name if isinstance(axis_name, tuple) else (axis_name,)


def typed_key(key: PyTree) -> None:
    """Raises on a raw `uint32` key, which nobody can tell from data; None passes."""
    for leaf in jax.tree.leaves(key):
        if not jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
            raise TypeError(
                f"Expected a typed PRNG key, got {jnp.result_type(leaf)}. "
                "Make it with jax.random.key(seed), or wrap it by jax.random.wrap_key_data."
            )


def given_key(key: PyTree) -> None:
    """Raises where there is no typed key."""
    typed_key(key)
    if key is None:
        raise TypeError("Expected a typed PRNG key, got None. Make it with jax.random.key(seed).")


def functions(**given: Any) -> None:
    """Raises where something cannot be called; None passes."""
    for name, function in given.items():
        if function is not None and not callable(function):
            raise TypeError(
                f"Expected {name} as a function, got {function!r}. Pass what is to be called."
            )


def fits(**numbers: ArrayLike) -> None:
    """Raises where a whole number is beyond the integers of jax, which would wrap it."""
    for name, number in numbers.items():
        kind = dtype(name, number)
        if isinstance(number, jax.Array) or not jnp.issubdtype(kind, jnp.integer):
            continue
        whole, limits = np.asarray(number), jnp.iinfo(kind)
        if np.can_cast(whole.dtype, kind):
            continue
        strays = whole[(whole < limits.min) | (whole > limits.max)]
        if strays.size:
            raise ValueError(
                f"Expected {name} within {limits.bits} bits, got {strays[0]}. Write a number as a "
                "float; count classes and identities from 0."
            )


def one_of(**given: tuple[Any, Any]) -> None:
    """Raises where a name is none of a `Literal`; each is given as a pair of both."""
    for name, (got, kind) in given.items():
        if got not in get_args(kind):
            wanted = ", ".join(map(repr, get_args(kind)))
            raise ValueError(f"Expected {name} as one of {wanted}, got {got!r}. Choose one.")


def count(name: str, number: SupportsIndex, low: int) -> int:
    """A whole number, at least `low` and however large: it stays on the host."""
    try:
        whole = operator.index(number)
    except TypeError:
        raise TypeError(f"Expected {name} as a whole number, got {number!r}. Round it.") from None
    if isinstance(number, bool):
        raise TypeError(f"Expected {name} as a whole number, got {number}. Give the number itself.")
    if whole < low:
        raise ValueError(f"Expected {name} >= {low}, got {whole}. Choose {name} within this range.")
    return whole


def at_least(low: float, **numbers: ArrayLike) -> None:
    """Raises where a number is below `low`; a tracer, whose value nobody knows yet, passes."""
    _refuse(f">= {low}", lambda x: x >= low, numbers)


def at_most(high: float, **numbers: ArrayLike) -> None:
    """Raises where a number is above `high`; a tracer passes."""
    _refuse(f"<= {high}", lambda x: x <= high, numbers)


def above(low: float, **numbers: ArrayLike) -> None:
    """Raises where a number is not above `low`; a tracer passes."""
    _refuse(f"> {low}", lambda x: x > low, numbers)


def below(high: float, **numbers: ArrayLike) -> None:
    """Raises where a number is not below `high`; a tracer passes."""
    _refuse(f"< {high}", lambda x: x < high, numbers)


def condition(holds: ArrayLike, message: str, **values: ArrayLike) -> None:
    """States what must hold for values; `{name}` in the message shows a value."""
    checkify.debug_check(jnp.all(jnp.asarray(holds)), message, **values)


def nonnegative(member: str, **arrays: ArrayLike) -> None:
    """States that no value of the named arrays is below 0, or NaN; `member` is who expects it."""
    for name, array in arrays.items():
        low = jnp.min(jnp.asarray(array), initial=0)
        condition(low >= 0, f"{member}: expected {name} >= 0, got {{low}}.", low=low)


def _refuse(wanted, holds, numbers):
    fits(**numbers)
    for name, number in numbers.items():
        if not isinstance(number, Tracer) and not np.all(holds(np.asarray(number))):
            raise ValueError(
                f"Expected {name} {wanted}, got {number}. Choose {name} within this range."
            )
