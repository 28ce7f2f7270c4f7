"""What the reference writes on the prompts of the demonstrations: completions.parquet, one row a completion.

A stage of its own: all experts on one reference share it, and it does not wait for any of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from irl_exp.config import DemonstrationsConfig
from irl_exp.machinery.runtime import Context
from irl_exp.policies.demonstrated import BASELINE, places_of, write
from irl_exp.policies.language_models import Policy

VERSION = 1


def run(config: DemonstrationsConfig, *, reference: Path, data: Path, context: Context) -> dict[str, Any]:
    places = places_of(pd.read_parquet(data / "texts.parquet"), config)
    written = write(Policy.load(reference, context.device), BASELINE, places, config, context)
    written.frame().to_parquet(context.folder / "completions.parquet")
    return {"note": f"{len(written):,} completions of the reference"}
