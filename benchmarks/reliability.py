"""Does a search lose anything to what happens to searches: kills, damaged files, failing trials, a full disk?

    python benchmarks/reliability.py --kills 100

runs small searches on digits, one trial at a time on one CPU thread, so that an undisturbed run is repeatable bit for
bit, and disturbs others:

kills       a search and its resumes are killed with SIGKILL at random moments until it has finished, again and again,
            in turn the driver alone and every process of it;
pauses      the same of a search by cost_aware, which pauses trials and continues them; as it goes by measured seconds,
            no run has to find what another one found;
states      checkpoints, space.yaml, the ledger, study.db and the tables are cut, emptied, overwritten and exchanged;
injections  trials get NaN and infinite weights, raise, exit, are killed and run out of memory while they are set up and
            at a random step of each of six epochs (two of each phase), once and always; a folder of images disappears
            in mid-search;
disk        the disk is full while ledger, states and tables are written;
machine     a search as its command gets signals at each of its moments, loses Ray's processes and its output, and
            begins where temporary folders, home, memory or network are not as usual;
commands    confirm, report, export, clean, init and train are killed before a change of a file, find the disk full or
            the folder read-only, and two of them begin at once;
soak        a search of 2,000 short trials has a fault every minute: processes of it are killed, states damaged;
fuzz        space files and all files of a run are changed at random, and read by all that reads them;
clusters    nodes that share nothing are killed, drained, added, slow, of another kind or without mixtune while a search
            runs on them, and so are its driver and the cluster's head.

After each the trials, their figures and the front are compared with those of an undisturbed run, every trial that was
ever seen to have ended must have kept its figures, and ledger, tables, study.db and ``mixtune.load`` must agree. What
is lost or wrong is printed and written down, and the exit status is then 1. Results go to benchmarks/results/.
Nothing is put into the package for this: faults come from a wrapper around mixtune's training step that Ray's workers
load at their start. Linux alone; ``disk`` mounts a tmpfs, as root, and else bounds the size of files instead;
``clusters`` makes namespaces, as root, and is skipped else.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import shlex
import sys
import time
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path

from disturbances.checks import Row, count_problems
from disturbances.clusters import SCENARIOS, run_clusters
from disturbances.commands import run_commands
from disturbances.damage import run_states
from disturbances.disk import run_disk
from disturbances.faults import EPOCHS, run_injections
from disturbances.fuzz import run_fuzz
from disturbances.kills import run_kills, run_pauses
from disturbances.machine import run_machine
from disturbances.searches import make_harness
from disturbances.soak import run_soak

import mixtune

RESULTS = Path(__file__).parent / "results"

PARTS = {
    "kills": run_kills,
    "pauses": run_pauses,
    "states": run_states,
    "injections": run_injections,
    "disk": run_disk,
    "machine": run_machine,
    "commands": run_commands,
    "soak": run_soak,
    "fuzz": run_fuzz,
    "clusters": run_clusters,
}


def write_report(rows: Sequence[Row], options: argparse.Namespace, seconds: float) -> str:
    """Return the results file."""
    packages = [f"{name} {version(name)}" for name in ("torch", "ray", "optuna")]
    command = [
        "--kills",
        options.kills,
        "--damages",
        options.damages,
        "--mutations",
        options.mutations,
        "--trials",
        options.trials,
    ]
    command += ["--epochs", ",".join(map(str, options.epochs)), "--seed", options.seed]
    command += ["--soak", options.soak, "--every", f"{options.every:g}"] if "soak" in options.only else []
    command += ["--only", ",".join(options.only)]
    command += ["--scenarios", ",".join(options.scenarios)] if options.scenarios != list(SCENARIOS) else []
    about = [
        f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, Linux {platform.release()}",
        ", ".join([f"mixtune {mixtune.__version__}", f"Python {platform.python_version()}", *packages]),
        f"{date.today().isoformat()}, {seconds:.0f} s",
        f"`python benchmarks/reliability.py {shlex.join(map(str, command))}`",
    ]
    head = ["part", "what was done", "times", "lost or wrong", "seconds", "what was checked"]
    table = [
        [row.part, row.done, f"{row.times}", f"{len(row.problems)}", f"{row.seconds:.0f}", row.checked] for row in rows
    ]
    lines = [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *table)]
    problems = [f"- {row.part}, {row.done}: {' '.join(p.split())[:600]}" for row in rows for p in row.problems[:20]]
    sections = [
        "# What searches survive",
        "Printed by benchmarks/reliability.py, which says what is done and how.",
        "\n".join(f"- {line}" for line in about),
        "\n".join(lines),
        "Lost or wrong:" if problems else "Nothing was lost.",
        "\n".join(problems),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def parse_options(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--damages", type=int, default=200, help="of checkpoints; of other files a tenth, each")
    parser.add_argument("--mutations", type=int, default=5000, help="of space files, and of files of runs")
    parser.add_argument("--soak", type=int, default=2000, help="trials of the long search")
    parser.add_argument("--every", type=float, default=60.0, help="seconds between two faults of it")
    parser.add_argument("--trials", type=int, default=12, help="of a search that is killed, damaged or out of disk")
    parser.add_argument("--epochs", default="0,1,2,3,4,5,6", help="at which faults are injected")
    parser.add_argument("--only", default=",".join(PARTS), help=",".join(PARTS))
    parser.add_argument("--scenarios", default=",".join(SCENARIOS), help=f"of clusters: {', '.join(SCENARIOS)}")
    parser.add_argument("--seed", type=int, default=0, help="of every random choice")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder of reliability_PARTS.md")
    options = parser.parse_args(given)
    options.only = options.only.split(",")
    options.scenarios = options.scenarios.split(",")
    options.epochs = [int(epoch) for epoch in options.epochs.split(",")]
    if not set(options.only) <= set(PARTS):
        parser.error(f"--only {','.join(options.only)}: known are {', '.join(PARTS)}")
    if not set(options.scenarios) <= set(SCENARIOS):
        parser.error(f"--scenarios {','.join(options.scenarios)}: known are {', '.join(SCENARIOS)}")
    if not set(options.epochs) <= set(range(EPOCHS + 1)) or min(options.kills, options.damages) < 1:
        parser.error(f"--epochs are 0 to {EPOCHS}; --kills and --damages at least 1")
    if options.trials < 2:
        parser.error("--trials should be at least 2")
    return options


def main() -> None:
    options = parse_options()
    started = time.perf_counter()

    def say(line: str) -> None:
        print(f"[{time.perf_counter() - started:.0f} s] {line}", flush=True)

    say(f"seed {options.seed}; {', '.join(options.only)}")
    rows: list[Row] = []
    for part in options.only:
        with make_harness() as harness:
            rows += PARTS[part](harness, options, random.Random(f"{options.seed}/{part}"), say)
    text = write_report(rows, options, time.perf_counter() - started)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{'_'.join(['reliability', *options.only])}.md"
    path.write_text(text)
    print(f"\n{text}\nwritten to {path}")
    sys.exit(1 if count_problems(rows) else 0)


if __name__ == "__main__":
    main()
