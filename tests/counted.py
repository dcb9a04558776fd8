"""How often jax traces, lowers and compiles."""

import threading
from contextlib import contextmanager
from types import SimpleNamespace

import jax

_EVENTS = {
    "traces": "/jax/core/compile/jaxpr_trace_duration",
    "lowered": "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "compiled": "/jax/core/compile/backend_compile_duration",
}
_seen = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: _seen.append((threading.get_ident(), event))
)


@contextmanager
def counted():
    """What happens within, by the end: `traces`, `lowered`, `compiled`.

    A program read from the cache on disk counts as compiled, too. Other threads, such as those that
    land a save of the test before, are not counted.
    """
    count, here = SimpleNamespace(), threading.get_ident()
    _seen.clear()
    yield count
    vars(count).update({name: _seen.count((here, event)) for name, event in _EVENTS.items()})
