"""Draw the tables of a launch as the SVG pictures of the README.

python docs/picture.py multirun/chain/<time> docs/run.svg 'python launch.py'
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from rich.console import Console as RichConsole

from irl_exp.launch.console import Console
from irl_exp.report import cells, studies

ABOUT = {"job", "overrides", "cell", "status", "seconds", "error"}


def outcomes(folder: Path) -> list[cells.Outcome]:
    """The jobs of a launch, read back from its runs.csv."""
    with (folder / "runs.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [_outcome(row, folder) for row in rows]


def _outcome(row: dict[str, str], folder: Path) -> cells.Outcome:
    metrics = {key: float(value) for key, value in row.items() if key not in ABOUT and value}
    about = (int(row["job"]), row["overrides"], folder / row["job"], row["status"])
    return cells.Outcome(*about, metrics=metrics if row["status"] == "completed" else None)


def main() -> None:
    folder, picture, command = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    console = Console(1)
    console.rich = RichConsole(record=True, width=124, highlight=False, file=sys.stdout)
    console.tables(studies.tables(outcomes(folder)))
    picture.write_text(console.rich.export_svg(title=command), encoding="utf-8")


if __name__ == "__main__":
    main()
