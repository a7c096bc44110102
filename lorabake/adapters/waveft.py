"""WaveFT: ΔW = scaling · the inverse wavelet transform of a sparse spectrum, or that spectrum itself.

The file holds the coefficients (`waveft_spectrum`); their places are drawn as for FourierFT. With the Haar wavelet
(db1) the four quarters A, H, V, D of the spectrum S (both sides even, one zero more where they are odd) give
Δ[2p + a, 2q + b] = (A + (−1)ᵃ·H + (−1)ᵇ·V + (−1)ᵃ⁺ᵇ·D)[p, q]/2. Bilican et al. 2025 (arXiv 2505.12532); PEFT.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, cast

from lorabake.adapters.kind import Kind, Settings, Shapes, Tensors, Terms, scattered

if TYPE_CHECKING:
    import torch


class WaveFt(Kind):
    """Add a sparse spectrum's wavelet transform."""

    name = "waveft"
    title = "WaveFT"
    required = frozenset({"waveft_spectrum"})
    suffixes = ((r"\.waveft_spectrum", "waveft_spectrum"),)
    peft_type = "WAVEFT"
    peft_fields = frozenset(
        {"n_frequency", "n_frequency_pattern", "proportional_parameters", "scaling", "random_loc_seed", "bias"}
        | {"wavelet_family", "use_idwt", "fan_in_fan_out", "init_weights"}
    )

    def settings(self, config: Settings | None, module: str, shapes: Shapes) -> Settings:
        """Read scale, seed and wavelet."""
        said = config or {}
        scaling, seed, family = (said.get(name) for name in ("scaling", "random_loc_seed", "wavelet_family"))
        if type(scaling) not in (int, float) or type(seed) is not int or type(said.get("use_idwt")) is not bool:
            raise ValueError("no adapter_config.json says scaling, random_loc_seed and use_idwt")
        if said["use_idwt"] and family not in ("db1", "haar"):
            raise ValueError(f"its wavelet is {family}: only db1 (Haar's) is supported")
        return {"scaling": scaling, "seed": seed, "transform": said["use_idwt"]}

    def fault(self, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Ask for no more coefficients than values."""
        shape = shapes["waveft_spectrum"]
        if len(weight) != 2:
            return "it is for linear layers"
        return None if len(shape) == 1 and shape[0] <= prod(weight) else f"its spectrum is {shape}"

    def prepare(self, tensors: Tensors, terms: Terms) -> Tensors:
        """Put the coefficients in their places and transform them."""
        import torch

        spectrum, (rows, columns) = tensors["waveft_spectrum"], terms.shape
        dense = scattered(spectrum, (rows, columns), cast(int, terms.settings["seed"]))
        if terms.settings["transform"]:
            even = torch.nn.functional.pad(dense, (0, columns % 2, 0, rows % 2))
            (a, h), (v, d) = (half.chunk(2, dim=1) for half in even.chunk(2, dim=0))
            quarters = [[a + h + v + d, a + h - v - d], [a - h + v - d, a - h - v + d]]
            woven = torch.stack([torch.stack(pair, dim=-1).flatten(-2) for pair in quarters], dim=1).flatten(0, 1)
            dense = woven[:rows, :columns] / 2
        return {"delta": dense * cast(float, terms.settings["scaling"])}

    def delta(self, tensors: Tensors, weight: torch.Tensor, rows: slice, terms: Terms) -> torch.Tensor:
        """Return these rows."""
        return tensors["delta"][rows]


KINDS = (WaveFt(),)
