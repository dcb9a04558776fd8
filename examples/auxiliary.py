"""A router's balance loss beside a loss of tokens: its gradient in pieces and on devices."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

import lossopt as lo

LENGTHS = 7 * np.arange(16) % 41 + 11  # 442 tokens in rows of 11 to 47


def terms(params, batch):
    """Of four experts: the loss of each token, and of each row how unevenly they are chosen."""
    x, mask = batch["x"], batch["mask"][..., None]
    chances = jax.nn.softmax(x @ params["router"])
    chosen = jax.nn.one_hot(jnp.argmax(chances, axis=-1), 4)  # which has no slope
    share = lambda x: jnp.sum(x * mask, axis=1) / jnp.sum(mask, axis=1)
    balance = 4 * jnp.sum(share(chosen) * share(chances), axis=-1)
    outputs = jnp.sum(chosen * (x @ params["experts"]), axis=-1)
    return lo.losses.squared_error(outputs, batch["y"]), 0.01 * balance


def objective(params, batch):
    """Two means, each with a weight of its own: of all tokens, and of all rows."""
    loss, balance = terms(params, batch)
    return {"tokens": lo.mean(loss, batch["mask"]), "balance": lo.mean(balance)}


def by_hand(params, batch, pieces, by_tokens):
    """All that pieces sum up over the number of tokens, or the mean of their means."""

    def value(params):
        loss, balance = terms(params, batch)
        cut = lambda x: jnp.sum(x.reshape(-1, pieces, x[0].size), axis=(0, 2))
        losses, tokens = cut(loss * batch["mask"]), cut(batch["mask"])
        balances = cut(balance) / cut(jnp.ones(len(balance)))
        over_tokens = jnp.sum(losses + balances) / jnp.sum(tokens)
        return over_tokens if by_tokens else jnp.mean(losses / tokens + balances)

    return jax.jit(jax.value_and_grad(value))(params)


def stepped(params, batch, microbatches, devices):
    """The value of our step, and what plain descent at rate 1 takes away: the gradient."""
    options = {"microbatches": microbatches, "mesh": lo.parallel.mesh(devices)}
    init, step = lo.train_step(objective, optax.sgd(1.0), **options)
    state, measured = step(init(params), batch)
    return measured.value, jax.tree.map(np.subtract, params, jax.device_get(state.params))


def main():
    """Prints the gradient of each way; fails where it is not what is said of it."""
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_num_cpu_devices", 8)
    count, random = jax.device_count(), np.random.default_rng(0)
    print(f"platform: {count} x {jax.devices()[0].platform}, jax {jax.__version__}")
    params = {name: random.normal(size=(8, 4)) for name in ("router", "experts")}
    x, mask = random.normal(size=(16, 47, 8)), np.arange(47) < LENGTHS[:, None]
    batch = {"x": x, "y": np.sin(3 * x[..., 0]), "mask": mask}

    _, right = by_hand(params, batch, 1, by_tokens=False)
    ways = {"all over tokens, 4 pieces": by_hand(params, batch, 4, by_tokens=True)}
    ways["mean of means, 4 pieces"] = by_hand(params, batch, 4, by_tokens=False)
    for pieces, devices in ((4, 1), (1, count), (2, count)):
        ways[f"lossopt, {pieces} x {devices}"] = stepped(params, batch, pieces, devices)
    table = Table("way, pieces x devices", "loss", "router's gradient", "error of experts'")
    ratios, errors, norm = [], [], np.linalg.norm
    for name, (loss, grads) in ways.items():
        ratios.append(norm(grads["router"]) / norm(right["router"]))
        errors.append(norm(grads["experts"] - right["experts"]) / norm(right["experts"]))
        table.add_row(name, f"{loss:.4f}", f"{ratios[-1]:.4f} of it", f"{errors[-1]:.1e}")
    Console().print(table)
    print("wanted: 4 / 442 = 0.0090 in the first row, 1 and rounding in those of lossopt")
    exact = max(errors[2:]) < 1e-12 and np.ptp([1, *ratios[2:]]) < 1e-12
    return int(not exact or abs(ratios[0] - 4 / 442) > 1e-9 or errors[1] < 0.01)


if __name__ == "__main__":
    sys.exit(main())
