"""`python -m irl_exp.analysis`: what many runs say, from the files that they left."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

REWARDS = """
FILE.npz holds
  true_reward      (texts,)        ground truth R*; a text is civil where it is at least 0
  learned_rewards  (runs, texts)   one row a run, e.g. a seed
  repeat           (runs,)         optional: names of the runs

and is written by
  numpy.savez("rewards.npz", true_reward=..., learned_rewards=...)

In DIR you find summary.json, runs.csv (all numbers of each run), agreement.csv (rank correlation of each pair of runs)
and the figures runs, threshold and agreement as PNG and PDF. docs/analysis.md explains the numbers with an example.
"""


def parser() -> argparse.ArgumentParser:
    """The command line; each subcommand names the function that does it."""
    root = argparse.ArgumentParser(
        prog="python -m irl_exp.analysis", description="The statistics of many runs, from the files that they left."
    )
    commands = root.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser(
        "rewards",
        help="learned rewards from elsewhere (an .npz file) against the ground truth",
        description="Accuracy, AUROC, correlations and agreement of the learned rewards of many runs.",
        epilog=REWARDS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("file", type=Path, metavar="FILE.npz")
    command.add_argument("--out", type=Path, metavar="DIR", help="where to write; default: ./<name of FILE>_report")
    command.set_defaults(run=rewards)
    return root


def rewards(arguments: argparse.Namespace) -> int:
    """Read, compute, write, print. 2 where the file cannot be read or the folder not written."""
    from irl_exp.analysis import rewards as room

    folder = arguments.out or Path(f"{arguments.file.stem}_report")
    try:
        analysis = room.analyse(room.read(arguments.file))
        room.write(analysis, folder)
    except (room.RewardFileError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    summary = analysis.summary
    title = f"{summary['n_runs']} runs on {summary['n_texts']:,} texts, {summary['n_civil']:,} civil by R*"
    _print(title, ("against R*", "mean", "typical run [95 %]", "sd", "min", "max"), room.rows(analysis))
    method = summary["auroc"].get("typical", {}).get("method")
    print(*([f"typical run: {method}."] if method else []), *room.notes(analysis), f"written: {folder}", sep="\n")
    return 0


def _print(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=160)  # a log file has no edge
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status of the command line."""
    parsed = parser().parse_args(arguments)
    return int(parsed.run(parsed))


if __name__ == "__main__":
    raise SystemExit(main())
