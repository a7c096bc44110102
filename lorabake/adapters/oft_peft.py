"""PEFT's OFT and BOFT, and OneTrainer's OFT: blocks of inputs are rotated.

W' = W·R, R orthogonal by Cayley's map of a skew Q.
OFT (`oft_R`, (n, b·(b−1)/2)): Q from the strict upper triangle, W' = W·Rᵀ with
R = (I − Q)(I + Q)⁻¹, or, with `use_cayley_neumann`, the first terms of the series of (I + Q)(I − Q)⁻¹, which is the
opposite rotation; the last term counts half since PEFT 0.18. BOFT (`boft_R`, (m, n, b, b)): Q = (X − Xᵀ)/2, R as in
OFT; in round i a block turns two halves (of b/2 columns) that lie 2^i halves apart; then rows are scaled by `boft_s`.
OneTrainer's OFT (`oft_R` and a marker `scaled_oft`): PEFT's with the series of five terms and Q/(2·√(b − 1)).
Liu et al. 2023, BOFT (arXiv 2311.06243); Qiu et al. 2025 (arXiv 2506.19847).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorabake.adapters.kind import Delta
from lorabake.adapters.rotations import cayley, series
from lorabake.adapters.settings import NO_SETTINGS, Settings, Terms, TermsOf
from lorabake.adapters.shapes import Shapes, Tensors, matrix
from lorabake.keymap.said import WHO_TRAINED, Said

if TYPE_CHECKING:
    import torch


MAX_TERMS = 100
"""Terms of a rotation's series; PEFT takes 5 unless it is told otherwise."""


@dataclass(frozen=True, slots=True)
class PeftOftSettings(Settings):
    """Take so many terms of the series, none for the exact rotation; Q `is_scaled`, the last term `is_whole`."""

    terms: int
    is_scaled: bool
    is_whole: bool = False


