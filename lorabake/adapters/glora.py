"""GLoRA: ΔW = alpha/rank · (B-part + W·A-part), two low-rank products of which one multiplies the weight.

LyCORIS since 2.0: a1 (in, rank), a2 (rank, in), b1 (out, rank), b2 (rank, in[, kernel…]): ΔW = b1·b2 + (W·a1)·a2.
LyCORIS 1.x has the same names the other way round: a1 (rank, in), a2 (in, rank), b1 (rank, in), b2 (out, rank):
ΔW = b2·b1 + (W·a2)·a1. On a convolution W's inputs are what the A-part mixes; `bm` (rank, rank, kernel…) is a Tucker
core of the B-part. Chavan et al. 2023 (arXiv 2306.07967), as LyCORIS defines it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorabake.adapters.kind import Delta
from lorabake.adapters.programs import OF_KOHYA, PROGRAMS
from lorabake.adapters.settings import Settings, TermsOf
from lorabake.adapters.shapes import Shapes, Tensors, fits, matrix
from lorabake.keymap.said import Said

if TYPE_CHECKING:
    import torch

SLOTS = ("a1", "a2", "b1", "b2")
TURNED = {"a1": "a2", "a2": "a1", "b1": "b2", "b2": "b1"}


@dataclass(frozen=True, slots=True)
class GloraSettings(Settings):
    """Follow a program: take what fits either way for the layout of LyCORIS 1, and leave alpha out."""

    is_old: bool = False
    is_unscaled: bool = False


class Glora(Delta):
    """Add a low-rank product, and the weight times another."""

    name = "glora"
    title = "GLoRA"
    required = frozenset({"glora_a1", "glora_a2", "glora_b1", "glora_b2"})
    optional = frozenset({"glora_bm", "alpha"})
    suffixes = tuple((rf"\.{slot}\.weight", f"glora_{slot}") for slot in (*SLOTS, "bm"))
    reads_weight = True
    programs = OF_KOHYA
    dora_in = OF_KOHYA - {"lycoris"}

    def rank(self, shapes: Shapes) -> int:
        """Return the smaller side of a1."""
        return min(matrix(shapes["glora_a1"]))

    def settings(self, said: Said, shapes: Shapes) -> GloraSettings:
        """Begin with the definition."""
        return GloraSettings()

    def fault(self, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Ask for one of the two orientations."""
        if len(weight) < 2:
            return "it needs a weight with inputs"
        if _is_new(shapes, weight) or _is_old(shapes, weight):
            return None
        return "its tensors " + ", ".join(f"{slot} {shapes[f'glora_{slot}']}" for slot in SLOTS) + " do not fit"

    def unread(self, program: str, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Name what a program fails at."""
        if program == "lycoris":
            return None
        old, convolved = _is_old(shapes, weight), matrix(weight)[1] > weight[1]
        if program != "a1111":
            if "glora_bm" in shapes:
                return f"{PROGRAMS[program]} does not read GLoRA's Tucker core"
            if old and convolved and not _is_new(shapes, weight):
                return f"{PROGRAMS[program]} fails at GLoRA of LyCORIS 1 on convolutions"
            return None
        if not old or len(weight) > 2:
            return "AUTOMATIC1111 fails at GLoRA but for that of LyCORIS 1 on linear layers"
        if "alpha" not in shapes:
            return "AUTOMATIC1111 does not read GLoRA without alpha, though it ignores its value"
        return None

    def follow(
        self, settings: GloraSettings, program: str, shapes: Shapes, weight: tuple[int, ...], strength: float
    ) -> Settings:
        """Ignore alpha as AUTOMATIC1111 does.

        Where the tensors fit either way, all but LyCORIS take them for those of LyCORIS 1.
        """
        if program == "a1111":
            return GloraSettings(is_old=True, is_unscaled=True)
        either = program != "lycoris" and _is_old(shapes, weight) and _is_new(shapes, weight)
        return GloraSettings(is_old=True) if either else settings

    def prepare(self, tensors: Tensors, terms: TermsOf[GloraSettings]) -> Tensors:
        """Name the factors as LyCORIS does today, flat, and fold the core in."""
        shapes = {slot: tuple(tensor.shape) for slot, tensor in tensors.items()}
        new = _is_new(shapes, terms.shape) and not terms.settings.is_old
        found = {slot: tensors[f"glora_{slot if new else TURNED[slot]}"].flatten(1) for slot in SLOTS}
        if "glora_bm" in tensors:
            found["b2"] = (found["b2"].T @ tensors["glora_bm"].flatten(2)).flatten(1)
        return found

    def delta(
        self, tensors: Tensors, weight: torch.Tensor, rows: slice, terms: TermsOf[GloraSettings]
    ) -> torch.Tensor:
        """Mix the inputs of these rows by a1·a2, and add b1·b2."""
        cube = weight.reshape(weight.shape[0], terms.shape[1], -1).transpose(1, 2)
        mixed = ((cube @ tensors["a1"]) @ tensors["a2"]).transpose(1, 2).flatten(1)
        scale = 1.0 if terms.settings.is_unscaled else terms.scale
        return (mixed + tensors["b1"][rows] @ tensors["b2"]).mul_(scale)


def _is_new(shapes: Shapes, weight: tuple[int, ...]) -> bool:
    (out, inputs, *kernel), rank = weight, matrix(shapes["glora_a1"])[1]
    wanted = {"a1": (inputs, rank), "a2": (rank, inputs), "b1": (out, rank), "b2": (rank, inputs, *kernel)}
    if "glora_bm" in shapes:
        wanted |= {"b2": (rank, inputs), "bm": (rank, rank, *kernel)}
    return all(fits(shapes[f"glora_{slot}"], size) for slot, size in wanted.items())


def _is_old(shapes: Shapes, weight: tuple[int, ...]) -> bool:
    if "glora_bm" in shapes:
        return False
    (out, inputs, *kernel), rank = weight, matrix(shapes["glora_a1"])[0]
    wanted = {"a1": (rank, inputs), "a2": (inputs, rank), "b1": (rank, inputs, *kernel), "b2": (out, rank)}
    return all(fits(shapes[f"glora_{slot}"], size) for slot, size in wanted.items())


KINDS = (Glora(),)
