"""Methods of inverse reinforcement learning: losses, backbones and what is fitted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from irl_exp.config.features import FeaturesConfig
from irl_exp.config.nodes import Count, Interpolated, LearningRate, Node, Positive, StageSeed
from irl_exp.config.objectives import OBJECTIVES, SELECT_LOSS


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
    keep: Literal["best", "last"] = Field("best", description="the weights of the best epoch on select, or of the last")

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
    also_reads: ClassVar[frozenset[str]] = frozenset()
    """What the method is given besides demonstrations and features: the weights of the expert, or R*."""
    draws: ClassVar[bool] = True
    """Whether the result depends on the seed."""
    scores_texts: ClassVar[bool] = True
    """Whether the reward can judge any completion, as refinetuning needs."""
    objectives: ClassVar[tuple[str, ...]] = ()
    """What a sweeper may optimise of the method: metrics of select."""
    seed: StageSeed = Field(description="head, order of batches and every other draw")

    @property
    def of_identity(self) -> Self:
        """The same config with seed 0 where the method draws nothing: in a sweep over seeds it is computed once."""
        return self if self.draws else self.model_copy(update={"seed": 0})

    @property
    def frozen_features(self) -> FeaturesConfig | None:
        """The features that are computed once for a method; None if it reads none, or trains them itself."""
        return None


class _Linear(_Method):
    """R = w . phi on scaled features."""

    features: FeaturesConfig
    prompt_fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="of the prompts of fit, the same for every seed; a smaller part lies within a larger one"
    )
    completions: Count | None = Field(None, description="of each prompt of fit, the first ones; null: all")
    scaling: Literal["auto", "whiten", "standardise", "none"] = Field(
        "auto",
        description="of the features, before the fit; auto: whiten, but n-grams without hidden states standardise; "
        "none: as they are, not centred either, so that 0 is what the method left it",
    )
    # Rows few for the width need a large one; tests/irl/test_ridge.py has what each costs.
    ridge: Annotated[tuple[Positive, ...], Field(min_length=1)] = Field(
        (1e-4, 1e-2, 1.0),
        description="of whiten, as a fraction of the mean eigenvalue; of several the best on select is taken",
    )

    components: Count | None = Field(
        None,
        description="of the features, those directions that vary most over the completions of fit, in place of all: "
        "for features that are wide for their rows; null: all features",
    )

    @property
    def unsaid(self) -> frozenset[str]:
        return frozenset({"components"} if self.components is None else ())

    @model_validator(mode="before")
    @classmethod
    def _settled(cls, values: Any) -> Any:
        """`auto` becomes what the features want, so the config of a run and its identity say what was done."""
        if not isinstance(values, Mapping) or values.get("scaling", "auto") != "auto":
            return values
        features = values.get("features")
        chosen = features.parts if isinstance(features, FeaturesConfig) else features
        parts = {name for name, part in chosen.items() if part is not None} if isinstance(chosen, Mapping) else set()
        standardise = "ngram" in parts and not parts & {"hidden_state", "last_token", "random"}
        return {**values, "scaling": "standardise" if standardise else "whiten"}

    @property
    def frozen_features(self) -> FeaturesConfig | None:
        return self.features

    @property
    def ridges(self) -> tuple[float, ...]:
        """Those that make a difference: standardise has none."""
        return self.ridge if self.scaling == "whiten" else self.ridge[:1]


class _Fitted(_Linear):
    objectives: ClassVar[tuple[str, ...]] = OBJECTIVES
    loss: LossConfig
    epochs: Count = Field(20, description="passes over the pairs of fit; the best on select is kept")
    batch_size: Count = Field(32, description="pairs a step")
    # By the loss on select: of 1e-3, 3e-3, 1e-2 and 3e-2 the smallest comes nearest to the optimum (-1.288, -1.286,
    # -1.235, -1.094 per sd of the margins; max_margin, 5 seeds on 2,000 pairs).
    learning_rate: LearningRate = Field(1e-3, description="of Adam")
    max_norm: Annotated[tuple[Positive, ...], Field(min_length=1)] = Field(
        (1.0,), description="bound of |w| on scaled features; of several the best on select is taken"
    )
    resample_pairs: bool = Field(
        False, description="draw prompts with replacement, each with all its pairs, by the seed"
    )


class MarginConfig(_Fitted):
    """Reward fitted to contrast pairs (expert, baseline) by a loss of their margin."""

    name: Literal["margin"] = "margin"
    backbone: BackboneConfig

    @property
    def frozen_features(self) -> FeaturesConfig | None:
        return self.features if self.backbone.name == "frozen" else None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.backbone.name == "frozen":
            return self
        if len(self.features.parts) != 1 or not self.features.parts.keys() <= {"hidden_state", "last_token"}:
            raise ValueError(
                f"irl/backbone={self.backbone.name} trains hidden states: it takes irl/features=hidden_state or "
                f"last_token alone, not {'+'.join(self.features.parts)}"
            )
        if self.components is not None:
            raise ValueError(
                f"components={self.components}: irl/backbone={self.backbone.name} trains the features; components are "
                "of features that stay: irl/backbone=frozen"
            )
        for name, values in (("max_norm", self.max_norm), ("ridge", self.ridges)):
            if len(values) > 1:
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
    members: Annotated[int, Field(ge=2, le=1000)] = Field(
        10, description="heads, each of a seed of its own that follows from irl.seed"
    )
    aggregate: Literal["mean", "median", "lower_bound", "worst"] = Field("mean", description="of standardised members")
    deviations: Annotated[float, Field(ge=0)] = Field(1.0, description="k of lower_bound = mean - k sd")
    resample_pairs: bool = Field(
        True, description="each member draws prompts with replacement, each with all its pairs"
    )


class BayesianConfig(_Linear):
    """Posterior of a linear reward: Gaussian prior, Bradley-Terry likelihood (arXiv 2510.06096)."""

    objectives: ClassVar[tuple[str, ...]] = (SELECT_LOSS,)
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

    @property
    def of_identity(self) -> Self:
        return self if self.aggregate == "sample" else self.model_copy(update={"seed": 0})


class ImplicitConfig(_Method):
    """beta log pi_expert / pi_reference: R* up to a constant per prompt where RL converged. Nothing is trained.

    No ceiling of IRL: log-probabilities of two networks are noisy, and a fitted reward that smooths them may beat them.
    """

    also_reads: ClassVar[frozenset[str]] = frozenset({"expert"})
    draws: ClassVar[bool] = False
    name: Literal["implicit"] = "implicit"
    kl_coefficient: Annotated[Positive, Interpolated("${rlhf.kl_coefficient}")] = Field(description="beta")


class ProbeConfig(_Linear):
    """What the features know of the label of R*, by logistic regression: the ceiling of AUROC. It sees R*: no IRL."""

    also_reads: ClassVar[frozenset[str]] = frozenset({"reward"})
    draws: ClassVar[bool] = False
    name: Literal["probe"] = "probe"
    inverse_regularisation: Annotated[tuple[Positive, ...], Field(min_length=1)] = Field(
        (1e-3, 1e-2, 1e-1, 1.0), description="C; the best log-loss on select is taken"
    )


class ProbeRegressionConfig(_Linear):
    """What the features know of R* within prompts, by ridge regression: the ceiling of EPIC. It sees R*: no IRL."""

    also_reads: ClassVar[frozenset[str]] = frozenset({"reward"})
    draws: ClassVar[bool] = False
    name: Literal["probe_regression"] = "probe_regression"
    penalty: Annotated[tuple[Positive, ...], Field(min_length=1)] = Field(
        (1e-3, 1e-2, 1e-1, 1.0),
        description="of |w|^2, per mean variance of a scaled feature; the least squared error on select is taken",
    )


class AuthorConfig(_Method):
    """1 for a completion of the expert, 0 for one of the reference: what knowing who wrote it, and nothing else, gets.

    It cannot score a text whose author is not known, so there is nothing to refinetune on.
    """

    draws: ClassVar[bool] = False
    scores_texts: ClassVar[bool] = False
    name: Literal["author"] = "author"


class MajorityConfig(_Method):
    """The same reward for everything: the floor of every metric."""

    draws: ClassVar[bool] = False
    name: Literal["majority"] = "majority"


IrlConfig = Annotated[
    MarginConfig
    | PlaceboConfig
    | FailureAwareConfig
    | EnsembleConfig
    | BayesianConfig
    | ImplicitConfig
    | ProbeConfig
    | ProbeRegressionConfig
    | AuthorConfig
    | MajorityConfig,
    Field(discriminator="name"),
]
