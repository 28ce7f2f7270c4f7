"""The ground truth R*: what RLHF optimises, and what a learned reward is judged against. Higher is better.

docs/rewards.md says what each kind is. All are files of plain numbers and text, no pickle.
"""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import pandas as pd
import torch
import transformers
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from irl_exp.config import ClassifierConfig, GoalConfig, LengthConfig, SequenceClassifierConfig, source_of
from irl_exp.machinery.runtime import Device, in_fp32
from irl_exp.machinery.shards import in_order
from irl_exp.machinery.store import fingerprint, verify
from irl_exp.measures.reward_comparison import auroc
from irl_exp.policies.language_models import UNOPENED, Completions, Progress, by_length, first_line
from irl_exp.rewards.goals import GOALS
from irl_exp.rewards.reward import Reward, RewardError, Scores, check_probes, read_back, save_probes
from irl_exp.texts.sentiment import polarity


class GroundTruth(Reward, Protocol):
    """A reward that can be kept: `save` writes <kind>.json and what belongs to it, `load` reads it back."""

    def save(self, folder: Path) -> None: ...

    @classmethod
    def load(cls, folder: Path, device: Device) -> Self: ...


def read_text(completions: Completions, reads: str) -> list[str]:
    """What a text reward looks at: the completion alone, or prompt and completion as the policy joined them."""
    if reads == "completion":
        return completions.texts
    return [prompt + text for prompt, text in zip(completions.prompts, completions.texts, strict=True)]


def of_frame(texts: pd.DataFrame) -> Completions:
    """Rows of texts.parquet, without token ids: no ground truth reads them."""
    empty: list[list[int]] = [[] for _ in range(len(texts))]
    return Completions(texts["prompt"].tolist(), texts["completion"].tolist(), empty, empty)


def probes_of(texts: pd.DataFrame, part: str, count: int) -> Completions:
    """Some texts of a part to check a reward with; of a list of prompts, of which none is for training, prompts."""
    own = texts[texts["part"] == part]
    return of_frame((texts.assign(completion=texts["prompt"]) if own.empty else own).head(count))


