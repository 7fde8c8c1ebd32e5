"""What of a recipe has an effect: recipes that differ in idle settings alone train the same."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Literal

Method = Literal["sl", "ssl_sl", "mixtraining"]

SSL_ONLY = (  # the beginnings of the paths of what is idle without SSL epochs
    "ssl.",
    "optim.ssl.",
    "data.ssl_",
    "data.partners",
    "alpha",
    "rho",
    "lambda",
    "augment.ssl",
    "optim.carry_state",
)
_MIX_ONLY = ("alpha", "lambda", "data.partners", "optim.mix_schedule")
_CONSTANT_ONLY = ("token_dropout", "key_token_dropout", "patch_size", "key_patch_size")


@functools.cache
def mix_epochs(rho: float, ssl_epochs: int, sl_epochs: int) -> int:
    """Return e_mix = floor(rho * min(e_ssl, e_sl)) (Eq. 1).

    Exact: a float's floor would make 28 of 0.29 x 100, so rho is read as the nearest fraction with a denominator
    of at most 10**6.
    """
    return math.floor(Fraction(rho).limit_denominator(10**6) * min(ssl_epochs, sl_epochs))


@functools.cache
def longest_warmup(cap: float, budget: int) -> float:
    """Return the most epochs of a budget that a warm-up takes: the share ``cap``, read as rho is in mix_epochs()."""
    return float(Fraction(cap).limit_denominator(10**6) * budget)


def find_method(rho: float, ssl_epochs: int, sl_epochs: int) -> Method:
    """Return a recipe's method: ``sl`` is e_ssl = 0 and ``ssl_sl`` is e_mix = 0."""
    if ssl_epochs == 0:
        return "sl"
    return "mixtraining" if mix_epochs(rho, ssl_epochs, sl_epochs) else "ssl_sl"


def mixes_partners(partners: str, fraction: float, ssl_fraction: float | None, another_set: bool) -> bool:
    """Return whether the mix phase mixes SSL images into the labelled ones (Eq. 2).

    partners, fraction, ssl_fraction: of the recipe's ``data``; another_set: whether data.ssl_dataset is another set.
    """
    if partners in ("own", "pool"):
        return partners == "pool"
    has_others = ssl_fraction is not None and ssl_fraction > fraction
    return another_set or (partners == "auto" and has_others)


def choose_statistics(statistics: str, pretrained: bool | str) -> str:
    """Return what images are normalised by: ``own``, ``train``, ``imagenet`` or ``weights``.

    statistics, pretrained: of the recipe's ``data`` and ``model``.
    """
    if statistics != "auto":
        return statistics
    return "own" if pretrained is False else "weights"


def mixes_by_values(values: Mapping[str, Any]) -> bool:
    """Return mixes_partners() of a recipe's values, by dotted path; data of one name and folder are one set."""
    return mixes_partners(
        values["data.partners"], values["data.fraction"], values["data.ssl_fraction"], _has_another_set(values)
    )


def resolve_auto(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's values by dotted path, ``data.partners`` and ``data.statistics`` by what they come to."""
    partners = "pool" if mixes_by_values(values) else "own"
    statistics = choose_statistics(values["data.statistics"], values.get("model.pretrained", False))
    return {**values, "data.partners": partners, "data.statistics": statistics}


def _has_another_set(values: Mapping[str, Any]) -> bool:
    own = [values.get(f"data.{name}") for name in ("dataset", "root")]
    other = [values.get(f"data.ssl_{name}") for name in ("dataset", "root")]
    return other[0] is not None and other != own


def idle_settings(values: Mapping[str, Any]) -> frozenset[str]:
    """Return the dotted paths of a recipe's values that change nothing of what it trains.

    values: all of a recipe's, by dotted path (:func:`mixtune.space.recipe.flatten`). A trained recipe's weights, if not
    the objective's, and its accuracies are the same whatever an idle setting says.
    """
    ssl, sl = values["epochs.ssl"], values["epochs.sl"]
    mix = mix_epochs(values["rho"], ssl, sl)
    idle = {"data.download"}
    if ssl == 0:
        idle |= {path for path in values if path.startswith(SSL_ONLY)}
    if mix == 0:
        idle |= set(_MIX_ONLY)
    if ssl == mix == sl:  # one phase, without a boundary
        idle.add("optim.carry_state")
    if not mixes_by_values(values):
        idle.add("lambda")
        if ssl == mix:  # the mix phase has the supervised loss's images
            idle |= {"data.ssl_fraction"}
            idle |= {"ssl.encode", "augment.ssl"} if values.get("ssl.objective") == "mae" else set()
    same_images = not _has_another_set(values) and values["data.ssl_fraction"] in (None, values["data.fraction"])
    if ssl == mix or same_images:
        idle.add("data.ssl_epoch")
    if values.get("augment.crop_scale") is None:
        idle.add("augment.crop_ratio")
    schedule = values.get("ssl.compression.schedule")
    if schedule in ("none", "auto"):
        idle |= {f"ssl.compression.{name}" for name in _CONSTANT_ONLY}
    if schedule in ("none", "constant"):
        idle.add("ssl.compression.stages")
    if schedule == "constant" and values.get("model.patch_size") is not None:
        sizes = [values.get(f"ssl.compression.{name}") for name in ("patch_size", "key_patch_size")]
        if {*sizes} <= {None, values["model.patch_size"]}:  # the backbone's own: nothing is shortened by it
            idle |= {"ssl.compression.patch_size", "ssl.compression.key_patch_size"}
    return frozenset(idle & values.keys())


def effective(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's values without idle ones, by dotted path: equal for recipes that train the same.

    rho is the mix phase's share of the smaller budget, a warm-up what is left of it, and what is left to be chosen is
    what is chosen.
    """
    idle = idle_settings(values)
    kept = {path: value for path, value in resolve_auto(values).items() if path not in idle}
    ssl, sl = values["epochs.ssl"], values["epochs.sl"]
    if "rho" in kept:
        kept["rho"] = mix_epochs(values["rho"], ssl, sl) / min(ssl, sl)
    for loss, budget in (("ssl", ssl), ("sl", sl)):
        warmup = f"optim.{loss}.warmup_epochs"
        cap = kept.pop(f"optim.{loss}.warmup_cap", 1.0)
        if warmup in kept and values[f"optim.{loss}.schedule"] != "wsd":
            kept[warmup] = min(kept[warmup], longest_warmup(cap, budget))
    return kept