class PeftOft(Delta):
    """Rotate blocks of inputs (PEFT's OFT, OneTrainer's)."""

    name = "oft_peft"
    title = "OFT"
    required = frozenset({"oft_R"})
    reads_weight = True
    whole_in = frozenset({"peft"})
    optional = frozenset({"scaled_oft"})
    markers = optional
    suffixes = ((r"\.oft_R(?:\.[^.]+)?\.weight", "oft_R"), (r"\.(?:oft_R\.)?scaled_oft", "scaled_oft"))
    peft_type = "OFT"
    peft_fields = frozenset(
        {"r", "oft_block_size", "use_cayley_neumann", "num_cayley_neumann_terms", "block_share", "rank_pattern"}
        | {"coft", "eps", "module_dropout", "fan_in_fan_out", "bias", "init_weights", "alpha_pattern"}
    )

    def settings(self, said: Said, shapes: Shapes) -> PeftOftSettings:
        """Choose the rotation: the tensors alone do not tell which of two opposite ones is meant."""
        if "scaled_oft" in shapes:
            return PeftOftSettings(5, is_scaled=True)
        if not said.is_given:
            raise ValueError("no adapter_config.json says use_cayley_neumann: the two readings turn opposite ways")
        if said.is_set("coft"):
            raise ValueError("coft is set: PEFT projects such rotations once more whenever it loads them")
        if not said.has("use_cayley_neumann"):
            raise ValueError("its adapter_config.json, of an older PEFT, does not say use_cayley_neumann")
        count = said.integer("num_cayley_neumann_terms", 5)
        if count is None or not 1 <= count <= MAX_TERMS:
            stated = said.value("num_cayley_neumann_terms")
            raise ValueError(f"num_cayley_neumann_terms is {stated!r:.50}, and 1 to {MAX_TERMS} are known")
        if not said.is_set("use_cayley_neumann"):
            return PeftOftSettings(0, is_scaled=False)
        older = said.is_before(0, 18, 0)
        if older is None and count > 2:
            raise ValueError(f"the series of PEFT before 0.18 was another: {WHO_TRAINED}")
        if older:
            return PeftOftSettings(count, is_scaled=False, is_whole=True)
        return PeftOftSettings(4 if count == 3 else count, is_scaled=False)  # PEFT computes the same for both

    def fault(self, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Ask for as many packed triangles as cover the inputs, or for one that all blocks share."""
        shape, columns = shapes["oft_R"], matrix(weight)[1]
        size = _block_size(shape[-1]) if len(shape) == 2 else 0
        if not size or columns % size or shape[0] not in (1, columns // size):
            return f"its packed rotations {shape} do not cover {columns} inputs"
        return None

    def configured(self, said: Said, shapes: Shapes, weight: tuple[int, ...]) -> Shapes:
        """Ask for one triangle a block, or for one alone where blocks share it; for blocks of the size that is named.

        Where r or the size does not divide the inputs, PEFT takes another.
        """
        columns, size = matrix(weight)[1], _block_size(shapes["oft_R"][1])
        named, count = said.count("oft_block_size"), said.count("r")
        if named is not None and columns % named == 0:
            size = named
        elif named is None and count is not None and columns % count == 0:
            size = columns // count
        return {"oft_R": (1 if said.is_set("block_share") else columns // size, size * (size - 1) // 2)}

    def prepare(self, tensors: Tensors, terms: TermsOf[PeftOftSettings]) -> Tensors:
        """Unpack the triangles and build what multiplies blocks of columns from the right."""
        import torch

        packed = tensors["oft_R"]
        size = _block_size(packed.shape[1])
        rows, columns = torch.triu_indices(size, size, 1, device=packed.device)
        skew = packed.new_zeros(packed.shape[0], size, size)
        skew[:, rows, columns] = packed
        skew = skew - skew.transpose(1, 2)
        if terms.settings.is_scaled:
            skew = skew / (2 * (size - 1) ** 0.5)
        count, last = terms.settings.terms, 2 if terms.settings.is_whole else 1
        return {"turns": (series(skew, count, last) if count else cayley(-skew)).transpose(1, 2)}

    def delta(
        self, tensors: Tensors, weight: torch.Tensor, rows: slice, terms: TermsOf[PeftOftSettings]
    ) -> torch.Tensor:
        """Rotate the blocks of these rows."""
        return _turn_inputs(weight, tensors["turns"]) - weight


_MIXED_UP = "PEFT before 0.14 mixed up the values of convolutions"


def _is_of_convolution(shapes: Shapes) -> bool:
    """Tell by its scales, (1, outputs), that a layer is a convolution; a linear one has (outputs, 1)."""
    return shapes["boft_s"][0] == 1 != shapes["boft_s"][1]


class PeftBoft(Delta):
    """Rotate blocks of inputs and scale outputs (PEFT's BOFT)."""

    name = "boft_peft"
    title = "BOFT"
    required = frozenset({"boft_R", "boft_s"})
    reads_weight = True
    whole_in = frozenset({"peft"})
    suffixes = ((r"\.boft_R", "boft_R"), (r"\.boft_s", "boft_s"))
    peft_type = "BOFT"
    peft_fields = frozenset(
        {"boft_block_size", "boft_block_num", "boft_n_butterfly_factor", "boft_dropout", "fan_in_fan_out", "bias"}
        | {"init_weights"}
    )

    def settings(self, said: Said, shapes: Shapes) -> Settings:
        """Refuse what PEFT before 0.14 trained of convolutions."""
        if _is_of_convolution(shapes) and said.is_before(0, 14, 0):
            raise ValueError(f"{_MIXED_UP}\nMerge it with the PEFT that trained it.")
        return NO_SETTINGS

    def doubt(self, said: Said, shapes: Shapes) -> str:
        """Tell where nothing says that it is newer."""
        return _MIXED_UP if _is_of_convolution(shapes) and said.is_before(0, 14, 0) is None else ""

    def fault(self, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Ask for square blocks that cover the inputs, in pairs for each further round, and one scale an output."""
        shape = shapes["boft_R"]
        if len(shape) != 4 or not shape[0] or shape[2] != shape[3] or shape[1] * shape[2] != matrix(weight)[1]:
            return f"its blocks {shape} do not cover {matrix(weight)[1]} inputs"
        if shape[0] > 1 and (shape[2] % 2 or shape[1] % 2 ** (shape[0] - 1)):
            return f"its {shape[0]} butterfly rounds do not divide {shape[1]} blocks of {shape[2]}"
        wanted = (weight[0], 1) if len(weight) == 2 else (1, weight[0])
        return None if shapes["boft_s"] == wanted else f"its boft_s is {shapes['boft_s']}, not {wanted}"

    def configured(self, said: Said, shapes: Shapes, weight: tuple[int, ...]) -> Shapes:
        """Ask for blocks of the size, or of the number, that is named, and for as many rounds.

        One round may be there in the place of more: without CUDA PEFT trains no more.
        """
        columns, rounds = matrix(weight)[1], said.count("boft_n_butterfly_factor")
        size, count = said.count("boft_block_size"), said.count("boft_block_num")
        if not rounds or bool(size) == bool(count):
            return {}
        size = size or columns // (count or 1)
        return {"boft_R": (1 if shapes["boft_R"][0] == 1 else rounds, columns // size, size, size)}

    def prepare(self, tensors: Tensors, terms: Terms) -> Tensors:
        """Build what multiplies blocks of columns from the right, round by round."""
        blocks = tensors["boft_R"]
        skew = (blocks - blocks.transpose(-1, -2)) / 2
        return {"rounds": cayley(-skew).transpose(-1, -2), "lengths": tensors["boft_s"].reshape(-1, 1)}

    def delta(self, tensors: Tensors, weight: torch.Tensor, rows: slice, terms: Terms) -> torch.Tensor:
        """Rotate and scale these rows."""
        first, *others = tensors["rounds"]
        turned = _turn_inputs(weight, first)
        for number, turns in enumerate(others, 1):
            apart = turned.reshape(len(turned), -1, 2, 2**number, turns.shape[-1] // 2)
            near = _turn_inputs(apart.transpose(2, 3).reshape(weight.shape), turns)
            turned = near.reshape(apart.transpose(2, 3).shape).transpose(2, 3).reshape(weight.shape)
        return turned * tensors["lengths"][rows] - weight


def _block_size(packed: int) -> int:
    """Return b where b·(b − 1)/2 = packed, or 0."""
    size = round((1 + (1 + 8 * packed) ** 0.5) / 2)
    return size if size > 1 and size * (size - 1) // 2 == packed else 0


def _turn_inputs(weight: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Multiply each block of columns from the right by its matrix (b, b), or by the one that they share."""
    blocks = weight.reshape(weight.shape[0], -1, turns.shape[-1]).transpose(0, 1)
    return (blocks @ turns).transpose(0, 1).reshape(weight.shape)


KINDS = (PeftOft(), PeftBoft())
