"""The host of a population: generation after generation, all trials in one program."""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from lossopt import _programs
from lossopt.sweeps._calls import Result, Within, state_of
from lossopt.sweeps._cells import PARENT
from lossopt.sweeps._columns import is_flat
from lossopt.sweeps._compiled import compiled
from lossopt.sweeps._form import Form
from lossopt.sweeps._host import Host, Part, tell
from lossopt.sweeps._identity import digest
from lossopt.sweeps._ledger import Ledger
from lossopt.sweeps._population import Population, evolved, inherited, rule_of
from lossopt.sweeps._settled import Wanted, settled
from lossopt.sweeps._trial import same_form
from lossopt.sweeps._watch import Watch

TAKEN = PARENT, "steps"


def together(
    plan: Population, wanted: Wanted, parts: list[Part], ledger: Ledger, facts: dict[str, str]
) -> tuple[Wanted, Callable[[Host, Watch], None]]:
    """The form of a population, and what runs it; refuses what is none.

    Args:
      plan: of the population.
      wanted: what the caller asks for.
      parts: the groups of trials, of which there is to be one.
      ledger: what comes of them, which gains columns.
      facts: what makes it the same sweep, which gains what a population knows of itself.
    """
    _refuse_forms(wanted, len(ledger.ran))
    _refuse_trials(plan, parts, ledger)
    part, levels, trials = parts[0], ledger.levels, len(ledger.ran)
    state = part.shapes
    same_form(state, _programs.outlined(inherited, _of(part), state, state, part.first), "inherit")
    for name in plan.space:
        ledger.lineage[name] = np.full((len(levels), trials), np.nan, part.values[name].dtype)
        ledger.lineage[name][0] = part.values[name]
    ledger.lineage[PARENT] = np.full((len(levels) - 1, trials), -1, np.int64)
    found = dataclasses.replace(wanted, mode="vmap", chunk=trials)
    settled(found, part.trial, part.first, trials, lambda form: 0.0)  # whether it fits
    if facts:
        facts |= {"trials": str(trials), "inherit": _digest(part, ledger, _rule(plan, ledger))}
    return found, partial(_evolving, plan)


def _evolving(plan: Population, host: Host, watch: Watch) -> None:
    """Runs generation after generation, until all have run or somebody asks."""
    part, ledger, form = host.parts[0], host.ledger, Form("vmap", len(host.ledger.ran))
    if ledger.ran.all() or watch.over:
        return
    compiled(part.trial, form, part.first)
    within, rows = _under_way(host), np.arange(form.chunk)
    next_of = _Next(plan, part, ledger, form)

    def goes_on(under):
        asked = watch.asked  # read once: the states of an end that is not saved are lost
        if asked or watch.long:
            watch.save((form, under))
        return not asked

    while not ledger.ran.all():
        if watch.over:
            watch.leave(within and (form, within))
            return
        done = 0 if within is None else within.done
        until = next(level for level in ledger.levels if level > done)
        result = part.calls.run(form, rows, within, until, goes_on)
        if result is None:
            return
        mine = partial(state_of, form, result)
        ledger.put(rows, until, result.scores, result.seconds, mine, form.width)
        within = None if ledger.ran.all() else next_of(until, result)
        tell(host, rows)
        watch.came()
        if watch.due and within is not None:
            watch.save((form, within))


class _Next:
    """What a generation begins with."""

    def __init__(self, plan: Population, part: Part, ledger: Ledger, form: Form):
        self._part, self._ledger = part, ledger
        self._evolved = _programs.again(evolved, (*_of(part), form, _rule(plan, ledger)))

    def __call__(self, done: int, result: Result) -> Within:
        ledger, part = self._ledger, self._part
        number = ledger.levels.index(done)
        used = {name: x[number] for name, x in ledger.lineage.items() if name != PARENT}
        given = result.state, part.values | used, part.calls.ids, result.scores[ledger.score]
        state, values, rows = self._evolved(*given, part.trial.key, np.int32(number))
        for name in used:
            ledger.lineage[name][number + 1] = values[name]
        ledger.lineage[PARENT][number] = part.calls.ids[np.asarray(rows)]
        return Within(np.arange(len(ledger.ran)), done, state)


