"""Put a plan into the record that `plan`, `bake` and `verify` write as JSON."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
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
from lorabake.planning.links import links_in

if TYPE_CHECKING:
    from lorabake.matching.ledger import Ledger
    from lorabake.planning import Plan
    from lorabake.planning.cautions import Caution


def record_of(plan: Plan) -> PlanRecord:
    """Put a plan into figures."""
    key_map = plan.sources.key_map
    tensors, baked = sum(len(file.targets) for file in plan.files), sum(len(step.targets) for step in plan.steps)
    links = links_in(plan)
    linked = sum(len(file.targets) for file in links)
    return PlanRecord(
        architecture=key_map.architecture.name,
        layout=key_map.layout if key_map.placed else None,
        components=tuple(ComponentLayout(name, layout.name) for name, (layout, _) in key_map.placed.items()),
        output=OutputFiles(tuple(file.name for file in plan.files), plan.size, tensors),
        baked=Amount(baked, plan.baked_bytes),
        copied=Amount(tensors - baked - linked, plan.copied_bytes),
        linked=Amount(linked, sum(file.data_size for file in links)),
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


def told_path(plan: Plan, path: Path) -> str:
    """Write the path of an input or of the output so that it says nothing of this machine.

    An input has the recipe's words for it. The output is told from the recipe's folder, or by its name alone where
    the way there would lead through the root.
    """
    recipe = plan.sources.recipe
    for source in recipe.inputs:
        place = recipe.locate(source)
        if path.is_relative_to(place):
            return source.named(path.relative_to(place))
    way = os.path.relpath(path, recipe.folder)
    is_far = os.path.commonpath([os.path.abspath(path), recipe.folder]) == os.path.sep
    return path.name if is_far else Path(way).as_posix()


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
        families=ledger.families,
        family_title=ledger.family,
        tensors=ledger.tensors,
        applied=ledger.applied,
        excluded=tuple(Excluded(count, reason) for reason, count in ledger.excluded.items()),
        modules=tuple(ComponentCount(component, count) for component, count in ledger.modules.items()),
        kinds=tuple(KindCount(kind, count) for kind, count in ledger.kinds.items()),
        ranks=tuple(RankCount(rank, count) for rank, count in sorted(ledger.ranks.items())),
        notes=ledger.notes,
    )
