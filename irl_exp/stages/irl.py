"""Demonstrations -> learned reward, by the method of the config; R* is seen by the two probes alone, which say so.

scores.parquet has a row for every demonstration, in their order: score (as the method left it) and, where the method
knows its uncertainty, deviation (epistemic sd of the score), norm (of the scaled features) and for bayesian the
epistemic and aleatoric part in nats. human.parquet: score of the texts that people wrote, one row a row of
data.test_texts; not of irl=author, who knows the authors of the demonstrations alone. epochs.npy, of a fit with epochs
and one head: (epochs, rows of test) float32, their scores after each epoch. The other files are the reward itself
(learned_rewards.py).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from irl_exp.config import (
    AuthorConfig,
    BayesianConfig,
    EnsembleConfig,
    FailureAwareConfig,
    ImplicitConfig,
    IrlConfig,
    MajorityConfig,
    MarginConfig,
    PlaceboConfig,
    ProbeConfig,
    ProbeRegressionConfig,
)
from irl_exp.irl import backbones, contrast, learned_rewards, methods
from irl_exp.irl.features import Featurizer
from irl_exp.irl.learned_rewards import ConstantScorer, ImplicitScorer, LinearScorer, Scorer
from irl_exp.machinery.runtime import Context, in_fp32
from irl_exp.machinery.tensors import mapped
from irl_exp.policies import bases
from irl_exp.policies.language_models import Completions, Policy
from irl_exp.rewards.ground_truth import load_ground_truth
from irl_exp.rewards.reward import Scores
from irl_exp.texts.data import WITHOUT_LABELS, test_texts

VERSION = 6
PROBES = 32
HEADS = 500


def batched(config: IrlConfig) -> bool:
    """Whether configs that differ in their seed alone are cheaper together: see run_many."""
    if isinstance(config, MarginConfig):
        return config.backbone.name == "frozen"
    return isinstance(config, PlaceboConfig | FailureAwareConfig | EnsembleConfig)


def together(config: IrlConfig) -> int:
    """How many configs that differ in their seed alone run_many should get at once: more gain little time.

    500 heads of 384 features on 2,000 pairs take 0.35 GiB.
    """
    if not batched(config):
        return 1
    return max(1, HEADS // (config.members if isinstance(config, EnsembleConfig) else 1))


def run(
    config: IrlConfig,
    *,
    demonstrations: Path,
    reference: Path,
    data: Path,
    features: Path | None = None,
    expert: Path | None = None,
    reward: Path | None = None,
    context: Context,
) -> dict[str, Any]:
    seen = _Seen(config, demonstrations, reference, data, features, context)
    if batched(config):
        (fit,) = methods.fit_margin([config], seen.demonstrations, progress=context.progress)  # type: ignore[list-item]
        return _write_fit(fit, seen, context, note=_note(config, seen))
    if isinstance(config, MajorityConfig):
        return _write(ConstantScorer(), {"score": np.zeros(len(seen.frame))}, seen, context, note="constant")
    if isinstance(config, AuthorConfig):
        return _author(seen, context)
    if isinstance(config, MarginConfig):
        scorer, info = backbones.train(config, reference, seen.frame, context)
        scores = {"score": scorer.score(Completions.from_frame(seen.frame), context.progress)[0]}
        note = f"{_note(config, seen)}, backbone {config.backbone.name}"
        return {**_write(scorer, scores, seen, context, note=note), **info}
    if isinstance(config, ImplicitConfig):
        assert expert is not None
        return _implicit(config, seen, expert, context)
    if isinstance(config, ProbeConfig):
        assert reward is not None
        fit = methods.fit_probe(config, seen.demonstrations, _truth(seen.frame, reward, context))
    elif isinstance(config, ProbeRegressionConfig):
        assert reward is not None
        fit = methods.fit_probe_regression(config, seen.demonstrations, _truth(seen.frame, reward, context))
    else:
        assert isinstance(config, BayesianConfig)
        fit = methods.fit_bayesian(config, seen.demonstrations)
    return _write_fit(fit, seen, context, note=config.name)


def run_many(
    configs: Sequence[IrlConfig],
    *,
    demonstrations: Path,
    reference: Path,
    data: Path,
    features: Path,
    contexts: Sequence[Context],
) -> Iterator[dict[str, Any]]:
    """The same as `run` of each config, which differ in their seed alone; the fits share their computation.

    Yields:
        What `run` returns, of one config after the other, as soon as its folder is complete.
    """
    seen = _Seen(configs[0], demonstrations, reference, data, features, contexts[0])
    fits = methods.fit_margin(configs, seen.demonstrations, progress=contexts[0].progress)  # type: ignore[arg-type]
    together = f", {len(configs)} seeds together" if len(configs) > 1 else ""
    for fit, context in zip(fits, contexts, strict=True):
        yield _write_fit(fit, seen, context, note=_note(configs[0], seen) + together)


class _Seen:
    """What a method may see, read once: demonstrations, their features, and texts of people to score afterwards.

    Raises:
        IrlError: the demonstrations are of another reference policy.
    """

    def __init__(
        self, config: IrlConfig, folder: Path, reference: Path, data: Path, features: Path | None, context: Context
    ) -> None:
        self.config, self.folder, self.reference = config, folder, reference
        self.features, self.device = features, context.device
        self.check("reference", reference)
        self.frame = pd.read_parquet(folder / "demonstrations.parquet")
        if not isinstance(config, ImplicitConfig | MajorityConfig | AuthorConfig):
            self.frame = contrast.part_of_fit(self.frame, config.prompt_fraction, config.completions)
        self.arrays = mapped(features / "features.safetensors") if features else {}
        self.human = test_texts(pd.read_parquet(data / "texts.parquet", columns=WITHOUT_LABELS))

    def check(self, role: str, policy: Path) -> None:
        """A contrast with another policy than that of the RL run explains something else: refuse it."""
        authors = json.loads((self.folder / "policies.json").read_text(encoding="utf-8"))
        if authors[role] != policy.name:
            raise contrast.IrlError(
                f"{self.folder}: they are of the {role} policy {authors[role]}, not of {policy.name}."
            )

    @functools.cached_property
    def basis(self) -> contrast.Basis | None:
        """Of the components that the method sees in place of the features."""
        count = getattr(self.config, "components", None)
        rows = np.flatnonzero(self.frame["part"] == "fit")
        return contrast.Basis.of(self.arrays["features"], rows, count) if count else None

    @functools.cached_property
    def demonstrations(self) -> contrast.Demonstrations:
        features = self.arrays["features"]
        return contrast.Demonstrations(self.frame, self.basis(features) if self.basis else features)

    @functools.cached_property
    def policy(self) -> Policy:
        """The reference policy."""
        return Policy.load(self.reference, self.device)

    def reading(self, scorer: Scorer) -> Scorer:
        """The same reward, which makes the features of a text itself."""
        if not isinstance(scorer, LinearScorer) or self.features is None:
            return scorer
        return replace(scorer, featurizer=Featurizer.load(self.features / "featurizer", self.policy))

    def of_human(self, scorer: Scorer) -> Scores:
        """What a reward says of the texts of people."""
        if isinstance(scorer, LinearScorer):
            return scorer.score_features(self.arrays["human"])[0]
        texts = self.policy.complete(self.human["prompt"].tolist(), self.human["completion"].tolist())
        return scorer.score(texts)[0] if len(texts) else np.empty(0)


def _note(config: IrlConfig, seen: _Seen) -> str:
    pairs = int((seen.frame["part"] == "fit").sum()) // 2
    return f"{config.loss.name}, {pairs:,} pairs"  # type: ignore[union-attr]


def _truth(frame: pd.DataFrame, reward: Path, context: Context) -> Scores:
    """R* of the demonstrations of fit and select; test stays sealed (missing)."""
    rows = np.flatnonzero(frame["part"] != "test")
    truth = np.full(len(frame), np.nan)
    truth[rows] = load_ground_truth(reward, context.device).score(Completions.from_frame(frame.iloc[rows]))
    return truth


def _implicit(config: ImplicitConfig, seen: _Seen, expert: Path, context: Context) -> dict[str, Any]:
    seen.check("expert", expert)
    reference = Policy.load(seen.reference, context.device)
    own = Policy.load(expert, context.device, base=reference)
    if own.tokenizer.get_vocab() != reference.tokenizer.get_vocab():
        raise contrast.IrlError(
            "irl=implicit compares log-probabilities, and the expert has another tokenizer: choose another irl."
        )
    scorer = ImplicitScorer(own, reference, config.kl_coefficient, expert.name)
    ratio = seen.frame["expert_log_probability"] - seen.frame["reference_log_probability"]
    scores = config.kl_coefficient * ratio.to_numpy(dtype=np.float64)
    unread = np.flatnonzero(np.isnan(scores))  # those of fit: the others both policies have read before
    scores[unread] = scorer.score(Completions.from_frame(seen.frame.iloc[unread]), context.progress)[0]
    return _write(scorer, {"score": scores}, seen, context, note="log ratio of the policies")


def _author(seen: _Seen, context: Context) -> dict[str, Any]:
    """Who wrote each demonstration: scores without a scorer, as nothing else has an author that is known."""
    scores = np.asarray(seen.frame["policy"] == "expert", dtype=np.float64)
    pd.DataFrame({"score": scores}).to_parquet(context.folder / "scores.parquet")
    fitted_on = scores[np.asarray(seen.frame["part"] == "fit")]
    learned_rewards.save_author(context.folder, fitted_on, reference=seen.reference.name)
    return {"note": "who wrote it"}


def _write_fit(fit: methods.Fit, seen: _Seen, context: Context, *, note: str) -> dict[str, Any]:
    for row in fit.curve:
        context.log(row)
    if (epochs := fit.epochs(seen.demonstrations, "test")) is not None:
        np.save(context.folder / "epochs.npy", epochs)
    scores = {"score": fit.scores(seen.demonstrations), **fit.uncertainty(seen.demonstrations)}
    scorer = fit.scorer.before(seen.basis) if seen.basis else fit.scorer
    chosen = f", ridge {fit.info['ridge']:g}" if getattr(seen.config, "scaling", "") == "whiten" else ""
    return {**_write(scorer, scores, seen, context, note=f"{note}{chosen}"), **fit.info}


def _write(scorer: Scorer, scores: Mapping[str, Scores], seen: _Seen, context: Context, *, note: str) -> dict[str, Any]:
    """The reward with its probes, its scores of all demonstrations and those of the texts of people."""
    pd.DataFrame(scores).to_parquet(context.folder / "scores.parquet")
    pd.DataFrame({"score": seen.of_human(scorer)}).to_parquet(context.folder / "human.parquet")
    rows = np.linspace(0, len(seen.frame) - 1, PROBES).astype(int)
    probes, probe_scores = Completions.from_frame(seen.frame.iloc[rows]), scores["score"][rows]
    if context.device.bf16 or bases.in_bf16(seen.reference):
        with in_fp32():
            probe_scores = seen.reading(scorer).score(probes)[0]
    learned_rewards.save(
        context.folder,
        scorer,
        scores["score"][np.asarray(seen.frame["part"] == "fit")],
        reference=seen.reference.name,
        probes=probes,
        probe_scores=probe_scores,
        featurizer=seen.features and seen.features / "featurizer",
    )
    return {"note": note}
