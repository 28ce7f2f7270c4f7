"""Texts and prompts: the data of the chain, and a second set of prompts to judge policies on."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from irl_exp.config.nodes import Count, ExistingFile, Fraction, Interpolated, Node, PerPrompt, StageSeed


class _Data(Node):
    seed: StageSeed
    fit_prompts: Count = Field(500, description="prompts of rlhf, refinetune and the demonstrations that IRL fits")
    select_prompts: Count = Field(100, description="prompts for choices made without looking at test")
    test_prompts: Count = Field(250, description="prompts that only evaluate sees")
    reward_fraction: Fraction = Field(0.35, description="of the other prompts: labelled texts that only R* sees")
    max_prompt_words: Count = Field(32, description="longer prompts are cut; the rest starts the completion")


class CommentsConfig(_Data):
    """Embedded corpus: a seeded generator of civil and hostile comments (irl_exp/texts/comments.py)."""

    name: Literal["comments"] = "comments"
    count: Annotated[int, Field(ge=1, le=10**6)] = Field(24_000, description="comments to write")


class Source(Node):
    """Where prompts are read from."""

    node: ClassVar[str]
    """The config node, for messages."""
    path: ExistingFile | None = Field(None, description="local JSONL, CSV or Parquet file; wins over hub")
    hub: str | None = Field(None, description="dataset on the Hugging Face hub")
    split: str = Field("train", description="split on the hub")
    prompt: str | None = Field("prompt", description="column of the prompt; a dot enters a nested object")
    text: str | None = Field(None, description="column of whole texts, cut in half, in place of prompt and completion")

    @model_validator(mode="after")
    def _has_place(self) -> Self:
        if self.path is None and self.hub is None:
            raise ValueError(f"set {self.node}.path to a .jsonl, .csv or .parquet file")
        return self


class _Texts(_Data, Source):
    node: ClassVar[str] = "data"
    completion: str | None = Field("completion", description="column of the completion; null: a list of prompts")
    label: str | None = Field(None, description="column of the label: toxic if at least 0.5; null: no labels")
    toxic: Annotated[tuple[bool | int | float | str, ...], Field(min_length=1)] | None = Field(
        None, description="values of the label that mean toxic, [hate,offensive]; null: numbers from 0 to 1"
    )

    @model_validator(mode="after")
    def _readable(self) -> Self:
        if self.text is None and self.prompt is None:
            raise ValueError("name the column: data.prompt (with data.completion), or data.text")
        if self.toxic is not None and self.label is None:
            raise ValueError("data.toxic names values of a label: set data.label to its column")
        return self


class JigsawConfig(_Texts):
    """The paper's 2,000 Jigsaw comments; for the original file data.path, data.text=comment_text, data.label=toxic."""

    name: Literal["jigsaw"] = "jigsaw"
    hub: str | None = "jaredjoss/jigsaw-long-2000"
    completion: str | None = "original_output"


class RealToxicityPromptsConfig(_Texts):
    """RealToxicityPrompts: sentences cut in half, each half with its measured toxicity."""

    name: Literal["real_toxicity_prompts"] = "real_toxicity_prompts"
    hub: str | None = "allenai/real-toxicity-prompts"
    prompt: str | None = "prompt.text"
    completion: str | None = "continuation.text"
    label: str | None = "continuation.toxicity"


class FileConfig(_Texts):
    """Your own texts, or a list of prompts: a file without completions and labels."""

    name: Literal["file"] = "file"
    label: str | None = "label"


class ExpertTextsConfig(_Data):
    """The prompts of the file of expert=texts, which are only split."""

    name: Literal["expert"] = "expert"


DataConfig = Annotated[
    CommentsConfig | JigsawConfig | RealToxicityPromptsConfig | FileConfig | ExpertTextsConfig,
    Field(discriminator="name"),
]


class NoBenchmark(Node):
    """The policies are judged on the test prompts alone."""

    name: Literal["none"] = "none"


class _Benchmark(Source):
    """A second set of prompts, on which the policies are judged as well. Neither completions nor labels are read."""

    node: ClassVar[str] = "benchmark"
    seed: StageSeed
    prompts: Annotated[Count, Interpolated("${data.test_prompts}")] = Field(
        description="drawn by the seed, of those that the data does not have"
    )
    max_prompt_words: Annotated[Count, Interpolated("${data.max_prompt_words}")] = Field(
        description="longer prompts are cut"
    )
    completions_per_prompt: Annotated[PerPrompt, Interpolated("${evaluate.completions_per_prompt}")]
    max_new_tokens: Annotated[Count, Interpolated("${evaluate.max_new_tokens}")]
    batch_size: Annotated[Count, Interpolated("${evaluate.batch_size}")]

    @model_validator(mode="after")
    def _readable(self) -> Self:
        if self.text is None and self.prompt is None:
            raise ValueError("name the column: benchmark.prompt or benchmark.text")
        return self


class JigsawBenchmark(_Benchmark):
    """The paper's 2,000 Jigsaw comments; for the original file benchmark.path and benchmark.text=comment_text."""

    name: Literal["jigsaw"] = "jigsaw"
    hub: str | None = "jaredjoss/jigsaw-long-2000"


class RealToxicityPromptsBenchmark(_Benchmark):
    """The prompts of RealToxicityPrompts."""

    name: Literal["real_toxicity_prompts"] = "real_toxicity_prompts"
    hub: str | None = "allenai/real-toxicity-prompts"
    prompt: str | None = "prompt.text"


class FileBenchmark(_Benchmark):
    """Your own prompts."""

    name: Literal["file"] = "file"


BenchmarkConfig = JigsawBenchmark | RealToxicityPromptsBenchmark | FileBenchmark
