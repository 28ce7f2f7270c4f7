"""A titled table of text: printed and written alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table as RichTable


@dataclass(frozen=True)
class Table:
    """A titled table of text."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        lines = [self.columns, ("---",) * len(self.columns), *self.rows]
        cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
        return "\n".join([f"### {self.title}", "", *("| " + " | ".join(line) + " |" for line in cells), ""])


def terminal(*, stderr: bool = False) -> Console:
    """Where text goes: as wide as the terminal, and 160 columns in a file, which has no edge."""
    console = Console(highlight=False, stderr=stderr)
    return console if console.is_terminal else Console(highlight=False, stderr=stderr, width=160)


def show(tables: Sequence[Table], console: Console) -> None:
    """Print tables for people."""
    for table in tables:
        rich = RichTable(title=table.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
        for number, column in enumerate(table.columns):
            short = number > 0 and all(len(row[number]) < 40 for row in table.rows)
            rich.add_column(column, justify="left" if number == 0 else "right", overflow="fold", no_wrap=short)
        previous = ""
        for row in table.rows:
            # A repeated first cell (the cell of a study) is shown once.
            rich.add_row("" if row[0] == previous and len(table.columns) > 3 else row[0], *row[1:])
            previous = row[0]
        console.print(rich)
