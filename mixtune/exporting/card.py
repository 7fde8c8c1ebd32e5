"""The model card of an exported recipe: what it is, how good, how it was trained, and what it is not for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import yaml

from mixtune.errors import printable
from mixtune.metrics import describe_channels, find_metric, significant
from mixtune.space.effective import resolve_auto
from mixtune.space.recipe import Recipe, flatten

MAX_CLASSES = 20  # whose tables are shown in full
MAX_MATRIX = 1000  # whose confusions metrics.json holds as a matrix
LOWEST, MAX_CONFUSED = 10, 15  # rows of the tables that stand for them where there are more

_SOURCES = "the training images and the weights that it began from"
_SCORES = {
    "accuracy": "accuracy, top-1 (± standard error)",
    "balanced_accuracy": "balanced accuracy: the mean of the classes' recalls",
    "macro_f1": "macro F1",
    "calibration_error": "expected calibration error, 15 bins of the top-1 probability",
}


@dataclass(frozen=True)
class TaskFacts:
    """One task: its classes, its figures by the names of mixtune.training.scores, and what it was answered.

    title: what people call its images; train_images: labelled ones; augmentation: of these, by the names of the
    recipe; counts: held-out images by class; right: those of them that are answered rightly; mistakes: class, answer
    and images of the others; folder: of its model, relative to the card's, such as ``"."``.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    train_images: int
    augmentation: Mapping[str, Any]
    scores: Mapping[str, float]
    counts: Sequence[int]
    right: Sequence[int]
    mistakes: Sequence[tuple[int, int, int]]
    folder: str = "."

    @property
    def images(self) -> int:
        """How many the figures are of."""
        return sum(self.counts)

    @property
    def recalls(self) -> list[float | None]:
        """The share of each class's images that was recognised, None for a class that has none."""
        return [right / count if count else None for right, count in zip(self.right, self.counts, strict=True)]

    def confusion(self) -> list[list[int]]:
        """Images by their class (rows) and by the answer."""
        rows = [[0] * len(self.classes) for _ in self.classes]
        for label, right in enumerate(self.right):
            rows[label][label] = right
        for label, answer, images in self.mistakes:
            rows[label][answer] = images
        return rows

    def figures(self) -> dict[str, Any]:
        """Return what metrics.json holds of the task: of more than MAX_MATRIX classes the mistakes that there are."""
        of_classes = {"classes": self.classes, "recalls": self.recalls}
        if len(self.classes) > MAX_MATRIX:
            return {"images": self.images, **self.scores, **of_classes, "mistakes": self.mistakes}
        return {"images": self.images, **self.scores, **of_classes, "confusion": self.confusion()}

    def rows(self) -> list[list[str]]:
        """Name, images and recall of each class."""
        recalls = ["-" if recall is None else f"{100 * recall:.1f} %" for recall in self.recalls]
        return [list(row) for row in zip(self.classes, (f"{n:,}" for n in self.counts), recalls, strict=True)]

    def lowest(self) -> list[list[str]]:
        """The rows of the classes with the lowest recall; those without an image come last."""
        recalls = [2.0 if recall is None else recall for recall in self.recalls]
        return [row for _, row in sorted(zip(recalls, self.rows(), strict=True), key=lambda pair: pair[0])][:LOWEST]

    def matrix(self) -> list[list[str]]:
        """Name and answers of each class, nothing for none."""
        return [[name, *(str(n or "") for n in row)] for name, row in zip(self.classes, self.confusion(), strict=True)]

    def confused(self) -> list[list[str]]:
        """Class, answer and how often, of the most frequent mistakes."""
        most = sorted(((n, label, answer) for label, answer, n in self.mistakes), reverse=True)[:MAX_CONFUSED]
        return [
            [self.classes[label], self.classes[answer], f"{n} of {self.counts[label]}"] for n, label, answer in most
        ]


@dataclass(frozen=True)
class ModelFacts:
    """What a card tells.

    name: the trial's, or the folder's of a recipe trained by itself; choice: what it is among others, such as "the
    knee of ..."; metrics: by the names of trials.csv; split: what they are of, ``val`` or ``test``; sizes: of the
    model, in words; epochs: by phase; remarks: sentences on the figures; confirmed: the recipe's row of a confirmation,
    None without one.
    """

    name: str
    choice: str | None
    version: str
    recipe: Recipe
    metrics: Mapping[str, Any]
    split: str
    sizes: str
    epochs: Mapping[str, int]
    image_size: int
    channels: int
    tasks: tuple[TaskFacts, ...]
    remarks: tuple[str, ...] = ()
    confirmed: Mapping[str, Any] | None = None


