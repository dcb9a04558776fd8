"""Bytes of a device and bytes moved in a step, as formulas say and as programs are compiled.

For data parallel, ZeRO-1 and FSDP: a small model on 8 and 64 devices, 1e9 parameters on 64 and 1e11
on 512. Nothing runs: CPUs are simulated, for which `lossopt.parallel.plan` compiles the step.
"""

import argparse
import dataclasses
import sys

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, AxisType
from rich import box
from rich.console import Console
from rich.table import Table

import lossopt as lo
from benchmarks._measure import Claim, header

OPTIMIZER = optax.adam(1e-3)


@dataclasses.dataclass(frozen=True)
class Model:
    """Residual layers of one width, and how they are trained; all in float32."""

    layers: int
    width: int
    rows: int  # of a device
    devices: int

    @property
    def parameters(self) -> int:
        """Numbers; each takes 4 bytes, and as much in each of two moments and the gradient."""
        return self.layers * self.width**2


SMALL = Model(layers=16, width=512, rows=64, devices=8)
MODELS = (
    SMALL,
    dataclasses.replace(SMALL, devices=64),
    Model(layers=60, width=4096, rows=4096, devices=64),
    Model(layers=96, width=32768, rows=4096, devices=512),
)


@dataclasses.dataclass(frozen=True)
class Case:
    """A way to lay the step out, and what is expected of it.

    Attributes:
      partition: as `train_step` takes it.
      lowering: likewise.
      moved: bytes that a device sends, in units of those that it sends to gather all parameters.
      whole: arrays of all parameters that it holds at its peak beside the state: the gradient, what
        is gathered, and what XLA for CPUs copies to gather or scatter along another axis than the
        first.
      layers: whether the model gathers layer by layer.
    """

    partition: str
    lowering: str
    moved: int
    whole: int
    layers: bool = False

    @property
    def name(self) -> str:
        """As a row is called."""
        return f"{self.partition}, {self.lowering}" + (", by layer" if self.layers else "")

    def at_rest(self, model: Model) -> float:
        """Bytes of parameters and of two moments."""
        shared = {"data": 0, "zero1": 8, "fsdp": 12}[self.partition]
        return (12 - shared + shared / model.devices) * model.parameters

    def sent(self, model: Model) -> float:
        """Bytes that a device sends in a step."""
        return self.moved * 4 * model.parameters * (1 - 1 / model.devices)

    def peak(self, model: Model) -> float:
        """The state, whole arrays or two layers and a part of the gradient, and activations."""
        layers = 8 * model.width**2 + 4 * model.parameters / model.devices if self.layers else 0
        activations = 4 * model.rows * model.width * model.layers
        return self.at_rest(model) + 4 * model.parameters * self.whole + layers + activations


CASES = (
    Case("data", "auto", moved=2, whole=1),
    Case("zero1", "auto", moved=3, whole=1),
    Case("zero1", "shard_map", moved=2, whole=2),
    Case("fsdp", "auto", moved=3, whole=3),
    Case("fsdp", "shard_map", moved=2, whole=3),
    Case("fsdp", "auto", moved=4, whole=0, layers=True),
    Case("fsdp", "shard_map", moved=3, whole=0, layers=True),
)
BY_LAYER = CASES[5:]


def objective(params, batch):
    """Residual layers, whose activations are computed again in the backward pass."""

    @jax.checkpoint
    def layer(x, kernel):
        return x + jnp.tanh(x @ lo.parallel.gathered({"kernel": kernel})["kernel"]), None

    x, _ = jax.lax.scan(layer, batch, params["kernel"])
    return {"fit": lo.mean(jnp.mean(x**2, axis=-1))}


def planned(case, model):
    """What `plan` says."""
    shape = (model.layers, model.width, model.width)
    params = {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32)}
    batch = jax.ShapeDtypeStruct((model.rows * model.devices, model.width), jnp.float32)
    mesh = AbstractMesh((1, model.devices), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    options = {"partition": case.partition, "lowering": case.lowering, "gather": not case.layers}
    return lo.parallel.plan(objective, OPTIMIZER, params, batch, mesh, **options)


def compare(cases, model):
    """A table of what is expected and what was compiled; and of each kind the worst ratio."""
    unit, word = (2**20, "MiB") if model.parameters < 1e8 else (2**30, "GiB")
    title = f"{model.parameters:.2g} parameters, {model.devices} devices: {word} of each"
    names, worst = ("at rest", "moved", "peak"), [1.0, 1.0, 1.0]
    out = Table(box=box.MARKDOWN, title=title)
    for column in ("", *(x for name in names for x in (name, "compiled"))):
        out.add_column(column, justify="right" if column else "left")
    for case in cases:
        plan = planned(case, model)
        expected = case.at_rest(model), case.sent(model), case.peak(model)
        compiled = plan.at_rest, plan.moved, plan.peak
        pairs = list(zip(expected, compiled))
        out.add_row(case.name, *(f"{size / unit:.2f}" for pair in pairs for size in pair))
        worst = [max(x, got / want, want / got) for x, (want, got) in zip(worst, pairs)]
    return out, dict(zip(names, worst))


def main():
    """Prints the tables; returns how many sizes are not as the formulas say."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one case on 8 devices")
    quick = parser.parse_args().quick
    console, claims = Console(width=120), []
    console.print(header(), highlight=False)
    for model in MODELS[:1] if quick else MODELS:
        cases = BY_LAYER[1:] if quick else CASES if model.parameters < 1e8 else BY_LAYER
        table, worst = compare(cases, model)
        console.print(table)
        for name, most in {"at rest": 1.001, "moved": 1.001, "peak": 1.25}.items():
            claims.append(Claim(f"{name}, the worst ratio of both,", worst[name], most))
            console.print(str(claims[-1]), highlight=False)
    return sum(claim.missed for claim in claims)


if __name__ == "__main__":
    sys.exit(main())
