"""Everything that can be configured: names, defaults, bounds and what each option does.

The models below are the one place for all three. They give Hydra its base nodes (`register`), check the composed
config of every job before the first one starts (`parse`), and give the stages typed, frozen objects. The YAML files
under `conf/` hold named points only. Nothing here imports a heavy library: `--help` and tab completion stay instant.
"""

from __future__ import annotations

import difflib
import importlib.util
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

STAGES = ("sft", "rlhf", "demonstrations", "irl", "refinetune", "evaluate")
"""The stages that `until` may name, in the order in which they run."""

CONF = Path(__file__).resolve().parent.parent / "conf"


class ConfigError(Exception):
    """A config that cannot be run: names the field, the value, what is allowed and the nearest right name."""


class Interpolated(str):
    """Metadata of a field: the base node holds this interpolation, so the field follows another one unless set."""


class Node(BaseModel):
    """One node of the config: unknown keys are errors, values are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    @property
    def files(self) -> dict[str, Path]:
        """Files that the node stands for besides those in its fields: their content belongs to its identity."""
        return {}


def _exists(path: Path | None) -> Path | None:
    if path is not None and not path.expanduser().exists():
        raise ValueError("there is no such file or folder")
    return path and path.expanduser()


def _is_model(path: Path | None) -> Path | None:
    if path is not None and not (path / "config.json").is_file():
        raise ValueError("this is no model folder: it has no config.json. Give a folder that save_pretrained wrote")
    return path


ExistingPath = Annotated[Path, AfterValidator(_exists)]
ModelPath = Annotated[ExistingPath, AfterValidator(_is_model)]
Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Rate = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
LearningRate = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
StageSeed = Annotated[Seed, Interpolated("${seed}")]
NewTokens = Annotated[Count, Interpolated("${max_new_tokens}")]


class ModelConfig(Node):
    """The base language model: `path`, else `hub`, else a new GPT-NeoX (Pythia) model of the given size."""

    name: str = Field("tiny", description="shown in tables and run names")
    path: ModelPath | None = Field(None, description="local folder that AutoModelForCausalLM opens; wins over hub")
    hub: str | None = Field(None, description="name on the Hugging Face hub")
    revision: str | None = Field(None, description="branch, tag or commit on the hub")
    tuned: bool = Field(False, description="the checkpoint is the reference policy as it is: no SFT")
    hidden_size: Count = Field(128, description="of a new model; a multiple of heads")
    layers: Count = Field(4, description="of a new model")
    heads: Count = Field(4, description="of a new model")
    vocabulary: Annotated[int, Field(ge=300)] = Field(2048, description="byte-level BPE of a new model: at most")

    @property
    def pretrained(self) -> bool:
        return self.path is not None or self.hub is not None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.tuned and not self.pretrained:
            raise ValueError("tuned=true needs a checkpoint: set model.path or model.hub")
        if self.hidden_size % self.heads or (self.hidden_size // self.heads) % 2:
            raise ValueError(f"hidden_size ({self.hidden_size}) must be an even multiple of heads ({self.heads})")
        return self


class _Data(Node):
    seed: StageSeed
    fit_prompts: Count = Field(500, description="prompts of rlhf, refinetune and the demonstrations that IRL fits")
    select_prompts: Count = Field(100, description="prompts for choices made without looking at test")
    test_prompts: Count = Field(250, description="prompts that only evaluate sees")
    reward_fraction: Fraction = Field(0.35, description="of the other prompts: labelled texts that only R* sees")
    max_prompt_words: Count = Field(32, description="longer prompts are cut; the rest starts the completion")


class CommentsConfig(_Data):
    """Embedded corpus: a seeded generator of civil and hostile comments (irl_exp/comments.py)."""

    name: Literal["comments"] = "comments"
    count: Count = Field(24_000, description="comments to write")


class _Source(Node):
    """Where prompts are read from."""

    node: ClassVar[str]
    """The config node, for messages."""
    path: ExistingPath | None = Field(None, description="local JSONL, CSV or Parquet file; wins over hub")
    hub: str | None = Field(None, description="dataset on the Hugging Face hub")
    split: str = Field("train", description="split on the hub")
    prompt: str | None = Field("prompt", description="column of the prompt; a dot enters a nested object")
    text: str | None = Field(None, description="column of whole texts, cut in half, in place of prompt and completion")

    @model_validator(mode="after")
    def _has_place(self) -> Self:
        if self.path is None and self.hub is None:
            raise ValueError(f"set {self.node}.path to a .jsonl, .csv or .parquet file")
        return self


class _Texts(_Data, _Source):
    node: ClassVar[str] = "data"
    completion: str | None = Field("completion", description="column of the completion")
    label: str | None = Field(None, description="column of the label: toxic if at least 0.5; null: no labels")

    @model_validator(mode="after")
    def _readable(self) -> Self:
        if self.text is None and (self.prompt is None or self.completion is None):
            raise ValueError("name the columns: data.prompt and data.completion, or data.text")
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
    """Your own texts."""

    name: Literal["file"] = "file"
    label: str | None = "label"


DataConfig = Annotated[
    CommentsConfig | JigsawConfig | RealToxicityPromptsConfig | FileConfig, Field(discriminator="name")
]

Reads = Literal["completion", "text"]


class ClassifierConfig(Node):
    """R*: TF-IDF and logistic regression, fitted on a labelled part of the data that nothing else uses."""

    name: Literal["classifier"] = "classifier"
    seed: StageSeed
    reads: Reads = Field("completion", description="judge the completion alone or prompt and completion")
    ngrams: Annotated[int, Field(ge=1, le=5)] = Field(2, description="longest word n-gram")
    min_count: Count = Field(2, description="n-grams in fewer texts are ignored")
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
    batch_size: Count = Field(64, description="texts a forward pass")
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


class ImportedConfig(Node):
    """R*: a function of yours, called with (prompts, completions), two lists of n texts; returns n finite numbers."""

    name: Literal["imported"] = "imported"
    function: Annotated[str, AfterValidator(_importable)] = Field(description="package.module:function")

    @property
    def files(self) -> dict[str, Path]:
        return {"source": source_of(self.function)}


def _not_zero(weight: float) -> float:
    if weight == 0:
        raise ValueError("a part of weight 0 is no part: remove it with ~reward.parts.NAME")
    return weight


class _Part(Node):
    weight: Annotated[float, AfterValidator(_not_zero)] = Field(
        1.0, description="not 0, may be negative; a part also has the name and the options of its scorer"
    )


PartSeed = Annotated[Seed, Interpolated("${reward.seed}")]


class ClassifierPart(_Part, ClassifierConfig):
    """A classifier as one part of a weighted R*."""

    seed: PartSeed


class SequenceClassifierPart(_Part, SequenceClassifierConfig):
    """A sequence classifier as one part of a weighted R*."""

    seed: PartSeed


class SentimentPart(_Part, SentimentConfig):
    """Sentiment as one part of a weighted R*."""


class LengthPart(_Part, LengthConfig):
    """Length as one part of a weighted R*."""


class ImportedPart(_Part, ImportedConfig):
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


RewardConfig = Annotated[ScorerConfig | WeightedConfig, Field(discriminator="name")]


class SftConfig(Node):
    """Base model to reference policy: next-token training on the texts of the sft part."""

    seed: StageSeed
    steps: Count = Field(400, description="optimiser steps")
    batch_size: Count = Field(32, description="texts a step")
    learning_rate: LearningRate = Field(6e-3, description="peak of the cosine schedule; for a model of this size")
    warmup_fraction: Fraction = Field(0.1, description="of the steps, linear")
    max_tokens: Count = Field(128, description="longer texts are cut")


class PolicyOptimizationConfig(Node):
    """max E[reward] - beta KL(policy | reference), with an online trainer of TRL."""

    seed: StageSeed
    algorithm: Literal["rloo", "grpo"] = Field("rloo", description="TRL trainer")
    steps: Count = Field(32, description="optimiser steps")
    batch_size: Count = Field(128, description="completions a step: a multiple of generations")
    micro_batch_size: Count | None = Field(None, description="completions a forward pass; null: the batch")
    generations: Annotated[int, Field(ge=2)] = Field(4, description="completions of one prompt")
    learning_rate: LearningRate = Field(5e-4, description="constant")
    # Of 0.15, 0.3 and 0.5 (80 steps, one seed each) the expert at 0.5 was nearest to the optimum of its own objective:
    # AUROC of the implicit reward 0.918, 0.952, 0.960, at 6.8, 3.8 and 1.9 nats of KL.
    kl_coefficient: Annotated[float, Field(ge=0)] = Field(0.5, description="beta, on the scale of the reward")
    max_new_tokens: NewTokens
    epsilon: Fraction = Field(0.2, description="clip range of the probability ratio")

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.batch_size % self.generations:
            raise ValueError(f"batch_size ({self.batch_size}) must be a multiple of generations ({self.generations})")
        micro = self.micro_batch_size
        if micro is not None and (self.batch_size % micro or micro % self.generations):
            raise ValueError(f"micro_batch_size ({micro}) must divide batch_size and be a multiple of generations")
        return self


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


class DemonstrationsConfig(Node):
    """Completions of expert and reference on the same prompts, with both log-probabilities of each."""

    seed: StageSeed
    completions_per_prompt: Count = Field(7, description="of each policy")
    greedy: bool = Field(False, description="one greedy completion on fit and select; test is always sampled")
    max_new_tokens: NewTokens
    batch_size: Count = Field(256, description="completions generated at once")

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.greedy and self.completions_per_prompt != 1:
            raise ValueError("greedy=true writes the same completion again: set completions_per_prompt=1")
        return self


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
    # Measured on 6,800 completions of a model of the default size, one CPU thread: 32 is as fast as any, and takes
    # the least memory.
    batch_size: Count = Field(32, description="completions a forward pass")

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


class MaxMarginLoss(Node):
    """The paper's asymmetric loss on the margin d: -d where d > 0, -2d elsewhere."""

    name: Literal["max_margin"] = "max_margin"
    correct_penalty: Positive = Field(1.0, description="slope where the expert is ahead")
    wrong_penalty: Positive = Field(2.0, description="slope where the baseline is ahead")


