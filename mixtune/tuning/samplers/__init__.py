"""Optuna samplers: a file is a plug-in, and ``search.sampler`` names it.

A plug-in module has ``build(space, seed, complete) -> optuna.samplers.BaseSampler``; ``complete`` is how many trials
are. A new sampler is built for every trial, with a seed of its own, so that a suggestion depends on nothing but the
trials before it.
"""
