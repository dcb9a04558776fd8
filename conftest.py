"""Strict settings for every test, doctest and snippet, set before jax starts."""

import gc
import math
import os
import signal

from tests.xla import quick

os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        quick(),
    ]
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sybil
from sybil.parsers.markdown import PythonCodeBlockParser

import lossopt as lo
from lossopt import _programs

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_disable_most_optimizations", True)  # compiling takes longer than running

NAMES = {"jax": jax, "jnp": jnp, "np": np, "optax": optax, "lo": lo}


def _as_a_newcomer(namespace):
    """Snippets run with jax's own settings."""
    namespace.update(NAMES)
    jax.config.update("jax_numpy_rank_promotion", "allow")
    _keep_programs(False)


def _strict_again(namespace):
    jax.config.update("jax_numpy_rank_promotion", "raise")
    _keep_programs(True)


_LEAST = jax.config.values["jax_persistent_cache_min_compile_time_secs"]


def _keep_programs(kept):
    """What is never written to the compilation cache is never read, see `uncached`."""
    least = _LEAST if kept else math.inf
    jax.config.update("jax_persistent_cache_min_compile_time_secs", least)


pytest_collect_file = sybil.Sybil(
    parsers=[PythonCodeBlockParser()],
    patterns=["*.md"],
    setup=_as_a_newcomer,
    teardown=_strict_again,
).pytest()


def pytest_collection_finish():
    """What tracing leaves behind is many objects and few cycles."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


_compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: "backend_compile" in event and _compiled.append(event)
)


@pytest.fixture(autouse=True, scope="module")
def _no_programs_of_other_files():
    """Thousands of compiled programs take gigabytes, and the collector ever more time."""
    yield
    if len(_compiled) > 400:
        _forget()


def _forget():
    _programs.clear()
    jax.clear_caches()
    _compiled.clear()


@pytest.fixture(scope="module")
def optimized():
    """Of files whose programs run for long, or whose bits a compiler might change."""
    _forget()
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)
    _forget()


@pytest.fixture(scope="module")
def uncached():
    """Of programs with several collectives: XLA:CPU may run those of a cache in any order, and
    devices that begin with different ones wait for ever. `train_step` sees to its own.
    """
    _keep_programs(False)
    yield
    _keep_programs(True)


@pytest.fixture(autouse=True, scope="session")
def _listening():
    """A shell that starts the tests in the background has SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def _names_in_examples(doctest_namespace):
    doctest_namespace.update(NAMES)
