"""A plug-in is a file, found by its name; a wrong name lists the right ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixtune import plugins
from mixtune.errors import RequestError

FOLDERS = ("datasets", "objectives", "tuning.samplers", "tuning.schedulers", "report.figures")


def mistake(folder: str, name: str, kind: str) -> str:
    with pytest.raises(RequestError) as caught:
        plugins.find(folder, name, kind)
    with pytest.raises(RequestError) as checked:
        plugins.check_name(folder, name, kind)
    assert str(checked.value) == str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that Python imports from."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_the_names_are_the_files_and_find_the_plugins() -> None:
    for folder in FOLDERS:
        place = Path(plugins.__file__).parent / folder.replace(".", "/")
        files = sorted(path.stem for path in place.glob("*.py") if not path.name.startswith("_"))
        assert plugins.names(folder) == files
        assert [module.__name__ for module in plugins.modules(folder)] == [f"mixtune.{folder}.{name}" for name in files]
    assert plugins.find("objectives", "mae", "objective").__name__ == "mixtune.objectives.mae"


def test_an_unknown_name_lists_the_known_and_the_closest() -> None:
    message = mistake("tuning.samplers", "tpee", "sampler")
    assert (
        message
        == "unknown sampler 'tpee': known are auto, cost_aware, gp, grid, nsga2, random, tpe; did you mean 'tpe'?"
    )
    assert mistake("objectives", "MAE", "objective").endswith("; did you mean 'mae'?")
    assert mistake("objectives", "zzz", "objective") == "unknown objective 'zzz': known are dino, mae, mocov3, simclr"
    assert mistake("datasets", "_cache", "dataset").startswith("unknown dataset '_cache': known are arrays, digits, ")


def test_code_elsewhere_joins_by_module_and_name(elsewhere: Path) -> None:
    (elsewhere / "my_sampler.py").write_text("class Mine:\n    build = print\n")
    assert plugins.find("tuning.samplers", "my_sampler:Mine", "sampler").build is print
    plugins.check_name("tuning.samplers", "my_sampler:Mine", "sampler")


def test_a_malformed_name_is_told_its_form() -> None:
    for name in ("a:", ":b", ".a:b", "a..b:c", "a:b:c", "a b:c", "C:\\x", "a:b.c"):
        expected = f"sampler {name!r} should be a name, or package.module:name for code of your own"
        assert mistake("tuning.samplers", name, "sampler") == expected


def test_code_elsewhere_that_cannot_be_imported_says_why(elsewhere: Path) -> None:
    (elsewhere / "broken_sampler.py").write_text("def build(:\n")
    (elsewhere / "empty_sampler.py").touch()
    for module, reason in (
        ("no_such", "No module named 'no_such': install it, or put its folder into PYTHONPATH"),
        ("empty_sampler", "module 'empty_sampler' has no attribute"),
        ("broken_sampler", "invalid syntax"),
    ):
        message = mistake("tuning.samplers", f"{module}:build", "sampler")
        assert message.startswith(f"sampler '{module}:build' cannot be imported: {reason}")


def test_a_plugin_of_another_script_is_a_line_that_says_where_to_put_it() -> None:
    hint = "only the script or notebook that defines it can: put it into a file, and name file:Mine"
    assert mistake("datasets", "__main__:Mine", "dataset") == f"dataset '__main__:Mine' cannot be imported here: {hint}"
