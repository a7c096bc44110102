"""How far a value, a sum or a strength may be off before it counts as wrong: the thresholds of the weights stages."""

from __future__ import annotations

NEAREST_ULPS = 0.5
"""How far a value may be from what is due, rounded to nearest; on top comes what the bake's precision allows."""

DRAWN_ULPS = 1.0
"""The same for one that chance, by the recipe's seed, rounded up or down."""

NUDGED_ULPS = 4.0
"""Up to which distance a few wrong values are called nudged, or rounded twice."""

ONE_ULP = 1.001
"""The distance from either neighbour of a value, and float32's own error."""

NOISE = 9.0
"""Times the energy of one rounding: what a change may leave unexplained, for rounding twice or in a sum."""

FALSE_ALARM = 1e-9
"""The probability, at most, that random sums call a right checkpoint wrong."""

OFF, SIGMAS = 0.02, 8.0
"""How far the strength that arrives may be from the recipe's, and by how many deviations, before a warning."""
