"""The model card of an exported recipe: what it is, how good, how it was trained, and what it is not for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mixtune.metrics import find_metric, significant
from mixtune.space.recipe import Recipe, flatten

MOST_CLASSES = 20  # whose tables are shown in full
LOWEST, MOST_CONFUSED = 10, 15  # rows of the tables that stand for them where there are more

Table = Iterable[Sequence[str]]


@dataclass(frozen=True)
class TaskFacts:
    """One task: its classes, its figures by the names of mixtune.training.scores, and its images by class and answer.

    title: what people call its images; train_images: labelled ones; augmentation: of these, by the names of the
    recipe; folder: of its model, relative to the card's, such as ``"."``.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    train_images: int
    augmentation: Mapping[str, Any]
    scores: Mapping[str, float]
    confusion: Sequence[Sequence[int]]
    folder: str = "."

    @property
    def images(self) -> int:
        """How many the figures are of."""
        return sum(map(sum, self.confusion))

    @property
    def recalls(self) -> list[float | None]:
        """The share of each class's images that was recognised, None for a class that has none."""
        return [row[label] / sum(row) if sum(row) else None for label, row in enumerate(self.confusion)]


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
    """Return the card as Markdown, with the hub's front matter."""
    datasets = " and ".join(task.title for task in facts.tasks)
    parts = [
        "---\nlibrary_name: timm\npipeline_tag: image-classification\ntags:\n- timm\n- mixtune\n---",
        f"# {facts.name}: a vision transformer for {datasets}",
        _summary(facts),
        "## Use",
        _use(facts),
        "## How good it is",
        _origin_of_figures(facts),
        _markdown(["figure", *(task.title for task in facts.tasks)], _score_rows(facts)),
        *facts.remarks,
        *_confirmed(facts),
        _costs(facts),
        *(part for task in facts.tasks for part in _task_tables(task, several=len(facts.tasks) > 1)),
        "## How it was trained",
        _markdown(["setting", "value"], _settings(facts), align="---"),
        "All settings are in `recipe.yaml`; `mixtune train recipe.yaml` trains it again.",
        "## Limits",
        "\n".join(f"- {limit}" for limit in _limits(facts)),
    ]
    return "\n\n".join(parts) + "\n"


def _summary(facts: ModelFacts) -> str:
    images = " and ".join(f"{task.train_images:,} images of {task.title}" for task in facts.tasks)
    choice = f" It is {facts.choice}." if facts.choice else ""
    return (
        f"timm's `{facts.recipe.model.name}` with {facts.sizes}, trained on {images} ({_pixels(facts)}) by mixtune "
        f"{facts.version}, by the method of [MixTraining](https://arxiv.org/abs/2502.19513).{choice}"
    )