class HingeLoss(Node):
    """max(0, target_margin - d)."""

    name: Literal["hinge"] = "hinge"
    target_margin: Positive = Field(1.0, description="margin from which a pair costs nothing")


class BradleyTerryLoss(Node):
    """-log sigmoid(d / temperature), the logistic loss."""

    name: Literal["bradley_terry"] = "bradley_terry"
    temperature: Positive = Field(1.0, description="unit of the margin")


class SquaredLoss(Node):
    """d^2, as published: it drives all margins to 0 and does not know which completion is the expert's."""

    name: Literal["squared"] = "squared"


class ConfidenceMarginLoss(Node):
    """max(0, target_margin + confidence |d| - d): a hinge whose target grows with the size of the margin."""

    name: Literal["confidence_margin"] = "confidence_margin"
    target_margin: Positive = Field(0.1, description="margin that is asked for at d = 0")
    confidence: Annotated[float, Field(ge=0, lt=1)] = Field(0.5, description="growth of that margin with |d|")


LossConfig = Annotated[
    MaxMarginLoss | HingeLoss | BradleyTerryLoss | SquaredLoss | ConfidenceMarginLoss, Field(discriminator="name")
]


class FrozenBackbone(Node):
    """The reference policy stays as it is; only a linear head is fitted."""

    name: Literal["frozen"] = "frozen"


