"""The commands: each parses its words, calls one function and prints what comes back."""

from __future__ import annotations

import io
import json
import logging
import math
import re
import shlex
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from rich.console import Console
from typer.core import TyperGroup

from mixtune._version import __version__
from mixtune.errors import DataError, RequestError, TrainingError, printable
from mixtune.metrics import counted, disturbed_note, is_disturbed
from mixtune.run.directory import RunDirectory
from mixtune.signals import catch_signals, interrupt
from mixtune.streams import CurrentStderrHandler, Patient, open_standard_streams

if TYPE_CHECKING:
    from rich.table import Table

    from mixtune.run.result import Result
    from mixtune.space.recipe import Recipe

LOG_WIDTH = 100  # columns, where the output is not a terminal


class _Commands(TyperGroup):
    """The commands, each of which says so where it is interrupted; what then, many say themselves."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _fail("interrupted", 130)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Find the MixTraining recipe that buys the most accuracy for the least training time.",
)

SpaceFile = Annotated[Path, typer.Argument(metavar="SPACE.yaml", help="a file, or a ready space such as digits")]
RunFolder = Annotated[Path, typer.Argument(metavar="DIR", help="the run directory of a search")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="set a recipe field, such as epochs.sl=20; repeatable"),
]
SearchOverrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="fix a recipe field (epochs.sl=20), searched or not, or change the space "
        "(space.rho='{choice: [0, 0.5]}', or nothing to drop it; search.sampler=gp); repeatable",
    ),
]

Gpus = Annotated[int | None, typer.Option(min=0, help="GPUs of this machine to use (default: all)")]
GpuShare = Annotated[
    str | None, typer.Option(metavar="FRACTION", help="of a GPU for each trial, such as 0.25, or auto")
]
CpuShare = Annotated[float | None, typer.Option(help="CPU cores of each trial, and its threads in a new search")]
Address = Annotated[str | None, typer.Option(help="a Ray cluster's address, or auto")]
MostSlots = Annotated[int | None, typer.Option(min=1, help="trials at once on a cluster at most; it may grow for them")]
Wait = Annotated[
    str | None, typer.Option(metavar="TIME", help="how long to wait for a node before the search ends, such as 30m")
]
LogTo = Annotated[
    list[str] | None,
    typer.Option(metavar="LOGGER", help="log curves below DIR/logs, such as tensorboard; repeatable"),
]
Threads = Annotated[
    int | None, typer.Option(min=1, help="threads on a CPU (default: what is fastest, measured; those of a kept run)")
]
Trust = Annotated[bool, typer.Option("--trust", help="import what the folder names as package.module:name")]
ConfirmToo = Annotated[
    bool, typer.Option("--confirm", help="confirm when the search is done, as mixtune confirm --until 0.95 does")
]
TimeBudget = Annotated[
    str | None, typer.Option(metavar="TIME", help="begin no trial after this, such as 2h or 30m; resume continues")
]

Grace = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="from SIGTERM to the end, as 30s of Kubernetes or SLURM: running epochs are finished and stored, tables "
        "written (default: they are left)",
    ),
]


def _print_version(asked: bool) -> None:
    if asked:
        print(f"mixtune {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Take the options that stand before a command."""


@app.command(epilog="Example: `mixtune init path/to/images -o space.yaml`")
def init(
    data: Annotated[str, typer.Argument(metavar="DATA", help="a folder of images, or a dataset such as CIFAR10")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="SPACE.yaml", help="a new file")] = Path("space.yaml"),
    root: Annotated[str | None, typer.Option(metavar="DIR", help="where the files of a named dataset are")] = None,
    hours: Annotated[float, typer.Option(help="how long the search should take on this machine")] = 1.0,
) -> None:
    """Look at images and machine, and write a commented search space that fits both.

    DATA holds a folder for each class, or train/ and test/ with such folders.
    """
    from mixtune.files import refuse_existing
    from mixtune.proposal import propose_space, write_space

    refuse_existing(out)  # before anything is measured
    proposal = propose_space(data, root, hours)
    write_space(proposal, out)
    print("\n".join(proposal.summary()))
    print(f"written: {out}; next: mixtune search {shlex.quote(str(out))}")


