"""What the reference writes on the prompts of the demonstrations: completions.parquet, one row a completion.

log_probability is its own of the whole completion, in nats, missing on fit.

A stage of its own: all experts on one reference share it, and it does not wait for any of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from irl_exp.config import DemonstrationsConfig
from irl_exp.machinery.runtime import Context
from irl_exp.policies.demonstrated import BASELINE, judged, places_of, write
from irl_exp.policies.language_models import Policy
from irl_exp.policies.likelihood import log_probabilities

VERSION = 2
WRITES = True


def run(config: DemonstrationsConfig, *, reference: Path, data: Path, context: Context) -> dict[str, Any]:
    places = places_of(pd.read_parquet(data / "texts.parquet"), config)
    policy, rows = Policy.load(reference, context.device), judged(places)
    written = write(policy, BASELINE, places, config, context)
    frame = written.frame().assign(log_probability=np.nan)
    frame.loc[rows, "log_probability"] = log_probabilities(policy, written[rows])
    frame.to_parquet(context.folder / "completions.parquet")
    return {"note": f"{len(written):,} completions of the reference"}