class _TrainedBackbone(Node):
    epochs: Count = Field(3, description="passes over the pairs of fit, in place of irl.epochs")
    batch_size: Count = Field(32, description="pairs a step, in place of irl.batch_size")
    micro_batch_size: Count | None = Field(None, description="pairs a forward pass; null: the batch")
    learning_rate: LearningRate = Field(1e-4, description="of AdamW, for the backbone; irl.learning_rate is the head's")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.01, description="of AdamW, for the backbone")

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(f"micro_batch_size ({self.micro_batch_size}) must divide batch_size ({self.batch_size})")
        return self


class LastLayersBackbone(_TrainedBackbone):
    """The last layers of the backbone are trained with the head."""

    name: Literal["last_layers"] = "last_layers"
    layers: Count = Field(1, description="how many, counted from the end; the final norm is trained too")


class FullBackbone(_TrainedBackbone):
    """All weights are trained with the head, as in the paper."""

    name: Literal["full"] = "full"


class LoraBackbone(_TrainedBackbone):
    """Low-rank adapters (peft) of all linear layers are trained with the head (arXiv 2106.09685)."""

    name: Literal["lora"] = "lora"
    rank: Count = Field(8, description="of each adapter")
    alpha: Positive = Field(16.0, description="scale of the adapters: alpha / rank")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="on the input of the adapters; there is no other"
    )


BackboneConfig = Annotated[
    FrozenBackbone | LastLayersBackbone | FullBackbone | LoraBackbone, Field(discriminator="name")
]


class _Method(Node):
    seed: StageSeed = Field(description="head initialisation, batch order and every other draw of the method")


class _Linear(_Method):
    """R = w . phi on scaled features."""

    features: FeaturesConfig
    prompt_fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="of the prompts of fit, the same for every seed; a smaller part lies within a larger one"
    )
    completions: Count | None = Field(None, description="of each prompt of fit, the first ones; null: all")
    scaling: Literal["whiten", "standardise"] = Field("whiten", description="of the features, before the fit")
    ridge: Annotated[tuple[Positive, ...], Field(min_length=1)] = Field(
        (1e-4,), description="of whiten, as a fraction of the mean eigenvalue; of several the best on select is taken"
    )


class _Fitted(_Linear):
    loss: LossConfig
    epochs: Count = Field(20, description="passes over the pairs of fit; the best on select is kept")
    batch_size: Count = Field(32, description="pairs a step")
    # By the loss on select: of 1e-3, 3e-3, 1e-2 and 3e-2 the smallest comes nearest to the optimum (-1.288, -1.286,
    # -1.235, -1.094 per sd of the margins; max_margin, 5 seeds on 2,000 pairs).
    learning_rate: LearningRate = Field(1e-3, description="of Adam")
    max_norm: Annotated[tuple[Positive, ...], Field(min_length=1)] = Field(
        (1.0,), description="bound of |w| on scaled features; of several the best on select is taken"
    )
    resample_pairs: bool = Field(False, description="draw the pairs with replacement, by the seed")


