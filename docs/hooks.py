"""What mkdocs adds to the pages: what the commands print, and the repository's files that pages link to.

``<!-- mixtune list samplers -->`` on a line of its own becomes a table of what that command prints. A page's links lead
out of docs/, as on a code host (``../benchmarks/results/decoding.md``); the files they lead to become part of the site.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
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
OTHERS = ("benchmarks/NOTES.md", "benchmarks/results/*.*", "deploy/*", "notebooks/*", "mixtune/search_spaces/*")
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
    """Return what a command of mixtune prints, as Markdown."""
    words = command.split()
    pages: dict[str, Callable[[], str]] = {"--help": help_pages, "fields": field_tables}
    return listed(words[1]) if words[0] == "list" else pages[words[0]]()


def listed(kind: str) -> str:
    """Return ``mixtune list KIND`` as a table."""
    return table((kind, "what it is"), ((f"`{name}`", about) for name, about in catalog.list_kind(kind)))


def field_tables() -> str:
    """Return ``mixtune fields``, a table for each section, in which every field is a place to link to."""
    sections: dict[str, list[Described]] = {}
    for field in find_fields():
        sections.setdefault(field.path.rpartition(".")[0] or "recipe", []).append(field)
    return "\n\n".join(f"## {name}\n\n{_fields(fields)}" for name, fields in sections.items())


def _fields(fields: Iterable[Described]) -> str:
    rows = ((f"`{f.path}`", f.meaning, f.values, f"`{f.default}`") for f in fields)
    return table(("field", "meaning", "values", "default"), rows)


def help_pages() -> str:
    """Return ``mixtune COMMAND --help`` of every command: what it does, its arguments and options, an example."""
    context = typer.Context(typer.main.get_command(app), info_name="mixtune")
    return "\n\n".join(_help(context, name) for name in context.command.list_commands(context))  # type: ignore


def _help(context: Any, name: str) -> str:
    command = context.command.get_command(context, name)
    here = typer.Context(command, info_name=name, parent=context)
    if hasattr(command, "list_commands"):
        return "\n\n".join(_help(here, below) for below in command.list_commands(here))
    usage = " ".join(command.collect_usage_pieces(here))
    rows = []
    for parameter in command.get_params(here):
        if (record := parameter.get_help_record(here)) and parameter.name != "help":
            rows.append((f"`{record[0]}`", record[1]))
    said = (command.help or "").strip()
    example = (command.epilog or "").strip()
    return f"## {here.command_path}\n\n```\n{here.command_path} {usage}\n```\n\n{said}\n\n{example}\n\n" + (
        table(("argument or option", "meaning"), rows)
    )


def table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table in Markdown; a cell's line breaks are blanks."""

    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in cells)} |"

    columns = list(columns)
    return "\n".join([line(columns), line(["---"] * len(columns)), *map(line, rows)])