@app.command(epilog="Example: `mixtune inspect path/to/images --sheet sheet.png`")
def inspect(
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="a folder or table of images, a dataset, or a space file")
    ],
    root: Annotated[str | None, typer.Option(metavar="DIR", help="where the files of a named dataset are")] = None,
    format_: Annotated[Literal["text", "json"], typer.Option("--format", help="what to print")] = "text",
    sheet: Annotated[
        Path | None,
        typer.Option(metavar="SHEET.png", help="draw a few images of each class: the file, as read, augmented"),
    ] = None,
) -> None:
    """Say how images are read: their parts, classes and files, what is left out, and what deserves a look."""
    from mixtune.inspection import draw_sheet, inspect_data
    from mixtune.pictures import refuse_other_picture

    if sheet is not None:
        refuse_other_picture(sheet)
    found = inspect_data(data, root)
    print(json.dumps(found.to_dict(), indent=2) if format_ == "json" else "\n".join(found.lines()))
    if sheet is not None:
        draw_sheet(found, sheet)
        print(f"drawn: {sheet}", file=sys.stderr)


@app.command(epilog="Example: `mixtune doctor --json`")
def doctor(
    json_: Annotated[
        bool, typer.Option("--json", help="for a bug report: versions and checks, no home folder")
    ] = False,
    no_ray: Annotated[bool, typer.Option("--no-ray", help="do not start Ray, which takes some seconds")] = False,
) -> None:
    """Look whether this machine has what a search needs, and say what to change.

    A line each: Python, packages, devices, CPUs, memory, limits, folders, locks, loopback, Ray (it is started, in a
    process of its own, and runs a task), clock. A warning costs time or figures; a fault would end a search, and the
    exit status is 1.
    """
    from mixtune.doctor import examine, to_json

    checks = []
    for check in examine(start_ray=not no_ray):
        checks.append(check)
        if not json_:
            print(check.line(), flush=True)
    if json_:
        print(to_json(checks))
    if any(check.state == "fault" for check in checks):
        raise typer.Exit(1)


@app.command(epilog="Example: `mixtune search digits --gpus 1 --gpus-per-trial 0.25`")
def search(
    space: SpaceFile,
    gpus: Gpus = None,
    gpus_per_trial: GpuShare = None,
    cpus_per_trial: CpuShare = None,
    trials: Annotated[int | None, typer.Option(min=1, help="how many trials to run, failed ones included")] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="DIR", help="run directory (default: below runs/)")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="seed of the suggestions")] = None,
    set_: SearchOverrides = None,
    quick: Annotated[bool, typer.Option("--quick", help="a smoke run: 4 trials of a few epochs")] = False,
    address: Address = None,
    slots: MostSlots = None,
    wait: Wait = None,
    time_budget: TimeBudget = None,
    grace: Grace = None,
    log_to: LogTo = None,
    confirm: ConfirmToo = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check everything, print space and cost")] = False,
) -> None:
    """Search a space: baselines, trials, front, report.

    What ends it (Ctrl-C, a crash, a spent time budget), `mixtune resume` continues.
    """
    from mixtune.run.directory import free_directory
    from mixtune.space.quick import quick_space
    from mixtune.space.space import load_space

    wanted, name = load_space(space, _overrides(set_)), space.stem
    if quick:
        wanted, line = quick_space(wanted)
        name = f"{name}-quick"
        print(line, file=sys.stderr)
    print("starting: PyTorch and Ray are being loaded", file=sys.stderr, flush=True)
    from mixtune.tuning import learning, prepare, run
    from mixtune.tuning.forecast import forecast_search

    options: dict[str, Any] = {
        "gpus": gpus,
        "gpus_per_trial": _gpu_fraction(gpus_per_trial),
        "cpus_per_trial": cpus_per_trial,
        "trials": trials,
        "seed": seed,
        "address": address,
    }
    console = _console()
    if dry_run:
        prepared = prepare.prepare(wanted, **options)
        learning.read_sources(prepared.space)
        print(f"{prepared.to_yaml()}\n{prepared.describe()}")
        print(f"{forecast_search(prepared)}\nnothing was trained, no run directory written")
        return
    options |= {"slots": slots, "wait": wait, "time_budget": time_budget, "grace": grace, "log_to": log_to or ()}
    _print_search(
        console, lambda: run.search(wanted, out=out or free_directory(name), console=console, **options), confirm
    )


