"""DoRA: the direction comes from W + Δ, the length of each row (or column) from a trained magnitude.

W' = V · d/‖V‖ with V = W + scale·Δ and d the magnitude. PEFT's `magnitude` and LyCORIS's `dora_scale` of shape
(out, 1, …) hold one length an output row (on embeddings PEFT's is one a column); a `dora_scale` of shape (1, in, …)
one an input, whose norm is taken over outputs and kernel (OneTrainer, older LyCORIS). Liu et al. 2024 (arXiv
2402.09353).
It wraps whatever kind it sits on, so it is no kind of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Literal

from lorabake.adapters.effect import Effect
from lorabake.adapters.programs import OF_KOHYA, PROGRAMS
from lorabake.adapters.shapes import Shapes, fits

if TYPE_CHECKING:
    import torch

MAGNITUDES = frozenset({"magnitude", "dora_scale"})
"""The slots of the lengths, which may sit on whatever kind changes a weight."""

Axis = Literal["row", "column"]

STRENGTH_INSIDE = ("peft", "lycoris")
"""Programs for which a magnitude at strength s is no mixture of W and W(1), and at strength 0 not W."""

LENGTHS_OF_THE_BASE = ("comfyui", "forge")
"""Programs that divide rows by their lengths before the change."""


NO_AXIS = "its DoRA magnitude has neither rows nor columns of it"


def is_in(slots: Iterable[str]) -> bool:
    """Tell whether a module's slots hold a magnitude."""
    return any(slot in MAGNITUDES for slot in slots)


def axis(shapes: Shapes, weight: tuple[int, ...], of_magnitudes: Axis = "row") -> Axis | None:
    """Tell whether the lengths are those of rows or of columns; None if they fit neither, or are given twice.

    `of_magnitudes` are those of a `magnitude`, whose shape does not tell.
    """
    if len(weight) < 2 or shapes.keys() >= MAGNITUDES:
        return None
    if "magnitude" in shapes:
        shape, count = shapes["magnitude"], weight[of_magnitudes == "column"]
        return of_magnitudes if count == prod(shape) == max(shape, default=1) else None
    shape = shapes["dora_scale"]
    if fits(shape, weight[:1]):
        return "row"
    return "column" if fits(shape, (1, weight[1])) else None


def unread(program: str, shapes: Shapes) -> str | None:
    """Say why a program could not have read a magnitude, or None if it could."""
    if program in OF_KOHYA and "dora_scale" not in shapes:
        return f"{PROGRAMS[program]} does not read magnitudes of this spelling, only a dora_scale"
    if program == "peft" and shapes.get("dora_scale", ())[:1] == (1,):
        return "PEFT has magnitudes of rows alone"
    return None


def share(semantics: str, strength: float) -> float:
    """Return what the difference that `Dora.result` makes is multiplied by at a strength."""
    return 1.0 if semantics in STRENGTH_INSIDE else strength


@dataclass(frozen=True, slots=True)
class Dora:
    """Say what has the lengths, in a weight of which shape, by which program's law and at which strength.

    `semantics` is empty for the definition, whose result at a strength is a mixture of W and W(1).
    """

    axis: Axis
    shape: tuple[int, ...]
    semantics: str = ""
    strength: float = 1.0

    @property
    def needs_all_rows(self) -> bool:
        """Tell whether the norms are those of columns, for which it takes all rows."""
        return self.axis == "column" or self.semantics == "a1111"

    def result(self, weight: torch.Tensor, delta: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Return what W (rows, columns) becomes: W(1), or W(s) in programs of `STRENGTH_INSIDE`.

        PEFT: (W + s·Δ)·d/‖W + s·Δ‖. LyCORIS: V·(1 + s·(d/‖V‖ − 1)). ComfyUI and Forge: V·d/‖W‖ by rows.
        AUTOMATIC1111: V·d/‖V‖ with norms of columns, whatever d is. The small numbers that some add to the norm are
        left out. `lengths` are those of these rows, or of all columns.
        """
        if self.semantics == "peft":
            return renorm(weight + self.strength * delta, lengths, self.axis, self.shape)
        updated = weight + delta
        if self.semantics in LENGTHS_OF_THE_BASE and self.axis == "row":
            return updated * (lengths.reshape(-1, 1) / weight.square().sum(dim=1, keepdim=True).sqrt())
        if self.semantics == "a1111" and self.axis == "row":
            ones = lengths.new_ones(self.shape[1])
            return renorm(updated, ones, "column", self.shape) * lengths.reshape(-1, 1)
        result = renorm(updated, lengths, self.axis, self.shape)
        return updated + self.strength * (result - updated) if self.semantics == "lycoris" else result


@dataclass(frozen=True, slots=True)
class Lengthened(Effect):
    """Give what another effect makes of a weight the lengths of a magnitude, one a row or one a column."""

    inner: Effect
    magnitude: torch.Tensor
    dora: Dora

    is_result = True

    @property
    def erases(self) -> bool:
        """Tell whether any length is zero."""
        return not self.magnitude.all()

    def of(self, weight: torch.Tensor, rows: slice) -> torch.Tensor:
        """Change these rows, and set their lengths."""
        lengths = self.magnitude[rows] if self.dora.axis == "row" else self.magnitude
        return self.dora.result(weight, self.inner.of(weight, rows), lengths)

    def apply(self, weight: torch.Tensor, base: torch.Tensor, rows: slice, share: float) -> None:
        """Go a share of the way where nothing else was added, else add that share of the difference."""
        result = self.of(base, rows)
        if base is weight:
            weight.lerp_(result, share)
        else:
            weight.add_(result.sub_(base), alpha=share)


def renorm(updated: torch.Tensor, magnitude: torch.Tensor, axis: Axis, weight: tuple[int, ...]) -> torch.Tensor:
    """Give the rows or columns of V (rows, columns) the lengths in `magnitude`.

    `weight` is the module's shape (out, in[, kernel…]); rows may be fewer than out where `axis` is "row".
    """
    if axis == "row":
        norm = updated.square().sum(dim=1, keepdim=True).sqrt()
        return updated * (magnitude.reshape(-1, 1) / norm)
    cube = updated.reshape(updated.shape[0], weight[1], -1)
    norm = cube.square().sum(dim=(0, 2), keepdim=True).sqrt()
    return (cube * (magnitude.reshape(1, -1, 1) / norm)).reshape(updated.shape)
