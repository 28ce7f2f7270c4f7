"""What may be said of a completion: phrases, properties, tokens of the log-ratio, sparse units; R is not seen.

candidates.json: what each is, and which families were left out; values.safetensors: `values` (n, k) float32, one row a
demonstration, in their order. A stage of its own because all seeds and methods of IRL on the same features share it.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.numpy import save_file

from irl_exp.config import ExplainConfig
from irl_exp.explain import candidates
from irl_exp.machinery.runtime import Context
from irl_exp.machinery.tensors import mapped
from irl_exp.policies.language_models import Policy

VERSION = 2


def run(
    config: ExplainConfig,
    *,
    demonstrations: Path,
    features: Path | None = None,
    expert: Path | None = None,
    reference: Path | None = None,
    context: Context,
) -> dict[str, Any]:
    frame = pd.read_parquet(demonstrations / "demonstrations.parquet")
    policies = _policies(expert, reference, context) if config.log_ratio.on and expert and reference else None
    inputs = mapped(features / "features.safetensors")["features"] if features else None
    table, left_out = candidates.table(frame, config, features=inputs, policies=policies)
    kept = {"candidates": [asdict(one) for one in table.candidates], "left_out": left_out}
    (context.folder / "candidates.json").write_text(json.dumps(kept), encoding="utf-8")
    # safetensors writes the memory as it lies, whatever the order of its axes.
    save_file({"values": np.ascontiguousarray(table.values)}, context.folder / "values.safetensors")
    counts = Counter(one.family for one in table.candidates)
    return {"note": ", ".join(f"{count} {family}" for family, count in counts.items())}


def _policies(expert: Path, reference: Path, context: Context) -> tuple[Policy, Policy] | None:
    """Tuned and base, where both read the tokens of the demonstrations, which are the base's."""
    base = Policy.load(reference, context.device)
    tuned = Policy.load(expert, context.device, base=base)
    return (tuned, base) if tuned.tokenizer.get_vocab() == base.tokenizer.get_vocab() else None
