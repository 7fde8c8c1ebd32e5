"""SL, SSL+SL and MixTraining side by side: means over seeds, speed-ups, as table, Markdown and CSV.

A speed-up is the seconds of an SSL+SL over a row's: the paper's claim is against SSL+SL. SL leaves the
self-supervised half out, so it is neither a rival for being the fastest nor has a speed-up of its own.
"""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table

from mixtune.metrics import DISTURBED, METHODS, disturbed_note, find_metric, is_disturbed, significant
from mixtune.render import fits, markdown_table, terminal_table
from mixtune.report.paper import dataset_key
from mixtune.run.frames import csv_text
from mixtune.run.paired import Difference, pooled_variance

_ORDER = [(method, encode) for encode in (None, "visible", "full") for method in METHODS]
_TASK = re.compile(r"accuracy_(.+)_mean", re.DOTALL)
_SPEEDUP_ERRORS = ["speedup_same_encoding_se", "speedup_fastest_se"]
_SPEEDUPS = ["speedup_same_encoding", "speedup_same_encoding_by_flops", "speedup_fastest", "speedup_fastest_by_flops"]

Row = dict[Hashable, Any]


@dataclass(frozen=True)
class Run:
    """One training run of a comparison. Accuracies are shares in [0, 1] of one split, NaN where the training diverged.

    method: "sl", "ssl_sl" or "mixtraining"; encode: "visible" or "full", None for sl and for SSL objectives without
    that choice; task_accuracies: by task, in the recipe's order; latency_s: seconds of training;
    disturbed: the share of them that was timed while other processes computed; best_accuracy: the highest of the
    epochs' accuracies, where ``accuracy`` is the last epoch's; latency_se_s: the seconds' standard error; phase_s: the
    seconds of each phase.
    """

    method: str
    encode: str | None
    seed: int
    accuracy: float
    task_accuracies: dict[str, float]
    latency_s: float
    flops: float
    disturbed: float = 0.0
    best_accuracy: float = math.nan
    latency_se_s: float = math.nan
    phase_s: Mapping[str, float] = field(default_factory=dict)

    @property
    def parts(self) -> dict[tuple[str, str | None], float]:
        """Seconds by what has a step time of its own: a phase, at an encoding where that is of its steps."""
        return {(phase, None if phase == "sl" else self.encode): s for phase, s in self.phase_s.items() if s > 0}


def summarise(runs: Sequence[Run]) -> pd.DataFrame:
    """Return a row for each (method, encode) that has runs: SL, then SSL+SL and MixTraining at each encoding.

    Columns: label, method, encode, seeds, diverged (how many of them), accuracy_mean, accuracy_std,
    accuracy_<task>_mean where there are several tasks, latency_mean_s, latency_std_s, flops (mean), disturbed (the
    share of the seconds that was timed while other processes computed), best_accuracy_mean (of each run's best epoch),
    and four speed-ups, of seconds and
    ``_by_flops``: ``speedup_same_encoding`` for MixTraining, against SSL+SL at its encoding; ``speedup_fastest`` for
    SSL+SL and MixTraining, against the SSL+SL of the fewest seconds (that one's FLOPs, too). The two of seconds have
    standard errors, ``_se``: rows take steps of one kind by one step time, whose error is in both.

    Standard deviations are the sample's over seeds, NaN for one. A diverged run makes the accuracies NaN; seconds and
    FLOPs are those of the runs that did not diverge, because a diverged one stops early. What cannot be had is NaN.
    """
    assert all((run.method, run.encode) in _ORDER for run in runs)
    tasks = list(dict.fromkeys(task for run in runs for task in run.task_accuracies))
    tasks = tasks if len(tasks) > 1 else []
    groups = {key: [run for run in runs if (run.method, run.encode) == key] for key in _ORDER}
    rows = [_summary(group, tasks) for group in groups.values() if group]
    _add_speedups(rows, groups)
    columns = [*_summary([], tasks), *_SPEEDUPS, *_SPEEDUP_ERRORS]
    frame = pd.DataFrame(rows, columns=columns)
    # An object column, because a column of text would turn None into NaN.
    frame["encode"] = pd.Series([row["encode"] for row in rows], dtype=object, index=frame.index)
    return frame


