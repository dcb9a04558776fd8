"""Rules whose moments are stored in one or two bytes each."""

from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lossopt import _paths
from lossopt._typing import Array, Number, PyTree
from lossopt.transforms._codes import Code, decode, encode, is_code, together, widen
from lossopt.transforms._noise import noise, words
from lossopt.transforms._numbers import at, known

Moments = Literal["float32", "bfloat16", "int8"]

_SMALL = 4096  # leaves of fewer elements stay exact in 8 bits
_SECOND = {
    ("ScaleByAdamState", "nu"),
    ("ScaleByBeliefState", "nu"),
    ("ScaleByRmsState", "nu"),
    ("ScaleByAmsgradState", "nu"),
    ("ScaleByAmsgradState", "nu_max"),
    ("ScaleByRmsWithCountState", "nu"),
    ("ScaleByRssState", "sum_of_squares"),
    ("ScaleByAdaDeltaState", "e_g"),
    ("ScaleByAdaDeltaState", "e_x"),
    ("ScaleByAdanState", "n"),
    ("ScaleByAdemamixState", "nu"),
    ("ScaleBySimplifiedAdEMAMixState", "n"),
    ("ScaleByRpropState", "step_sizes"),
    ("FactoredState", "v"),
    ("MadgradState", "grad_sum_sq"),
    ("ProdigyState", "exp_avg_sq"),
    ("DAdaptAdamWState", "exp_avg_sq"),
    ("MomoAdamState", "exp_avg_sq"),
    ("AdamState", "nu"),
    ("RmspropState", "nu"),
    ("RmspropState", "metric"),
    ("AdagradState", "sum_of_squares"),
}
_CENTERED = (
    "nu - mu^2 may become negative. Take scale_by_rms, or rmsprop(centered=True) of lossopt."
)
_POINT = "it holds parameters. Put quantized around the rule within, or leave it away."
_OUTERMOST = "its rounding would act on float32 copies. Put it around quantized."
_REFUSED = {
    ("ScaleByRStdDevState", "nu"): _CENTERED,
    ("ScaleByRStdDevWithCountState", "nu"): _CENTERED,
    ("ScheduleFreeState", "z"): _POINT,
    ("ProdigyState", "params0"): _POINT,
    ("MechanicState", "x0"): _POINT,
    ("AverageState", "average"): _POINT,
    ("MadgradState", "x0"): _POINT,
    ("DoGState", "init_params"): _POINT,
    ("DoWGState", "init_params"): _POINT,
    ("ScaleByDistanceOverGradientsState", "init_params"): _POINT,
    ("COCOBState", "init_particles"): _POINT,
    ("ScaleByLBFGSState", "params"): _POINT,
    ("KahanState", "inner"): _OUTERMOST,
    ("StochasticRoundingState", "inner"): _OUTERMOST,
}


class QuantizedState(NamedTuple):
    """State of `quantized`.

    Attributes:
      count: steps taken, an integer of shape `()`.
      inner: state of the rule, each of its large moments a tree of codes and scales.
    """

    count: Array
    inner: PyTree


