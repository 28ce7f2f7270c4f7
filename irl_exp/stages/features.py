"""phi of every demonstration, in the order of demonstrations.parquet: features.safetensors, (rows, d) float32.

A stage of its own because all seeds and losses of a sweep share it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from safetensors.numpy import save_file

from irl_exp.config import FeaturesConfig
from irl_exp.features import extract
from irl_exp.policies import Completions, Policy
from irl_exp.runtime import Context

VERSION = 1


def run(config: FeaturesConfig, *, demonstrations: Path, reference: Path, context: Context) -> dict[str, Any]:
    completions = Completions.from_frame(pd.read_parquet(demonstrations / "demonstrations.parquet"))
    backbone = Policy.load(reference, context.device)
    features = extract(config, backbone, completions, progress=context.progress)
    save_file({"features": features}, context.folder / "features.safetensors")
    return {"note": f"{features.shape[0]:,} x {features.shape[1]}"}