class MarginConfig(_Fitted):
    """Reward fitted to contrast pairs (expert, baseline) by a loss of their margin."""

    name: Literal["margin"] = "margin"
    backbone: BackboneConfig

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.backbone.name == "frozen":
            return self
        if len(self.features.parts) != 1 or not self.features.parts.keys() <= {"hidden_state", "last_token"}:
            raise ValueError(
                f"irl/backbone={self.backbone.name} trains hidden states: it takes irl/features=hidden_state or "
                f"last_token alone, not {'+'.join(self.features.parts)}"
            )
        for name in ("max_norm", "ridge"):
            if len(values := getattr(self, name)) > 1:
                raise ValueError(
                    f"{name}={list(values)}: each would train the backbone anew; irl/backbone={self.backbone.name} "
                    "takes one"
                )
        if isinstance(self.loss, SquaredLoss):
            raise ValueError(
                f"irl/loss=squared is least where all completions get the same reward: irl/backbone="
                f"{self.backbone.name} would collapse to it"
            )
        return self


class PlaceboConfig(_Fitted):
    """As margin, with expert and baseline swapped at random in each pair: the null distribution of every metric."""

    name: Literal["placebo"] = "placebo"


class FailureAwareConfig(_Fitted):
    """As margin, with weight on the pairs that the current reward gets wrong or nearly ties (arXiv 2510.06092)."""

    name: Literal["failure_aware"] = "failure_aware"
    weighting: Literal["failure", "focal"] = Field("failure", description="failures on a curriculum, or focal weights")
    weight: Annotated[float, Field(ge=0)] = Field(2.0, description="extra weight of a failure")
    tie_width: Positive = Field(0.25, description="a failure: margin below this many sd of the margins")
    focus: Positive = Field(2.0, description="gamma of focal weights (1 - sigmoid(margin / sd))^gamma")


class EnsembleConfig(_Fitted):
    """Margin fits of several seeds, taken together as one reward (arXiv 2409.15360 for the lower bound)."""

    name: Literal["ensemble"] = "ensemble"
    members: Annotated[int, Field(ge=2)] = Field(10, description="seeds: irl.seed, irl.seed + 1, ...")
    aggregate: Literal["mean", "median", "lower_bound", "worst"] = Field("mean", description="of standardised members")
    deviations: Annotated[float, Field(ge=0)] = Field(1.0, description="k of lower_bound = mean - k sd")
    resample_pairs: bool = Field(True, description="each member draws its pairs with replacement")


class BayesianConfig(_Linear):
    """Posterior of a linear reward: Gaussian prior, Bradley-Terry likelihood (arXiv 2510.06096)."""

    name: Literal["bayesian"] = "bayesian"
    posterior: Literal["laplace", "mean_field"] = Field("laplace", description="Laplace with full covariance, or VI")
    prior_sd: Annotated[tuple[Positive, ...], Field(min_length=1)] = Field(
        (0.03, 0.1, 0.3, 1.0), description="of each weight on scaled features; the best on select is taken"
    )
    temperature: Positive = Field(1.0, description="unit of the margin in the likelihood")
    rounds: Count = Field(1, description="sequential updates on disjoint folds of the prompts")
    aggregate: Literal["mean", "lower_bound", "sample"] = Field(
        "mean", description="the reward: posterior mean, mean - k sd, or one draw by the seed"
    )
    deviations: Annotated[float, Field(ge=0)] = Field(1.0, description="k of lower_bound = mean - k sd")


class ImplicitConfig(_Method):
    """beta log pi_expert / pi_reference: R* up to a constant per prompt where RL converged. Nothing is trained."""

    name: Literal["implicit"] = "implicit"
    kl_coefficient: Annotated[Positive, Interpolated("${rlhf.kl_coefficient}")] = Field(description="beta")


class ProbeConfig(_Linear):
    """Supervised upper bound of the features: logistic regression on the label of R*. Not IRL: it sees R*."""

    name: Literal["probe"] = "probe"
    inverse_regularisation: Annotated[tuple[Positive, ...], Field(min_length=1)] = Field(
        (1e-3, 1e-2, 1e-1, 1.0), description="C; the best log-loss on select is taken"
    )


class MajorityConfig(_Method):
    """The same reward for everything: the floor of every metric."""

    name: Literal["majority"] = "majority"


IrlConfig = Annotated[
    MarginConfig
    | PlaceboConfig
    | FailureAwareConfig
    | EnsembleConfig
    | BayesianConfig
    | ImplicitConfig
    | ProbeConfig
    | MajorityConfig,
    Field(discriminator="name"),
]


def of_identity(config: IrlConfig) -> IrlConfig:
    """The same config with seed 0 where the method draws nothing: in a sweep over seeds it is computed once."""
    sampled = isinstance(config, BayesianConfig) and config.aggregate == "sample"
    if isinstance(config, BayesianConfig | ImplicitConfig | ProbeConfig | MajorityConfig) and not sampled:
        return config.model_copy(update={"seed": 0})
    return config


def frozen_features(config: IrlConfig) -> FeaturesConfig | None:
    """The features that are computed once for a method, or none: it reads no features, or trains them itself."""
    if isinstance(config, MarginConfig) and config.backbone.name != "frozen":
        return None
    return config.features if isinstance(config, _Linear) else None


