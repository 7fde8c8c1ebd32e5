"""SIGKILL at random moments."""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from disturbances.checks import (
    Row,
    Undisturbed,
    count_problems,
    litter,
    lost_endings,
    read_endings,
    read_events,
    run_undisturbed,
    timed,
)
from disturbances.damage import damage_states
from disturbances.searches import Driver, Harness, Say, Values, small_space, to_go_on


def kill_searches(
    part: str,
    harness: Harness,
    undisturbed: Undisturbed,
    kills: int,
    rng: random.Random,
    say: Say,
    damaged: float = 0.0,
) -> list[Row]:
    """Kill searches until there were so many kills; every run is brought to its end and compared.

    part: what the rows belong to; damaged: after which share of the kills all checkpoints are damaged too.
    """
    alone, all_of_it = Row(part, "SIGKILL of the driver"), Row(part, "SIGKILL of all processes")
    runs = Row(part, "runs finished in spite of that")
    alone.checked = all_of_it.checked = "what had ended is there again, bit for bit"
    runs.checked = "budget, tables and study.db are the ledger's; no epoch was trained twice to other figures, and no "
    runs.checked += "process is left"
    if undisturbed.is_repeated:
        runs.checked = "as the undisturbed run: budget, trials, epochs, front, tables, study.db; no process is left"
    early = late = pauses = 0
    while alone.times + all_of_it.times < kills:
        directory = harness.new_run("killed")
        seen: dict[str, Values] = {}
        while True:
            row = rng.choice([alone, all_of_it])
            with timed(row):
                driver = harness.start(to_go_on(undisturbed.space, directory))
                left = kills - alone.times - all_of_it.times
                if not left or not reaches_its_kill(driver, directory, undisturbed, len(seen), rng):
                    break
                driver.kill()
                if row is all_of_it:
                    harness.kill_all()
                row.times += 1
                row.problems += lost_endings(seen, directory)
                seen |= read_endings(read_events(directory))
                early += not (directory / "ledger.jsonl").exists()
                late += len(seen) == undisturbed.count
                if rng.random() < damaged:
                    damage_states(directory / "stages", rng)
        with timed(runs):
            runs.times += 1
            answer = driver.finish()[-1]
            pauses += sum(event["event"] == "paused" for event in read_events(directory))
            problems = lost_endings(seen, directory) + ([f"{answer} {answer.trace}"] if answer.error else [])
            if answer.error is None:
                problems += undisturbed.check(directory) + litter(directory)
            runs.problems += [f"run {runs.times}: {problem}" for problem in problems + harness.left_behind()]
        done = alone.times + all_of_it.times
        say(f"{part}: {done} of {kills}, {runs.times} runs finished, lost {count_problems([alone, all_of_it, runs])}")
    runs.done += f"; {early} of the kills fell before their first word, {late} after their last trial"
    runs.done += f"; {pauses} times a trial was paused" if pauses else ""
    return [alone, all_of_it, runs]


def reaches_its_kill(driver: Driver, directory: Path, undisturbed: Undisturbed, ended: int, rng: random.Random) -> bool:
    """Wait for a random moment; return whether it comes before the driver's end.

    As a rule it is in the time between a driver's first word and its expected end, now and then before that.
    """
    if rng.random() < 0.15:
        return not driver.ends_within(rng.uniform(0.5, 1.0) * undisturbed.startup)
    ledger = directory / "ledger.jsonl"
    words = len(read_events(directory))
    if not driver.wait_until(lambda: ledger.exists() and len(read_events(directory)) > words):
        return False
    alone = read_events(undisturbed.directory)
    worker_s = next(event["time"] for event in alone if event["event"] == "started") - alone[0]["time"]
    training_s = undisturbed.seconds - undisturbed.startup - worker_s
    expected = worker_s + training_s * (1 - ended / undisturbed.count)
    return not driver.ends_within(rng.uniform(0.0, expected + 2.0))


def run_kills(harness: Harness, options: argparse.Namespace, rng: random.Random, say: Say) -> list[Row]:
    undisturbed = run_undisturbed(harness, small_space(options.trials))
    say(f"kills: an undisturbed search takes {undisturbed.seconds:.0f} s, {undisturbed.startup:.0f} s of it to start")
    return kill_searches("kills", harness, undisturbed, options.kills, rng, say)


def run_pauses(harness: Harness, options: argparse.Namespace, rng: random.Random, say: Say) -> list[Row]:
    objectives = {"val_accuracy": "max", "train_latency_s": "min"}
    search = {"trials": options.trials, "sampler": "cost_aware"}  # which pauses trials where a stage of theirs ends
    space = small_space(objectives=objectives, search=search)
    undisturbed = run_undisturbed(harness, space, is_repeated=False)
    return kill_searches("pauses", harness, undisturbed, options.kills, rng, say)
