"""What a budget of memory chooses, said before anything is computed."""

import dataclasses
import math
from typing import Any, Literal, TypeAlias

import jax.numpy as jnp

from lossopt._typing import Number
from lossopt.fused._distillation import Distillation
from lossopt.fused._how import Form, How, Memory
from lossopt.fused._layer import Layer
from lossopt.fused._log_probs import Entropy
from lossopt.fused._sigmoid import Sigmoid
from lossopt.fused._softmax import Softmax

Shaped: TypeAlias = Any  # an array or a `jax.ShapeDtypeStruct`


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a budget of memory chose, per device.

    Attributes:
      rows: rows of a tile.
      columns: columns of a tile.
      tiles: how many tiles there are.
      bytes: memory of a tile and of temporaries of its shape. Gradients, and their accumulators
        in float32, come on top of it.
      operations: multiplications and additions for one value and its gradient.
      arithmetic: these, as a multiple of what the whole matrix would take.
      token_shards: devices that the rows are spread over.
      together: how many such matrices `vmap` computes at once within the budget.

    Examples:
      >>> features, kernel = jnp.zeros((2048, 512)), jnp.zeros((512, 32768))
      >>> print(lo.fused.plan(features, kernel, memory="64MiB"))
      8 tiles of 256 x 32768, 64.0 MiB, 1.00 of the arithmetic of the whole, on 1 device
    """

    rows: int
    columns: int
    tiles: int
    bytes: int
    operations: int
    arithmetic: float
    token_shards: int
    together: int

    def __str__(self) -> str:
        devices = "1 device" if self.token_shards == 1 else f"each of {self.token_shards} devices"
        tiles = "1 tile" if self.tiles == 1 else f"{self.tiles} tiles"
        return (
            f"{tiles} of {self.rows} x {self.columns}, "
            f"{self.bytes / 2**20:.1f} MiB, "
            f"{self.arithmetic:.2f} of the arithmetic of the whole, on {devices}"
        )


def plan(
    features: Shaped,
    kernel: Shaped,
    *,
    loss: Literal["softmax", "entropy", "teacher", "sigmoid"] = "softmax",
    soft_cap: Number | None = None,
    transposed: bool = False,
    memory: Memory = "auto",
    per_example: bool = False,
    token_shards: int | None = None,
    differentiable: Form = "vjp",
) -> Plan:
    """Says how a loss of a linear layer would be computed, before anything is.

    Args:
      features: shape `[*tokens, depth]`; a `jax.ShapeDtypeStruct` will do.
      kernel: shape `[depth, classes]`, likewise.
      loss: `"softmax"` for class numbers, `"entropy"` where it is returned with log-probabilities,
        `"teacher"`, or `"sigmoid"` for many labels. All but the first hold more temporaries at a
        time.
      soft_cap: as given to the loss; it, too, needs more temporaries.
      transposed: whether the kernel has shape `[classes, depth]`.
      memory: `"auto"`; a budget for the tile and temporaries of its shape in bytes, as a number
        or as in `"256MiB"`; or `Chunks`. `"auto"` is 128 MiB on CPU; elsewhere tiles start from
        4096 rows and 4 GiB.
      per_example: as given to the loss.
      token_shards: as given to the loss.
      differentiable: as given to the loss.

    Returns:
      The `Plan` that the loss will follow.

    Raises:
      ValueError: if the shapes do not fit, or no tile fits into the budget; the message says the
        least that does.

    Examples:
      >>> features = jax.ShapeDtypeStruct((8192, 768), jnp.bfloat16)
      >>> kernel = jax.ShapeDtypeStruct((768, 128256), jnp.bfloat16)
      >>> lo.fused.plan(features, kernel, memory=lo.fused.Chunks(columns=4008)).tiles
      32
    """
    how = How(memory, differentiable, shards=token_shards)
    layer = Layer.of(features, kernel, transposed=transposed, soft_cap=soft_cap)
    criteria = {
        "softmax": Softmax(),
        "entropy": Entropy(),
        "teacher": Distillation(layer.matrix),
        "sigmoid": Sigmoid(),
    }
    if loss not in criteria:
        raise ValueError(f"Expected loss to be one of {', '.join(criteria)}; got {loss!r}.")
    tiles, shards = layer.tiles(how, criteria[loss].copies)
    count, again = math.prod(layer.tokens), per_example or loss == "entropy" or not tiles.whole
    again |= how.form == "jvp"
    return Plan(
        rows=tiles.rows,
        columns=tiles.columns,
        tiles=-(-count // shards // tiles.rows)
        * (1 if tiles.whole else -(-layer.classes // tiles.columns)),
        bytes=tiles.bytes,
        operations=(8 if again else 6) * count * jnp.shape(features)[-1] * layer.classes,
        arithmetic=4 / 3 if again else 1.0,
        token_shards=shards,
        together=tiles.together,
    )
