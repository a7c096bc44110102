"""FourierFT: ΔW = scaling · Re(inverse 2-D Fourier transform of a sparse spectrum).

The file holds the coefficients alone (`fourierft_spectrum`); their places are drawn by torch's generator on the CPU
from the configuration's `random_loc_seed`, and drawn again here. Gao et al. 2024 (arXiv 2405.03003).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from lorabake.adapters.draws import scattered
from lorabake.adapters.kind import Delta
from lorabake.adapters.settings import Settings, TermsOf
from lorabake.adapters.shapes import Shapes, Tensors, matrix
from lorabake.keymap.said import Said

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class FourierFtSettings(Settings):
    """Scale the transform, and draw the places by a seed."""

    scaling: float
    seed: int


class FourierFt(Delta):
    """Add a sparse spectrum's transform."""

    name = "fourierft"
    title = "FourierFT"
    required = frozenset({"fourierft_spectrum"})
    suffixes = ((r"\.fourierft_spectrum", "fourierft_spectrum"),)
    peft_type = "FOURIERFT"
    peft_fields = frozenset(
        {"n_frequency", "n_frequency_pattern", "scaling", "random_loc_seed", "fan_in_fan_out", "init_weights", "bias"}
    )

    def settings(self, said: Said, shapes: Shapes) -> FourierFtSettings:
        """Read the scale and the seed of the places."""
        return FourierFtSettings(said.number("scaling"), said.seed("random_loc_seed"))

    def fault(self, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Ask for no more coefficients than values."""
        shape = shapes["fourierft_spectrum"]
        return None if len(shape) == 1 and shape[0] <= prod(matrix(weight)) else f"its spectrum is {shape}"

    def configured(self, said: Said, shapes: Shapes, weight: tuple[int, ...]) -> Shapes:
        """Ask for as many coefficients as the configuration names."""
        count = said.count("n_frequency")
        return {"fourierft_spectrum": (count,)} if count else {}

    def prepare(self, tensors: Tensors, terms: TermsOf[FourierFtSettings]) -> Tensors:
        """Put the coefficients in their places and transform them."""
        import torch

        spectrum = tensors["fourierft_spectrum"]
        dense = scattered(spectrum, matrix(terms.shape), terms.settings.seed)
        return {"delta": torch.fft.ifft2(dense).real * terms.settings.scaling}

    def delta(
        self, tensors: Tensors, weight: torch.Tensor, rows: slice, terms: TermsOf[FourierFtSettings]
    ) -> torch.Tensor:
        """Return these rows."""
        return tensors["delta"][rows]


KINDS = (FourierFt(),)
