"""Part e of latency_meter.py: does a reference step alongside each new kind of step take the machine's drift out of it?

In each round, rounds being apart, every kind of step is timed as the meter does, right after a window of one reference
step. What a step time says of another round's is its error: as it is; divided by the reference's of the same moment;
and divided by a power of it, which is fitted to the *other* kinds of steps alone. Scaling would be worth its windows if
its held-out error were the lower one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch
from meter_bench import BASE, Bench, Section
from training_report import format_table

from mixtune.meter.lock import DeviceLock
from mixtune.meter.windows import SETTLE_STEPS, WINDOW_STEPS, Moment
from mixtune.space.recipe import parse_recipe, with_values
from mixtune.training.data import load_training_data
from mixtune.training.loop import train_step
from mixtune.training.optimizer import set_rates
from mixtune.training.plan import Epoch
from mixtune.training.state import TrainState, start_state
from mixtune.training.streams import torch_generator

REFERENCE = {"epochs.ssl": 0, "epochs.sl": 1, "model.depth": 2}
KINDS = {
    "SL": {"epochs.ssl": 0, "epochs.sl": 1},
    "SL, batch 128": {"epochs.ssl": 0, "epochs.sl": 1, "optim.batch_size": 128},
    "SSL visible": {"epochs.ssl": 1, "epochs.sl": 1, "rho": 0.0},
    "SSL full, depth 6": {"epochs.ssl": 1, "epochs.sl": 1, "rho": 0.0, "ssl.encode": "full", "model.depth": 6},
    "mix": {"epochs.ssl": 1, "epochs.sl": 1, "rho": 1.0},
}
TRIES = 4  # to have a quiet window
HEAD = "kind of step | median, ms | as it is | over the reference | over its power, fitted to the others | that power"

Floats = npt.NDArray[np.float64]
Timer = Callable[[], tuple[float, bool]]


def measure_reference(bench: Bench) -> Section:
    """Time all kinds of steps in rounds that are apart, each alongside the reference."""
    torch.set_num_threads(1)
    rounds = 2 * bench.scale.rounds
    with_reference = {"reference": REFERENCE, **KINDS}
    timers = {name: make_timer(bench, changes) for name, changes in with_reference.items()}
    quiet, seconds = [], np.empty((len(KINDS), 2, rounds))  # a kind's own, the reference's alongside it
    for round_ in range(rounds):
        for i, name in enumerate(KINDS):
            for j, timer in enumerate((timers[name], timers["reference"])):
                seconds[i, j, round_], was_quiet = timer()
                quiet.append(was_quiet)
            bench.rows.append(("e reference", name, "", round_ + 1, 0, "step_s", seconds[i, 0, round_]))
            bench.rows.append(("e reference", name, "", round_ + 1, 0, "reference_s", seconds[i, 1, round_]))
        bench.say(f"e. round {round_ + 1} of {rounds}")
        time.sleep(bench.scale.pause_s if round_ + 1 < rounds else 0.0)
    logs = np.log(seconds) - np.log(seconds).mean(axis=2, keepdims=True)
    errors, powers = held_out_errors(logs[:, 0], logs[:, 1])
    lines = []
    for name, own, found, power in zip(KINDS, seconds[:, 0], errors, powers, strict=True):
        lines.append([name, f"{1e3 * np.median(own):.2f}", *(f"{error:.1%}" for error in found), f"{power:.2f}"])
    pooled = np.sqrt((errors**2).mean(axis=0))
    lines.append(["all", "", *(f"{error:.1%}" for error in pooled), ""])
    helps = "lowers" if pooled[2] < pooled[0] else "does not lower"
    text = (
        f"{rounds} rounds, {bench.scale.pause_s:g} s apart; a window has {WINDOW_STEPS} steps after {SETTLE_STEPS}, "
        f"and {np.mean(quiet):.0%} of the windows were quiet. Standard deviations over the rounds, in shares of the "
        f"step time. Scaling {helps} the held-out error: {pooled[2]:.1%} instead of {pooled[0]:.1%}.\n\n"
        f"{format_table(HEAD, lines)}"
    )
    return Section("A reference step alongside each kind of step", text, [])


def held_out_errors(own: Floats, reference: Floats) -> tuple[Floats, Floats]:
    """Return standard deviations, (kinds, 3), and the fitted powers, (kinds,).

    own, reference: logarithms of seconds, (kinds, rounds), less their means over the rounds.
    """
    products, squares = (own * reference).sum(axis=1), (reference**2).sum(axis=1)
    powers = (products.sum() - products) / (squares.sum() - squares)  # of a kind: by all others
    left = np.stack([own, own - reference, own - powers[:, None] * reference], axis=1)
    return np.asarray(left.std(axis=2, ddof=1)), powers


def make_timer(bench: Bench, changes: dict[str, object]) -> Timer:
    """Return what times a step of a recipe's first phase: seconds, and whether the window was quiet."""
    recipe = parse_recipe(with_values(BASE, {**bench.scale.changes, **changes}))
    state = start_state(recipe, load_training_data(recipe, bench.device), bench.device)
    lock = DeviceLock.of(state.device)
    steps = _steps(state, state.plan[0])
    for _ in islice(steps, 5):  # kernels load, memory is allocated
        pass

    def timed() -> tuple[float, bool]:
        found = []
        for _ in range(TRIES):
            with lock.exclusive():
                for _ in islice(steps, SETTLE_STEPS):
                    pass
                lock.synchronise()
                began = Moment.now()
                for _ in islice(steps, WINDOW_STEPS):
                    pass
                lock.synchronise()
                ended = Moment.now()
            seconds = (ended.wall - began.wall) / WINDOW_STEPS
            if not lock.on_cpu or ended.was_quiet_since(began):
                return seconds, True
            found.append(seconds)
        return min(found), False

    return timed


def _steps(state: TrainState, epoch: Epoch) -> Iterator[None]:
    """Take a step at each request, without end."""
    masks = torch_generator(state.recipe.seed, "masks", 0, state.device)
    state.backbone.train()
    while True:
        for images, labels in state.data.batches(state.recipe, epoch):
            set_rates(state.optimizer, state.recipe, epoch, 0, 1)
            train_step(state, epoch, images, labels, masks)
            yield
