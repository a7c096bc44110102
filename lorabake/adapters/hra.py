"""HRA: inputs are reflected by a chain of Householder matrices: W' = W·Π(I − 2·u·uᵀ), u of length 1.

`hra_u` is (columns, r), one vector a column, applied in their order; with PEFT's `apply_GS` they are made orthogonal
first (Gram-Schmidt). Yuan et al. 2024 (arXiv 2405.17484).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorabake.adapters.kind import Delta
from lorabake.adapters.settings import Settings, Terms, whole_number
from lorabake.adapters.shapes import Shapes, Tensors, matrix

if TYPE_CHECKING:
    import torch


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

    def settings(self, config: Settings | None, module: str, shapes: Shapes) -> Settings:
        """Tell whether the vectors are to be made orthogonal."""
        if config is None:
            raise ValueError("no adapter_config.json says apply_GS")
        return {"orthogonal": bool(config.get("apply_GS", False))}

    def fault(self, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Ask for vectors as long as a row."""
        shape = shapes["hra_u"]
        return None if len(shape) == 2 and shape[0] == matrix(weight)[1] else f"its vectors are {shape}"

    def configured(self, config: Settings, shapes: Shapes, weight: tuple[int, ...]) -> Shapes:
        """Ask for as many vectors as the rank."""
        rank = whole_number(config, "r")
        return {"hra_u": (matrix(weight)[1], rank)} if rank else {}

    def prepare(self, tensors: Tensors, terms: Terms) -> Tensors:
        """Give the vectors length 1."""
        vectors = tensors["hra_u"].clone()
        for i in range(vectors.shape[1]):
            if terms.settings["orthogonal"]:
                for j in range(i):
                    vectors[:, i] -= (vectors[:, j] @ vectors[:, i]) * vectors[:, j]
            vectors[:, i] /= vectors[:, i].norm()
        return {"vectors": vectors}

    def delta(self, tensors: Tensors, weight: torch.Tensor, rows: slice, terms: Terms) -> torch.Tensor:
        """Reflect these rows, one vector after the other."""
        turned = weight
        for vector in tensors["vectors"].T:
            turned = turned - 2 * (turned @ vector)[:, None] * vector
        return turned - weight


KINDS = (Hra(),)