@app.command(epilog="Example: `mixtune resume runs/digits --trials 40`")
def resume(
    directory: RunFolder,
    trials: Annotated[int | None, typer.Option(min=1, help="how many trials in all; more extend the search")] = None,
    try_: Annotated[
        list[str] | None,
        typer.Option("--try", metavar="PATH=VALUE,...", help="try a recipe next (alpha=0.3,epochs.sl=20); repeatable"),
    ] = None,
    space: Annotated[
        Path | None,
        typer.Option(metavar="SPACE.yaml", help="edit the run's space, constraints, search or resources"),
    ] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="train failed trials once more")] = False,
    gpus: Gpus = None,
    gpus_per_trial: GpuShare = None,
    cpus_per_trial: CpuShare = None,
    address: Address = None,
    slots: MostSlots = None,
    wait: Wait = None,
    time_budget: TimeBudget = None,
    grace: Grace = None,
    log_to: LogTo = None,
    confirm: ConfirmToo = False,
    trust: Trust = False,
) -> None:
    """Continue a search: after a crash, Ctrl-C or a spent time budget, or with more trials.

    Trials that had begun continue from their last checkpoint.
    """
    from mixtune.space.space import parse_recipe_to_try

    first = [parse_recipe_to_try(text) for text in try_ or []]
    from mixtune.tuning import run

    console = _console()
    _print_search(
        console,
        lambda: run.resume(
            directory,
            trials=trials,
            first=first,
            space=space,
            retry_failed=retry_failed,
            gpus=gpus,
            gpus_per_trial=_gpu_fraction(gpus_per_trial),
            cpus_per_trial=cpus_per_trial,
            address=address,
            slots=slots,
            wait=wait,
            time_budget=time_budget,
            grace=grace,
            log_to=log_to or (),
            trust=trust,
            console=console,
        ),
        confirm,
    )


@app.command(epilog="Example: `mixtune status runs/digits`")
def status(directory: RunFolder) -> None:
    """Say where a run stands, and how to continue."""
    from mixtune.run.lock import holder
    from mixtune.run.result import load
    from mixtune.run.status import run_status

    print("\n".join(run_status(load(directory), holder(directory)).lines()))


@app.command(epilog="Example: `mixtune clean runs/digits --max-gb 5`")
def clean(
    directory: Annotated[Path | None, typer.Argument(metavar="DIR", help="the run directory of a search")] = None,
    max_gb: Annotated[float | None, typer.Option(min=0, help="keep up to so many gigabytes, the latest used")] = None,
    cache: Annotated[bool, typer.Option("--cache", help="remove decoded images, of all datasets")] = False,
) -> None:
    """Remove stored training states that no unfinished trial needs, or decoded images; both are made again."""
    if (directory is None) == (not cache):
        raise RequestError("name either a run directory, or --cache for the decoded images of all datasets")
    most = None if max_gb is None else int(max_gb * 1e9)
    if directory is None:
        from mixtune.datasets import cache_folder, clean_cache

        removed, freed = clean_cache(most or 0)
        print(f"{counted(removed, 'dataset')} removed from {cache_folder()}, {freed / 1e9:.3g} GB freed")
        return
    from mixtune.stages.clean import clean_run

    removed, freed = clean_run(directory, most)
    print(f"{counted(removed, 'file')} removed, {freed / 1e9:.3g} GB freed")


@app.command(epilog="Example: `mixtune confirm runs/digits --until 0.95`")
def confirm(
    directory: RunFolder,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="fresh seeds of each recipe at most (default 4, with --until 10)")
    ] = None,
    until: Annotated[
        float | None,
        typer.Option(metavar="PROBABILITY", help="stop when the answer is this certain, and train only what may be it"),
    ] = None,
    fresh_images: Annotated[
        bool, typer.Option("--fresh-images", help="draw labelled and validation images again with each seed")
    ] = False,
    trust: Trust = False,
) -> None:
    """Train the front and the baselines again on fresh seeds, which decide from then on; test accuracies are reported.

    What was confirmed is kept, so the same command continues after an interruption, and more seeds add to it.
    """
    options = {"seeds": seeds, "until": until, "fresh_images": fresh_images, "trust": trust}
    _confirm(_console(), directory, options)


