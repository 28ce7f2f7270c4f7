"""What the demonstrations leave open, for linear rewards: exact bounds instead of a sample of seeds.

A linear reward w gives a pair with the feature difference t (expert - baseline, or any two texts) the margin t . w. All
rewards that explain the n contrast pairs D (n, d) nearly as well as the best one are the convex set

    W = {w : L(w) <= L* + tolerance, |w| <= max_norm},    L(w) = mean_i loss(D_i . w),    L* = min of L on the ball.

For each test pair `possible_margins` finds the least and the greatest t . w over W. If both have one sign every such
reward orders the pair alike: it is determined. If not, rewards that explain the demonstrations so well differ on it.
How well that has to be, `calibrated` finds by resampling prompts: so well that W holds the margin of the population's
optimum for 95 % of the pairs.

Units: `tolerance` is in units of the loss; margins are in units of the reward, that is of features times |w|. D and t
are differences of the same scaled features that the reward was fitted on, and max_norm its bound.

Method. With |w| <= max_norm scaled to 1, each side, the greatest t . w or -t . w, is a convex program.
- All sides go together (`sides`): a step needs D and D' once for all of them, and no system is solved, since one
  eigenbasis makes the model of the loss diagonal for every side. A kink is smoothed while the precision allows it.
- A side that stays open after these goes alone (`programs`) through a primal-dual interior-point method (Boyd and
  Vandenberghe, Convex Optimization, section 11.7), whose step solves a dense d x d system. A loss with a kink gets a
  variable xi_i >= 0, xi_i >= m - d_i for each pair, which its step eliminates. So is the optimum itself found.
No answer rests on either having converged:
- every iterate is drawn into W, so its t . w is attained: `attained_low`, `attained_high`;
- any shares a_i in [0, 1] give a plane below the loss, L(w) >= g . w + c, so that W lies in a ball cut by a half-space
  over which the maximum of t . w has a closed form: no reward of W passes the bounds `low` and `high` (up to rounding).
The shares of the solution make the two meet (strong duality).
"""

from irl_exp.determined.bounds import OPTIMUM, possible_margins
from irl_exp.determined.calibration import Calibration, Scaled, calibrated
from irl_exp.determined.fitted import Fitted, loss_of
from irl_exp.determined.problem import Floats, Loss, Optimum, Possible, bradley_terry, hinge, max_margin
from irl_exp.determined.programs import optimum

__all__ = [
    "OPTIMUM",
    "Calibration",
    "Fitted",
    "Floats",
    "Loss",
    "Optimum",
    "Possible",
    "Scaled",
    "bradley_terry",
    "calibrated",
    "hinge",
    "loss_of",
    "max_margin",
    "optimum",
    "possible_margins",
]