def hold_out(texts: pd.DataFrame, fraction: float, generator: np.random.Generator) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Texts to fit on and texts to test on (a fraction of the prompts), without a common prompt."""
    prompts = generator.permutation(sorted(texts["prompt"].unique()))
    inside = texts["prompt"].isin(set(prompts[: max(1, round(len(prompts) * fraction))]))
    return texts[~inside], texts[inside]


class ClassifierReward:
    """R* = log-odds of 'civil' of a small network, or of a logistic regression, on TF-IDF of n-grams.

    A sum over n-grams cannot tell "whoever called you an idiot was right" from "... was wrong" and both from their
    like about praise; one hidden layer can. Layers are (inputs, outputs) weights and (outputs,) biases, relu between
    them; one layer is the logistic regression.
    """

    def __init__(self, vectorizer: Any, layers: Sequence[tuple[Scores, Scores]], reads: str) -> None:
        self.vectorizer, self.layers, self.reads = vectorizer, layers, reads

    @classmethod
    def fit(cls, texts: pd.DataFrame, config: ClassifierConfig) -> ClassifierReward:
        """The classifier of the config: n-grams of words, and what predicts a validation part best of them.

        Args:
            texts: rows of texts.parquet that have a label.

        Raises:
            RewardError: only one class is there.
        """
        vectorizer = _vectorizer("word", (1, config.ngrams), min_df=config.min_count)
        civil, inputs = _labelled(vectorizer, texts, config.reads)
        models = [_logistic(config.inverse_regularisation, config.seed)]
        if config.hidden_units:
            models.append(_network(config.hidden_units, config.seed, len(civil)))
        chosen = _best(models, inputs, civil, texts["prompt"], config) if len(models) > 1 else models[0]
        return cls(vectorizer, _layers(_quiet(chosen, inputs, civil)), config.reads)

    @classmethod
    def fit_characters(cls, texts: pd.DataFrame, *, seed: int) -> ClassifierReward:
        """The second judge: the 5,000 most frequent n-grams of 2 to 5 characters of the completion, and a network."""
        vectorizer = _vectorizer("char", (2, 5), min_df=2, max_features=CHARACTER_NGRAMS)
        civil, inputs = _labelled(vectorizer, texts, "completion")
        return cls(
            vectorizer, _layers(_quiet(_network(CHARACTER_UNITS, seed, len(civil)), inputs, civil)), "completion"
        )

    @property
    def kind(self) -> str:
        """What it is, in words."""
        return "network" if len(self.layers) > 1 else "logistic regression"

    def score(self, completions: Completions, progress: Progress = lambda done, total: None) -> Scores:
        return self.score_texts(read_text(completions, self.reads))

    def score_texts(self, texts: Sequence[str]) -> Scores:
        """(n,) log-odds of 'civil'."""
        values = self.vectorizer.transform(texts)
        for number, (weights, biases) in enumerate(self.layers):
            values = np.asarray((np.maximum(values, 0) if number else values) @ weights) + biases
        return np.asarray(values[:, 0], dtype=np.float64)

    def accuracy(self, texts: pd.DataFrame) -> dict[str, float]:
        """How often the sign of the score is the label, and how often the more frequent label is; AUROC."""
        toxic, scores = texts["toxic"].to_numpy(dtype=bool), self.score(of_frame(texts))
        found = {"accuracy": float(((scores < 0) == toxic).mean())}
        found |= {"majority_accuracy": float(max(toxic.mean(), 1 - toxic.mean())), "n": len(toxic)}
        return found if toxic.all() or not toxic.any() else {**found, "auroc": auroc(scores, ~toxic)}

    def save(self, folder: Path) -> None:
        settings = {
            "reads": self.reads,
            "analyzer": self.vectorizer.analyzer,
            "ngrams": self.vectorizer.ngram_range,
            "vocabulary": {term: int(column) for term, column in sorted(self.vectorizer.vocabulary_.items())},
        }
        (folder / "classifier.json").write_text(json.dumps(settings), encoding="utf-8")
        weights = {"idf": self.vectorizer.idf_}
        for number, layer in enumerate(self.layers):
            weights |= {f"{name}.{number}": values for name, values in zip(("weights", "biases"), layer, strict=True)}
        save_file(weights, folder / "classifier.safetensors")

    @classmethod
    def load(cls, folder: Path, device: Device) -> Self:
        settings = json.loads((folder / "classifier.json").read_text(encoding="utf-8"))
        weights = load_file(folder / "classifier.safetensors")
        ngrams = tuple(settings["ngrams"])
        vectorizer = _vectorizer(settings["analyzer"], ngrams, vocabulary=settings["vocabulary"])
        vectorizer.idf_ = weights.pop("idf")
        layers = [(weights[f"weights.{number}"], weights[f"biases.{number}"]) for number in range(len(weights) // 2)]
        return cls(vectorizer, layers, settings["reads"])


ROWS = 64
"""Texts that a sequence classifier reads at once at most, on a CPU."""
UPDATES, PASSES, BATCH = 1200, 40, 64
"""Of the network: 1,200 updates however many texts there are (15 passes over 5,000), but no text more than 40 times."""
CHARACTER_NGRAMS, CHARACTER_UNITS = 5000, 32
VALIDATION = 0.2
"""Of the prompts to fit on: they choose between network and logistic regression, by log loss."""


def _labelled(vectorizer: Any, texts: pd.DataFrame, reads: str) -> tuple[NDArray[np.bool_], Any]:
    """(n,) civil, and (n, d) features of the texts, to which the vectorizer is fitted."""
    civil = ~texts["toxic"].to_numpy(dtype=bool)
    if civil.all() or not civil.any():
        raise RewardError("reward=classifier needs texts of both labels in the reward part of the data.")
    return civil, vectorizer.fit_transform(read_text(of_frame(texts), reads))


def _logistic(strength: float, seed: int) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength, max_iter=1000, random_state=seed)


def _network(units: int, seed: int, count: int) -> Any:
    from sklearn.neural_network import MLPClassifier

    passes = min(PASSES, -(-UPDATES * BATCH // count))
    return MLPClassifier(
        (units,),
        alpha=1e-2,
        batch_size=min(BATCH, count),
        learning_rate_init=3e-3,
        max_iter=passes,
        n_iter_no_change=passes + 1,  # never stopped by the loss: the number of updates is fixed
        random_state=seed,
    )


def _best(
    models: Sequence[Any], inputs: Any, civil: NDArray[np.bool_], prompts: pd.Series[str], config: ClassifierConfig
) -> Any:
    """The model with the lowest log loss on a fifth of the prompts; the first one where these have one class."""
    from sklearn.base import clone
    from sklearn.metrics import log_loss

    generator = np.random.default_rng(config.seed)
    names = generator.permutation(sorted(prompts.unique()))
    inside = prompts.isin(set(names[: round(len(names) * VALIDATION)])).to_numpy()
    if any(len(np.unique(civil[rows])) < 2 for rows in (inside, ~inside)):
        return models[0]
    losses = [
        log_loss(civil[inside], _quiet(clone(model), inputs[~inside], civil[~inside]).predict_proba(inputs[inside]))
        for model in models
    ]
    return models[int(np.argmin(losses))]


def _quiet(model: Any, inputs: Any, civil: NDArray[np.bool_]) -> Any:
    """Fit; that the network stops after its updates is meant."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(inputs, civil)


