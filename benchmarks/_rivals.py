"""Training loops that do the same arithmetic: `lossopt.fit`, and what one writes without it.

Each takes a task and returns a function that gets ready for a turn: it takes a seed, by which rows
are shuffled, and returns the call that is timed. That trains from the task's first parameters on
and returns the last ones. A loss is fetched at the end.
"""

import functools
import importlib.util
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lossopt as lo
from benchmarks import THREADS
from benchmarks._tasks import LOSSES

BETAS, EPS = (0.9, 0.999), 1e-8  # of optax.adam


def fit(task):
    """This library."""
    loss, optimizer = LOSSES[task.loss][0], optax.adam(task.rate)
    train = {"x": task.x, "y": task.y}

    def objective(params, batch):
        return {"fit": lo.mean(loss(task.apply(params, batch["x"]), batch["y"]))}

    def ready(seed):
        key = jax.random.key(seed)
        given = {"epochs": task.epochs, "batch_size": task.batch_size, "progress": False}
        call = functools.partial(lo.fit, objective, task.params, train, optimizer, **given)
        return lambda: jax.block_until_ready(call(key=key).params)

    return ready


def loop(task):
    """A compiled step, its state donated, in a Python loop over batches of numpy."""
    optimizer, step = _step(task)
    compiled = jax.jit(step, donate_argnums=0)

    def ready(seed):
        def call():
            params = jax.tree.map(jnp.array, task.params)
            carry = params, optimizer.init(params)
            for rows in _shuffled(task, seed):
                carry, value = compiled(carry, task.x[rows], task.y[rows])
            float(value)
            return jax.block_until_ready(carry[0])

        return call

    return ready


def gather(task):
    """An epoch in one program, which gathers its rows by a permutation that is given to it."""
    optimizer, step = _step(task)
    rows, size = len(task.x), task.batch_size
    whole = rows // size * size

    @functools.partial(jax.jit, donate_argnums=0)
    def epoch(carry, x, y, order):
        one = lambda carry, batch: step(carry, x[batch], y[batch])
        carry, values = jax.lax.scan(one, carry, order[:whole].reshape(-1, size))
        carry, last = one(carry, order[whole:]) if whole < rows else (carry, values[-1])
        return carry, (jnp.mean(values), last)

    def ready(seed):
        random = np.random.default_rng(seed)
        order = lambda: jnp.asarray(random.permutation(rows), jnp.int32)
        orders = [order() for _ in range(task.epochs)]

        def call():
            params = jax.tree.map(jnp.array, task.params)
            carry = params, optimizer.init(params)
            for order in orders:
                carry, values = epoch(carry, task.x, task.y, order)
            jax.device_get(values)
            return jax.block_until_ready(carry[0])

        return call

    return ready


def nnx_loop(task):
    """A step under `nnx.jit` in a Python loop, as the pages of flax have it."""
    from flax import nnx

    loss, rule = LOSSES[task.loss][1], optax.adam(task.rate)

    def mean(model, x, y):
        out = model(x)
        return jnp.mean(loss(out[:, 0] if out.shape[1] == 1 else out, y))

    @nnx.jit
    def step(model, optimizer, x, y):
        value, gradients = nnx.value_and_grad(mean)(model, x, y)
        optimizer.update(model, gradients)
        return value

    def ready(seed):
        layer = functools.partial(nnx.Linear, rngs=nnx.Rngs(0))
        model = nnx.Sequential(*_stack(task, nnx.relu, layer))
        layers = [x for x in model.layers if isinstance(x, nnx.Linear)]
        for layer, (kernel, bias) in zip(layers, task.params):
            layer.kernel[...], layer.bias[...] = jnp.array(kernel), jnp.array(bias)
        optimizer = nnx.Optimizer(model, rule, wrt=nnx.Param)

        def call():
            for rows in _shuffled(task, seed):
                value = step(model, optimizer, task.x[rows], task.y[rows])
            float(value)
            return jax.block_until_ready([(x.kernel[...], x.bias[...]) for x in layers])

        return call

    return ready


