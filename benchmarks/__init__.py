"""Benchmarks: `python -m benchmarks.NAME` prints Markdown tables and fails, saying so, on a miss.

Importing this package, which comes before jax, gives every rival the same threads: one, on which
busy neighbors disturb least, or as many as `BENCH_THREADS` says.
"""

import os

THREADS = int(os.environ.get("BENCH_THREADS", "1"))

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NPROC"):
    os.environ[variable] = str(THREADS)  # NPROC is what XLA sizes its own pool by
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # compilation is measured cold
