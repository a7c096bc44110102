"""Register the simulated device with torch, which calls this at the end of its import. Stands alone in its folder."""

from __future__ import annotations

import ctypes
import os
import types
from pathlib import Path

import torch

LIBRARY = Path(__file__).with_name("device.so")
FIGURES = ("used", "peak", "refused", "copies_postponed", "copies_at_once")


def register() -> None:
    """Load the device and make `torch.simulated` of it."""
    torch.ops.load_library(str(LIBRARY))
    library = ctypes.CDLL(str(LIBRARY))
    for name in FIGURES:
        getattr(library, f"simulated_{name}").restype = ctypes.c_size_t

    def limit(memory: int | None, workspace: int = 0) -> None:
        """Allow so many bytes, or any number; each stream at work keeps `workspace` of them. Begin figures anew."""
        most = ctypes.c_size_t(-1).value if memory is None else memory
        library.simulated_limit(ctypes.c_size_t(most), ctypes.c_size_t(workspace))

    module = types.ModuleType("torch.simulated")
    module.__dict__.update(
        is_available=lambda: True,
        device_count=lambda: 1,
        current_device=lambda: 0,
        _is_in_bad_fork=lambda: False,
        manual_seed_all=lambda seed: None,
        empty_cache=library.simulated_empty_cache,
        limit=limit,
        figures=lambda: {name: getattr(library, f"simulated_{name}")() for name in FIGURES},
    )
    torch.utils.rename_privateuse1_backend("simulated")
    torch._register_device_module("simulated", module)
    if "SIMULATED_MEMORY" in os.environ:
        limit(int(os.environ["SIMULATED_MEMORY"]))