def _of(part):
    """What programs of a population are made for, but for the form."""
    return part.trial.run, part.trial.statics


def _rule(plan, ledger):
    return rule_of(plan, len(ledger.ran), ledger.maximize)


def _digest(part, ledger, rule):
    """Of the program that a generation ends with."""
    form, (state, scores) = Form("vmap", len(ledger.ran)), part.trial.shapes(part.first)
    state, judged = form.like((state, scores[ledger.score]))
    shapes = state, part.values, part.calls.ids, judged, part.trial.key, np.int32(0)
    return digest([(_programs.made(evolved, (*_of(part), form, rule), *shapes), shapes)])


def _under_way(host):
    """All trials, where an earlier call saved them, in the order of the table."""
    if host.saves.within is None:
        return None
    _, within = host.saves.within
    order = np.argsort(within.rows)
    state = within.state
    if (order != np.arange(len(order))).any():
        state = jax.tree.map(lambda x: x[order], state)
    return Within(within.rows[order], within.done, state)


def _refuse_forms(wanted, trials):
    if wanted.mode == "sequential":
        raise ValueError(
            "Expected mode 'vmap' or 'auto' with a population, whose trials stand side by side in "
            "one program, got 'sequential'."
        )
    if wanted.chunk not in ("auto", trials):
        raise ValueError(
            f"Expected chunk as 'auto' with a population, or its {trials} trials, which stand in "
            f"one call, got {wanted.chunk}."
        )
    if wanted.mesh is not None:
        raise ValueError(
            "Expected no mesh with a population: its trials go on from each other's states, on one "
            "device. Leave mesh out, or take lossopt.sweeps.halving."
        )


def _refuse_trials(plan, parts, ledger):
    task = parts[0].trial.run
    if task.inherit is None:
        raise ValueError(
            "Expected a lossopt.sweeps.Task with inherit for a population, got one without. Give "
            "it a function of a state, that of another trial, and hyperparameters, which returns "
            "the other state with the key of the first and these hyperparameters."
        )
    if plan.every >= task.steps:
        raise ValueError(
            f"Expected every below the {task.steps} steps of the task, got {plan.every}: nobody "
            "would go on from another. Choose a part of them."
        )
    if len(parts) > 1:
        raise ValueError(
            "Expected the trials of a population to share a program, got "
            f"{' and '.join(part.label for part in parts[:2])}. Run one population for each option."
        )
    if len(np.unique(np.asarray(ledger.trials.setting))) < len(ledger.ran):
        raise ValueError(
            "Expected a population of settings that stand once each, got repeated ones, which soon "
            "would differ. Draw as many settings instead, or sweep under several keys."
        )
    for name, range_ in plan.space.items():
        _refuse_values(name, range_, parts[0].values)
    names = (*ledger.trials.names, *ledger.scores)
    if clash := [name for name in names if name in TAKEN]:
        raise ValueError(
            f"Expected another name than {clash[0]!r}: the table of a population has columns of "
            "its own of this name. Rename it."
        )


def _refuse_values(name, range_, values):
    if not is_flat(values) or name not in values:
        raise ValueError(
            f"Expected {name!r} of space among the hyperparameters that all trials have, got "
            f"{', '.join(values) if is_flat(values) else 'a tree'}. Draw it, too."
        )
    x = values[name]
    if x.ndim > 1 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"Expected {name!r} of space as one real number a trial, got {x.dtype} of shape "
            f"{x.shape[1:]}. Draw it from lossopt.sweeps.Log or Linear."
        )
    low, high = np.array([range_.low, range_.high], x.dtype)
    if (out := x[~((x >= low) & (x <= high))]).size:
        raise ValueError(
            f"Expected trials to begin with {name} within {range_}, got {out[0]}. Draw them from "
            "the same space."
        )