def _layers(model: Any) -> list[tuple[Scores, Scores]]:
    """Weights (inputs, outputs) and biases of a fitted model of sklearn."""
    if hasattr(model, "coefs_"):
        return [(np.ascontiguousarray(w), b) for w, b in zip(model.coefs_, model.intercepts_, strict=True)]
    return [(np.ascontiguousarray(model.coef_.T, dtype=np.float64), np.asarray(model.intercept_, dtype=np.float64))]


def _vectorizer(analyzer: str, ngrams: tuple[int, ...], **options: Any) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    # Single letters and punctuation carry tone ("!", "u"); the default pattern would drop them.
    words = {"token_pattern": r"\w+|[^\w\s]"} if analyzer == "word" else {}
    return TfidfVectorizer(analyzer=analyzer, ngram_range=ngrams, sublinear_tf=True, **words, **options)


class SequenceClassifierReward:
    """R* = logit of the civil label minus logit of the toxic one, of a sequence classifier of transformers."""

    def __init__(self, model: Any, tokenizer: Any, config: SequenceClassifierConfig, device: Device) -> None:
        self.model, self.tokenizer, self.config, self.device = model.to(device.name).eval(), tokenizer, config, device
        self.civil = label_index(model.config, config.civil)
        self.toxic = label_index(model.config, config.toxic)

    @classmethod
    def open(cls, source: str, config: SequenceClassifierConfig, device: Device) -> Self:
        """Load from a folder or the hub.

        Raises:
            RewardError: it cannot be opened, lacks trained weights of its head, or lacks a label.
        """
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                source, revision=config.revision, trust_remote_code=False
            )
            model, report = transformers.AutoModelForSequenceClassification.from_pretrained(
                source,
                revision=config.revision,
                dtype=torch.float32,
                output_loading_info=True,
                trust_remote_code=False,
            )
        except UNOPENED as error:
            raise RewardError(f"{source}: no sequence classifier could be opened: {first_line(error)}") from error
        if report["missing_keys"]:
            raise RewardError(
                f"{source}: weights are missing and would be random: {', '.join(sorted(report['missing_keys']))}."
            )
        return cls(model, tokenizer, config, device)

    def score(self, completions: Completions, progress: Progress = lambda done, total: None) -> Scores:
        texts = read_text(completions, self.config.reads)
        encoded = self.tokenizer(texts, truncation=True, max_length=self.config.max_tokens)
        lengths = list(map(len, encoded["input_ids"]))
        self._check_tokens(lengths)
        batches = by_length(lengths, self.device, rows=ROWS)

        def of(rows: NDArray[np.int64]) -> NDArray[np.float64]:
            own = {name: [values[row] for row in rows] for name, values in encoded.items()}
            batch = self.tokenizer.pad(own, return_tensors="pt").to(self.device.name)
            with self.device.inference():
                logits = self.model(**batch).logits.float()
            return np.asarray((logits[:, self.civil] - logits[:, self.toxic]).double().cpu())

        scores, done = np.zeros(len(texts)), 0
        for rows, found in zip(batches, in_order(of, batches, self.device.threads), strict=True):
            scores[rows] = found
            progress(done := done + len(rows), len(texts))
        return scores

    def _check_tokens(self, lengths: list[int]) -> None:
        """A text without a single token has no score; padding beside other texts would make one up."""
        if 0 in lengths:
            raise RewardError(
                f"text {lengths.index(0)} has no tokens for the classifier, whose tokenizer adds none of its "
                "own to an empty text. Set reads=text (prompt and completion are judged together), or choose a "
                "classifier whose tokenizer marks the start or the end of a text."
            )

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        # From now on it lives here, whatever becomes of the place that it came from.
        source = str(self.config.path or self.config.hub)
        config = self.config.model_copy(update={"path": None, "hub": source, "revision": None})
        (folder / "sequence_classifier.json").write_text(
            config.model_dump_json(include=set(SequenceClassifierConfig.model_fields)), encoding="utf-8"
        )

    @classmethod
    def load(cls, folder: Path, device: Device) -> Self:
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


