"""The README and docs/: links lead somewhere, messages are the program's, every field is described, the site builds."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

from mixtune import cli, plugins
from mixtune.datasets import load_dataset
from mixtune.space.fields import find_fields
from mixtune.space.space import space_from_dict
from mixtune.tuning.suggestions import Suggester

ROOT = Path(__file__).parents[1]
README, DOCS = ROOT / "README.md", sorted((ROOT / "docs").rglob("*.md"))
MAX_README = 12_000  # bytes


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """Return the places in a page that a link may lead to, by its headings, as code hosts and mkdocs name them."""
    headings = re.findall(r"^#+ (.+)$", without_code(path.read_text()), re.MULTILINE)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


@pytest.mark.parametrize("page", [README, *DOCS], ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text())):
        file, _, anchor = link.partition("#")
        if re.match(r"https?:|mailto:", link):
            continue
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        # a page's own headings do not hold what mkdocs fills in from commands
        assert not anchor or anchor in anchors(target) or target.name == "fields.md", link


@pytest.mark.parametrize("page", [README, *DOCS], ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_can_be_typed_as_it_stands(page: Path) -> None:
    """Names and options are the program's; a command in a block has all that it needs, one in a sentence may not."""
    text = page.read_text()
    blocks = re.findall(r"^```\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    typed = [
        line for block in blocks for line in re.findall(r"^(?:.*&& |\$ |.*-- )?mixtune (\S.*)$", block, re.MULTILINE)
    ]
    named = re.findall(r"`mixtune ([a-z][^`\n]*)`", text)
    app = typer.main.get_command(cli.app)
    for line in [*typed, *named]:
        command: Any = app
        context, words = typer.Context(app, info_name="mixtune"), shlex.split(line, comments=True)
        while words and hasattr(command, "commands"):
            name, *words = words
            assert name in command.commands, line
            command = command.commands[name]
        options = {option for parameter in command.get_params(context) for option in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= options, line
        if line in typed:
            command.make_context(command.name, words, parent=context)


def test_the_readme_is_short_and_shows_a_small_picture() -> None:
    text = README.read_text()
    assert len(text.encode()) <= MAX_README
    (picture,) = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert (ROOT / picture).stat().st_size < 150_000


def test_every_field_is_described() -> None:
    assert [field.path for field in find_fields() if not (field.about.endswith(".") and field.values)] == []


def test_every_message_of_the_troubleshooting_page_is_the_programs() -> None:
    texts = {
        node.value
        for path in (ROOT / "mixtune").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    messages = [m for row in re.findall(r"^\| (`.+?) \|", page, re.MULTILINE) for m in re.findall(r"`([^`]+)`", row)]
    assert len(messages) > 70
    for message in messages:
        parts = [part for part in message.split("…") if len(part.strip()) > 3]
        assert all(any(part.strip() in text for text in texts) for part in parts), message


def test_the_site_builds_without_a_warning_and_without_a_network(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="no mkdocs: pip install -e '.[docs]'")
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    quiet = {**os.environ, **nowhere, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    fields = (tmp_path / "site" / "reference" / "fields" / "index.html").read_text()
    assert all(field.path in fields for field in find_fields())
    pages = [path.read_text() for path in (tmp_path / "site").rglob("*.html")]
    loaded = (
        r"<(?:script|img|iframe)[^>]+src=\"https?:|<link[^>]+rel=\"(?:stylesheet|preconnect|icon)\"[^>]+href=\"https?:"
    )
    assert not any(re.search(loaded, page) for page in pages)


def test_the_guides_plugins_can_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block of the page goes to the file that its first line names."""
    page = (ROOT / "docs" / "guides" / "plugins.md").read_text()
    for name, code in re.findall(r"^```python\n# (\w+\.py); (?:[^\n]*)\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        (tmp_path / name).write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "scans").mkdir()
    images = np.arange(40 * 64).reshape(40, 8, 8) % 251
    np.savez(tmp_path / "scans" / "scans.npz", x=images.astype(np.uint8), y=np.arange(40) % 2)
    monkeypatch.setenv("MIXTUNE_DATA", str(tmp_path / "cache"))
    read = load_dataset("my_scans:Scans", str(tmp_path / "scans"))
    assert (read.train.classes, len(read.train.images)) == (("benign", "malignant"), 32)
    space = space_from_dict(
        {
            "recipe": {"data": {"dataset": "digits"}},
            "space": {"alpha": {"uniform": [0, 1]}},
            "search": {"sampler": "my_samplers:Small", "scheduler": "my_schedulers:Floor"},
        }
    )
    suggester = Suggester(space)
    drawn = [suggester.ask(f"t{i}", i)["alpha"] for i in range(2, 10)]
    assert len(set(drawn)) == 8
    assert all(0 <= alpha <= 1 for alpha in drawn)
    floor = plugins.find("tuning.schedulers", space.search.scheduler, "scheduler").build(space)
    assert not floor.continues("t0001", {"sl_progress": 0.5, "val_accuracy": 0.2})
