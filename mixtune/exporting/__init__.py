"""`mixtune export`: a trained recipe as a folder that timm, or nothing but a short script, classifies with."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import yaml
from torch import nn

from mixtune._version import __version__
from mixtune.backbone import Backbone
from mixtune.cost.machine import as_in_search
from mixtune.datasets import hold_dataset
from mixtune.errors import RequestError, suggest
from mixtune.exporting import classify
from mixtune.exporting.card import ModelFacts, TaskFacts, model_card
from mixtune.exporting.timm_model import check_logits, timm_config, timm_weights
from mixtune.files import make_folder, refuse_link, remove_temporary, write_whole
from mixtune.run.directory import RunDirectory
from mixtune.run.frames import plain
from mixtune.run.ledger import TrialRecord, finite_or_none
from mixtune.run.lock import hold_folder, hold_run, refuse_foreign
from mixtune.run.result import Result, load_to_train
from mixtune.space.foreign import foreign_in_recipe, refuse_foreign_code
from mixtune.space.recipe import Recipe, flatten, with_absolute_paths, with_portable_paths
from mixtune.stages.checkpoint import CHECKPOINT, read_checkpoint, recipe_of, restore
from mixtune.stages.opened import refuse_other_data
from mixtune.stages.resume import train_shared
from mixtune.stages.store import StateStore
from mixtune.training.data import TrainingData, load_training_data
from mixtune.training.device import choose_device
from mixtune.training.evaluation import tally_predictions
from mixtune.training.measure import measure, score_metrics
from mixtune.training.plan import PHASES, make_plan
from mixtune.training.saved import load_trained
from mixtune.training.sources import reading_of
from mixtune.training.state import start_state

OWN = ("config.json", "model.safetensors", "classify.py", "recipe.yaml", "metrics.json", "README.md")
FIRST_READ = "config.json"  # without which nothing reads a folder, so it is written last
RECOMMENDED, KNEE, BEST = "recommended", "knee", "best:"
_NAMED = 12  # trials, in a mistake's message
_SAME = 1e-9  # of an accuracy


@dataclass(frozen=True)
class _Trained:
    """A trained recipe and what is known of it; metrics: by the names of trials.csv; see ModelFacts."""

    name: str
    recipe: Recipe
    data: TrainingData
    backbone: Backbone
    classifiers: nn.ModuleList
    metrics: Mapping[str, Any]
    choice: str | None = None
    confirmed: Mapping[str, Any] | None = None


def export(
    source: str | Path | Any,
    trial: str | None = None,
    out: str | os.PathLike[str] | None = None,
    on_line: Callable[[str], None] = lambda _: None,
    data: Any = None,
    trust: bool = False,
) -> Path:
    """Write a trained recipe as a folder with weights, config, script and model card; return the folder.

    source: a run of a search, a folder of ``mixtune train --out``, or of a Tuner of your own a ``ray.tune.Result``, a
    ``ray.tune.Checkpoint`` of MixTrainable or its folder. trial: of a search, its id, a baseline's name,
    ``recommended`` (the default), ``knee`` or ``best:<objective>``. out: by default ``models/<trial>`` in the run, else
    ``export`` in the folder; in one that an earlier export made, its files are replaced and others stay. data: what
    MixTrainable was given in place of a dataset. trust: import what the source names of other code. timm reads the
    folder as ``timm.create_model("local-dir:FOLDER", pretrained=True)``; of several tasks each has a folder of its own
    in it.

    A trial's weights are what its search has stored; what is not there any more is trained again, on the same kind of
    machine to the same bits. Figures are measured now, on the validation images or under ``protocol: paper`` on the
    test images. on_line: receives where the weights come from and what differs. Needs neither Ray nor Optuna. Raises
    RequestError, DataError or TrainingError.
    """
    is_rays = hasattr(source, "as_directory") or hasattr(source, "checkpoint")
    if is_rays or not isinstance(source, str | os.PathLike):
        checkpoint = _checkpoint_of(source)
        if trial is not None:
            raise RequestError(f"{checkpoint.path} holds one recipe, so there is no trial {trial!r} to choose")
        with checkpoint.as_directory() as folder:
            if out is None and str(folder) != str(checkpoint.path):
                raise RequestError(f"{checkpoint.path} is not on this machine's disk: say where to write with out=")
            return _export_checkpoint(Path(folder), out, on_line, data, trust)
    directory = Path(source)
    if RunDirectory(directory).holds_run:
        return _export_trial(directory, trial or RECOMMENDED, out, on_line, trust)
    if trial is not None:
        raise RequestError(f"{directory} holds no search, so there is no trial {trial!r} to choose: drop --trial")
    if (directory / CHECKPOINT).is_file():
        return _export_checkpoint(directory, out, on_line, data, trust)
    folder = _folder_of(directory / "export", out)
    return _write(_read_saved(directory, trust), folder, on_line)


def _folder_of(default: Path, out: str | os.PathLike[str] | None) -> Path:
    """Return the folder of an export. Raises RequestError where it is someone else's, or the default one a link."""
    if out is None:
        refuse_link(default)
    folder = Path(os.path.abspath(default if out is None else out))
    refuse_foreign(folder, "export")
    return folder


