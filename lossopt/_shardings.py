"""Which axis of an array lies over which axes of a mesh."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh
from jax.sharding import PartitionSpec as P

from lossopt import _mesh, _paths
from lossopt._typing import PyTree

SMALL = 1024  # numbers: what has fewer is on every device
EVERYWHERE = P()
Rules = Sequence[tuple[str, P]]


def shardings(
    tree: PyTree,
    mesh: Mesh | AbstractMesh,
    rules: Rules = (),
    *,
    axes: Mapping[str, str | Sequence[str]] | None = None,
) -> PyTree:
    """Where each leaf lies on a mesh: as the first rule that matches says, else spread over `fsdp`.

    Without a rule the largest axis that the devices along `fsdp` divide is spread over them, the
    first of equal ones; leaves of fewer than 1024 numbers, and those that no axis fits, are on
    every device.

    Args:
      tree: any tree of arrays or of `jax.ShapeDtypeStruct`.
      mesh: from `parallel.mesh`, or a mesh of your own, also an abstract one.
      rules: pairs of a regular expression, searched for in the path of a leaf such as
        `"params/Dense_0/kernel"`, and a `jax.sharding.PartitionSpec`, which may name any axis of
        the mesh. Along other axes than `data` and `fsdp`, as for tensor parallelism, activations
        are the model's business.
      axes: which axes of the mesh are `"data"` and `"fsdp"`, where they have other names.

    Returns:
      A tree like `tree` of `jax.sharding.NamedSharding`, for `jax.device_put`, `out_shardings` or
      `Checkpoints.restore`.

    Raises:
      ValueError: if a rule takes no leaf, names an axis that the mesh has not, or does not divide
        a leaf.
      TypeError: if the rules are no such pairs.

    Examples:
      >>> mesh = lo.parallel.mesh(data=1, fsdp=8)
      >>> tuple(lo.parallel.shardings(jnp.zeros((64, 512)), mesh).spec)
      (None, 'fsdp')
    """
    given = by_rules(tree, mesh, rules)
    over = _mesh.axes_of(mesh, axes).fsdp
    leaves, structure = jax.tree.flatten(tree)
    specs = [spread(x, mesh, over) if s is None else s for x, s in zip(leaves, given)]
    return _mesh.placed(mesh, structure.unflatten(specs))


def by_rules(tree: PyTree, mesh: Mesh | AbstractMesh, rules: Rules) -> list[P | None]:
    """For each leaf the spec that the first matching rule gives; None where none matches."""
    leaves = jax.tree.leaves(tree)
    specs: list[P | None] = [None] * len(leaves)
    if not rules:
        return specs
    paths, patterns = _paths.paths(tree), _patterns(rules)
    for numbers, (pattern, spec) in zip(_paths.places(patterns, paths), rules):
        for i in numbers:
            _fits(spec, mesh, leaves[i], f"the rule {pattern!r} for {paths[i]!r}")
            specs[i] = spec
    return specs


def spread(
    leaf: PyTree,
    mesh: Mesh | AbstractMesh,
    over: Sequence[str],
    spec: P = EVERYWHERE,
    ahead: int = 0,
) -> P:
    """A spec whose largest free axis that divides lies over these axes of the mesh.

    Args:
      leaf: an array, or what has its shape.
      mesh: of the axes.
      over: axes of the mesh.
      spec: what is taken already.
      ahead: the first axes of the leaf, which stay whole.
    """
    shape, devices = np.shape(leaf), _mesh.size(mesh, over)
    taken = [*spec, *[None] * (len(shape) - len(spec))]
    free = [
        (length, -i)
        for i, length in enumerate(shape)
        if i >= ahead and taken[i] is None and length % devices == 0 and length
    ]
    if devices == 1 or math.prod(shape) < SMALL or not free or set(over) & set(names(spec)):
        return spec
    taken[-max(free)[1]] = _mesh.spec(over)[0]
    while taken[-1] is None:
        taken.pop()
    return P(*taken)


def names(spec: P) -> list[str]:
    """The axes of a mesh that a spec names."""
    entries: list[Any] = list(spec)
    return [name for entry in entries for name in _mesh.named(entry)]


def without(spec: P, axes: Sequence[str]) -> P:
    """A spec from which axes of the mesh are taken away: gathered over these."""
    kept = [[n for n in names(P(x)) if n not in axes] for x in spec]
    return P(*[_mesh.spec(x)[0] for x in kept])


def like_params(
    tree: PyTree, params: PyTree, specs: Sequence[P], mesh: Mesh | AbstractMesh, over: Sequence[str]
) -> list[P]:
    """Specs for an optimizer's state.

    A leaf takes the spec of the parameter whose path ends its own, if they have one shape; others
    are spread over `over`.
    """
    of_params = {
        (path, np.shape(x)): spec
        for (path, x), spec in zip(jax.tree_util.tree_leaves_with_path(params), specs)
    }

    def chosen(path, leaf):
        ends = [(path[i:], np.shape(leaf)) for i in range(len(path) + 1)]  # the longest first
        fits = [of_params[end] for end in ends if end in of_params]
        return fits[0] if fits else spread(leaf, mesh, over)

    return [chosen(*named) for named in jax.tree_util.tree_leaves_with_path(tree)]


def _patterns(rules):
    patterns = []
    for rule in rules:
        match rule:
            case (str(pattern), P()) if pattern not in patterns:
                patterns.append(pattern)
            case (str(pattern), P()):
                raise ValueError(
                    f"Expected one rule for each pattern, got {pattern!r} twice. A leaf goes to "
                    "the first that matches: leave the other out."
                )
            case _:
                raise TypeError(
                    "Expected rules as pairs of a pattern and a jax.sharding.PartitionSpec, got "
                    f"{rule!r}. Write rules=[('kernel', PartitionSpec(None, 'model'))]."
                )
    return patterns


def _fits(spec, mesh, leaf, whose):
    shape = np.shape(leaf)
    if P.UNCONSTRAINED in spec:
        raise ValueError(f"Expected axes or None in {whose}, got {spec}. Name the axes that lie.")
    for name in names(spec):
        if name not in mesh.axis_names:
            raise ValueError(
                f"Expected axes of the mesh, {mesh.axis_names}, in {whose}, got {name!r}. Correct "
                "the rule, or make a mesh that has this axis."
            )
    if len(set(names(spec))) < len(names(spec)):
        raise ValueError(f"Expected {whose} to name an axis once, got {spec}. Leave one out.")
    if len(spec) > len(shape):
        raise ValueError(
            f"Expected at most {len(shape)} entries in {whose}, of shape {shape}, got {spec}. "
            "Narrow the pattern, or leave entries out."
        )
    for axis, (length, entry) in enumerate(zip(shape, spec)):
        if length % _mesh.size(mesh, names(P(entry))):
            raise ValueError(
                f"Expected {whose}, of shape {shape}, to divide it, got {spec} on a mesh of "
                f"{dict(mesh.shape)}: axis {axis} is not a multiple of "
                f"{_mesh.size(mesh, names(P(entry)))}. Name another axis, narrow the pattern, or "
                "make the leaf larger."
            )