def comparison_table(frame: pd.DataFrame, paper: pd.DataFrame | None, split: str, width: int) -> Table:
    """Return what ``summarise`` found for a terminal of ``width`` characters, under a line the paper's rows.

    ``split`` ("val" or "test") is where accuracies come from; ``paper`` is what ``paper_rows`` returned, its tasks
    known by name or else by order. Each of several tasks has a column or, where that is too wide, a row of its own.
    """
    header, rows = _headers(frame, split), _rows(frame, paper)
    cells = [_cells(frame, row) for row in rows]
    is_paper = [row["source"] != "measured" for row in rows]

    tasks = _task_names(frame)
    after = 2 + len(tasks)
    narrow: list[list[str]] = []
    of: list[int] = []  # the row that each of the narrow ones is of
    for number, row in enumerate(cells):
        narrow.append([*row[:2], *row[after:]])
        narrow += [
            [f"  {task}", cell, *[""] * len(row[after:])] for task, cell in zip(tasks, row[2:after], strict=True)
        ]
        of += [number] * (1 + len(tasks))

    def table(header: Sequence[str], cells: Sequence[Sequence[str]], of: Sequence[int], padding: int) -> Table:
        return terminal_table(
            header,
            cells,
            title=_title(frame),
            styles={i: "dim" for i, row in enumerate(of) if is_paper[row]},
            rules={next(i for i, row in enumerate(of) if is_paper[row])} if any(is_paper) else (),
            padding=padding,
        )

    short = [*header[:2], *header[after:]]
    tables = [table(header, cells, range(len(rows)), 1), table(short, narrow, of, 1), table(short, narrow, of, 0)]
    return next((each for each in tables if fits(each, width)), tables[-1])


def comparison_markdown(frame: pd.DataFrame, paper: pd.DataFrame | None, split: str) -> str:
    """Return the same cells as Markdown: a line that says what ± is, and the table."""
    rows = [_cells(frame, row) for row in _rows(frame, paper)]
    return f"{_title(frame)}\n\n{markdown_table(_headers(frame, split), rows)}"


def comparison_csv(frame: pd.DataFrame, paper: pd.DataFrame | None) -> str:
    """Return the columns of ``summarise`` as CSV in full precision; ``source`` tells measured rows from the paper's."""
    rows = pd.DataFrame(_rows(frame, paper), columns=[*frame.columns, "source"])
    return csv_text(rows.astype({"seeds": "Int64", "diverged": "Int64"}))


def paired_gaps(runs: Sequence[Run]) -> dict[tuple[str, str | None], Difference]:
    """Return by (method, encode) the accuracy of MixTraining less that of SSL+SL at its encoding, paired by seed.

    Both train and are judged on the same images of a seed. The error is the standard error of the mean difference over
    the seeds that neither diverged on, whose variance is pooled over the encodings; without two such seeds there is
    none.
    """
    accuracy = {(run.method, run.encode, run.seed): run.accuracy for run in runs if math.isfinite(run.accuracy)}
    found = {}
    for encode in dict.fromkeys(run.encode for run in runs):
        seeds = [seed for method, own, seed in accuracy if (method, own) == ("mixtraining", encode)]
        pairs = [(accuracy["mixtraining", encode, s], accuracy.get(("ssl_sl", encode, s))) for s in seeds]
        if gaps := [mixed - ssl_sl for mixed, ssl_sl in pairs if ssl_sl is not None]:
            found["mixtraining", encode] = np.array(gaps)
    variance, degrees = pooled_variance(list(found.values()))
    if not degrees:
        return {}
    return {
        key: Difference(float(gaps.mean()), math.sqrt(variance / len(gaps)), degrees) for key, gaps in found.items()
    }


def _describe_gap(what: str, gap: Difference) -> str:
    """Return a gap in words, called better or worse only where its 95 % interval does not hold 0."""
    low, high = (f"{100 * bound:+.1f}" for bound in gap.interval)
    verdict = f"{'better' if gap.mean > 0 else 'worse'}" if gap.is_shown else "which may be nothing"
    return f"{what}: {100 * gap.mean:+.1f} points of accuracy (95 % interval {low} to {high}), {verdict}"


