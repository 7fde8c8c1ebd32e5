"""What do `wsd` schedules cost or gain alongside `cosine`? With them recipes of different budgets share their stages.

    python benchmarks/schedules.py --root path/to/cifar10

trains every pair of schedules for each seed on 10 % of CIFAR-10 (a folder of images, a class a folder) with a small
ViT, 20+20 epochs, and adds a row a run to benchmarks/results/schedules.csv; runs that stand there already are not
trained again. Then, or at once with `--table`, it prints the mean and the standard deviation over the seeds. All else
is the default. Accuracies are on 2,500 validation images; a process trains on one thread.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accuracy_runs import run

RESULTS = Path(__file__).parent / "results" / "schedules.csv"
NAMES = ["ssl_schedule", "sl_schedule"]
CANDIDATES = [("cosine", "cosine"), ("wsd", "wsd"), ("cosine", "wsd"), ("wsd", "cosine")]


def changes(ssl_schedule: str, sl_schedule: str) -> dict[str, Any]:
    """Return a candidate's dotted recipe values."""
    return {"optim.ssl.schedule": ssl_schedule, "optim.sl.schedule": sl_schedule}


if __name__ == "__main__":
    run(__doc__, RESULTS, NAMES, CANDIDATES, changes)
