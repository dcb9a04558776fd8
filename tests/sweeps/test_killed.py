"""A sweep killed by kill -9 at random moments ends in the table of one that nobody killed."""

import numpy as np
import pytest

from tests.sweeps import killed


@pytest.mark.parametrize(
    ("way", "kills"), [("sequential", 1), ("within", 1), ("rungs", 2), ("population", 1)]
)
def test_the_same_table(way, kills, tmp_path):
    random, want = np.random.default_rng(kills), killed.table(way)
    print([killed.kill(random, tmp_path, way) for _ in range(kills)])
    rows, got = killed.end(tmp_path, way)
    assert not killed.other(got, want)
    assert np.isfinite(got["loss"]).any()
    print(rows)