@app.command(epilog="Example: `mixtune train digits --set alpha=0.3 --out runs/one`")
def train(
    space: SpaceFile,
    set_: Overrides = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="DIR", help="keep recipe, weights and metrics there")
    ] = None,
    threads: Threads = None,
) -> None:
    """Train one recipe, the base recipe of a space, without Ray."""
    recipe, overrides = _read_recipe(space, set_)
    from mixtune.single import epoch_line, final_line, train_recipe
    from mixtune.training.plan import cut_warmups

    for line in cut_warmups(recipe):
        print(line)
    with _interruptible("nothing is kept"):
        trained = train_recipe(
            recipe,
            overrides,
            on_epoch=lambda metrics: print(epoch_line(metrics), flush=True),
            out=out,
            threads=threads,
        )
    print(final_line(trained.metrics))
    for note in disturbed_note(["training time"] if is_disturbed(trained.metrics.disturbed) else []):
        print(note)
    if out is not None:
        print(f"saved to {out}")


@app.command(epilog="Example: `mixtune compare digits --seeds 4`")
def compare(
    space: SpaceFile,
    seeds: Annotated[int, typer.Option(min=1, help="training runs of each method")] = 4,
    paper: Annotated[bool, typer.Option("--paper", help="follow the paper's protocol, and show its figures")] = False,
    set_: Overrides = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", metavar="DIR", help="default: runs/compare-SPACE")] = None,
    format_: Annotated[str, typer.Option("--format", metavar="FORMAT", help="table, markdown or csv")] = "table",
    threads: Threads = None,
) -> None:
    """Train SL, and SSL+SL and MixTraining with each encoding: accuracies and speed-ups side by side.

    What DIR holds already is not trained again, so an interrupted comparison continues.
    """
    if format_ not in ("table", "markdown", "csv"):
        raise RequestError(f"--format {format_}: should be table, markdown or csv")
    recipe, overrides = _read_recipe(space, set_)
    from mixtune.comparison import compare as run

    out = out or Path("runs") / f"compare-{space.stem}"
    lines = sys.stdout if format_ == "table" else sys.stderr
    with _interruptible("the same command continues"):
        compared = run(
            recipe,
            seeds=seeds,
            paper=paper,
            overrides=overrides,
            out=out,
            on_line=lambda line: print(line, file=lines, flush=True),
            threads=threads,
        )
    if format_ == "markdown":
        print(compared.to_markdown(), end="")
    elif format_ == "csv":
        print(compared.to_csv(), end="")
    else:
        console = _console()
        _print_table(console, compared.table(console.width))
        for note in compared.notes():
            _say(console, note)
        print(f"tables and trained recipes: {out}")


@app.command(epilog="Example: `mixtune gradient-error accelerated`")
def gradient_error(
    space: SpaceFile,
    points: Annotated[int, typer.Option(min=2, help="points of the SSL budget at which gradients are compared")] = 5,
    batches: Annotated[int, typer.Option(min=4, help="batches compared at each point, for each strategy")] = 16,
    strategy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD=VALUE,...", help="compare this one, such as token_dropout=0.5,patch_size=4; repeatable"
        ),
    ] = None,
    set_: Overrides = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="DIR", help="default: runs/gradient-error-SPACE")
    ] = None,
) -> None:
    """Measure what shortened sequences do to the SSL gradient, and find a schedule for `ssl.compression`.

    Prints the stages that `schedule: auto` takes, ready for a space.
    """
    recipe, overrides = _read_recipe(space, set_)
    from mixtune.gradient_error import measure_gradient_errors

    out = out or Path("runs") / f"gradient-error-{space.stem}"
    with _interruptible("nothing is kept"):
        measured = measure_gradient_errors(
            recipe,
            points=points,
            batches=batches,
            strategies=None if strategy is None else list(map(_strategy, strategy)),
            overrides=overrides,
            out=out,
            on_line=lambda line: print(line, flush=True),
        )
    _print_table(_console(), measured.table())
    print(measured.about)
    if measured.undecided is not None:
        print(f"profile.csv and profile.html: {out}")
        _fail(measured.undecided, 1)
    print(f"the schedule of the least CA-MSE, for a recipe:\n{measured.to_yaml()}")
    print(f"epochs.ssl {measured.epochs} spends with it what {recipe.epochs.ssl} uncompressed epochs do")
    print(f"profile.csv, profile.html and stages.yaml: {out}")


