"""Where the optimisers stand still, in a world so small that every group of completions can be counted.

    python benchmarks/fixed_points.py

A policy of free logits writes at most two of three tokens (a, b, EOS); R* is drawn for each completion. The expected
step of an algorithm is the sum over all groups of completions with their probabilities. Where steps from the reference
end is set beside the optimum of the objective, pi_ref exp(R* / beta): EPIC of log pi / pi_ref to R* (0 at the optimum)
and slope of beta log pi / pi_ref on R* (1 at the optimum), both under pi_ref. The tests show that the trainers of the
chain go there.

`grpo, as TRL` has the coefficient in TRL's own loss: k3 of single tokens with its correction (`use_bias_correction_kl`,
the default of TRL 1.16), without it `grpo, as published`. Both take the mean of the group, the sample included, from
the reward alone.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

Floats = NDArray[np.float64]

END = 2
ONE_TOKEN: tuple[tuple[int, ...], ...] = ((0,), (1,), (END,))
TWO_TOKENS: tuple[tuple[int, ...], ...] = ((END,), *itertools.product((0, 1), (0, 1, END)))
ALGORITHMS = ("rloo", "grpo", "grpo, as TRL", "grpo, as published")
WORLDS = 20
ITERATIONS = 20_000


@dataclass(frozen=True)
class World:
    """One prompt: all its completions, the reference's logits after each prefix, and R* of each completion.

    Attributes:
        completions: n sequences of tokens; the prefixes are the empty one and single letters.
        reference: (3, 3), row 0 the first token, row 1 + letter the one after that letter.
        truth: (n,).
    """

    completions: tuple[tuple[int, ...], ...]
    reference: Floats
    truth: Floats
    beta: float

    @classmethod
    def draw(cls, completions: tuple[tuple[int, ...], ...], seed: int, *, beta: float = 0.5) -> World:
        """R* has sd 1."""
        generator = np.random.default_rng(seed)
        truth = generator.normal(size=len(completions))
        return cls(completions, generator.normal(size=(3, 3)), (truth - truth.mean()) / truth.std(), beta)

    @property
    def steps(self) -> list[tuple[int, int, int]]:
        """(completion, prefix, token) of every token of every completion."""
        return [
            (number, 0 if place == 0 else 1 + sequence[0], token)
            for number, sequence in enumerate(self.completions)
            for place, token in enumerate(sequence)
        ]

    def log_probabilities(self, logits: Floats) -> Floats:
        """(n,) of the completions."""
        tokens = log_softmax(logits, axis=1)
        found = np.zeros(len(self.completions))
        for number, prefix, token in self.steps:
            found[number] += tokens[prefix, token]
        return found

    def distances(self, logits: Floats) -> tuple[float, float]:
        """EPIC of the implicit reward to R*, and its slope on R*."""
        start = self.log_probabilities(self.reference)
        weights = np.exp(start)
        implicit, truth = (
            values - weights @ values for values in (self.beta * (self.log_probabilities(logits) - start), self.truth)
        )
        covariance, own = (weights * truth) @ implicit, (weights * truth) @ truth
        correlation = covariance / np.sqrt(own * ((weights * implicit) @ implicit))
        return float(np.sqrt(max(0.0, 1 - correlation) / 2)), float(covariance / own)


@cache
def groups_of(n: int, generations: int) -> NDArray[np.int64]:
    """All groups of so many of n completions, in order: (n ** generations, generations)."""
    return np.array(list(itertools.product(range(n), repeat=generations)))


def expected_step(algorithm: str, world: World, generations: int, logits: Floats) -> Floats:
    """(3, 3) expected natural step of the logits: over all groups of so many completions, a group being a batch.

    Natural means divided by how often a token is seen: it moves the fixed point nowhere, and all tokens at one speed.
    """
    n = len(world.completions)
    log_p, log_reference = (log_softmax(values, axis=1) for values in (logits, world.reference))
    own = world.log_probabilities(logits)
    groups = groups_of(n, generations)
    chance = np.exp(own[groups].sum(1))
    in_reward = algorithm in ("rloo", "grpo")
    rewards = world.truth - world.beta * (own - world.log_probabilities(world.reference)) * in_reward
    advantages = rewards[groups] - rewards[groups].mean(1, keepdims=True)
    if algorithm == "rloo":
        advantages *= generations / (generations - 1)  # the mean of the others
        scale = chance / generations
    else:
        lengths = np.array([len(sequence) for sequence in world.completions])
        scale = chance / lengths[groups].sum(1)  # GRPO divides by the tokens of the batch (dapo)
    pushed = np.bincount(groups.ravel(), (scale[:, None] * advantages).ravel(), n)
    seen = np.bincount(groups.ravel(), np.repeat(scale, generations), n)
    step, mass = np.zeros((3, 3)), np.zeros((3, 1))
    for number, prefix, token in world.steps:
        weight = pushed[number]
        if not in_reward:
            log_ratio = log_p[prefix, token] - log_reference[prefix, token]
            weight -= world.beta * (log_ratio if algorithm == "grpo, as TRL" else 1 - np.exp(-log_ratio)) * seen[number]
        step[prefix] -= weight * np.exp(log_p[prefix])
        step[prefix, token] += weight
        mass[prefix] += seen[number]
    return step / np.where(mass > 0, mass, 1) / np.exp(log_p)


def fixed_point(algorithm: str, world: World, generations: int) -> Floats:
    """Logits where the expected steps end that begin at the reference.

    Raises:
        ArithmeticError: they end nowhere.
    """
    logits = world.reference
    for _ in range(ITERATIONS):
        step = expected_step(algorithm, world, generations, logits)
        if np.abs(step).max() < 1e-9:
            return logits
        logits = logits + np.clip(0.5 * step, -0.5, 0.5)
    raise ArithmeticError(f"{algorithm}, {generations} generations: the steps do not end")


def main() -> None:
    print(f"mean of {WORLDS} worlds: EPIC of log pi / pi_ref to R* (largest), slope of beta log pi / pi_ref on R*")
    for name, completions in (("one token", ONE_TOKEN), ("two tokens", TWO_TOKENS)):
        worlds = [World.draw(completions, seed) for seed in range(WORLDS)]
        for generations in (2, 4):
            for algorithm in ALGORITHMS:
                found = [world.distances(fixed_point(algorithm, world, generations)) for world in worlds]
                epic, slope = np.array(found).T
                print(
                    f"{name}, {generations} generations  {algorithm:20}"
                    f" {epic.mean():.3f} ({epic.max():.3f})  {slope.mean():.3f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
