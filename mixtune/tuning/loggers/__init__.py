"""Loggers of a search: a file is a plug-in, and ``mixtune search --log-to NAME`` names it.

A plug-in module has ``build(folder)``, which returns a function that is called with a trial's record
(mixtune.run.ledger.TrialRecord) after each of its events, and raises RequestError where a package is missing. Files
belong below ``folder``. Ray Tune's own loggers are given to Ray: see ``callbacks`` of mixtune.search.
"""

from __future__ import annotations

from collections.abc import Callable

from mixtune.run.ledger import TrialRecord

Logger = Callable[[TrialRecord], None]
