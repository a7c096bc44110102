"""HRA: inputs are reflected by a chain of Householder matrices: W' = W·Π(I − 2·u·uᵀ), u of length 1.

`hra_u` is (columns, r), one vector a column, applied in their order; with PEFT's `apply_GS` they are made orthogonal
first (Gram-Schmidt). Yuan et al. 2024 (arXiv 2405.17484).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorabake.adapters.kind import Delta
from lorabake.adapters.settings import Settings, TermsOf
from lorabake.adapters.shapes import Shapes, Tensors, matrix
from lorabake.keymap.said import Said

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class HraSettings(Settings):
    """Say whether the vectors are made orthogonal first."""

    orthogonal: bool


class Hra(Delta):
    """Reflect the inputs."""

    name = "hra"
    title = "HRA"
    required = frozenset({"hra_u"})
    suffixes = ((r"\.hra_u", "hra_u"),)
    peft_type = "HRA"
    whole_in = frozenset({"peft"})
    reads_weight = True
    peft_fields = frozenset({"r", "apply_GS", "init_weights", "bias"})

    def settings(self, said: Said, shapes: Shapes) -> HraSettings:
        """Tell whether the vectors are to be made orthogonal."""
        if not said.is_given:
            raise ValueError("no adapter_config.json says apply_GS")
        return HraSettings(said.is_set("apply_GS"))

    def fault(self, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Ask for vectors as long as a row."""
        shape = shapes["hra_u"]
        return None if len(shape) == 2 and shape[0] == matrix(weight)[1] else f"its vectors are {shape}"

    def configured(self, said: Said, shapes: Shapes, weight: tuple[int, ...]) -> Shapes:
        """Ask for as many vectors as the rank."""
        rank = said.count("r")
        return {"hra_u": (matrix(weight)[1], rank)} if rank else {}

    def prepare(self, tensors: Tensors, terms: TermsOf[HraSettings]) -> Tensors:
        """Give the vectors length 1."""
        vectors = tensors["hra_u"].clone()
        for i in range(vectors.shape[1]):
            if terms.settings.orthogonal:
                for j in range(i):
                    vectors[:, i] -= (vectors[:, j] @ vectors[:, i]) * vectors[:, j]
            vectors[:, i] /= vectors[:, i].norm()
        return {"vectors": vectors}

    def delta(self, tensors: Tensors, weight: torch.Tensor, rows: slice, terms: TermsOf[HraSettings]) -> torch.Tensor:
        """Reflect these rows, one vector after the other."""
        turned = weight
        for vector in tensors["vectors"].T:
            turned = turned - 2 * (turned @ vector)[:, None] * vector
        return turned - weight


KINDS = (Hra(),)
