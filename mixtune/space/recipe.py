"""A Recipe is everything that one trial needs: validated, immutable, hashable, unknown keys refused.

Where the paper (MixTraining, arXiv 2502.19513) is silent, a field's text says that the choice is ours.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, Field, SerializeAsAny, Strict, ValidationError

from mixtune import plugins
from mixtune.errors import RequestError, show, suggest
from mixtune.space.objectives import SETTINGS
from mixtune.space.section import (
    Count,
    Magnitude,
    NonNegative,
    Positive,
    PositiveCount,
    PositiveShare,
    Section,
    Seed,
    Share,
    ShareBelowOne,
    SslSettings,
)


class Task(NamedTuple):
    """One supervised task: the name that its accuracy is reported under, its dataset and where that lies."""

    name: str
    dataset: str
    root: str | None


class Data(Section):
    """Which images are trained on (``mixtune.datasets``): one dataset, or a list, whose members are a task each."""

    dataset: str | Annotated[tuple[str, ...], Strict(False), Field(min_length=1)]
    """A dataset's name (see `mixtune list datasets`), package.module:name for your own, or a list: a task each."""
    root: str | Annotated[tuple[str | None, ...], Strict(False)] | None = None
    """The folder of the files, or a list with one for each dataset; default: the dataset cache of the user."""
    train: str | None = None
    """The folder or table of the training images, where `root` does not tell; relative to `root`."""
    val: str | None = None
    """The folder or table of the validation images, in place of a share of the training images (`val_fraction`)."""
    test: str | None = None
    """The folder or table of the test images, in place of a fifth of the training images."""
    download: bool = True
    """Whether missing files may be downloaded, where the dataset knows how."""
    image_size: PositiveCount | None = None
    """Height and width in pixels that images are resized to; default: the images' own."""
    fit: Literal["auto", "crop", "pad", "stretch"] = "auto"
    """How an image becomes square: centre, border or distorted. auto: crop, or pad where that loses half of images."""
    background: Literal["auto", "white", "black"] | Annotated[str, Field(pattern="^#[0-9a-fA-F]{6}$")] = "auto"
    """What lies under transparent pixels, also as "#rrggbb". auto: white, or black where the images vanish on white."""
    range: Literal["auto", "full"] | Annotated[tuple[float, float], Strict(False)] = "auto"
    """Values of 16-bit or float images that become 0 and 255. full: all that 16 bits hold; auto: what the set uses."""
    max_megapixels: Positive = 178.0
    """The largest image that is decoded."""
    on_bad_file: Literal["stop", "skip"] = "stop"
    """What to do with files that cannot be read: list all and stop, or train on the others."""
    duplicates: Literal["warn", "drop"] = "warn"
    """What to do with images that are in the training part and held out, too: count them, or train without them."""
    reading: Literal[1, 2] = 2
    """Rules by which folders are understood and JPEGs are reduced; 1: those of runs of version 0.1."""
    fraction: PositiveShare = 1.0
    """The paper's p: share of the training set that is kept, stratified."""
    val_fraction: ShareBelowOne = 0.1
    """Share of the training data that validates, taken before `fraction`, stratified."""
    ssl_dataset: str | None = None
    """Another dataset for the self-supervised loss; default: the supervised training images."""
    ssl_root: str | None = None
    """The folder of `ssl_dataset`."""
    ssl_fraction: PositiveShare | None = None
    """Share of the self-supervised images that is kept; default: `fraction`, or all of `ssl_dataset`."""
    partners: Literal["auto", "own", "pool", "ssl_dataset"] = "auto"
    """What is mixed into labelled images (Eq. 2). own: nothing; pool: SSL images; ssl_dataset: those of another set
    alone; auto: SSL images where they are more than the labelled ones."""
    ssl_epoch: Literal["supervised", "pool"] = "supervised"
    """An SSL epoch: as many steps as a supervised one, as in the paper, or one pass over the SSL images (pool)."""
    statistics: Literal["auto", "own", "train", "imagenet", "weights"] = "auto"
    """Mean and standard deviation that images are normalised by. own: the training images', with those that validate;
    train: without them; weights: timm's for the pretrained weights of `model.name`; auto: weights where
    `model.pretrained` is set, else own."""

    @property
    def parts(self) -> dict[str, str]:
        """Where single parts are, as far as that is given: {"train": ..., "val": ..., "test": ...}."""
        given = {"train": self.train, "val": self.val, "test": self.test}
        return {name: path for name, path in given.items() if path is not None}

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The supervised tasks; a dataset that comes more than once is numbered from its second time on."""
        datasets = (self.dataset,) if isinstance(self.dataset, str) else self.dataset
        roots = self.root if isinstance(self.root, tuple) else (self.root,) * len(datasets)
        times = [datasets[:i].count(name) + 1 for i, name in enumerate(datasets)]
        names = (name if time == 1 else f"{name}_{time}" for name, time in zip(datasets, times, strict=True))
        return tuple(map(Task, names, datasets, roots))


class Model(Section):
    """The backbone: a timm ViT. None keeps what the named model has."""

    name: str = "vit_tiny_patch16_224"
    """A plain vision transformer of timm's; the paper's is the default."""
    patch_size: PositiveCount | None = None
    """Height and width of a patch in pixels; default: the smallest that gives at most 256 tokens, as in the paper."""
    embed_dim: PositiveCount | None = None
    """Width of a token; default: the named model's."""
    depth: PositiveCount | None = None
    """Number of transformer blocks; default: the named model's."""
    num_heads: PositiveCount | None = None
    """Attention heads of a block, which divide `embed_dim`; default: the named model's."""
    pool: Literal["token", "avg"] = "token"
    """What the classifier reads: the class token, or the mean of the patch tokens (ours)."""
    pretrained: bool | str = False
    """Initial weights: random, timm's (true), downloaded, or a file of such weights."""


