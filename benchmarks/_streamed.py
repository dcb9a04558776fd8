"""Batches of numpy from a plain generator, against the same rows in memory."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lossopt as lo
from benchmarks._tasks import LOSSES, Task
from lossopt.training._source import source

MEMORY, STREAM, READ = "fit, in memory", "fit, streamed", "the generator alone"


@dataclasses.dataclass
class Batches:
    """A pass over rows for each order, as a loader of one thread makes it."""

    task: Task
    orders: list[np.ndarray]
    passes: int = 0

    def __iter__(self):
        order, self.passes = self.orders[self.passes], self.passes + 1
        for i in range(0, len(order), self.task.batch_size):
            rows = order[i : i + self.task.batch_size]
            yield {"x": self.task.x[rows], "y": self.task.y[rows]}

    def __len__(self):
        return self.task.steps // self.task.epochs


def streamed(task):
    """All three, each from the first parameters on."""
    task = dataclasses.replace(task, x=np.asarray(task.x), y=np.asarray(task.y))
    loss, optimizer = LOSSES[task.loss][0], optax.adam(task.rate)

    def objective(params, batch):
        return {"fit": lo.mean(loss(task.apply(params, batch["x"]), batch["y"]))}

    given = {"epochs": task.epochs, "progress": False}
    call = functools.partial(lo.fit, objective, task.params, **given)

    def memory(seed):
        train, key = {"x": task.x, "y": task.y}, jax.random.key(seed)
        run = functools.partial(call, train, optimizer, batch_size=task.batch_size, key=key)
        return lambda: jax.block_until_ready(run().params)

    def stream(seed):
        train, key = Batches(task, _orders(task, seed)), jax.random.key(seed)
        return lambda: jax.block_until_ready(call(train, optimizer, key=key).params)

    def read(seed):
        train = Batches(task, _orders(task, seed))
        return lambda: [len(batch) for _ in range(task.epochs) for batch in train]

    return {MEMORY: memory, STREAM: stream, READ: read}


def _orders(task, seed):
    """The rows of each epoch, as `fit` draws them from memory."""
    count = len(task.x)
    rows = source(jnp.arange(count), task.batch_size, False)

    @jax.jit
    def order(number):
        shuffle = jax.random.split(jax.random.fold_in(jax.random.key(seed), number))[0]
        return rows.take(jnp.arange(count), shuffle, 0, count)

    return [np.asarray(order(number)) for number in range(task.epochs)]
