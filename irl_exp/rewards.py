"""Rewards: what judges a completion. The ground truth R* and learned rewards share one interface.

Higher is better: less toxic. A saved reward keeps probes, a few completions with their scores, and refuses to be
loaded if it does not reproduce them: a reward with a wrong head or backbone must not judge anything.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
import transformers
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from irl_exp.config import ClassifierConfig, FeaturesConfig, SequenceClassifierConfig
from irl_exp.features import extract
from irl_exp.policies import Completions, Policy, Progress
from irl_exp.runtime import Device

Scores = NDArray[np.float64]


class RewardError(Exception):
    """A reward that cannot be built or does not reproduce its own scores."""


class Reward(Protocol):
    """Judges completions: (n,) scores, higher is better."""

    def score(self, completions: Completions, progress: Progress = ...) -> Scores: ...


def read_text(completions: Completions, reads: str) -> list[str]:
    """What a text reward looks at: the completion alone, or prompt and completion as the policy joined them."""
    if reads == "completion":
        return completions.texts
    return [prompt + text for prompt, text in zip(completions.prompts, completions.texts, strict=True)]


class ClassifierReward:
    """R* = log-odds of 'civil' of a logistic regression on TF-IDF of word n-grams."""

    def __init__(self, vectorizer: Any, coefficients: Scores, intercept: float, reads: str) -> None:
        self.vectorizer, self.coefficients, self.intercept, self.reads = vectorizer, coefficients, intercept, reads

    @staticmethod
    def _new_vectorizer(ngrams: int, **options: Any) -> Any:
        from sklearn.feature_extraction.text import TfidfVectorizer

        # Single letters and punctuation carry tone ("!", "u"); the default pattern would drop them.
        return TfidfVectorizer(ngram_range=(1, ngrams), sublinear_tf=True, token_pattern=r"\w+|[^\w\s]", **options)

    @classmethod
    def fit(cls, texts: Sequence[str], toxic: NDArray[np.bool_], config: ClassifierConfig) -> ClassifierReward:
        """Fit on labelled texts.

        Raises:
            RewardError: only one class is there.
        """
        from sklearn.linear_model import LogisticRegression

        if toxic.all() or not toxic.any():
            raise RewardError("reward=classifier needs texts of both labels in the reward part of the data.")
        vectorizer = cls._new_vectorizer(config.ngrams, min_df=config.min_count)
        model = LogisticRegression(C=config.inverse_regularisation, max_iter=1000, random_state=config.seed)
        model.fit(vectorizer.fit_transform(texts), ~toxic)
        return cls(vectorizer, model.coef_[0].astype(np.float64), float(model.intercept_[0]), config.reads)

    def score(self, completions: Completions, progress: Progress = lambda done, total: None) -> Scores:
        return self.score_texts(read_text(completions, self.reads))

    def score_texts(self, texts: Sequence[str]) -> Scores:
        """(n,) log-odds of 'civil'."""
        return np.asarray(self.vectorizer.transform(texts) @ self.coefficients + self.intercept, dtype=np.float64)

    def save(self, folder: Path) -> None:
        """Vocabulary as JSON, weights as safetensors; no pickle."""
        settings = {
            "reads": self.reads,
            "ngrams": self.vectorizer.ngram_range[1],
            "vocabulary": {term: int(column) for term, column in sorted(self.vectorizer.vocabulary_.items())},
        }
        (folder / "classifier.json").write_text(json.dumps(settings), encoding="utf-8")
        weights = {"coefficients": self.coefficients, "intercept": np.array([self.intercept])}
        save_file({**weights, "idf": self.vectorizer.idf_}, folder / "classifier.safetensors")

    @classmethod
    def load(cls, folder: Path) -> ClassifierReward:
        settings = json.loads((folder / "classifier.json").read_text(encoding="utf-8"))
        weights = load_file(folder / "classifier.safetensors")
        vectorizer = cls._new_vectorizer(settings["ngrams"], vocabulary=settings["vocabulary"])
        vectorizer.idf_ = weights["idf"]
        return cls(vectorizer, weights["coefficients"], float(weights["intercept"][0]), settings["reads"])


class SequenceClassifierReward:
    """R* = logit of the civil label minus logit of the toxic one, of a sequence classifier of transformers."""

    def __init__(self, model: Any, tokenizer: Any, config: SequenceClassifierConfig, device: Device) -> None:
        self.model, self.tokenizer, self.config, self.device = model.to(device.name).eval(), tokenizer, config, device
        self.civil = label_index(model.config, config.civil)
        self.toxic = label_index(model.config, config.toxic)

    @classmethod
    def open(cls, source: str, config: SequenceClassifierConfig, device: Device) -> SequenceClassifierReward:
        """Load from a folder or the hub.

        Raises:
            RewardError: it cannot be opened, lacks trained weights of its head, or lacks a label.
        """
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, revision=config.revision)
            model, report = transformers.AutoModelForSequenceClassification.from_pretrained(
                source, revision=config.revision, dtype=torch.float32, output_loading_info=True
            )
        except (OSError, ValueError, KeyError) as error:
            raise RewardError(f"{source}: no sequence classifier could be opened: {error}") from error
        if report["missing_keys"]:
            raise RewardError(
                f"{source}: weights are missing and would be random: {', '.join(sorted(report['missing_keys']))}."
            )
        return cls(model, tokenizer, config, device)

    def score(self, completions: Completions, progress: Progress = lambda done, total: None) -> Scores:
        texts = read_text(completions, self.config.reads)
        scores: list[float] = []
        for start in range(0, len(texts), self.config.batch_size):
            batch = self.tokenizer(
                texts[start : start + self.config.batch_size],
                padding=True,
                truncation=True,
                max_length=self.config.max_tokens,
                return_tensors="pt",
            ).to(self.device.name)
            with self.device.inference():
                logits = self.model(**batch).logits.float()
            scores += (logits[:, self.civil] - logits[:, self.toxic]).tolist()
            progress(len(scores), len(texts))
        return np.array(scores)

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        # From now on it lives here, whatever becomes of the place that it came from.
        source = str(self.config.path or self.config.hub)
        config = self.config.model_copy(update={"path": None, "hub": source, "revision": None})
        (folder / "sequence_classifier.json").write_text(config.model_dump_json(), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, device: Device) -> SequenceClassifierReward:
        config = SequenceClassifierConfig.model_validate_json((folder / "sequence_classifier.json").read_text())
        return cls.open(str(folder), config, device)


def label_index(config: Any, label: str) -> int:
    """Index of a label by its exact name: 'hate' must not find 'nothate'.

    Raises:
        RewardError: there is no such label; names those that are there.
    """
    names = {int(index): name for index, name in config.id2label.items()}
    found = [index for index, name in names.items() if name == label]
    if len(found) != 1:
        raise RewardError(
            f"the classifier has no label '{label}'; it has {', '.join(map(repr, names.values()))}. "
            "Set reward.civil and reward.toxic to two of them."
        )
    return found[0]


def save_ground_truth(reward: ClassifierReward | SequenceClassifierReward, folder: Path, probes: Completions) -> None:
    """Write R* with its probes."""
    reward.save(folder)
    _save_probes(folder, probes, reward.score(probes))


def load_ground_truth(folder: Path, device: Device) -> Reward:
    """Read R* back.

    Raises:
        RewardError: it does not reproduce its own scores.
    """
    reward: Reward
    if (folder / "classifier.json").exists():
        reward = ClassifierReward.load(folder)
    else:
        reward = SequenceClassifierReward.load(folder, device)
    _check_probes(folder, reward, device)
    return reward


class LearnedReward:
    """R(x, y) = w . (phi(x, y) - center): a linear head on features of the reference policy.

    Attributes:
        weights, center: (d,) float64.
        offset, scale: of the one increasing affine map `standardised`, fitted on the demonstrations.
    """

    def __init__(
        self,
        weights: Scores,
        center: Scores,
        offset: float,
        scale: float,
        features: FeaturesConfig,
        backbone: Policy,
    ) -> None:
        if not scale > 0:
            raise RewardError(f"the scale of a learned reward must be positive, not {scale}.")
        self.weights, self.center = weights, center
        self.offset, self.scale = offset, scale
        self.features, self.backbone = features, backbone

    def score(self, completions: Completions, progress: Progress = lambda done, total: None) -> Scores:
        """(n,) rewards as the loss saw them: no constant is identified."""
        return self.score_features(extract(self.features, self.backbone, completions, progress=progress))

    def score_features(self, features: NDArray[np.float32]) -> Scores:
        """(n,) rewards of (n, d) features."""
        return np.asarray((features - self.center) @ self.weights, dtype=np.float64)

    def standardised(self, scores: Scores) -> Scores:
        """Mean 0 and standard deviation 1 on the demonstrations: the scale of refinetune and of reports."""
        return (scores - self.offset) / self.scale

    def save(self, folder: Path, *, backbone: str, probes: Completions) -> None:
        """Write the head; `backbone` is the digest of the reference policy's artifact (stage sft) in the store."""
        save_file({"weights": self.weights, "center": self.center}, folder / "head.safetensors")
        settings = {"backbone": backbone, "offset": self.offset, "scale": self.scale}
        settings["features"] = self.features.model_dump(mode="json")
        (folder / "reward.json").write_text(json.dumps(settings, indent=1, sort_keys=True), encoding="utf-8")
        _save_probes(folder, probes, self.score(probes))

    @classmethod
    def load(cls, folder: Path, device: Device, *, reference: Path | None = None) -> LearnedReward:
        """Read a learned reward; its backbone lies in the same store unless `reference` says where.

        Raises:
            RewardError: the backbone is not there, or the reward does not reproduce its own scores.
        """
        settings = json.loads((folder / "reward.json").read_text(encoding="utf-8"))
        arrays = load_file(folder / "head.safetensors")
        reference = reference or folder.parent.parent / "sft" / settings["backbone"]
        if not reference.is_dir():
            raise RewardError(f"{folder}: its backbone is missing: {reference}. Pass the reference policy's folder.")
        reward = cls(
            arrays["weights"],
            arrays["center"],
            settings["offset"],
            settings["scale"],
            FeaturesConfig.model_validate(settings["features"]),
            Policy.load(reference, device),
        )
        _check_probes(folder, reward, device)
        return reward


def _save_probes(folder: Path, probes: Completions, scores: Scores) -> None:
    probes.frame().assign(score=scores).to_parquet(folder / "probes.parquet")


def _check_probes(folder: Path, reward: Reward, device: Device) -> None:
    frame = pd.read_parquet(folder / "probes.parquet")
    saved, found = frame["score"].to_numpy(), reward.score(Completions.from_frame(frame))
    # Another device or batch shape rounds differently; a wrong weight is off by far more than that.
    tolerance = (0.1 if device.bf16 else 1e-3) * float(np.abs(saved).max())
    if not np.allclose(saved, found, rtol=0, atol=tolerance):
        worst = float(np.abs(saved - found).max())
        raise RewardError(f"{folder}: the loaded reward does not reproduce its own scores (off by {worst:.3g}).")