class Epochs(Section):
    """The epoch budgets e_ssl and e_sl; both include the e_mix epochs that they share (Eq. 1)."""

    ssl: Count = 100
    """Budget e_ssl of self-supervised epochs, mixed ones included (Eq. 1); 0 is supervised training alone."""
    sl: PositiveCount = 100
    """Budget e_sl of supervised epochs, mixed ones included (Eq. 1)."""


class Schedule(Section):
    """Optimizer settings of one of the two losses. The rate used is ``base_lr * batch_size / 256``."""

    base_lr: Positive
    """Peak learning rate at 256 images a step: the rate used is base_lr * batch_size / 256."""
    weight_decay: NonNegative = 0.05
    """AdamW's weight decay."""
    betas: Annotated[tuple[ShareBelowOne, ShareBelowOne], Strict(False)] = (0.9, 0.95)
    """AdamW's decay rates of the gradient's first and second moment."""
    warmup_epochs: Count
    """Epochs in which the rate rises, at most the share `warmup_cap` of the budget; of wsd exactly so many."""
    warmup_cap: PositiveShare = 0.2
    """Largest share of the budget that a warm-up takes (ours); 1: it may be all of it."""
    schedule: Literal["cosine", "whole_cosine", "polynomial", "wsd"] = "cosine"
    """The rate after the warm-up. cosine: half a cosine over the rest of the budget (He et al. 2022); whole_cosine: one
    over all of it, or the warm-up where that is lower, changed once an epoch (code of MAE on CIFAR-10:
    IcarusWizard/MAE); polynomial: the square of the share that is left (Lin et al. 2024); wsd: stable, then decay
    (ours): budgets share all epochs but those of the decay."""


class SslSchedule(Schedule):
    """The paper's values for SSL on CIFAR-10, CIFAR-100 and SVHN."""

    base_lr: Positive = 1.5e-4
    warmup_epochs: Count = 20


class SlSchedule(Schedule):
    """The paper's values for SL on CIFAR-10, CIFAR-100 and SVHN."""

    base_lr: Positive = 1e-3
    warmup_epochs: Count = 5


