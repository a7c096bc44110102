"""The figures that compare pictures."""

from __future__ import annotations

from math import inf, isnan, nan

import numpy as np
import pytest

from lorabake.verification.samples.metrics import distance, psnr, ssim

GENERATOR = np.random.default_rng(0)
PICTURE = GENERATOR.integers(0, 256, (40, 48, 3), dtype=np.uint8)


def test_equal_pictures() -> None:
    assert psnr(PICTURE, PICTURE) == inf
    assert ssim(PICTURE, PICTURE) == pytest.approx(1)


def test_psnr_is_that_of_the_mean_square() -> None:
    other = PICTURE.astype(np.int64)
    other = np.where(other > 127, other - 10, other + 10).astype(np.uint8)
    assert psnr(PICTURE, other) == pytest.approx(20 * np.log10(255 / 10))


def test_ssim_of_a_constant_shift_is_the_luminance_term() -> None:
    one, other = np.full((32, 32, 3), 100, np.uint8), np.full((32, 32, 3), 120, np.uint8)
    c1 = (0.01 * 255) ** 2
    assert ssim(one, other) == pytest.approx((2 * 100 * 120 + c1) / (100**2 + 120**2 + c1))


def test_ssim_falls_with_noise_and_against_the_negative() -> None:
    noisy = np.clip(PICTURE.astype(np.int64) + GENERATOR.integers(-40, 41, PICTURE.shape), 0, 255).astype(np.uint8)
    assert ssim(PICTURE, 255 - PICTURE) < 0 < ssim(PICTURE, noisy) < 1


def test_pictures_smaller_than_the_window() -> None:
    assert ssim(PICTURE[:8, :8], PICTURE[:8, :8]) == pytest.approx(1)


def test_distance_is_relative_to_the_reference() -> None:
    reference = np.array([3.0, 4.0], np.float32)
    assert distance(reference * 1.1, reference) == pytest.approx(0.1, rel=1e-5)
    assert distance(reference, np.zeros(2, np.float32)) == inf
    assert isnan(distance(np.array([nan, 1.0]), reference))
