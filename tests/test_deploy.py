"""The cluster configurations in deploy/ are what their programs read, and the commands in them are ours."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml
from click.testing import CliRunner
from ray.scripts.symmetric_run import symmetric_run

from mixtune.cli import app

DEPLOY = Path(__file__).parents[1] / "deploy"


def assert_is_a_command(words: list[str], tmp_path: Path) -> None:
    """Parse our command line, with files in place of variables and of paths that are another machine's."""
    space = tmp_path / "space.yaml"
    space.write_text("recipe: {}\n")
    command = typer.main.get_command(app)
    name, *rest = words[1:]
    rest = [str(space) if word.endswith(".yaml") or word == "$space" else word for word in rest]
    found = command.get_command(typer.Context(command), name)  # type: ignore[attr-defined]
    found.make_context(name, rest)


def test_the_job_of_kubernetes_searches_or_continues(tmp_path: Path) -> None:
    job = yaml.safe_load((DEPLOY / "rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        pod = group["template"]["spec"]
        claimed = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= claimed
            assert container["resources"]["limits"] == container["resources"]["requests"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    (workers,) = cluster["workerGroupSpecs"]
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    shell, flag, script = shlex.split(job["spec"]["entrypoint"])
    assert (shell, flag) == ("sh", "-c")
    subprocess.run(["sh", "-n", "-c", script], check=True)
    commands = [
        part.split() for part in script.replace("then", ";").replace("else", ";").split(";") if "mixtune" in part
    ]
    ours = [words for words in commands if words[0] == "mixtune"]
    assert [words[1] for words in ours] == ["resume", "search"]
    for words in ours:
        assert_is_a_command(words, tmp_path)


@pytest.mark.parametrize("is_run", [False, True])
def test_the_script_for_slurm_starts_ray_on_every_node_and_searches_or_continues(tmp_path: Path, is_run: bool) -> None:
    """With SLURM's two commands replaced by ones that print what they are given."""
    (tmp_path / "bin").mkdir()
    for name, does in {"scontrol": "echo node-a; echo node-b", "srun": 'printf "%s\\n" "$@"'}.items():
        stand_in = tmp_path / "bin" / name
        stand_in.write_text(f"#!/bin/sh\n{does}\n")
        stand_in.chmod(0o755)
    run = tmp_path / "run"
    if is_run:
        run.mkdir()
        (run / "space.yaml").touch()
    job = {"SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_JOB_ID": "31234", "SLURM_JOB_NUM_NODES": "2"}
    job["SLURM_CPUS_PER_TASK"] = "8"
    done = subprocess.run(
        ["bash", DEPLOY / "slurm.sh", "space.yaml", run],
        env={"PATH": f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:/usr/bin:/bin", **job},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    given = done.stdout.splitlines()
    assert given[:4] == ["--nodes=2", "--ntasks=2", "ray", "symmetric-run"]
    start, ours = given[4 : given.index("--")], given[given.index("--") + 1 :]
    assert start == ["--address", "node-a:21234", "--min-nodes", "2", "--num-cpus=8", "--num-gpus=0"]
    assert CliRunner().invoke(symmetric_run, [*start[:4], "--help"]).exit_code == 0
    assert ours[:2] == ["mixtune", "resume" if is_run else "search"]
    assert_is_a_command(ours, tmp_path)
