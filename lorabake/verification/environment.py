"""Say what verified what: versions, device, and which base and checkpoint these are."""

from __future__ import annotations

import platform
from collections.abc import Mapping

from lorabake.machine import COMPUTING, versions
from lorabake.planning import Plan
from lorabake.planning.provenance import DEVICE
from lorabake.tensors.checkpoint import Checkpoint
from lorabake.verification.findings import Environment, Identity, Samples
from lorabake.verification.structure.links import name_of

SAMPLING = ("diffusers", "transformers", "peft", "accelerate")
"""Packages whose versions matter, too, where models were run."""


def environment_of(
    plan: Plan,
    checkpoint: Checkpoint | None,
    samples: Samples | None,
    whole: Mapping[str, str],
    *,
    command: str,
    date: str,
) -> Environment:
    """Describe a verification; `whole` are the digests of whole files, by path, as far as they were taken."""
    base = plan.sources.base
    return Environment(
        versions=versions((*COMPUTING, *(SAMPLING if samples else ()))),
        system=f"{platform.system()} {platform.machine()}",
        device=_device(samples),
        baked_on=checkpoint.metadata.get(DEVICE, "").strip() if checkpoint else "",
        base=_identity(plan.sources.recipe.base.portable_path, base, whole),
        output=_identity(checkpoint.path.name, checkpoint, whole) if checkpoint else None,
        command=command,
        date=date,
    )


def _device(samples: Samples | None) -> str:
    """Name the device that ran the models, the accelerator's product included; weights are compared on the CPU."""
    device = str(samples.settings.get("device", "cpu")) if samples else "cpu"
    if not device.startswith("cuda"):
        return device
    import torch

    return f"{device} ({torch.cuda.get_device_name(device)})"


def _identity(path: str, checkpoint: Checkpoint, whole: Mapping[str, str]) -> Identity:
    headers = list(checkpoint.headers)
    is_whole = all(str(header.path) in whole for header in headers)
    return Identity(
        path,
        {name_of(checkpoint, header): whole[str(header.path)] if is_whole else header.sha256 for header in headers},
        is_whole,
    )