def quantized(
    rule: optax.GradientTransformation,
    block: int = 256,
    *,
    second: str | None = None,
    seed: Number = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Stores a rule's moments in 8 bits each, while the rule computes in float32.

    $$x_i = m_b \, c_i, \qquad m_b = \max_{i \in b} |x_i|$$

    $m_b$ is the maximum of the block $b$ along the flattened array. $c_i$ keeps the upper bits of
    its own float32 pattern: the sign, 4 bits of exponent and 3 of mantissa; for second moments,
    which have no sign, 5 and 3. It is rounded up or down by chance, right on average: rounded to
    nearest, a moment that moves by less than half a code a step would not move at all. A second
    moment above 0 never becomes 0. Steps are right on average where a gradient is above $2^{-16}$
    of the largest in its block, and too small below.

    Adam's two moments take 2.03 bytes a parameter in place of 8. Second moments are known by type
    and field of the state, in `optax` and here. Codes have the shapes of the arrays, so they shard
    like the parameters. Low-precision parameters and gradients reach `rule` in float32, and its
    updates come back in the dtype of the parameters. Arrays of fewer than 4096 elements, whole
    numbers, and what is not shaped like a parameter stay exact.

    Args:
      rule: a transformation. `stochastic_rounding` and `kahan` go around the result.
      block: elements that share a maximum, which takes 4 bytes; at least 1.
      second: a regular expression searched in a leaf's path in the state, as in `"0/nu/kernel"`:
        further second moments, by name. A negative number among them makes its block NaN.
      seed: of the rounding, a whole number from 0 to $2^{32} - 1$.

    Returns:
      A transformation. A block with a NaN or an infinity is not finite afterwards.

    Raises:
      ValueError: if `block` is no whole number above 0, `seed` is out of range, `second` takes no
        leaf; or, when the state is made, if it is one that 8 bits cannot hold, such as a centered
        second moment or a copy of the parameters.

    Examples:
      >>> optimizer, exact = lo.transforms.quantized(optax.adam(1e-3)), optax.adam(1e-3)
      >>> params = jnp.zeros((1024, 256))
      >>> size = lambda state: sum(x.nbytes for x in jax.tree.leaves(state)) / params.size
      >>> print(round(size(optimizer.init(params)), 3), round(size(exact.init(params)), 3))
      2.031 8.0

    References:
      Dettmers, Lewis, Shleifer and Zettlemoyer, "8-bit Optimizers via Block-wise Quantization",
      2022.
      Micikevicius et al., "FP8 Formats for Deep Learning", 2022.
    """
    for fixed in known(seed=seed).values():
        words(fixed)  # raises where it is none
    if not isinstance(block, int | np.integer) or block < 1:
        raise ValueError(
            f"Expected block as a whole number of 1 or more, got {block}. "
            "Under optax.inject_hyperparams, name it in static_args."
        )
    return _stored(rule, int(block), second, seed)


def with_moments(
    rule: optax.GradientTransformationExtraArgs, moments: Moments
) -> optax.GradientTransformationExtraArgs:
    """The rule with its moments in float32, in bfloat16, or in 8 bits as `quantized` has them."""
    if moments not in get_args(Moments):
        wanted = ", ".join(map(repr, get_args(Moments)))
        raise ValueError(f"Expected moments to be one of {wanted}, got {moments!r}.")
    if moments == "float32":
        return rule
    return _stored(rule, 256 if moments == "int8" else None)


def decoded(state: PyTree) -> PyTree:
    """The state with arrays in place of codes."""
    return jax.tree.map(lambda x: decode(x) if is_code(x) else x, state, is_leaf=is_code)


def _stored(
    rule: optax.GradientTransformation,
    block: int | None,
    second: str | None = None,
    seed: Any = 0,
) -> optax.GradientTransformationExtraArgs:
    """The rule with moments as codes; a block of None means bfloat16."""
    rule = optax.with_extra_args_support(rule)

    def encoded(state, like, count):
        key = words(at(count, seed))
        draw = lambda code: partial(noise, key, code.stream, count)
        write = lambda code, x: encode(x, code, draw(code)) if is_code(code) else x
        return jax.tree.map(write, like, state, is_leaf=is_code)

    def init(params):
        count, wide = jnp.zeros((), jnp.int32), widen(params)
        # A constant state would be encoded while compiling, 9 s for each million parameters.
        state = jax.lax.optimization_barrier(rule.init(wide))
        form = _form(state, _places(rule, wide, state), block, second)
        return QuantizedState(count, encoded(state, form, count))

    def update(updates, state, params=None, **extra):
        gradients, point = together(updates, params)
        change, inner = rule.update(gradients, decoded(state.inner), point, **extra)
        narrow = lambda u, x: u.astype(jnp.result_type(x))
        change = jax.tree.map(narrow, change, updates if params is None else params)
        inner = encoded(inner, state.inner, state.count)
        return change, QuantizedState(jnp.asarray(optax.safe_increment(state.count)), inner)

    return optax.GradientTransformationExtraArgs(init, update)


def _places(rule, params, state):
    """For each leaf of the state, whether it has the path and the shape of a parameter."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    shapes = {path: x.shape for path, x in jax.tree_util.tree_leaves_with_path(params)}
    if tuple(shapes) == ((),):  # the path of a bare array is the end of every path
        return _grown(rule, params, [x for _, x in leaves])
    ends = lambda path: (path[i:] for i in range(len(path)))
    return [any(shapes.get(end) == jnp.shape(x) for end in ends(path)) for path, x in leaves]


def _grown(rule, array, leaves):
    """For each leaf of the state, whether it is as long as the array, whatever its length."""
    if not array.ndim:
        return [False] * len(leaves)
    longer = jax.ShapeDtypeStruct((array.shape[0] + 1, *array.shape[1:]), array.dtype)
    others = jax.tree.leaves(jax.eval_shape(rule.init, longer))
    same = lambda x, other: (jnp.shape(x), other.shape) == (array.shape, longer.shape)
    return [same(x, other) for x, other in zip(leaves, others)]


def _form(state, taken, block, second):
    """The state with codes, still empty, in place of its moments."""
    leaves, structure = jax.tree.flatten(state)
    named = _named(second, state)
    streams = {True: 0, False: 0}
    for i, fields in enumerate(_fields(state)):
        refused = [pair for pair in _REFUSED if pair in fields]
        if refused and block is not None:
            kind, field = refused[0]
            raise ValueError(f"8 bits cannot hold {kind}.{field}: {_REFUSED[refused[0]]}")
        x, is_second = leaves[i], i in named or not _SECOND.isdisjoint(fields)
        if taken[i] and _large(x, block):
            code = Code(None, None, is_second, x.dtype, block, streams[is_second])
            streams[is_second] += 1
            leaves[i] = code
    return structure.unflatten(leaves)


def _named(second, state):
    """The numbers of the leaves that the caller says are second moments."""
    if second is None:
        return []
    (taken,) = _paths.places([second], _paths.paths(state), hides=_paths.hides(state))
    return taken


def _large(x, block):
    floating = jnp.issubdtype(jnp.result_type(x), jnp.floating)
    return floating and (block is None or jnp.size(x) >= _SMALL)


def _fields(node, above=frozenset()):
    """For each leaf the (type, field) pairs of all nodes that hold it."""
    children = jax.tree_util.tree_leaves_with_path(node, is_leaf=lambda x: x is not node)
    if children and not children[0][0]:
        yield above
        return
    for (key, *_), child in children:
        yield from _fields(child, above | {(type(node).__name__, getattr(key, "name", None))})
