"""Models of jitter: how the extra delay of a burst is drawn.

Every model turns one uniform number into one extra delay of at least 0, so that models and magnitudes can be compared
on the same draws. The mean is half of `jitter_ms` in all of them; they differ in their tails:

- uniform: from 0 to jitter_ms.
- normal: a standard deviation of jitter_ms / 4, cut off at 0 and jitter_ms.
- lognormal: sigma 1; one in a hundred takes 6.2 times the mean.
- pareto: Lomax with shape 2.5; one in a hundred takes 8 times the mean, one in a thousand 22 times.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

UNIFORM = "uniform"
PARETO_SHAPE = 2.5
LOGNORMAL_SIGMA = 1.0
_STANDARD_NORMAL = NormalDist()
_LEAST = 2.0**-53  # a uniform number may be 0, of which the normal has no quantile


def _uniform(u: float) -> float:
    return u


def _normal(u: float) -> float:
    return min(1.0, max(0.0, 0.5 + _STANDARD_NORMAL.inv_cdf(max(u, _LEAST)) / 4))


def _lognormal(u: float) -> float:
    sigma = LOGNORMAL_SIGMA
    return 0.5 * math.exp(sigma * _STANDARD_NORMAL.inv_cdf(max(u, _LEAST)) - sigma * sigma / 2)


def _pareto(u: float) -> float:
    return 0.5 * (PARETO_SHAPE - 1) * (math.pow(1 - u, -1 / PARETO_SHAPE) - 1)


# name: the quantile function, for a jitter_ms of 1
MODELS: dict[str, Callable[[float], float]] = {
    UNIFORM: _uniform,
    "normal": _normal,
    "lognormal": _lognormal,
    "pareto": _pareto,
}
