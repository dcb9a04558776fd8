"""One of two processes of `test_processes.py`: saves, damages, restores, and checks."""

import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import lossopt as lo


def main(directory):
    mesh = jax.make_mesh((4,), ("d",))
    x = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
    put = lambda spec: jax.make_array_from_callback(
        x.shape, NamedSharding(mesh, spec), lambda i: x[i]
    )
    like = {"split": put(P("d")), "copied": put(P()), "own": jnp.ones(3), "n": 0}
    like["key"] = jax.random.key(0)
    overwrite = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    with lo.checkpoint.Checkpoints(directory, keep=2) as checkpoints:
        for step in (1, 2, 3):
            state = {**like, "split": put(P("d")) + step, "n": step}
            checkpoints.save(step, state, {"value": 0.1 * step})
            overwrite(state["split"])
        assert checkpoints.verify() == ((2, 3), {}, {2: {"value": 0.2}, 3: {"value": 0.1 * 3}})
        if jax.process_index() == 0:
            with open(directory + "/00000003/manifest.json", "a") as file:
                file.write(" ")
        multihost_utils.sync_global_devices("damaged")
        with pytest.warns(UserWarning, match="Step 3 .* set aside"):
            step, state, skipped, note = checkpoints.restore(lambda note: {**like, "n": 7})
        assert (step, list(skipped), state["n"], note) == (2, [3], 2, {"value": 0.2})
        assert state["own"].tolist() == [1, 1, 1]
        for name, there in (("split", x + 2), ("copied", x)):
            assert state[name].sharding == like[name].sharding
            for shard in state[name].addressable_shards:
                np.testing.assert_array_equal(shard.data, there[shard.index])
        part = checkpoints.restore({"split": like["split"], "n": 0}, step=2, only="split|^n$").state
        for shard in part["split"].addressable_shards:
            np.testing.assert_array_equal(shard.data, (x + 2)[shard.index])
        with pytest.raises(ValueError, match="only='lost' takes no leaf"):
            checkpoints.restore({"lost": 0}, only="lost")
        with pytest.raises(ValueError, match="n: saved int, wanted float"):
            checkpoints.restore({**like, "n": 0.0})
        with pytest.raises(ValueError, match="holds step 2"):
            checkpoints.save(1, like)
        parts = [jax.device_put(x, device) for device in jax.local_devices()]
        parts[1] += jax.process_index()  # one replica of the second process
        broken = jax.make_array_from_single_device_arrays(x.shape, like["copied"].sharding, parts)
        with pytest.raises(ValueError, match="copied is replicated, but its copies differ"):
            checkpoints.save(3, {**like, "copied": broken})
        checkpoints.save(3, like)
        assert checkpoints.latest() == (3, {})


if __name__ == "__main__":
    warnings.simplefilter("error", UserWarning)
    jax.distributed.initialize(f"localhost:{sys.argv[2]}", 2, int(sys.argv[1]))
    main(sys.argv[3])
