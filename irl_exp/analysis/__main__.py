"""`python -m irl_exp.analysis`: what many runs say, from the files that they left."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from irl_exp.report import verdict
from irl_exp.report.tables import Table, show, terminal

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


STUDY = """
FOLDER is one of
  multirun/<study>                   the newest launch of the study that has results
  multirun/<study>/<time>            a launch
  multirun/<study>/<time>/<job>      one run

Several folders make one page: cells are named so that they tell the runs of the launches apart, a job that two launches
have counts once, and what differs between the launches is told. It is written beside the newest of them.

In DIR you find index.html (opens offline, holds all figures), each figure as PNG and PDF, the tables as CSV, and
summary.json with all numbers. A launch of several jobs has written this already; use the command for a launch that was
interrupted, or after an update. Jobs without a result are listed, never averaged around.

Rewards from elsewhere (an .npz file): python -m irl_exp.analysis rewards --help
"""


def study_parser() -> argparse.ArgumentParser:
    """The command line for the runs of a launch."""
    command = argparse.ArgumentParser(
        prog="python -m irl_exp.analysis",
        usage="%(prog)s [-h] [--out DIR] FOLDER [FOLDER ...]\n       %(prog)s rewards [-h] [--out DIR] FILE.npz",
        description="The report of a study: statistics, figures and one page, from the files that its runs left.",
        epilog=STUDY,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="of a study, a launch or a run")
    command.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where to write; default: report/ of the launch, or a folder named after all launches beside the newest",
    )
    return command


def study(arguments: argparse.Namespace) -> int:
    """Read, compute, draw, write, print. 2 where there is no run with a result or the folder cannot be written."""
    from irl_exp.analysis import html, page, report, together
    from irl_exp.analysis import study as room

    console = terminal(sys.stderr)
    try:
        found = room.read(*arguments.folders) if len(arguments.folders) == 1 else together.read(arguments.folders)
        with console.status("report") as status:
            written = report.write(
                found, arguments.out, progress=lambda what, done, total: status.update(f"{what} {done}/{total}")
            )
    except (room.StudyError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(verdict.of_launch(html.outcomes(found)).text(), end="\n\n")
    show(page.number_tables(found), terminal())
    print(*html.notes(found), sep="\n")
    for name, reason in written.missing.items():
        print(f"not computed: {name} ({reason})")
    print(f"written: {written.page}")
    return 0


def rewards_parser() -> argparse.ArgumentParser:
    """The command line for rewards from elsewhere."""
    command = argparse.ArgumentParser(
        prog="python -m irl_exp.analysis rewards",
        description="Accuracy, AUROC, correlations and agreement of the learned rewards of many runs with R*.",
        epilog=REWARDS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("file", type=Path, metavar="FILE.npz")
    command.add_argument("--out", type=Path, metavar="DIR", help="where to write; default: ./<name of FILE>_report")
    return command


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
    columns = ("against R*", "mean", "typical run [95 %]", "sd", "min", "max")
    show([Table(title, columns, tuple(room.rows(analysis)))], terminal())
    method = summary["auroc"].get("typical", {}).get("method")
    print(*([f"typical run: {method}."] if method else []), *room.notes(analysis), f"written: {folder}", sep="\n")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status of the command line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["rewards"]:
        return rewards(rewards_parser().parse_args(given[1:]))
    return study(study_parser().parse_args(given))


if __name__ == "__main__":
    raise SystemExit(main())
