"""A language model whose logits never exist: better than pairs of words, in less memory."""

import argparse
import collections
import pathlib
import pydoc_data.topics
import re
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

import lossopt as lo

LENGTH, BATCH = 64, 8
CHUNK = re.compile(rb" ?\w+|\s+|[^\w\s]+")


class Decoder(nn.Module):
    """A transformer whose features, times its embedding, would be the logits."""

    words: int
    layers: int
    width: int

    @nn.compact
    def __call__(self, tokens):
        """Features of each token, from those before it."""
        places = self.param("places", nn.initializers.normal(0.02), (LENGTH, self.width))
        x = nn.Embed(self.words, self.width, name="embed")(tokens) + places[None]
        for _ in range(self.layers):
            x += nn.SelfAttention(4)(nn.LayerNorm()(x), nn.make_causal_mask(tokens))
            x += nn.Dense(self.width)(nn.gelu(nn.Dense(256)(nn.LayerNorm()(x))))
        return nn.LayerNorm()(x)


def read(least=2):
    """Rows of training and held-out tokens: chunks of text that occur so often, or single bytes."""
    parts = list(dict.fromkeys("\n\n".join(pydoc_data.topics.topics.values()).split("\n\n")))
    held = parts[::10]
    del parts[::10]
    texts = ["\n\n".join(part).encode() for part in (parts, held)]
    counts = collections.Counter(CHUNK.findall(texts[0]))
    frequent = [x for x, n in counts.items() if n >= least and len(x) > 1]
    known = [bytes([b]) for b in range(256)] + frequent
    words = {x: number for number, x in enumerate(known)}

    def rows(text):
        spelled = ([x] if x in words else [bytes([b]) for b in x] for x in CHUNK.findall(text))
        tokens = np.array([(words[x], len(x)) for chunk in spelled for x in chunk])
        cut = lambda x: np.pad(x, (0, -len(x) % (LENGTH * BATCH))).reshape(-1, LENGTH)
        return dict(zip(("x", "y", "bytes"), map(cut, (tokens[:-1, 0], *tokens[1:].T))))

    return len(words), *map(rows, texts)


def bigram(words, train, test):
    """Bits per byte of counted pairs, smoothed by single counts as suits the held-out text best."""
    x, y = (train[name][train["bytes"] > 0] for name in "xy")
    pairs, single = np.zeros((words, words)), 1 + np.bincount(y, minlength=words)
    np.add.at(pairs, (x, y), 1)
    x, y = (test[name][test["bytes"] > 0] for name in "xy")
    blend = lambda s: (pairs[x, y] + s * single[y] / single.sum()) / (pairs[x].sum(axis=1) + s)
    bits = min(-np.log2(blend(strength)).sum() for strength in (3, 10, 30, 100))
    return bits / test["bytes"].sum(), np.log(single / single.sum())


def objectives(model):
    """The loss by tiles of logits, with bits per byte as a metric; and through all logits."""
    features = lambda params, batch: model.apply({"params": params["model"]}, batch["x"])
    kernel = lambda params: params["model"]["embed"]["embedding"]

    def fused(params, batch):
        inputs = features(params, batch), kernel(params), batch["y"], batch["bytes"] > 0
        loss = lo.fused.linear_softmax_cross_entropy(
            *inputs, bias=params["bias"], transposed=True, memory="4MiB"
        )
        bits = lo.Mean(loss.total / jnp.log(2.0), jnp.sum(batch["bytes"]).astype(jnp.float32))
        return {"nats": loss}, {"metrics": {"bits": bits}}

    def dense(params, batch):
        logits = features(params, batch) @ kernel(params).T + params["bias"]
        loss = lo.losses.softmax_cross_entropy(logits, batch["y"])
        return {"nats": lo.mean(loss, batch["bytes"] > 0)}, {}

    return fused, dense


def main():
    """Trains, prints, plots; fails above the bits of the bigram or above 0.7 of the memory."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one layer, fewer epochs")
    layers, width, epochs = (1, 64, 3) if parser.parse_args().quick else (2, 128, 5)
    print(f"platform: {jax.devices()[0].platform}, jax {jax.__version__}")
    words, train, test = read()
    pairs, single = bigram(words, train, test)
    model, key = Decoder(words, layers, width), jax.random.key(0)
    init = jax.jit(lambda key: model.init(key, train["x"][:1]))
    params = {"model": init(key)["params"], "bias": jnp.asarray(single, jnp.float32)}
    steps = epochs * len(train["x"]) // BATCH
    rate = lo.schedules.warmup(lo.schedules.cosine(8e-3, steps - 50), 50)
    rule = lo.transforms.adam(rate, b2=0.99, weight_decay=0.1)
    optimizer = optax.chain(lo.transforms.clip_by_global_norm(1.0), rule)

    fused, dense = objectives(model)
    piece = jax.tree.map(lambda x: x[:BATCH], train)
    memory = []
    for objective in (fused, dense):
        step = jax.jit(lo.value_and_grad(objective, has_aux=True)).lower(params, piece)
        memory.append(step.compile().memory_analysis().temp_size_in_bytes)
    sizes = {"epochs": epochs, "batch_size": BATCH, "key": key, "has_aux": True}
    run = lo.fit(fused, params, train, optimizer, validation=test, **sizes)
    bits = run.history["validation/bits"]

    table = Table("held-out text", "bits per byte", title=f"{words} words")
    table.add_row("pairs of words, counted", f"{pairs:.3f}")
    table.add_row("transformer, last epoch", f"{bits[-1]:.3f}")
    Console().print(table)
    figure, axes = plt.subplots(layout="constrained")
    lo.plots.loss_curves(run, "bits", axis=axes)
    axes.axhline(pairs, color="gray", linestyle=":", label="pairs of words")
    axes.set(ylabel="bits per byte", title=f"{bits[-1]:.2f} bits, {pairs:.2f} of pairs of words")
    axes.legend()
    pathlib.Path("figures").mkdir(exist_ok=True)
    figure.savefig("figures/language_model.png", dpi=150)
    share = memory[0] / memory[1]
    print(f"{share:.2f} of the temporary memory of all logits (wanted: 0.7), {memory[0]} bytes")
    print("curves in figures/language_model.png")
    return 0 if bits[-1] < pairs and share < 0.7 else 1


if __name__ == "__main__":
    sys.exit(main())
