"""A Recipe is everything that one trial needs: validated, immutable, unknown keys refused.

Where the paper (MixTraining, arXiv 2502.19513) is silent, a field's comment says that the choice is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, Strict, ValidationError, model_validator

from mixtune import plugins
from mixtune.errors import RequestError, suggest

Share = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveShare = Annotated[float, Field(gt=0.0, le=1.0)]
Count = Annotated[int, Field(ge=0)]
PositiveCount = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class Section(BaseModel):
    """A part of a recipe: strict types, no unknown keys, no change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True, populate_by_name=True)


class Data(Section):
    """Which images are trained on (``mixtune.datasets``)."""

    dataset: str
    root: str | None = None  # default: the dataset cache of the user
    download: bool = True
    image_size: PositiveCount | None = None  # pixels; default: the images' own
    fraction: PositiveShare = 1.0  # the paper's p: share of the training set that is kept, stratified
    val_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1  # of the training data, taken before `fraction`
    ssl_dataset: str | None = None  # default: the supervised training images
    ssl_root: str | None = None

    @model_validator(mode="after")
    def _ssl_root_needs_its_dataset(self) -> Data:
        if self.ssl_root is not None and self.ssl_dataset is None:
            raise ValueError("ssl_root is given without ssl_dataset: add ssl_dataset (image_folder, say)")
        return self


class Model(Section):
    """The backbone: a timm ViT. None keeps what the named model has."""

    name: str = "vit_tiny_patch16_224"
    patch_size: PositiveCount | None = None  # default: the smallest that gives at most 256 tokens, as in the paper
    embed_dim: PositiveCount | None = None
    depth: PositiveCount | None = None
    num_heads: PositiveCount | None = None
    pool: Literal["token", "avg"] = "token"  # what the classifier reads (ours)


class Epochs(Section):
    """The epoch budgets e_ssl and e_sl; both include the e_mix epochs that they share (Eq. 1)."""

    ssl: Count = 100
    sl: PositiveCount = 100


class SslSettings(Section):
    """Base of the settings that an objective plug-in (``mixtune.objectives``) declares as ``Settings``."""

    objective: str = "mae"


class Schedule(Section):
    """Optimizer settings of one of the two losses. The rate used is ``base_lr * batch_size / 256``."""

    base_lr: Positive
    weight_decay: NonNegative = 0.05
    betas: Annotated[tuple[Share, Share], Strict(False)] = (0.9, 0.95)
    warmup_epochs: Count  # at most; never more than a fifth of the epoch budget (ours)
    schedule: Literal["cosine"] = "cosine"


class SslSchedule(Schedule):
    """The paper's values for SSL on CIFAR-10, CIFAR-100 and SVHN."""

    base_lr: Positive = 1.5e-4
    warmup_epochs: Count = 20


class SlSchedule(Schedule):
    """The paper's values for SL on CIFAR-10, CIFAR-100 and SVHN."""

    base_lr: Positive = 1e-3
    warmup_epochs: Count = 5


class Optim(Section):
    """AdamW, with one schedule for each loss."""

    batch_size: PositiveCount = 256
    ssl: SslSchedule = SslSchedule()
    sl: SlSchedule = SlSchedule()


class Augment(Section):
    """Pad, random crop, horizontal flip (the paper's for CIFAR-10, CIFAR-100 and SVHN), in every phase (ours)."""

    pad: Count | None = None  # pixels on each side; default: an eighth of the image size (the paper's 4 at 32)
    flip: Share | None = None  # probability; default: 0.5, or 0 where mirrored images change their meaning


