"""Kinds whose change is a transform of a few numbers: circulant blocks, Fourier waves, wavelets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lorabake.reference.formulas.draws import places_of
from lorabake.reference.formulas.formula import Array, Formula, Indices, Place, PlaceOf, Tensors

if TYPE_CHECKING:
    from lorabake.adapters.fourierft import FourierFtSettings
    from lorabake.adapters.waveft import WaveFtSettings


def c3a(tensors: Tensors, weight: Array, place: Place, scale: float) -> Array:
    """W[m·b + k, n·b + j] + w[m, n, (j − k) mod b] / in (arXiv 2407.19342)."""
    kernel = tensors["c3a_kernel"]
    size = kernel.shape[2]
    (m, k), (n, j) = (
        np.divmod(np.arange(*ends), size) for ends in ((place.rows.start, place.rows.stop), (weight.shape[1],))
    )
    return np.asarray(weight + kernel[m[:, None], n[None, :], (j[None, :] - k[:, None]) % size] / weight.shape[1])


def fourierft(tensors: Tensors, weight: Array, place: PlaceOf[FourierFtSettings], scale: float) -> Array:
    """W[a, b] + scaling/(out·in)·Σ c·cos 2π(a·p/out + b·q/in); torch only draws the places (arXiv 2405.03003)."""
    spectrum, (out, columns) = tensors["fourierft_spectrum"], (place.shape[0], weight.shape[1])
    seed = place.settings.seed
    places = places_of(out * columns, seed, len(spectrum))
    p, q = np.divmod(places, columns)
    rows = np.exp(2j * np.pi * np.outer(np.arange(place.rows.start, place.rows.stop), p) / out)
    waves = np.exp(2j * np.pi * np.outer(q, np.arange(columns)) / columns)
    scaling = place.settings.scaling
    return np.asarray(weight + scaling / (out * columns) * ((rows * spectrum) @ waves).real)


def waveft(tensors: Tensors, weight: Array, place: PlaceOf[WaveFtSettings], scale: float) -> Array:
    """W + scaling·S, or one step of the inverse wavelet transform of S in zeros; torch only draws the places."""
    spectrum, (out, inputs) = tensors["waveft_spectrum"], place.shape
    seed = place.settings.seed
    places = places_of(out * inputs, seed, len(spectrum))
    rows, columns = np.divmod(places, inputs)
    wavelet = place.settings.wavelet
    delta = np.zeros((out, inputs))
    if wavelet == "db1":
        delta = _haar(rows, columns, spectrum, (out, inputs))
    elif wavelet:
        import pywt

        beyond = pywt.Wavelet(wavelet).rec_len - 2
        tall, wide = (size + beyond + size % 2 for size in (out, inputs))
        dense = np.zeros((tall, wide))
        dense[rows + (tall - out) // 2, columns + (wide - inputs) // 2] = spectrum
        (a, h), (v, d) = (np.hsplit(half, 2) for half in np.vsplit(dense, 2))
        delta = pywt.idwt2((a, (h, v, d)), wavelet)
    else:
        delta[rows, columns] = spectrum
    scaling = place.settings.scaling
    return np.asarray(weight + scaling * delta[place.rows, :inputs])


def _haar(rows: Indices, columns: Indices, spectrum: Array, shape: tuple[int, int]) -> Array:
    """Transform coefficient by coefficient: each makes a square of four values, of signs that its quarter tells."""
    tall, wide = (shape[0] + 1) // 2, (shape[1] + 1) // 2
    delta = np.zeros((2 * tall, 2 * wide))
    vertical, horizontal = rows >= tall, columns >= wide  # the lower and the right quarters
    for a in (0, 1):
        for b in (0, 1):
            signs = np.where(horizontal & (a == 1), -1.0, 1.0) * np.where(vertical & (b == 1), -1.0, 1.0)
            np.add.at(delta, (2 * (rows % tall) + a, 2 * (columns % wide) + b), signs * spectrum / 2)
    return delta


SPECTRA: dict[str, Formula] = {
    "c3a": c3a,
    "fourierft": fourierft,
    "waveft": waveft,
}
"""By `Kind.name`."""
