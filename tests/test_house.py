"""The house rules that hold for every room."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import mixtune
from mixtune import plugins
from mixtune.backbone import choose_patch_size
from mixtune.cost.flops import Size, recipe_flops
from mixtune.space.recipe import Epochs
from mixtune.space.space import override, parse_override
from mixtune.training.plan import make_plan

ROOT = Path(__file__).parents[1]


def test_imports_run_one_way_and_ray_and_optuna_stay_in_their_room() -> None:
    """The contracts stand in pyproject.toml under [tool.importlinter]."""
    command = Path(sys.executable).with_name("lint-imports")
    lint = subprocess.run([command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert lint.returncode == 0, lint.stdout


def test_importing_mixtune_loads_nothing_heavy() -> None:
    heavy = ["torch", "ray", "optuna", "pandas", "numpy", "plotly", "timm", "sklearn", "pydantic", "yaml"]
    code = f"import mixtune, sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_looking_at_a_run_and_checking_a_space_load_no_torch(make_run: Callable[..., Path]) -> None:
    """Nor Ray, nor Optuna, and a space no pandas either; a linter does not see an import by name."""
    run = make_run([(0.5, 5.0), (0.9, 10.0)], {"sl": {"val_accuracy": 0.4, "train_latency_s": 3.0}})
    code = (
        "import sys, mixtune\n"
        f"for path in {[str(path) for path in SPACES]!r}:\n    mixtune.load_space(path)\n"
        "assert not {'torch', 'timm', 'ray', 'optuna', 'pandas'} & set(sys.modules)\n"
        "from mixtune.catalog import KINDS\n"
        "from mixtune.cli import main\n"
        f"words = [[word, {str(run)!r}] for word in ('pareto', 'status', 'report')]\n"
        "for given in (['fields'], ['fields', 'rho'], *(['list', kind] for kind in KINDS), *words):\n"
        "    sys.argv = ['mixtune', *given]\n"
        "    try:\n        main()\n    except SystemExit as ended:\n        assert not ended.code\n"
        "assert not {'torch', 'timm', 'ray'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_training_works_where_ray_and_optuna_are_not_installed() -> None:
    """A machine that only trains needs neither: both are made impossible to import here."""
    code = (
        "import sys; sys.modules['ray'] = sys.modules['optuna'] = None\n"
        "import mixtune\n"
        "recipe = {'data': {'dataset': 'digits', 'fraction': 0.1}, 'epochs': {'ssl': 1, 'sl': 1},"
        " 'model': {'patch_size': 4, 'embed_dim': 16, 'depth': 1, 'num_heads': 2}, 'optim': {'batch_size': 32}}\n"
        "print(mixtune.train(recipe).metrics.epochs_trained)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2"


def test_every_distribution_that_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    named = [*project["dependencies"], *extras["heic"], *extras["tensorboard"]]
    declared = {re.split(r"[^\w.-]", name)[0].lower().replace("_", "-") for name in named}
    imported: set[str] = set()
    for path in (ROOT / "mixtune").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                imported.add(node.module.partition(".")[0])
    found = packages_distributions()
    for name in imported - sys.stdlib_module_names - {"mixtune"}:
        assert {each.lower().replace("_", "-") for each in found.get(name, [name])} & declared, name


def test_every_public_name_can_be_had_and_is_documented() -> None:
    for name in mixtune.__all__:
        assert getattr(mixtune, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'serch'"):
        _ = mixtune.serch  # type: ignore[attr-defined]


def test_the_version_is_said_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "version" not in project
    assert project["dynamic"] == ["version"]


def test_every_plugin_has_what_its_folder_promises() -> None:
    for folder, contract in {
        "datasets": ("read", "fingerprint"),
        "objectives": ("Settings", "build"),
        "tuning.loggers": ("build",),
        "tuning.schedulers": ("build",),
        "report.figures": ("compute", "draw"),
    }.items():
        for module in plugins.modules(folder):
            assert all(hasattr(module, part) for part in contract), module
            assert module.__doc__, module
    for module in plugins.modules("tuning.samplers"):
        assert sum(hasattr(module, part) for part in ("build", "proposer", "pick")) == 1, module
        assert module.__doc__, module


SPACES = sorted((ROOT / "search_spaces").glob("*.yaml"))
PAPER_SPACES = [path for path in SPACES if path.stem not in ("digits", "few_labels", "image_folder", "accelerated")]

# method.md, "The paper's settings": base_lr, betas, weight_decay, warmup_epochs
SMALL_IMAGES = ((1.5e-4, (0.9, 0.95), 0.05, 20), (1e-3, (0.9, 0.95), 0.05, 5))  # CIFAR-10, CIFAR-100, SVHN: SSL, SL
TINY_IMAGENET = ((1e-3, (0.9, 0.95), 0.15, 20), (2e-3, (0.9, 0.999), 0.05, 5))


def header(path: Path) -> str:
    """Return a ready space's comment lines as one line of text, wrapped as they may be."""
    return " ".join(line.removeprefix("# ") for line in path.read_text().partition("recipe:")[0].splitlines())