def _checkpoint_of(source: Any) -> Any:
    """Return the ray.tune.Checkpoint that a source is or has."""
    found = getattr(source, "checkpoint", source)
    if found is None:
        needed = "RunConfig(checkpoint_config=CheckpointConfig(checkpoint_at_end=True))"
        raise RequestError(f"the result has no checkpoint: a Tuner keeps one with {needed}")
    if not hasattr(found, "as_directory"):
        raise RequestError(f"a folder, a ray.tune.Result or a ray.tune.Checkpoint can be exported, not {source!r}")
    return found


def _export_checkpoint(
    directory: Path, out: str | os.PathLike[str] | None, on_line: Callable[[str], None], given: Any, trust: bool
) -> Path:
    folder = _folder_of(directory / "export", out)
    saved, device = read_checkpoint(directory), choose_device()
    refuse_foreign_code(directory, foreign_in_recipe(saved.get("recipe", {})), trust)
    recipe = recipe_of(saved, directory)
    dataset = None if given is None else hold_dataset(given, recipe.data.image_size, reading_of(recipe))
    data = load_training_data(recipe, device, dataset)
    state = start_state(recipe, data, device)
    restore(state, saved)
    name, done = directory.resolve().parent.name, len(state.history)
    if done < len(state.plan):
        on_line(f"{name}: {done} of its {len(state.plan)} epochs are trained")
    return _write(_Trained(name, recipe, data, state.backbone, state.classifiers, measure(state)), folder, on_line)


def _export_trial(
    directory: Path, trial: str, out: str | os.PathLike[str] | None, on_line: Callable[[str], None], trust: bool
) -> Path:
    known = load_to_train(directory, trust)
    record, choice = _choose(known, trial)
    if record.trial in known.fallen:
        on_line(f"{record.trial} fell off the front on fresh seeds: {known.recommendation().trial} is recommended")
    models = RunDirectory(directory).models
    if out is None:
        refuse_link(models)
    folder = _folder_of(models / record.trial, out)
    is_only_read = out is not None and not os.access(directory, os.W_OK)  # so nobody else changes it either
    with nullcontext() if is_only_read else hold_run(directory, "export", on_wait=on_line):
        result = load_to_train(directory, trust)
        for line in refuse_other_data(result.state, result.space.recipe):
            on_line(line)
        with as_in_search(result.space.recipe, result.facts.machine) as (base, device):
            recipe = result.space.with_recipe(base).recipe_at(result.params_to_train(record.trial))
            trained = _restore(result, record, choice, recipe, device, on_line)
            return _write(trained, folder, on_line)


