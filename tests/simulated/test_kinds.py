"""Run the tests of every adapter kind on an accelerator that this machine does not have."""

from __future__ import annotations

from tests.simulated.runs import check_there


def test_every_kind() -> None:
    check_there("test_kinds.py", selected="not bfloat16")  # what the output is rounded to makes no difference there
