"""The one judge of samples: what passes between the floor and the ceiling, and where a prompt cannot tell."""

from __future__ import annotations

from math import inf, nan

import pytest

from lorabake.verification.samples.judge import LEAST_OF_LATENTS, LEAST_OF_LOGITS, Yardstick


def test_the_limit_is_halfway_on_a_logarithmic_scale() -> None:
    yardstick = Yardstick.of(1e-4, 1e-2, LEAST_OF_LATENTS)
    assert yardstick.limit == pytest.approx(1e-3)
    assert yardstick.passes(0.9e-3)
    assert not yardstick.passes(1.1e-3)
    assert yardstick.tells


def test_twice_the_floor_always_passes() -> None:
    for ceiling in (0.0, 1e-4, 2e-4, 3.9e-4):
        yardstick = Yardstick.of(1e-4, ceiling, LEAST_OF_LATENTS)
        assert yardstick.limit == pytest.approx(2e-4)
        assert yardstick.passes(2e-4)
        assert yardstick.is_at_floor(2e-4)


@pytest.mark.parametrize(("ceiling", "tells"), [(1.9e-4, False), (2e-4, False), (2.1e-4, True)])
def test_a_ceiling_within_twice_the_floor_tells_nothing(ceiling: float, tells: bool) -> None:
    assert Yardstick.of(1e-4, ceiling, LEAST_OF_LATENTS).tells is tells


@pytest.mark.parametrize("least", [LEAST_OF_LATENTS, LEAST_OF_LOGITS])
def test_the_floor_is_at_least_what_float32_may_differ_by(least: float) -> None:
    yardstick = Yardstick.of(0.0, 1.0, least)
    assert yardstick.floor == least
    assert yardstick.passes(0.0)


@pytest.mark.parametrize("measured", [nan, inf])
def test_what_is_no_number_does_not_pass(measured: float) -> None:
    assert not Yardstick.of(1e-4, 1e-2, LEAST_OF_LATENTS).passes(measured)
