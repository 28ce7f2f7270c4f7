"""What a recovered reward sees of a completion."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from irl_exp.config.nodes import Count, Node, Seed


class HiddenStateConfig(Node):
    """A hidden state of the reference policy that has read prompt and completion."""

    layers: Annotated[tuple[int, ...], Field(min_length=1)] = Field(
        (-1, -2, -3), description="their states are joined; -1 is the last, after the final norm; 0 the embeddings"
    )
    pooling: Literal["mean", "last"] = Field("mean", description="mean over the completion, or its last token")


class RandomConfig(HiddenStateConfig):
    """The same of an untrained model: the reference's architecture and tokenizer, random weights. A baseline."""

    seed: Seed = Field(0, description="of the random weights; it does not follow the root seed")


class NgramConfig(Node):
    """TF-IDF of the completion's text; the vocabulary is that of the fit demonstrations, no label is used."""

    analyzer: Literal["word", "char"] = Field("word", description="n-grams of words and punctuation, or characters")
    longest: Annotated[int, Field(ge=1, le=8)] = Field(2, description="n of the longest n-gram")
    min_count: Count = Field(2, description="n-grams in fewer completions are ignored")
    max_features: Annotated[int, Field(ge=1, le=5000)] = Field(500, description="at most; the most frequent are kept")


class SentimentFeatures(Node):
    """Polarity and subjectivity of the completion's text by TextBlob's lexicon of English."""


class LengthFeature(Node):
    """Tokens of the completion, EOS excluded. A baseline."""


class ReferenceLogProbabilityConfig(Node):
    """log pi_ref(y|x) in nats of the whole completion, EOS included where it ended. A baseline."""


class FeaturesConfig(Node):
    """phi(x, y): what IRL sees of a completion. The parts that are set are joined: irl/features=[hidden_state,...]."""

    hidden_state: HiddenStateConfig | None = None
    last_token: HiddenStateConfig | None = None
    random: RandomConfig | None = None
    ngram: NgramConfig | None = None
    sentiment: SentimentFeatures | None = None
    length: LengthFeature | None = None
    reference_log_probability: ReferenceLogProbabilityConfig | None = None

    @property
    def parts(self) -> dict[str, Node]:
        """The parts that are set, by name. Joined in this order, that of the fields, whatever order they are named in:
        the same parts are the same features."""
        return {name: part for name, part in self if isinstance(part, Node)}

    @property
    def states(self) -> dict[str, HiddenStateConfig]:
        """The parts that are hidden states of a model, by name."""
        return {name: part for name, part in self.parts.items() if isinstance(part, HiddenStateConfig)}

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not self.parts:
            raise ValueError("no features are chosen: set e.g. irl/features=hidden_state")
        return self
