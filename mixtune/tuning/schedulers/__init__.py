"""What ends trials early: a file is a plug-in, and ``search.scheduler`` names it.

A plug-in module has ``build(space)``, which returns an object with ``continues(trial, metrics) -> bool`` (a trial's id,
and an epoch's metrics as the ledger has them), or None where no trial is ended early; a search that continues tells it
the epochs of the ledger again. One of your own may return a ``ray.tune.schedulers.TrialScheduler`` instead, which sees
what a worker measures: no seconds, which the driver alone prices.
"""

GONE = {"pareto_asha": "since it ended a third and more of what would have been on the front"}
