"""A completed run, opened again: `irl_exp.load("multirun/<name>/<time>/0")`.

run = irl_exp.load("multirun/chain")            # the newest launch of a study: its first run with a result
run.metrics["irl/auroc"]
run.completions                                 # a frame: what the policies wrote on test, judged
run.policies["refinetuned"]                     # a folder that AutoModelForCausalLM opens
reward = run.reward                             # scores any text
reward.score(reward.reference.complete(["I read your post and"], [" you are a clown."]))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from irl_exp.analysis import study

if TYPE_CHECKING:  # they import torch, which a look at the metrics does not need
    import pandas as pd

    from irl_exp.irl.learned_rewards import LearnedReward

POLICIES = {"reference": "sft", "expert": "rlhf", "refinetuned": "refinetune"}
"""The stages that make the policies."""


class RunError(Exception):
    """What a run does not have, and how to get it."""


@dataclass(frozen=True)
class Run:
    """One completed run.

    Attributes:
        folder: of the run.
        name: its overrides.
        config: config.json, by dotted key: "irl.loss.name" -> "hinge".
        metrics: metrics.json.
        artifacts: the folder in the store of each stage that the store still has.
    """

    folder: Path
    name: str
    config: Mapping[str, Any]
    metrics: Mapping[str, float]
    artifacts: Mapping[str, Path]

    @cached_property
    def completions(self) -> pd.DataFrame:
        """completions.parquet: what each policy wrote on the test prompts, and what the rewards say of it."""
        import pandas as pd

        return pd.read_parquet(self.folder / "completions.parquet")

    @property
    def policies(self) -> dict[str, Path]:
        """Folders of the policies: reference, expert, refinetuned, as far as the run went."""
        return {role: self.artifacts[stage] for role, stage in POLICIES.items() if stage in self.artifacts}

    @cached_property
    def reward(self) -> LearnedReward:
        """The learned reward, which scores any text.

        Raises:
            RunError: the run stopped before irl, or the store has the reward no more.
        """
        from irl_exp.irl.learned_rewards import LearnedReward
        from irl_exp.machinery.runtime import find_device

        return LearnedReward.load(self._artifact("irl"), find_device("auto", "auto", threads=1))

    def _artifact(self, stage: str) -> Path:
        """The folder of a stage that has to be there."""
        if f"artifacts.{stage}" not in self.config:
            until = self.config.get("until")
            raise RunError(f"{self.folder}: until={until} stopped before {stage}; launch it with until={stage}.")
        if stage not in self.artifacts:
            raise RunError(
                f"{self.folder}: the store {self.config.get('store.dir')} has no {stage}/"
                f"{self.config[f'artifacts.{stage}']}; the same launch again computes it, IRL_EXP_STORE or "
                "store.dir= says where the store lies."
            )
        return self.artifacts[stage]


def load(folder: str | PathLike[str]) -> Run:
    """A run by its folder, or the first one with a result of a launch, or of the newest launch of a study.

    Raises:
        study.StudyError: there is no run with a result.
    """
    found = study.read(Path(folder))
    run = found.runs[0]
    stages = [key.removeprefix("artifacts.") for key in run.config if key.startswith("artifacts.")]
    places = {stage: found.artifact(run, stage) for stage in stages}
    artifacts = {stage: place for stage, place in places.items() if place is not None}
    return Run(run.folder, run.name, run.config, run.metrics, artifacts)
