"""What the losses of a linear layer share: checks, masks, the choice of a method."""

import math
from typing import NamedTuple

import jax.numpy as jnp

from lossopt import _checks
from lossopt._mean import Mean
from lossopt.fused import _devices, _forms
from lossopt.fused._blocks import Blocks
from lossopt.fused._columns import Columns
from lossopt.fused._heads import Complete
from lossopt.fused._plan import Memory, Plan, tiles
from lossopt.fused._tiles import Facts, Form, InnerProduct, Operands, check_form, wide


class Layer(NamedTuple):
    """What all losses of a linear layer are asked."""

    transposed: bool
    memory: Memory
    per_example: bool
    token_shards: int | None
    differentiable: Form

    @property
    def matrix(self):
        return InnerProduct(self.transposed)

    def check(self, features, kernel, bias, weights):
        """The shape of the tokens and the number of classes, of arrays that fit."""
        check_form(self.differentiable)
        _checks.rank_at_least(1, features=features)
        *tokens, depth = jnp.shape(features)
        classes = self._fit(depth, features=features, kernel=kernel)
        if bias is not None:
            _checks.exact_shape((classes,), bias=bias)
        if weights is not None:
            _checks.prefix_shape(tuple(tokens), weights=weights)
            _checks.at_least(0, weights=jnp.min(jnp.asarray(weights), initial=0))
        return tuple(tokens), classes

    def check_teacher(self, tokens, classes, features, kernel):
        """Raises unless the teacher sees the same tokens and knows the same classes."""
        _checks.rank_at_least(1, teacher_features=features)
        depth = jnp.shape(features)[-1]
        _checks.exact_shape((*tokens, depth), teacher_features=features)
        known = self._fit(depth, teacher_features=features, teacher_kernel=kernel)
        if known != classes:
            raise ValueError(f"Expected a teacher of {classes} classes, got {known}. Align them.")

    def _fit(self, depth, **pair):
        for name, array in pair.items():
            if not jnp.issubdtype(jnp.result_type(array), jnp.floating):
                raise ValueError(
                    f"Expected floating {name}, got {jnp.result_type(array)}. Convert them first."
                )
        (_, (name, kernel)) = pair.items()
        wanted = "[classes, depth]" if self.transposed else "[depth, classes]"
        shape = jnp.shape(kernel)
        if len(shape) != 2 or shape[1 if self.transposed else 0] != depth:
            raise ValueError(
                f"Expected {name} of shape {wanted} with depth {depth}, got {shape}. "
                "Say by transposed=True or False how it lies."
            )
        return shape[0 if self.transposed else 1]

    def loss(self, name, head, rows, columns, numbers, ignore_index=None):
        """The `Mean`, or the loss of each token."""
        capped = "soft_cap" in numbers
        method = self.method(head, rows["features"], columns["kernel"], capped=capped)

        def compute(rows, columns, numbers):
            tokens, classes = rows["features"].shape[:-1], columns["kernel"].shape[self.matrix.axis]
            rows = {key: _flat(x, tokens) for key, x in rows.items()}
            weights, valid = _read(name, rows, classes, ignore_index)
            operands, facts = _parts(rows, columns, numbers, classes)
            jvp = self.differentiable == "jvp"
            if self.per_example:
                values = jnp.where(valid, _forms.rows(method, operands, facts, jvp=jvp), jnp.nan)
                return jnp.where(weights == 0, 0, values).reshape(tokens)
            total = _forms.average(
                method, operands, facts, jnp.where(valid, weights, 0), jvp=jvp
            ).total
            wrong = jnp.any(~valid & (weights != 0))
            return Mean(total + jnp.where(wrong, jnp.nan, 0), jnp.sum(weights))

        return _devices.automatic(compute, rows, columns, numbers, method.shards)

    def method(self, head, features, kernel, *, capped=False):
        """Blocks of rows, or of columns, as the budget allows."""
        tile, shards = self._tile(head, features, kernel, capped)
        if tile.whole:
            return Blocks(self.matrix, Complete(head), tile.rows, shards, tile.together)
        return Columns(self.matrix, head, tile.columns, shards, tile.together)

    def plan(self, head, features, kernel, tokens, classes, capped):
        """What `method` will do, and what it will cost."""
        tile, shards = self._tile(head, features, kernel, capped)
        rows = math.prod(tokens)
        again = self.per_example or self.differentiable == "jvp" or not tile.whole
        depths = features.shape[-1]
        return Plan(
            rows=tile.rows,
            columns=tile.columns,
            tiles=-(-rows // shards // tile.rows)
            * (1 if tile.whole else -(-classes // tile.columns)),
            bytes=tile.bytes,
            operations=(8 if again else 6) * rows * depths * classes,
            arithmetic=4 / 3 if again else 1.0,
            token_shards=shards,
            together=tile.together,
        )

    def _tile(self, head, features, kernel, capped):
        axis, count = self.matrix.axis, math.prod(features.shape[:-1])
        shards = _devices.shards(features, count, self.token_shards)
        parts = _devices.parts(kernel, axis, features)
        tile = tiles(
            count // shards,
            kernel.shape[axis] // parts,
            wide(features, kernel),
            self.memory,
            copies=head.copies + 2 * capped + (self.differentiable == "jvp"),
            by_columns=parts == 1,
        )
        return tile, shards


def _flat(x, tokens):
    """One row per token; weights of leading axes are spread over the others."""
    if x.ndim < len(tokens):
        x = jnp.broadcast_to(x.reshape(x.shape + (1,) * (len(tokens) - x.ndim)), tokens)
    return x.reshape(-1, *x.shape[len(tokens) :])


def _read(name, rows, classes, ignore_index):
    """Weights, and which rows can be read; leaves in `rows` what is safe to compute with."""
    features, labels = rows["features"], rows.get("labels")
    weights = rows.pop("weights", None)
    masked = weights is not None or ignore_index is not None
    dtype = jnp.promote_types(jnp.float32, jnp.result_type(False if weights is None else weights))
    weights = jnp.ones(len(features), dtype) if weights is None else weights.astype(dtype)
    low = jnp.min(weights, initial=0)
    _checks.condition(low >= 0, f"{name}: expected weights >= 0, got {{low}}.", low=low)
    valid = jnp.ones(len(features), bool)
    if labels is not None and labels.ndim == 1:
        labels = labels.astype(jnp.promote_types(labels.dtype, jnp.int32))  # int8 may not hold all
        if ignore_index is not None:  # a negative one is no unsigned label
            same_sign = (labels < 0) == (jnp.asarray(ignore_index) < 0)
            weights = jnp.where((labels == ignore_index) & same_sign, 0, weights)
        valid = (labels >= 0) & (labels < classes)
        strays = jnp.where(valid | (weights == 0), 0, labels)
        low, high = jnp.min(strays, initial=0), jnp.max(strays, initial=0)
        message = f"{name}: expected labels from 0 to {classes - 1}, got {{low}} to {{high}}."
        _checks.condition(strays == 0, message, low=low, high=high)
        rows["labels"] = jnp.where(valid, labels, 0).astype(jnp.int32)
    for key in ("features", "teacher") if masked else ():
        if key in rows:
            small = jnp.abs(rows[key]) <= jnp.finfo(rows[key].dtype).max ** 0.5
            safe = (weights != 0) | jnp.all(small, axis=-1)
            rows[key] = jnp.where(safe[:, None], rows[key], 0)
            valid &= safe
    return weights, valid


def _parts(rows, columns, numbers, classes):
    """What is differentiated, and what is not."""
    left, right = rows.pop("features"), columns["kernel"]
    numbers = {key: x.astype(wide(left, right, x)) for key, x in numbers.items()}
    numbers["classes"] = jnp.asarray(classes, wide(left, right))
    known = {key: x for key, x in columns.items() if key == "teacher"}
    known["classes"] = jnp.arange(classes, dtype=jnp.int32)
    biases = {key: x.astype(wide(x)) for key, x in columns.items() if key == "bias"}
    return Operands(left, right, {}, biases, numbers), Facts(rows, known)


def inputs(features, kernel, bias, weights, soft_cap):
    """What lies along the rows, what along the columns, and numbers."""
    rows = {"features": jnp.asarray(features)}
    columns = {"kernel": jnp.asarray(kernel)}
    if weights is not None:
        rows["weights"] = jnp.asarray(weights)
    if bias is not None:
        columns["bias"] = jnp.asarray(bias)
    if soft_cap is not None:
        _checks.exact_shape((), soft_cap=soft_cap)
        _checks.above(0, soft_cap=soft_cap)
    return rows, columns, {} if soft_cap is None else {"soft_cap": jnp.asarray(soft_cap)}


def used(**numbers):
    """Those that are not known to be 0."""
    _checks.exact_shape((), **numbers)
    known = lambda x: isinstance(x, float | int) and x == 0
    return {name: jnp.asarray(x) for name, x in numbers.items() if not known(x)}


def class_numbers(labels, tokens, name="labels"):
    """The labels, which must be integers of this shape."""
    if not jnp.issubdtype(jnp.result_type(labels), jnp.integer):
        raise ValueError(
            f"Expected integer {name}, got {jnp.result_type(labels)}. Convert class numbers with "
            "astype(int). (linear_softmax_cross_entropy takes a teacher as (features, kernel).)"
        )
    _checks.exact_shape(tokens, **{name: labels})
    return jnp.asarray(labels)
