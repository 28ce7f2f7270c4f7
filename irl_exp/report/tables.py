"""A titled table of text: printed and written alike. On a terminal of any width every name and number stays whole."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import IO

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

GAP = "  "
FOLDS = re.compile(r"(?<=[ ,/])(?![^\[]*\])")
"""Where a name may be folded: behind a space, comma or slash, but not within brackets: an interval is one thing."""
NAMES = 24
"""Columns of the terminal below which the names of rows are not folded: rather the table is cut into parts."""
WIDTH = 160
"""Columns of a file, which has no edge."""
LONG = 40
"""A cell that is longer is a text, not a number."""
LONGEST = 600
"""Characters of a text that is shown; the rest is cut off with a mark."""


def visible(text: object) -> str:
    """A text as a page or a terminal may show it: cut where it is very long, and what is not printable by its escape.

    Signs that turn the direction of writing or end a line could make a text look like another one, or like the page.

    >>> visible("a\\x1b[31m\\u202eb\\n")
    'a\\\\x1b[31m\\\\u202eb\\\\n'
    """
    told = str(text)
    told = f"{told[:LONGEST]} ..." if len(told) > LONGEST else told
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in told)


def plain(text: str) -> str:
    """A text in Markdown, where what begins like a tag would be one.

    >>> plain("R* < 0 and <script>")
    'R* < 0 and &lt;script>'
    """
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text)


@dataclass(frozen=True)
class Table:
    """A titled table of text, whose first columns, `names` of them, say what a row is about."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    names: int = 1

    def markdown(self) -> str:
        lines = [self.columns, ("---",) * len(self.columns), *self.rows]
        cells = [[plain(cell).replace("|", "\\|") for cell in line] for line in lines]
        return "\n".join([f"### {plain(self.title)}", "", *("| " + " | ".join(line) + " |" for line in cells), ""])

    def of_columns(self, kept: Sequence[int]) -> Table:
        """The same rows with some of the columns."""
        columns, *rows = [tuple(line[number] for number in kept) for line in (self.columns, *self.rows)]
        return replace(self, columns=columns, rows=tuple(rows))

    @property
    def is_text(self) -> bool:
        """Whether what it says of its rows are texts, which may be folded, rather than numbers, which may not."""
        return any(len(cell) > LONG for row in self.rows for cell in row[self.names :])


def terminal(file: IO[str] | None = None) -> Console:
    """Where text goes, standard output if no `file` is named: as wide as the terminal, and WIDTH columns in a file."""
    console = Console(highlight=False, file=file)
    return console if console.is_terminal else Console(highlight=False, file=file, width=WIDTH)


def show(tables: Sequence[Table], console: Console) -> None:
    """Print tables for people."""
    for table in tables:
        console.print(Text(table.title, style="bold"))
        for line in lines(table, console.width):
            console.print(Text(line), soft_wrap=True)
        console.print()


def lines(table: Table, width: int) -> Iterator[str]:
    """The lines of a table on a terminal of this width.

    Where it is too wide, names are folded, then intervals are put below their numbers, then the columns are laid out
    in several parts one below the other. Texts, and whatever has no room at all, become a line a cell.
    """
    if table.names > 1 and len({row[0] for row in table.rows}) == 1:
        table = replace(table.of_columns(range(1, len(table.columns))), names=table.names - 1)
    natural = [max(map(cell_len, column)) for column in _by_column(table)]
    if _total(natural) <= width:
        yield from _grid(table, natural)
    elif table.is_text:
        yield from _records(table, width)
    else:
        for number, (part, widths) in enumerate(_parts(table, width)):
            yield from [""] if number else []
            yield from _grid(part, widths) if widths else _records(part, width)


def _by_column(table: Table) -> list[tuple[str, ...]]:
    return list(zip(table.columns, *table.rows, strict=True))


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(GAP) * (len(widths) - 1)


def _parts(table: Table, width: int) -> list[tuple[Table, list[int] | None]]:
    """The table as it fits, in as few parts as possible, each with the widths of its columns; None where none fit."""
    return min((_cut(table, width), _cut(_stacked(table), width)), key=len)


