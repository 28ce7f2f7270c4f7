"""What a policy writes on prompts, and what R* and the second judge say of it: the same on every set of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from irl_exp.config import BenchmarkConfig, EvaluateConfig
from irl_exp.machinery.runtime import Context, Device
from irl_exp.policies.language_models import Completions, Policy
from irl_exp.policies.likelihood import log_probabilities, of_whole
from irl_exp.policies.sampling import completed, sample
from irl_exp.rewards.ground_truth import GroundTruth, load_ground_truth


@dataclass(frozen=True)
class Judges:
    """The reference policy, and R* and the second judge where there is an R*: opened once, when first asked for."""

    folder: Path
    reward: Path | None
    second_judge: Path | None
    device: Device

    @cached_property
    def reference(self) -> Policy:
        return Policy.load(self.folder, self.device)

    @cached_property
    def truth(self) -> GroundTruth | None:
        return load_ground_truth(self.reward, self.device) if self.reward else None

    @cached_property
    def second(self) -> GroundTruth | None:
        return load_ground_truth(self.second_judge, self.device) if self.second_judge else None


def judged(
    name: str,
    folder: Path,
    prompts: Sequence[str],
    config: EvaluateConfig | BenchmarkConfig,
    judges: Judges,
    context: Context,
) -> tuple[Completions, pd.DataFrame]:
    """Completions of the policy in `folder`, and one row for each: texts, token counts, log-probabilities (nats), R*.

    Without an R* its columns are not there, and with another tokenizer than the reference's nor is the reference's
    log-probability. prompt_id is the place of the prompt in `prompts`.
    """
    reference, repeats = judges.reference, config.completions_per_prompt
    policy = Policy.load(folder, judges.device, base=reference)
    asked = [prompt for prompt in prompts for _ in range(repeats)]
    prompt_ids = policy.encode_prompts(asked)
    written = sample(
        policy,
        prompt_ids,
        max_new_tokens=config.max_new_tokens,
        batch_size=config.batch_size,
        seed=config.seed,
        progress=context.progress,
    )
    completions = completed(policy, asked, prompt_ids, written)
    frame = completions.frame().assign(policy=name, prompt_id=[row // repeats for row in range(len(completions))])
    frame["tokens"] = list(map(len, completions.completion_ids))
    frame["length"] = frame["tokens"] - completions.ended(*policy.ends)
    frame["log_probability"] = own = of_whole(policy, prompt_ids, written)
    if policy.tokenizer.get_vocab() == reference.tokenizer.get_vocab():
        itself = folder == judges.folder
        frame["reference_log_probability"] = own if itself else log_probabilities(reference, completions)
    for column, judge in (("truth", judges.truth), ("second", judges.second)):
        if judge:
            frame[column] = judge.score(completions)
    return completions, frame
