"""Real workers: those of Dask, one of which is killed, and a pool whose one process is killed."""

import os
import signal
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import distributed
import numpy as np
import pytest

from lossopt import sweeps
from tests.sweeps import far
from tests.sweeps.runs import TASK, same, sweep

ALONE = {"mode": "sequential", "chunk": 2}


@pytest.fixture(scope="module")
def client():
    """Two processes of one thread, which begin anew when they are killed."""
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as made:
        yield made


def test_a_worker_of_dask_is_killed(client):
    want = sweep(TASK, far.TRIALS, **ALONE)
    first, killed = client.run(os.getpid), []

    def kill(row):
        if not killed:  # its chunk and the next one are there
            killed.append(min(first.values()))
            os.kill(killed[0], signal.SIGKILL)

    same(sweep(TASK, far.TRIALS, executor=client.get_executor(), on_row=kill, **ALONE), want)
    assert killed


def test_rungs_beside_each_other(client):
    options = {"rungs": sweeps.halving(24, 12, 4), "mode": "vmap", "chunk": 4}
    want = sweep(TASK, far.TRIALS, **options)
    same(got := sweep(TASK, far.TRIALS, executor=client.get_executor, **options), want)
    assert got.work == want.work


def test_a_pool_whose_process_is_killed(tmp_path):
    made, run = [], far.striking(tmp_path / "struck", at=5)

    def pool():
        made.append(ProcessPoolExecutor(1, mp_context=get_context("spawn")))
        return made[-1]

    got = sweep(run, far.PLACED, executor=pool, **ALONE)
    assert len(made) == 2
    same(got, sweep(run, far.PLACED, **ALONE))
    assert np.isfinite(got["loss"]).any()
