"""Rows cut into pieces, walked, and put together again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lossopt as lo
from lossopt import _pieces
from tests import regression
from tests.regression import cut, each_verb


def _parts(pieces):
    """All pieces in order, by numpy."""
    return [piece for tree in pieces.stacked for piece in np.asarray(tree)] + [*pieces.last]


class TestStrided:
    @pytest.mark.parametrize("rows", range(1, 11))
    def test_never_more_than_asked_none_larger_never_padded(self, rows):
        for count in range(1, rows + 1):
            pieces, size = _pieces.strided(np.arange(rows), count), -(-rows // count)
            parts = _parts(pieces)
            full = len(parts) - len(pieces.last)
            assert 1 <= len(parts) <= count
            assert {len(piece) for piece in parts[:full]} <= {size}
            assert all(0 < len(piece) <= size for piece in parts[full:])
            assert sorted(np.concatenate(parts)) == list(range(rows))

    def test_rows_go_round(self):
        pieces = _pieces.strided({"x": np.arange(11)}, 4)
        np.testing.assert_array_equal(pieces.stacked[0]["x"], [[0, 3, 6], [1, 4, 7], [2, 5, 8]])
        np.testing.assert_array_equal(pieces.last[0]["x"], [9, 10])

    @pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
    def test_joined_are_the_rows_as_they_were(self, count):
        batch = {"x": np.arange(14.0).reshape(7, 2), "y": np.arange(7)}
        jax.tree.map(np.testing.assert_array_equal, _pieces.strided(batch, count).joined(), batch)


class TestContiguous:
    @pytest.mark.parametrize(
        ("size", "sizes"),
        [(1, [1] * 7), (2, [2, 2, 2, 1]), (3, [3, 3, 1]), (6, [6, 1]), (7, [7]), (9, [7])],
    )
    def test_consecutive_rows_and_a_smaller_rest(self, size, sizes):
        pieces = _pieces.contiguous(np.arange(7), size)
        parts = _parts(pieces)
        assert [len(part) for part in parts] == sizes
        np.testing.assert_array_equal(np.concatenate(parts), np.arange(7))
        np.testing.assert_array_equal(pieces.joined(), np.arange(7))
        assert len(pieces.last) == int(7 % size > 0)

    def test_no_rows_are_one_empty_piece(self):
        pieces = _pieces.contiguous({"x": np.zeros((0, 3))}, 4)
        assert pieces.stacked == ()
        assert [piece["x"].shape for piece in pieces.last] == [(0, 3)]


class TestWalk:
    @pytest.mark.parametrize(
        ("pieces", "numbers"),
        [
            (_pieces.strided(jnp.arange(7.0), 3), [0, 1, 2]),  # rows (0, 2, 4), (1, 3, 5), (6,)
            (_pieces.strided(jnp.arange(6.0), 3), [0, 1, 2]),
            (_pieces.contiguous(jnp.arange(7.0), 3), [0, 1, 2]),
            (_pieces.strided(jnp.arange(7.0), 1), [None]),
            (_pieces.contiguous(jnp.arange(7.0), 9), [None]),
        ],
    )
    def test_in_order_with_numbers_and_a_carry(self, pieces, numbers):
        def step(carry, number, piece):
            number = -1.0 if number is None else number
            return 10 * carry + piece[0], {"number": number, "first": piece[0], "carry": carry}

        carry, outs = _pieces.walk(step, jnp.zeros(()), pieces)
        firsts = [float(piece[0]) for piece in _parts(pieces)]
        table = {name: [*np.ravel(x)] for name, x in _joined(outs).items()}
        assert table["number"] == [-1 if number is None else number for number in numbers]
        assert table["first"] == firsts
        want = [0.0]
        for first in firsts:
            want.append(10 * want[-1] + first)
        assert [*table["carry"], carry] == want

    @pytest.mark.parametrize("count", [1, 3, 7])
    def test_what_is_kept_may_be_added_or_joined(self, count):
        x = np.arange(14.0, dtype=np.float32).reshape(7, 2)
        pieces = _pieces.strided(x, count)
        _, doubled = _pieces.walk(lambda carry, number, piece: (carry, 2 * piece), (), pieces)
        np.testing.assert_array_equal(doubled.joined(), 2 * x)
        summed = lambda carry, number, piece: (carry, {"sum": jnp.sum(piece, 0), "one": 1})
        added = _pieces.walk(summed, (), pieces)[1].added()
        np.testing.assert_array_equal(added["sum"], x.sum(0))
        assert added["one"] == len(_parts(pieces))

    def test_equal_pieces_are_traced_once(self):
        traced = []
        step = lambda carry, number, piece: (traced.append(piece.shape) or carry, piece)
        _pieces.walk(step, (), _pieces.strided(jnp.zeros(11), 4))
        assert traced == [(3,), (2,)]


def _joined(outs):
    ones = jax.tree.map(lambda x: jnp.reshape(x, (1,)), outs.last)
    return jax.tree.map(lambda *xs: np.concatenate(xs), *outs.stacked, *ones)


class TestRows:
    def test_are_the_leading_axis_that_all_leaves_share(self):
        assert _pieces.rows({"x": np.zeros((3, 2)), "y": [np.zeros(3)]}) == 3

    @pytest.mark.parametrize(
        ("batch", "got"),
        [
            (
                {"x": np.ones((3, 2)), "y": np.ones(2)},
                r"batch\['x'\] \(3, 2\), .*\['y'\] \(2,\)\.",
            ),
            ({"x": np.ones(3), "y": 1.0}, r"batch\['x'\] \(3,\), batch\['y'\] \(\)\."),
            ((np.ones(0), np.ones(0)), r"batch\[0\] \(0,\)\."),
            ([np.ones(3), *[1.0] * 100], r"batch\[0\] \(3,\), batch\[1\] \(\)\."),
            (np.float32(1), r"batch \(\)\."),
            ({}, r"no arrays\."),
        ],
    )
    def test_others_are_refused_by_name_and_shape(self, batch, got):
        with pytest.raises(ValueError, match=rf"^Expected batch .* axis of rows, got {got}"):
            _pieces.rows(batch)


class TestOfAnObjective:
    @pytest.mark.parametrize("microbatches", [1, 2, 3, 5])
    def test_the_objective_sees_pieces_of_the_batch_and_nothing_else(self, microbatches):
        shapes, rows, size = set(), 7, -(-7 // microbatches)

        def objective(w, x):
            shapes.add(x.shape)
            return {"rows": w * lo.mean(jnp.ones(len(x))), "pieces": lo.constant(0.0)}

        fn = jax.jit(lo.value_and_grad(objective, microbatches=microbatches))
        (_, means), _ = fn(1.0, jnp.zeros((rows, 2)))
        assert shapes == {(n, 2) for n in (size if size <= rows else rows, rows % size) if n}
        assert means["rows"].weight == rows
        assert means["pieces"].weight == len(cut(np.zeros(rows), microbatches)) <= microbatches

    def test_the_order_of_pieces_is_the_order_of_states(self):
        def objective(w, x, *, model_state):
            state = model_state * 10 + x[0]
            return lo.mean(w * x), {"model_state": state}

        fn = lo.value_and_grad(objective, microbatches=3, has_aux=True)
        (_, _, aux), _ = fn(1.0, jnp.arange(1.0, 6.0), model_state=jnp.zeros(()))
        assert aux["model_state"] == 125  # rows (1, 3), (2, 4), (5,)

    @each_verb
    @pytest.mark.parametrize("microbatches", [8, 100])
    def test_more_microbatches_than_rows_are_refused(self, microbatches, verb):
        fn = verb(regression.objective, microbatches=microbatches)
        with pytest.raises(ValueError, match=f"microbatches <= 7, got {microbatches}"):
            fn(regression.params(), regression.batch(rows=7))

    @each_verb
    @pytest.mark.parametrize("microbatches", [0, -1])
    def test_no_microbatches_are_refused(self, microbatches, verb):
        with pytest.raises(ValueError, match="microbatches >= 1"):
            verb(regression.objective, microbatches=microbatches)

    @pytest.mark.parametrize(
        "batch",
        [
            {"x": np.ones(3), "y": np.ones(2)},
            {"x": np.ones(3), "y": 1.0},
            {"x": np.ones(3), "y": np.ones(())},
            np.float32(1),
        ],
    )
    @each_verb
    @pytest.mark.parametrize("microbatches", [1, 2])
    def test_leaves_that_share_no_rows_are_refused(self, batch, microbatches, verb):
        fn = verb(lambda w, b: lo.constant(w), microbatches=microbatches)
        with pytest.raises(ValueError, match="share a leading axis of rows, got"):
            fn(1.0, batch)

    @pytest.mark.parametrize("batch", [{}, None])
    @pytest.mark.parametrize("microbatches", [1, 2])
    def test_a_batch_without_leaves_is_one_piece(self, batch, microbatches):
        seen = lambda w, b: {"seen": w * lo.mean(jnp.ones(2)), "none": lo.constant(b == batch)}
        (value, means), slope = lo.value_and_grad(seen, microbatches=microbatches)(3.0, batch)
        assert (value, means["seen"].weight, means["none"].weight, slope) == (4, 2, 1, 1)
        assert lo.measure(seen, microbatches=microbatches)(3.0, batch) == (value, means)
