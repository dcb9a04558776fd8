"""Whether trials are those of a checkpoint."""

import dataclasses

import jax
import numpy as np
import pytest

import lossopt as lo
from lossopt.sweeps import Integer, Linear, Static, join
from lossopt.sweeps._identity import option_text, program, rows_of, same_trials
from lossopt.sweeps._trial import Trial

KEY = jax.random.key(0)
ADAM = lo.sweeps.random({"b2": Linear(0, 1), "rule": Static(["adam", "lion"])}, 4, KEY)
SGD = lo.sweeps.random({"warmup": Integer(1, 9), "rule": Static(["sgd", "adam"])}, 3, KEY)
BOTH = join(ADAM, SGD)


@pytest.mark.parametrize("count", [0, 2, 4])
def test_trials_of_another_space_may_be_joined_to_them(count):
    had = rows_of(ADAM[:count])
    for more in (ADAM, BOTH, BOTH[::-1]):
        same_trials(had, ADAM.id[:count], more, "here")


def test_joined_trials_are_the_same_in_any_order_and_part():
    for part in (BOTH, BOTH[:4], BOTH[4:], BOTH[[5, 1]]):
        for more in (BOTH, BOTH[::-1]):
            same_trials(rows_of(part), part.id, more, "here")


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (join(SGD, ADAM), "trial 0: presence of b2 was True, is False"),
        (dataclasses.replace(BOTH, id=BOTH.id[::-1]), "trial 0"),
        (BOTH[:6], "trial 6: there is none of this id now"),
        (BOTH.repeat(2)[1:], "trial 0: there is none"),
    ],
)
def test_others_are_refused(now, message):
    with pytest.raises(ValueError, match=message):
        same_trials(rows_of(BOTH), BOTH.id, now, "here")


def test_another_value_is_refused_where_others_are_joined():
    values = ADAM.values | {"b2": np.full(4, 0.5, np.float32)}
    had = rows_of(dataclasses.replace(ADAM, values=values))
    with pytest.raises(ValueError, match=r"trial 0: b2 was 0\.5, is"):
        same_trials(had, ADAM.id, BOTH, "here")
    with pytest.raises(ValueError, match="hyperparameters: were setting, b2, rule, are setting"):
        same_trials(rows_of(ADAM[:3]), ADAM.id[:3], SGD, "here")


def test_a_program_that_calls_the_host_is_the_same_where_arrays_lie_on_a_device():
    held = jax.device_put(np.arange(3.0), jax.devices()[0])
    like = jax.ShapeDtypeStruct((), np.float32)

    def run():
        host = lambda x: x
        return lambda rate, key: jax.pure_callback(host, like, rate) * held.sum()

    one, other = (program(Trial(run(), (), KEY), np.float32(1)) for _ in range(2))
    assert one == other


def test_a_set_is_told_in_one_order():
    one, other = frozenset([0, 8]), frozenset([8, 0])
    assert repr(one) != repr(other)
    assert option_text((one, "a")) == option_text((other, "a")) == "({0, 8}, 'a')"