class RefinetuneConfig(PolicyOptimizationConfig):
    """As rlhf, on the learned reward (standardised on the demonstrations)."""

    # At 0.05 several learned rewards were exploited by empty or broken text; at 0.2 the text stayed fluent
    # (trial of 3 losses on a model of this size, one seed each).
    kl_coefficient: Annotated[float, Field(ge=0)] = Field(0.2, description="beta, in sd of the learned reward")
    steps: Count = Field(32, description="optimiser steps")
    batch_size: Count = Field(64, description="completions a step: a multiple of generations")
    learning_rate: LearningRate = Field(4e-4, description="constant")


class EvaluateConfig(Node):
    """Judge the policies and the learned reward on the test prompts."""

    seed: StageSeed
    completions_per_prompt: Annotated[Count, Interpolated("${demonstrations.completions_per_prompt}")]
    max_new_tokens: NewTokens
    batch_size: Count = Field(256, description="completions generated at once")
    bootstrap: Annotated[int, Field(ge=100)] = Field(1000, description="resamples of prompts for the intervals")


class NoBenchmark(Node):
    """The policies are judged on the test prompts alone."""

    name: Literal["none"] = "none"


class _Benchmark(_Source):
    """A second set of prompts, on which the policies are judged as well. Neither completions nor labels are read."""

    node: ClassVar[str] = "benchmark"
    seed: StageSeed
    prompts: Annotated[Count, Interpolated("${data.test_prompts}")] = Field(
        description="drawn by the seed, of those that the data does not have"
    )
    max_prompt_words: Annotated[Count, Interpolated("${data.max_prompt_words}")] = Field(
        description="longer prompts are cut"
    )
    completions_per_prompt: Annotated[Count, Interpolated("${evaluate.completions_per_prompt}")]
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


class TrackingConfig(Node):
    """Where runs are recorded, beside their own folder."""

    mode: Literal["wandb", "offline", "none"] = Field("wandb", description="wandb: online with an account")
    project: str = Field("irl-exp", description="W&B project")
    entity: str | None = Field(None, description="W&B user or team")
    tags: tuple[str, ...] = Field((), description="tags of every run")


class StoreConfig(Node):
    """The content-addressed store of stage results; may be shared by processes and machines."""

    dir: Annotated[Path, Interpolated("${oc.env:IRL_EXP_STORE,multirun/store}")]


class Config(Node):
    """One run of the chain."""

    name: str = Field("chain", pattern=r"^[\w.-]+$", description="of the study: folder under multirun/, W&B group")
    seed: Seed = Field(0, description="root seed; every stage follows it unless its own seed is set")
    until: Literal["sft", "rlhf", "demonstrations", "irl", "refinetune", "evaluate"] = Field(
        "evaluate", description="stop after this stage and evaluate what exists"
    )
    max_new_tokens: Count = Field(32, description="longest completion, in every stage")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: the first visible GPU, else the CPU")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 on a GPU that has it")
    threads: Count = Field(1, description="CPU threads a process; results are repeatable for a fixed number")
    workers: Annotated[int, Field(ge=0)] = Field(0, description="jobs at once; 0: one a core, one on a GPU")
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

    def reaches(self, stage: str) -> bool:
        """Whether `until` lets this stage run."""
        return STAGES.index(stage) <= STAGES.index(self.until)


assert get_args(Config.model_fields["until"].annotation) == STAGES

BASE_NODES: Mapping[str, type[Node]] = {
    "config": Config,
    "model": ModelConfig,
    "comments": CommentsConfig,
    "jigsaw": JigsawConfig,
    "real_toxicity_prompts": RealToxicityPromptsConfig,
    "file": FileConfig,
    "classifier": ClassifierConfig,
    "sequence_classifier": SequenceClassifierConfig,
    "sentiment": SentimentConfig,
    "length": LengthConfig,
    "imported": ImportedConfig,
    "weighted": WeightedConfig,
    "classifier_part": ClassifierPart,
    "sequence_classifier_part": SequenceClassifierPart,
    "sentiment_part": SentimentPart,
    "length_part": LengthPart,
    "imported_part": ImportedPart,
    "policy_optimization": PolicyOptimizationConfig,
    "refinetune": RefinetuneConfig,
    "no_shortcut": NoShortcut,
    "marker_shortcut": MarkerShortcut,
    "length_shortcut": LengthShortcut,
    "no_benchmark": NoBenchmark,
    "jigsaw_benchmark": JigsawBenchmark,
    "real_toxicity_prompts_benchmark": RealToxicityPromptsBenchmark,
    "file_benchmark": FileBenchmark,
    "margin": MarginConfig,
    "placebo": PlaceboConfig,
    "failure_aware": FailureAwareConfig,
    "ensemble": EnsembleConfig,
    "bayesian": BayesianConfig,
    "implicit": ImplicitConfig,
    "probe": ProbeConfig,
    "majority": MajorityConfig,
    "frozen": FrozenBackbone,
    "last_layers": LastLayersBackbone,
    "full": FullBackbone,
    "lora": LoraBackbone,
    "hidden_state": HiddenStateConfig,
    "random": RandomConfig,
    "ngram": NgramConfig,
    "sentiment_features": SentimentFeatures,
    "length_feature": LengthFeature,
    "reference_log_probability": ReferenceLogProbabilityConfig,
    "max_margin": MaxMarginLoss,
    "hinge": HingeLoss,
    "bradley_terry": BradleyTerryLoss,
    "squared": SquaredLoss,
    "confidence_margin": ConfidenceMarginLoss,
    "tracking": TrackingConfig,
}
"""Names under which the YAML files of `conf/` take their defaults: `- /schema@_here_: hinge`."""