@dataclass(frozen=True)
class SentimentReward:
    """R* = TextBlob's polarity, from -1 over 0 (neutral) to 1."""

    reads: str = "completion"

    def score(self, completions: Completions, progress: Progress = lambda done, total: None) -> Scores:
        return polarity(read_text(completions, self.reads))

    def save(self, folder: Path) -> None:
        (folder / "sentiment.json").write_text(json.dumps({"reads": self.reads}), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, device: Device) -> Self:
        return cls(**json.loads((folder / "sentiment.json").read_text(encoding="utf-8")))


@dataclass(frozen=True)
class LengthReward:
    """R* = tolerance - |words - target| with words what white space separates in the completion."""

    target: int
    tolerance: int

    def score(self, completions: Completions, progress: Progress = lambda done, total: None) -> Scores:
        words = np.array([len(text.split()) for text in completions.texts], dtype=np.float64)
        return self.tolerance - np.abs(words - self.target)

    def save(self, folder: Path) -> None:
        settings = {"target": self.target, "tolerance": self.tolerance}
        (folder / "length.json").write_text(json.dumps(settings), encoding="utf-8")

    @classmethod
    def of(cls, config: LengthConfig) -> Self:
        return cls(config.target, config.tolerance)

    @classmethod
    def load(cls, folder: Path, device: Device) -> Self:
        return cls(**json.loads((folder / "length.json").read_text(encoding="utf-8")))


@dataclass(frozen=True)
class GoalReward:
    """R* = strength * (g - center) / scale with g the number that the goal gives a completion."""

    goal: str
    strength: float
    center: float
    scale: float

    @classmethod
    def standardised_on(cls, completions: Completions, config: GoalConfig) -> Self:
        """Raises RewardError for a goal that gives all of the completions the same number: it has no scale."""
        found = GOALS[config.goal](completions.prompts, completions.texts)
        if not found.std() > 1e-9 * np.abs(found).max():
            raise RewardError(
                f"reward.goal={config.goal} gives {found[0]:g} for all {len(found):,} texts of the reward part: there "
                "is nothing to choose by. Take another goal, or texts in which they differ."
            )
        return cls(config.goal, config.strength, float(found.mean()), float(found.std()))

    def score(self, completions: Completions, progress: Progress = lambda done, total: None) -> Scores:
        found = GOALS[self.goal](completions.prompts, completions.texts)
        return self.strength * (found - self.center) / self.scale

    def save(self, folder: Path) -> None:
        (folder / "goal.json").write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, device: Device) -> Self:
        return cls(**json.loads((folder / "goal.json").read_text(encoding="utf-8")))