class Optim(Section):
    """AdamW, with one schedule for each loss. Ours are the defaults that did best in benchmarks/phase_boundaries.py."""

    batch_size: PositiveCount = 256
    """Images of a step."""
    mix_schedule: Literal["sl", "ssl", "blend"] = "sl"
    """Whose schedule the backbone follows in the mix phase; blend: both, weighted by alpha (ours)."""
    class_weights: Literal["none", "balanced"] = "none"
    """Weights of the classes in the supervised loss. balanced: N / (C n_c), so that each counts alike (ours)."""
    carry_state: bool = True
    """Whether AdamW's moments continue across phase boundaries (ours)."""
    ssl: SslSchedule = SslSchedule()
    """The self-supervised loss's schedule."""
    sl: SlSchedule = SlSchedule()
    """The supervised loss's schedule."""


class Augment(Section):
    """How training images are changed, by draws of their own for each image and epoch.

    The defaults are the paper's for CIFAR-10, CIFAR-100 and SVHN; for TinyImageNet it takes ``crop_scale`` (0.6, 1),
    ``crop_ratio`` (0.9, 1.1), ``randaugment`` (2, 9), and ``ssl: false``. Mixed images are augmented in the mix phase
    as in the SL phase (ours).
    """

    pad: Count | None = None
    """Pixels added on each side before a random crop; default: an eighth of the image size (4 at 32)."""
    flip: Share | None = None
    """Probability of mirroring; default: 0.5, or 0 where mirrored images change their meaning."""
    crop_scale: Annotated[tuple[PositiveShare, PositiveShare], Strict(False)] | None = None
    """Least and largest share of the area of a random crop that is resized to the image; in place of `pad`."""
    crop_ratio: Annotated[tuple[Positive, Positive], Strict(False)] = (0.75, 4 / 3)
    """Least and largest ratio of width to height of the crop that `crop_scale` asks for."""
    randaugment: Annotated[tuple[PositiveCount, Magnitude], Strict(False)] | None = None
    """RandAugment's number of operations and their magnitude; default: none."""
    ssl: bool = True
    """Whether the images of the self-supervised loss alone are augmented too."""


class Recipe(Section):
    """Everything that one trial needs; parse_recipe() makes one."""

    data: Data
    model: Model = Model()
    epochs: Epochs = Epochs()
    alpha: Share = 0.5
    """Loss-ratio: the weight of the self-supervised loss in the mix phase (Eq. 3)."""
    rho: Share = 0.5
    """Mix-ratio: the share of the smaller epoch budget that is trained on both losses at once (Eq. 1)."""
    lambda_: Annotated[Share, Field(alias="lambda")] = 0.5
    """Mixup weight of the supervised image where another one is mixed into it (Eq. 2): see `data.partners`."""
    ssl: SerializeAsAny[SslSettings]
    """The self-supervised objective and its settings."""
    optim: Optim = Optim()
    augment: Augment = Augment()
    representation: Annotated[tuple[Literal["knn", "probe"], ...], Strict(False)] = ()
    """What judges the backbone's frozen features, before the first supervised epoch and at the end, off the clock: knn,
    20 nearest neighbours; probe, a logistic regression. An objective or a constraint on such a figure adds it."""
    protocol: Literal["search", "paper"] = "search"
    """paper: no validation split, accuracy on the test images, which a search refuses."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the forward and backward passes. auto: float32, but bfloat16 on a GPU that has it."""
    compile: bool = False
    """Whether the steps go through torch.compile; its time is reported apart."""
    seed: Seed = 0
    """Of the initial weights, the splits and every draw of the training."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain nested values under the names that YAML uses; parse_recipe() reads them back."""
        return self.model_dump(mode="json", by_alias=True)


def parse_recipe(values: Mapping[str, Any]) -> Recipe:
    """Validate nested values. The objective that ``ssl.objective`` names validates the ``ssl`` section.

    Raises RecipeError, one line that names the dotted key, what was given and what is allowed.
    """
    given = values.get("ssl", {})
    if not isinstance(given, Mapping):
        raise RecipeError(("ssl",), f"should be a mapping of keys to values, got {show(given)}")
    settings = _validate(_settings_model(given.get("objective", SslSettings().objective)), given, ("ssl",))
    recipe: Recipe = _validate(Recipe, {**values, "ssl": settings}, ())
    _check_together(recipe)
    return recipe