CHOSEN_BY_GROUP = frozenset(
    {"model", "data", "reward", "rlhf", "refinetune", "irl", "loss", "backbone", "shortcut", "benchmark", "tracking"}
)
"""Nodes that a config group fills: the base node of their parent leaves them out, and all nodes that may be missing."""


def base_node(model: type[Node]) -> dict[str, Any]:
    """Defaults of a model as plain values, interpolations included; required values are '???' (Hydra's missing)."""
    node: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        interpolation = next((item for item in field.metadata if isinstance(item, Interpolated)), None)
        nested = node_of(field)
        if nested and (name in CHOSEN_BY_GROUP or field.default is None):
            continue
        if interpolation is not None:
            node[name] = str(interpolation)
        elif is_map(field):
            node[name] = {}
        elif nested:
            node[name] = base_node(nested[0])
        elif field.is_required():
            node[name] = "???"
        else:
            node[name] = list(field.default) if isinstance(field.default, tuple) else field.default
    return node


def node_of(field: FieldInfo) -> list[type[Node]]:
    """The node classes that a field may hold: one, several (a choice by `name`), or none for a plain value."""
    found: list[type[Node]] = []

    def collect(annotation: Any) -> None:
        if isinstance(annotation, type) and issubclass(annotation, Node):
            found.append(annotation)
        for argument in get_args(annotation):
            collect(argument)

    collect(field.annotation)
    return found


def is_map(field: FieldInfo) -> bool:
    """Whether the user names the nodes that the field holds."""
    return get_origin(field.annotation) is dict


def register() -> None:
    """Give Hydra the base nodes (group `schema`) and the resolver that the help text uses."""
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    for name, model in BASE_NODES.items():
        ConfigStore.instance().store(group="schema", name=name, node=base_node(model), provider="irl_exp")
    # Hydra copies this singleton for each group that it lists, and what it loads from it a second time: without the
    # first copy --help and TAB take a quarter of the time.
    ConfigStore.__deepcopy__ = lambda store, memo: store  # type: ignore[attr-defined]
    OmegaConf.register_new_resolver("irl_exp_groups", describe_groups, replace=True)
    OmegaConf.register_new_resolver("irl_exp_options", describe_options, replace=True)


def describe_groups() -> str:
    """Config groups and their options for the help text, each with the first comment line of its file."""
    lines: list[str] = []
    for folder in sorted({path.parent for path in CONF.glob("*/**/*.yaml")}):
        group = folder.relative_to(CONF).as_posix()
        lines.append(f"  {group}=")
        for path in sorted(folder.glob("*.yaml")):
            lines.append(f"    {path.stem:<27}{_first_comment(path)}")
    return "\n".join(lines)


def _first_comment(path: Path) -> str:
    """What a config file says of itself; "" where it says nothing."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((line[2:] for line in lines if line.startswith("# ") and "@package" not in line), "")


def question_of(study: str) -> str:
    """What a study of conf/study asks: the first comment of its file after the command; "" for another name."""
    path = CONF / "study" / f"{study}.yaml"
    return _first_comment(path).partition(": ")[2] if path.is_file() else ""


def describe_options() -> str:
    """Every option with its default and meaning, one line each, for the help text."""
    meaning = {key: field.description for key, field in option_fields() if field.description}
    lines: dict[str, str] = {}
    for key, field in option_fields():
        interpolation = next((item for item in field.metadata if isinstance(item, Interpolated)), None)
        default = interpolation or ("" if field.is_required() else field.default)
        option = f"  {key}={'null' if default is None else default}"
        # Choices of one group share keys with other defaults: the first stands for all.
        lines.setdefault(key, f"{option:<46} {meaning.get(key, '')}".rstrip())
    # Hydra substitutes $NAME in the help text.
    return "\n".join(lines.values()).replace("$", "$$")


MINE = "NAME"
"""Stands in keys for a name that the user gives: reward.parts.NAME.weight."""


def option_fields(model: type[Node] = Config, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Dotted key and field of every plain option, those of all choices of a node included.

    Of a part that the user names only what no other node has: its scorer's options are listed once, with the scorer.
    """
    for name, field in model.model_fields.items():
        nested = node_of(field)
        if is_map(field):
            yield from ((f"{prefix}{name}.{MINE}.{key}", option) for key, option in _Part.model_fields.items())
            continue
        for choice in nested:
            yield from option_fields(choice, f"{prefix}{name}.")
        if not nested and not (name == "name" and prefix and prefix != "model."):
            yield f"{prefix}{name}", field