def comparison_notes(
    frame: pd.DataFrame, paper: pd.DataFrame | None = None, split: str = "val", runs: Sequence[Run] = ()
) -> list[str]:
    """Return a line each: what is missing or diverged, gaps with intervals, speed-ups against FLOPs, the paper.

    And what each run's best epoch had, by the images that the accuracies are of. runs: what the frame is of.
    """
    rows = frame.to_dict("records")
    notes = _seed_notes(rows)
    predicted, gaps = [], paired_gaps(runs)
    for ssl_sl, mixed in _pairs(rows):
        if (gap := gaps.get((mixed["method"], mixed["encode"]))) is not None:
            notes.append(_describe_gap(f"{mixed['label']} over {ssl_sl['label']}", gap))
        measured, flops = mixed["speedup_same_encoding"], mixed["speedup_same_encoding_by_flops"]
        if not math.isnan(measured / flops):
            predicted.append(f"{mixed['label']} {measured / flops:.2f} ({measured:.2f}x / {flops:.2f}x)")
    for row in rows:
        for name in _SPEEDUPS[::2]:
            ratio, error = row[name], row[f"{name}_se"]
            may_be_nothing = ratio != 1.0 and Difference(ratio - 1.0, error).is_nothing
            if may_be_nothing and (rival := _rival(rows, row, name)) is not None:
                notes.append(
                    f"{row['label']} and {rival['label']} are not distinguishable in training time: the speed-up of "
                    f"{ratio:.2f} ± {error:.2f} may be nothing"
                )
    notes = list(dict.fromkeys(notes))  # the fastest may have the same encoding
    if predicted:
        notes.append(f"speed-up measured / predicted by FLOPs, at the same encoding: {', '.join(predicted)}")
    slower = [
        f"{row['label']} takes {1 / row[name]:.2f}x as long as {rival['label']}"
        for row in rows
        for name in _SPEEDUPS[::2]
        if row[name] < 1.0 and (rival := _rival(rows, row, name)) is not None
    ]
    if slower:
        notes.append(f"a speed-up below 1x is a slow-down: {', '.join(dict.fromkeys(slower))}")
    accuracy = find_metric("best_accuracy")
    best = [
        f"{row['label']} {accuracy.text(row['best_accuracy_mean'])}" for row in rows if row["best_accuracy_mean"] > 0
    ]
    if best:
        chosen = "the test images themselves" if split == "test" else "validation images"
        notes.append(f"accuracy of the best epoch in place of the last, chosen by {chosen}: {', '.join(best)}")
    if paper is not None:
        notes.append(
            f"paper ({_tables(paper['table'])}): {paper['setting'].iloc[0]}; test accuracy, seconds on its own "
            "hardware, encoding full"
        )
    return notes + disturbed_note(str(row["label"]) for row in rows if is_disturbed(row["disturbed"]))


def _summary(runs: Sequence[Run], tasks: Sequence[str]) -> Row:
    """Return the columns that the runs of one method and encoding give by themselves."""
    method, encode = (runs[0].method, runs[0].encode) if runs else ("sl", None)
    finished = [run for run in runs if math.isfinite(run.accuracy)]
    accuracies = [run.accuracy for run in runs]
    latencies = [run.latency_s for run in finished]
    by_task = {task: [run.task_accuracies.get(task, math.nan) for run in runs] for task in tasks}
    return {
        "label": f"{METHODS[method]} ({encode})" if encode else METHODS[method],
        "method": method,
        "encode": encode,
        "seeds": len(runs),
        "diverged": len(runs) - len(finished),
        "accuracy_mean": _mean(accuracies),
        "accuracy_std": _deviation(accuracies),
        **{f"accuracy_{task}_mean": _mean(values) for task, values in by_task.items()},
        "latency_mean_s": _mean(latencies),
        "latency_std_s": _deviation(latencies),
        "flops": _mean([run.flops for run in finished]),
        "disturbed": _mean([run.disturbed for run in finished]),
        "best_accuracy_mean": _mean([run.best_accuracy for run in runs]),
    }


def _add_speedups(rows: list[Row], groups: Mapping[tuple[str, str | None], Sequence[Run]]) -> None:
    for row in rows:
        rivals = [_rival(rows, row, name) for name in _SPEEDUPS[::2]]
        ratios = [_ratio(rival, row, cost) for rival in rivals for cost in ("latency_mean_s", "flops")]
        row.update(zip(_SPEEDUPS, ratios, strict=True))
        for name, rival, ratio in zip(_SPEEDUP_ERRORS, rivals, ratios[::2], strict=True):
            own, others = (groups[each["method"], each["encode"]] if each else () for each in (row, rival))
            row[name] = ratio * _ratio_error(others, own)


