"""Register the simulated device with torch, which calls this at the end of its import. Stands alone in its folder."""

from __future__ import annotations

import ctypes
import os
import types
from pathlib import Path

import torch

LIBRARY = Path(__file__).with_name("device.so")
FIGURES = ("used", "peak", "refused", "copies_postponed", "copies_at_once")
TOTAL = 8 << 30
"""Bytes of memory that the device says it has."""

WORKSPACE = 1 << 20
"""Bytes of it that each stream at work keeps."""


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

    def figures() -> dict[str, int]:
        return {name: getattr(library, f"simulated_{name}")() for name in FIGURES}

    module = types.ModuleType("torch.simulated")
    module.__dict__.update(
        is_available=lambda: True,
        device_count=lambda: 1,
        current_device=lambda: 0,
        _is_in_bad_fork=lambda: False,
        manual_seed_all=lambda seed: None,
        empty_cache=library.simulated_empty_cache,
        get_device_name=lambda device=None: "simulated device",
        mem_get_info=lambda device=None: (TOTAL - figures()["used"], TOTAL),
        max_memory_reserved=lambda device=None: figures()["peak"],
        set_per_process_memory_fraction=lambda fraction, device=None: limit(int(fraction * TOTAL), WORKSPACE),
        limit=limit,
        figures=figures,
    )
    torch.utils.rename_privateuse1_backend("simulated")
    torch._register_device_module("simulated", module)
    limit(int(os.environ.get("SIMULATED_MEMORY", TOTAL)), WORKSPACE)
