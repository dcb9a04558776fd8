"""Sweeps: trials per second, against loops over trials and libraries that drive them.

All rivals train the same networks on digits for 300 steps, on rows shuffled anew in each epoch.
That they do the same is tried by steps on all rows at once, which no order changes. Loops run fewer
trials, of which one takes as long as another. A sweep with its compilation is a warm one, and what
the first one took beyond that. Where modes are compared, large networks train for fewer steps, as
told. What XLA says of two sizes of a chunk foretells a third, which is then compiled.
"""

import argparse
import functools
import sys
from unittest import mock

import jax
import numpy as np
from rich.console import Console

import lossopt as lo
from benchmarks import _sweep_tasks
from benchmarks._measure import Claim, clock, compilations, header, spread, table, take_turns
from benchmarks._sweep_rivals import ABSENT, HALVING, JITTED, PACKAGES, REBUILT, RIVALS
from lossopt import _programs
from lossopt.sweeps import _compiled, _settled

PARTS = ("modes", "rivals", "libraries", "memory", "device")
MODES = ("auto", "sequential", "vmap")
OURS = "lossopt.sweep"
FASTER = {REBUILT: 15.0, JITTED: 1.2}
NONE = "no accelerator at hand: trials per second against chunk were measured on none"


def swept(task, count, **options):
    """A table of the first trials of one search."""
    return lo.sweep(task, drawn(count), jax.random.key(1), progress=False, **options)


def drawn(count):
    """These trials."""
    return lo.sweeps.random(_sweep_tasks.SPACE, count, jax.random.key(0))


def modes(console, models, count, rounds, judged):
    """Claims of the modes, and by model the seconds that a compilation takes."""
    headings = "auto / better", "vmap / sequential", "auto, s", *(f"first {mode}" for mode in MODES)
    out, claims, spent = table(f"Modes, {count} trials", *headings), [], {}
    for model in models:
        name = f"{model.name}, {model.shorter().steps} steps"
        first, warm, again = in_modes(model.shorter(), count, rounds, cold=judged)
        each = {mode: float(np.median(x)) for mode, x in warm.items()}
        compiling = {mode: max(0.0, first[mode] - each[mode]) for mode in MODES}
        better = min(MODES[1:], key=each.__getitem__)
        ratios = warm["auto"] / warm[better], warm["vmap"] / warm["sequential"]
        firsts = (f"{first[mode]:.2f}" for mode in MODES)
        out.add_row(name, *map(spread, ratios), f"{each['auto']:.2f}", *firsts)
        spent[model.name] = compiling["auto"]
        most = min(first[mode] for mode in MODES[1:]) + max(compiling[mode] for mode in MODES[1:])
        warm, first = float(np.median(ratios[0])), first["auto"] / most
        claims += [
            Claim(f"{name}: programs that a second sweep compiles", again, 0),
            Claim(f"{name}: warm, auto / {better}", warm, 1.1, judged=judged),
        ]
        if judged:  # else they are not cold
            claims.append(
                Claim(f"{name}: first, auto / better + a compilation", first, 1.0, judged=judged)
            )
    console.print(out)
    return claims, spent


def in_modes(model, count, rounds, cold):
    """Seconds of first sweeps and of warm ones, and programs that another task compiles anew."""
    sweep = lambda task, mode: swept(task, count, mode=mode)
    if cold:
        fresh()
    first = {"auto": seconds(lambda: sweep(model.task(), "auto"))}
    task = model.task()
    again = compilations(lambda: sweep(task, "auto"))
    if cold:
        fresh()
    first |= {mode: seconds(lambda mode=mode: sweep(task, mode)) for mode in MODES[1:]}
    ready = {mode: lambda _, mode=mode: functools.partial(sweep, task, mode) for mode in MODES}
    warm = take_turns(ready, rounds=rounds)
    return first, {mode: turns.seconds for mode, turns in warm.items()}, again