def _ratio_error(one: Sequence[Run], other: Sequence[Run]) -> float:
    """Return the standard error of a ratio of mean seconds, as a share of it; NaN where no step's error is known.

    A step time's error is in both where both take such steps: only what one spends a larger share of its seconds on
    counts. Seeds have step times of their own. Where the seeds' own ratios scatter more than that, they decide.
    """
    if one is other and one:
        return 0.0
    runs = [run for run in (*one, *other) if math.isfinite(run.accuracy)]
    of_steps = [run.latency_se_s / math.hypot(*run.parts.values()) for run in runs if run.parts]
    seeds = min(len([run for run in each if run in runs]) for each in (one, other))
    if not seeds or len(of_steps) < len(runs) or not all(map(math.isfinite, of_steps)):
        return math.nan
    shares = [_shares([run for run in each if run in runs]) for each in (one, other)]
    gaps = [shares[0].get(part, 0.0) - shares[1].get(part, 0.0) for part in {**shares[0], **shares[1]}]
    error = math.hypot(*gaps) * statistics.fmean(of_steps) / math.sqrt(seeds)
    seconds = [{run.seed: run.latency_s for run in each if run in runs} for each in (one, other)]
    logs = [math.log(seconds[0][seed] / seconds[1][seed]) for seed in seconds[0].keys() & seconds[1].keys()]
    return max(error, statistics.stdev(logs) / math.sqrt(len(logs))) if len(logs) > 1 else error


def _shares(runs: Sequence[Run]) -> dict[tuple[str, str | None], float]:
    """Return what share of the runs' seconds each part takes."""
    parts = Counter[tuple[str, str | None]]()
    for run in runs:
        parts.update(run.parts)
    return {part: seconds / sum(parts.values()) for part, seconds in parts.items()}


def _rival(rows: Sequence[Row], row: Row, speedup: str) -> Row | None:
    """Return the SSL+SL that a row's speed-up is against, None where it has none."""
    same = {each["encode"]: each for each in rows if each["method"] == "ssl_sl"}
    if speedup == "speedup_same_encoding":
        return same.get(row["encode"]) if row["method"] == "mixtraining" else None
    timed = [each for each in same.values() if each["latency_mean_s"] > 0]
    fastest = min(timed, key=lambda each: float(each["latency_mean_s"]), default=None)
    return fastest if row["method"] != "sl" else None


def _ratio(rival: Row | None, row: Row, cost: str) -> float:
    if rival is None or not (rival[cost] > 0 and row[cost] > 0):
        return math.nan
    return float(rival[cost] / row[cost])


