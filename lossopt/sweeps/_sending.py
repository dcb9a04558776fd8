"""What workers of an executor are to know: the program as bytes, the key, the settings of jax."""

import hashlib
import pickle
import sys
import warnings
from functools import cache
from importlib import metadata
from typing import Any, NamedTuple

import jax
import numpy as np

from lossopt._typing import PyTree
from lossopt.sweeps._memory import shown
from lossopt.sweeps._trial import Statics

LARGE = 100e6  # bytes of a program, from where on it is said
SETTINGS = (  # of jax, which programs and their bits depend on
    "jax_debug_infs",
    "jax_debug_nans",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_disable_jit",
    "jax_disable_most_optimizations",
    "jax_enable_custom_prng",
    "jax_enable_x64",
    "jax_exec_time_optimization_effort",
    "jax_explicit_x64_dtypes",
    "jax_high_dynamic_range_gumbel",
    "jax_legacy_prng_key",
    "jax_memory_fitting_effort",
    "jax_numpy_dtype_promotion",
    "jax_numpy_rank_promotion",
    "jax_optimization_level",
    "jax_random_seed_offset",
    "jax_softmax_custom_jvp",
    "jax_threefry_partitionable",
)
_PROTOCOL = 5


class Kind(NamedTuple):
    """What the trials of a group have in common, for who does not know it.

    Attributes:
      statics: pairs of a name and its option.
      values: shapes of the values of one trial.
      program: a digest of what they run, as traced by the caller: of a function that goes by its
        name, and was edited and loaded again, the bytes are the same otherwise.
    """

    statics: Statics
    values: PyTree
    program: str


class Sent(NamedTuple):
    """What goes to a worker with each chunk.

    Attributes:
      program: `run` and the kinds of trials as bytes, which a worker reads once.
      digest: of them.
      key: raw data of the key of the sweep.
      impl: the name of its kind.
      settings: of jax, pairs of a name and a value.
      versions: of what computes, as words.
      traced: for what the caller traced the program, as words.
    """

    program: bytes
    digest: str
    key: np.ndarray
    impl: str
    settings: tuple[tuple[str, Any], ...]
    versions: str
    traced: str


def sent(run: Any, kinds: list[Kind], key: Any) -> Sent:
    """The program as it goes to workers: functions by name where these can import them.

    Args:
      run: of the sweep.
      kinds: of its trials.
      key: of the sweep.

    Raises:
      TypeError: if something in it cannot be sent.
      ImportError: if something in it has no name to import, and cloudpickle is not installed.
    """
    program = _packed(run, kinds)
    _read_again(program)
    settings = tuple((name, x) for name, x in jax.config.values.items() if name in SETTINGS)
    raw, impl = np.asarray(jax.random.key_data(key)), str(jax.random.key_impl(key))
    digest = hashlib.sha256(program).hexdigest()
    return Sent(program, digest, raw, impl, settings, versions(), traced())


def warned(sent: Sent) -> None:
    """Says it where a program is large."""
    if len(sent.program) > LARGE:
        warnings.warn(
            f"run and what it closes over are {shown(len(sent.program))}, which travel to a worker "
            "with each chunk. Load the data inside of the function, from a place that the workers "
            "see.",
            stacklevel=5,
        )


@cache
def versions() -> str:
    """Of what computes, as words."""
    named = (f"{name} {metadata.version(name)}" for name in ("jax", "jaxlib", "lossopt"))
    return ", ".join([*named, f"Python {sys.version_info.major}.{sys.version_info.minor}"])


def traced() -> str:
    """For what programs are traced here, beside settings of jax, as words."""
    mesh = jax.sharding.get_abstract_mesh()
    return f"{jax.device_count()} devices of {jax.default_backend()}, {mesh}"


def packed(thing: Any) -> bytes:
    """Something as bytes, what has no name by cloudpickle; raises what that raises."""
    if _by_value():
        return _cloudpickle().dumps(thing, protocol=_PROTOCOL)
    try:
        found = pickle.dumps(thing, protocol=_PROTOCOL)
    except Exception:
        return _cloudpickle().dumps(thing, protocol=_PROTOCOL)
    # a worker has another main module
    return _cloudpickle().dumps(thing, protocol=_PROTOCOL) if b"__main__" in found else found


def _packed(run, kinds):
    try:
        return packed((run, kinds))
    except ImportError as error:
        raise ImportError(
            "run, or what it closes over, has no name that workers can import: a function in a "
            "module has, a closure, a lambda or a function of a script has not. Install "
            "cloudpickle here and there (the extra [cluster]), or move it to a module."
        ) from error
    except Exception as error:
        raise TypeError(
            f"Expected a run that can be sent to workers, got one that cannot: {error!r}. Files, "
            "locks, generators, clients, devices and meshes stay where they are: open or make them "
            "inside of the function."
        ) from error


def _read_again(program):
    """Refuses bytes of which nothing can be made: here it is said better than on a worker."""
    try:
        pickle.loads(program)
    except Exception as error:
        raise TypeError(
            "Expected a run that workers can read, got one that cannot be made of its own bytes: "
            f"{error!r}. Such are functions of jax.custom_vjp that are not in a module: put them "
            "into one, where they go by their names, or make them inside of the function."
        ) from error


def _by_value():
    """Whether the user has modules that are to travel."""
    loaded = sys.modules.get("cloudpickle")
    return loaded is not None and bool(loaded.list_registry_pickle_by_value())


def _cloudpickle():
    import cloudpickle

    return cloudpickle
