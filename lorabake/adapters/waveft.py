"""WaveFT: ΔW = scaling · the inverse wavelet transform of a sparse spectrum, or that spectrum itself.

The file holds the coefficients (`waveft_spectrum`); their places are drawn as for FourierFT. The spectrum S lies in
the middle of a larger matrix: by the filter's taps less two, and one more where that is odd. Its quarters A, H, V, D
are one step of a wavelet transform, H high-pass along the first side, V along the second. PyWavelets has the filters,
but for Haar's (db1).
Bilican et al. 2025 (arXiv 2505.12532); PEFT.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from math import prod
from typing import TYPE_CHECKING

from lorabake.adapters.draws import scattered
from lorabake.adapters.kind import Delta
from lorabake.adapters.settings import Settings, TermsOf
from lorabake.adapters.shapes import Shapes, Tensors
from lorabake.errors import SurroundingsError
from lorabake.keymap.said import Said

if TYPE_CHECKING:
    import torch


HAAR = (0.5**0.5, 0.5**0.5)
WAVELETS = {
    *(f"db{order}" for order in range(1, 11)),
    *(f"sym{order}" for order in range(2, 11)),
    *(f"coif{order}" for order in range(1, 4)),
}
"""The wavelets that PEFT has filters of, those of coif4 and coif5 being others than the wavelets'."""


def low_pass(wavelet: str) -> tuple[float, ...]:
    """Return the filter by which a wavelet's averages are put together."""
    if wavelet == "db1":
        return HAAR
    import pywt

    return tuple(pywt.Wavelet(wavelet).rec_lo)


def synthesis(low: torch.Tensor, high: torch.Tensor, taps: tuple[float, ...]) -> torch.Tensor:
    """Put averages and differences together along the first side, twice as long less the taps beyond two."""
    count, size = len(taps), len(low)
    found = low.new_zeros(2 * size - 2 + count, *low.shape[1:])
    for tap in range(count):
        found[tap : tap + 2 * size - 1 : 2] += taps[tap] * low + (-1) ** tap * taps[-1 - tap] * high
    return found[count - 2 : len(found) - count + 2]


@dataclass(frozen=True, slots=True)
class WaveFtSettings(Settings):
    """Scale the transform by a wavelet, none if that is empty, and draw the places by a seed."""

    scaling: float
    seed: int
    wavelet: str


class WaveFt(Delta):
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

    def settings(self, said: Said, shapes: Shapes) -> WaveFtSettings:
        """Read scale, seed and wavelet."""
        scaling, seed, family = (
            said.number("scaling"),
            said.seed("random_loc_seed"),
            said.value("wavelet_family"),
        )
        if type(said.value("use_idwt")) is not bool:
            raise ValueError("no adapter_config.json says use_idwt")
        if not said.is_set("use_idwt"):
            return WaveFtSettings(scaling, seed, "")
        if not isinstance(family, str) or family not in WAVELETS:
            raise ValueError(f"its wavelet is {family!r:.50}, and PEFT has no true filters of that")
        if family != "db1" and not find_spec("pywt"):
            raise SurroundingsError(
                f"{said.module}: the wavelet {family} needs the package PyWavelets",
                "Install the extra: in the clone of lorabake, pip install '.[wavelets]'",
            )
        return WaveFtSettings(scaling, seed, family)

    def fault(self, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Ask for no more coefficients than values."""
        shape = shapes["waveft_spectrum"]
        if len(weight) != 2:
            return "it is for linear layers"
        return None if len(shape) == 1 and shape[0] <= prod(weight) else f"its spectrum is {shape}"

    def configured(self, said: Said, shapes: Shapes, weight: tuple[int, ...]) -> Shapes:
        """Ask for as many coefficients as the configuration names, where it does not deal them out by sizes."""
        count = None if said.is_set("proportional_parameters") else said.count("n_frequency")
        return {"waveft_spectrum": (count,)} if count else {}

    def prepare(self, tensors: Tensors, terms: TermsOf[WaveFtSettings]) -> Tensors:
        """Put the coefficients in their places and transform them."""
        import torch

        spectrum, (rows, columns) = tensors["waveft_spectrum"], terms.shape
        dense = scattered(spectrum, (rows, columns), terms.settings.seed)
        if wavelet := terms.settings.wavelet:
            taps = low_pass(wavelet)
            above, left = (((len(taps) - 2) + side % 2) // 2 for side in (rows, columns))
            below, right = (len(taps) - 2 + side % 2 - before for side, before in ((rows, above), (columns, left)))
            wide = torch.nn.functional.pad(dense, (left, right, above, below))
            (a, h), (v, d) = (half.chunk(2, dim=1) for half in wide.chunk(2, dim=0))
            straight, across = synthesis(a.T, v.T, taps).T, synthesis(h.T, d.T, taps).T
            dense = synthesis(straight, across, taps)[:rows, :columns]
        return {"delta": dense * terms.settings.scaling}

    def delta(
        self, tensors: Tensors, weight: torch.Tensor, rows: slice, terms: TermsOf[WaveFtSettings]
    ) -> torch.Tensor:
        """Return these rows."""
        return tensors["delta"][rows]


KINDS = (WaveFt(),)
