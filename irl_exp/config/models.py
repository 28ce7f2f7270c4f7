"""Language models."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from irl_exp.config.nodes import Count, ModelPath, Node

POSITIONS = 512
"""Tokens that a new model is made to read at once: a prompt and its completion."""


class ModelConfig(Node):
    """The base language model: `path`, else `hub`, else a new GPT-NeoX (Pythia) model of the given size."""

    name: str = Field("tiny", description="shown in tables and run names")
    path: ModelPath | None = Field(None, description="local folder that AutoModelForCausalLM opens; wins over hub")
    hub: str | None = Field(None, description="name on the Hugging Face hub")
    revision: str | None = Field(None, description="branch, tag or commit on the hub")
    tuned: bool = Field(False, description="the checkpoint is the reference policy: no SFT")
    chat: Literal["auto"] | bool = Field(
        "auto", description="prompts through the tokenizer's chat template; auto: of a tuned checkpoint that has one"
    )
    hidden_size: Count = Field(128, description="of a new model; a multiple of heads")
    layers: Count = Field(4, description="of a new model")
    heads: Count = Field(4, description="of a new model")
    vocabulary: Annotated[int, Field(ge=300, le=10**6)] = Field(
        2048, description="byte-level BPE of a new model: at most"
    )

    @property
    def unsaid(self) -> frozenset[str]:
        return frozenset({"chat"} if self.chat == "auto" and not self.tuned else ())

    @property
    def as_it_is(self) -> ModelConfig:
        """The same checkpoint without SFT."""
        return self.model_copy(update={"tuned": True})

    @property
    def pretrained(self) -> bool:
        return self.path is not None or self.hub is not None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.tuned and not self.pretrained:
            raise ValueError("tuned=true needs a checkpoint: set model.path or model.hub")
        if self.chat is True and not self.pretrained:
            raise ValueError("chat=true needs a checkpoint with a chat template: set model.path or model.hub")
        if self.hidden_size % self.heads or (self.hidden_size // self.heads) % 2:
            raise ValueError(f"hidden_size ({self.hidden_size}) must be an even multiple of heads ({self.heads})")
        return self
