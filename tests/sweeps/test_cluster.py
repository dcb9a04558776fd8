"""Real workers: those of Dask, one of which is killed, and a pool whose one process is killed."""

import os
import signal
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import distributed
import numpy as np
import pytest

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
    first, seen = client.run(os.getpid), []

    def kill(row):
        if not seen:  # each has its chunk, and the next one waits there
            os.kill(min(first.values()), signal.SIGKILL)
        seen.append(row["id"])

    same(sweep(TASK, far.TRIALS, executor=client.get_executor(), on_row=kill, **ALONE), want)
    assert sorted(seen) == list(range(far.COUNT))
    assert min(first.values()) not in client.run(os.getpid).values()


def test_a_chunk_that_kills_is_named(client, monkeypatch, tmp_path):
    monkeypatch.setattr(client.cluster.scheduler, "allowed_failures", 0)  # of 3: each takes seconds
    saved = {"checkpoint": tmp_path / "saved"}
    options = {"executor": client.get_executor, "chunk": 1, **saved}
    run = far.striking(tmp_path / "struck", at=3)
    said = r"lost trials 3 \(3: rate 0.003761, .*It ended every worker.*none of run's exceptions"
    with pytest.raises(RuntimeError, match=said) as caught:
        sweep(run, far.PLACED[:5], mode="sequential", **options)
    assert isinstance(caught.value.__cause__, distributed.KilledWorker)
    kept = sweep(
        run, far.PLACED[:5], mode="sequential", timeout=1e-9, checkpoint=options["checkpoint"]
    )
    assert (kept["status"] != "waiting").any()
    again = sweep(run, far.PLACED[:5], mode="sequential", **options)  # the error is still known
    assert (again["status"] != "waiting").all()


def test_a_pool_whose_process_is_killed(tmp_path):
    made, run = [], far.striking(tmp_path / "struck", at=5)

    def pool():
        made.append(ProcessPoolExecutor(1, mp_context=get_context("spawn")))
        return made[-1]

    got = sweep(run, far.PLACED, executor=pool, **ALONE)
    assert len(made) == 2
    same(got, sweep(run, far.PLACED, **ALONE))
    assert np.isfinite(got["loss"]).any()