def model_card(facts: ModelFacts) -> str:
    """Return the card as Markdown, with the hub's front matter: ``templates/card.md``, filled in."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mixtune.exporting"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["cell"] = lambda text: _plain(text).replace("|", "\\|")
    environment.filters["plain"] = _plain
    environment.filters["line"] = printable
    scores = []
    for name, title in _SCORES.items():
        of = find_metric(f"{facts.split}_{name}")
        scores.append([title, *(of.text(task.scores[name], task.scores.get(f"{name}_se")) for task in facts.tasks)])
    costs = {name: facts.metrics.get(name) for name in ("train_latency_s", "infer_latency_ms", "train_flops")}
    return environment.get_template("card.md").render(
        facts=facts,
        front_matter=yaml.safe_dump(_front_matter(facts), sort_keys=False, allow_unicode=True),
        tasks=facts.tasks,
        several=len(facts.tasks) > 1,
        recipe=facts.recipe,
        metrics=facts.metrics,
        confirmed=facts.confirmed,
        pixels=f"{facts.image_size}x{facts.image_size} {describe_channels(facts.channels)}",
        scores=scores,
        costs=[f"{find_metric(name).title} {find_metric(name).text(value)}" for name, value in costs.items() if value],
        settings=list(_settings(facts)),
        sources="the images" if facts.recipe.model.pretrained is False else _SOURCES,
        find_metric=find_metric,
        MAX_CLASSES=MAX_CLASSES,
        LOWEST=LOWEST,
    )


def _plain(text: str) -> str:
    """Return a name as text of a line of Markdown, which holds no HTML."""
    return printable(" ".join(text.split())).replace("&", "&amp;").replace("<", "&lt;")


def _front_matter(facts: ModelFacts) -> dict[str, Any]:
    """Return what the hub reads (huggingface.co/docs/hub/model-cards); no licence, which is for its owner to say."""
    measured = [task for task in facts.tasks if task.images]
    split = "test" if facts.split == "test" else "validation"
    results = [
        {
            "task": {"type": "image-classification", "name": "Image Classification"},
            "dataset": {"name": task.title, "type": _identifier(task.title), "split": split},
            "metrics": [
                {
                    "type": "accuracy",
                    "value": round(task.scores["accuracy"], 4),
                    "name": f"top-1 accuracy, {split} images",
                }
            ],
        }
        for task in measured
    ]
    other = facts.recipe.data.ssl_dataset
    datasets = [_identifier(name) for name in (*(task.title for task in facts.tasks), *([other] if other else []))]
    return {
        "library_name": "timm",
        "pipeline_tag": "image-classification",
        "tags": ["timm", "mixtune"],
        "datasets": list(dict.fromkeys(datasets)),
        **({"metrics": ["accuracy"], "model-index": [{"name": facts.name, "results": results}]} if results else {}),
    }


def _identifier(name: str) -> str:
    """Return a dataset's name in the form of the hub's."""
    return re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-.") or "images"


def _settings(facts: ModelFacts) -> Iterator[tuple[str, str]]:
    recipe, metrics = facts.recipe, facts.metrics
    words = {"ssl": "self-supervised", "mix": "of both at once", "sl": "supervised"}
    epochs = [f"{count} {words[phase]}" for phase, count in facts.epochs.items() if count]
    yield "method", f"{metrics['method']}: {', '.join(epochs)} epochs"
    if facts.epochs["mix"]:
        yield "loss-ratio alpha, mix-ratio rho", f"{significant(recipe.alpha)}, {significant(recipe.rho)}"
    values = resolve_auto(flatten(recipe.to_dict()))
    if facts.epochs["mix"] and values["data.partners"] == "pool":
        yield "mixup weight lambda", significant(recipe.lambda_)
    if recipe.epochs.ssl:
        yield "self-supervised objective", _assigned(recipe.ssl.model_dump(mode="json"))
    losses = ["ssl", "sl"] if recipe.epochs.ssl else ["sl"]
    rates = [f"{loss} {significant(metrics[f'lr_{loss}'])}" for loss in losses]
    weighted = "" if recipe.optim.class_weights == "none" else f", class weights {recipe.optim.class_weights}"
    yield "optimizer", f"AdamW, batches of {recipe.optim.batch_size}, peak rates: {', '.join(rates)}{weighted}"
    for task in facts.tasks:
        off = "crop_ratio" if task.augmentation["crop_scale"] is None else "pad"
        of = f" of {task.title}" if len(facts.tasks) > 1 else ""
        yield f"augmentation{of}", _assigned({k: v for k, v in task.augmentation.items() if v is not None and k != off})
    shown = {"dataset", "fraction", "val_fraction", "ssl_dataset", "ssl_fraction", "statistics"}
    data = recipe.data.model_dump(mode="json", include=shown, exclude_none=True)
    yield "data", _assigned({**data, "statistics": values["data.statistics"]})
    weights: dict[Any, str] = {False: "random", True: f"timm's pretrained ones of {recipe.model.name}"}
    yield "first weights", weights.get(recipe.model.pretrained, "pretrained ones, from a file")
    yield "precision, seed", f"{metrics.get('precision', recipe.precision)}, {recipe.seed}"


def _assigned(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in flatten(values).items())
