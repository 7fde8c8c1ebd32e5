"""Limits on metrics: how they are written, and what keeps them."""

from __future__ import annotations

import math
from typing import Any

import pytest

from mixtune.errors import RequestError
from mixtune.space.constraints import Constraint, parse_constraint
from mixtune.space.space import space_from_dict


def test_a_limit_is_a_sense_and_a_number_in_full_precision() -> None:
    for text in ("<= 60", "<=60", "  <=  6e1 "):
        limit = parse_constraint("train_latency_s", text, "<=")
        assert limit == Constraint("train_latency_s", "<=", 60.0), text
        assert (str(limit), limit.to_yaml()) == ("train_latency_s <= 60", "<= 60")
    for bound in (0.1 + 0.2, 59.9999999, 123_456_789.0, 1.2345678e15, 1e300, -0.5, 0.0):
        limit = Constraint("train_flops", "<=", bound)
        assert parse_constraint("train_flops", limit.to_yaml(), "<=") == limit


def test_a_violation_is_how_far_a_value_is_past_the_bound() -> None:
    most, least = Constraint("train_latency_s", "<=", 60.0), Constraint("val_accuracy", ">=", 0.5)
    assert [most.violation(v) for v in (50.0, 60.0, 75.0)] == [-10.0, 0.0, 15.0]
    assert [least.violation(v) for v in (0.75, 0.5, 0.25)] == [-0.25, 0.0, 0.25]
    assert [most.holds(v) for v in (60.0, 60.001, math.nan)] == [True, False, False]
    assert most.violation(math.nan) == least.violation(math.nan) == math.inf


def test_a_limit_that_makes_no_sense_is_refused(small_space: Any) -> None:
    mistakes: list[tuple[str, Any, str]] = [
        ("train_latency_s", "60", 'constraints.train_latency_s: should be <= and a number, such as "<= 60", got "60"'),
        ("train_latency_s", 60, 'should be <= and a number, such as "<= 60", got 60'),
        ("train_latency_s", "<= soon", "should be <= and a finite number"),
        ("train_latency_s", "<= inf", "should be <= and a finite number"),
        ("train_latency_s", ">= 60", 'should be <=, such as "<= 60", got ">= 60": less train_latency_s is better'),
        ("val_accuracy", ">= 90", 'should be >= and a share of 1, such as ">= 0.9", got ">= 90"'),
        ("val_calibration_error", "<= 5", 'should be <= and a share of 1, such as "<= 0.05", got "<= 5"'),
        ("val_accuracy", "<= 0.9", 'should be >=, such as ">= 0.9", got "<= 0.9": less val_accuracy is worse'),
        ("train_latncy_s", "<= 60", "unknown constraint; known are val_accuracy, val_balanced_accuracy, val_macro_f1,"),
        ("train_latncy_s", "<= 60", "peak_memory_mb; did you mean 'train_latency_s'?"),
    ]
    for metric, given, message in mistakes:
        with pytest.raises(RequestError) as refused:
            space_from_dict(small_space(constraints={metric: given}))
        assert message in str(refused.value)
