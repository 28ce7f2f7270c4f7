"""Whose goal is asked for: the expert that stands against the reference policy in the demonstrations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from irl_exp.config.nodes import Count, ExistingFile, LearningRate, Node, existing
from irl_exp.config.policies import SftConfig


class RlhfExpert(Node):
    """The reference policy after RL on R*, as the node `rlhf` says."""

    name: Literal["rlhf"] = "rlhf"


def _is_checkpoint(path: Path) -> Path:
    if not any((path / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise ValueError(
            "this is no model folder: it has neither config.json (a model) nor adapter_config.json (a PEFT adapter)"
        )
    return path


CheckpointPath = Annotated[Path, AfterValidator(existing), AfterValidator(_is_checkpoint)]


class CheckpointExpert(Node):
    """A checkpoint that somebody has tuned from the reference, or a PEFT adapter on it."""

    name: Literal["checkpoint"] = "checkpoint"
    path: CheckpointPath | None = Field(None, description="local folder of a model or of a PEFT adapter; wins over hub")
    hub: str | None = Field(None, description="name on the Hugging Face hub")
    revision: str | None = Field(None, description="branch, tag or commit on the hub")
    refinetune: bool = Field(False, description="train a policy on the learned reward too")

    @model_validator(mode="after")
    def _from_somewhere(self) -> Self:
        if self.path is None and self.hub is None:
            raise ValueError("set expert.path to the folder of the tuned checkpoint, or expert.hub to its name")
        return self


class TextsExpert(Node):
    """Texts of two writers on the same prompts; the weights of the writers are not needed. Nothing is trained on them.

    Rows with prompt, completion and writer, or with chosen (the expert's) and rejected (the baseline's).
    """

    name: Literal["texts"] = "texts"
    path: ExistingFile = Field(description="local JSONL, CSV or Parquet file")
    prompt: str = Field("prompt", description="column of the prompt, a text or chat messages")
    completion: str = Field("completion", description="column of the completion")
    writer: str = Field("writer", description="column that says who wrote the completion")
    is_expert: bool | int | float | str = Field("expert", description="value of that column for the expert")
    is_baseline: bool | int | float | str = Field("baseline", description="value of that column for the baseline")
    chosen: str = Field("chosen", description="column of the preferred completion, a text or chat messages")
    rejected: str = Field("rejected", description="column of the other one")

    @model_validator(mode="after")
    def _two_writers(self) -> Self:
        if self.is_expert == self.is_baseline:
            raise ValueError(f"is_expert and is_baseline are both {self.is_expert!r}: name two writers")
        return self


class ItselfExpert(Node):
    """The reference policy itself, with other draws: there is nothing to find, and what is found is an error."""

    name: Literal["itself"] = "itself"


class FurtherExpert(SftConfig):
    """The reference policy trained further on its own kind of text, without a goal: drift, and nothing else."""

    name: Literal["further"] = "further"
    train_on: Literal["sft", "own"] = Field(
        "sft", description="those of the sft part, or what the reference writes on fit"
    )
    steps: Count = Field(100, description="optimiser steps")
    learning_rate: LearningRate = Field(1e-3, description="peak of the cosine schedule")


ExpertConfig = Annotated[
    RlhfExpert | CheckpointExpert | TextsExpert | ItselfExpert | FurtherExpert, Field(discriminator="name")
]