def named_overrides(text: str) -> list[tuple[str, Any]]:
    """Return what every --set in a text sets, as (path, value)."""
    given = re.findall(r"--set (?:'([^']*)'|([^\s,:;]+(?<!\.)))", text)
    return [parse_override(quoted or plain) for quoted, plain in given]


def paper_table(*numbers: int) -> pd.DataFrame:
    """Return the rows of some of the paper's tables."""
    rows = pd.read_csv(ROOT / "mixtune" / "report" / "paper_results.csv")
    return rows[rows["table"].isin(numbers)]


def test_every_ready_space_is_valid_and_opens_with_its_command_time_and_result() -> None:
    for path in SPACES:
        space = mixtune.load_space(path)
        assert space.space
        first, *others = path.read_text().partition("recipe:")[0].splitlines()
        assert first.startswith(f"# mixtune search {path.stem}")
        measured = any("CPU cores: " in line and "minutes; a front" in line for line in others)
        goal = any(line.startswith("# Goal, not measured: ") for line in others)
        assert measured != goal, path
        assert goal == (path in PAPER_SPACES or path.stem == "accelerated"), path
        costs = any(line.startswith("# Cost: ") and f" {space.budget} trials of " in line for line in others)
        assert costs or not goal, path


def test_what_a_ready_space_says_can_be_set_can_be_set() -> None:
    for path in SPACES:
        recipe, named = mixtune.load_space(path).recipe, named_overrides(header(path))
        for name, value in named:
            # how wide a crop may be is nothing without how large it may be
            needs = {n: v for n, v in named if (name, n) == ("augment.crop_ratio", "augment.crop_scale")}
            assert override(recipe, {**needs, name: value}) != override(recipe, needs), (path, name)


@pytest.mark.parametrize("path", PAPER_SPACES, ids=lambda path: path.stem)
def test_the_papers_spaces_have_the_papers_settings(path: Path) -> None:
    space = mixtune.load_space(path)
    recipe = space.recipe
    for name, value in space.extremes():
        space.recipe_at({name: value})
    tiny = recipe.data.dataset == "tiny_imagenet"
    tiny_ssl = tiny or recipe.data.ssl_dataset == "tiny_imagenet"
    expected = (TINY_IMAGENET if tiny_ssl else SMALL_IMAGES)[0], (TINY_IMAGENET if tiny else SMALL_IMAGES)[1]
    optim = recipe.optim
    rates = [(s.base_lr, s.betas, s.weight_decay, s.warmup_epochs) for s in (optim.ssl, optim.sl)]
    assert tuple(rates) == expected
    assert (optim.batch_size, optim.ssl.schedule, optim.sl.schedule) == (256, "cosine", "cosine")
    image_size = 64 if tiny else 32
    assert recipe.model.name == "vit_tiny_patch16_224"
    assert choose_patch_size(image_size, recipe.model.patch_size) == (4 if tiny else 2)
    assert (recipe.model.embed_dim, recipe.model.depth, recipe.model.num_heads) == (None, None, None)
    assert recipe.epochs == Epochs(ssl=100, sl=100)
    assert (recipe.alpha, recipe.lambda_) == (0.5, 0.5)
    assert recipe.rho == (0.75 if path.stem == "paper_alpha" else 0.5)
    assert recipe.augment.ssl != tiny_ssl
    assert recipe.data.statistics == ("imagenet" if tiny else "auto")
    assert (recipe.augment.pad, recipe.augment.flip) in ((None, 0.5), (4, 0.5))  # None is 4 at 32 pixels
    shape = recipe.augment.crop_scale, recipe.augment.crop_ratio, recipe.augment.randaugment
    assert (shape == ((0.6, 1.0), (0.9, 1.1), (2, 9))) == tiny