def _choose(result: Result, trial: str) -> tuple[TrialRecord, str]:
    """Return the trial or baseline that a name means, and what it is among the others."""
    complete = f"{len(result.complete())} complete trials"
    chosen, choice = trial, f"one of {complete} of a search"
    if trial == RECOMMENDED:
        found = result.recommendation()
        if found.trial is None:
            raise RequestError(f"{result.directory}: {found.sentence}")
        chosen, choice = found.trial, f"what a search recommends of {complete}: {found.why}"
    elif trial == KNEE:
        knee = result.knee()
        if knee is None:
            keeps = " and keeps the constraints" if result.constraints else ""
            raise RequestError(f"{result.directory} has no front, so no knee: no trial is complete{keeps}")
        chosen, choice = knee, f"the knee of the front that a search found among {complete}"
    elif trial.startswith(BEST):
        metric = trial.removeprefix(BEST)
        chosen, choice = str(result.best(metric)["trial"]), f"the best in {metric} among {complete} of a search"
    record = result.records.get(chosen)
    if record is None:
        ended = [name for name, known in result.records.items() if known.state == "complete"]
        names = [RECOMMENDED, KNEE, *(f"{BEST}{name}" for name in result.objectives), *ended]
        shown = ", ".join(names[:_NAMED]) + (f", ... ({len(ended)} in all)" if len(names) > _NAMED else "")
        raise RequestError(f"{result.directory} has no trial {trial!r}: known are {shown}{suggest(trial, names)}")
    if record.state != "complete":
        because = f" ({record.reason})" if record.reason else ""
        raise RequestError(f"{trial} is {record.state}{because}: only complete trials and baselines can be exported")
    return record, f"the baseline {record.baseline} of a search" if record.baseline else choice


def _restore(
    result: Result,
    record: TrialRecord,
    choice: str,
    recipe: Recipe,
    device: torch.device,
    on_line: Callable[[str], None],
) -> _Trained:
    """Return a trial as its search trained it: by its checkpoint, whatever the code is now, else trained again."""
    data = load_training_data(recipe, device)
    state, stages = start_state(recipe, data, device), RunDirectory(result.directory).stages
    saved = None if record.stage is None else StateStore(stages).load(record.stage)
    if saved is not None:
        state.load_state_dict(saved)
    else:
        reported = False
        for _ in train_shared(state, stages, result.state.step_times):
            if not reported:
                on_line(
                    f"{record.trial}: {len(state.plan) - state.epochs_reused} of its {len(state.plan)} epochs are not "
                    "stored any more and are trained again: its weights are new, its figures measured again"
                )
                reported = True
    if saved is not None or not reported:
        on_line(f"{record.trial}: its weights are those that the search has stored")
    found = result.confirmation
    rows = [] if found is None else found.frame[found.frame["trial"] == record.trial].to_dict("records")
    return _Trained(
        name=record.trial,
        recipe=recipe,
        data=data,
        backbone=state.backbone,
        classifiers=state.classifiers,
        metrics=record.metrics,
        choice=choice,
        confirmed={str(name): plain(value) for name, value in rows[0].items()} if rows else None,
    )


def _read_saved(directory: Path, trust: bool) -> _Trained:
    """Return what `mixtune train --out` has left in a folder, with the images that it was trained on."""
    saved = load_trained(directory, choose_device(), trust)
    data = saved.load_data()
    name = directory.resolve().name
    return _Trained(name, saved.recipe, data, saved.backbone, saved.classifiers, saved.metrics)


def _write(trained: _Trained, folder: Path, on_line: Callable[[str], None]) -> Path:
    """Measure a trained recipe and write its folder."""
    facts, files = _measure(trained)
    for remark in facts.remarks:
        on_line(remark)
    figures = {name: getattr(facts, name) for name in ("name", "choice", "split", "metrics", "confirmed", "remarks")}
    of_tasks = {task.name: task.figures() for task in facts.tasks}
    files["recipe.yaml"] = _recipe_text(facts.recipe).encode()
    files["metrics.json"] = _json({"mixtune": facts.version, **figures, "tasks": of_tasks})
    files["README.md"] = model_card(facts).encode()
    with hold_folder(folder, "export"):
        for below in {(folder / name).parent for name in files}:
            if below != folder:
                refuse_link(below)
            make_folder(below)
            remove_temporary(below)
            for name in OWN:  # before any is written, so that an export that breaks off is not a mixture of two
                with suppress(OSError):
                    (below / name).unlink()
        for name in sorted(files, key=lambda name: name.endswith(FIRST_READ)):
            write_whole(folder / name, files[name])
    return folder