def _use(facts: ModelFacts) -> str:
    lines = []
    for task in facts.tasks:
        script = "classify.py" if task.folder == "." else f"{task.folder}/classify.py"
        lines.append(f"python {script} IMAGE  # {len(task.classes)} classes: {_listed(task.classes)}")
    sources = " or ".join(f'"local-dir:{task.folder}"' for task in facts.tasks)
    return (
        "```\n" + "\n".join(lines) + "\n```\n\n"
        "needs torch, timm, Pillow and safetensors. In Python, from this folder:\n\n"
        f"```python\nimport timm\n\nmodel = timm.create_model({sources}, pretrained=True).eval()\n"
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))\n```\n\n"
        "`classify.py` prepares an image exactly as the training did; timm's transform does so up to the rounding of "
        "what it cuts off an image that is not square."
    )


def _origin_of_figures(facts: ModelFacts) -> str:
    images = " and ".join(f"{task.images:,}" for task in facts.tasks)
    of = " each" if len(facts.tasks) > 1 else ""
    if not any(task.images for task in facts.tasks):
        return "Not measured: no image was held out."
    if facts.split == "test":
        return f"Measured on the {images} test images{of}; one training, of seed {facts.recipe.seed}."
    return (
        f"Measured on {images} validation images{of}, which were taken from the training images and never trained on; "
        f"one training, of seed {facts.recipe.seed}."
        + (
            " The search compared its recipes by these same images, so the figures flatter the best of them; it never "
            "looked at test images."
            if facts.choice
            else ""
        )
    )


def _score_rows(facts: ModelFacts) -> Table:
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "calibration_error"):
        of = find_metric(f"{facts.split}_{name}")
        values = [of.text(task.scores[name], task.scores.get(f"{name}_se")) for task in facts.tasks]
        yield [_SCORES[name], *values]


_SCORES = {
    "accuracy": "accuracy, top-1 (± standard error)",
    "balanced_accuracy": "balanced accuracy: the mean of the classes' recalls",
    "macro_f1": "macro F1",
    "calibration_error": "expected calibration error, 15 bins of the top-1 probability",
}


def _confirmed(facts: ModelFacts) -> list[str]:
    row = facts.confirmed
    if row is None:
        return []
    accuracy = find_metric("test_accuracy").text(row["test_accuracy"], row["test_accuracy_se"])
    seconds = find_metric("train_latency_s").text(row["train_latency_s"])
    seeds = f"{row['seeds']} fresh {'seed' if row['seeds'] == 1 else 'seeds'}"
    return [
        f"**Confirmed:** trained again on {seeds}, the recipe has a test accuracy of {accuracy} after {seconds} of "
        f"training, and is on the true front with a probability of {100 * row['p_front']:.0f} %. These are figures of "
        "the recipe, from other trainings; the weights here are those of the search."
    ]


def _costs(facts: ModelFacts) -> str:
    metrics = facts.metrics
    found = {name: metrics.get(name) for name in ("train_latency_s", "infer_latency_ms", "train_flops")}
    told = [f"{find_metric(name).title} {find_metric(name).text(value)}" for name, value in found.items() if value]
    return (
        f"Costs, on {metrics.get('device', 'an unknown device')}: {', '.join(told) or 'not measured'}. Seconds are "
        "metered: of training steps, and of one image from its pixels to its class, on a device of their own."
    )


def _task_tables(task: TaskFacts, several: bool) -> list[str]:
    of = f" of {task.title}" if several else ""
    labels = range(len(task.classes))
    rows = [[task.classes[i], f"{sum(task.confusion[i]):,}", _share(task.recalls[i])] for i in labels]
    header = ["class", "images", "recall"]
    if len(labels) <= MOST_CLASSES:
        matrix = [[task.classes[i], *(str(count or "") for count in task.confusion[i])] for i in labels]
        return [
            f"### Classes{of}",
            _markdown(header, rows),
            "Images by their class (rows) and by the answer (columns):",
            _markdown(["", *task.classes], matrix),
        ]
    order = sorted(labels, key=lambda i: (task.recalls[i] is None, task.recalls[i] or 0.0))
    mistakes = sorted(((task.confusion[i][j], i, j) for i in labels for j in labels if i != j), reverse=True)
    confused = [
        [task.classes[i], task.classes[j], f"{count} of {sum(task.confusion[i])}"]
        for count, i, j in mistakes[:MOST_CONFUSED]
        if count
    ]
    return [
        f"### Classes{of}",
        f"The {LOWEST} of {len(labels)} classes with the lowest recall; `metrics.json` has all, and all confusions:",
        _markdown(header, [rows[i] for i in order[:LOWEST]]),
        "The most frequent confusions:",
        _markdown(["class", "taken for", "images"], confused),
    ]


def _settings(facts: ModelFacts) -> Table:
    recipe, metrics = facts.recipe, facts.metrics
    words = {"ssl": "self-supervised", "mix": "of both at once", "sl": "supervised"}
    epochs = [f"{count} {words[phase]}" for phase, count in facts.epochs.items() if count]
    yield ["method", f"{metrics['method']}: {', '.join(epochs)} epochs"]
    if facts.epochs["mix"]:
        yield ["loss-ratio alpha, mix-ratio rho", f"{significant(recipe.alpha)}, {significant(recipe.rho)}"]
    if recipe.epochs.ssl:
        yield ["self-supervised objective", ", ".join(_assigned(recipe.ssl.model_dump(mode="json")))]
    losses = ["ssl", "sl"] if recipe.epochs.ssl else ["sl"]
    rates = [f"{loss} {significant(metrics[f'lr_{loss}'])}" for loss in losses]
    yield ["optimizer", f"AdamW, batches of {recipe.optim.batch_size}, peak rates: {', '.join(rates)}"]
    for task in facts.tasks:
        off = ("crop_ratio",) if task.augmentation["crop_scale"] is None else ("pad",)
        given = {name: value for name, value in task.augmentation.items() if value is not None and name not in off}
        of = f" of {task.title}" if len(facts.tasks) > 1 else ""
        yield [f"augmentation{of}", ", ".join(_assigned(given))]
    yield ["data", ", ".join(_assigned(_data_settings(recipe)))]
    yield ["first weights", _first_weights(recipe)]
    yield ["precision, seed", f"{metrics.get('precision', recipe.precision)}, {recipe.seed}"]


def _data_settings(recipe: Recipe) -> dict[str, Any]:
    shown = ("dataset", "fraction", "val_fraction", "ssl_dataset", "ssl_fraction", "statistics")
    values = recipe.data.model_dump(mode="json")
    return {name: values[name] for name in shown if values[name] is not None}


def _is_pretrained(facts: ModelFacts) -> bool:
    return facts.recipe.model.pretrained is not False


def _first_weights(recipe: Recipe) -> str:
    pretrained = recipe.model.pretrained
    if pretrained is False:
        return "random"
    return f"timm's pretrained ones of {recipe.model.name}" if pretrained is True else "pretrained ones, from a file"


def _limits(facts: ModelFacts) -> list[str]:
    licensed = "the training images and the weights that it began from" if _is_pretrained(facts) else "the images"
    return [
        "It answers with one of its classes whatever it is shown, also with an image of none of them.",
        f"It sees {_pixels(facts)} pixels: an image is resized to that, its longer side cut off at both ends.",
        "Its figures are of images from the same source as the training images; on others it may be worse.",
        "Its probabilities are not calibrated afterwards; the calibration error says how far they are off.",
        "The figures are of one training; another seed gives others.",
        f"No licence is stated here: it depends on {licensed}.",
    ]


def _pixels(facts: ModelFacts) -> str:
    return f"{facts.image_size}x{facts.image_size} {'RGB' if facts.channels == 3 else 'grayscale'}"


def _assigned(values: Mapping[str, Any]) -> list[str]:
    return [f"{name} {value}" for name, value in flatten(values).items()]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _listed(names: Sequence[str], most: int = 10) -> str:
    shown = ", ".join(names[:most])
    return f"{shown}, ..." if len(names) > most else shown


def _markdown(header: Sequence[str], rows: Table, align: str = "---:") -> str:
    lines = [header, ["---", *[align] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
