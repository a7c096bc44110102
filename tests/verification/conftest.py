"""What the tests of sampling share: no hub, few threads, and only the libraries' own deprecations pass."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before a library that samples is imported
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let only the sampling libraries' own deprecations pass."""
    for item in items:
        if "sampling" not in item.path.name:
            continue
        for category in ("DeprecationWarning", "FutureWarning"):
            for module in ("peft", "diffusers", "transformers", "huggingface_hub", "accelerate"):
                item.add_marker(pytest.mark.filterwarnings(rf"ignore::{category}:{module}(\..*)?"))


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Compute in one thread: the models are tiny, and threads that wait for each other take most of the time."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
