"""What mkdocs adds to the pages: what the commands print, and the repository's files that pages link to.

``<!-- mixtune list samplers -->`` on a line of its own becomes a table of what that command prints. A page's links lead
out of docs/, as on a code host (``../benchmarks/results/decoding.md``); the files they lead to become part of the site.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from mixtune import catalog
from mixtune.cli import app
from mixtune.space.fields import Described, find_fields

ROOT = Path(__file__).parents[1]
OTHERS = (
    "benchmarks/NOTES.md",
    "benchmarks/results/*.*",
    "benchmarks/tables/*.csv",
    "deploy/*",
    "notebooks/*",
    "mixtune/search_spaces/*",
)
COMMAND = re.compile(r"^<!-- mixtune (.+) -->$", re.MULTILINE)
OUTSIDE = re.compile(r"(?<=\]\()((?:\.\./)+)(?=(?:benchmarks|deploy|notebooks|mixtune/search_spaces)/)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the repository's other files under their own paths."""
    for pattern in OTHERS:
        for path in sorted(ROOT.glob(pattern)):
            if path.is_file():
                files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in what commands print, and let links out of docs/ lead to where those files are on the site."""
    below = page.file.src_uri.count("/")
    if not page.file.src_uri.startswith(("benchmarks/", "notebooks/")):
        markdown = OUTSIDE.sub(lambda up: "../" * below if up[1] == "../" * (below + 1) else up[1], markdown)
    return COMMAND.sub(lambda command: printed(command[1]), markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Leave out what docstrings have for Sphinx: roles before names, and two colons before code."""
    html = re.sub(r":(?:class|func|meth):(?=<code>)", "", html)
    return re.sub(r"::</p>", ":</p>", html.replace("<p>::</p>", ""))


def printed(command: str) -> str:
    """Return what ``mixtune --help``, ``fields`` or ``list KIND`` prints, as Markdown."""
    if command == "--help":
        return help_pages()
    return field_tables() if command == "fields" else listed(command.removeprefix("list "))


def listed(kind: str) -> str:
    """Return ``mixtune list KIND`` as a table."""
    return table((kind, "what it is"), ((f"`{name}`", about) for name, about in catalog.list_kind(kind)))


def field_tables() -> str:
    """Return ``mixtune fields``, a table for each section."""
    sections: dict[str, list[Described]] = {}
    for field in find_fields():
        sections.setdefault(field.path.rpartition(".")[0] or "recipe", []).append(field)
    columns = ("field", "meaning", "values", "default")
    rows = {
        name: [(f"`{f.path}`", f.meaning, f.values, f"`{f.default}`") for f in found]
        for name, found in sections.items()
    }
    return "\n\n".join(f"## {name}\n\n{table(columns, found)}" for name, found in rows.items())


def help_pages() -> str:
    """Return ``mixtune COMMAND --help`` of every command: what it does, an example, its arguments and options."""
    return "\n\n".join(_help(typer.Context(typer.main.get_command(app), info_name="mixtune")))


def _help(above: Any) -> Iterator[str]:
    """Yield a section for each command below one."""
    for name, command in above.command.commands.items():
        here = typer.Context(command, info_name=name, parent=above)
        if hasattr(command, "commands"):
            yield from _help(here)
            continue
        usage = f"{here.command_path} {' '.join(command.collect_usage_pieces(here))}"
        records = [p.get_help_record(here) for p in command.get_params(here) if p.name != "help"]
        rows = [(f"`{record[0]}`", record[1]) for record in records if record]
        options = table(("argument or option", "meaning"), rows)
        yield f"## {here.command_path}\n\n```\n{usage}\n```\n\n{command.help}\n\n{command.epilog}\n\n{options}"


def table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table in Markdown; a cell's line breaks are blanks."""

    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in cells)} |"

    columns = list(columns)
    return "\n".join([line(columns), line(["---"] * len(columns)), *map(line, rows)])