@app.command(epilog="Example: `mixtune export runs/digits`")
def export(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="the run directory of a search, or a folder of mixtune train --out")
    ],
    trial: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="what to export: recommended (default), t0007, sl, knee, best:val_accuracy"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="FOLDER", help="default: DIR/models/NAME; DIR/export for one recipe"),
    ] = None,
    trust: Trust = False,
) -> None:
    """Write a trained recipe as a folder: weights and config for timm, a script that classifies, a model card."""
    from mixtune.exporting import export as run

    with _interruptible("the same command continues"):
        folder = run(directory, trial, out, on_line=lambda line: print(line, flush=True), trust=trust)
    folder = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    script = min(folder.rglob("classify.py"))  # of several tasks the first one's
    print(f"exported to {folder}\nnext: python {shlex.quote(str(script))} IMAGE")


@app.command(epilog="Example: `mixtune reconstruct runs/compare-digits/mixtraining-full-seed0`")
def reconstruct(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR...", help="folders of mixtune train --out")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="PNG", help="where to draw")] = Path(
        "reconstructions.png"
    ),
    images: Annotated[int, typer.Option(min=1, max=32, help="how many images to draw")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="seed of the choice of images and masks")] = 0,
    trust: Trust = False,
) -> None:
    """Draw held-out images, masked, and what trained runs make of them (the paper's Fig. 4)."""
    from mixtune.pictures import refuse_other_picture
    from mixtune.reconstruction import draw_reconstructions, reconstruct_images
    from mixtune.training.saved import load_trained

    if not out.name or out.is_dir():
        raise RequestError(f"--out {out} is a folder: give the name of a PNG file")
    refuse_other_picture(out)
    made = [(path.name, reconstruct_images(load_trained(path, trust=trust), images, seed)) for path in directories]
    draw_reconstructions(made, out)
    for name, reconstruction in made:
        print(f"{name}: mean squared error {reconstruction.error:.3f} on the masked patches")
    print(f"picture: {out}")


@app.command(epilog="Example: `mixtune pareto runs/digits --format json`")
def pareto(
    directory: RunFolder,
    format_: Annotated[str, typer.Option("--format", metavar="FORMAT", help="table, json or csv")] = "table",
    objectives: Annotated[
        list[str] | None, typer.Option(help="other objectives, such as val_accuracy:max,train_flops:min")
    ] = None,
    reference: Annotated[
        list[str] | None,
        typer.Option(help="another reference point of the hypervolume: val_accuracy=0.1,train_latency_s=60"),
    ] = None,
    no_baselines: Annotated[bool, typer.Option("--no-baselines", help="leave the baselines out")] = False,
) -> None:
    """Print the front of a run, the recipes that no other beats in every objective, and the recommended one."""
    from mixtune.report.tables import front_csv
    from mixtune.run.result import load

    if format_ not in ("table", "json", "csv"):
        raise RequestError(f"--format {format_}: should be table, json or csv")
    result = load(directory)
    if objectives:
        result = result.with_objectives(_objectives(",".join(objectives)))
    if reference:
        result = result.with_reference(_reference(",".join(reference)))
    if format_ == "json":
        print(json.dumps(result.to_json_dict(baselines=not no_baselines), indent=2))
    elif format_ == "csv":
        print(front_csv(result, baselines=not no_baselines), end="")
    else:
        console = _console()
        _print_front(result, console, baselines=not no_baselines)
        _print_recommendation(result, console)


@app.command(epilog="Example: `mixtune report runs/digits`")
def report(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR...", help="run directories of searches")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE.html", help="default: DIR/report.html of one run")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="keep the page current until the search ends")] = False,
) -> None:
    """Write DIR/report.html: answer, front, all trials and every figure in one file that needs no network.

    Of several runs it compares them: fronts, hypervolumes, settings that differ.
    """
    from mixtune.report.page import follow_search, write_comparison, write_report
    from mixtune.run.lock import holder
    from mixtune.run.result import load

    if out is not None and out.is_dir():
        raise RequestError(f"--out {out} is a folder: give the name of an HTML file")
    if len(directories) > 1:
        if out is None or watch:
            raise RequestError("several runs are compared in a file of its own: give --out FILE.html, without --watch")
        print(f"report: {write_comparison([load(directory) for directory in directories], out)}")
        return
    (directory,) = directories
    if watch:
        with _interruptible("the page stays as it is"):
            follow_search(directory, out, lambda path: print(f"report: {path}", flush=True))
    else:
        print(f"report: {write_report(load(directory), holder(directory), out)}")