def _cut(table: Table, width: int) -> list[tuple[Table, list[int] | None]]:
    """Part after part, each with as many columns as fit."""
    rest, found = list(range(table.names, len(table.columns))), []
    while rest:
        count = len(rest)
        while count > 1 and not _fitted(_with(table, rest[:count]), width):
            count -= 1
        part = _with(table, rest[:count])
        found.append((part, _fitted(part, width)))
        rest = rest[count:]
    return found


def _with(table: Table, columns: Sequence[int]) -> Table:
    """The names and some of the other columns."""
    return table.of_columns([*range(table.names), *columns])


def _stacked(table: Table) -> Table:
    """Each interval below its number."""
    rows = tuple(
        (*row[: table.names], *(re.sub(r"(?<=\S) (?=[\[(±])", "\n", cell) for cell in row[table.names :]))
        for row in table.rows
    )
    return replace(table, rows=rows)


def _fitted(table: Table, width: int) -> list[int] | None:
    """Widths of the columns in which every number is whole, and names are folded at most to NAMES; None if too wide."""
    columns = _by_column(table)
    widths = [
        max(
            [cell_len(word) for word in header.split()]
            + [cell_len(line) for cell in cells for line in cell.split("\n")]
        )
        for header, *cells in columns
    ]
    named = range(table.names)
    natural = [max(widths[number], cell_len(table.columns[number])) for number in named]
    for number in reversed(named):  # what is said last is folded first
        least = min(natural[number], max([NAMES, *map(cell_len, _pieces(columns[number]))]))
        room = width - _total([*widths[:number], 0, *widths[number + 1 :]])
        widths[number] = min(natural[number], max(least, room))
    return widths if _total(widths) <= width else None


def _pieces(names: Sequence[str]) -> list[str]:
    """What names cannot be folded within."""
    return [piece.rstrip() for name in names for piece in FOLDS.split(name)]


def _fold(text: str, width: int) -> list[str]:
    """A text in lines, cut behind a space, comma or slash; a piece that is longer than a line where the line ends."""
    lines = [""]
    for piece in FOLDS.split(text):
        if lines[-1] and cell_len(lines[-1]) + cell_len(piece.rstrip()) > width:
            lines.append("")
        while cell_len(lines[-1] + piece.rstrip()) > width:
            lines[-1], piece = piece[:width], piece[width:]
            lines.append("")
        lines[-1] += piece
    return [line.rstrip() for line in lines]


def _grid(table: Table, widths: Sequence[int]) -> Iterator[str]:
    """Names to the left, numbers to the right; a name that repeats the one above (the cell of a study) is left out."""
    yield from _row(table.columns, widths, table.names)
    yield "─" * _total(widths)
    previous: tuple[str, ...] = ()
    for row in table.rows:
        repeated = table.names > 1 and row[:1] == previous[:1]
        yield from _row(("", *row[1:]) if repeated else row, widths, table.names)
        previous = row


def _row(cells: Sequence[str], widths: Sequence[int], names: int) -> Iterator[str]:
    """The lines of one row."""
    folded = [
        [line for part in cell.split("\n") for line in _fold(part, width)]
        for cell, width in zip(cells, widths, strict=True)
    ]
    for number in range(max(map(len, folded))):
        found = [lines[number] if number < len(lines) else "" for lines in folded]
        padded = [
            text + " " * (width - cell_len(text)) if place < names else " " * (width - cell_len(text)) + text
            for place, (text, width) in enumerate(zip(found, widths, strict=True))
        ]
        yield GAP.join(padded).rstrip()


def _records(table: Table, width: int) -> Iterator[str]:
    """A line a cell, with the name of its column; an empty line between rows."""
    room = max(map(cell_len, table.columns))
    for row in table.rows:
        yield "─" * min(width, room + len(GAP) + NAMES)
        for column, cell in zip(table.columns, row, strict=True):
            first, *more = _fold(cell, max(NAMES, width - room - len(GAP)))
            yield f"{column}{' ' * (room - cell_len(column))}{GAP}{first}"
            yield from (f"{' ' * room}{GAP}{line}" for line in more)
