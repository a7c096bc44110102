"""Whole differences: W' = W + ΔW, as full fine-tunes and norm layers are saved (LyCORIS, ComfyUI, ai-toolkit).

A parameter that is neither weight nor bias goes by its full name: `blocks.0.modulation.diff`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from lorabake.adapters.kind import Delta
from lorabake.adapters.programs import OF_KOHYA
from lorabake.adapters.settings import Terms
from lorabake.adapters.shapes import Shapes, Tensors, fits

if TYPE_CHECKING:
    import torch


class Difference(Delta):
    """Add a tensor of the weight's own shape."""

    name = "diff"
    title = "full difference"
    required = frozenset({"diff"})
    optional = frozenset({"reshape_weight"})
    markers = frozenset({"reshape_weight"})
    suffixes: ClassVar[tuple[tuple[str, str], ...]] = ((r"(?:\.weight)?\.diff", "diff"),)
    programs: ClassVar[frozenset[str]] = OF_KOHYA
    dora_in: ClassVar[frozenset[str]] = frozenset({"a1111"})
    beside: ClassVar[str] = ""
    """The slot without which AUTOMATIC1111 does not read it."""

    def fault(self, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Ask for the parameter's own shape."""
        (shape,) = (shapes[slot] for slot in self.required)
        return None if fits(shape, weight) else f"its difference is {shape}"

    def unread(self, program: str, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Name what AUTOMATIC1111 reads in pairs alone."""
        if program == "a1111" and self.beside and self.beside not in shapes:
            return f"AUTOMATIC1111 does not read {self.title}s without their {self.beside}"
        return None

    def delta(self, tensors: Tensors, weight: torch.Tensor, rows: slice, terms: Terms) -> torch.Tensor:
        """Return these rows of the difference."""
        (found,) = (tensors[slot] for slot in self.required)
        return found.reshape(terms.shape[0] if terms.shape else 1, -1)[rows]


class BiasDifference(Difference):
    """Add a difference to the bias."""

    name = "diff_b"
    title = "bias difference"
    required = frozenset({"diff_b"})
    optional = frozenset()
    suffixes = ((r"(?:\.diff_b|\.bias\.diff)", "diff_b"),)
    parameter = "bias"
    beside = "diff"


class Beft(Difference):
    """Add a trained vector to the bias (PEFT's BEFT)."""

    name = "beft"
    title = "BEFT"
    required = frozenset({"beft_bias"})
    optional = frozenset()
    suffixes = ((r"\.beft_bias(?:\.[^.]+)?", "beft_bias"),)
    parameter = "bias"
    peft_type = "BEFT"
    programs = frozenset({"peft"})
    peft_fields = frozenset({"init_weights"})

    def fault(self, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Ask for one value an output."""
        shape = shapes["beft_bias"]
        return None if shape == (1, *weight) else f"its beft_bias is {shape}"


class NormDifference(Difference):
    """Add a difference to a norm layer's weight."""

    name = "w_norm"
    title = "norm"
    required = frozenset({"w_norm"})
    optional = frozenset()
    suffixes = ((r"\.w_norm", "w_norm"),)
    dora_in = frozenset()
    beside = "b_norm"


class NormBiasDifference(Difference):
    """Add a difference to a norm layer's bias."""

    name = "b_norm"
    title = "norm bias"
    required = frozenset({"b_norm"})
    optional = frozenset()
    suffixes = ((r"\.b_norm", "b_norm"),)
    parameter = "bias"
    beside = "w_norm"


KINDS = (Difference(), BiasDifference(), Beft(), NormDifference(), NormBiasDifference())
