"""What traced and compiled programs hold."""

import jax


def equations(jaxpr):
    """All equations at all depths."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(value):
                yield from equations(getattr(value, "jaxpr", value))


def _is_jaxpr(x):
    return hasattr(x, "eqns")


def products(compiled):
    """Matrix products in a compiled program."""
    return sum(compiled.as_text().count(name) for name in (" dot(", "matmul", "gemm"))
