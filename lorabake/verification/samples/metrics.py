"""How alike are two pictures, or two latents? Plain NumPy."""

from __future__ import annotations

from math import inf, log10
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lorabake.verification.findings import Likeness

if TYPE_CHECKING:
    from lorabake.verification.findings import Pixels

Field = NDArray[np.float64]

WINDOW, SIGMA = 11, 1.5
"""The Gaussian window of SSIM, in pixels, as its authors have it."""


def likeness(latents: NDArray[Any], picture: Pixels, other_latents: NDArray[Any], other_picture: Pixels) -> Likeness:
    """Compare a sample with a reference: latents of one shape, pictures (height, width, 3) of 8 bits."""
    return Likeness(distance(latents, other_latents), psnr(picture, other_picture), ssim(picture, other_picture))


def distance(one: NDArray[Any], reference: NDArray[Any]) -> float:
    """Return ‖one - reference‖/‖reference‖, NaN where either is no number."""
    size = float(np.linalg.norm(reference.astype(np.float64)))
    return float(np.linalg.norm(one.astype(np.float64) - reference.astype(np.float64))) / size if size else inf


def psnr(one: Pixels, other: Pixels) -> float:
    """Return the peak signal-to-noise ratio in dB; infinite for equal pictures."""
    error = float(np.square(one.astype(np.float64) - other.astype(np.float64)).mean())
    return 10 * log10(255**2 / error) if error else inf


def ssim(one: Pixels, other: Pixels) -> float:
    """Return the mean structural similarity of the luma (Wang et al. 2004), in [-1, 1]."""
    x, y = (each.astype(np.float64) @ np.array([0.299, 0.587, 0.114]) for each in (one, other))
    window = min(WINDOW, *x.shape)
    offsets = np.arange(window) - (window - 1) / 2
    weights = np.exp(-np.square(offsets) / (2 * SIGMA**2))
    weights /= weights.sum()

    def mean(field: Field) -> Field:
        rows = np.lib.stride_tricks.sliding_window_view(field, window, axis=0) @ weights
        return np.asarray(np.lib.stride_tricks.sliding_window_view(rows, window, axis=1) @ weights)

    mean_x, mean_y = mean(x), mean(y)
    var_x, var_y = mean(x * x) - mean_x**2, mean(y * y) - mean_y**2
    covariance = mean(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    top = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return float((top / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean())