def torch_loop(task):
    """The eager loop of torch over tensors, without a `DataLoader`."""
    import torch

    torch.set_num_threads(THREADS)
    functional = torch.nn.functional
    loss = {
        "squared": lambda out, y: functional.mse_loss(out[:, 0], y),
        "sigmoid": lambda out, y: functional.binary_cross_entropy_with_logits(out[:, 0], y),
        "softmax": lambda out, y: functional.cross_entropy(out, y.long()),
    }[task.loss]
    x, y = torch.from_numpy(task.x), torch.from_numpy(task.y)

    def ready(seed):
        torch.manual_seed(seed)
        model = torch.nn.Sequential(*_stack(task, torch.nn.ReLU(), torch.nn.Linear))
        layers = [x for x in model if isinstance(x, torch.nn.Linear)]
        for layer, (kernel, bias) in zip(layers, task.params):
            layer.weight.data.copy_(torch.from_numpy(kernel.T))
            layer.bias.data.copy_(torch.from_numpy(bias))
        optimizer = torch.optim.Adam(model.parameters(), lr=task.rate, betas=BETAS, eps=EPS)

        def call():
            for _ in range(task.epochs):
                for rows in torch.randperm(len(x)).split(task.batch_size):
                    optimizer.zero_grad()
                    value = loss(model(x[rows]), y[rows])
                    value.backward()
                    optimizer.step()
            value.item()
            return [(x.weight.detach().numpy().T, x.bias.detach().numpy()) for x in layers]

        return call

    return ready


def keras_fit(task):
    """`fit` of Keras on jax, by default in all that is not arithmetic."""
    os.environ["KERAS_BACKEND"] = "jax"
    import keras

    *hidden, out = [bias.size for _, bias in task.params]
    layers = [keras.layers.Dense(units, activation="relu") for units in hidden]
    start = keras.layers.Input(task.x.shape[1:])
    model = keras.Sequential([start, *layers, keras.layers.Dense(out)])
    loss = {
        "squared": keras.losses.MeanSquaredError(),
        "sigmoid": keras.losses.BinaryCrossentropy(from_logits=True),
        "softmax": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    }[task.loss]
    numbers = {"beta_1": BETAS[0], "beta_2": BETAS[1], "epsilon": EPS}
    optimizer = keras.optimizers.Adam(task.rate, **numbers)
    model.compile(optimizer=optimizer, loss=loss)
    optimizer.build(model.trainable_variables)
    fresh = [np.array(x) for x in optimizer.variables]
    y = task.y[:, None] if out == 1 else task.y

    def ready(seed):
        keras.utils.set_random_seed(seed)
        model.set_weights([x for pair in task.params for x in pair])
        for variable, first in zip(optimizer.variables, fresh):
            variable.assign(first)

        def call():
            model.fit(task.x, y, batch_size=task.batch_size, epochs=task.epochs, verbose=0)
            weights = model.get_weights()
            return list(zip(weights[::2], weights[1::2]))

        return call

    return ready


FIT, LOOP = "lossopt.fit", "jitted step in a Python loop"
NNX, TORCH, KERAS = "nnx.jit in a Python loop", "torch, eager", "Keras 3, fit on jax"
RIVALS = {FIT: fit, LOOP: loop, NNX: nnx_loop, TORCH: torch_loop, KERAS: keras_fit}
PACKAGES = {TORCH: "torch", KERAS: "keras"}
ABSENT = [name for name, package in PACKAGES.items() if not importlib.util.find_spec(package)]


def _step(task):
    """Adam of optax, and its step from `(params, state)` to the next and the loss."""
    loss, optimizer = LOSSES[task.loss][1], optax.adam(task.rate)

    def mean(params, x, y):
        return jnp.mean(loss(task.apply(params, x), y))

    def step(carry, x, y):
        params, state = carry
        value, gradients = jax.value_and_grad(mean)(params, x, y)
        updates, state = optimizer.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), value

    return optimizer, step


def _shuffled(task, seed):
    """The rows of every batch."""
    random = np.random.default_rng(seed)
    for _ in range(task.epochs):
        order = random.permutation(len(task.x))
        for start in range(0, len(order), task.batch_size):
            yield order[start : start + task.batch_size]


def _stack(task, between, linear):
    """The layers of a `Sequential`."""
    for number, (kernel, _) in enumerate(task.params):
        yield from ([between] if number else [])
        yield linear(*kernel.shape)
