"""Ground truths, alone and as parts of a weighted one."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from irl_exp.config.nodes import Count, Fraction, Interpolated, ModelPath, Node, Positive, Seed, StageSeed

Reads = Literal["completion", "text"]


class ClassifierConfig(Node):
    """R*: TF-IDF and a small network or logistic regression, fitted on labelled texts that nothing else uses."""

    name: Literal["classifier"] = "classifier"
    seed: StageSeed
    reads: Reads = Field("completion", description="judge the completion alone or prompt and completion")
    ngrams: Annotated[int, Field(ge=1, le=5)] = Field(2, description="longest word n-gram")
    min_count: Count = Field(2, description="n-grams in fewer texts are ignored")
    hidden_units: Annotated[int, Field(ge=0, le=1024)] = Field(
        32, description="of a network that is used where it predicts better than the regression; 0: never"
    )
    inverse_regularisation: Positive = Field(1.0, description="C of the logistic regression")
    held_out: Fraction = Field(0.25, description="of its texts, by prompt, for the accuracy that is printed")


class SequenceClassifierConfig(Node):
    """R*: a sequence classifier of transformers; reward = logit of `civil` minus logit of `toxic`."""

    name: Literal["sequence_classifier"] = "sequence_classifier"
    seed: StageSeed
    reads: Reads = Field("completion", description="judge the completion alone or prompt and completion")
    path: ModelPath | None = Field(None, description="local folder of the classifier; wins over hub")
    hub: str | None = Field("s-nlp/roberta_toxicity_classifier", description="name on the Hugging Face hub")
    revision: str | None = Field(None, description="branch, tag or commit on the hub")
    civil: str = Field("neutral", description="exact name of the label that is not toxic")
    toxic: str = Field("toxic", description="exact name of the toxic label")
    max_tokens: Count = Field(256, description="longer texts are cut")

    @model_validator(mode="after")
    def _from_somewhere(self) -> Self:
        if self.path is None and self.hub is None:
            raise ValueError("set its path to a folder or its hub to a name on the Hugging Face hub")
        return self


class SentimentConfig(Node):
    """R*: TextBlob's polarity of the text, from -1 (negative) over 0 (neutral) to 1 (positive)."""

    name: Literal["sentiment"] = "sentiment"
    reads: Reads = Field("completion", description="judge the completion alone or prompt and completion")


class LengthConfig(Node):
    """R*: tolerance - |words - target|, in words: best at the target, and at least 0 within the tolerance."""

    name: Literal["length"] = "length"
    target: Count = Field(8, description="words of the best completion")
    tolerance: Annotated[int, Field(ge=0)] = Field(3, description="words off the target at which R* falls below 0")


def source_of(function: str) -> Path:
    """The file of the module in `package.module:function`; the module itself is not run.

    Raises:
        ValueError: another form, no such module, or a module without a file.
    """
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", function):
        raise ValueError("write package.module:function")
    module = function.partition(":")[0]
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        raise ValueError(f"there is no module '{module}' on the Python path; name its folder in PYTHONPATH")
    if spec.origin is None or not Path(spec.origin).is_file():
        raise ValueError(f"the module '{module}' has no file of its own: its content could not be told from another")
    return Path(spec.origin)


def _importable(function: str) -> str:
    source_of(function)
    return function


Function = Annotated[str, AfterValidator(_importable)]
"""`package.module:function` of the user, in a module that is there."""


class ImportedConfig(Node):
    """R*: a function of yours, called with (prompts, completions), two lists of n texts; returns n finite numbers."""

    name: Literal["imported"] = "imported"
    function: Function = Field(description="package.module:function")

    @property
    def files(self) -> dict[str, Path]:
        return {"source": source_of(self.function)}


def _not_zero(weight: float) -> float:
    if weight == 0:
        raise ValueError("a part of weight 0 is no part: remove it with ~reward.parts.NAME")
    return weight


class Part(Node):
    """What a scorer has more as one part of a weighted R*."""

    weight: Annotated[float, AfterValidator(_not_zero)] = Field(
        1.0, description="not 0, may be negative; a part also has the name and the options of its scorer"
    )


PartSeed = Annotated[Seed, Interpolated("${reward.seed}")]


class ClassifierPart(Part, ClassifierConfig):
    """A classifier as one part of a weighted R*."""

    seed: PartSeed


class SequenceClassifierPart(Part, SequenceClassifierConfig):
    """A sequence classifier as one part of a weighted R*."""

    seed: PartSeed


class SentimentPart(Part, SentimentConfig):
    """Sentiment as one part of a weighted R*."""


class LengthPart(Part, LengthConfig):
    """Length as one part of a weighted R*."""


class ImportedPart(Part, ImportedConfig):
    """Your own function as one part of a weighted R*."""


ScorerConfig = ClassifierConfig | SequenceClassifierConfig | SentimentConfig | LengthConfig | ImportedConfig

PartConfig = Annotated[
    ClassifierPart | SequenceClassifierPart | SentimentPart | LengthPart | ImportedPart, Field(discriminator="name")
]


class WeightedConfig(Node):
    """R* = sum w_k z_k / sum |w_k|, z_k a part with mean 0 and standard deviation 1 on the texts of the reward part."""

    name: Literal["weighted"] = "weighted"
    seed: StageSeed
    # Sorted: what the order of the parts is in a file makes no other R*.
    parts: Annotated[
        dict[Annotated[str, Field(pattern=r"^[A-Za-z]\w*$")], PartConfig],
        Field(min_length=1),
        AfterValidator(lambda parts: dict(sorted(parts.items()))),
    ]

    @model_validator(mode="before")
    @classmethod
    def _seeds(cls, values: Any) -> Any:
        """A part that the command line adds has no base node, so no seed that follows reward.seed."""
        if not isinstance(values, Mapping) or not isinstance(values.get("parts"), Mapping) or "seed" not in values:
            return values
        seeded = {part.model_fields["name"].default for part in (ClassifierPart, SequenceClassifierPart)}
        parts = {
            name: {"seed": values["seed"], **part} if isinstance(part, Mapping) and part.get("name") in seeded else part
            for name, part in values["parts"].items()
        }
        return {**values, "parts": parts}


class GoalConfig(Node):
    """R*: a goal that a program can count, strength * (g - mean) / sd, mean and sd of texts of the reward part."""

    name: Literal["goal"] = "goal"
    goal: Literal[
        "pleasant",
        "wordy",
        "politeness",
        "question",
        "request",
        "second_person",
        "arts",
        "without_the",
        "exclamation",
        "hostile_if_honest",
        "two_at_once",
    ] = Field(description="what a completion shall have: docs/rewards.md")
    # That of reward=classifier on the embedded comments, for which rlhf.kl_coefficient was chosen.
    strength: Positive = Field(4.5, description="sd of R* on texts of the reward part")


class NoReward(Node):
    """There is no R*: what needs one is left out, and nothing stands in for it."""

    name: Literal["none"] = "none"


RewardConfig = Annotated[ScorerConfig | GoalConfig | WeightedConfig | NoReward, Field(discriminator="name")]
