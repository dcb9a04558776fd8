"""Stop rules against plain Python loops."""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lossopt.training import Patience, Stopped, Target

NAN, INF = math.nan, math.inf
LENGTH = 12
values = st.lists(
    st.sampled_from([NAN, INF, -INF, -2.0, -1.5, -1.0, 0.0, 0.5, 1.0, 3e38, -3e38])
    | st.floats(-4, 4, width=16),
    min_size=LENGTH,
    max_size=LENGTH,
)
few = settings(max_examples=200, deadline=None)


@dataclasses.dataclass
class _Patience:
    """The rule as one would write it in Python."""

    patience: int
    min_delta: float = 0.0
    accepted: float = INF
    waited: int = 0

    def __call__(self, value):
        if np.float32(self.accepted) - np.float32(value) > np.float32(self.min_delta):
            self.accepted, self.waited = value, 0
        else:
            self.waited += 1
        return Stopped.PATIENCE if self.waited >= self.patience else Stopped.FINISHED


def _target(target, value):
    return Stopped.TARGET if np.float32(value) <= np.float32(target) else Stopped.FINISHED


@partial(jax.tree_util.register_dataclass, data_fields=["limit"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Above:
    """A rule of one's own: stops where the value is above a limit."""

    limit: float

    def init(self):
        return {"seen": jnp.zeros((), jnp.int32)}

    def update(self, state, value):
        status = jnp.where(value > self.limit, Stopped.TARGET.code, Stopped.FINISHED.code)
        return {"seen": state["seen"] + 1}, status.astype(jnp.int32)


def _statuses(rule, sequence):
    return jax.lax.scan(lambda state, value: rule.update(state, value), rule.init(), sequence)[1]


statuses = jax.jit(_statuses)


def _members(rule, sequence):
    return [Stopped(int(code)) for code in statuses(rule, np.array(sequence, np.float32))]


def _first(members):
    """What a loop sees: the first status that says stop, and when."""
    stops = [(at, member) for at, member in enumerate(members) if member is not Stopped.FINISHED]
    return min(stops, key=lambda stop: stop[0], default=None)


class TestPatience:
    @few
    @given(values, st.integers(1, 5), st.sampled_from([0.0, 0.5, 1.0]))
    def test_as_a_plain_loop(self, sequence, patience, min_delta):
        with np.errstate(invalid="ignore", over="ignore"):
            want = [*map(_Patience(patience, min_delta), sequence)]
        assert _members(Patience(patience, min_delta=min_delta), sequence) == want

    @pytest.mark.parametrize(
        ("sequence", "stops"),
        [
            ([3, 2, 2, 2], 3),  # ties are not lower
            ([-1, -2, -2, -1.5], 3),  # also of negative values
            ([NAN, NAN], 1),
            ([1, NAN, 0.5, NAN, NAN], 4),
            ([INF, INF], 1),  # infinity is not lower than nothing yet
            ([4, 3.5, 3, 2.5], None),
        ],
    )
    def test_two_in_a_row_are_enough(self, sequence, stops):
        first = _first(_members(Patience(2), [*sequence, *[-9.0 - i for i in range(5)]]))
        assert first == (stops and (stops, Stopped.PATIENCE))

    def test_small_steps_do_not_add_up_to_one_that_counts_before_they_do(self):
        """Values are compared with the last accepted one, not with the lowest."""
        sequence = [10.0, 9.5, 9.0, 8.75, 8.5, 8.25]
        members = _members(Patience(3, min_delta=1.0), sequence)
        assert _first(members) is None  # 8.75 is 1.25 below 10, accepted
        assert _first(_members(Patience(2, min_delta=1.0), sequence)) == (2, Stopped.PATIENCE)
        assert _first(_members(Patience(1, min_delta=0.5), [1.0, 0.5])) == (1, Stopped.PATIENCE)


class TestTarget:
    @few
    @given(values, st.sampled_from([-1.5, 0.0, 0.1, INF, -INF]))
    def test_as_a_plain_loop(self, sequence, target):
        want = [_target(target, value) for value in sequence]
        assert _members(Target(target), sequence) == want


class TestEither:
    @few
    @given(values, st.integers(1, 4), st.sampled_from([-1.5, 0.5]), st.sampled_from([1.0, 2.0]))
    def test_the_first_stops_and_of_two_at_once_the_left(self, sequence, patience, target, limit):
        rules = Patience(patience), Target(target), Above(limit)
        alone = [_members(rule, sequence) for rule in rules]
        both = [x if x is not Stopped.FINISHED else y for x, y in zip(alone[0], alone[1])]
        assert _members(rules[0] | rules[1], sequence) == both
        want = _first([next((x for x in at if x.code), at[0]) for at in zip(*alone)])
        assert _first(_members((rules[0] | rules[1]) | rules[2], sequence)) == want
        assert _first(_members(rules[0] | (rules[1] | rules[2]), sequence)) == want

    def test_a_tie_goes_to_the_left(self):
        assert _members(Patience(1) | Target(INF), [INF]) == [Stopped.PATIENCE]
        assert _members(Target(INF) | Patience(1), [INF]) == [Stopped.TARGET]

    def test_rules_of_others_stand_on_either_side(self):
        for rule in (Above(1.0) | Patience(1), Patience(1) | Above(1.0), Above(1.0) | Target(-9.0)):
            assert _first(_members(rule, [0.0, 2.0]))[0] == 1
        assert _members(Above(1.0) | Patience(1), [0.0, 2.0])[1] is Stopped.TARGET
        assert _members(Patience(1) | Above(1.0), [0.0, 2.0])[1] is Stopped.PATIENCE

    @pytest.mark.parametrize(
        "other",
        [4, None, "patience", Target, Above, optax.sgd(0.1), type("Mine", (Above,), {})(1.0)],
    )
    def test_what_is_no_rule_is_refused(self, other):
        for combine in (lambda: Patience(3) | other, lambda: other | (Patience(3) | Target(0.0))):
            with pytest.raises(
                TypeError, match=r"(?s)Expected a stop rule, got .*register_dataclass"
            ):
                combine()


class TestStopped:
    def test_a_member_is_its_code_is_a_member(self):
        assert Stopped.FINISHED.code == 0
        assert [member.code for member in Stopped] == [*range(9)]
        for member in Stopped:
            for kind in (int, np.int32, np.int64, np.asarray, jnp.int32):
                assert Stopped(kind(member.code)) is member
            assert Stopped(member.value) is Stopped(member) is member
            assert member.value.islower()

    @pytest.mark.parametrize("code", [-1, 9, 1.5, None, "stopped"])
    def test_what_is_no_code_is_refused(self, code):
        with pytest.raises(ValueError, match="is not a valid Stopped"):
            Stopped(code)


class TestTransformations:
    def test_numbers_are_data(self):
        """One program for all numbers, and for many of them at once."""
        sequence = np.array([3.0, 2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0], np.float32)
        rules = [Patience(k, min_delta=d) | Target(t) for k, d, t in ((2, 0.5, 0), (3, 0, 1))]
        rules = [jax.tree.map(lambda x: np.asarray(x, np.float32), rule) for rule in rules]
        before = statuses._cache_size()
        alone = [statuses(rule, sequence) for rule in rules]
        assert statuses._cache_size() == before + 1
        stacked = jax.tree.map(lambda *x: np.stack(x), *rules)
        together = jax.jit(jax.vmap(_statuses, (0, None)))(stacked, sequence)
        np.testing.assert_array_equal(together, alone)
        assert [_first(map(Stopped, row.tolist())) for row in together] == [
            (3, Stopped.PATIENCE),
            (4, Stopped.TARGET),
        ]

    @pytest.mark.parametrize(
        ("dtype", "wide"),
        [
            ("float64", True),
            ("float32", True),
            ("bfloat16", True),
            ("float32", False),
            ("bfloat16", False),
        ],
    )
    def test_a_carry_keeps_its_dtypes(self, dtype, wide):
        with jax.enable_x64(wide), jax.numpy_dtype_promotion("strict"):
            rule = Patience(2, min_delta=np.float32(0.5)) | Target(0)
            got = _statuses(rule, jnp.asarray([2.0, 1.75, 1.625], dtype))
        assert got.dtype == np.int32
        assert got.tolist() == [0, 0, Stopped.PATIENCE.code]

    def test_float64_is_compared_in_float64(self):
        with jax.enable_x64(True):
            sequence = np.array([1.0, 1.0 - 1e-12, 1.0 - 2e-12])
            assert statuses(Patience(1), sequence).tolist() == [0, 0, 0]

    def test_a_loop_ends_by_it(self):
        rule, sequence = Patience(2) | Target(-5.0), jnp.array([3.0, 1.0, 2.0, 1.0, -9.0])

        def body(carry):
            at, state, _ = carry
            return at + 1, *rule.update(state, sequence[at])

        begin = jnp.int32(0), rule.init(), jnp.int32(0)
        at, _, status = jax.lax.while_loop(lambda carry: carry[2] == 0, body, begin)
        assert (int(at), Stopped(int(status))) == (4, Stopped.PATIENCE)


class TestRefusals:
    @pytest.mark.parametrize(
        ("rule", "error", "message"),
        [
            (Patience(0), ValueError, "Expected patience >= 1, got 0"),
            (Patience(2.5), TypeError, "Expected patience as a whole number, got 2.5"),
            (Patience(10.0), TypeError, "Expected patience as a whole number, got 10.0"),
            (Patience(NAN), TypeError, "Expected patience as a whole number, got nan"),
            (Patience("3"), TypeError, "Expected patience as an array or a number, got str"),
            (Patience(2**40), ValueError, "Expected patience within 32 bits"),
            (Patience(3, min_delta=-0.1), ValueError, "Expected min_delta >= 0, got -0.1"),
            (Patience(3, min_delta=NAN), ValueError, "Expected min_delta >= 0, got nan"),
            (Target(NAN), ValueError, "Expected value <= inf, got nan"),
            (Patience(3) | Target(NAN), ValueError, "Expected value <= inf, got nan"),
        ],
    )
    def test_numbers_out_of_range(self, rule, error, message):
        with pytest.raises(error, match=message):
            rule.init()

    def test_values_that_are_not_one_number(self):
        for rule in (Patience(3), Target(0.0)):
            with pytest.raises(ValueError, match=r"Expected value of shape \(\), got \(2,\)"):
                rule.update(rule.init(), jnp.zeros(2))
