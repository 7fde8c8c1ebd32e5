"""Tables as text: for a terminal, as Markdown."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text


def terminal_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    title: str | None = None,
    caption: str | None = None,
    styles: Mapping[int, str] | None = None,
    rules: Collection[int] = (),
    wrapped: Collection[int] = (),
    padding: int = 1,
) -> Table:
    """Return a table for a terminal, its first column at the left.

    styles: of rows, by number; rules: rows that a line stands above; wrapped: columns of text, at the left; padding:
    blanks between columns besides one, and with 0 cells are broken where there is no room for them.
    """
    table = Table(title=title, caption=caption, title_justify="left", box=box.SIMPLE_HEAD)
    table.padding, table.show_edge = (0, padding, 0, 0), False
    for number, name in enumerate(header):
        is_text = number == 0 or number in wrapped
        whole = max((len(cells[number]) for cells in rows), default=0) if padding and number not in wrapped else None
        justify: Literal["left", "right"] = "left" if is_text else "right"
        table.add_column(Text(name), justify=justify, overflow="fold", min_width=whole)
    for number, cells in enumerate(rows):
        if number in rules and number:
            table.add_section()
        # Text, because rich would read a list such as [0.9] in a plain string as markup
        table.add_row(*map(Text, cells), style=(styles or {}).get(number))
    return table


def fits(table: Table, width: int) -> bool:
    """Return whether a table needs at most ``width`` characters."""
    unbounded = Console(width=10_000)
    return Measurement.get(unbounded, unbounded.options, table).maximum <= width


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown, its first column at the left."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
