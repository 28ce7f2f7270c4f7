"""Bayesian inverse RL with a linear reward: arrays in, arrays out, float64.

    R_w(x, y) = w . phi(x, y),   w ~ N(m0, S0),   P(expert before baseline | w) = sigmoid(w . d / T),

where d = phi(x, expert) - phi(x, baseline) is the feature difference of a contrast pair and T the temperature of the
Bradley-Terry likelihood: Bayesian logistic regression on differences (the model of arXiv 2510.06096).

A posterior contracts for any labels. The likelihood's curvature sigmoid' is largest at margin 0, so the answers of a
fair coin usually contract it *more* than answers that agree. Small variance is therefore no evidence that the reward
is right; it counts only if it predicts the errors of the reward on pairs that were not fitted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import optimize
from scipy.linalg import cho_solve, solve_triangular
from scipy.special import entr, expit, ndtr, ndtri

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

NEWTON_STEPS = 200
NEWTON_TOLERANCE = 1e-8  # distance to the MAP, in posterior standard deviations
ELBO_STEPS = 2000
ELBO_TOLERANCE = 1e-4  # largest derivative of the ELBO by (whitened mean, log sd)

NODES = 121
TAILS = 9.0  # standard deviations; the density beyond is below 1e-18
REACH = 40.0  # |z| beyond which every function integrated here is below 1e-15
PROBIT = 1.7  # sigmoid(z) - Phi(z / 1.7) is nearly 0 everywhere


class BayesianError(Exception):
    """Input that has no posterior, or a posterior that was not found: names the value and the remedy."""


@dataclass(frozen=True, eq=False)
class Posterior:
    """N(mean, covariance) over the weights w: mean (d,), covariance (d, d). A prior is one too.

    The covariance is a full matrix, positive definite (BayesianError otherwise); that of a mean-field fit is diagonal.
    """

    mean: Floats
    covariance: Floats

    def __post_init__(self) -> None:
        size = len(_finite("mean", self.mean, 1))
        _finite("covariance", self.covariance, 2)
        if self.covariance.shape != (size, size):
            raise BayesianError(f"covariance has shape {self.covariance.shape}, mean has {size} weights: give (d, d)")
        if np.abs(self.covariance - self.covariance.T).max() > 1e-8 * np.abs(self.covariance).max():
            raise BayesianError("covariance is not symmetric: give (S + S.T) / 2")
        _ = self.factor

    @cached_property
    def factor(self) -> Floats:
        """Lower triangular L (d, d) with covariance = L L^T."""
        return _cholesky("covariance", self.covariance)

    def sample(self, generator: np.random.Generator, count: int) -> Floats:
        """Independent draws of w: (count, d)."""
        return self.mean + generator.standard_normal((count, len(self.mean))) @ self.factor.T

    def margins(self, differences: Floats) -> tuple[Floats, Floats]:
        """Mean (n,) and standard deviation (n,) of the margins w . d, from feature differences (n, d).

        A feature that is the same for both completions drops out, so margins are free of the constant per prompt.
        """
        return self.predictive(differences)

    def predictive(self, features: Floats) -> tuple[Floats, Floats]:
        """Mean (n,) and standard deviation (n,) of the rewards w . phi of single completions, from features (n, d).

        The standard deviation is sqrt(phi^T S phi). It holds the prior's variance in the directions that no pair
        informs, the constant per prompt among them: for a comparison within a prompt take `margins`.
        """
        rows = _rows("features", features, len(self.mean))
        return rows @ self.mean, np.linalg.norm(rows @ self.factor, axis=1)


class Method(Protocol):
    """`laplace` or `mean_field`."""

    def __call__(self, differences: Floats, prior: Posterior, *, temperature: float) -> Posterior: ...


class Uncertainty(NamedTuple):
    """Predictive entropy and its two parts, in nats, each (n,)."""

    total: Floats
    aleatoric: Floats
    epistemic: Floats


def isotropic(size: int, prior_sd: float) -> Posterior:
    """The prior N(0, prior_sd^2 I) over `size` weights."""
    if size < 1:
        raise BayesianError(f"a reward of {size} weights: size must be at least 1")
    _positive("prior_sd", prior_sd)
    return Posterior(np.zeros(size), prior_sd**2 * np.eye(size))


def laplace(differences: Floats, prior: Posterior, *, temperature: float) -> Posterior:
    """Laplace approximation (MacKay 1992): N(MAP, inverse Hessian of the negative log posterior at the MAP).

    The MAP is the minimum of the strictly convex sum_i log(1 + exp(-w . d_i / T)) + (w - m0)^T S0^-1 (w - m0) / 2,
    found by Newton's method with backtracking; what is approximate is the Gaussian shape alone. The precision is
    S0^-1 + sum_i sigmoid'(w . d_i / T) d_i d_i^T / T^2.

    Differences are (n, d); without pairs (n = 0) the posterior is the prior. Separable pairs are no problem: the
    prior keeps the MAP finite. Raises BayesianError for bad input, and where the gradient does not vanish.

    Works in u = L^-1 (w - m0), L L^T = S0, where the prior is N(0, I): the Hessian is at least I whatever the prior.
    """
    scaled = _scaled(differences, prior, temperature)
    design, offset = scaled @ prior.factor, scaled @ prior.mean
    u, decrement = np.zeros(len(prior.mean)), np.inf
    for _ in range(NEWTON_STEPS):
        margins = offset + design @ u
        gradient = u - design.T @ expit(-margins)
        weights = expit(margins) * expit(-margins)
        hessian = _cholesky("the Hessian", np.eye(len(u)) + (design.T * weights) @ design)
        step = -cho_solve((hessian, True), gradient)
        decrement = float(np.sqrt(-gradient @ step))  # near the MAP: the distance to it in posterior sds
        if decrement <= NEWTON_TOLERANCE:
            root = solve_triangular(hessian, prior.factor.T, lower=True)
            return Posterior(prior.mean + prior.factor @ u, root.T @ root)
        u = u + _step_size(margins, u, design @ step, step, decrement) * step
    raise BayesianError(
        f"the gradient does not vanish: {decrement:.3g} posterior sds from the MAP after {NEWTON_STEPS} Newton steps. "
        "Scale the features or raise the temperature"
    )


def _step_size(margins: Floats, u: Floats, turn: Floats, step: Floats, decrement: float) -> float:
    """The largest of 1, 1/2, 1/4, ... with a sufficient decrease (Armijo); `turn` is what a full step adds to margins.

    Close to the minimum the decrease is below the rounding error of the objective, hence the slack.
    """

    def objective(size: float) -> float:
        point = u + size * step
        return float(np.logaddexp(0.0, -(margins + size * turn)).sum() + point @ point / 2)

    here, size = objective(0.0), 1.0
    slack = 1e-13 * (1.0 + here)
    while size > 0 and not objective(size) <= here - 1e-4 * size * decrement**2 + slack:
        size /= 2
    return size


def mean_field(differences: Floats, prior: Posterior, *, temperature: float) -> Posterior:
    """The Gaussian with diagonal covariance that maximises the ELBO (Bishop 2006, section 10.1):

        sum_i E log sigmoid(w . d_i / T) - KL(N(m, diag s^2) || prior).

    A margin under N(m, diag s^2) is a Gaussian in one dimension, so each expectation is one integral; it is computed
    to rounding (no bound, no sampling) and the ELBO maximised by L-BFGS over the mean and log s, from the MAP.
    Shapes and errors as for `laplace`.

    What is approximate is the independence of the weights, and it errs in one direction: with correlated features
    the variance is underestimated. For a Gaussian target of precision P it is 1 / P_jj instead of (P^-1)_jj; the
    same holds for the prior, so without pairs the posterior is the prior only where the prior is diagonal.
    """
    scaled = _scaled(differences, prior, temperature)
    squared = scaled**2
    precision = _inverse(prior)
    start = laplace(differences, prior, temperature=temperature)

    def loss(parameters: Floats) -> tuple[float, Floats]:
        """-ELBO up to a constant, and its gradient, by (start.factor^-1 (mean - start.mean), log s): (2 d,)."""
        mean, variance = located(parameters)
        logs, slopes, curvatures = _expected_log_sigmoid(scaled @ mean, np.sqrt(squared @ variance))
        pull = precision @ (mean - prior.mean)
        divergence = ((mean - prior.mean) @ pull + np.diag(precision) @ variance) / 2 - np.log(variance).sum() / 2
        by_mean = pull - scaled.T @ slopes
        by_log_sd = variance * (np.diag(precision) + squared.T @ curvatures) - 1.0
        return float(divergence - logs.sum()), np.concatenate([start.factor.T @ by_mean, by_log_sd])

    def located(parameters: Floats) -> tuple[Floats, Floats]:
        whitened, log_sd = np.split(parameters, 2)
        return start.mean + start.factor @ whitened, np.exp(2 * log_sd)

    first = np.concatenate([np.zeros_like(start.mean), -np.log(np.diag(_inverse(start))) / 2])
    options = {"maxiter": ELBO_STEPS, "maxfun": 2 * ELBO_STEPS, "gtol": ELBO_TOLERANCE / 100, "ftol": 0.0}
    found = optimize.minimize(loss, first, jac=True, method="L-BFGS-B", options=options)
    steepest = float(np.abs(loss(found.x)[1]).max())
    if not steepest <= ELBO_TOLERANCE:
        raise BayesianError(
            f"the gradient of the ELBO does not vanish: {steepest:.3g} after {found.nit} steps. "
            "Scale the features, raise the temperature, or use laplace"
        )
    mean, variance = located(found.x)
    return Posterior(mean, np.diag(variance))


def sequential(
    differences: Floats, folds: Sequence[Ints], prior: Posterior, method: Method, *, temperature: float
) -> list[Posterior]:
    """The posterior after each fold of pairs; that of one fold is the prior of the next.

    `folds` are row numbers of the differences (n, d). They must be disjoint: a pair that is seen twice counts twice,
    and the posterior is then too narrow (BayesianError). A fold may be empty.

    Exact Bayes would give the joint posterior in any order. Here each round replaces its posterior by a Gaussian, so
    the last one is near the joint fit but not equal to it, and depends on the order of the folds.
    """
    rows = np.concatenate([np.asarray(fold, dtype=np.int64) for fold in folds]) if folds else np.zeros(0, np.int64)
    values, counts = np.unique(rows, return_counts=True)
    if len(values) and (values[0] < 0 or values[-1] >= len(differences)):
        wrong = values[0] if values[0] < 0 else values[-1]
        raise BayesianError(f"folds name row {wrong}; there are {len(differences)} pairs, numbered from 0")
    if (counts > 1).any():
        raise BayesianError(f"row {values[counts > 1][0]} is in the folds more than once: make the folds disjoint")
    posteriors: list[Posterior] = []
    for fold in folds:
        prior = method(differences[np.asarray(fold, dtype=np.int64)], prior, temperature=temperature)
        posteriors.append(prior)
    return posteriors


def decompose(mean: Floats, sd: Floats, temperature: float = 1.0) -> Uncertainty:
    """Split the uncertainty about the answer to a comparison whose margin is r ~ N(mean, sd^2); both (n,).

    With the entropy H of a binary answer in nats (Depeweg et al. 2018, arXiv 1710.07283; BALD, arXiv 1112.5745):

        total     = H(E sigmoid(r / T))
        aleatoric = E H(sigmoid(r / T))    remains when w is known
        epistemic = total - aleatoric      mutual information of the answer and w, at least 0

    Accurate to 1e-11 for any sd, 0 included. Raises BayesianError where sd < 0 or something is not finite.
    """
    _moments(mean, sd)
    _positive("temperature", temperature)
    mean, sd = np.asarray(mean, np.float64) / temperature, np.asarray(sd, np.float64) / temperature
    total = entr(_expected_sigmoid(mean, sd)) + entr(_expected_sigmoid(-mean, sd))
    points, weights = _quadrature(mean, sd)
    aleatoric = (weights * (entr(expit(points)) + entr(expit(-points)))).sum(axis=1)
    # Jensen: total >= aleatoric. The bound is met where sd = 0, and there the difference is rounding of either sign.
    return Uncertainty(total, aleatoric, np.maximum(total - aleatoric, 0.0))


def credible_interval(mean: Floats, sd: Floats, level: float) -> tuple[Floats, Floats]:
    """Central interval of N(mean, sd^2) with probability `level`: lower (n,) and upper ends (n,)."""
    _moments(mean, sd)
    if not 0 < level < 1:
        raise BayesianError(f"level is {level}: it must lie between 0 and 1")
    reach = ndtri((1 + level) / 2) * np.asarray(sd, np.float64)
    return mean - reach, mean + reach


def _quadrature(mean: Floats, sd: Floats) -> tuple[Floats, Floats]:
    """Points z (n, NODES) and weights of the rule E f(z) ~ sum weights f(z), z ~ N(mean, sd^2), for a bump f.

    A bump is analytic near the real line and falls like exp(-|z|), as sigmoid' does. The trapezoidal rule then
    converges geometrically (Trefethen and Weideman 2014), over the interval where both density and bump count: its
    step is at most 0.15 sd and at most 2/3, so it is accurate for wide sd too, where Gauss-Hermite's nodes would
    step over the bump. Where the interval is empty the expectation is below 1e-15 and comes out as 0.
    """
    width = np.maximum(sd, 1e-100)  # sd = 0: all points equal the mean
    low, high = (np.clip((end - mean) / width, -TAILS, TAILS) for end in (-REACH, REACH))
    x = np.linspace(low, high, NODES, axis=1)
    step = (high - low) / (NODES - 1)
    return mean[:, None] + sd[:, None] * x, step[:, None] * _density(x)


def _expected_sigmoid(mean: Floats, sd: Floats) -> Floats:
    """E sigmoid(z) for z ~ N(mean, sd^2): (n,).

    E Phi(z / c) = Phi(mean / sqrt(sd^2 + c^2)) is exact, and sigmoid(z) - Phi(z / c) is a bump.
    """
    points, weights = _quadrature(mean, sd)
    bump = (weights * (expit(points) - ndtr(points / PROBIT))).sum(axis=1)
    return np.asarray(np.clip(bump + ndtr(mean / np.hypot(sd, PROBIT)), 0.0, 1.0))  # rounding may step over 0 or 1


def _expected_log_sigmoid(mean: Floats, sd: Floats) -> tuple[Floats, Floats, Floats]:
    """E log sigmoid(z), E sigmoid(-z) and E sigmoid'(z) for z ~ N(mean, sd^2), each (n,).

    The second is the derivative of the first by the mean; the third is -2 times its derivative by the variance
    (Price's theorem). As in `_expected_sigmoid`, log(1 + exp(-z)) minus the expected ramp E max(0, -z + c e),
    e ~ N(0, 1), is a bump, and the ramp's own expectation is known.
    """
    points, weights = _quadrature(mean, sd)
    bump = (weights * (np.logaddexp(0.0, -points) - _ramp(-points, PROBIT))).sum(axis=1)
    slope = (weights * (expit(-points) - ndtr(-points / PROBIT))).sum(axis=1)
    curvature = (weights * expit(points) * expit(-points)).sum(axis=1)
    width = np.hypot(sd, PROBIT)
    return -_ramp(-mean, width) - bump, ndtr(-mean / width) + slope, curvature


def _ramp(mean: Floats, sd: Floats | float) -> Floats:
    """E max(0, z) for z ~ N(mean, sd^2), elementwise."""
    return np.asarray(mean * ndtr(mean / sd) + sd * _density(mean / sd))


def _density(x: Floats) -> Floats:
    """The density of N(0, 1), elementwise."""
    return np.asarray(np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi))


def _inverse(gaussian: Posterior) -> Floats:
    """The precision matrix (d, d)."""
    return np.asarray(cho_solve((gaussian.factor, True), np.eye(len(gaussian.mean))))


def _cholesky(name: str, matrix: Floats) -> Floats:
    try:
        return np.asarray(np.linalg.cholesky(_finite(name, matrix, 2)), np.float64)
    except np.linalg.LinAlgError:
        raise BayesianError(f"{name} is not positive definite: scale the features or narrow the prior") from None


def _scaled(differences: Floats, prior: Posterior, temperature: float) -> Floats:
    """Differences / temperature, checked: (n, d)."""
    _positive("temperature", temperature)
    return _rows("differences", differences, len(prior.mean)) / temperature


def _rows(name: str, values: Floats, size: int) -> Floats:
    rows = _finite(name, values, 2)
    if rows.shape[1] != size:
        raise BayesianError(f"{name} have {rows.shape[1]} columns, the reward has {size} weights")
    return rows


def _moments(mean: Floats, sd: Floats) -> None:
    means, deviations = _finite("mean", mean, 1), _finite("sd", sd, 1)
    if means.shape != deviations.shape:
        raise BayesianError(f"mean has {len(means)} values and sd {len(deviations)}: give one sd for each mean")
    if (deviations < 0).any():
        raise BayesianError(f"sd is {deviations.min()}: a standard deviation is at least 0")


def _finite(name: str, values: Floats, dimensions: int) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != dimensions:
        raise BayesianError(f"{name} has shape {array.shape}: it must have {dimensions} dimension(s)")
    if not np.isfinite(array).all():
        where = tuple(int(index) for index in np.argwhere(~np.isfinite(array))[0])
        raise BayesianError(f"{name} holds {array[where]} at {where}: every value must be finite")
    return array


def _positive(name: str, value: float) -> None:
    if not (np.isfinite(value) and value > 0):
        raise BayesianError(f"{name} is {value}: it must be finite and greater than 0")
