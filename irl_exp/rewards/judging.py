"""What a policy writes on prompts, and what R* and the second judge say of it: the same on every set of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from irl_exp.config import BenchmarkConfig, EvaluateConfig
from irl_exp.machinery.runtime import Context
from irl_exp.policies.language_models import Completions, Policy
from irl_exp.policies.likelihood import log_probabilities
from irl_exp.policies.sampling import generate
from irl_exp.rewards.ground_truth import load_ground_truth


@dataclass(frozen=True)
class Judges:
    """Where R*, the second judge and the reference policy lie."""

    reward: Path
    second_judge: Path
    reference: Path


def judged(
    name: str,
    folder: Path,
    prompts: Sequence[str],
    config: EvaluateConfig | BenchmarkConfig,
    judges: Judges,
    context: Context,
) -> tuple[Completions, pd.DataFrame]:
    """Completions of the policy in `folder`, and one row for each: texts, token counts, log-probabilities (nats), R*.

    prompt_id is the place of the prompt in `prompts`.
    """
    device, repeats = context.device, config.completions_per_prompt
    policy, reference = Policy.load(folder, device), Policy.load(judges.reference, device)
    completions = generate(
        policy,
        [prompt for prompt in prompts for _ in range(repeats)],
        max_new_tokens=config.max_new_tokens,
        batch_size=config.batch_size,
        seed=config.seed,
        progress=context.progress,
    )
    frame = completions.frame().assign(policy=name, prompt_id=[row // repeats for row in range(len(completions))])
    frame["tokens"] = list(map(len, completions.completion_ids))
    frame["length"] = frame["tokens"] - completions.ended(policy.eos)
    frame["log_probability"] = log_probabilities(policy, completions)
    frame["reference_log_probability"] = log_probabilities(reference, completions)
    frame["truth"] = load_ground_truth(judges.reward, device).score(completions)
    frame["second"] = load_ground_truth(judges.second_judge, device).score(completions)
    return completions, frame