def _recipe_text(recipe: Recipe) -> str:
    """Return the recipe as a space's file that says nothing of this machine's folders."""
    portable = with_portable_paths(recipe)
    before, after = flatten(recipe.to_dict()), flatten(portable.to_dict())
    changed = [path for path in before if before[path] != after[path]]
    hint = [f"# {path}: set it here, or by --set {path}=PATH, to where that is on your machine\n" for path in changed]
    return "".join(hint) + yaml.safe_dump({"recipe": portable.to_dict()}, sort_keys=False)


def _measure(trained: _Trained) -> tuple[ModelFacts, dict[str, bytes]]:
    """Return what the card tells, the figures measured now, and each task's files: what timm reads, and the script."""
    recipe, data, backbone = with_absolute_paths(trained.recipe), trained.data, trained.backbone
    names = [re.sub(r"[^\w-]+", "-", task.name) for task in data.tasks]
    if len(set(names)) < len(names):
        names = [f"{name}-{i}" for i, name in enumerate(names, start=1)]
    folders = names if len(names) > 1 else ["."]
    tasks, scores, files = [], [], {}
    for task, asked, classifier, below in zip(data.tasks, recipe.data.tasks, trained.classifiers, folders, strict=True):
        config = timm_config(recipe.model, backbone, task)
        weights = timm_weights(backbone, classifier)
        check_logits(config, weights, backbone, classifier, task)
        at = "" if below == "." else f"{below}/"
        files[f"{at}config.json"] = _json(config)
        files[f"{at}model.safetensors"] = safetensors.torch.save(weights, {"format": "pt"})
        files[f"{at}classify.py"] = Path(classify.__file__).read_bytes()
        tally = tally_predictions(backbone, classifier, task.held_out, recipe.precision)
        scores.append(tally.scores())
        facts = TaskFacts(
            name=task.name,
            title=Path(asked.root).name if asked.dataset == "image_folder" and asked.root else task.name,
            classes=task.classes,
            train_images=len(task.train),
            augmentation=asdict(task.train.augmentation),
            scores=asdict(scores[-1]),
            counts=tally.counts[0].tolist(),
            right=tally.counts[2].tolist(),
            mistakes=tally.mistakes(),
            folder=below,
        )
        tasks.append(facts)
    split = "test" if recipe.protocol == "paper" else "val"
    measured = score_metrics(scores, split)
    name, remarks = f"{split}_accuracy", []
    before, now = trained.metrics.get(name), measured[name]
    if before is not None and abs(before - now) > _SAME:
        remarks.append(
            f"{trained.name}: the {name} of these weights is {now:.4f}, not {before:.4f} as after the training that "
            "was recorded: another machine, other versions or other images give other bits."
        )
    parameters = sum(weight.numel() for weight in backbone.parameters())
    card = ModelFacts(
        name=trained.name,
        choice=trained.choice,
        version=__version__,
        recipe=recipe,
        metrics={**trained.metrics, **measured},
        split=split,
        sizes=f"patches of {backbone.patch_size} pixels, width {backbone.embed_dim}, {backbone.depth} blocks of "
        f"{backbone.num_heads} heads and {parameters:,} parameters before the classifier",
        epochs={phase: sum(epoch.phase == phase for epoch in make_plan(recipe)) for phase in PHASES},
        image_size=data.image_size,
        channels=data.channels,
        tasks=tuple(tasks),
        remarks=tuple(remarks),
        confirmed=trained.confirmed,
    )
    return card, files


def _json(values: Mapping[str, Any]) -> bytes:
    """Return readable JSON, null for what is not a number, each row of numbers on one line."""
    text = json.dumps(finite_or_none(values), indent=2, ensure_ascii=False, allow_nan=False)
    return (re.sub(r"\[\n(?:[\s\d,.e+-]|null)+\]", lambda row: re.sub(r"\s+", " ", row[0]), text) + "\n").encode()