@app.command(epilog="Example: `mixtune fields optim.ssl`")
def fields(
    path: Annotated[
        str | None, typer.Argument(metavar="PATH", help="a field or a section, such as ssl.mask_ratio (default: all)")
    ] = None,
) -> None:
    """Say what a recipe's field means, or each of a section or of all: meaning, values, default, source."""
    from mixtune.render import terminal_table
    from mixtune.space.fields import find_fields

    found, console = find_fields(path), _console()
    if path is not None and {field.path for field in found} == {path}:
        for field in found:
            _say(console, f"{field.path}: {field.meaning}\n  values   {field.values}\n  default  {field.default}")
            for source in field.sources:
                _say(console, f"  source   {source}")
        return
    rows = [(field.path, field.default, field.meaning) for field in found]
    console.print(terminal_table(("field", "default", "meaning"), rows, wrapped={1, 2}))


@app.command("list", epilog="Example: `mixtune list samplers`")
def list_(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND", help="datasets, samplers, schedulers, objectives, loggers, metrics or spaces (ready ones)"
        ),
    ],
) -> None:
    """List what there is to choose from, and what each is."""
    from mixtune.catalog import list_kind
    from mixtune.render import terminal_table

    _console().print(terminal_table((kind, "what it is"), list_kind(kind), wrapped={1}))


spaces = typer.Typer(no_args_is_help=True, help="Copy a ready search space, to be changed.")
app.add_typer(spaces, name="spaces")


@spaces.callback()
def _spaces() -> None:
    """Copy a ready search space, to be changed."""


@spaces.command("copy", epilog="Example: `mixtune spaces copy digits`")
def copy_space(
    name: Annotated[str, typer.Argument(metavar="NAME", help="a ready space, as mixtune list spaces names it")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="SPACE.yaml", help="a new file (default: NAME.yaml)")
    ] = None,
) -> None:
    """Copy a ready space into a file of your own."""
    from mixtune.files import refuse_existing, write_whole
    from mixtune.space.document import ready_space

    source, file = ready_space(name), out or Path(f"{name}.yaml")
    refuse_existing(file)
    write_whole(file, source.read_bytes())
    print(f"written: {file}; next: mixtune search {shlex.quote(str(file))}")


def main() -> None:
    """Run a command; exit with 0 done, 1 failed, 2 the request was wrong, 130 interrupted.

    Output may fail, and the command is done all the same; what a full disk did not take makes the status 1.
    """
    open_standard_streams()
    catch_signals(interrupt)
    handler = CurrentStderrHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(handlers=[handler])
    logging.getLogger("mixtune").setLevel(logging.INFO)
    output = Patient(sys.stdout or io.StringIO())  # None where it was closed
    with redirect_stdout(output), redirect_stderr(Patient(sys.stderr or io.StringIO())):
        try:
            app()
        except RequestError as error:
            _fail(str(error), 2)
        except (DataError, TrainingError) as error:
            _fail(str(error), 1)
        except SystemExit as ended:
            output.flush()
            if not ended.code and output.problem is not None:
                _fail(f"done, but what was printed could not be written: {output.problem}", 1)
            raise


def _fail(message: str, status: int) -> NoReturn:
    print(f"mixtune: {printable(message)}", file=sys.stderr)
    sys.exit(status)


@contextmanager
def _interruptible(what_then: str) -> Iterator[None]:
    """Let Ctrl-C end a command with a line that says what then."""
    try:
        yield
    except KeyboardInterrupt:
        _fail(f"interrupted; {what_then}", 130)


def _say(console: Console, line: str) -> None:
    console.print("\n".join(map(printable, line.split("\n"))), highlight=False, markup=False, soft_wrap=True)


