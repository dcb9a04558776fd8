"""The step and a loss in little memory on an accelerator, where there is one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich import box
from rich.table import Table

import lossopt as lo
from benchmarks._measure import Claim, Stepper, compare_steps, donated, spread
from benchmarks.fused import OURS, compiled, linear

SIZES = {"tokens": 32768, "depth": 2560, "classes": 128256}
FEW = {"tokens": 64, "depth": 16, "classes": 256}  # for where there is none
ROWS = 2048
NONE = "no accelerator at hand: the step and the fused losses were measured on none"


def accelerated(console, quick, rounds):
    """The claims of what runs on it; on a CPU few sizes, or nothing."""
    here = jax.default_backend() == "cpu"
    if here:
        console.print(NONE, highlight=False)
    if here and not quick:
        return
    sizes = FEW if here else SIZES
    yield from losses(console, **sizes, rows=16 if here else ROWS, rounds=rounds)
    yield from steps(console, *((32, 16, 1) if here else (8192, 4096, 4)), rounds)


def losses(console, tokens, depth, classes, rows, rounds):
    """Value and gradient of a vocabulary's cross entropy in bfloat16, against full logits."""
    work = linear("accelerator", tokens, depth, classes, "bfloat16")()
    chunks = linear("", tokens, depth, classes, "bfloat16", memory=lo.fused.Chunks(rows=rows))()
    args = jax.jit(work.inputs)(jax.random.key(0))
    rivals = work.rivals | {f"{OURS}, {rows} rows": chunks.rivals[OURS]}
    made, values = {}, {}
    for name, rival in rivals.items():
        try:
            made[name] = compiled(jax.value_and_grad(rival, (0, 1)), args)
            made[name].ready()()
            values[name] = float(jax.jit(rival)(*args))
        except jax.errors.JaxRuntimeError as error:  # full logits may not fit
            made.pop(name, None)
            first = str(error).split("\n")[0][:120]
            console.print(f"{name} did not run: {first}", highlight=False, markup=False)
    results = compare_steps(made, rounds=rounds, calls=1)
    console.print(_table(work.name, results))
    apart = float(np.ptp([*values.values()]) / abs(values[OURS]))
    yield Claim(f"{work.name}: relative difference of values", apart, 1e-4)


def steps(console, rows, width, depth, rounds):
    """A step of AdamW on bfloat16 features: plain, and placed on a mesh of what there is."""
    params, batch = _perceptron(rows, width, depth)

    def objective(params, batch):
        x = batch["x"]
        for kernel in params:
            x = jax.nn.gelu(x @ kernel.astype(x.dtype))
        errors = jnp.square(x.astype(jnp.float32) - batch["y"])
        return {"fit": lo.mean(jnp.sum(errors, axis=1), batch["mask"])}

    optimizer = optax.adamw(1e-3)
    init, step = lo.train_step(objective, optimizer, check=False)
    plain = donated(lambda: init(params), lambda state, batch: step(state, batch)[0], batch)
    results = {"plain": plain}
    for partition in ("data", "fsdp")[: 1 if rows < 100 else 2]:
        mesh = lo.parallel.mesh(data=1, fsdp=-1)
        where = {"mesh": mesh, "partition": partition, "check": False}
        results[f"mesh of {mesh.size}, {partition}"] = _on(
            objective, optimizer, params, batch, where
        )
    measured = compare_steps(results, rounds=rounds)
    size = sum(x.size for x in params)
    console.print(_table(f"A step: {size / 1e6:.3g} M parameters, {rows} rows, bfloat16", measured))
    return ()


def _on(objective, optimizer, params, batch, where):
    """A placed step, which is compiled and donates by itself."""
    init, step = lo.train_step(objective, optimizer, **where)
    keywords = {"partition": where["partition"], "check": False}
    plan = lo.parallel.plan(objective, optimizer, params, batch, where["mesh"], **keywords)

    def ready():
        state = init(params)

        def call():
            nonlocal state
            state, _ = jax.block_until_ready(step(state, batch))

        return call

    return Stepper(ready, memory=plan.temporaries)


def _perceptron(rows, width, depth):
    random = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(random.standard_normal(shape, np.float32))
    params = [draw(width, width) / width**0.5 for _ in range(depth)]
    x, y = draw(rows, width).astype(jnp.bfloat16), draw(rows, width)
    return params, {"x": x, "y": y, "mask": jnp.ones(rows)}


def _table(title, results):
    """A row for each rival; ratios are to the first."""
    first = next(iter(results.values()))
    out = Table(box=box.MARKDOWN, title=f"{title}, on {jax.devices()[0].device_kind}")
    for column in ("", "time", "ms", "temporaries", "MiB"):
        out.add_column(column, justify="right" if column else "left")
    for name, one in results.items():
        memory = f"{one.memory / first.memory:.3f}", f"{one.memory / 2**20:.1f}"
        out.add_row(name, spread(one.ratios), f"{1e3 * one.seconds:.2f}", *memory)
    return out
