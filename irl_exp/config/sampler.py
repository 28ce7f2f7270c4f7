"""What writes completions, wherever a policy writes any."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from irl_exp.config.nodes import Node, Positive


class OwnSampler(Node):
    """Ours: rows that have ended leave the batch; the same completions on any number of threads."""

    name: Literal["own"] = "own"


class VllmSampler(Node):
    """vLLM, in the process of the stage, with a copy of the weights of its own."""

    name: Literal["vllm"] = "vllm"
    cache: Positive = Field(4.0, description="GiB of keys and values; more are made again as sequences wait")


SamplerConfig = Annotated[OwnSampler | VllmSampler, Field(discriminator="name")]
