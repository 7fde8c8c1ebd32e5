"""Loggers of a search: a file is a plug-in, and ``mixtune search --log-to NAME`` names it.

A plug-in module has ``build() -> ray.tune.Callback``, and raises RequestError where a package is missing. What a
logger is told of a search: see mixtune.tuning.loggers._forward. Files belong below ``trial.local_path``.
"""