def rivals(console, models, counts, rounds, spent, judged):
    """Whole trials of ours, and of loops that run fewer."""
    for model in models:
        ours, loops = raced(model, counts, rounds)
        out = table(f"{model.name}, {model.steps} steps", "trials/s", "ms a trial", "and compiling")
        for name, each in loops.items():
            out.add_row(name, *rate(each), "")
        for count, each in ours.items():
            first = np.median(each) + spent.get(model.name, np.nan) / count
            out.add_row(f"{OURS}, {count} trials", *rate(each), f"{1 / first:.2f}")
            for name, times in loops.items():
                what = f"{model.name}, {count} trials: {name}, time / lossopt"
                held = judged and (name == REBUILT or model.small)
                faster = float(np.median(times) / np.median(each))
                yield Claim(what, faster, least=FASTER[name], judged=held)
            if model.name in spent:
                what = f"{model.name}, {count} trials: {REBUILT}, time / lossopt that compiles"
                faster = float(np.median(loops[REBUILT]) / first)
                yield Claim(what, faster, least=FASTER[REBUILT], judged=False)
        console.print(out)


def raced(model, counts, rounds):
    """Seconds of a trial: by the number of trials of ours, and by the name of a loop."""
    task, trials, (few, *many) = model.task(), drawn(4), counts
    numbers = {REBUILT: 1, JITTED: 4}
    calls = {name: RIVALS[name](model, trials, number) for name, number in numbers.items()}
    calls |= {OURS: lambda: swept(task, few)}
    ready = {name: lambda _, call=call: call for name, call in calls.items()}
    turns = take_turns(ready, rounds=rounds)
    loops = {name: turns[name].seconds / number for name, number in numbers.items()}
    ours = {few: turns[OURS].seconds / few}
    for count in many:
        call = functools.partial(swept, task, count)
        call()  # its mode is settled
        ours[count] = np.array([seconds(call) / count])
    return ours, loops


def rate(each):
    """Trials a second, and milliseconds of one with their range."""
    low, middle, high = 1e3 * np.quantile(each, [0, 0.5, 1])
    return f"{1e3 / middle:.2f}", f"{middle:.2f} ({low:.2f}-{high:.2f})"


def same(model):
    """How far apart losses are after steps on all rows."""
    few = model.on_all_rows(5)
    ours = swept(few.task(), 3, mode="sequential")["loss"]
    for name in (REBUILT, JITTED):
        theirs = np.array(RIVALS[name](few, drawn(3), 3)())
        apart = float(np.max(np.abs(theirs / ours - 1)))
        yield Claim(f"{model.name}: 5 steps on all rows, {name}: losses apart", apart, 1e-3)


def libraries(console, model, count):
    """Libraries that drive trials, where they are installed; each chooses its own."""
    task, trials = model.task(), drawn(count)
    calls = {OURS: lambda: swept(task, count)["loss"]}
    names = [name for name in (*PACKAGES, HALVING) if name not in ABSENT]
    calls |= {name: RIVALS[name](model, trials, count) for name in names}
    headings = "trials/s", "first call, s", "second call, s", "best loss"
    out = table(f"Libraries, {model.name}, {model.steps} steps, {count} trials", *headings)
    for name, call in calls.items():
        first, second = seconds(call), seconds(call)
        told = f"{count / second:.2f}", f"{first:.2f}", f"{second:.2f}"
        out.add_row(name, *told, f"{np.nanmin(call()):.4f}")
    console.print(out)


def memory(console, models, count):
    """What a chunk takes, foretold from two sizes, and as compiled for the sweep that ran."""
    headings = "memory=, MiB", "chunk", "foretold, MiB", "compiled, MiB"
    out, mebi = table(f"Memory, {count} trials", *headings), lambda size: f"{size / 2**20:.3f}"
    for model in models:
        limit, sizes = limited(model.shorter().task(), count)
        chunk = max(size for size in sizes if size < count)
        foretold = sizes[1] + (sizes[count] - sizes[1]) / (count - 1) * (chunk - 1)
        out.add_row(model.name, mebi(limit), str(chunk), mebi(foretold), mebi(sizes[chunk]))
        apart, part = abs(foretold / sizes[chunk] - 1), sizes[chunk] / limit
        yield Claim(f"{model.name}: memory, foretold and compiled, apart", apart, 0.1)
        yield Claim(f"{model.name}: memory of a chunk of {chunk} / memory=", part, 1.0)
    console.print(out)


