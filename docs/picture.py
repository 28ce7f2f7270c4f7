"""Draw the tables of a launch as the SVG pictures of the README.

python docs/picture.py multirun/chain/<time> docs/run.svg 'python launch.py'
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

from rich.console import Console as RichConsole

from irl_exp.launch.console import Console
from irl_exp.report import cells, studies, verdict

ABOUT = {"job", "overrides", "cell", "status", "seconds", "error"}


def outcomes(folder: Path) -> list[cells.Outcome]:
    """The jobs of a launch, read back from its runs.csv."""
    with (folder / "runs.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [_outcome(row, folder) for row in rows]


def _outcome(row: dict[str, str], folder: Path) -> cells.Outcome:
    metrics = {key: float(value) for key, value in row.items() if key not in ABOUT and value}
    about = (int(row["job"]), row["overrides"], folder / row["job"], row["status"])
    if row["status"] != "completed":
        return cells.Outcome(*about)
    facts = cells.flat(json.loads((folder / row["job"] / "config.json").read_text(encoding="utf-8")))
    return cells.Outcome(*about, metrics=metrics, facts=facts)


def main() -> None:
    folder, picture, command = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    console = Console(1)
    console.rich = RichConsole(record=True, width=124, highlight=False, file=sys.stdout)
    found = outcomes(folder)
    console.tell(verdict.of_launch(found).text())
    console.say("")
    console.tables(studies.tables(found))
    picture.write_text(console.rich.export_svg(title=command), encoding="utf-8")


if __name__ == "__main__":
    main()
