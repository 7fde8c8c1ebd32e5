"""The table of a ledger's events: which fields each has, of which kind and range.

Whoever reads an event may rely on it: what breaks the table is never written, and does not count where it is read. More
fields and events of other names may be there, and are left alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model

from mixtune.errors import show
from mixtune.metrics import METRICS, MOST
from mixtune.run.predictions import decode_classes
from mixtune.space.recipe import BASELINES

_TEXTS = ("method", "phase", "precision", "device", "protocol")  # of the metrics
_COUNTS = ("epoch", "epochs_asked", "epochs_trained", "epochs_reused", "threads", "train_images")
_DEEPEST = 4  # of a parameter's lists and mappings
_LAST_MOMENT = 253_402_128_000  # unix seconds: 30 December 9999, a date in every time zone

_NAME = re.compile(r"(?!\.+$)[A-Za-z0-9_.-]{1,64}")
_KEY = re.compile(r"[0-9a-f]{40}")
_PATH = re.compile(r"[A-Za-z0-9_.:-]{1,200}")


def _name(value: Any) -> Any:
    if not (isinstance(value, str) and _NAME.fullmatch(value)):
        raise ValueError("should be a trial's name: 1 to 64 letters, digits, '_', '-' and '.', not dots alone")
    return value


def _baseline(value: Any) -> Any:
    if value not in tuple(BASELINES):
        raise ValueError(f"should be a baseline: {', '.join(BASELINES)}")
    return value


def _key(value: Any) -> Any:
    if not (isinstance(value, str) and _KEY.fullmatch(value)):
        raise ValueError("should be the key of a state: 40 hexadecimal digits")
    return value


def _metrics(values: dict[str, Any]) -> dict[str, Any]:
    for name, value in values.items():
        if value is None or name not in METRICS:
            continue
        if name in _TEXTS:
            if not isinstance(value, str):
                raise ValueError(f"{name} should be text, got {show(value)}")
            continue
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        low, high = METRICS[name].bounds
        if not is_number or not low <= value <= high:
            raise ValueError(f"{name} should be a number from {low:g} to {high:g}, got {show(value)}")
        if name in _COUNTS and (value < 0 or value != int(value)):
            raise ValueError(f"{name} should be a whole number from 0, got {show(value)}")
    return values


def _params(values: dict[str, Any]) -> dict[str, Any]:
    for path, value in values.items():
        if not _PATH.fullmatch(path) or path in METRICS:
            raise ValueError(f"{show(path)} should be a parameter's dotted path")
        if not _is_plain(value, _DEEPEST):
            raise ValueError(f"{path} should be a value of a recipe, got {show(value)}")
    return values


def _sampler(values: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(values.get("memory") or {}, dict):
        raise ValueError(f"memory should be a mapping, got {show(values['memory'])}")
    return values


def _factors(values: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(values.get("device") or "", str):
        raise ValueError(f"device should be text, got {show(values['device'])}")
    return values


def _classes(values: dict[str, str]) -> dict[str, str]:
    for task, text in values.items():
        try:
            decode_classes(text)
        except ValueError as error:
            raise ValueError(f"{task} should be encoded classes of images: {error}") from error
    return values


def _is_plain(value: Any, depth: int) -> bool:
    """Return whether a value can stand in a recipe: finite, and not nested without end."""
    if isinstance(value, list | dict):
        inside = value.values() if isinstance(value, dict) else value
        return depth > 0 and all(_is_plain(item, depth - 1) for item in inside)
    return not isinstance(value, float) or abs(value) < float("inf")


Name = Annotated[str, BeforeValidator(_name)]
Baseline = Annotated[str, BeforeValidator(_baseline)]
Key = Annotated[str, BeforeValidator(_key)]
Number = Annotated[float, Field(ge=-MOST, le=MOST)]
Moment = Annotated[float, Field(ge=0.0, le=_LAST_MOMENT)]
Seconds = Annotated[float, Field(ge=0.0, le=MOST)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Texts = dict[str, str]
Classes = Annotated[dict[str, str], AfterValidator(_classes)]
Metrics = Annotated[dict[str, Any], AfterValidator(_metrics)]
Params = Annotated[dict[str, Any], AfterValidator(_params)]
Sampler = Annotated[dict[str, Any], AfterValidator(_sampler)]

Factors = Annotated[dict[str, Any], AfterValidator(_factors)]

_ASKED: dict[str, Any] = {
    "params": Params,
    "sampler": Sampler,
    "given": bool,
    "baseline": Baseline,
    "forecast_s": Seconds,
    "epochs": Count,
}
_ENDED: dict[str, Any] = {
    "metrics": Metrics,
    "reason": str,
    "cause": str,
    "stage": Key,
    "steps": dict[str, dict[str, Count]],
    "validation": str,
    "predictions": Classes,
}
_OF_A_TRIAL: dict[str, dict[str, Any]] = {
    "asked": _ASKED,
    "known": {**_ASKED, "same_as!": Name},
    "rejected": {**_ASKED, "reason": str, "metrics": Metrics},
    "continued": {"sampler": Sampler, "given": bool},
    "started": {"follows": Annotated[tuple[Name, Count], Field(strict=False)]},
    "epoch": {"metrics!": Metrics, "state": Key, "reused": Count, "node": str},
    "paused": {"metrics": Metrics},
    "retried": {"reason": str, "cause": str, "gpus_per_trial": Seconds},
    "brought": {"epoch!": Count},
    "complete": _ENDED,
    "baseline": {**_ENDED, "method": Baseline},
    "stopped": _ENDED,
    "failed": _ENDED,
    "confirmed": {
        "seed!": Count,
        "metrics!": Metrics,
        "windows": dict[str, list[Seconds]],
        "validation": str,
        "predictions": Classes,
        "reason": str,
        "images": str,
    },
}
_OF_A_RUN: dict[str, dict[str, Any]] = {
    "opened": {
        **dict.fromkeys(("source", "labels", "classes", "pixels", "code", "versions"), Texts),
        "device": str,
        "threads": Count,
        "slots": Count,
        "forecast_s": dict[str, Seconds | None],
        "document": dict[str, Any],
    },
    "extended": {"trials!": Count},
    "given": {"recipes!": list[Params]},
    "edited": {"document!": dict[str, Any], "kept!": dict[str, Params], "varied": list[str], "trials": Count},
    "learned": {
        "source": str,
        "count": Count,
        "left_out": dict[str, Count],
        "from": Annotated[list[str], Field(min_length=2, max_length=2)],
        "params": Params,
        "metrics": Metrics,
        "epochs": list[Metrics],
        "stored": dict[Annotated[str, Field(pattern="^[0-9]{1,9}$")], Key],
    },
    "waited": {"seconds!": Seconds},
    "step_time": {
        "signature": str,
        "seconds": Seconds,
        "quiet": bool,
        "later": bool,
        "factors": Annotated[dict[str, Any], AfterValidator(_factors)],
    },
    "step_time_fixed": {"signature!": str},
    "fitted": {"sampler": Sampler},
    "exhausted": {"reason!": str},
    "converged": {"trials!": Count, "reason": str},
    "validation": {"digest!": str, "classes!": dict[str, Count], "labels!": Classes},
}
FIELDS = {name: {"trial!": Name, **fields} for name, fields in _OF_A_TRIAL.items()} | _OF_A_RUN
"""The fields of each event and their kinds; those with ``!`` must be there, others may be null."""


def _model(event: str, fields: Mapping[str, Any]) -> type[BaseModel]:
    known: dict[str, Any] = {"time": (Moment | None, None)}
    for i, (name, kind) in enumerate(fields.items()):
        must, alias = name.endswith("!"), name.removesuffix("!")
        known[f"field_{i}"] = (kind, Field(alias=alias)) if must else (kind | None, Field(None, alias=alias))
    return create_model(event, __config__=ConfigDict(extra="allow", strict=True), **known)


_MODELS = {event: _model(event, fields) for event, fields in FIELDS.items()}


_TOGETHER = {  # fields of which all are there, or none
    "step_time": ("signature", "seconds"),
    "learned": ("from", "params", "metrics", "epochs", "stored"),
}


def why_wrong(event: Mapping[str, Any]) -> str | None:
    """Return in a line how an event breaks the table, None where it does not."""
    together = _TOGETHER.get(event["event"], ())
    if 0 < sum(event.get(name) is not None for name in together) < len(together):
        return f"should have all of {', '.join(together)}, or none"
    model = _MODELS.get(event["event"])
    if model is None:
        return None
    if event["event"] == "epoch" and isinstance(event.get("metrics"), dict) and event["metrics"].get("epoch") is None:
        return "metrics: should have epoch"
    try:
        model.model_validate(event)
    except ValidationError as error:
        return say_first(error)
    if event["event"] == "validation" and event["classes"].keys() != event["labels"].keys():
        return "classes and labels should be of the same tasks"
    return None


def say_first(error: ValidationError) -> str:
    """Return in a line the first thing that is wrong with what was read: where, what it should be, what it is."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    given = "" if first["type"] == "missing" or "got" in message else f", got {show(first['input'])}"
    return f"{where}: {message[:1].lower()}{message[1:]}{given}"