def test_the_goals_are_the_papers_figures() -> None:
    for name, table, ssl_dataset, dataset in (
        ("cifar10", 1, "CIFAR-10", "CIFAR-10"),
        ("cifar100", 1, "CIFAR-100", "CIFAR-100"),
        ("tinyimagenet", 1, "TinyImageNet", "TinyImageNet"),
        ("tinyimagenet_to_cifar10", 2, "TinyImageNet", "CIFAR-10"),
        ("tinyimagenet_to_cifar10", 2, "TinyImageNet", "CIFAR-100"),
        ("cifar10_svhn", 3, "CIFAR-10+SVHN", "CIFAR-10+SVHN"),
        ("cifar10_svhn", 16, "CIFAR-10+SVHN", "SVHN"),
    ):
        said = header(ROOT / "search_spaces" / f"{name}.yaml")
        rows = paper_table(table).query("data_percent == 100 and epochs == 100")
        rows = rows[(rows["ssl_dataset"] == ssl_dataset) & (rows["dataset"] == dataset)].set_index("method")
        methods = ["mixtraining"] if table == 16 else ["mixtraining", "ssl_sl", "sl"]
        figures = [f"{rows['accuracy_percent'][method]:g} %" for method in methods]
        places = [said.index(figure) for figure in figures]
        assert places == sorted(places), name
        assert str(table) in re.findall(r"\d+", re.findall(r"Tables? ([\d and]+)", said)[0]), name
        if dataset in (ssl_dataset, "CIFAR-10"):
            assert f"(the paper's took {rows['train_latency_s']['mixtraining']:,.0f} s)" in said, name


def test_the_papers_studies_have_the_tables_values_and_can_be_turned_to_tinyimagenet() -> None:
    own = mixtune.load_space(ROOT / "search_spaces" / "tinyimagenet.yaml").recipe
    for name, tables, swept in (
        ("paper_alpha", [4], {"alpha": "alpha"}),
        ("paper_rho", [5], {"rho": "rho"}),
        ("paper_epochs", [6, *range(8, 17)], {"epochs.ssl": "epochs", "epochs.sl": "epochs"}),
    ):
        path = ROOT / "search_spaces" / f"{name}.yaml"
        space, said, rows = mixtune.load_space(path), header(path), paper_table(*tables)
        values = {path: tuple(rows[column].unique()) for path, column in swept.items()}
        assert {path: d.grid() for path, d in space.space.items()} == values
        column = next(iter(swept.values()))
        here = rows.query("ssl_dataset == 'CIFAR-10' and data_percent == 100 and method == 'mixtraining'")
        *several, last = (f"{row.accuracy_percent:g}" for row in here.sort_values(column).itertuples())
        assert f"{', '.join(several)} and {last} %" in said
        for other in ("CIFAR100", "tiny_imagenet", "[CIFAR10, SVHN]"):
            assert f"data.dataset={other}" in said, name
        turned = mixtune.load_space(path, dict(named_overrides(said.partition("TinyImageNet by")[2]))).recipe
        assert (turned.optim, turned.augment, turned.data.statistics) == (own.optim, own.augment, own.data.statistics)
        assert turned.data.dataset == own.data.dataset


def test_the_costs_are_the_forecasts() -> None:
    for name, images, image_size in (
        ("cifar10", [50_000], 32),
        ("tinyimagenet", [100_000], 64),
        ("cifar10_svhn", [50_000, 73_257], 32),
        ("paper_alpha", [50_000], 32),
        ("accelerated", [50_000], 32),
    ):
        path = ROOT / "search_spaces" / f"{name}.yaml"
        recipe = mixtune.load_space(path).recipe
        size = Size(image_size, 3, classes=(10,) * len(images), images=tuple(images))
        flops = round(sum(recipe_flops(recipe, size).values()) / 1e15)
        epochs = len(make_plan(recipe))
        said = (f"the base recipe, {epochs} epochs, has {flops} ", f"of {epochs} epochs and {flops} PFLOP each")
        assert any(figure in header(path) for figure in said), name
