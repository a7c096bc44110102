"""Complete names of devices in the shell, without torch, whose import takes seconds."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem

DEVICES = {
    "auto": "an accelerator where there is one, else the CPU",
    "cpu": "the CPU",
    "cuda": "an NVIDIA GPU, or an AMD one under ROCm",
    "cuda:1": "the second GPU",
    "mps": "the GPU of a Mac",
    "xpu": "an Intel GPU",
}


def complete_device(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """List the devices that begin with what is typed."""
    return [CompletionItem(name, help=what) for name, what in DEVICES.items() if name.startswith(incomplete)]
