"""phi(x, y): what inverse RL sees of a completion. docs/features.md tells what each part is good for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from irl_exp.config import FeaturesConfig, HiddenStateConfig, NgramConfig
from irl_exp.irl.contrast import by_block
from irl_exp.machinery.shards import in_order
from irl_exp.policies.language_models import Completions, Policy, Progress, in_batches, pad, without_cache
from irl_exp.policies.likelihood import log_probabilities
from irl_exp.texts.sentiment import sentiments

Features = NDArray[np.float32]
Pooled = list[torch.Tensor]
"""(b, d) states of a batch, of each part that is pooled from states of the reference."""


class FeatureError(Exception):
    """Features that do not fit the policy or the completions."""


class Featurizer:
    """The parts of the config, joined: (n, d) features of completions.

    Attributes:
        ngrams: the one part that is fitted, if it is chosen.
    """

    def __init__(self, config: FeaturesConfig, policy: Policy, ngrams: Ngrams | None = None) -> None:
        self.config, self.policy, self.ngrams = config, policy, ngrams
        self._states = {name: part for name, part in config.states.items() if name != "random"}
        self._heard: dict[Any, Pooled] = {}
        self._untrained = untrained(policy, seed=config.random.seed) if config.random else None

    @classmethod
    def fit(cls, config: FeaturesConfig, policy: Policy, completions: Completions) -> Featurizer:
        """What has to be fitted is fitted to these completions, without any label.

        Raises:
            FeatureError: the policy has no such layer, or the completions have no n-gram that is frequent enough.
        """
        check_layers(config, policy.model.config.num_hidden_layers)
        return cls(config, policy, Ngrams.fit(config.ngram, completions.texts) if config.ngram else None)

    def extract(self, completions: Completions, progress: Progress = lambda done, total: None) -> Features:
        """(n, d) features, the parts side by side in the order of `FeaturesConfig.parts`.

        Raises:
            FeatureError: there are no completions, or a feature is not a finite number.
        """
        if not len(completions):
            raise FeatureError("there are no completions to extract features from.")
        found = self._of_text(completions)
        passes = self._passes()
        for number, compute in enumerate(passes):
            found |= compute(completions, _share(progress, number, len(passes)))
        for name, values in found.items():
            finite = by_block(lambda some: np.isfinite(some).all(axis=1), values)
            if not finite.all():
                row = int(np.flatnonzero(~finite)[0])
                raise FeatureError(f"irl.features.{name} of completion {row} is not a finite number.")
        parts = [found[name] for name in self.config.parts]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def _passes(self) -> list[Callable[[Completions, Progress], dict[str, Features]]]:
        """What runs over the completions, one after the other; parts that read the same states share a pass."""
        passes: list[Callable[[Completions, Progress], dict[str, Features]]] = []
        if self._states:
            passes.append(partial(hidden_states, self._states, self.policy, heard=self._heard))
        if self.config.random and self._untrained:
            passes.append(partial(hidden_states, {"random": self.config.random}, self._untrained))
        if self.config.reference_log_probability:
            passes.append(partial(reference_log_probability, self.policy))
        return passes

    def _of_text(self, completions: Completions) -> dict[str, Features]:
        """The parts that need no forward pass."""
        found: dict[str, Features] = {}
        if self.ngrams:
            found["ngram"] = self.ngrams(completions.texts)
        if self.config.sentiment:
            found["sentiment"] = sentiments(completions.texts).astype(np.float32)
        if self.config.length:
            found["length"] = lengths(completions, self.policy.eos)
        return found

    @contextmanager
    def hearing(self) -> Iterator[None]:
        """Within, what the policy reads for its log-probabilities is not read again for features: the same bytes.

        Ask for features of the same completions next: what was heard before that is forgotten then.
        """
        if self._states and self.policy.hears is None:
            self.policy.hears = self._hear
        try:
            yield
        finally:
            self.policy.hears = None
            self._heard.clear()

    def _hear(self, batch: Completions, output: Any) -> None:
        self._heard[_key(batch)] = pool_all([*self._states.values()], output, batch)

    def save(self, folder: Path) -> None:
        """Write the config and what was fitted; the policy lies elsewhere."""
        folder.mkdir()
        (folder / "config.json").write_text(self.config.model_dump_json(), encoding="utf-8")
        if self.ngrams:
            self.ngrams.save(folder)

    @classmethod
    def load(cls, folder: Path, policy: Policy) -> Featurizer:
        config = FeaturesConfig.model_validate_json((folder / "config.json").read_text(encoding="utf-8"))
        return cls(config, policy, Ngrams.load(folder, config.ngram) if config.ngram else None)


def _share(progress: Progress, number: int, count: int) -> Progress:
    """Progress of one of several passes over the same completions."""
    return lambda done, total: progress(number * total + done, count * total)


# ------------------------------------------------------------------------------------------- hidden states


def check_layers(config: FeaturesConfig, depth: int) -> None:
    """Refuse a layer that a model of this depth does not have.

    Raises:
        FeatureError: names the option and the range.
    """
    for name, part in config.states.items():
        wrong = [layer for layer in part.layers if not -depth - 1 <= layer <= depth]
        if wrong:
            raise FeatureError(
                f"irl.features.{name}.layers={list(part.layers)}: there is no layer {wrong[0]}; the policy has "
                f"{-depth - 1} to {depth}."
            )


def untrained(policy: Policy, *, seed: int) -> Policy:
    """The policy's architecture and tokenizer with random weights, as training would begin with them.

    They are drawn again at each start rather than saved. A library that drew others would be noticed: a learned
    reward has to reproduce its own scores when it is loaded.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        opened = transformers.AutoModelForCausalLM if policy.writes else transformers.AutoModel
        model = opened.from_config(policy.model.config, dtype=torch.float32, trust_remote_code=False)
    return Policy(model.to(policy.device.name).eval(), policy.tokenizer, policy.device)


