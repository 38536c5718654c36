"""Tables: by rich at a terminal if it is installed, as plain aligned text there otherwise, and tab-separated elsewhere.

Tab-separated output keeps every column, empty or not, in the documented order, for ``cut`` and ``awk``. A terminal is
shown only the columns that hold something, and not those that are too wide to help.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from registry_drain.cli.command.output import Output, printable, showable

if TYPE_CHECKING:
    from rich.table import Table as RichTable
    from rich.text import Text

Row = Sequence[str]

_WIDEST = 10_000
_ANY_HEIGHT = 25
"""Rich heeds a given width at every terminal, a dumb one included, only together with a height."""
_MOST_BY_RICH = 500
"""Rows. Each costs rich most of a millisecond; thousands are there to be searched, and have to be there at once."""


@dataclass(frozen=True, slots=True)
class Table:
    """Cells, each one line of text, in columns.

    Attributes:
        columns: their headings.
        rows: as many cells each as there are columns.
        numeric: headings of the columns that are aligned to the right.
        title: shown above, at a terminal.
        wide: headings of the columns that a terminal is spared.
        styles: rich's name of a style for a cell's text, wherever it stands: ``{"critical": "red"}``.
    """

    columns: Row
    rows: Sequence[Row]
    numeric: frozenset[str] = frozenset()
    title: str = ""
    wide: frozenset[str] = frozenset()
    styles: dict[str, str] | None = None


def write_table(table: Table, output: Output) -> None:
    """Write ``table`` for whoever reads."""
    if output.is_terminal:
        show_table(compact(table), output)
    elif not (output.is_json or output.is_quiet):
        # A tab inside a cell is escaped like every other control character.
        lines = ["\t".join(printable(cell) for cell in row) for row in (table.columns, *table.rows)]
        output.write("".join(f"{line}\n" for line in lines))


def show_table(table: Table, output: Output) -> None:
    """Write ``table`` for a person, also where that person reads a log."""
    if output.is_json or output.is_quiet:
        return
    if output.is_terminal and len(table.rows) <= _MOST_BY_RICH:
        try:
            output.write(_by_rich(table))
        except ModuleNotFoundError:
            pass
        else:
            return
    output.write(aligned(table))


def aligned(table: Table) -> str:
    """Return ``table`` as plain text."""
    rows = [[printable(cell) for cell in row] for row in (table.columns, *table.rows)]
    widths = [max(len(row[index]) for row in rows) for index in range(len(table.columns))]
    lines = [
        "  ".join(
            cell.rjust(width) if name in table.numeric else cell.ljust(width)
            for cell, width, name in zip(row, widths, table.columns, strict=True)
        ).rstrip()
        for row in rows
    ]
    heading = [table.title] if table.title else []
    return "".join(f"{line}\n" for line in heading + lines)


def compact(table: Table) -> Table:
    """Return ``table`` without the columns that nobody fills, and without the wide ones."""
    kept = [
        index
        for index, name in enumerate(table.columns)
        if name not in table.wide and any(row[index] for row in table.rows)
    ]
    return dataclasses.replace(
        table,
        columns=[table.columns[index] for index in kept],
        rows=[[row[index] for index in kept] for row in table.rows],
    )


def _by_rich(table: Table) -> str:
    """Return ``table`` with rich's lines and colours. Written by others, because they know what to do if that fails."""
    from rich.console import Console
    from rich.measure import Measurement

    shown = rich_table(table)
    console = Console(width=_WIDEST, height=_ANY_HEIGHT)
    # As wide as it needs: in a narrow window the terminal breaks the lines, and an id can still be copied whole.
    widest = Measurement.get(console, console.options, shown).maximum
    console = Console(width=widest, height=_ANY_HEIGHT)
    with console.capture() as captured:
        console.print(shown)
    return captured.get()


def rich_table(table: Table) -> RichTable:
    """Return ``table`` as rich shows it.

    Raises:
        ModuleNotFoundError: there is no rich.
    """
    from rich import box
    from rich.table import Table as RichTable

    shown = RichTable(
        title=table.title or None, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False, show_edge=False
    )
    for name in table.columns:
        shown.add_column(name, justify="right" if name in table.numeric else "left", no_wrap=True)
    styles = table.styles or {}
    for row in table.rows:
        shown.add_row(*(rich_text(cell, styles.get(cell, "")) for cell in row))
    return shown


def rich_text(text: str, style: str = "") -> Text:
    """Return other people's text for standard output: rich reads markup in strings, and cannot write every letter."""
    from rich.text import Text

    return Text(showable(text, sys.stdout), style=style)
