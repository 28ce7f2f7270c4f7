"""What a recovered reward pays for, in words: where statements are looked for, and how many are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from irl_exp.config.nodes import Count, Fraction, Node, StageSeed
from irl_exp.config.rewards import Function, source_of


class NgramStatements(Node):
    """Phrases of 1 to 3 words that one policy writes more often, by log-odds with an informative Dirichlet prior."""

    on: bool = Field(True, description="look for them")
    count: Annotated[int, Field(ge=2, le=5000)] = Field(500, description="candidates: those with the largest |z|")
    longest: Annotated[int, Field(ge=1, le=5)] = Field(3, description="words of the longest phrase")
    least_share: Fraction = Field(0.003, description="of the completions of fit; rarer phrases are no candidates")
    prior: Annotated[float, Field(gt=0)] = Field(
        100.0, description="completions that the prior is worth (Monroe et al. 2008)"
    )
    together: Annotated[int, Field(ge=1, le=12)] = Field(
        4, description="phrases of one statement ('says one of ...') at most; 1: every phrase alone"
    )


class PropertyStatements(Node):
    """What can be counted in a text: length, questions, second person, insults, thanks, sentiment, and so on."""

    on: bool = Field(True, description="look for them")
    imported: tuple[Function, ...] = Field(
        (), description="your own, package.module:function, called with a list of texts; returns a number a text"
    )

    @property
    def files(self) -> dict[str, Path]:
        return {function: source_of(function) for function in self.imported}


class UnitStatements(Node):
    """Units of a sparse autoencoder of differences of the features (hidden states), named by what they rank highest."""

    on: bool = Field(True, description="look for them")
    units: Annotated[int, Field(ge=2, le=4096)] = Field(64, description="of the autoencoder")
    active: Annotated[int, Field(ge=1, le=512)] = Field(8, description="units that a text has on average (BatchTopK)")
    steps: Count = Field(300, description="of training")

    @model_validator(mode="after")
    def _sparse(self) -> Self:
        if self.active >= self.units:
            raise ValueError(f"active ({self.active}) must be below units ({self.units})")
        return self


class LogRatioStatements(Node):
    """Tokens that the tuned policy finds more, or less, likely than the base where they were written."""

    on: bool = Field(True, description="look for them; needs the weights of both policies")
    count: Annotated[int, Field(ge=2, le=1000)] = Field(60, description="candidates: the most extreme tokens")
    completions: Count = Field(600, description="of each policy on fit, at most, that are read for it")


class NoExplain(Node):
    """The learned reward is not put into words."""

    name: Literal["none"] = "none"


class ExplainConfig(Node):
    """Statements in words of what the learned reward pays for: found on fit, tested on test, without R*."""

    name: Literal["full"] = "full"
    seed: StageSeed
    statements: Annotated[int, Field(ge=1, le=100)] = Field(20, description="at most")
    level: Fraction = Field(0.05, description="of the q values below which a statement is kept")
    # What Cohen (1988) calls small. A base trained further on its own kind of text differs from itself in phrases by
    # 0.13 to 0.16 (docs/explain.md).
    smallest: Annotated[float, Field(ge=0)] = Field(
        0.2, description="difference of tuned and base that a statement needs, in sd within the policies (Cohen's d)"
    )
    resamples: Annotated[int, Field(ge=2, le=1000)] = Field(
        20, description="resamples of the prompts of fit, for the stability of each statement"
    )
    edits: Annotated[int, Field(ge=0, le=1000)] = Field(
        40, description="texts a statement that are edited and scored again; 0: none"
    )
    ngrams: NgramStatements
    properties: PropertyStatements
    units: UnitStatements
    log_ratio: LogRatioStatements
    wording: Literal["templates", "llm"] = Field("templates", description="llm: a language model may rephrase")
    address: str | None = Field(
        None, description="of an OpenAI-compatible server, for wording=llm: http://localhost:8000/v1"
    )
    model: str | None = Field(None, description="its name on that server")

    @model_validator(mode="after")
    def _finds_something(self) -> Self:
        if not any(family.on for family in (self.ngrams, self.properties, self.units, self.log_ratio)):
            raise ValueError("all families are off: set explain=none")
        return self

    @model_validator(mode="after")
    def _who_words(self) -> Self:
        if self.wording == "llm" and not (self.address and self.model):
            raise ValueError("wording=llm needs address and model of an OpenAI-compatible server")
        return self
