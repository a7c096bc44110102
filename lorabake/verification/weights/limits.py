"""How far a value, a sum or a strength may be off before it counts as wrong: the thresholds of the weights stages."""

from __future__ import annotations

NEAREST_ULPS = 0.5
"""How far a value may be from the due one with rounding to nearest, plus the error of the bake's own precision."""

DRAWN_ULPS = 1.0
"""The same for stochastic rounding by the recipe's seed."""

NUDGED_ULPS = 4.0
"""Most distance at which a few wrong values count as nudged or rounded twice."""

ONE_ULP = 1.001
"""Most distance of a value from either of its neighbours, with float32's own error."""

NOISE = 9.0
"""Unexplained energy that is tolerated, in units of one rounding, to allow for rounding twice or in a sum."""

FALSE_ALARM = 1e-9
"""Upper bound of the probability that random sums reject a correct checkpoint."""

OFF, SIGMAS = 0.02, 8.0
"""How far an arriving strength may be from the recipe's, and by how many standard deviations, before a warning."""
