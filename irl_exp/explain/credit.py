"""Credit per token: how a learned reward that is a sum over the tokens of a completion is shared out among them.

Nothing is estimated, the credits add up to the standardised reward:

- states pooled by their mean: token t has (w . (h_t - center) - offset) / (T scale), with its state h_t of T. The
  constant -w . center - offset is thus spread evenly. A state has read all that stands before it: credit says where the
  reward is read off, not which word alone would earn it; `deletion` checks that.
- `length`: each token but EOS has the weight. `reference_log_probability`: each token has the weight times its own.
- irl=implicit: each token has its own log-ratio of the policies.

A backbone that was trained with the head has credits too, of its own states. What is no sum over tokens has none:
`NoCreditError` says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from irl_exp.config import FeaturesConfig, HiddenStateConfig
from irl_exp.irl.features import Featurizer, reading, token_states, untrained
from irl_exp.irl.learned_rewards import ImplicitScorer, LearnedReward, LinearScorer, TrainedScorer
from irl_exp.policies.language_models import Completions, Policy, in_batches
from irl_exp.policies.likelihood import token_statistics

Floats = NDArray[np.float64]
NOT_A_SUM = {
    "last_token": "the state of one token alone",
    "ngram": "n-grams, weighted and scaled to length one over the whole text",
    "sentiment": "a lexicon's mean over the whole text",
}


class NoCreditError(Exception):
    """The reward is no sum over tokens; the message says why."""


class Credit(NamedTuple):
    """Of one completion: its tokens as text, which joined are its text (EOS is empty), and their (t,) credits."""

    tokens: list[str]
    credits: Floats


def token_credit(reward: LearnedReward, completions: Completions) -> list[Credit]:
    """The standardised reward of each completion, shared out among its tokens.

    Raises:
        NoCreditError: the reward is no sum over tokens.
    """
    shares = _shares(reward, completions)
    tokens = (pieces(reward.reference.tokenizer, ids) for ids in completions.completion_ids)
    return [
        Credit(texts, (values - reward.offset / len(values)) / reward.scale)
        for texts, values in zip(tokens, shares, strict=True)
    ]


def _shares(reward: LearnedReward, completions: Completions) -> list[Floats]:
    """(t,) of each completion, whose sums are the rewards as the method left them."""
    scorer = reward.scorer
    if isinstance(scorer, ImplicitScorer):
        expert, reference = (_log_probabilities(policy, completions) for policy in (scorer.expert, scorer.reference))
        return [scorer.kl_coefficient * (one - other) for one, other in zip(expert, reference, strict=True)]
    if isinstance(scorer, TrainedScorer):
        scorer = scorer.head
    if not isinstance(scorer, LinearScorer) or scorer.featurizer is None:
        raise NoCreditError(f"a reward of the kind {scorer.kind} reads no tokens")
    if scorer.aggregate != "mean" and (len(scorer.weights) > 1 or scorer.factor is not None):
        raise NoCreditError(f"aggregate={scorer.aggregate} is not linear in the members of the reward")
    return _linear(scorer.featurizer, scorer.weights.mean(axis=0), scorer.center, completions)


def _linear(featurizer: Featurizer, weights: Floats, center: Floats, completions: Completions) -> list[Floats]:
    config = featurizer.config
    states = _mean_pooled(config)
    width = {name: len(part.layers) * featurizer.policy.model.config.hidden_size for name, part in states.items()}
    ends = np.cumsum([width.get(name, 1) for name in config.parts])
    part = dict(zip(config.parts, np.split(weights, ends[:-1]), strict=True))
    shares = [np.full(len(ids), -float(weights @ center) / len(ids)) for ids in completions.completion_ids]
    for name, config_of in states.items():
        policy = featurizer.policy
        if name == "random" and config.random:
            policy = untrained(policy, seed=config.random.seed)
        shares = _added(shares, _of_states(config_of, policy, part[name], completions))
    if config.reference_log_probability:
        values = _log_probabilities(featurizer.policy, completions)
        shares = _added(shares, [part["reference_log_probability"][0] * one for one in values])
    if config.length:
        eos = featurizer.policy.eos
        counted = [np.array([token != eos for token in ids]) for ids in completions.completion_ids]
        shares = _added(shares, [part["length"][0] * one for one in counted])
    return shares


def _mean_pooled(config: FeaturesConfig) -> Mapping[str, HiddenStateConfig]:
    """The parts that are states, all pooled by their mean."""
    wrong = {name: why for name, why in NOT_A_SUM.items() if name in config.parts}
    wrong |= {name: "the state of one token alone" for name, part in config.states.items() if part.pooling == "last"}
    if wrong:
        raise NoCreditError(
            "; ".join(f"irl.features.{name} is no sum over tokens: {why}" for name, why in wrong.items())
        )
    return config.states


def _added(shares: list[Floats], more: list[Any]) -> list[Floats]:
    return [one + other for one, other in zip(shares, more, strict=True)]


def _of_states(config: HiddenStateConfig, policy: Policy, weights: Floats, completions: Completions) -> list[Floats]:
    """(t,) w . h_t / T of each completion."""
    policy.model.eval()
    vector, found = torch.from_numpy(weights), dict[int, Floats]()
    for rows in in_batches(completions, policy.device):
        with policy.device.inference():
            output = reading([config], policy, policy.model.base_model, completions[rows])
        (states,), inside = token_states([config], output, completions[rows])
        values = states.double().cpu() @ vector
        for place, row in enumerate(rows):
            own = values[place][inside[place].cpu()].numpy()
            found[int(row)] = own / len(own)
    return [found[row] for row in range(len(completions))]


def _log_probabilities(policy: Policy, completions: Completions) -> list[Floats]:
    """(t,) log pi of each token in nats."""
    policy.model.eval()
    with policy.device.inference():
        values, _ = token_statistics(policy, completions)
    return [one.double().cpu().numpy() for one in values]


def pieces(tokenizer: Any, ids: list[int]) -> list[str]:
    """The text of each token: what it adds to the text so far; nothing where it is special or part of a character."""
    found, done = [], ""
    for count in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:count], skip_special_tokens=True)
        whole = text.startswith(done) and (count == len(ids) or not text.endswith("\N{REPLACEMENT CHARACTER}"))
        found.append(text[len(done) :] if whole else "")
        done = text if whole else done
    return found


@dataclass(frozen=True)
class Deletion:
    """What credit says of spans, beside what taking them out does.

    Attributes:
        credits: (n,) what the spans' credits say that is lost. A mean over fewer tokens rises where a span has less
            than its share; a sum (irl=implicit) loses the span's credit.
        drops: (n,) standardised reward of the completion less that of the completion without the span.
    """

    credits: Floats
    drops: Floats

    @property
    def pearson(self) -> float:
        """NaN of fewer than two spans, or of constants."""
        if len(self.drops) < 2 or not np.ptp(self.drops) or not np.ptp(self.credits):
            return float("nan")
        return float(stats.pearsonr(self.credits, self.drops)[0])


def deletion(reward: LearnedReward, completions: Completions, *, tokens: int = 3, seed: int = 0) -> Deletion:
    """Take a random span of `tokens` tokens out of each completion that is longer, never its EOS, and score the rest.

    Raises:
        NoCreditError: the reward is no sum over tokens.
    """
    eos, random = reward.reference.eos, np.random.default_rng(seed)
    counts = np.array([len(ids) for ids in completions.completion_ids]) - completions.ended(eos)
    completions = completions[np.flatnonzero(counts > tokens)]
    starts = [int(random.integers(count - tokens + 1)) for count in counts[counts > tokens]]
    if not starts:
        return Deletion(np.empty(0), np.empty(0))
    rest = [ids[:at] + ids[at + tokens :] for ids, at in zip(completions.completion_ids, starts, strict=True)]
    texts = reward.reference.tokenizer.batch_decode(rest, skip_special_tokens=True)
    without = Completions(completions.prompts, texts, completions.prompt_ids, rest)
    credits = [share / reward.scale for share in _shares(reward, completions)]
    spans = np.array([one[at : at + tokens].sum() for one, at in zip(credits, starts, strict=True)])
    if not isinstance(reward.scorer, ImplicitScorer):
        size, mean = (np.array([measure(one) for one in credits]) for measure in (len, np.mean))
        spans = (spans - tokens * mean) * size / (size - tokens)
    drops = (reward.score(completions) - reward.score(without)) / reward.scale
    return Deletion(spans, np.asarray(drops))
