"""Algorithm 1 before it runs: Eq. 1, the three phases, the names of the methods."""

from __future__ import annotations

from itertools import product

from mixtune.space.effective import mix_epochs
from mixtune.training.plan import make_plan, method_of


def test_the_mix_epochs_of_eq_1_are_exact():
    for rho, ssl, sl, expected in (
        (0.29, 100, 100, 29),  # 0.29 * 100 is 28.999999999999996
        (0.15 * 3, 20, 20, 9),  # a quantised draw: 0.44999999999999996
        (1 / 3, 3, 3, 1),
        (2 / 3, 300, 300, 200),
        (0.5, 5, 9, 2),
        (0.5, 9, 5, 2),
        (1.0, 100, 40, 40),
        (1.0, 0, 100, 0),
        (0.7, 0, 0, 0),
    ):
        assert mix_epochs(rho, ssl, sl) == expected
    for k, n in product(range(1001), (1, 2, 3, 7, 10, 30, 100, 333, 400, 1000)):
        assert mix_epochs(k / 1000, n, n + 5) == k * n // 1000, (k, n)
    for parts, n in product((3, 4, 5, 6, 7, 10, 20, 40, 100), (1, 3, 10, 20, 60, 100)):
        for k in range(parts + 1):
            assert mix_epochs(k * (1 / parts), n, n) == k * n // parts, (k, n)


def test_every_plan_has_algorithm_1s_epochs_in_its_order_and_its_corners_names(make_recipe):
    base = make_recipe()
    for ssl, sl, rho in product(range(7), range(1, 7), (0.0, 0.25, 0.49, 0.5, 0.75, 1.0)):
        epochs = base.epochs.model_copy(update={"ssl": ssl, "sl": sl})
        recipe = base.model_copy(update={"epochs": epochs, "rho": rho})
        plan, mix = make_plan(recipe), int(rho * min(ssl, sl))
        assert [e.phase for e in plan] == ["ssl"] * (ssl - mix) + ["mix"] * mix + ["sl"] * (sl - mix)
        assert [e.index for e in plan] == list(range(ssl + sl - mix))
        assert [e.ssl_epoch for e in plan if e.phase != "sl"] == list(range(ssl))
        assert [e.sl_epoch for e in plan if e.phase != "ssl"] == list(range(sl))
        assert {e.ssl_epoch for e in plan if e.phase == "sl"} <= {None}
        assert {e.sl_epoch for e in plan if e.phase == "ssl"} <= {None}
        # without SSL it is supervised training, and without a mixed epoch, as Eq. 1 may leave, the pipeline
        assert method_of(recipe) == ("sl" if ssl == 0 else "mixtraining" if mix else "ssl_sl"), (ssl, sl, rho)
