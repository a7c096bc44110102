"""Run tests of methods, rounding and reproducibility on an accelerator that this machine does not have."""

from __future__ import annotations

from tests.simulated.runs import check_there

FILES = [f"test_{name}.py" for name in ("methods", "rounding", "embeddings", "reproducible")]


def test_methods_and_rounding() -> None:
    check_there(*FILES, selected="not the_first_bake_of_a_process")  # which is about the CPU