BEFORE: dict[str, Any] = {
    "data.fit": "crop",
    "data.background": "white",
    "data.range": "full",
    "data.reading": 1,
    "data.partners": "ssl_dataset",
    "data.statistics": "own",
}
"""What a recipe meant that was recorded before a field existed, where that is not today's default."""


def with_former_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recorded recipe's nested values with what its missing fields meant when it was recorded."""
    known = flatten(values)
    return with_values(values, {path: value for path, value in BEFORE.items() if path not in known})


def parse_recorded(values: Mapping[str, Any]) -> Recipe:
    """Return the recipe that a run, a checkpoint or a saved training run holds. Raises RecipeError."""
    return parse_recipe(with_former_defaults(values))


def _check_together(recipe: Recipe) -> None:
    """Raise RecipeError for values that are right one by one, but not together."""
    data, augment, ssl = recipe.data, recipe.augment, recipe.ssl
    if recipe.optim.batch_size < ssl.least_batch and recipe.epochs.ssl:
        raise RecipeError(
            ("optim", "batch_size"), f"ssl.objective {ssl.objective} needs at least {ssl.least_batch} images a step"
        )
    if data.ssl_root is not None and data.ssl_dataset is None:
        raise RecipeError(("data", "ssl_root"), "is given without data.ssl_dataset: add it (image_folder, say)")
    if data.statistics == "weights" and recipe.model.pretrained is False:
        raise RecipeError(("data", "statistics"), "weights needs model.pretrained: set it, or choose own or imagenet")
    if data.partners == "own" and data.ssl_dataset is not None:
        raise RecipeError(
            ("data", "partners"), f"own mixes nothing in, so data.ssl_dataset {data.ssl_dataset} has no part: drop one"
        )
    if isinstance(data.root, tuple):
        tasks = 1 if isinstance(data.dataset, str) else len(data.dataset)
        if len(data.root) != tasks:
            wanted = f"one folder, or {tasks} for the {tasks} datasets" if tasks > 1 else "one folder for one dataset"
            raise RecipeError(("data", "root"), f"lists {len(data.root)}: should be {wanted}")
    if isinstance(data.range, tuple) and data.range[0] >= data.range[1]:
        raise RecipeError(
            ("data", "range"), f"its low end {data.range[0]:g} is not below its high end {data.range[1]:g}"
        )
    if data.parts and len(data.tasks) > 1:
        raise RecipeError(("data", next(iter(data.parts))), "goes with one dataset, and data.dataset lists several")
    if augment.crop_scale is None and augment.crop_ratio != Augment().crop_ratio:
        raise RecipeError(("augment", "crop_ratio"), "has no effect without augment.crop_scale: add it ([0.6, 1], say)")
    if augment.crop_scale is not None and augment.pad is not None:
        raise RecipeError(("augment", "pad"), "has no effect alongside augment.crop_scale: drop one")
    for name in ("crop_scale", "crop_ratio"):
        bounds = getattr(augment, name)
        if bounds is not None and bounds[0] > bounds[1]:
            raise RecipeError(("augment", name), f"its low end {bounds[0]:g} is above its high end {bounds[1]:g}")


