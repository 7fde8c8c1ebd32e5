"""The paper's figures for a setting (MixTraining, arXiv 2502.19513, Tables 1 to 6 and 8 to 16).

``paper_results.csv`` alongside this file holds them: accuracies in percent, seconds of training, one ``epochs`` for
both budgets. Several tasks stand under their datasets joined by "+": the mean accuracy in Table 3, a row a task
(``dataset``) in the others. Tables 4 and 5 sweep alpha and rho for MixTraining alone, without latencies.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple

import pandas as pd

_LAMBDA = 0.5  # in every table
_OBJECTIVE = "mae"
_SWEEPS = {"alpha": 4, "rho": 5}  # the tables
_METHODS = ("sl", "ssl_sl", "mixtraining")

PROTOCOL = {"protocol": "paper", "optim.ssl.warmup_cap": 1.0, "optim.sl.warmup_cap": 1.0}
PROTOCOL_OF_MAE = {"ssl.loss_on": "unmasked"}  # Appendix A.2
_MODEL = {"name": "vit_tiny_patch16_224", "embed_dim": 192, "depth": 12, "num_heads": 3}
_MAE = {"loss_on": "unmasked", "mask_ratio": 0.75, "decoder_depth": 2, "norm_pix": False}
_ADAMW = {"betas": [0.9, 0.95], "weight_decay": 0.05, "schedule": "cosine", "warmup_cap": 1.0}
_SSL = {**_ADAMW, "base_lr": 1.5e-4, "warmup_epochs": 20}  # on CIFAR-10, CIFAR-100 and SVHN
_SL = {**_ADAMW, "base_lr": 1e-3, "warmup_epochs": 5}
_TINY_SSL = {**_SSL, "base_lr": 1e-3, "weight_decay": 0.15}  # on TinyImageNet
_TINY_SL = {**_SL, "base_lr": 2e-3, "betas": [0.9, 0.999]}
_AUGMENT = {"flip": 0.5, "crop_scale": None, "crop_ratio": [0.75, 4 / 3], "randaugment": None}
_TINY_AUGMENT = {"flip": 0.5, "crop_scale": [0.6, 1.0], "crop_ratio": [0.9, 1.1], "randaugment": [2, 9]}


class NoPaperRowsError(LookupError):
    """The paper has no figures for a setting; the message is one line on what it has."""


class Setting(NamedTuple):
    """What the paper's tables differ by.

    Datasets are known by the paper's names, torchvision's and this project's (CIFAR-10, CIFAR10, tiny_imagenet);
    several tasks in any order, as a sequence or joined by "+". alpha and rho count for MixTraining alone, lambda where
    two datasets are mixed.
    """

    dataset: str | Sequence[str]
    ssl_dataset: str | None
    data_percent: float
    ssl_epochs: int
    sl_epochs: int
    alpha: float
    rho: float
    lambda_: float = _LAMBDA


def paper_rows(at: Setting) -> pd.DataFrame:
    """Return the paper's sl, ssl_sl and mixtraining, a row each, at exactly this setting.

    Columns: method; accuracy (a share, the mean of several tasks); accuracy_<task> for each of several tasks, in the
    order asked; latency_s; speedup (the seconds of the paper's SSL+SL over MixTraining's, NaN for the others); table;
    setting, in words. Latency and speed-up are NaN where the paper does not give them (Tables 4 and 5).

    Where tables repeat a setting, those with latencies come first (1 to 3, then 6 and 8 to 16), then 4 before 5: they
    differ by up to 1.6 points. Raises NoPaperRowsError where the paper has no such setting.
    """
    rows, reason = _select(at)
    if rows.empty:
        raise NoPaperRowsError(reason)
    names = _split(at.dataset)
    found = {str(method): group.set_index("key") for method, group in rows.groupby("method")}
    times = {method: float(group["train_latency_s"].iloc[0]) for method, group in found.items()}
    setting = f"{rows['trained'].iloc[0]}, {at.data_percent:g} % of the data, {at.ssl_epochs} + {at.sl_epochs} epochs"
    setting += f", alpha {at.alpha:g}, rho {at.rho:g}"
    records = []
    for method in _METHODS:
        shares = found[method]["accuracy_percent"].astype(float) / 100
        tasks = [float(shares[dataset_key(name)]) for name in names] if len(names) > 1 else []
        records.append(
            {
                "method": method,
                "accuracy": float(shares.get(_key(names), sum(tasks) / max(1, len(tasks)))),
                **{f"accuracy_{name}": share for name, share in zip(names, tasks, strict=False)},
                "latency_s": times[method],
                "speedup": times["ssl_sl"] / times[method] if method == "mixtraining" else math.nan,
                "table": _listed(sorted(set(found[method]["table"]))),
                "setting": setting,
            }
        )
    return pd.DataFrame(records)


def paper_rows_of(recipe: Mapping[str, Any]) -> pd.DataFrame:
    """Return ``paper_rows`` at the setting of a recipe's plain values, as ``Recipe.to_dict`` gives them.

    Raises NoPaperRowsError for values that are no recipe's, too: nobody has checked those of a run that is only read.
    """
    try:
        return _rows_of(recipe)
    except NoPaperRowsError:
        raise
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise NoPaperRowsError("the values are no recipe's") from error


def _rows_of(recipe: Mapping[str, Any]) -> pd.DataFrame:
    data, epochs = recipe["data"], recipe["epochs"]
    if (objective := recipe.get("ssl", {}).get("objective", _OBJECTIVE)) != _OBJECTIVE:
        raise NoPaperRowsError(f"the paper's SSL objective is {_OBJECTIVE}, not {objective}")
    if data["ssl_fraction"] not in (None, data["fraction"]) and data["ssl_dataset"] is None:
        raise NoPaperRowsError("the paper's SSL sees the labelled images alone")
    rates = recipe["alpha"], recipe["rho"], recipe["lambda"]
    percent = 100 * data["fraction"]
    return paper_rows(Setting(data["dataset"], data["ssl_dataset"], percent, epochs["ssl"], epochs["sl"], *rates))


def paper_values(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the paper's values, by dotted path, where a recipe of its datasets has them; recipe: plain values.

    What follows from the images (patches of 2 at 32 pixels and of 4 at 64, so 256 tokens) is spelled out. Of what the
    paper does not say they are our defaults. TinyImageNet's SSL settings hold for CIFAR-10 as well where its SSL images
    are TinyImageNet's (our reading).
    """
    data = recipe["data"]
    tiny = "tinyimagenet" in map(dataset_key, _split(data["dataset"]))
    tiny_ssl = tiny or dataset_key(data["ssl_dataset"] or "") == "tinyimagenet"
    size = 64 if tiny else 32
    values: dict[str, dict[str, Any]] = {
        "data": {"image_size": size, "statistics": "imagenet" if tiny else "own", "ssl_epoch": "supervised"},
        "model": {**_MODEL, "patch_size": size // 16, "pool": "token", "pretrained": False},
        "ssl": _MAE,
        "optim": {"batch_size": 256, "mix_schedule": "sl", "class_weights": "none", "carry_state": True},
        "augment": {**(_TINY_AUGMENT if tiny else _AUGMENT), "pad": None if tiny else size // 8, "ssl": not tiny_ssl},
    }
    rates = {"ssl": _TINY_SSL if tiny_ssl else _SSL, "sl": _TINY_SL if tiny else _SL}
    sections = {**values, **{f"optim.{loss}": of_loss for loss, of_loss in rates.items()}}
    return {f"{section}.{name}": value for section, fields in sections.items() for name, value in fields.items()}


def paper_sweep(recipe: Mapping[str, Any], parameter: str) -> pd.DataFrame:
    """Return the paper's MixTraining over ``parameter``, alpha (Table 4) or rho (Table 5), on a recipe's dataset.

    Columns: the parameter and accuracy, a share; no row where the paper has no such sweep. They are of all its images
    and 100 epochs, whatever the recipe has.
    """
    rows = _read()
    data, ssl = (given if isinstance(given := recipe.get(name), Mapping) else {} for name in ("data", "ssl"))
    names = data.get("dataset") or ()
    names = _split(names) if isinstance(names, str) else names
    is_named = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    key = _key(names) if is_named else None
    rows = rows[(rows["table"] == _SWEEPS[parameter]) & (rows["tasks_key"] == key)]
    if data.get("ssl_dataset") is not None or ssl.get("objective", _OBJECTIVE) != _OBJECTIVE:
        rows = rows[:0]
    means = rows.groupby(parameter, as_index=False)["accuracy_percent"].mean()
    return pd.DataFrame({parameter: means[parameter], "accuracy": means["accuracy_percent"] / 100})


def _select(at: Setting) -> tuple[pd.DataFrame, str]:
    """Return a row a method and dataset at the setting, of the preferred table; or no row and the reason."""
    rows = _read()
    names = _split(at.dataset)
    ssl_names = names if at.ssl_dataset is None else _split(at.ssl_dataset)
    found = (rows["tasks_key"] == _key(names)) & (rows["ssl_key"] == _key(ssl_names))
    if not found.any():
        known = _listed(rows["trained"].unique())
        return rows[found], f"the paper has no training on {_trained(names, ssl_names)}: it has {known}"
    rows = rows[found]
    trained = f"the paper has {rows['trained'].iloc[0]}"
    if _key(names) != _key(ssl_names) and not math.isclose(at.lambda_, _LAMBDA):
        return rows[:0], f"{trained} with lambda {_LAMBDA:g}, not {at.lambda_:g}"

    found = (rows["data_percent"] - at.data_percent).abs() < 1e-6
    if not found.any():
        percents = _listed(sorted(set(rows["data_percent"])))
        return rows[found], f"{trained} with {percents} % of the data, not {at.data_percent:g} %"
    rows = rows[found]
    trained += f" with {at.data_percent:g} % of the data"

    found = (rows["epochs"] == at.ssl_epochs) & (rows["epochs"] == at.sl_epochs)
    if not found.any():
        epochs = _listed(f"{epochs} + {epochs}" for epochs in sorted(set(rows["epochs"])))
        return rows[found], f"{trained} for {epochs} epochs, not {at.ssl_epochs} + {at.sl_epochs}"
    rows = rows[found]
    trained += f" for {at.ssl_epochs} + {at.sl_epochs} epochs"

    mixed = rows["method"] == "mixtraining"
    found = mixed & ((rows["alpha"] - at.alpha).abs() < 1e-6) & ((rows["rho"] - at.rho).abs() < 1e-6)
    if not found.any():
        pairs = sorted(set(zip(rows["alpha"][mixed], rows["rho"][mixed], strict=True)))
        known = _listed(f"{a:g} and {r:g}" for a, r in pairs)
        return rows[found], f"{trained} at alpha and rho {known}, not {at.alpha:g} and {at.rho:g}"
    rows = rows[found | ~mixed].sort_values(["untimed", "table"], kind="stable")
    return rows.drop_duplicates(["method", "key"]), ""


def _read() -> pd.DataFrame:
    """Return the file with its datasets' keys and how people call the pair of them."""
    with resources.files(__package__).joinpath("paper_results.csv").open(encoding="utf-8") as file:
        rows = pd.read_csv(file)
    tasks = rows["dataset"].where(rows["setting"] != "multi", rows["ssl_dataset"])
    rows["key"] = [_key(_split(name)) for name in rows["dataset"]]
    rows["tasks_key"] = [_key(_split(name)) for name in tasks]
    rows["ssl_key"] = [_key(_split(name)) for name in rows["ssl_dataset"]]
    rows["trained"] = [
        _trained(_split(name), _split(ssl)) for name, ssl in zip(tasks, rows["ssl_dataset"], strict=True)
    ]
    rows["untimed"] = rows["train_latency_s"].isna()
    return rows


def _split(dataset: str | Sequence[str]) -> list[str]:
    return dataset.split("+") if isinstance(dataset, str) else list(dataset)


def dataset_key(name: str) -> str:
    """Return what the spellings of a dataset's name share: "tinyimagenet" for tiny_imagenet and TinyImageNet."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _key(names: Iterable[str]) -> str:
    return "+".join(sorted(map(dataset_key, names)))


def _trained(names: Sequence[str], ssl_names: Sequence[str]) -> str:
    supervised, ssl = "+".join(names), "+".join(ssl_names)
    return supervised if _key(names) == _key(ssl_names) else f"{ssl} to {supervised}"


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))
