"""Run the tests of packed weights and of LoRAs on each other on an accelerator that this machine does not have."""

from __future__ import annotations

from tests.simulated.runs import check_there


def test_packing_and_composing() -> None:
    check_there("test_packing.py", "test_compose.py")