class ImportedReward:
    """R* = function(prompts, completions) of a module of the user. It stays where it is; its file is known by content.

    Raises:
        RewardError: the function cannot be imported.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.function = _imported(name)

    def score(self, completions: Completions, progress: Progress = lambda done, total: None) -> Scores:
        """Raises RewardError where the function fails, or gives anything but one finite number a text."""
        try:
            found = np.asarray(self.function(list(completions.prompts), list(completions.texts)), dtype=np.float64)
        except (Exception, SystemExit) as error:  # the user's code may raise anything
            raise RewardError(f"{self.name} failed: {type(error).__name__}: {error}") from error
        if found.shape != (len(completions),):
            raise RewardError(
                f"{self.name} must give {len(completions)} numbers, one a text; its shape is {found.shape}."
            )
        if not np.isfinite(found).all():
            row = int(np.flatnonzero(~np.isfinite(found))[0])
            raise RewardError(f"{self.name} gives {found[row]} for text {row}, {completions.texts[row]!r}.")
        return found

    def save(self, folder: Path) -> None:
        settings = {"function": self.name, "source": fingerprint(source_of(self.name))}
        (folder / "imported.json").write_text(json.dumps(settings), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, device: Device) -> Self:
        settings = json.loads((folder / "imported.json").read_text(encoding="utf-8"))
        reward = cls(settings["function"])
        if fingerprint(source_of(reward.name)) != settings["source"]:
            raise RewardError(
                f"{folder}: the file of {reward.name} has changed since this R* was made. Put it back, or run the "
                "chain again: an edited function is another R*."
            )
        return reward


def _imported(name: str) -> Callable[[list[str], list[str]], Sequence[float]]:
    module, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # the user's module may raise anything
        raise RewardError(f"{name} cannot be imported: {type(error).__name__}: {error}") from error
    if not callable(function):
        raise RewardError(f"{name} is a {type(function).__name__}, not a function of (prompts, completions).")
    return function  # type: ignore[no-any-return]


def check_function(name: str) -> None:
    """Try a function on three texts, one of them empty, together and one by one.

    Raises:
        RewardError: it fails, or a text's score depends on the other texts: RL would be rewarded by another rule in
            every batch.
    """
    reward = ImportedReward(name)
    texts = Completions(["The bus", "I think", "Ok"], [" is late again.", "", " naïve 🙂\npeople left!"], [], [])
    together = reward.score(texts)
    alone = [
        float(reward.score(Completions([prompt], [text], [], []))[0])
        for prompt, text in zip(texts.prompts, texts.texts, strict=True)
    ]
    if not np.allclose(together, alone, rtol=0, atol=1e-3 * float(np.abs(together).max())):
        raise RewardError(
            f"{name} gives a text another score when it is called with other texts ({together.tolist()} together, "
            f"{alone} one by one). Score each text for itself; standardise, if at all, with fixed numbers."
        )


@dataclass(frozen=True)
class WeightedReward:
    """R* = sum_k w_k z_k / sum_k |w_k| with z_k = (score_k - center_k) / scale_k, an increasing affine map fixed once.

    Attributes:
        scorers: k ground truths by name.
        weights: (k,) not 0.
        center, scale: (k,) mean and standard deviation of each scorer on the texts that it was standardised on.
    """

    scorers: Mapping[str, GroundTruth]
    weights: Scores
    center: Scores
    scale: Scores

    @classmethod
    def standardised_on(
        cls,
        completions: Completions,
        scorers: Mapping[str, GroundTruth],
        weights: Mapping[str, float],
        progress: Progress = lambda done, total: None,
    ) -> Self:
        """Raises RewardError for a part that gives all of the completions the same score: it has no scale."""
        values = np.array([weights[name] for name in scorers], dtype=np.float64)
        unscaled = cls(scorers, values, np.zeros(len(values)), np.ones(len(values)))
        scores = unscaled.parts(completions, progress)
        for name, column in zip(scorers, scores.T, strict=True):
            # Rounding may part scores that are the same in truth.
            if not column.std() > 1e-9 * np.abs(column).max():
                raise RewardError(
                    f"reward.parts.{name} gives {column[0]:g} for all {len(column):,} texts of the reward part: it has "
                    f"no scale. Change its options, or remove it with ~reward.parts.{name}."
                )
        return cls(scorers, values, scores.mean(axis=0), scores.std(axis=0))

    @property
    def names(self) -> list[str]:
        """Names of the parts, in the order of `weights` and of the columns of `parts`."""
        return list(self.scorers)

    def parts(self, completions: Completions, progress: Progress = lambda done, total: None) -> NDArray[np.float64]:
        """(n, k) standardised scores z of the parts."""
        columns: list[Scores] = []
        for scorer in self.scorers.values():
            columns.append(scorer.score(completions))
            progress(len(columns), len(self.scorers))
        return (np.stack(columns, axis=1) - self.center) / self.scale

    def combined(self, parts: NDArray[np.float64]) -> Scores:
        """(n,) R* of (n, k) standardised scores."""
        return np.asarray(parts @ (self.weights / np.abs(self.weights).sum()))

    def score(self, completions: Completions, progress: Progress = lambda done, total: None) -> Scores:
        return self.combined(self.parts(completions, progress))

    def save(self, folder: Path) -> None:
        """Each part in a folder of its own."""
        numbers = {"weight": self.weights, "center": self.center, "scale": self.scale}
        settings = {
            name: {key: float(values[k]) for key, values in numbers.items()} for k, name in enumerate(self.names)
        }
        (folder / "weighted.json").write_text(json.dumps(settings), encoding="utf-8")
        for name, scorer in self.scorers.items():
            (folder / "parts" / name).mkdir(parents=True)
            scorer.save(folder / "parts" / name)

    @classmethod
    def load(cls, folder: Path, device: Device) -> Self:
        settings = json.loads((folder / "weighted.json").read_text(encoding="utf-8"))
        numbers = (np.array([part[key] for part in settings.values()]) for key in ("weight", "center", "scale"))
        return cls({name: _load(folder / "parts" / name, device) for name in settings}, *numbers)


KINDS: Mapping[str, type[GroundTruth]] = {
    "classifier": ClassifierReward,
    "sequence_classifier": SequenceClassifierReward,
    "sentiment": SentimentReward,
    "length": LengthReward,
    "imported": ImportedReward,
    "goal": GoalReward,
    "weighted": WeightedReward,
}
"""The kinds of ground truth by the name of the file that each leaves."""

LOG_ODDS = ("classifier", "sequence_classifier")
"""Those that are log-odds of 'civil': of these 1 - sigmoid(R*) is the probability of 'toxic'."""


def is_log_odds(folder: Path) -> bool:
    """Whether the ground truth in this folder gives probabilities."""
    return any((folder / f"{kind}.json").is_file() for kind in LOG_ODDS)


def _load(folder: Path, device: Device) -> GroundTruth:
    kind = next((kind for kind in KINDS if (folder / f"{kind}.json").is_file()), None)
    if kind is None:
        raise RewardError(f"{folder}: there is no ground truth here; one of {', '.join(KINDS)}.json would be.")
    return KINDS[kind].load(folder, device)


def save_ground_truth(reward: GroundTruth, folder: Path, probes: Completions) -> None:
    """Write R* with its probes."""
    reward.save(folder)
    with in_fp32():
        save_probes(folder, probes, reward.score(probes))


def load_ground_truth(folder: Path, device: Device) -> GroundTruth:
    """Read R*, or the second judge, back.

    Raises:
        ArtifactError: a file of it is damaged.
        RewardError: it does not reproduce its own scores, or there is none.
    """
    verify(folder)
    with read_back(folder):
        reward = _load(folder, device)
    check_probes(folder, reward)
    return reward
