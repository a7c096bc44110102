"""Why nothing can be drawn, or why other programs cannot apply a LoRA: reasons that become findings."""

from __future__ import annotations


class CannotDrawError(Exception):
    """Say why nothing can be drawn with a base, and what would help."""


class CannotLoadError(Exception):
    """Say why diffusers or PEFT cannot be the reference for a LoRA."""
