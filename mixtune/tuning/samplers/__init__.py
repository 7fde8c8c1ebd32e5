"""What suggests recipes: a file is a plug-in, and ``search.sampler`` names it, with options: ``{name: tpe, ...}``.

A plug-in module has either

- ``build(space, seed, complete, **options) -> optuna.samplers.BaseSampler``; ``complete`` is how many trials are. A
  new sampler is built for every trial, with a seed of its own, so that a suggestion depends on nothing but the trials
  before it; ``KIND`` is Optuna's class, whose arguments are the options;
- ``proposer(space, advice, **options)``, which returns an object whose ``propose(seed, staying)`` returns dotted
  parameters, None for ones drawn at random (see :class:`mixtune.tuning.suggestions.Suggester`);
- or ``pick(space) -> (name, why)``, which chooses one of the others.

Optuna's own samplers go by the names of their classes: ``QMCSampler``.
"""
