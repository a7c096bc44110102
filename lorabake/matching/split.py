"""Find q, k and v that were trained separately and saved as one module: their alpha is for a part of its rank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lorabake.keymap import split_qkv
from lorabake.keymap.module import Module
from lorabake.keymap.slots import LoraModule
from lorabake.matching.names import BaseNames
from lorabake.sources.evidence import TensorEvidence
from lorabake.sources.loras import LoraSource


@dataclass(frozen=True, slots=True)
class TrainedApart:
    """Tell which modules hold parts that were trained separately.

    `said` is the metadata's statement on all modules. If it is None, `evidence` from the values decides, with
    `scales`, which are alpha/rank of the file's modules with a single layer.
    """

    said: bool | None
    scales: frozenset[float]
    evidence: TensorEvidence
    base: BaseNames

    def parts(self, lora: LoraModule, module: Module) -> int:
        """Return how many parts divide a fused module's rank; alpha is for one part's share."""
        sizes = self.base.rows_of_parts(module)
        if self.said is False or not sizes or "down" not in lora.slots:
            return 1
        if lora.slots["down"].shape[0] % len(sizes):
            return 1
        is_apart = self.said or self.evidence.is_trained_apart(lora, sizes, self.scales)
        return len(sizes) if is_apart else 1

    @property
    def source(self) -> str:
        """Name the evidence."""
        return "metadata" if self.said else "the zeros in its up"


def trained_apart(lora: LoraSource, places: Callable[[str], list[Module]], base: BaseNames) -> TrainedApart:
    """Examine a whole file; `places` lists the modules of the base that a name may stand for."""
    said = split_qkv.said_by(lora.checkpoint.metadata)
    single, is_asked = list[LoraModule](), False
    for module in lora.tensors.modules.values() if said is None and base.has_fused else ():
        if "alpha" in module.slots and split_qkv.has_rank(module) and (candidates := places(module.name)):
            if sizes := base.rows_of_parts(candidates[0]):
                is_asked = is_asked or split_qkv.fits(module, sizes)
            else:
                single.append(module)
    scales = map(lora.evidence.scale_of, single if is_asked else ())
    return TrainedApart(said, frozenset(scale for scale in scales if scale is not None), lora.evidence, base)
