"""Put a plan into the record that `plan`, `bake` and `verify` write as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from lorabake.documents.plan import (
    Amount,
    ComponentCount,
    ComponentLayout,
    Excluded,
    OutputFiles,
    PlannedEmbedding,
    PlannedLora,
    PlanRecord,
    TensorShape,
)
from lorabake.documents.records import KindCount, RankCount, Survival, Warned

if TYPE_CHECKING:
    from lorabake.matching.ledger import Ledger
    from lorabake.planning import Plan
    from lorabake.planning.cautions import Caution


def record_of(plan: Plan) -> PlanRecord:
    """Put a plan into figures."""
    key_map = plan.sources.key_map
    tensors, baked = sum(len(file.targets) for file in plan.files), sum(len(step.targets) for step in plan.steps)
    return PlanRecord(
        architecture=key_map.architecture.name,
        layout=key_map.layout if key_map.placed else None,
        components=tuple(ComponentLayout(name, layout.name) for name, (layout, _) in key_map.placed.items()),
        output=OutputFiles(tuple(file.name for file in plan.files), plan.size, tensors),
        baked=Amount(baked, plan.baked_bytes),
        copied=Amount(tensors - baked, plan.copied_bytes),
        peak_memory_bytes=plan.peak_memory(),
        loras=tuple(map(_lora, plan.ledgers)),
        embeddings=tuple(
            PlannedEmbedding(
                path=embedding.path.name,
                lora=plan.ledgers[embedding.lora].lora,
                token=embedding.token,
                tensors=tuple(TensorShape(vectors.name, tuple(vectors.shape)) for vectors in embedding.vectors),
                bytes=embedding.size,
            )
            for embedding in plan.embeddings
        ),
        notes=plan.notes,
    )


def survival_of(plan: Plan, shares: Mapping[int, float]) -> tuple[Survival, ...]:
    """List the estimated share of each LoRA, in the recipe's order; `shares` are by the LoRA's number."""
    rounded = {number: round(share, 4) for number, share in shares.items()}
    return tuple(Survival(ledger.lora, rounded.get(number)) for number, ledger in enumerate(plan.ledgers))


def warnings_of(cautions: Iterable[Caution]) -> tuple[Warned, ...]:
    """Put warnings into their records."""
    return tuple(
        Warned(
            check=caution.check,
            lora=caution.lora,
            measured=caution.figures.measured,
            limit=caution.figures.limit,
            unit=caution.figures.unit,
            message=str(caution),
        )
        for caution in cautions
    )


def _lora(ledger: Ledger) -> PlannedLora:
    return PlannedLora(
        path=ledger.lora,
        family=ledger.family,
        tensors=ledger.tensors,
        applied=ledger.applied,
        excluded=tuple(Excluded(count, reason) for reason, count in ledger.excluded.items()),
        modules=tuple(ComponentCount(component, count) for component, count in ledger.modules.items()),
        kinds=tuple(KindCount(kind, count) for kind, count in ledger.kinds.items()),
        ranks=tuple(RankCount(rank, count) for rank, count in sorted(ledger.ranks.items())),
        notes=ledger.notes,
    )
