"""What a step time belongs to: what changes the work of a step changes its cost signature, and nothing else does."""

from __future__ import annotations

import json
from itertools import product

from mixtune.training.bill import cost_factors, cost_signature, data_shape
from mixtune.training.plan import PHASES

MACHINE = {"device": "x86_64 CPU, 1 thread", "threads": 1, "precision": "float32"}
SHAPE = {"image_size": 8, "channels": 1, "two_datasets": False, "classes": [10], "images_on": "cpu"}


def signature(recipe, phase="mix", **changes):
    machine, shape = ({k: changes.get(k, v) for k, v in part.items()} for part in (MACHINE, SHAPE))
    return cost_signature(cost_factors(recipe, phase, shape=shape, **machine))


def test_what_changes_the_work_of_a_step_changes_its_signature_and_nothing_else_does(make_recipe):
    idle = {"alpha": 0.1, "lambda": 0.9, "rho": 0.25, "seed": 3, "data.fraction": 0.7, "data.val_fraction": 0.3}
    idle |= {"epochs.ssl": 9, "epochs.sl": 9, "optim.ssl.warmup_epochs": 1}
    idle |= {"optim.sl.base_lr": 0.1, "optim.ssl.base_lr": 0.1}
    of_ssl = ({"ssl.mask_ratio": 0.5}, {"ssl.encode": "full"})
    of_all = ({"model.depth": 3}, {"optim.batch_size": 16}, {"augment.randaugment": (2, 9)}, {"compile": True})
    for phase, changes in product(PHASES, (idle, *of_ssl, *of_all)):
        same = changes is idle or (phase == "sl" and changes in of_ssl)
        assert (signature(make_recipe(changes), phase) == signature(make_recipe(), phase)) == same, (phase, changes)


def test_machines_and_data_have_signatures_of_their_own(make_recipe):
    others = {"device": "NVIDIA H200", "threads": 2, "precision": "bfloat16", "image_size": 16, "channels": 3}
    for name, value in (*others.items(), ("classes", [10, 10]), ("classes", [100]), ("two_datasets", True)):
        assert signature(make_recipe(), **{name: value}) != signature(make_recipe()), (name, value)


def test_phases_have_signatures_of_their_own_which_a_ledger_keeps(make_state):
    state = make_state()
    factors = [state.factors(phase) for phase in PHASES]
    assert len({cost_signature(f) for f in factors}) == 3
    assert [cost_signature(json.loads(json.dumps(f))) for f in factors] == [cost_signature(f) for f in factors]
    assert data_shape(state.data) == SHAPE
    assert cost_signature(factors[1]) == signature(state.recipe, **{**MACHINE, "device": factors[1]["device"]})
