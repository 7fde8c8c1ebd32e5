"""Which schedule, and which optimizer state, go over the phase boundaries? Measured, because the paper does not say.

    python benchmarks/phase_boundaries.py --root path/to/cifar10

again. Then, or at once with `--table`, it prints the mean and the standard deviation over the seeds. The heads follow
their own loss's schedule in all candidates. Accuracies are on 2,500 validation images; the test images are not looked
at. Accuracy alone counts here: a process trains on one thread, and they share the machine.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

from accuracy_runs import run

RESULTS = Path(__file__).parent / "results" / "phase_boundaries.csv"
NAMES = ["method", "mix_schedule", "carry_state"]
CANDIDATES = [
    *(("mixtraining", schedule, carry) for schedule, carry in product(["sl", "blend", "ssl"], ["yes", "no"])),
    *(("ssl_sl", "", carry) for carry in ["yes", "no"]),
    ("sl", "", ""),
]


def changes(method: str, mix_schedule: str, carry_state: str) -> dict[str, Any]:
    """Return a candidate's dotted recipe values."""
    own = {"sl": {"epochs.ssl": 0}, "ssl_sl": {"rho": 0.0}}.get(method, {"optim.mix_schedule": mix_schedule})
    return {"optim.carry_state": carry_state != "no", **own}


if __name__ == "__main__":
    run(__doc__, RESULTS, NAMES, CANDIDATES, changes)
