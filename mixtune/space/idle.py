"""Distributions that would search over nothing, because something else overrides what they draw."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from typing import Any

from mixtune.space.effective import SSL_ONLY, mixes_partners

_CONSTANT_ONLY = tuple(
    f"ssl.compression.{name}" for name in ("token_dropout", "key_token_dropout", "patch_size", "key_patch_size")
)


def find_idle(paths: Iterable[str], values: Mapping[str, tuple[Any, ...]]) -> Iterator[tuple[str, str]]:
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
