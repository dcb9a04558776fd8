"""Whether an optimizer goes element by element, so that each device may update its own slices."""

from collections.abc import Callable, Iterable
from functools import partial
from itertools import zip_longest

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend import core

from lossopt import _jax, _mesh
from lossopt._culprits import culprit
from lossopt._jaxprs import is_jaxpr, jaxprs, without_mere_effects
from lossopt._typing import PyTree

_MARK = "lossopt.elementwise"
_RUN = "_traced.<locals>.run"  # what calls the update
_OF_ONE_ELEMENT = """
abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e
bitcast_convert_type cbrt ceil clamp clz complex conj convert_element_type copy copy_p cos cosh
digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt igamma igammac imag integer_pow
is_finite le lgamma log log1p logistic lt max min mul ne neg nextafter not or population_count
pow real reduce_precision regularized_incomplete_beta rem round rsqrt select_n shift_left
shift_right_arithmetic shift_right_logical sign sin sinh sqrt square sub tan tanh xor
"""
_OF_OTHER_PROGRAMS = """
checkpoint closed_call core_call custom_jvp_call custom_vjp_call custom_vjp_call_jaxpr jit pjit
remat remat2
"""
_EACH = frozenset(_OF_ONE_ELEMENT.split())
_CALLS = frozenset(_OF_OTHER_PROGRAMS.split())

# What a value of a program is on each device, where it is not whole: a slice, named by the spec by
# which it is cut; one of a value whose elements are alike; or something that another size changes.
_ALIKE = "alike"
_OTHER = "other"
_UNKNOWN = object()


