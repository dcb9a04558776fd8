"""Leaves named by path, and the patterns that take them."""

import collections

import numpy as np
import optax
import pytest

from lossopt._paths import hides, paths, places

Layer = collections.namedtuple("Layer", ["kernel", "bias"])
NAMES = ["encoder/kernel", "encoder/bias", "head/kernel", "head/bias", "scale"]


class TestPaths:
    @pytest.mark.parametrize(
        ("tree", "names"),
        [
            ({"params": {"Dense_0": {"kernel": 1.0}}}, ["params/Dense_0/kernel"]),
            ({"b": 1.0, "a": [2.0, (3.0,)]}, ["a/0", "a/1/0", "b"]),
            ({"layer": Layer(1.0, 2.0)}, ["layer/kernel", "layer/bias"]),
            ({"a": None, "b": {}, "c": 1.0}, ["c"]),
            (np.zeros(3), [""]),
            ({}, []),
        ],
    )
    def test_are_the_parts_between_slashes_in_the_order_of_leaves(self, tree, names):
        assert paths(tree) == names

    def test_of_leaves_that_the_caller_defines(self):
        tree = {"a": Layer(1.0, 2.0), "b": {"c": Layer(3.0, 4.0)}}
        assert paths(tree, lambda x: isinstance(x, Layer)) == ["a", "b/c"]

    def test_two_leaves_of_one_path_are_refused(self):
        with pytest.raises(ValueError, match=r"^Two leaves have one path among \['a/b', 'a/b'\]"):
            paths({"a": {"b": 1.0}, "a/b": 2.0})


class TestPlaces:
    @pytest.mark.parametrize(
        ("patterns", "numbers"),
        [
            ([], []),
            (["kernel"], [[0, 2]]),
            (["kernel$", "."], [[0, 2], [1, 3, 4]]),
            (["^head/", "bias"], [[2, 3], [1]]),  # the first match takes head/bias
            (["bias", "^head/"], [[1, 3], [2]]),
            (["^encoder/kernel$|scale"], [[0, 4]]),
        ],
    )
    def test_a_leaf_goes_to_the_first_pattern_that_is_found_in_it(self, patterns, numbers):
        assert places(patterns, NAMES) == numbers
        assert places(iter(patterns), NAMES) == numbers

    def test_the_path_of_a_bare_leaf_is_empty(self):
        assert places([""], [""]) == [[0]]

    @pytest.mark.parametrize(
        ("patterns", "idle"),
        [
            (["kernels"], "kernels"),
            (["kernel", "embedding"], "embedding"),
            (["kernel", "head/kernel"], "head/kernel"),  # taken before
            (["^kernel"], "^kernel"),
            (["KERNEL"], "KERNEL"),
        ],
    )
    def test_a_pattern_that_takes_nothing_is_refused_with_all_paths(self, patterns, idle):
        with pytest.raises(ValueError, match="takes no leaf") as error:
            places(patterns, NAMES)
        assert str(error.value) == (
            f"The pattern {idle!r} takes no leaf of {NAMES}. A leaf goes to the first pattern "
            "that matches: correct the pattern, or move it forward."
        )

    def test_what_is_no_regular_expression_is_refused_by_name(self):
        with pytest.raises(ValueError, match=r"got '\*/kernel': nothing to repeat.*Write '\.\*'"):
            places(["bias", "*/kernel"], NAMES)

    def test_a_pattern_may_take_nothing_of_a_tree_that_hides_leaves(self):
        assert places(["kernel", "embedding"], NAMES, hides=True) == [[0, 2], []]


@pytest.mark.parametrize("empty", [None, (), {}])
def test_a_tree_hides_leaves_where_optax_has_masked_some(empty):
    assert hides({"a": 1.0, "b": {"c": optax.MaskedNode()}})
    assert not hides({"a": 1.0, "b": {"c": empty}})