def _console() -> Console:
    console = Console()
    return console if console.is_terminal and console.file.isatty() else Console(width=LOG_WIDTH)


def _print_search(console: Console, run: Callable[[], Result], confirm: bool) -> None:
    """Run a search and print its front, or confirm it and print that; an interrupted one says how to continue."""
    try:
        result = run()
    except KeyboardInterrupt as error:
        _fail(str(error) or "interrupted", 130)
    _print_front(result, console)
    if confirm:
        from mixtune.run.confirmed import CERTAIN
        from mixtune.run.status import run_status

        if run_status(result, None).state == "finished" and not result.searched_front.empty:
            _confirm(console, result.directory, {"until": CERTAIN, "trust": True})
            return
        _say(console, "not confirmed: the search is not finished, or nothing is complete")
    _say(console, f"report: {RunDirectory(result.directory).report_file}")
    _print_recommendation(result, console)


def _confirm(console: Console, directory: Path, options: Mapping[str, Any]) -> None:
    """Confirm a run, write its report again and print what is known then."""
    from mixtune.confirmation import confirm
    from mixtune.report.page import write_report
    from mixtune.run.result import load

    trust = " --trust" if options.get("trust") else ""
    with _interruptible(f"mixtune confirm {shlex.quote(str(directory))}{trust} continues"):
        found = confirm(directory, **options, on_line=lambda line: print(line, flush=True))
    _print_table(console, found.table(console.width))
    for note in found.notes:
        _say(console, note)
    result = load(directory)
    _say(console, f"report: {write_report(result, driver=None)}")
    _print_recommendation(result, console)


def _print_front(result: Result, console: Console, baselines: bool = True) -> None:
    from mixtune.report.tables import front_notes, front_table

    _print_table(console, front_table(result, console.width, baselines))
    for note in front_notes(result):
        _say(console, note)


def _print_recommendation(result: Result, console: Console) -> None:
    console.print()
    for line in result.recommendation().lines():
        whole = re.sub(r"(?<=[\d±]) (?=[\d%±]|s\b|ms\b|FLOP|MB)", "\u00a0", line)  # no line ends within a figure
        lines = textwrap.wrap(whole, console.width, break_long_words=False, break_on_hyphens=False)
        print("\n".join(lines).replace("\u00a0", " "))


def _print_table(console: Console, table: Table) -> None:
    """Print a table without the blanks that fill its lines."""
    with console.capture() as capture:
        console.print(table)
    print("\n".join(line.rstrip() for line in capture.get().splitlines()))


def _overrides(given: list[str] | None) -> dict[str, Any]:
    from mixtune.space.space import parse_override

    return dict(parse_override(text) for text in given or [])


def _read_recipe(space: Path, set_: list[str] | None) -> tuple[Recipe, dict[str, Any]]:
    """Return a space's base recipe with dotted values, and these: mistakes come before PyTorch's slow import."""
    from mixtune.space.space import load_recipe

    overrides = _overrides(set_)
    return load_recipe(space, overrides), overrides


def _strategy(text: str) -> dict[str, Any]:
    from mixtune.space.space import parse_override

    try:
        return dict(map(parse_override, text.split(",")))
    except RequestError as error:
        raise RequestError(
            f"--strategy {text}: should be field=value, or several with commas between, such as "
            "--strategy token_dropout=0.5,patch_size=4"
        ) from error


def _gpu_fraction(given: str | None) -> float | Literal["auto"] | None:
    if given is None:
        return None
    if given == "auto":
        return "auto"
    try:
        return float(given)
    except ValueError:
        raise RequestError(f"--gpus-per-trial {given}: should be a number, such as 0.25, or auto") from None


def _reference(given: str) -> dict[str, float]:
    try:
        point = {name.strip(): float(bound) for name, _, bound in (part.partition("=") for part in given.split(","))}
    except ValueError:
        point = {}
    if not point or not all(map(math.isfinite, point.values())):
        form = "metric=number, such as val_accuracy=0.1,train_latency_s=60"
        raise RequestError(f"--reference {given}: should be {form}")
    return point


def _objectives(given: str) -> dict[str, str]:
    pairs = (part.partition(":") for part in given.split(","))
    return {name.strip(): direction.strip() for name, _, direction in pairs}
