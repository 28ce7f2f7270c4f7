"""One run: all nodes together, where it runs and where it is recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import AfterValidator, Field, model_validator

from irl_exp.config.data import BenchmarkConfig, DataConfig, NoBenchmark
from irl_exp.config.irl import IrlConfig
from irl_exp.config.models import ModelConfig
from irl_exp.config.nodes import Count, Interpolated, Node, Seed
from irl_exp.config.objectives import of_select
from irl_exp.config.policies import (
    DemonstrationsConfig,
    EvaluateConfig,
    PolicyOptimizationConfig,
    RefinetuneConfig,
    SftConfig,
)
from irl_exp.config.rewards import RewardConfig
from irl_exp.config.shortcuts import NoShortcut, ShortcutConfig

STAGES = ("sft", "rlhf", "demonstrations", "irl", "refinetune", "evaluate")
"""The stages that `until` may name, in the order in which they run."""

PART_OF = {"features": "irl"}
"""Stages that run for another one alone."""


class TrackingConfig(Node):
    """Where runs are recorded, beside their own folder."""

    mode: Literal["wandb", "offline", "none"] = Field("wandb", description="wandb: online with an account")
    project: str = Field("irl-exp", description="W&B project")
    entity: str | None = Field(None, description="W&B user or team")
    tags: tuple[str, ...] = Field((), description="tags of every run")


class StoreConfig(Node):
    """The content-addressed store of stage results; may be shared by processes and machines."""

    dir: Annotated[Path, Interpolated("${oc.env:IRL_EXP_STORE,multirun/store}")] = Field(
        description="folder of the results of stages"
    )


class Config(Node):
    """One run of the chain."""

    name: str = Field("chain", pattern=r"^[\w.-]+$", description="of the study: folder under multirun/, W&B group")
    seed: Seed = Field(0, description="root seed; every stage follows it unless its own seed is set")
    until: Literal["sft", "rlhf", "demonstrations", "irl", "refinetune", "evaluate"] = Field(
        "evaluate", description="stop after this stage and evaluate what exists"
    )
    max_new_tokens: Count = Field(32, description="longest completion, in every stage")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: the first visible GPU, else the CPU; Apple's (mps) is not used"
    )
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 on a GPU that has it")
    threads: Count = Field(1, description="CPU threads a process; results are repeatable for a fixed number")
    workers: Annotated[int, Field(ge=0)] = Field(0, description="jobs at once; 0: one a core, one on a GPU")
    fail_fast: bool = Field(False, description="stop at the first job that fails; else the others go on")
    objective: Annotated[str | None, AfterValidator(of_select)] = Field(
        None, description="metric of select for a sweeper such as optuna; irl/select_loss"
    )
    report: bool = Field(True, description="after several jobs write the page of the study, with figures and tables")
    store: StoreConfig
    model: ModelConfig
    data: DataConfig
    reward: RewardConfig
    sft: SftConfig
    rlhf: PolicyOptimizationConfig
    demonstrations: DemonstrationsConfig
    irl: IrlConfig
    refinetune: RefinetuneConfig
    shortcut: ShortcutConfig
    benchmark: Annotated[NoBenchmark | BenchmarkConfig, Field(discriminator="name")]
    evaluate: EvaluateConfig
    tracking: TrackingConfig

    @model_validator(mode="after")
    def _has_objective(self) -> Self:
        if self.objective is None:
            return self
        if not self.reaches("irl"):
            raise ValueError(f"objective={self.objective}: until={self.until} stops before irl")
        if self.objective not in self.irl.objectives:
            found = ", ".join(self.irl.objectives) or "no metric of select: it fits nothing that select chooses"
            raise ValueError(f"objective={self.objective}: irl={self.irl.name} has {found}")
        return self

    def reaches(self, stage: str) -> bool:
        """Whether `until` lets this stage run. What exists by then is evaluated."""
        part = PART_OF.get(stage, stage)
        return part not in STAGES or part == "evaluate" or STAGES.index(part) <= STAGES.index(self.until)

    def planted(self, where: str | None = None) -> Node | None:
        """The shortcut, if one is planted there; `None` stands for anywhere."""
        shortcut = self.shortcut
        return None if isinstance(shortcut, NoShortcut) or where not in (None, shortcut.where) else shortcut

    @property
    def second_prompts(self) -> Node | None:
        """The second set of prompts to judge policies on, if there is one."""
        return None if isinstance(self.benchmark, NoBenchmark) else self.benchmark


assert get_args(Config.model_fields["until"].annotation) == STAGES
