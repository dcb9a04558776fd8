"""The runs that `processes` compares, each layout in processes of its own: `_layouts folder`."""

import shutil
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import optax

import lossopt as lo
from tests.training import worker
from tests.training.worker import Place, Scene, leaves

ROWS, BATCH, EPOCHS, SHARDS = 61, 16, 4, 4  # a ragged last batch, and a row that nobody shares
OPTIMIZER = optax.adam(0.01)
KINDS = [(partition, dtype) for partition in ("data", "fsdp") for dtype in ("float32", "float64")]
SAVED = "1x4"  # whose half of a run all layouts take up


def trained(partition, dtype, **options):
    """A run on all devices."""
    mesh = lo.parallel.mesh(1, -1) if partition == "fsdp" else lo.parallel.mesh()
    cast = partial(jax.tree.map, lambda x: np.asarray(x, dtype))
    given = {"batch_size": BATCH, "shards": SHARDS, "epochs": EPOCHS, "key": jax.random.key(3)}
    given |= {"mesh": mesh, "partition": partition, "validation": cast(worker.VALIDATION)}
    data = cast(worker.PARAMS), cast(worker.rows(ROWS))
    return lo.fit(worker.objective, *data, OPTIMIZER, progress=False, **given | options)


def compared(place: Place):
    """All kinds; then one that another layout has begun."""
    jax.config.update("jax_enable_x64", True)
    for kind in KINDS:
        place.tell("_".join(kind), leaves(trained(*kind)))
    half, own = place.folder / "half", place.folder / f"half_{place.scene}"
    if place.scene == SAVED:
        trained(*KINDS[-2], epochs=EPOCHS // 2, checkpoint=half)
        place.tell("begun", None)
    place.wait(f"{SAVED}_0.begun")
    if place.rank == 0:
        shutil.copytree(half, own)
        place.tell("copied", None)
    place.wait(f"{place.scene}_0.copied")
    place.tell("restarted", leaves(trained(*KINDS[-2], checkpoint=own)))


def once(place: Place):
    """One kind."""
    place.tell("fsdp_float32", leaves(trained("fsdp", "float32")))


SCENES = {f"{n}x{m}": Scene(n, m, compared) for n, m in ((1, 4), (2, 2), (4, 1), (1, 2), (2, 1))}
QUICK = {name: SCENES[name]._replace(do=once) for name in ("1x2", "2x1")}

if __name__ == "__main__":
    worker.main(Path(sys.argv[1]), QUICK if sys.argv[2:] else SCENES)
