"""Run the device's own tests on an accelerator that this machine does not have."""

from __future__ import annotations

from tests.simulated.runs import check_there


def test_memory_streams_and_what_it_cannot_do() -> None:
    check_there("simulated/bakes.py")