def hidden_states(
    parts: Mapping[str, HiddenStateConfig],
    policy: Policy,
    completions: Completions,
    progress: Progress = lambda done, total: None,
    heard: dict[Any, Pooled] | None = None,
) -> dict[str, Features]:
    """Hidden states of the policy that has read prompt and completion, (n, d) for each part, from one forward pass.

    Pooled over the completion's tokens only, EOS included where it ended: `last` is the state that predicts what
    follows the completion, `mean` the average over it.

    Args:
        heard: batches that the policy has just read for somebody else, and what was pooled of them then; emptied.
    """
    policy.model.eval()
    batches = in_batches(completions, policy.device)
    known = {} if heard is None else heard

    def of(rows: NDArray[np.int64]) -> list[Features]:
        batch = completions[rows]
        pooled = known.pop(_key(batch), None)
        if pooled is None:
            with policy.device.inference():
                output = reading([*parts.values()], policy, policy.model.base_model, batch)
                pooled = pool_all([*parts.values()], output, batch)
        return [states.float().cpu().numpy() for states in pooled]

    found: dict[str, Features] = {}
    done = 0
    for rows, pooled in zip(batches, in_order(of, batches, policy.device.threads), strict=True):
        for name, states in zip(parts, pooled, strict=True):
            if name not in found:  # the one copy of them: of wide states it is gigabytes
                found[name] = np.empty((len(completions), states.shape[1]), dtype=np.float32)
            found[name][rows] = states
        progress(done := done + len(rows), len(completions))
    known.clear()
    return found


def pool(config: HiddenStateConfig, policy: Policy, base_model: torch.nn.Module, batch: Completions) -> torch.Tensor:
    """(b, d) pooled states of one batch; differentiable. The language-model head, most of the work, is not run."""
    return pool_all([config], reading([config], policy, base_model, batch), batch)[0]


def _key(batch: Completions) -> tuple[Any, ...]:
    """What a model sees of a batch, and what is pooled of that."""
    return tuple(map(tuple, batch.prompt_ids)), tuple(map(tuple, batch.completion_ids))


def reading(
    configs: Sequence[HiddenStateConfig], policy: Policy, base_model: torch.nn.Module, batch: Completions
) -> Any:
    """What the model says of prompts and completions, with the states that the configs ask for."""
    sequences = [prompt + written for prompt, written in zip(batch.prompt_ids, batch.completion_ids, strict=True)]
    inputs = pad(sequences, policy, side="right")
    return base_model(**inputs, **without_cache(base_model), output_hidden_states=_deep(configs))


def _deep(configs: Sequence[HiddenStateConfig]) -> bool:
    """Whether a layer below the last is asked for: else the others need not be kept."""
    return any(config.layers != (-1,) for config in configs)


