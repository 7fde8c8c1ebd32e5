"""A state continues bit for bit, and depends on nothing that comes later."""

from __future__ import annotations

import io
from dataclasses import asdict

import pytest
import torch
from same_bits import assert_equal_bits

from mixtune.training.data import load_training_data
from mixtune.training.loop import train
from mixtune.training.measure import measure
from mixtune.training.state import start_state


def saved(state):
    """Return the bytes of torch.save(state.state_dict())."""
    file = io.BytesIO()
    torch.save(state.state_dict(), file)
    return file.getvalue()


def loaded(held):
    return torch.load(io.BytesIO(held), weights_only=True)


def boundaries(state):
    """Train to the end; return the saved state at each epoch boundary, the start included."""
    return [saved(state), *(saved(state) for _ in train(state))]


LONG = {"epochs.ssl": 4, "epochs.sl": 4, "rho": 0.5}  # two epochs of each phase


@pytest.fixture(scope="module")
def uninterrupted(make_state):
    return boundaries(make_state(LONG))


def test_another_seed_gives_other_weights_from_the_start(make_state, uninterrupted):
    first, other = loaded(uninterrupted[0]), make_state({**LONG, "seed": 1}).state_dict()
    for part, name in (("backbone", "vit.pos_embed"), ("objective", "mask_token"), ("classifiers", "0.head.weight")):
        assert not torch.equal(first[part][name], other[part][name])


def test_a_saved_state_goes_on_as_if_it_had_not_been_interrupted(make_state, uninterrupted):
    for epochs, held in enumerate(uninterrupted):
        state = make_state(LONG)
        state.load_state_dict(loaded(held))
        assert len(state.history) == epochs
        assert_equal_bits(state.state_dict(), loaded(held))
        for after, result in enumerate(train(state), start=epochs + 1):
            assert result.epoch == after
            assert_equal_bits(state.state_dict(), loaded(uninterrupted[after]))
        assert [result.phase for result in state.history] == ["ssl", "ssl", "mix", "mix", "sl", "sl"]
        assert list(train(state)) == []


def test_a_state_that_has_gone_on_can_be_set_back(make_state, uninterrupted):
    state = make_state(LONG)
    epochs = train(state)
    for _ in range(4):
        next(epochs)
    state.load_state_dict(loaded(uninterrupted[1]))
    list(train(state))
    assert_equal_bits(state.state_dict(), loaded(uninterrupted[-1]))


def test_validation_does_not_change_training(make_recipe, uninterrupted):
    recipe = make_recipe(LONG)
    state = start_state(recipe, load_training_data(recipe))
    for _ in train(state):
        measure(state)
        state.backbone.eval()  # as a validation leaves it
    assert_equal_bits(state.state_dict(), loaded(uninterrupted[-1]))


def test_recipes_that_differ_later_agree_until_then_and_no_longer(make_state, uninterrupted):
    for changes, shared in (
        ({"alpha": 0.9}, 2),  # the SSL phase
        ({"optim.sl.base_lr": 0.1, "optim.sl.weight_decay": 0.3, "optim.sl.betas": (0.8, 0.99)}, 2),
        ({"epochs.sl": 5}, 2),  # e_mix is 2 as well
        ({"rho": 0.25}, 2),  # the SSL phase of 2 epochs is the beginning of that of 3
        ({"rho": 0.75}, 1),
        ({"rho": 0.0}, 2),
    ):
        other = boundaries(make_state({**LONG, **changes}))
        for epochs in range(shared + 1):
            assert_equal_bits(loaded(uninterrupted[epochs]), loaded(other[epochs]))
        one, two = loaded(uninterrupted[shared + 1])["backbone"], loaded(other[shared + 1])["backbone"]
        assert not all(torch.equal(one[name], two[name]) for name in one), changes


def test_lambda_comes_into_play_with_the_mix_phase(make_state, write_crops):
    folder = {"data.ssl_dataset": "image_folder", "data.ssl_root": write_crops(20)}
    one, other = (boundaries(make_state({**LONG, **folder, "lambda": value})) for value in (0.3, 0.7))
    assert_equal_bits(loaded(one[2]), loaded(other[2]))
    assert not torch.equal(
        loaded(one[3])["classifiers"]["0.head.weight"], loaded(other[3])["classifiers"]["0.head.weight"]
    )


def test_supervised_epochs_do_not_depend_on_the_ssl_objective(make_state):
    one, other = (boundaries(make_state({"epochs.ssl": 0, **changes})) for changes in ({}, {"ssl.mask_ratio": 0.5}))
    assert_equal_bits(loaded(one[-1])["backbone"], loaded(other[-1])["backbone"])


def test_a_state_holds_plain_values_and_the_epochs_it_was_made_by(make_state):
    state = make_state({"rho": 0.5})
    list(train(state))
    held = loaded(saved(state))
    assert set(held) == {"backbone", "objective", "classifiers", "optimizer", "history"}
    assert held["history"] == [asdict(result) for result in state.history]
    assert [(r["epoch"], r["phase"]) for r in held["history"]] == [(1, "ssl"), (2, "mix"), (3, "sl"), (4, "sl")]
