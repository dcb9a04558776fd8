"""What it takes to run it again, as HTML: command, key, batches, versions and devices."""

import datetime
import importlib.metadata
import json
import platform
import shlex
import sys
from collections import Counter

import jax

from lossopt.plots import _page
from lossopt.training._run import Run

PACKAGES = "lossopt", "jax", "jaxlib", "optax", "numpy"


def command() -> str:
    """How this process was started."""
    return _page.code(shlex.join(sys.orig_argv)) if sys.orig_argv else ""


def key(run: Run) -> str:
    """An expression that gives the key of the run."""
    words = _identity(run).get("key", "")
    return _page.code(f"key = {key_of(words)}") if words else ""


def key_of(words: str) -> str:
    """An expression that gives a key, from its implementation and its data as text."""
    implementation, _, data = words.rpartition(" [")  # the name of one's own may have spaces
    numbers = json.loads(f"[{data}")
    if implementation == "threefry2x32" and numbers[0] == 0 and numbers[1] < 2**31:
        return f"jax.random.key({numbers[1]}, impl={implementation!r})"
    array = f"np.array({numbers}, np.uint32)"
    return f"jax.random.wrap_key_data({array}, impl={implementation!r})"


def batches(run: Run) -> str:
    """How the data were cut, and a digest of what was read."""
    identity = _identity(run)
    if not identity:
        return _page.paragraph("Neither key nor batches are known: runs of lossopt.fit know them.")
    rows = [
        (name.removeprefix("source.").replace("_", " ") if "/" not in name else name, x)
        for name, x in identity.items()
        if name != "key"
    ]
    return _page.table(
        rows, caption="Batches, and of each array its shape and a digest of its ends."
    )


def environment() -> str:
    """Versions, platform and devices of this process."""
    kinds = Counter((device.platform, device.device_kind) for device in jax.devices())
    devices = [
        f"{count} x {where}" if where == kind else f"{count} x {kind} ({where})"
        for (where, kind), count in kinds.items()
    ]
    rows = [(name, _version(name)) for name in PACKAGES]
    rows += [("Python", platform.python_version()), ("platform", platform.platform())]
    return _page.table([*rows, ("devices", ", ".join(devices))])


def written() -> str:
    """When, and what the page knows of the process that wrote it."""
    now = datetime.datetime.now(datetime.UTC)
    return (
        f"Written on {now:%Y-%m-%d at %H:%M} UTC. Command and environment are those of the process "
        "that wrote this page."
    )


def _identity(run):
    return (run.origin or {}).get("identity") or {}


def _version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed as a package"