def _pairs(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Return SSL+SL and MixTraining at each encoding that has both."""
    found = {(row["method"], row["encode"]): row for row in rows}
    encodings = dict.fromkeys(encode for _, encode in found)
    pairs = [(found.get(("ssl_sl", encode)), found.get(("mixtraining", encode))) for encode in encodings]
    return [(ssl_sl, mixed) for ssl_sl, mixed in pairs if ssl_sl is not None and mixed is not None]


def _seed_notes(rows: Sequence[Row]) -> list[str]:
    notes = []
    most = max((row["seeds"] for row in rows), default=0)
    if fewer := [f"{row['label']} {row['seeds']}" for row in rows if row["seeds"] < most]:
        notes.append(f"not every seed is in: {', '.join(fewer)} of {most}")
    if single := [str(row["label"]) for row in rows if row["seeds"] == 1]:
        notes.append(f"a standard deviation needs two seeds: {', '.join(single) if most > 1 else 'there is only one'}")
    for row in rows:
        if row["diverged"]:
            kept = row["seeds"] - row["diverged"]
            times = f"its time is from the other {kept}" if kept else "it has no time either"
            diverged = f"{row['diverged']} of {row['seeds']} seeds diverged"
            notes.append(f"{row['label']}: {diverged}, so it has no mean accuracy; {times}")
    return notes


def _rows(frame: pd.DataFrame, paper: pd.DataFrame | None) -> list[Row]:
    """Return the frame's rows and the paper's in the same columns, and a ``source`` for each."""
    rows: list[Row] = [{**row, "source": "measured"} for row in frame.to_dict("records")]
    if paper is None:
        return rows
    tasks = _paper_tasks(frame, paper)
    for row in paper.to_dict("records"):
        entry: Row = {
            "label": f"paper: {METHODS[row['method']]}",
            "method": row["method"],
            "encode": None if row["method"] == "sl" else "full",  # its Appendix A.2
            "accuracy_mean": row["accuracy"],
            "latency_mean_s": row["latency_s"],
            "speedup_same_encoding": row["speedup"],
            "source": f"paper, {_tables([row['table']])}",
        }
        rows.append(entry | {ours: row[theirs] for ours, theirs in tasks.items()})
    return rows


def _paper_tasks(frame: pd.DataFrame, paper: pd.DataFrame) -> dict[str, str]:
    """Return the paper's column for each task of the frame: by name or, where names differ, in the same order."""
    ours = dict(zip(map(dataset_key, _task_names(frame)), _task_columns(frame), strict=True))
    prefix = "accuracy_"
    theirs = {dataset_key(name.removeprefix(prefix)): name for name in paper.columns if name.startswith(prefix)}
    if len(ours) != len(theirs):
        return {}
    if ours.keys() == theirs.keys():
        return {ours[key]: theirs[key] for key in ours}
    return dict(zip(ours.values(), theirs.values(), strict=True))


def _title(frame: pd.DataFrame) -> str:
    seeds = sorted(set(frame["seeds"]))
    if not seeds:
        return "no training is complete yet"
    if seeds == [1]:
        return "one seed"
    return f"mean ± standard deviation over {' to '.join(map(str, dict.fromkeys([seeds[0], seeds[-1]])))} seeds"


def _headers(frame: pd.DataFrame, split: str) -> list[str]:
    title = find_metric(f"{split}_accuracy").title.replace(" ", "\n")
    return ["method", title, *_task_names(frame), "training\ntime", *_speedups(frame)]


def _cells(frame: pd.DataFrame, row: Row) -> list[str]:
    """Return the texts of a row, in the order of ``_headers``."""
    accuracy = find_metric("accuracy")
    return [
        str(row["label"]),
        accuracy.text(row["accuracy_mean"], row.get("accuracy_std")),
        *(accuracy.text(row.get(name)) for name in _task_columns(frame)),
        DISTURBED * is_disturbed(row.get("disturbed"))
        + _seconds(row["latency_mean_s"], row.get("latency_std_s", math.nan)),
        *(_speedup(row, name) for name in _speedups(frame).values()),
    ]


def _speedup(row: Row, name: str) -> str:
    """Return "1.25x", with its standard error "1.25 ± 0.04x"; 1 of a row against itself has none."""
    ratio, error = (float(row.get(each, math.nan)) for each in (name, f"{name}_se"))
    if not math.isfinite(ratio):
        return "-"
    return f"{ratio:.2f} ± {error:.2f}x" if error > 0 else f"{ratio:.2f}x"


def _speedups(frame: pd.DataFrame) -> dict[str, str]:
    """Return the speed-up columns by header; without a choice of encoding there is one SSL+SL to compare with."""
    if frame["encode"].isna().all():
        return {"speed-up": "speedup_same_encoding"}
    return {
        "speed-up,\nsame\nencoding": "speedup_same_encoding",
        "speed-up,\nfastest\nSSL+SL": "speedup_fastest",
    }


def _task_columns(frame: pd.DataFrame) -> list[str]:
    return [str(name) for name in frame.columns if _TASK.fullmatch(str(name))]


def _task_names(frame: pd.DataFrame) -> list[str]:
    return [_TASK.sub(r"\1", name) for name in _task_columns(frame)]


def _seconds(mean: float, deviation: float) -> str:
    """Return "12.3 ± 0.4 s", the standard deviation with as many decimals as the mean."""
    if not math.isfinite(mean):
        return "-"
    text = significant(mean)
    if math.isfinite(deviation):
        decimals = 0 if "e" in text else len(text.partition(".")[2])
        text += f" ± {deviation:.{decimals}f}"
    return f"{text} s"


def _tables(names: Sequence[str] | pd.Series[str]) -> str:
    """Return "Table 1", or "Tables 3, 16", for what ``paper_rows`` says of several rows."""
    numbers = sorted({int(number) for name in names for number in name.split(", ")})
    return f"Table{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values and all(map(math.isfinite, values)) else math.nan


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else math.nan
