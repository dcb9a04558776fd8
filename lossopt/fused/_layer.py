"""A linear layer over many classes that is never applied: its arrays, and how a loss reads them."""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lossopt import _checks
from lossopt._mean import Mean
from lossopt._numerics import wide
from lossopt._typing import ArrayLike, Float, Num, Number
from lossopt.fused import _devices
from lossopt.fused._columns import Columns
from lossopt.fused._how import How, Tiles, on_mesh
from lossopt.fused._logits import InnerProduct
from lossopt.fused._walk import Facts, Operands, Rows, average, values

Features = Float[ArrayLike, "*tokens depth"]
Kernel = Float[ArrayLike, "depth classes"]  # [classes, depth] if transposed
Weights = Num[ArrayLike, "*tokens"] | None


class Layer(NamedTuple):
    """Features and kernel, and what makes logits of their products; `of` checks that they fit.

    Attributes:
      features: `[*tokens, depth]`.
      kernel: `[depth, classes]`.
      matrix: how the two are multiplied.
      columns: the bias, `[classes]`, where there is one.
      exist: which classes exist, `[classes]`, or None.
      numbers: soft cap and temperature, where there are such.
      tokens: their shape.
      classes: how many there are.
    """

    features: Any
    kernel: Any
    matrix: InnerProduct
    columns: dict[str, ArrayLike]
    exist: ArrayLike | None
    numbers: dict[str, Number]
    tokens: tuple[int, ...]
    classes: int

    @classmethod
    def of(
        cls,
        features: Any,
        kernel: Any,
        *,
        transposed: bool,
        bias: ArrayLike | None = None,
        where: ArrayLike | None = None,
        soft_cap: Number | None = None,
        temperature: Number | None = None,
        prefix: str = "",
    ) -> "Layer":
        """The layer of arrays that fit; `prefix` is what their names begin with in messages."""
        for name, array in (("features", features), ("kernel", kernel)):
            if not jnp.issubdtype(_checks.dtype(f"{prefix}{name}", array), jnp.floating):
                raise ValueError(
                    f"Expected floating {prefix}{name}, got {jnp.result_type(array)}. "
                    "Convert them first."
                )
        _checks.rank_at_least(1, **{f"{prefix}features": features})
        *tokens, depth = jnp.shape(features)
        shape = jnp.shape(kernel)
        if len(shape) != 2 or shape[1 if transposed else 0] != depth:
            raise ValueError(
                f"Expected {prefix}kernel of shape "
                f"{'[classes, depth]' if transposed else '[depth, classes]'} with depth {depth}, "
                f"got {shape}. Say by transposed=True or False how it lies."
            )
        classes = shape[0 if transposed else 1]
        columns, numbers = {"bias": bias}, {"soft_cap": soft_cap, "temperature": temperature}
        columns, numbers = (
            {k: x for k, x in y.items() if x is not None} for y in (columns, numbers)
        )
        named = lambda given: {f"{prefix}{name}": x for name, x in given.items()}
        _checks.exact_shape((classes,), **named(columns))
        _checks.exact_shape((), **named(numbers))
        _checks.above(0, **named(numbers))
        exist = None if where is None else _checks.mask("where", where, (classes,))
        matrix, tokens = InnerProduct(transposed), tuple(tokens)
        return cls(features, kernel, matrix, columns, exist, numbers, tokens, classes)

    def tiles(self, how: How, copies: int) -> tuple[Tiles, int]:
        """The tiles of one device, and over how many devices the tokens are spread."""
        count, shards, parts = math.prod(self.tokens), 1, 1
        if how.shards is not None or on_mesh(self.features, self.kernel):
            shards = _devices.shards(self.features, count, how.shards)
            parts = _devices.parts(self.kernel, self.matrix.axis, self.features)
        tiles = how.tiles(
            count // shards,
            self.classes // parts,
            wide(jnp.result_type(self.features, self.kernel)),
            copies=copies + 2 * ("soft_cap" in self.numbers) + (how.form == "jvp"),
            by_columns=parts == 1,
        )
        return tiles, shards

    def loss(
        self,
        name: str,
        criterion: Any,
        how: How,
        per_example: bool,
        rows: dict[str, Any],
        *,
        numbers: dict[str, Any] | None = None,
        teacher: dict[str, Any] | None = None,
        ignore_index: Number | None = None,
    ) -> Any:
        """The `Mean`, or the loss of each token.

        `rows` holds weights and labels, as of tokens, and `teacher` its kernel and bias.
        """
        if rows["weights"] is not None:
            _checks.prefix_shape(self.tokens, weights=rows["weights"])
            _checks.fits(weights=rows["weights"])
            _checks.at_least(0, weights=jnp.min(jnp.asarray(rows["weights"]), initial=0))
        tiles, shards = self.tiles(how, criterion.copies)
        kind, size = (Rows, tiles.rows) if tiles.whole else (Columns, tiles.columns)
        walk = kind(self.matrix, criterion, size, tiles.together)
        walk = walk if shards == 1 else _devices.Grouped(walk, shards, tiles.together)

        def compute(rows, columns, numbers):
            known = {"classes": jnp.arange(self.classes, dtype=jnp.int32)}
            if (exist := columns.pop("exist", None)) is not None:
                columns = jax.tree.map(partial(_zeroed, exist, self.matrix.axis), columns)
                known, numbers = known | {"exist": exist}, numbers | {"classes": jnp.sum(exist)}
            weights, valid = _read(name, rows, self.tokens, known, ignore_index)
            left, right = rows.pop("features"), columns.pop("kernel")
            known |= {"teacher": columns.pop("teacher")} if teacher else {}
            columns = {key: x.astype(wide(x.dtype)) for key, x in columns.items()}
            dtype = lambda x: wide(jnp.result_type(left, right, x))
            numbers = {key: x.astype(dtype(x)) for key, x in numbers.items()}
            operands, facts = Operands(left, right, columns, numbers), Facts(rows, known)
            if per_example:
                known_or_nan = lambda x: jnp.where(weights == 0, 0, jnp.where(valid, x, jnp.nan))
                each = jax.tree.map(known_or_nan, values(walk, operands, facts, how.form))
                return jax.tree.map(lambda x: x.reshape(self.tokens), each)
            readable = jnp.where(valid, weights, 0)
            total = average(walk, operands, facts, readable, how.form).total
            wrong = jnp.any(~valid & (weights != 0))
            return Mean(total + jnp.where(wrong, jnp.nan, 0), jnp.sum(weights))

        rows = {"features": self.features} | rows
        columns = {"kernel": self.kernel, "teacher": teacher, "exist": self.exist} | self.columns
        numbers = {"classes": float(self.classes)} | self.numbers | (numbers or {})
        rows, columns, numbers = (
            {key: jax.tree.map(jnp.asarray, x) for key, x in arrays.items() if x is not None}
            for arrays in (rows, columns, numbers)
        )
        if on_mesh(self.features, self.kernel):
            return _devices.automatic(compute, rows, columns, numbers, shards)
        return compute(rows, columns, numbers)


