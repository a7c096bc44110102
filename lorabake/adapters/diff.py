"""Whole differences: W' = W + ΔW, as full fine-tunes and norm layers are saved (LyCORIS, ComfyUI, ai-toolkit)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorabake.adapters.kind import Kind, Shapes, Tensors, Terms, fits

if TYPE_CHECKING:
    import torch


class Difference(Kind):
    """Add a tensor of the weight's own shape."""

    name = "diff"
    title = "full difference"
    required = frozenset({"diff"})
    optional = frozenset({"reshape_weight"})
    markers = frozenset({"reshape_weight"})
    suffixes = ((r"\.diff", "diff"),)

    def fault(self, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Ask for the parameter's own shape."""
        (shape,) = (shapes[slot] for slot in self.required)
        return None if fits(shape, weight) else f"its difference is {shape}"

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
    suffixes = ((r"\.diff_b", "diff_b"),)
    parameter = "bias"


class Beft(Difference):
    """Add a trained vector to the bias (PEFT's BEFT)."""

    name = "beft"
    title = "BEFT"
    required = frozenset({"beft_bias"})
    optional = frozenset()
    suffixes = ((r"\.beft_bias(?:\.[^.]+)?", "beft_bias"),)
    parameter = "bias"
    peft_type = "BEFT"
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


class NormBiasDifference(Difference):
    """Add a difference to a norm layer's bias."""

    name = "b_norm"
    title = "norm bias"
    required = frozenset({"b_norm"})
    optional = frozenset()
    suffixes = ((r"\.b_norm", "b_norm"),)
    parameter = "bias"


KINDS = (Difference(), BiasDifference(), Beft(), NormDifference(), NormBiasDifference())