def elementwise(rule: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Says of a transformation that it goes element by element, where this cannot be seen.

    `train_step(..., lowering="shard_map")` gives the optimizer slices of the parameters, and
    refuses what might be another computation on them. What stands within this is not looked at:
    whether a slice of the updates needs but the same slice of gradients, parameters and state is
    yours to know. Updates and states are those of `rule`.

    Args:
      rule: any transformation, alone or within `optax.chain` and the like.

    Returns:
      The same transformation, which is taken at its word.

    Raises:
      TypeError: if it is no transformation.

    Examples:
      >>> flip = lambda updates, params: jax.tree.map(lambda g: g.T.T, updates)
      >>> rule = lo.parallel.elementwise(optax.stateless(flip))
      >>> print(rule.update(jnp.ones((1, 2)), rule.init(jnp.ones((1, 2))))[0])
      [[1. 1.]]
    """
    if not hasattr(rule, "update"):
        raise TypeError(
            f"Expected rule as an optax.GradientTransformation, got {rule!r}. Call what makes one, "
            "as in elementwise(optax.adam(1e-3))."
        )
    inner = optax.with_extra_args_support(rule)

    def update(updates, state, params=None, **extra):
        with jax.named_scope(_MARK):
            return inner.update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(rule.init, update)


def only_elementwise(update: Callable, params: PyTree, state: PyTree) -> None:
    """Raises unless an update of slices gives the slices of the update.

    The update is traced on whole leaves and on slices. The two programs must be one but for the
    sizes of what is cut, also in their numbers: what divides by a size is seen. And what is cut
    goes through functions of one element alone. What is whole on each device may go through any.

    Args:
      update: `update(grads, state, params, value=, grad=, value_fn=)`, which gives updates like the
        parameters, and a state like the one before.
      params: tree of `jax.ShapeDtypeStruct` with shardings on one mesh.
      state: likewise.
    """
    leaves, structure = jax.tree.flatten((params, state))
    shapes = [x.sharding.shard_shape(x.shape) for x in leaves]
    cuts = [None if x.shape == own else _cut(x) for x, own in zip(leaves, shapes)]
    if not any(cuts):
        return
    axes = list(leaves[0].sharding.mesh.shape.items())
    sized = lambda shapes: [jax.ShapeDtypeStruct(s, x.dtype) for s, x in zip(shapes, leaves)]
    trace = lambda shapes: _traced(update, axes, *structure.unflatten(sized(shapes)))
    whole = trace([x.shape for x in leaves])
    try:
        own = trace(shapes)
    except Exception as error:
        raise ValueError(_message([culprit(_RUN, error)])) from error
    found: dict[str, None] = {}

    def blame(*equations):
        found[culprit(_RUN, *equations)] = None

    count = len(jax.tree.leaves(params))
    labels = _results(whole, own, [*cuts, *cuts[:count], None], blame)
    if found or any(label not in (cut, _ALIKE) for label, cut in zip(labels, cuts)):
        raise ValueError(_message(found))


def _traced(update, axes, params, state):
    dtypes = [x.dtype for x in jax.tree.leaves(params) if jnp.issubdtype(x.dtype, jnp.floating)]
    value = jax.ShapeDtypeStruct((), jnp.result_type(jnp.float32, *dtypes))

    def run(grads, state, params, value):
        def value_fn(params):  # whoever calls it reads whole leaves
            return sum((jnp.sum(x.real) for x in jax.tree.leaves(params)), start=0 * value)

        return update(grads, state, params, value=value, grad=grads, value_fn=value_fn)

    traced = jax.make_jaxpr(run, axis_env=axes)(params, state, params, value)
    return without_mere_effects(traced)


def _results(whole, own, labels, blame):
    """What the results of a program are on each device; blames the equations that are no slices."""
    program, slices = map(_bare, (whole, own))
    known = dict(zip(program.invars, labels))
    partners = dict(zip(program.invars, slices.invars))
    values, others = map(_constants, (whole, own))

    def label(x, y):
        found, wanted = _value(x, values), _value(y, others)
        if found is not _UNKNOWN or wanted is not _UNKNOWN:
            return None if _same(found, wanted) else _OTHER
        if partners.setdefault(x, y) is not y:
            return _OTHER
        return known.get(x, _by_shape(x, y))

    for old, new in zip_longest(*map(_looked_at, (program, slices))):
        if old is None or new is None or _form(old) != _form(new):
            blame(new if old is None else old)
            break
        here = [label(x, y) for x, y in zip(old.invars, new.invars)]
        known |= zip(old.outvars, _step(old, new, here, partial(blame, old)))
        partners |= zip(old.outvars, new.outvars)
    return [label(x, y) for x, y in zip(program.outvars, slices.outvars)]


def _step(old, new, labels, blame):
    """What the results of an equation are."""
    name, inner = old.primitive.name, list(zip(jaxprs(old), jaxprs(new)))
    outs = [_by_shape(x, y) for x, y in zip(old.outvars, new.outvars)]
    numbers = all(not x.aval.shape for x, label in zip(old.invars, labels) if label is None)
    if _OTHER in labels or name == "axis_index":
        blame()
    elif name == "optimization_barrier":
        return labels
    elif name in _CALLS and [len(_bare(x).invars) for x, _ in inner] == [len(labels)]:
        return _results(*inner[0], labels, blame)
    elif name == "cond" and labels[0] is None:
        branches = [_results(*pair, labels[1:], blame) for pair in inner]
        return [_merged(x, blame) for x in zip(*branches)]
    elif not any(labels + outs):
        found = [_results(*x, [None] * len(_bare(x[0]).invars), blame) for x in inner]
        if any(map(any, found)) or not _same_params(old, new):
            blame()
    elif name == "broadcast_in_dim" and numbers and not any(labels):
        pass
    elif _each(old) and numbers and any(labels) and _same_params(old, new):
        shapes = {x.aval.shape for x in [*old.invars, *old.outvars]} - {()}
        if len(shapes) == 1:
            return [_merged([x for x in labels if x], blame)] * len(outs)
        blame()
    else:
        blame()
    return outs


def _each(equation):
    """Whether it goes element by element; a reduction along no axis does."""
    name = equation.primitive.name
    return name in _EACH or (name.startswith("reduce_") and equation.params.get("axes") == ())


def _merged(labels, blame):
    """What a value is that depends on some of one shape, element by element."""
    cuts = set(labels) - {_ALIKE}
    if len(cuts) > 1:
        blame()
    return cuts.pop() if len(cuts) == 1 else _ALIKE


def _by_shape(x, y):
    return None if x.aval.shape == y.aval.shape else _ALIKE


def _cut(x):
    """How an array is cut, in one form."""
    spec = [_mesh.named(entry) for entry in x.sharding.spec]
    while not spec[-1]:
        spec.pop()
    return tuple(spec)


def _bare(program):
    """Without its constants: until jax 0.11 they make another kind."""
    return getattr(program, "jaxpr", program)


def _constants(program):
    return dict(zip(_bare(program).constvars, getattr(program, "consts", ())))


def _looked_at(program):
    return [x for x in program.eqns if _MARK not in _jax.scope(x)]


def _form(equation):
    inner = [len(_bare(x).invars) for x in jaxprs(equation)]
    return equation.primitive, len(equation.invars), len(equation.outvars), inner


def _value(x, constants):
    return x.val if isinstance(x, core.Literal) else constants.get(x, _UNKNOWN)


def _same(a, b):
    """Whether two constants are one; a traced one is known by itself alone."""
    try:
        equal = lambda: np.array_equal(a, b, equal_nan=True)
        return a is b or (np.result_type(a) == np.result_type(b) and equal())
    except Exception:
        return False


def _same_params(old, new):
    """Whether two equations do the same, but for the programs within them."""
    leaves = lambda x: jax.tree.leaves(x.params, is_leaf=lambda x: x is None or is_jaxpr(x))
    one, two = ([y for y in leaves(x) if not is_jaxpr(y)] for x in (old, new))
    return len(one) == len(two) and all(x is y or bool(np.all(x == y)) for x, y in zip(one, two))


def _message(names: Iterable[str]) -> str:
    return (
        "Expected an optimizer that goes element by element with lowering='shard_map', which gives "
        f"each device slices of the leaves, got {', '.join(names) or 'another'}: it may read whole "
        "leaves, their norms, sizes or places. Use lowering='auto', which takes every optimizer; "
        "or, where a slice of the update needs no more than the same slices, wrap that "
        "transformation, lossopt.parallel.elementwise(rule)."
    )