def pool_all(configs: Sequence[HiddenStateConfig], output: Any, batch: Completions) -> Pooled:
    """As `pool`, for several configs from one forward pass: (b, d) of each."""
    states, inside = token_states(configs, output, batch)
    lengths = [
        len(prompt) + len(written) for prompt, written in zip(batch.prompt_ids, batch.completion_ids, strict=True)
    ]
    rows, last = torch.arange(len(batch), device=inside.device), torch.tensor(lengths, device=inside.device) - 1
    return [
        one[rows, last] if config.pooling == "last" else (one * inside[..., None]).sum(1) / inside.sum(1, keepdim=True)
        for config, one in zip(configs, states, strict=True)
    ]


def token_states(
    configs: Sequence[HiddenStateConfig], output: Any, batch: Completions
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """What is pooled: (b, t, d) states of each config over prompt and completion, and (b, t) where completions are."""
    device = output.last_hidden_state.device
    starts = torch.tensor([len(prompt) for prompt in batch.prompt_ids], device=device)
    ends = starts + torch.tensor([len(written) for written in batch.completion_ids], device=device)
    position = torch.arange(output.last_hidden_state.shape[1], device=device)
    inside = (position >= starts[:, None]) & (position < ends[:, None])
    found = output.hidden_states if _deep(configs) else {-1: output.last_hidden_state}
    return [torch.cat([found[layer] for layer in config.layers], -1) for config in configs], inside


# ----------------------------------------------------------------------------------------- single columns


def reference_log_probability(
    policy: Policy, completions: Completions, progress: Progress = lambda done, total: None
) -> dict[str, Features]:
    """log pi(y|x) in nats, EOS included where the completion ended: one column."""
    values = log_probabilities(policy, completions, progress=progress)
    return {"reference_log_probability": values[:, None].astype(np.float32)}


def lengths(completions: Completions, eos: int) -> Features:
    """Tokens of each completion without EOS: (n, 1)."""
    counts = np.array([len(ids) for ids in completions.completion_ids]) - completions.ended(eos)
    return np.asarray(counts[:, None], dtype=np.float32)


# ----------------------------------------------------------------------------------------------- n-grams


@dataclass(frozen=True)
class Ngrams:
    """TF-IDF with sublinear counts, rows of length 1, over the most frequent n-grams of the texts of fit."""

    vectorizer: Any

    @staticmethod
    def _vectorizer(config: NgramConfig, **options: Any) -> Any:
        from sklearn.feature_extraction.text import TfidfVectorizer

        if config.analyzer == "word":
            # Single letters and punctuation carry tone ("!", "u"); the default pattern would drop them.
            options["token_pattern"] = r"\w+|[^\w\s]"
        ngrams = (1, config.longest)
        return TfidfVectorizer(analyzer=config.analyzer, ngram_range=ngrams, sublinear_tf=True, **options)

    @classmethod
    def fit(cls, config: NgramConfig, texts: Sequence[str]) -> Ngrams:
        """The vocabulary of the texts.

        Raises:
            FeatureError: no n-gram is frequent enough.
        """
        vectorizer = cls._vectorizer(config, min_df=config.min_count, max_features=config.max_features)
        try:
            return cls(vectorizer.fit(texts))
        except ValueError as error:  # an empty vocabulary has several messages
            raise FeatureError(
                f"irl.features.ngram.min_count={config.min_count}: no n-gram is in that many of the {len(texts)} "
                f"completions of fit ({error}). Set a lower one, or demonstrations.completions_per_prompt higher."
            ) from error

    def __call__(self, texts: Sequence[str]) -> Features:
        """(n, number of n-grams), in alphabetical order."""
        return np.asarray(self.vectorizer.transform(texts).astype(np.float32).toarray())

    def save(self, folder: Path) -> None:
        """Vocabulary as JSON, weights as safetensors; no pickle."""
        vocabulary = {term: int(column) for term, column in sorted(self.vectorizer.vocabulary_.items())}
        (folder / "ngram.json").write_text(json.dumps(vocabulary), encoding="utf-8")
        save_file({"idf": self.vectorizer.idf_}, folder / "ngram.safetensors")

    @classmethod
    def load(cls, folder: Path, config: NgramConfig) -> Ngrams:
        vocabulary = json.loads((folder / "ngram.json").read_text(encoding="utf-8"))
        vectorizer = cls._vectorizer(config, vocabulary=vocabulary)
        vectorizer.idf_ = load_file(folder / "ngram.safetensors")["idf"]
        return cls(vectorizer)
