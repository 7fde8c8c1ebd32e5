"""Part d of latency_meter.py: what the meter reads in processes that have just started."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import mean, median
from unittest.mock import patch

from meter_bench import Bench, Ratio, Rows, Section, met, note
from meter_processes import Job, Trace, run_alone, trace_job, train_in_turns
from training_report import format_table

from mixtune.meter import windows as meter
from mixtune.meter.times import WINDOWS
from mixtune.training.plan import PHASES, Phase

FRESH_GOAL = 0.03
FRESH_BATCH = 16
MAX_WARM_UP = 20
SHOWN_WARM_UPS = (0, 1, 2, 3, 4, 5, 8, 12, 20)
SHOWN_STEPS = (1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 40, 80)

FRESH_HEAD = (
    "steps of an epoch | WARM_UP_STEPS | phase | meter to the clock of later epochs | "
    "train_latency_s / train_clock_s of the whole training | within 3 %"
)


def measure_fresh(bench: Bench) -> Section:
    """Trace the first steps of fresh processes, find how many to leave out, and see what the meter reads then."""
    job = fresh_job(bench, max(bench.scale.fractions.values()), later=0)
    traces = [run_alone(trace_job, job) for _ in range(bench.scale.traces)]
    bench.say(f"d. traces of {len(traces)} processes")
    clocks = {"wall": "wall clock"} | ({} if bench.device == "cuda" else {"cpu": "CPU time"})
    starts, fewest, found = [], [], []
    for name, said in clocks.items():
        of_phase = {phase: relative_steps(traces, phase, name) for phase in PHASES}
        note_steps(bench.rows, of_phase, name)
        starts += [[said, phase, *start_cells(of_phase[phase])] for phase in PHASES]
        for steps in bench.scale.fractions:
            cells, enough = try_warm_ups(of_phase, steps)
            fewest.append([said, str(steps), *cells, "none" if enough is None else str(enough)])
            found += [] if enough is None else [enough]
    lines, goals = check_fresh(bench, sorted({meter.WARM_UP_STEPS, max([meter.WARM_UP_STEPS, *found])}))
    text = [
        f"Batch {FRESH_BATCH}, one process after another, each new. The steps of a "
        "phase's first epoch to the median of that epoch's second half, medians over processes; SSL comes first. CPU "
        "time is what a busy machine disturbs least:",
        format_table("by | phase | " + " | ".join(f"step {n}" for n in SHOWN_STEPS), starts),
        "What three windows of the first epoch would read to that median: the phase that is furthest off, by "
        f"WARM_UP_STEPS (now {meter.WARM_UP_STEPS}; at most half an epoch's steps are left out), and the fewest with "
        f"all phases within {FRESH_GOAL:.0%}:",
        format_table("by | steps of an epoch | " + " | ".join(map(str, SHOWN_WARM_UPS)) + " | fewest", fewest),
        "What the meter did read:",
        format_table(FRESH_HEAD, lines),
    ]
    return Section("Fresh processes, alone", "\n\n".join(text), goals)


def fresh_job(bench: Bench, fraction: float, later: int, warm_up_steps: int | None = None) -> Job:
    """Return a training run of all three phases, each of one epoch and ``later`` more."""
    count = 2 * (1 + later)
    changes = {"data.fraction": fraction, "optim.batch_size": FRESH_BATCH, "rho": 0.5}
    return bench.job({**changes, "epochs.ssl": count, "epochs.sl": count}, warm_up_steps=warm_up_steps)


def relative_steps(traces: Iterable[list[Trace]], phase: Phase, clock: str) -> list[list[float]]:
    """Return, for each process, the steps of a phase's first epoch to the median of that epoch's second half."""
    epochs = [getattr(trace, clock)[0] for process in traces for trace in process if trace.phase == phase]
    return [[seconds / median(steps[len(steps) // 2 :]) for seconds in steps] for steps in epochs]


def note_steps(rows: Rows, of_phase: dict[Phase, list[list[float]]], clock: str) -> None:
    """Keep the steps of traces for the CSV file; the column of rounds has the step."""
    for phase, processes in of_phase.items():
        for process, steps in enumerate(processes):
            quantity = f"step_to_settled_{clock}"
            rows += [
                ("d trace", "", phase, step, process, quantity, ratio) for step, ratio in enumerate(steps, start=1)
            ]


def start_cells(processes: list[list[float]]) -> list[str]:
    by_step = [f"{median(ratios):.2f}" for ratios in zip(*processes, strict=True)]
    return [by_step[n - 1] if n <= len(by_step) else "" for n in SHOWN_STEPS]


def try_warm_ups(of_phase: dict[Phase, list[list[float]]], steps: int) -> tuple[list[str], int | None]:
    """Return what windows would read at SHOWN_WARM_UPS, and the fewest steps to leave out; None: none is enough."""
    worst = {}
    for warm_up in range(MAX_WARM_UP + 1):
        with patch.object(meter, "WARM_UP_STEPS", warm_up):
            windows = [timed_steps(window) for window in meter.place_windows(steps, WINDOWS)]
        reads = [
            (median(median(mean(trace[step] for step in window) for window in windows) for trace in processes), phase)
            for phase, processes in of_phase.items()
        ]
        worst[warm_up] = max(reads, key=lambda read: abs(read[0] - 1))
    cells = ["{:.3f} ({})".format(*worst[warm_up]) for warm_up in SHOWN_WARM_UPS]
    return cells, next((w for w, (read, _) in worst.items() if abs(read - 1) <= FRESH_GOAL), None)


def timed_steps(window: range) -> range:
    """Return the steps of a window that the meter times, which are those after it has settled."""
    return window[min(meter.SETTLE_STEPS, len(window) - 1) :]


def check_fresh(bench: Bench, warm_ups: list[int]) -> tuple[list[list[str]], list[tuple[str, bool]]]:
    """Train in fresh processes with the real meter; the goals are of its own WARM_UP_STEPS."""
    lines, goals = [], []
    for steps, fraction in bench.scale.fractions.items():
        later = -(-bench.scale.settled_steps // steps)
        for warm_up in warm_ups:
            job = fresh_job(bench, fraction, later, warm_up)
            training_runs = [run_alone(train_in_turns, job)[0] for _ in range(bench.scale.fresh)]
            whole = Ratio.of(training.latency_to_clock for training in training_runs)
            for process, training in enumerate(training_runs):
                note(bench.rows, f"d fresh, {warm_up} left out", f"{steps} steps", 1, process, [training])
            for phase in training_runs[0].phases:
                read = Ratio.of(training.metered(phase) / training.clocked(phase) for training in training_runs)
                lines.append([str(steps), str(warm_up), phase, str(read), str(whole), met(read.off <= FRESH_GOAL)])
                if warm_up == meter.WARM_UP_STEPS:
                    goal = f"fresh, {steps} steps an epoch, {phase}: within {FRESH_GOAL:.0%}: {read.middle - 1:+.1%}"
                    goals.append((goal, read.off <= FRESH_GOAL))
        bench.say(f"d. the meter in fresh processes, {steps} steps an epoch")
    return lines, goals
