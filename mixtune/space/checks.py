"""Whether all that a space's file asks for can be had, and has an effect; each mistake is one line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice, product
from typing import TYPE_CHECKING, Any

from mixtune import plugins
from mixtune.errors import RequestError, show
from mixtune.space.document import Document
from mixtune.space.effective import SSL_ONLY, mixes_partners
from mixtune.space.points import ways
from mixtune.space.reading import mistake_at
from mixtune.space.recipe import RecipeError

if TYPE_CHECKING:
    from mixtune.space.space import SearchSpace

MAX_WAYS = 32  # to make a parameter active, of which its ends are tried in each
_CONSTANT_ONLY = tuple(
    f"ssl.compression.{name}" for name in ("token_dropout", "key_token_dropout", "patch_size", "key_patch_size")
)


def check_plugins(document: Document, space: SearchSpace) -> None:
    """Refuse a sampler or a scheduler that is not there."""
    makers = {"sampler": ("build", "proposer"), "scheduler": ("build",)}
    for kind, name in (("sampler", space.search.sampler), ("scheduler", space.search.scheduler)):
        try:
            if kind == "sampler" and name.endswith("Sampler") and ":" not in name:
                continue  # Optuna's, which is asked when the search is prepared
            plugins.check_name(f"tuning.{kind}s", name, kind)
            if ":" in name:
                found = plugins.find(f"tuning.{kind}s", name, kind)
                if not any(callable(getattr(found, maker, None)) for maker in makers[kind]):
                    needed = " or ".join(makers[kind])
                    raise RequestError(f"{kind} {name!r} needs a function {needed}: see mixtune.tuning.{kind}s")
        except RequestError as error:
            raise mistake_at(document, ("search", kind), str(error)) from error


def check_extremes(document: Document, space: SearchSpace) -> None:
    """Refuse a distribution that can give what no recipe can have: each is tried at its ends."""
    for path, value in space.extremes():
        for others in islice(ways(space, path), MAX_WAYS):
            try:
                space.recipe_at({**others, path: value})
            except RecipeError as error:
                message = error.message if ".".join(error.path) == path else str(error)
                wrong = f"{space.space[path].kind} can give {show(value)}: {message}"
                raise mistake_at(document, ("space", path), wrong) from error


def refuse_idle(document: Document, space: SearchSpace, is_changed: bool) -> None:
    """Refuse distributions that are never active, and those whose draws something else overrides.

    is_changed: by ``--set``, which can drop them as well.
    """
    values = space.ends()
    idle = dict(_find_idle(space.space, values))
    for path in (*space.space, *space.ties):
        if path in ("seed", "protocol", "data.dataset", "data.root", "data.val_fraction", "data.download"):
            wrong = "is the same for all trials of a search: drop this distribution"
            raise mistake_at(document, ("space", path), wrong)
    for path in space.space:
        never = next(ways(space, path), None) is None
        if never or path in idle:
            wrong = f"is never active: {_why_never(space, path)}" if never else f"has no effect while {idle[path]}"
            hint = f": --set space.{path}= drops it" if is_changed else ""
            raise mistake_at(document, ("space", path), f"{wrong}{hint}")


def _why_never(space: SearchSpace, path: str) -> str:
    values = space.ends()
    for condition in space.space[path].when:
        parent = space.space.get(condition.path)
        if not condition.values:
            return f"none of the searched values of {condition.path} has it"
        if parent is not None and not any(map(parent.contains, condition.values)):
            return f"{condition.path} is never {' or '.join(map(show, condition.values))}"
        if parent is None and not any(map(condition.allows, values.get(condition.path, ()))):
            return f"{condition.path} is {show(values[condition.path][0])}"
    return "its conditions never hold together"


def _find_idle(paths: Iterable[str], values: Mapping[str, tuple[Any, ...]]) -> Iterator[tuple[str, str]]:
    """Yield (path, why) of the searched paths that have no effect in any recipe of a space.

    values: what each field of a recipe may be, at least the ends, by dotted path.
    """
    one_dataset = all(values[f"data.ssl_{name}"] in ((None,), values[f"data.{name}"]) for name in ("dataset", "root"))
    draws = product(values["data.partners"], values["data.fraction"], values["data.ssl_fraction"])
    never_partners = not any(mixes_partners(*drawn, not one_dataset) for drawn in draws)
    same_images = one_dataset and values["data.ssl_fraction"] in ((None,), values["data.fraction"])
    most_ssl = max(values["epochs.ssl"])
    mixes = max(values["rho"]) * min(most_ssl, max(values["epochs.sl"])) > 1 - 1e-6  # Eq. 1, up to rounding
    no_pure_ssl = min(values["rho"]) == 1.0 and most_ssl <= min(values["epochs.sl"])
    for path in paths:
        because = None
        if path == "lambda" and never_partners:
            because = "both losses see the same images: set data.ssl_dataset, or data.ssl_fraction above data.fraction"
        elif most_ssl == 0 and path.startswith(SSL_ONLY):
            because = "epochs.ssl is 0: nothing is self-supervised"
        elif path == "data.ssl_epoch" and same_images:
            because = "the self-supervised images are the labelled ones: set data.ssl_dataset or data.ssl_fraction"
        elif path == "data.ssl_epoch" and no_pure_ssl:
            because = "rho is 1 and epochs.ssl at most epochs.sl: every self-supervised epoch is mixed"
        elif path == "augment.crop_ratio" and values["augment.crop_scale"] == (None,):
            because = "augment.crop_scale is null: nothing is cropped by area"
        elif path in _CONSTANT_ONLY and "constant" not in values["ssl.compression.schedule"]:
            because = "ssl.compression.schedule is never constant"
        elif path in ("ssl.encode", "augment.ssl") and never_partners and no_pure_ssl:
            because = "rho is 1 and epochs.ssl at most epochs.sl: every self-supervised epoch is mixed"
        elif not mixes and path in ("alpha", "rho", "lambda", "data.partners", "optim.mix_schedule"):
            because = "rho times the fewer of epochs.ssl and epochs.sl is below 1: no epoch is mixed"
        if because is not None:
            yield path, because
