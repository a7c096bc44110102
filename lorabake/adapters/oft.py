"""OFT and BOFT of LyCORIS and kohya: blocks of outputs are rotated.

W' = R·W, R orthogonal by Cayley's map of a skew Q.
Diagonal OFT (`oft_blocks`, (n, b, b)): Q = X − Xᵀ, R = (I + Q)(I − Q)⁻¹, and each
block of b rows becomes Rᵀ·W. BOFT (`oft_blocks`, (m, n, b, b)): m rounds of R·W on rows that a butterfly of stride
2^i·b/2 brings together. alpha is a constraint: ‖Q‖ of all blocks together is at most alpha × out; kohya takes alpha 0
for no rotation, LyCORIS for no constraint. `rescale` (out) multiplies the rows afterwards. kohya's OFT for Flux has a
list (`oft_blocks.0`, …), one for each part of a fused layer, or one for a layer of one part; each turns its own rows
and has its own constraint. `oft_diag`, of 2023, holds the blocks R themselves.
Qiu et al. 2023 (arXiv 2306.07280); Liu et al. 2023, BOFT (arXiv 2311.06243).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lorabake.adapters.kind import Delta
from lorabake.adapters.programs import OF_KOHYA
from lorabake.adapters.rotations import bounded, cayley
from lorabake.adapters.settings import Settings, Terms, TermsOf
from lorabake.adapters.shapes import Shapes, Tensors, fits
from lorabake.keymap.said import Said

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class OftSettings(Settings):
    """Say how alpha bounds the rotations, and what a program makes of them.

    Files of `kohya` mean no rotation by alpha 0, others no bound. `bound` is what alpha is multiplied by, the outputs
    if None. `inside` is the strength that goes into the rotations. What `is_bare` knows no `rescale`.
    """

    kohya: bool
    bound: int | None = None
    inside: float | None = None
    is_bare: bool = False


class Oft(Delta):
    """Rotate blocks of outputs (LyCORIS's diagonal OFT and BOFT, kohya's OFT)."""

    name = "oft"
    title = "OFT"
    required = frozenset({"oft_blocks"})
    optional = frozenset({"alpha", "rescale"})
    suffixes: ClassVar[tuple[tuple[str, str], ...]] = ((r"\.oft_blocks", "oft_blocks"), (r"\.rescale", "rescale"))
    reads_weight = True
    by_rows = False
    alpha_is_scale = False
    programs: ClassVar[frozenset[str]] = OF_KOHYA - {"forge"}
    dora_in: ClassVar[frozenset[str]] = frozenset({"a1111"})

    def told_title(self, shapes: Shapes) -> str:
        """Tell LyCORIS's BOFT by its rounds."""
        return "BOFT" if len(shapes.get("oft_blocks", ())) == 4 else self.title

    def settings(self, said: Said, shapes: Shapes) -> OftSettings:
        """Tell kohya's files by their prefix: they mean something else by alpha 0."""
        return OftSettings(said.module.startswith("oft_"))

    def unread(self, program: str, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Name what ComfyUI fails at."""
        if program == "comfyui" and len(shapes["oft_blocks"]) == 4 and "alpha" not in shapes:
            return "ComfyUI fails at BOFT without alpha, and leaves it out"
        return None

    def follow(
        self, settings: OftSettings, program: str, shapes: Shapes, weight: tuple[int, ...], strength: float
    ) -> Settings:
        """Take alpha 0 for no bound, as all three do, and put the strength where they do.

        ComfyUI bounds ‖Q‖ by alpha alone; its OFT knows no `rescale`, its BOFT has the strength in each round and
        once more outside. LyCORIS's BOFT has it in each round alone, and `rescale` is whole at any strength.
        """
        if program == "comfyui":
            in_rounds = len(shapes["oft_blocks"]) == 4
            return OftSettings(False, 1, strength if in_rounds else None, is_bare=not in_rounds)
        is_inside = program == "lycoris" and self._is_inside(strength, shapes)
        return OftSettings(False, inside=strength if is_inside else None)

    def share(self, strength: float, program: str, shapes: Shapes) -> float:
        """Square the strength of ComfyUI's OFT; LyCORIS's is in the rotations already."""
        if self.lengths & shapes.keys():
            return super().share(strength, program, shapes)
        if program == "lycoris" and self._is_inside(strength, shapes):
            return 1.0
        return strength * strength if program == "comfyui" and len(shapes["oft_blocks"]) == 3 else strength

    def _is_inside(self, strength: float, shapes: Shapes) -> bool:
        return "rescale" in shapes or (len(shapes["oft_blocks"]) == 4 and bool(strength))

    def fault(self, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Ask for square blocks that cover the outputs."""
        shape = shapes["oft_blocks"]
        if len(shape) not in (3, 4) or shape[-1] != shape[-2]:
            return f"its blocks {shape} are no square matrices"
        if not weight or shape[-3] * shape[-1] != weight[0]:
            return f"its blocks turn {shape[-3] * shape[-1]} outputs"
        if len(shape) == 4 and (shape[-1] % 2 or weight[0] % (2 ** shape[0] * (shape[-1] // 2))):
            return f"its {shape[0]} butterfly rounds of blocks of {shape[-1]} do not divide the outputs"
        if "rescale" in shapes and not fits(shapes["rescale"], weight[:1]):
            return f"its rescale is {shapes['rescale']}"
        return None

    def prepare(self, tensors: Tensors, terms: TermsOf[OftSettings]) -> Tensors:
        """Build the rotations (rounds, n, b, b), as they multiply rows."""
        import torch

        blocks = tensors["oft_blocks"]
        skew = blocks - blocks.transpose(-1, -2)
        if "alpha" in tensors:
            bound = float(tensors["alpha"].reshape(-1)[0]) * (terms.settings.bound or terms.shape[0])
            if bound > 0 or terms.settings.kohya:
                skew = bounded(skew, bound)
        turns = cayley(skew)
        if terms.settings.inside is not None:
            eye = torch.eye(turns.shape[-1], dtype=turns.dtype, device=turns.device)
            turns = eye + terms.settings.inside * (turns - eye)
        found = {"rounds": turns} if turns.dim() == 4 else {"turns": turns.transpose(-1, -2)}
        rescales = "rescale" in tensors and not terms.settings.is_bare
        return found | ({"rescale": tensors["rescale"]} if rescales else {})

    def delta(self, tensors: Tensors, weight: torch.Tensor, rows: slice, terms: TermsOf[OftSettings]) -> torch.Tensor:
        """Rotate all rows, round after round."""
        columns = weight.shape[1]
        if "turns" in tensors:
            turned = tensors["turns"] @ weight.reshape(-1, tensors["turns"].shape[-1], columns)
        else:
            turned = weight
            for number, turns in enumerate(tensors["rounds"]):
                size = turns.shape[-1]
                stride = 2**number * (size // 2)
                near = turned.reshape(-1, 2, stride, columns).transpose(1, 2)
                near = turns @ near.reshape(-1, size, columns)
                turned = near.reshape(-1, stride, 2, columns).transpose(1, 2)
        turned = turned.reshape(weight.shape)
        if "rescale" in tensors:
            turned = turned * tensors["rescale"].reshape(-1, 1)
        return turned - weight


class OldOft(Oft):
    """Turn blocks of outputs by the matrices in the file (kohya's OFT of 2023)."""

    name = "oft_diag"
    required = frozenset({"oft_diag"})
    optional = frozenset({"alpha"})
    suffixes = ((r"\.oft_diag", "oft_diag"),)
    programs = frozenset({"a1111", "lycoris"})

    def unread(self, program: str, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Leave it at the definition."""
        return None

    def follow(
        self, settings: OftSettings, program: str, shapes: Shapes, weight: tuple[int, ...], strength: float
    ) -> Settings:
        """Leave it at the definition."""
        return settings

    def share(self, strength: float, program: str, shapes: Shapes) -> float:
        """Leave that, too."""
        return Delta.share(self, strength, program, shapes)

    def fault(self, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Ask for square blocks that cover the outputs."""
        shape = shapes["oft_diag"]
        if len(shape) == 3 and shape[1] == shape[2] and weight and shape[0] * shape[1] == weight[0]:
            return None
        return f"its blocks are {shape}"

    def prepare(self, tensors: Tensors, terms: TermsOf[OftSettings]) -> Tensors:
        """Take the blocks, as they multiply rows."""
        return {"turns": tensors["oft_diag"].transpose(1, 2)}


PARTS = tuple(f"oft_blocks_{part}" for part in range(4))


class PartedOft(Delta):
    """Rotate blocks of outputs, part by part of a fused layer (kohya's OFT for Flux)."""

    name = "oft_parts"
    title = "OFT"
    required = frozenset({PARTS[0], "alpha"})
    optional = frozenset(PARTS[1:])
    suffixes = tuple((rf"\.oft_blocks\.{number}", part) for number, part in enumerate(PARTS))
    reads_weight = True
    by_rows = False
    alpha_is_scale = False
    programs = frozenset()

    def claims(self, slots: frozenset[str]) -> frozenset[str]:
        """Ask for parts without a gap."""
        there = slots & frozenset(PARTS)
        return super().claims(slots) if there == frozenset(PARTS[: len(there)]) else frozenset()

    def fault(self, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Ask for square blocks that cover the outputs, one part after the other."""
        blocks = [shapes[part] for part in PARTS if part in shapes]
        if any(len(shape) != 3 or shape[1] != shape[2] for shape in blocks):
            return f"its blocks {', '.join(map(str, blocks))} are no square matrices"
        turned = sum(shape[0] * shape[1] for shape in blocks)
        return None if weight and turned == weight[0] else f"its blocks turn {turned} outputs"

    def prepare(self, tensors: Tensors, terms: Terms) -> Tensors:
        """Build the rotations of each part, as they multiply rows."""
        alpha, found = float(tensors["alpha"].reshape(-1)[0]), {}
        for part in PARTS:
            if part in tensors:
                blocks = tensors[part]
                skew = bounded(blocks - blocks.transpose(1, 2), alpha * blocks.shape[0] * blocks.shape[1])
                found[part] = cayley(skew).transpose(1, 2)
        return found

    def delta(self, tensors: Tensors, weight: torch.Tensor, rows: slice, terms: Terms) -> torch.Tensor:
        """Rotate all rows."""
        change, start = -weight, 0
        for turns in tensors.values():
            own = slice(start, start + turns.shape[0] * turns.shape[1])
            change[own] += (turns @ weight[own].reshape(len(turns), turns.shape[1], -1)).flatten(0, 1)
            start = own.stop
        return change


KINDS = (Oft(), PartedOft(), OldOft())
