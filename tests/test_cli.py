"""The command line: what comes before anything slow, and what holds for every command."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import mixtune
from mixtune.cli import app, main
from mixtune.space.document import ready_space

Run = Callable[..., tuple[int, str, str]]
QUICK = "--quick: 4 of 6 trials, at most 4 of 5 epochs in a budget; "


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], small_space: Callable[..., Any]
) -> Run:
    """Return a function: a command where space.yaml is; its exit status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(small_space()))

    def command(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mixtune", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return command


def test_a_mistake_in_the_request_comes_before_torch_and_ray_are_loaded(tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text("recipe: {data: {dataset: digits}}\nspace: {alhpa: {uniform: [0, 1]}}\n")
    code = (
        "import sys; sys.modules['torch'] = sys.modules['ray'] = sys.modules['optuna'] = None\n"
        "from mixtune.cli import main\n"
        "for word in ('search', 'train', 'compare', 'gradient-error'):\n"
        "    for space in ('no.yaml', 'space.yaml'):\n"
        "        sys.argv = ['mixtune', word, space]\n"
        "        try:\n            main()\n        except SystemExit as ended:\n            assert ended.code == 2\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    missing = "mixtune: no.yaml: no such file (there is: space.yaml); did you mean 'space.yaml'?"
    wrong = "mixtune: space.yaml:2: space.alhpa: no field of a recipe; did you mean 'alpha'?"
    assert (done.returncode, done.stderr.splitlines()) == (0, [missing, wrong] * 4)


def test_a_ready_space_is_copied_and_nothing_is_overwritten(run: Run, tmp_path: Path) -> None:
    assert run("spaces", "copy", "digits") == (0, "written: digits.yaml; next: mixtune search digits.yaml\n", "")
    assert (tmp_path / "digits.yaml").read_bytes() == ready_space("digits").read_bytes()
    assert run("spaces", "copy", "digits")[2].startswith("mixtune: digits.yaml is there already")
    assert run("spaces", "copy", "digts")[2].endswith("did you mean 'digits'?\n")


def test_the_version_by_the_command_and_by_the_module() -> None:
    for words in (["-m", "mixtune"], ["-c", "from mixtune.cli import main; main()"]):
        done = subprocess.run([sys.executable, *words, "--version"], capture_output=True, text=True, check=True)
        assert done.stdout == f"mixtune {mixtune.__version__}\n"


def test_every_out_can_be_written_short_and_every_command_has_an_example() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert {"search", "fields", "list", "spaces"} <= set(commands)
    for name, command in (commands | commands.pop("spaces").commands).items():
        assert command.epilog.startswith("Example: `mixtune "), name
        for option in command.params:
            assert "--out" not in option.opts or "-o" in option.opts, name


def test_a_dry_run_shows_what_set_and_quick_made_of_the_space(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    words = ("--set", "alpha=0.25", "--set", "space.rho={choice: [0, 1]}", "--quick", "--gpus", "0", "--dry-run")
    status, out, err = run("search", "space.yaml", *words)
    assert status == 0, err
    assert any(line.startswith(QUICK) for line in err.splitlines())
    assert caplog.messages[0] == "--set alpha=0.25 fixes what the space searches"
    space = yaml.safe_load(out.partition("\n\n")[0])
    assert (space["recipe"]["alpha"], space["search"]["trials"]) == (0.25, 4)
    assert space["space"] == {"rho": {"choice": [0, 1]}, "epochs.sl": {"randint": [2, 5]}}
    assert not Path("runs").exists()


def test_output_may_fail_and_the_command_is_done(tmp_path: Path, small_space: Callable[..., Any]) -> None:
    """A pipe that is closed after a line, a full disk, a standard output that is closed: no file of ours takes it."""
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(small_space()))
    mixtune_command = str(Path(sys.executable).with_name("mixtune"))
    train = subprocess.Popen(
        [mixtune_command, "train", "space.yaml", "-o", "one"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert train.stdout is not None
    assert train.stdout.readline()
    train.stdout.close()
    _, said = train.communicate()
    assert (train.returncode, b"Error" in said) == (0, False)
    assert (tmp_path / "one" / "metrics.json").exists()
    for where, said in (
        (">/dev/full", "mixtune: done, but what was printed could not be written: No space left on device\n"),
        (">/dev/full 2>&1", ""),
        (">&-", ""),
        ("| true", ""),
    ):
        words = ["sh", "-c", f'"$0" spaces copy digits -o "${{1}}" {where}', mixtune_command, f"{len(where)}.yaml"]
        done = subprocess.run(words, cwd=tmp_path, stderr=subprocess.PIPE, text=True, check=False)
        assert (done.stderr, done.returncode) == (said, int("full" in where)), where
        assert (tmp_path / words[-1]).read_bytes() == ready_space("digits").read_bytes()


def test_a_field_is_explained_and_an_unknown_one_is_a_line(run: Run) -> None:
    status, out, _ = run("fields", "optim.ssl.base_lr")
    assert (status, "values   number above 0" in out, "default  0.00015" in out) == (0, True, True)
    assert "optim.sl.schedule" in run("fields", "optim")[1]
    assert run("fields", "epochs.sll") == (
        2,
        "",
        "mixtune: epochs.sll: no field of a recipe; did you mean 'epochs.sl'?\n",
    )
    assert "cost_aware" in run("list", "samplers")[1]


def test_a_report_goes_where_it_is_told_and_several_runs_into_a_file_of_their_own(
    run: Run, make_run: Callable[..., Path], tmp_path: Path
) -> None:
    one, other = make_run([(0.5, 5.0)], name="one"), make_run([(0.6, 6.0)], name="other")
    assert run("report", str(one))[:2] == (0, f"report: {one / 'report.html'}\n")
    elsewhere = tmp_path / "page.html"
    assert run("report", str(one), "--watch", "-o", str(elsewhere))[:2] == (0, f"report: {elsewhere}\n")
    assert run("report", str(one), str(other), "-o", str(elsewhere))[0] == 0
    assert "The fronts" in elsewhere.read_text()
    status, _, said = run("report", str(one), str(other))
    assert (status, said.count("\n")) == (2, 1)
    assert "give --out FILE.html" in said
    assert "is a folder" in run("report", str(one), "-o", str(tmp_path))[2]


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (("report", "RUN", "-o"), "a report that mixtune wrote"),
        (("report", "RUN", "OTHER", "-o"), "a report that mixtune wrote"),
        (("inspect", "digits", "--sheet"), "a picture that mixtune drew"),
    ],
)
def test_a_file_of_another_kind_is_not_written_over(
    words: tuple[str, ...], kind: str, run: Run, make_run: Callable[..., Path], tmp_path: Path
) -> None:
    named = {"RUN": str(make_run([(0.5, 5.0)], name="one")), "OTHER": str(make_run([(0.6, 6.0)], name="other"))}
    mine = tmp_path / "mine"
    mine.write_text("the only copy")
    status, _, said = run(*(named.get(word, word) for word in words), str(mine))
    assert (status, said) == (
        2,
        f"mixtune: {mine} is there already, and not {kind}: give another file, or move it away\n",
    )
    assert mine.read_text() == "the only copy"
    mine.unlink()
    for _ in range(2):  # its own is replaced
        assert run(*(named.get(word, word) for word in words), str(mine))[0] == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2])
def test_a_command_that_is_interrupted_as_it_begins_says_so(number: signal.Signals, tmp_path: Path) -> None:
    command = subprocess.Popen(
        [str(Path(sys.executable).with_name("mixtune")), "search", "digits", "--out", "run"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where the tests run by nohup
    )
    assert command.stderr is not None
    assert command.stderr.readline() == "starting: PyTorch and Ray are being loaded\n"
    command.send_signal(number)
    assert command.communicate()[1] == "mixtune: interrupted\n"
    assert command.returncode == 130
    assert list(tmp_path.iterdir()) == []