class Recipe(Section):
    """Everything that one trial needs. Make one with :func:`parse_recipe`."""

    data: Data
    model: Model = Model()
    epochs: Epochs = Epochs()
    alpha: Share = 0.5  # loss-ratio, Eq. 3
    rho: Share = 0.5  # mix-ratio, Eq. 1
    lambda_: Annotated[Share, Field(alias="lambda")] = 0.5  # mixup weight of the supervised image, Eq. 2
    ssl: SerializeAsAny[SslSettings]
    optim: Optim = Optim()
    augment: Augment = Augment()
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 on a GPU that has it
    seed: Count = 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain nested values under the names that YAML uses; parse_recipe() reads them back."""
        return self.model_dump(mode="json", by_alias=True)


def parse_recipe(values: Mapping[str, Any]) -> Recipe:
    """Validate nested values. The objective that ``ssl.objective`` names validates the ``ssl`` section.

    Raises RecipeError, one line that names the dotted key, what was given and what is allowed.
    """
    values = dict(values)
    ssl_values = values.get("ssl", {})
    if not isinstance(ssl_values, SslSettings):
        if not isinstance(ssl_values, Mapping):
            raise RecipeError(("ssl",), f"should be a mapping, got {ssl_values!r}")
        try:
            module = plugins.find("objectives", str(ssl_values.get("objective", "mae")), "ssl.objective")
        except RequestError as error:
            raise RecipeError(("ssl", "objective"), str(error)) from error
        values["ssl"] = _validate(module.Settings, ssl_values, ("ssl",))
    recipe: Recipe = _validate(Recipe, values, ())
    return recipe


class RecipeError(RequestError):
    """A recipe's mistake; ``path`` is the key at fault, so that a file's reader can add the line."""

    def __init__(self, path: tuple[str, ...], message: str) -> None:
        self.path = path
        self.message = message
        super().__init__(f"{'.'.join(path)}: {message}" if path else message)


def with_values(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested ``values`` with dotted paths set: ``with_values({}, {"epochs.sl": 5})``."""
    changed = {key: dict(v) if isinstance(v, Mapping) else v for key, v in values.items()}
    for path, value in changes.items():
        head, _, rest = path.partition(".")
        if rest:
            below = changed.get(head) or {}
            if not isinstance(below, Mapping):
                raise RecipeError((head,), f"is a single value, so {path!r} cannot be set")
            changed[head] = with_values(below, {rest: value})
        else:
            changed[head] = value
    return changed


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by dotted path; the inverse of :func:`with_values`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def check_path(recipe: Recipe, path: str) -> None:
    """Raise RecipeError unless the dotted ``path`` is a field of the recipe."""
    known = flatten(recipe.to_dict())
    if path not in known:
        section = [name for name in known if name.startswith(f"{path}.")]
        hint = f" (a section: name one of {', '.join(section)})" if section else suggest(path, known)
        raise RecipeError((path,), f"no field of a recipe{hint}")


def baseline_values(method: str) -> dict[str, Any]:
    """Return the dotted values that turn a recipe into a baseline: the corners of Algorithm 1."""
    corners: dict[str, dict[str, Any]] = {"sl": {"epochs.ssl": 0}, "ssl_sl": {"rho": 0.0}}
    if method not in corners:
        raise RequestError(f"unknown baseline {method!r}: known are sl, ssl_sl{suggest(method, corners)}")
    return corners[method]


def _validate(model: type[Any], values: Mapping[str, Any], prefix: tuple[str, ...]) -> Any:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        path, message = describe_mistake(model, error)
        raise RecipeError((*prefix, *path), message) from error


def describe_mistake(model: type[BaseModel], error: ValidationError) -> tuple[tuple[str, ...], str]:
    """Return the key path and a one-line message for the most telling mistake that pydantic found."""
    # an unknown key explains a missing one, so it comes first
    mistake = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    path = tuple(str(part) for part in mistake["loc"])
    if mistake["type"] == "extra_forbidden":
        allowed = _field_names(model, path[:-1])
        return path, f"unknown key; allowed are {', '.join(allowed)}{suggest(path[-1], allowed)}"
    if mistake["type"] == "missing":
        return path, "missing: it has no default"
    wanted = mistake["msg"].removeprefix("Value error, ").replace("Input should", "should")
    return path, wanted if mistake["type"] == "value_error" else f"{wanted}, got {mistake['input']!r}"


def _field_names(model: type[BaseModel], path: tuple[str, ...]) -> list[str]:
    for part in path:
        below = next((f.annotation for n, f in model.model_fields.items() if part in (n, f.alias)), None)
        if not (isinstance(below, type) and issubclass(below, BaseModel)):
            return []
        model = below
    return [f.alias or name for name, f in model.model_fields.items()]