def known_keys() -> list[str]:
    """Every dotted key of the config: options and nodes; NAME stands for any name."""
    keys = {key for key, _ in option_fields()}
    for part in node_of(WeightedConfig.model_fields["parts"]):
        keys |= {f"reward.parts.{MINE}.{name}" for name in part.model_fields}
    nodes = {key.rsplit(".", depth)[0] for key in keys for depth in range(1, key.count(".") + 1)}
    return sorted(keys | nodes)


def _is_known(key: str) -> bool:
    return re.sub(r"^(reward\.parts)\.[^.]+", rf"\1.{MINE}", key) in known_keys()


def _names_near(key: str) -> list[str]:
    """Every key, with the user's own name in place of NAME; none for a key that another choice of the node has."""
    if _is_known(key):
        return []
    part = re.match(r"reward\.parts\.([^.]+)", key)
    return [name.replace(f".{MINE}", f".{part[1]}") if part else name for name in known_keys()]


def known_groups() -> list[str]:
    """Config groups: folders of `conf/`."""
    return sorted({path.parent.relative_to(CONF).as_posix() for path in CONF.glob("*/**/*.yaml")})


def nearest(key: str, names: list[str]) -> str:
    """' Did you mean ...?' with the closest of the names, or nothing."""
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""


def check_override(key: str, value: str) -> None:
    """Refuse an override of a key or group that does not exist, before Hydra suggests to add it with '+'.

    Raises:
        ConfigError: names the key and the nearest right name.
    """
    if key in known_groups() and re.fullmatch(r"[\d.,+\[\]-]+", value):
        options = ", ".join(sorted(path.stem for path in (CONF / key).glob("*.yaml")))
        raise ConfigError(f"{key}={value}: {key} is a config group; choose one of {options}.")
    if key == "hydra" or key.startswith(("hydra.", "hydra/")) or key in known_groups() or _is_known(key):
        return
    hint = nearest(key, known_groups() if "/" in key else _names_near(key) + known_groups())
    kind = "config group" if "/" in key else "option"
    raise ConfigError(f"{key}: there is no such {kind}.{hint} `python launch.py --help` lists all of them.")


def check_choices(keys: Sequence[str], chosen: Mapping[str, Sequence[Sequence[str]]]) -> None:
    """Refuse an option that belongs to another choice of its group, such as data.path with data=comments.

    Args:
        keys: dotted keys of the overrides.
        chosen: of each group that the command line names, the values of its sweep; each is a list of options. Other
            groups have what a chosen file says with `override /group`, else their default: that of conf/config.yaml,
            or of the file that is chosen for the group above.

    Raises:
        ConfigError: names the option and the choices that have it.
    """
    named = [CONF / group / f"{option}.yaml" for group in chosen for value in chosen[group] for option in value]
    chosen = {**_chosen_by([CONF / "local" / "default.yaml", *named]), **chosen}
    for group, values in chosen.items():
        _check_list(group, values)
    for group in known_groups():
        for key in (*keys, *chosen):
            if key.replace("/", ".").startswith(group.replace("/", ".") + "."):
                _check_choice(key, group, _values(group, chosen))


def _chosen_by(files: Iterable[Path]) -> dict[str, list[list[str]]]:
    """What the defaults lists of files choose for other groups: `- override /irl: ensemble`, the last one wins."""
    texts = [path.read_text(encoding="utf-8") for path in files if path.exists()]
    found = [
        pair for text in texts for pair in re.findall(rf"^\s*- override /([\w/]+): {_OPTIONS}", text, re.MULTILINE)
    ]
    return {group: [re.findall(r"\w+", options)] for group, options in found if group in known_groups()}


def swept_by(group: str, option: str) -> list[str]:
    """The overrides that a file of `conf/` adds to every launch that chooses it: its `hydra.sweeper.params`."""
    import yaml

    path = CONF / group / f"{option}.yaml"
    values = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else None
    for key in ("hydra", "sweeper", "params"):
        values = (values or {}).get(key)
    return [f"{key}={_as_typed(value)}" for key, value in (values or {}).items()]


