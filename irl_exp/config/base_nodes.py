"""What Hydra gets of the models: base nodes for the YAML files under conf/."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from irl_exp.config.data import (
    CommentsConfig,
    ExpertTextsConfig,
    FileBenchmark,
    FileConfig,
    JigsawBenchmark,
    JigsawConfig,
    NoBenchmark,
    RealToxicityPromptsBenchmark,
    RealToxicityPromptsConfig,
)
from irl_exp.config.executor import KubernetesExecutor, LocalExecutor, LsfExecutor, PbsExecutor, SlurmExecutor
from irl_exp.config.experiment import Config, TrackingConfig
from irl_exp.config.experts import CheckpointExpert, FurtherExpert, ItselfExpert, RlhfExpert, TextsExpert
from irl_exp.config.explain import ExplainConfig, NoExplain
from irl_exp.config.features import (
    HiddenStateConfig,
    LengthFeature,
    NgramConfig,
    RandomConfig,
    ReferenceLogProbabilityConfig,
    SentimentFeatures,
)
from irl_exp.config.irl import (
    AuthorConfig,
    BayesianConfig,
    BradleyTerryLoss,
    ConfidenceMarginLoss,
    EnsembleConfig,
    FailureAwareConfig,
    FrozenBackbone,
    FullBackbone,
    HingeLoss,
    ImplicitConfig,
    LastLayersBackbone,
    LoraBackbone,
    MajorityConfig,
    MarginConfig,
    MaxMarginLoss,
    PlaceboConfig,
    ProbeConfig,
    ProbeRegressionConfig,
    SquaredLoss,
)
from irl_exp.config.models import ModelConfig
from irl_exp.config.nodes import Interpolated, Node, is_map, node_of
from irl_exp.config.policies import (
    BestOfNConfig,
    DpoConfig,
    LoraConfig,
    NoAdapter,
    PolicyOptimizationConfig,
    RefinetuneConfig,
)
from irl_exp.config.rewards import (
    ClassifierConfig,
    ClassifierPart,
    GoalConfig,
    ImportedConfig,
    ImportedPart,
    LengthConfig,
    LengthPart,
    NoReward,
    SentimentConfig,
    SentimentPart,
    SequenceClassifierConfig,
    SequenceClassifierPart,
    WeightedConfig,
)
from irl_exp.config.sampler import OwnSampler, VllmSampler
from irl_exp.config.shortcuts import LengthShortcut, MarkerShortcut, NoShortcut

BASE_NODES: Mapping[str, type[Node]] = {
    "config": Config,
    "model": ModelConfig,
    "no_adapter": NoAdapter,
    "lora_adapter": LoraConfig,
    "own_sampler": OwnSampler,
    "vllm_sampler": VllmSampler,
    "comments": CommentsConfig,
    "jigsaw": JigsawConfig,
    "real_toxicity_prompts": RealToxicityPromptsConfig,
    "file": FileConfig,
    "expert_texts": ExpertTextsConfig,
    "rlhf_expert": RlhfExpert,
    "checkpoint_expert": CheckpointExpert,
    "texts_expert": TextsExpert,
    "itself_expert": ItselfExpert,
    "further_expert": FurtherExpert,
    "no_reward": NoReward,
    "classifier": ClassifierConfig,
    "sequence_classifier": SequenceClassifierConfig,
    "sentiment": SentimentConfig,
    "length": LengthConfig,
    "imported": ImportedConfig,
    "goal": GoalConfig,
    "weighted": WeightedConfig,
    "classifier_part": ClassifierPart,
    "sequence_classifier_part": SequenceClassifierPart,
    "sentiment_part": SentimentPart,
    "length_part": LengthPart,
    "imported_part": ImportedPart,
    "policy_optimization": PolicyOptimizationConfig,
    "dpo": DpoConfig,
    "best_of_n": BestOfNConfig,
    "refinetune": RefinetuneConfig,
    "no_shortcut": NoShortcut,
    "marker_shortcut": MarkerShortcut,
    "length_shortcut": LengthShortcut,
    "explain": ExplainConfig,
    "no_explain": NoExplain,
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
    "probe_regression": ProbeRegressionConfig,
    "author": AuthorConfig,
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
    "local_executor": LocalExecutor,
    "slurm_executor": SlurmExecutor,
    "pbs_executor": PbsExecutor,
    "lsf_executor": LsfExecutor,
    "kubernetes_executor": KubernetesExecutor,
}
"""Names under which the YAML files of `conf/` take their defaults: `- /schema@_here_: hinge`."""

CHOSEN_BY_GROUP = frozenset(
    {
        "model",
        "adapter",
        "data",
        "expert",
        "reward",
        "rlhf",
        "refinetune",
        "irl",
        "loss",
        "backbone",
        "shortcut",
        "benchmark",
        "tracking",
        "explain",
        "executor",
    }
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


@functools.cache
def register() -> None:
    """Give Hydra the base nodes (group `schema`)."""
    from hydra.core.config_store import ConfigStore

    for name, model in BASE_NODES.items():
        ConfigStore.instance().store(group="schema", name=name, node=base_node(model), provider="irl_exp")
    # Hydra copies this singleton for each group that it lists, and what it loads from it a second time: without the
    # first copy --help and TAB take a quarter of the time.
    ConfigStore.__deepcopy__ = lambda store, memo: store  # type: ignore[attr-defined]
