"""phi of every demonstration, in the order of demonstrations.parquet: features.safetensors, (rows, d) float32.

Beside it `human`, phi of the texts of test that people wrote, as data.test_texts gives them.

A stage of its own because all seeds, losses and methods of a sweep share it. `featurizer/` makes the same features of
other completions; what of it is fitted has seen the completions of fit, and no label.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from irl_exp.config import FeaturesConfig
from irl_exp.irl.features import Featurizer
from irl_exp.machinery.runtime import Context
from irl_exp.machinery.tensors import write
from irl_exp.policies.language_models import Completions, Policy
from irl_exp.texts.data import WITHOUT_LABELS, test_texts

VERSION = 3


def run(
    config: FeaturesConfig, *, demonstrations: Path, reference: Path, data: Path, context: Context
) -> dict[str, Any]:
    frame = pd.read_parquet(demonstrations / "demonstrations.parquet")
    completions = Completions.from_frame(frame)
    policy = Policy.load(reference, context.device)
    featurizer = Featurizer.fit(config, policy, completions[(frame["part"] == "fit").to_numpy()])
    features = featurizer.extract(completions, progress=context.progress)
    human = test_texts(pd.read_parquet(data / "texts.parquet", columns=WITHOUT_LABELS))
    written = policy.complete(human["prompt"].tolist(), human["completion"].tolist())
    others = featurizer.extract(written) if len(written) else np.empty((0, features.shape[1]), dtype=np.float32)
    featurizer.save(context.folder / "featurizer")
    write(context.folder / "features.safetensors", {"features": features, "human": others})
    return {"note": f"{'+'.join(config.parts)}, {features.shape[0]:,} x {features.shape[1]}"}