def _as_typed(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _check_list(group: str, values: Sequence[Sequence[str]]) -> None:
    """Refuse a list where only one option can be taken, and one that names an option twice or one that is not there."""
    options = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    if len(values) > 1 and any(swept_by(group, option) for option in options):
        named = ",".join(option for value in values for option in value)
        raise ConfigError(f"{group}={named}: each has a sweep of its own, and a launch runs one: launch them in turn.")
    for value in values:
        shown = f"{group}=[{','.join(value)}]"
        if len(value) > 1 and set(value) - set(options):
            raise ConfigError(
                f"{shown}: there is no option '{min(set(value) - set(options))}' in {', '.join(options)}."
            )
        if len(set(value)) < len(value):
            raise ConfigError(f"{shown}: an option is named twice.")
        if len(value) > 1 and not _joined(group):
            raise ConfigError(f"{shown}: only one can be taken; for a job of each write {group}={','.join(value)}.")


def _joined(group: str) -> bool:
    """Whether several options of the group may be chosen together: each then fills a node of its own."""
    nodes = [_nodes_of_option(path) for path in (CONF / group).glob("*.yaml")]
    return all(found and group.replace("/", ".") not in found for found in nodes)


def _check_choice(key: str, group: str, values: Sequence[Sequence[str]]) -> None:
    """Refuse a key that some choices of the group have, and one of the chosen values has not."""
    nodes = {path.stem: _nodes_of_option(path) for path in (CONF / group).glob("*.yaml")}
    owners = sorted(option for option, found in nodes.items() if _holds(found, key))
    for value in values:
        if not owners or not value or any(option not in nodes or _holds(nodes[option], key) for option in value):
            continue
        missing = key if "/" in key else "such option"
        told = f"{key}: {group}={','.join(value)} has no {missing}; it belongs to {group}={', '.join(owners)}"
        both = f" (both: {group}=[{','.join([*value, owners[0]])}])" if _joined(group) else ""
        raise ConfigError(f"{told}{both}.")


def _values(group: str, chosen: Mapping[str, Sequence[Sequence[str]]]) -> Sequence[Sequence[str]]:
    """The values that a group takes in a launch, each a list of options; empty where no default is found."""
    if group in chosen:
        return chosen[group]
    parent, _, name = group.rpartition("/")
    if not parent:
        return [_default_options(CONF / "config.yaml", name)]
    above = [option for value in _values(parent, chosen) for option in value]
    return [_default_options(CONF / parent / f"{option}.yaml", name) for option in above]


_OPTIONS = r"(\[[\w, ]*\]|\w+)"
"""In a defaults list: one option, or a list of them."""


def _default_options(path: Path, group: str) -> list[str]:
    """What the defaults list of a YAML file says for a group: `- loss: hinge` or `- features: [length, ngram]`."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    found = re.search(rf"^\s*- {group}: {_OPTIONS}", text, re.MULTILINE)
    return re.findall(r"\w+", found[1]) if found else []


def _nodes_of_option(path: Path) -> dict[str, type[Node]]:
    """The classes whose base nodes a YAML file of `conf/` takes, by the dotted key at which it puts them."""
    text = path.read_text(encoding="utf-8")
    header = re.search(r"^# @package (\S+)", text, re.MULTILINE)
    package = header[1].split(".") if header else list(path.parent.relative_to(CONF).parts)
    package = [] if package == ["_global_"] else package
    found = re.findall(r"^\s*- /schema@([\w.]+): (\w+)", text, re.MULTILINE)
    return {".".join([*package, at]).removesuffix("._here_"): BASE_NODES[name] for at, name in found}


def _holds(nodes: Mapping[str, type[Node]], key: str) -> bool:
    """Whether one of the nodes has the option (or holds the group) with this key."""
    dotted = key.replace("/", ".")
    return any(
        dotted.startswith(f"{at}.") and dotted.removeprefix(f"{at}.").split(".")[0] in node.model_fields
        for at, node in nodes.items()
    )


def parse(values: Mapping[str, Any]) -> Config:
    """Typed config of one job from the composed, resolved values.

    Raises:
        ConfigError: lists every wrong field with its value and what is allowed.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        # A list whose items are wrong is also told to be empty, which it is not.
        items = [item for item in error.errors() if item["type"] != "too_short" or not item["input"]]
        raise ConfigError("\n".join(dict.fromkeys(map(_explain, items)))) from None


def _explain(item: Any) -> str:
    """One readable line for one error of pydantic."""
    # A choice between nodes puts its tag into the path (irl.loss.hinge.target): leave out what is no key.
    parts: list[str] = []
    for part in item["loc"]:
        if (item["type"] == "extra_forbidden" and part == item["loc"][-1]) or _is_known(".".join([*parts, str(part)])):
            parts.append(str(part))
    key = ".".join(parts) or "config"
    if item["type"] == "extra_forbidden":
        return f"{key}: there is no such option here.{nearest(key, _names_near(key))}"
    if item["type"] == "union_tag_invalid":
        return f"{key}.name={item['ctx']['tag']}: choose one of {item['ctx']['expected_tags']}"
    if item["type"] == "union_tag_not_found":
        return f"{key}.name: this option must be set, e.g. {key}.name=..."
    message = str(item["msg"]).removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    value = item.get("input")
    if key.replace(".", "/") in known_groups() and not isinstance(value, Mapping):
        return f"{key}={value}: this is a config group; write {key.replace('.', '/')}={value}"
    if item["type"] == "missing" or value == "???":
        return f"{key}: this option must be set, e.g. {key}=..."
    shown = "" if isinstance(value, Mapping) else f"={value}"
    return f"{key}{shown}: {message}"
