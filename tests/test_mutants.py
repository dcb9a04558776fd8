"""The mutants of `benchmarks.mutants`, of a room of one function."""

import ast
from collections import Counter

import pytest

from benchmarks import _mutations, mutants

SOURCE = '''"""A room's only module."""

Values = list[int] | None


def half(x: int | None = 2, *, low=0.0):
    """Half of it, 1 at most."""
    _checks.condition(x > low, f"expected x > {low + 1}", low=min(x, 3))
    return x / 2


def _unread(x):
    return jnp.where(x, -x, jnp.sum(x, axis=0))
'''
FAULTS = {
    "def half(x: int | None = 3, *, low=0.0):",
    "def half(x: int | None = 2, *, low=1):",
    "pass",
    '_checks.condition((x >= low), f"expected x > {low + 1}", low=min(x, 3))',
    '_checks.condition((x <= low), f"expected x > {low + 1}", low=min(x, 3))',
    "return x",
    "return 2",
    "return (x * 2)",
    "return x / 3",
    "return jnp.where(x, jnp.sum(x, axis=0), -x)",
    "return jnp.where(x, x, jnp.sum(x, axis=0))",
    "return jnp.where(x, -x, jnp.sum(x))",
    "return jnp.where(x, -x, x)",
    "return jnp.where(x, -x, jnp.mean(x, axis=0))",
    "return jnp.where(x, -x, jnp.sum(x, axis=1))",
}


def test_every_fault_in_the_code_and_none_in_words_or_types():
    assert {mutant.after for mutant in _mutations.mutants("_half.py", SOURCE)} == FAULTS


def test_every_mutant_is_python_and_differs():
    for path in mutants.ROOT.glob("lossopt/*/_[!_]*.py"):
        name, source = path.relative_to(mutants.ROOT).as_posix(), path.read_text("utf-8")
        for mutant in list(_mutations.mutants(name, source))[::50]:
            ast.parse(mutant.source)
            assert mutant.source != source


def test_a_draw_is_even_and_repeats():
    drawn = _mutations.draw(mutants.ROOT, "schedules", 20, seed=3)
    assert drawn == _mutations.draw(mutants.ROOT, "schedules", 20, seed=3)
    assert drawn != _mutations.draw(mutants.ROOT, "schedules", 20, seed=4)
    assert set(Counter(x.path for x in drawn).values()) == {5}
    assert len({(x.path, x.line) for x in drawn}) == 20


def test_members_are_those_that_come_to_a_function():
    reached = _mutations.members(mutants.ROOT, "schedules", "half_wave")
    assert {"cosine", "cosine_restarts"} <= reached
    assert not {"linear", "join"} & reached


@pytest.mark.parametrize(("assertion", "seen"), [("== 2", True), ("> 0", False)])
def test_a_test_sees_the_fault_or_does_not(tmp_path, assertion, seen):
    for name, text in {
        "lossopt/__init__.py": "",
        "lossopt/rooms/_half.py": "def half(x):\n    return x / 2\n",
        "tests/rooms/test_half.py": "from lossopt.rooms._half import half\n\n"
        f"def test_of_four():\n    assert half(4) {assertion}\n",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    (mutant,) = _mutations.draw(tmp_path, "rooms", 1, seed=0)
    found = mutants.judge(tmp_path, mutant, timeout=60)
    assert found == ("tests/rooms/test_half.py::test_of_four" if seen else None)
    assert (tmp_path / mutant.path).read_text("utf-8").endswith("x / 2\n")
