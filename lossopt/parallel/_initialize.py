"""Several processes, each with devices of its own, as one run."""

import os
from collections.abc import Sequence

import jax

from lossopt import _checks, _jax


def initialize(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    local_device_ids: int | Sequence[int] | None = None,
    heartbeat_timeout_seconds: int = 10,
    initialization_timeout: int = 300,
) -> None:
    """Joins this process with the others of its run: `jax.distributed.initialize`.

    Each process calls it once, before it makes its first array. Then `jax.devices()` are those of
    all processes, and so are those of `mesh()`. Under SLURM, Open MPI, Kubernetes and on Cloud TPU
    jax finds out the first three arguments itself; elsewhere all are needed. A process that has
    been silent for `heartbeat_timeout_seconds` counts as gone, and XLA aborts the others. Those of
    jax wait for 100.

    Args:
      coordinator_address: host and port of process 0, `"host:port"`, alike on all processes.
      num_processes: how many processes there are, at least 1.
      process_id: which of them this is, from 0 to `num_processes - 1`.
      local_device_ids: the accelerators of its host that are this process's; None for all, under
        SLURM and Open MPI for the one whose number is that of the process on its host.
      heartbeat_timeout_seconds: at least 1.
      initialization_timeout: seconds for which it waits for the others, at least 1; then XLA aborts
        the process.

    Raises:
      RuntimeError: if it was called before, if jax has devices already, or under
        `jax_enable_recoverability`, with which a process that hangs is never found.
      ValueError: if arguments are missing that jax does not find out, or out of range.
      TypeError: if numbers are no whole numbers.

    Examples:
      >>> lo.parallel.initialize("localhost:8476", num_processes=2, process_id=2)
      Traceback (most recent call last):
        ...
      ValueError: Expected process_id below num_processes = 2, got 2. Count processes from 0.
    """
    _checks.count("heartbeat_timeout_seconds", heartbeat_timeout_seconds, 1)
    _checks.count("initialization_timeout", initialization_timeout, 1)
    _check(num_processes, process_id)
    found = coordinator_address or os.environ.get("JAX_COORDINATOR_ADDRESS")
    _check_address(found)
    _check_state()
    try:
        jax.distributed.initialize(
            found,
            num_processes,
            process_id,
            local_device_ids,
            initialization_timeout=initialization_timeout,
            heartbeat_timeout_seconds=heartbeat_timeout_seconds,
        )
    except ValueError as error:
        given = {"coordinator_address": found, "num_processes": num_processes}
        _refuse_missing(given | {"process_id": process_id}, error)
        raise


def _check(num_processes, process_id):
    if num_processes is not None:
        _checks.count("num_processes", num_processes, 1)
    if process_id is not None:
        _checks.count("process_id", process_id, 0)
    if process_id is not None and num_processes is not None and process_id >= num_processes:
        raise ValueError(
            f"Expected process_id below num_processes = {num_processes}, got {process_id}. Count "
            "processes from 0."
        )


def _check_address(address):
    if address is not None and not address.rpartition(":")[2].isdecimal():
        raise ValueError(
            f"Expected coordinator_address as 'host:port', got {address!r}. Add a port that is "
            "free on the host of process 0, such as 8476."
        )


def _check_state():
    if jax.distributed.is_initialized():
        raise RuntimeError(
            f"Expected one call of initialize in each process, got another in process "
            f"{jax.process_index()} of {jax.process_count()}. Leave it out: the processes are "
            "joined."
        )
    if _jax.started():
        raise RuntimeError(
            "Expected initialize before jax has devices, got a process that has made arrays or "
            "asked for devices. Call it first: before jax.devices(), lossopt.parallel.mesh() and "
            "the first array or key."
        )
    if jax.config.values.get("jax_enable_recoverability"):
        raise RuntimeError(
            "Expected jax_enable_recoverability off, got on: with it a process that hangs is never "
            "found, and the others wait for ever. Leave it off, and start all processes again when "
            "one is gone: runs go on from their checkpoints."
        )


def _refuse_missing(given, error):
    """Of what was left out, where jax found no cluster that tells."""
    missing = [name for name, value in given.items() if value is None]
    if missing and "defined" in str(error):
        raise ValueError(
            "Expected coordinator_address, num_processes and process_id, or a cluster that jax "
            f"knows, got no {', '.join(missing)} and found no cluster. Pass them to initialize; or "
            "start the processes by srun (SLURM) or mpirun (Open MPI), on Kubernetes with jax[k8s] "
            "installed, or on Cloud TPU."
        ) from None