def change_recipe(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """Return a recipe with dotted values put over its own.

    Another objective keeps the fields that the two share by a base class (views and compression, say), and starts
    from its own defaults otherwise. Raises RecipeError.
    """
    values = with_objective(recipe.to_dict(), changes.get("ssl.objective", recipe.ssl.objective))
    return parse_recipe(with_values(values, changes))


def with_objective(values: Mapping[str, Any], objective: Any) -> dict[str, Any]:
    """Return a recipe's nested values under an objective, which starts from what it shares with theirs; see above.

    Raises RecipeError for an unknown one.
    """
    own = values.get("ssl") or {}
    before = own.get("objective", SslSettings().objective)
    if objective == before:
        return dict(values)
    shared = _shared_fields(_settings_model(before), _settings_model(objective)) - {"objective"}
    return {**values, "ssl": {"objective": objective, **{k: v for k, v in own.items() if k in shared}}}


def default_settings(objective: str) -> Mapping[str, Any]:
    """Return an objective's settings by dotted path with their defaults: ``{"ssl.mask_ratio": 0.75, ...}``; else None.

    Raises RecipeError for an unknown objective.
    """
    model = _settings_model(objective)
    defaults = model.model_construct(objective=objective).model_dump(mode="json", by_alias=True)
    return flatten({"ssl": {**dict.fromkeys(field_names(model)), **defaults}})


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """Return a recipe whose files and folders mean the same from every folder."""
    parts = () if recipe.data.root else ("data.train", "data.val", "data.test")  # else they are relative to the root
    return _with_paths(recipe, lambda path: os.path.abspath(os.path.expanduser(path)), parts)


def with_portable_paths(recipe: Recipe) -> Recipe:
    """Return a recipe that names no folder of this machine: paths are from the current one, or their last name."""

    def portable(path: str) -> str:
        whole = Path(os.path.abspath(os.path.expanduser(path)))
        return whole.relative_to(Path.cwd()).as_posix() if whole.is_relative_to(Path.cwd()) else whole.name

    return _with_paths(recipe, portable)


def _with_paths(recipe: Recipe, change: Callable[[str], str], others: tuple[str, ...] = ()) -> Recipe:
    def changed(value: Any) -> Any:
        if isinstance(value, list):
            return [changed(item) for item in value]
        return change(value) if isinstance(value, str) else value

    given = flatten(recipe.to_dict())
    return change_recipe(recipe, {path: changed(given[path]) for path in (*_PATHS, *others)})


_PATHS = ("data.root", "data.ssl_root", "model.pretrained")


def recipe_on_arrays(values: Mapping[str, Any], root: str | None) -> dict[str, Any]:
    """Return a recipe's nested values with the arrays in a folder as its images; its other ``data`` fields stay."""
    data = {name: value for name, value in (values.get("data") or {}).items() if name not in ("train", "val", "test")}
    return {**values, "data": {**data, "dataset": "arrays", "root": root}}


def follow_arrays(values: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """Return a recipe's nested values; arrays that were written to a folder are there, wherever it was moved."""
    data = values.get("data")
    if isinstance(data, Mapping) and data.get("dataset") == "arrays" and (folder / "meta.json").is_file():
        return recipe_on_arrays(values, os.path.abspath(folder))
    return values


class RecipeError(RequestError):
    """A recipe's mistake; ``path`` is the key at fault, so that a file's reader can add the line."""

    def __init__(self, path: tuple[str, ...], message: str) -> None:
        self.path = path
        self.message = message
        super().__init__(f"{'.'.join(path)}: {message}" if path else message)

    def __reduce__(self) -> tuple[Any, ...]:  # errors travel from Ray's workers
        return type(self), (self.path, self.message)


def with_values(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested ``values`` with dotted paths set: ``with_values({}, {"epochs.sl": 5})``."""
    changed = {key: dict(v) if isinstance(v, Mapping) else v for key, v in values.items()}
    for path, value in changes.items():
        head, _, rest = path.partition(".")
        if rest:
            below = changed.get(head, {})
            if not isinstance(below, Mapping):
                raise RecipeError((head,), f"is a single value, so {path!r} cannot be set")
            changed[head] = with_values(below, {rest: value})
        else:
            changed[head] = value
    return changed


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by dotted path; ``with_values({}, flat)`` nests them again."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def check_path(recipe: Recipe, path: str, others: Iterable[str] = ()) -> None:
    """Raise RecipeError unless the dotted ``path`` is a field of the recipe; it may have been meant for ``others``."""
    check_known(flatten(recipe.to_dict()), path, others)


def check_known(known: Collection[str], path: str, others: Iterable[str] = ()) -> None:
    """Raise RecipeError unless the dotted ``path`` is one of a recipe's known ones, as check_path() does."""
    if path not in known:
        section = [name for name in known if name.startswith(f"{path}.")]
        hint = f" (a section: name one of {', '.join(section)})" if section else suggest(path, [*known, *others])
        raise RecipeError((path,), f"no field of a recipe{hint}")


SAME_TIME = "sl_same_time"  # as many SL epochs as cost what the base recipe does: a search finds out how many
BASELINES: dict[str, dict[str, Any]] = {
    "sl": {"epochs.ssl": 0},
    SAME_TIME: {"epochs.ssl": 0},
    "ssl_sl": {"rho": 0.0},
    "paper": {"alpha": 0.5, "rho": 0.5},  # Section 3.1
}


def baseline_values(method: str) -> dict[str, Any]:
    """Return the dotted values that turn a recipe into a baseline: corners of Algorithm 1, and the paper's ratios."""
    if method not in BASELINES:
        raise RequestError(f"unknown baseline {method!r}: known are {', '.join(BASELINES)}{suggest(method, BASELINES)}")
    return dict(BASELINES[method])


def _shared_fields(one: type[SslSettings], other: type[SslSettings]) -> set[str]:
    """Return the fields that two kinds of settings have from one class."""
    bases = [base for base in one.__mro__ if issubclass(base, SslSettings) and issubclass(other, base)]
    return set(bases[0].model_fields)


def _settings_model(objective: Any) -> type[SslSettings]:
    if str(objective) in SETTINGS:
        return SETTINGS[str(objective)]
    try:
        found = plugins.find("objectives", str(objective), "objective")
    except RequestError as error:
        raise RecipeError(("ssl", "objective"), str(error)) from error
    settings = getattr(found, "Settings", None)
    if not (
        isinstance(settings, type) and issubclass(settings, SslSettings) and callable(getattr(found, "build", None))
    ):
        needs = "needs Settings, a subclass of SslSettings, and a function build"
        raise RecipeError(("ssl", "objective"), f"{objective} {needs}: see mixtune.objectives")
    return settings


def _validate(model: type[Any], values: Mapping[str, Any], prefix: tuple[str, ...]) -> Any:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        path, message = describe_mistake(model, error)
        raise RecipeError((*prefix, *path), message) from error


def describe_mistake(model: type[BaseModel], error: ValidationError) -> tuple[tuple[str, ...], str]:
    """Return the key path and a one-line message for the most telling mistake that pydantic found."""
    # an unknown key explains a missing one, so it comes first
    mistake: Any = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    path, owner = _locate(model, mistake["loc"])
    if mistake["type"] == "extra_forbidden":
        allowed = field_names(owner)
        return path, f"unknown key; allowed are {', '.join(allowed)}{suggest(path[-1], allowed)}"
    if mistake["type"] == "missing":
        is_key = len(path) == len(mistake["loc"])  # else it is a list's item
        return path, "missing, and it has no default" if is_key else f"should be longer, got {show(mistake['input'])}"
    if mistake["type"] == "value_error":
        return path, mistake["msg"].removeprefix("Value error, ")
    # the members of a union each say what they want; of a list's items only the first is reported
    alike = [e for e in error.errors() if e["input"] is mistake["input"] and _locate(model, e["loc"])[0] == path]
    said = " or ".join(dict.fromkeys(e["msg"].removeprefix("Input ") for e in alike))
    hint = suggest(str(mistake["input"]), re.findall(r"'([^']*)'", said))
    return path, f"{said[0].lower()}{said[1:]}, got {show(mistake['input'])}{hint}"


def field_names(model: type[BaseModel]) -> list[str]:
    """Return the names of a section's fields as YAML has them."""
    return [f.alias or name for name, f in model.model_fields.items()]


def _locate(model: type[BaseModel], location: tuple[int | str, ...]) -> tuple[tuple[str, ...], type[BaseModel]]:
    """Return the key path of pydantic's location, without what it adds for unions and items, and the section there."""
    path: list[str] = []
    for part in location:
        path.append(str(part))
        kind = next((f.annotation for n, f in model.model_fields.items() if part in (n, f.alias)), None)
        kinds = kind.__args__ if isinstance(kind, UnionType) else (kind,)  # of a section or null, the section
        below = next((each for each in kinds if isinstance(each, type) and issubclass(each, BaseModel)), None)
        if below is None:
            break
        model = below
    return tuple(path), model