def _zeroed(exist, axis, x):
    """A kernel or bias with zeros for classes that do not exist."""
    return jnp.where(exist if x.ndim == 1 else jnp.expand_dims(exist, -1 - axis), x, 0)


def _read(name, rows, tokens, known, ignore_index):
    """Weights, and which rows can be read; makes `rows` flat, and safe to compute with."""
    masked = "weights" in rows or ignore_index is not None
    for key, x in rows.items():  # weights of leading axes are spread over the others
        ones = (1,) * (len(tokens) - x.ndim)
        x = jnp.broadcast_to(x.reshape(x.shape + ones), tokens) if ones else x
        rows[key] = x.reshape(-1, *x.shape[len(tokens) :])
    count, labels = len(rows["features"]), rows.get("labels")
    weights, valid = rows.pop("weights", jnp.ones(count, bool)), jnp.ones(count, bool)
    weights = weights.astype(wide(weights.dtype))
    if masked:
        _checks.nonnegative(name, weights=weights)
    if labels is not None and labels.ndim == 1:
        labels = labels.astype(jnp.promote_types(labels.dtype, jnp.int32))  # int8 may not hold all
        if ignore_index is not None:  # a negative one is no unsigned label
            same_sign = (labels < 0) == (jnp.asarray(ignore_index) < 0)
            weights = jnp.where((labels == ignore_index) & same_sign, 0, weights)
        classes = len(known["classes"])
        valid, message = (labels >= 0) & (labels < classes), f"labels from 0 to {classes - 1}"
        if "exist" in known:
            valid &= known["exist"][jnp.where(valid, labels, 0)]
            message += " of classes that exist"
        fits = valid | (weights == 0)
        strays = jnp.where(fits, 0, labels)
        low, high = jnp.min(strays, initial=0), jnp.max(strays, initial=0)
        message = f"{name}: expected {message}, got {{low}} to {{high}}."
        _checks.condition(fits, message, low=low, high=high)
        rows["labels"] = jnp.where(valid, labels, 0).astype(jnp.int32)
    for key in ("features", "teacher") if masked else ():
        if key in rows:
            small = jnp.abs(rows[key]) <= jnp.finfo(rows[key].dtype).max ** 0.5
            safe = (weights != 0) | jnp.all(small, axis=-1)
            rows[key] = jnp.where(safe[:, None], rows[key], 0)
            valid &= safe
    return weights, valid
