"""Ray Tune trial schedulers: a file is a plug-in, and ``search.scheduler`` names it.

A plug-in module has ``build(space) -> ray.tune.schedulers.TrialScheduler``.
"""
