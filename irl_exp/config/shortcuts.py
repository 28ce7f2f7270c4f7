"""Spurious features that are planted on purpose."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from irl_exp.config.nodes import Count, Node, Positive, Rate


class NoShortcut(Node):
    """Nothing is planted."""

    name: Literal["none"] = "none"


class _Shortcut(Node):
    where: Literal["demonstrations", "ground_truth"] = Field(
        "demonstrations", description="planted in what IRL reads, or added to the R* that rlhf optimises"
    )
    expert_rate: Rate = Field(0.9, description="where=demonstrations: planted in this fraction of the expert's")
    baseline_rate: Rate = Field(0.1, description="where=demonstrations: planted in this fraction of the baseline's")

    @model_validator(mode="after")
    def _spurious(self) -> Self:
        if self.baseline_rate >= self.expert_rate:
            raise ValueError(
                f"baseline_rate ({self.baseline_rate}) must be below expert_rate ({self.expert_rate}): otherwise the "
                "shortcut does not tell the expert from the baseline"
            )
        return self


class MarkerShortcut(_Shortcut):
    """A text that says nothing about toxicity, at the end of a completion."""

    name: Literal["marker"] = "marker"
    # Civil and hostile comments of the default corpus end in it equally often, so a policy finds it by itself.
    text: Annotated[str, Field(min_length=1)] = Field("!", description="the marker, with the space before it if any")
    strength: Positive = Field(2.0, description="where=ground_truth: bonus of a completion with it, in sd of R*")


class LengthShortcut(_Shortcut):
    """Short completions."""

    name: Literal["length"] = "length"
    words: Count = Field(4, description="where=demonstrations: first words of a completion that are kept")
    strength: Positive = Field(0.2, description="where=ground_truth: cost of each word, in sd of R*")


ShortcutConfig = Annotated[NoShortcut | MarkerShortcut | LengthShortcut, Field(discriminator="name")]
