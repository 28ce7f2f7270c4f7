"""What a job returns to a sweeper such as optuna: the one number of select that `objective` names."""

from __future__ import annotations

import json
from pathlib import Path

from irl_exp.config import Config


def of_run(config: Config, folder: Path) -> float:
    """The objective of a completed run, from its folder and the store: of the epoch that select has kept.

    An ensemble has it as the mean over its members, of the epoch that is best for this mean.
    """
    from irl_exp.machinery.store import read_manifest

    assert config.objective is not None
    digest = json.loads((folder / "config.json").read_text(encoding="utf-8"))["artifacts"]["irl"]
    learned = config.store.dir / "irl" / digest
    name = config.objective.removeprefix("irl/")
    info = read_manifest(learned)["info"]
    if name in info:  # of a method without epochs
        return float(info[name])
    rows = [json.loads(line) for line in (learned / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    return float(min(rows, key=lambda row: row["select_loss"])[name])