def limited(task, count):
    """A limit that half of the trials fit into, and bytes by chunk, as asked for by a sweep."""
    sizes, inner = {}, _settled.compiled

    def known(trial, form, values):
        found = inner(trial, form, values)
        sizes[form.chunk] = found.memory
        return found

    with mock.patch.object(_settled, "compiled", known):
        for chunk in (1, count):
            swept(task, count, mode="vmap", chunk=chunk, memory=2**50)
        limit = (sizes[1] + sizes[count]) // 2
        swept(task, count, mode="vmap", memory=limit)
    return limit, sizes


def device(console, models, count):
    """Trials per second against chunk, up to what fits; on an accelerator only."""
    here = jax.devices()[0]
    if here.platform == "cpu":
        console.print(NONE, highlight=False)
        return
    out = table(f"Chunks on {here.device_kind}, {count} trials", "chunk", "trials/s", "peak, MiB")
    for model in models:
        task = model.task()
        for chunk in 4 ** np.arange(1 + int(np.log2(count)) // 2):
            memory = _settled.free(here) or 2**50
            call = functools.partial(
                swept, task, count, mode="vmap", chunk=int(chunk), memory=memory
            )
            try:
                call()
            except ValueError as error:  # it does not fit
                console.print(f"{model.name}, {chunk}: {error}", highlight=False, markup=False)
                break
            peak = (here.memory_stats() or {}).get("peak_bytes_in_use", np.nan)
            told = f"{count / seconds(call):.2f}", f"{peak / 2**20:.1f}"
            out.add_row(model.name, str(chunk), *told)
    console.print(out)


def fresh():
    """Forgets all that was compiled and measured."""
    _programs.clear()
    _settled._timed.clear()
    _compiled._compiled.clear()
    jax.clear_caches()


def seconds(call):
    """Of one call."""
    begin = clock()
    call()
    return clock() - begin


def whole(console, models, rounds, only):
    """The claims of the parts that are asked for."""
    spent = {}
    if "modes" in only:
        claims, spent = modes(console, models, 64, rounds + 2, judged=True)
        yield from claims
    if "rivals" in only:
        yield from same(models[0])
        yield from rivals(console, models, (64, 256), rounds, spent, judged=True)
    if "libraries" in only:
        libraries(console, _sweep_tasks.perceptron(32), 64)
    if "memory" in only:
        yield from memory(console, models[1::3] or models, 32)
    if "device" in only:
        device(console, models, 4096)


def quick(console):
    """The claims of a tiny network, few trials and steps; no times are judged."""
    model = _sweep_tasks.perceptron(4, epochs=1, short=1)
    claims, spent = modes(console, [model], 6, 1, judged=False)
    yield from claims
    yield from same(model)
    yield from rivals(console, [model], (6,), 1, spent, judged=False)
    yield from memory(console, [model], 6)
    device(console, [model], 8)


def main():
    """Prints the tables; returns how many targets were missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few trials; no times are judged")
    parser.add_argument("--rounds", type=int, default=3, help="timed turns of every rival")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to run")
    parser.add_argument("--models", nargs="+", type=int, help="their places, all by default")
    options = parser.parse_args()
    console, missed = Console(width=140), 0
    present = [package for name, package in PACKAGES.items() if name not in ABSENT]
    console.print(header("scikit-learn", *present), highlight=False)
    for name in ABSENT:
        console.print(f"{PACKAGES[name]} is not installed: {name} is left out", highlight=False)
    models = _sweep_tasks.models()
    models = [models[place] for place in options.models or range(len(models))]
    asked = models, options.rounds, options.only
    claims = quick(console) if options.quick else whole(console, *asked)
    for claim in claims:
        console.print(str(claim), highlight=False)
        missed += claim.judged and claim.missed
    return missed


if __name__ == "__main__":
    sys.exit(main())
