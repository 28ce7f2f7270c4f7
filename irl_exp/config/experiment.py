"""One run: all nodes together, where it runs and where it is recorded."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self, get_args

from pydantic import AfterValidator, Field, model_validator

from irl_exp.config.data import BenchmarkConfig, DataConfig, ExpertTextsConfig, NoBenchmark
from irl_exp.config.executor import ClusterExecutor, ExecutorConfig, LocalExecutor
from irl_exp.config.experts import CheckpointExpert, ExpertConfig, RlhfExpert, TextsExpert
from irl_exp.config.explain import ExplainConfig, NoExplain
from irl_exp.config.irl import ImplicitConfig, IrlConfig
from irl_exp.config.models import POSITIONS, ModelConfig
from irl_exp.config.nodes import Count, Interpolated, Node, Place, Seed
from irl_exp.config.objectives import of_select
from irl_exp.config.policies import (
    AdapterConfig,
    DemonstrationsConfig,
    EvaluateConfig,
    LoraConfig,
    NoAdapter,
    RefinetuneConfig,
    RlhfConfig,
    SftConfig,
)
from irl_exp.config.rewards import NoReward, RewardConfig
from irl_exp.config.sampler import OwnSampler, SamplerConfig, VllmSampler
from irl_exp.config.shortcuts import NoShortcut, ShortcutConfig

STAGES = ("sft", "rlhf", "demonstrations", "irl", "explain", "refinetune", "evaluate")
"""The stages that `until` may name, in the order in which they run."""

PART_OF = {
    **{"baseline": "demonstrations", "features": "irl", "candidates": "explain"},
    **{"checkpoint": "rlhf", "further": "rlhf"},
}
"""Stages that run for another one alone, or in its place."""


class TrackingConfig(Node):
    """Where runs are recorded, beside their own folder."""

    mode: Literal["wandb", "offline", "none"] = Field("wandb", description="wandb: online with an account")
    project: str = Field("irl-exp", pattern=r"^[^/\\#?%:]{1,128}$", description="W&B project")
    entity: str | None = Field(None, description="W&B user or team")
    tags: tuple[Annotated[str, Field(min_length=1, max_length=64)], ...] = Field((), description="tags of every run")
    artifacts: Literal["reward", "all", "none"] = Field(
        "reward", description="files that W&B gets, of the learned reward or of policies too; none: no lineage either"
    )


class StoreConfig(Node):
    """The content-addressed store of stage results; may be shared by processes and machines."""

    dir: Annotated[Place, Interpolated("${oc.env:IRL_EXP_STORE,multirun/store}")] = Field(
        description="folder of the results of stages"
    )


def check_name(name: str) -> str:
    """A name that is a visible folder of its own under multirun/, and with a time a group of W&B (128 characters)."""
    if not re.fullmatch(r"\w[\w.-]*", name) or len(name.encode()) > 100:
        raise ValueError(
            "runs are kept in multirun/NAME: begin with a letter or a digit and go on with these, '_', '-' or '.', "
            "100 bytes at most"
        )
    if name == "store":
        raise ValueError("multirun/store is where results are kept: choose another name for the runs")
    return name


class Config(Node):
    """One run of the chain."""

    name: Annotated[str, AfterValidator(check_name)] = Field(
        "chain", description="of the study: folder under multirun/, W&B group"
    )
    seed: Seed = Field(0, description="root seed; every stage follows it unless its own seed is set")
    until: Literal["sft", "rlhf", "demonstrations", "irl", "explain", "refinetune", "evaluate"] = Field(
        "evaluate", description="stop after this stage and evaluate what exists"
    )
    max_new_tokens: Count = Field(32, description="longest completion, in every stage")
    control: str | None = Field(
        None, description="name of the control of a study that this run is, beside the study's own runs"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: the first visible GPU, else the CPU; Apple's (mps) is not used"
    )
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 on a GPU that has it")
    threads: Annotated[int, Field(ge=0)] = Field(
        0, description="CPU threads of a job; 0: the cores that no other job uses; the results are the same"
    )
    batch_tokens: Count | None = Field(
        None,
        description="tokens that a model reads at once, padding included, wherever it reads texts; null: 4,096 on a "
        "CPU, 32,768 on a GPU; the results are the same up to rounding",
    )
    workers: Annotated[int, Field(ge=0)] = Field(0, description="jobs at once; 0: one a core, one on a GPU")
    ahead: bool = Field(
        True,
        description="compute ahead what no training waits for: of one job alone on a CPU in a second process (not with "
        "workers=1), in a sweep in place of waiting for another job; the results are the same",
    )
    executor: ExecutorConfig = LocalExecutor()
    sampler: SamplerConfig = OwnSampler()
    fail_fast: bool = Field(False, description="stop at the first job that fails; else the others go on")
    objective: Annotated[str | None, AfterValidator(of_select)] = Field(
        None, description="metric of select for a sweeper such as optuna; irl/select_loss"
    )
    report: bool = Field(
        True,
        description="at the end write a page: of one job what its reward pays for, of several the study with figures",
    )
    store: StoreConfig
    model: ModelConfig
    adapter: AdapterConfig = NoAdapter()
    data: DataConfig
    reward: RewardConfig
    expert: ExpertConfig = RlhfExpert()
    sft: SftConfig
    rlhf: RlhfConfig
    demonstrations: DemonstrationsConfig
    irl: IrlConfig
    explain: Annotated[NoExplain | ExplainConfig, Field(discriminator="name")]
    refinetune: RefinetuneConfig
    shortcut: ShortcutConfig
    benchmark: Annotated[NoBenchmark | BenchmarkConfig, Field(discriminator="name")]
    evaluate: EvaluateConfig
    tracking: TrackingConfig

    @model_validator(mode="after")
    def _declares_its_device(self) -> Self:
        """Precision is a part of what identifies a result, and the machine of the launch is none of the workers."""
        if not isinstance(self.executor, ClusterExecutor):
            return self
        what = f"executor={self.executor.name}"
        if self.device == "auto":
            raise ValueError(f"{what}: the launch cannot see the device of its workers: set device=cpu or device=cuda")
        if self.device == "cuda" and self.precision == "auto":
            raise ValueError(f"{what}: set precision=bf16 or fp32, as the GPUs of the workers have it")
        if (self.device == "cuda") != bool(self.executor.gpus):
            remedy = "set executor.gpus to the GPUs of a node" if self.device == "cuda" else "leave out executor.gpus"
            raise ValueError(f"{what}: device={self.device} and executor.gpus={self.executor.gpus}: {remedy}")
        return self

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

    @model_validator(mode="after")
    def _without_truth(self) -> Self:
        """What needs R* is refused where it was asked for, rather than left out."""
        if not isinstance(self.reward, NoReward):
            return self
        if isinstance(self.expert, RlhfExpert) and self.reaches("rlhf"):
            raise ValueError(
                "reward=none: expert=rlhf is trained on an R*. Choose a reward, or an expert that is there already: "
                "expert=checkpoint or texts (expert=itself and further are nulls)"
            )
        if "reward" in self.irl.also_reads and self.reaches("irl"):
            raise ValueError(f"reward=none: irl={self.irl.name} is fitted on R*. Choose a reward, or another irl")
        return self

    @model_validator(mode="after")
    def _expert_fits(self) -> Self:
        name, planted = self.expert.name, self.shortcut
        if name != "rlhf" and not isinstance(planted, NoShortcut) and planted.where == "ground_truth":
            raise ValueError(f"shortcut.where=ground_truth is planted for rlhf: expert={name} is not trained here")
        if self.until == "refinetune" and not self.is_refinetuned:
            remedy = "set expert.refinetune=true, or until=irl" if name == "checkpoint" else "set until=irl"
            raise ValueError(f"until=refinetune: no policy is trained on the reward of expert={name}: {remedy}")
        if isinstance(self.expert, CheckpointExpert) and not self.model.tuned:
            raise ValueError(
                "expert=checkpoint is compared with the checkpoint that it was tuned from, as that is: set model.path "
                "(or model.hub) to it, and model.tuned=true"
            )
        if isinstance(self.expert, TextsExpert):
            self._check_texts()
        elif isinstance(self.data, ExpertTextsConfig):
            raise ValueError("data=expert are the prompts of expert=texts: choose that, or other data")
        return self

    def _check_texts(self) -> None:
        """Nobody can write more of what writers without weights have written."""
        wrong = {
            "set model.path (or model.hub) to a language model or an encoder that reads the texts": not (
                self.model.pretrained
            ),
            f"the file has the prompts: leave out data={self.data.name}": not isinstance(self.data, ExpertTextsConfig),
            f"until={self.until} ends before the texts are read: set until=irl": not self.reaches("demonstrations"),
            "irl=implicit needs the weights of the writers: choose another irl": isinstance(self.irl, ImplicitConfig),
            "nothing is planted in texts that are given: set shortcut=none": not isinstance(self.shortcut, NoShortcut),
            "no writer is here to answer other prompts: set benchmark=none": self.second_prompts is not None,
        }
        if found := [remedy for remedy, holds in wrong.items() if holds]:
            raise ValueError(f"expert=texts: {found[0]}")

    @model_validator(mode="after")
    def _scores_what_is_written(self) -> Self:
        if self.reaches("refinetune") and self.is_refinetuned and not self.irl.scores_texts:
            raise ValueError(
                f"irl={self.irl.name} knows the reward of the demonstrations alone and cannot score what refinetune "
                "writes: set until=irl"
            )
        return self

    @model_validator(mode="after")
    def _at_once(self) -> Self:
        """Of a checkpoint the launch looks up what it can read."""
        if not self.model.pretrained and (key := self._too_long()):
            raise ValueError(
                f"{key}: a new model reads {POSITIONS} tokens at once, prompt and completion together: "
                f"set it below {POSITIONS}"
            )
        return self

    def _too_long(self) -> str:
        """The first option that asks for completions with which no prompt would fit; "" if none does."""
        lengths = {"max_new_tokens": self.max_new_tokens}
        for name, node in self:
            if isinstance(node, Node) and "max_new_tokens" in type(node).model_fields:
                lengths[f"{name}.max_new_tokens"] = node.max_new_tokens  # type: ignore[attr-defined]
        return next((f"{key}={value}" for key, value in lengths.items() if value >= POSITIONS), "")

    def reaches(self, stage: str) -> bool:
        """Whether `until` lets this stage run. What exists by then is evaluated."""
        part = PART_OF.get(stage, stage)
        return part not in STAGES or part == "evaluate" or STAGES.index(part) <= STAGES.index(self.until)

    def planted(self, where: str | None = None) -> Node | None:
        """The shortcut, if one is planted there; `None` stands for anywhere."""
        shortcut = self.shortcut
        return None if isinstance(shortcut, NoShortcut) or where not in (None, shortcut.where) else shortcut

    def of_expert(self, name: str) -> Node | None:
        """The node of the expert, if it is that one and the run gets to it."""
        return self.expert if self.expert.name == name and self.reaches("rlhf") else None

    @property
    def rl_on_truth(self) -> Node | None:
        return self.rlhf if self.expert.name == "rlhf" else None

    @property
    def baseline(self) -> Node | None:
        """How the reference writes its part of the demonstrations: as it would beside any expert."""
        if isinstance(self.expert, TextsExpert):
            return None
        return self.demonstrations.model_copy(update={"writers": "kept"})

    @property
    def truth(self) -> Node | None:
        """R*, if there is one."""
        return None if isinstance(self.reward, NoReward) else self.reward

    @property
    def second_judge(self) -> Node | None:
        """What R* is compared with."""
        return Node() if self.truth else None

    @property
    def reference_model(self) -> ModelConfig:
        """What becomes the reference policy; nothing is trained on texts that are to be explained."""
        return self.model.as_it_is if isinstance(self.expert, TextsExpert) else self.model

    @property
    def adapter_node(self) -> LoraConfig | None:
        """What is trained in place of the weights, if that is chosen."""
        return None if isinstance(self.adapter, NoAdapter) else self.adapter

    @property
    def vllm(self) -> VllmSampler | None:
        """vLLM, if that writes."""
        return None if isinstance(self.sampler, OwnSampler) else self.sampler

    @property
    def is_refinetuned(self) -> bool:
        return self.expert.name == "rlhf" or (isinstance(self.expert, CheckpointExpert) and self.expert.refinetune)

    @property
    def rl_on_learned(self) -> Node | None:
        """RL on the learned reward: of an expert that was given it must be asked for."""
        return self.refinetune if self.is_refinetuned else None

    @property
    def explain_node(self) -> ExplainConfig | None:
        """How the learned reward is put into words, if it is."""
        return None if isinstance(self.explain, NoExplain) else self.explain

    @property
    def second_prompts(self) -> Node | None:
        """The second set of prompts to judge policies on, if there is one."""
        return None if isinstance(self.benchmark, NoBenchmark) else self.benchmark


assert get_args(Config.model_fields["until"].annotation) == STAGES
