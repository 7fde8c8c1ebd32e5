"""Ray Tune's part of a search: it trains the trials that the search hands out."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray import tune

from mixtune import plugins
from mixtune.training.memory import allowed_bytes
from mixtune.training.store import MOST_BYTES
from mixtune.tuning.adapters import Drain, NoReport, SearchCallback, SearchSearcher
from mixtune.tuning.branches import RecipePaths
from mixtune.tuning.callbacks import ForwardedCallback
from mixtune.tuning.cluster import Slots
from mixtune.tuning.costs import Machine
from mixtune.tuning.state import Asked, RunningSearch
from mixtune.tuning.trainable import MixTrainable, SearchContext


def train_trials(
    search: RunningSearch,
    slots: Slots,
    directory: Path,
    machine: Machine,
    paths: RecipePaths,
    callbacks: Sequence[tune.Callback] = (),
) -> bool:
    """Let Ray Tune train the search's trials; return whether Ctrl-C or SIGTERM ended it. ``callbacks``: anyone's."""

    def context(asked: Asked) -> SearchContext:
        share = max(slots.gpus, asked.gpus or 0.0) if slots.gpus else 0.0
        memory = None
        if known := machine.gpu_bytes:
            memory = allowed_bytes(share, known["total"], known["context"])
        return SearchContext(
            directory=str(directory.resolve()),
            cpus=slots.cpus,
            gpus=share,
            threads=machine.threads,
            precision=machine.precision,
            step_times=search.step_times.copy(),
            memory_bytes=memory,
            deadline=search.deadline,
            states_bytes=MOST_BYTES,
            branches=tuple(paths(asked.params).stored_after),
        )

    def resources(config: Mapping[str, Any]) -> tune.PlacementGroupFactory:
        share: SearchContext = config["search"]
        return tune.PlacementGroupFactory([{"CPU": share.cpus, **({"GPU": share.gpus} if share.gpus else {})}])

    space = search.space
    scheduler = plugins.find("tuning.schedulers", space.search.scheduler, "scheduler").build(space)
    if hasattr(scheduler, "rebuild"):  # of ours: Ray's know nothing of a search that goes on
        scheduler.rebuild(search.records.values())
    others = [ForwardedCallback(callback, search, directory) for callback in callbacks]
    with tempfile.TemporaryDirectory(prefix="mixtune-ray-", ignore_cleanup_errors=True) as scratch:
        tuner = tune.Tuner(
            tune.with_resources(MixTrainable, resources),
            tune_config=tune.TuneConfig(
                search_alg=SearchSearcher(search, context),
                scheduler=scheduler,
                num_samples=-1,  # until the searcher says that it is over
                max_concurrent_trials=slots.count,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=scratch,
                callbacks=[SearchCallback(search), *others],
                stop=Drain(search),
                progress_reporter=NoReport(),
                verbose=0,
            ),
        )
        interrupted = False
        try:
            tuner.fit()
        except KeyboardInterrupt:
            interrupted = True
        # outside of the except, which keeps the trials' actors: in a session that is not ours they live on
        if interrupted:
            del tuner
            gc.collect()
    return interrupted
