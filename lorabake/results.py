"""What a bake tells once it is done: what was written, from which inputs, how long it took."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from lorabake.execution import Executed
from lorabake.machine import versions
from lorabake.planning import Plan
from lorabake.planning.cautions import Caution
from lorabake.planning.summary import line_of, tables_of
from lorabake.visible import counted_as, size_of

if TYPE_CHECKING:
    from lorabake.artifacts.current import Current


@dataclass(frozen=True, slots=True)
class BakeResult:
    """Tell what was written and how long it took.

    `data_sha256` maps each file to the SHA-256 of its tensor data (empty without `output.hash`); `input_sha256`
    each digested input to its own. `stages` are the workers' seconds by stage, `peak_memory` bytes of anonymous
    memory, or None where the system does not tell. `survival` estimates the share of each LoRA's change that the
    output's resolution keeps, by the LoRA's number; `cautions` tell whose change is none, gets lost, or is absurd, as
    `warn` was told. `computed` maps each device class that computed to the keys of its tensors, in the plan's order;
    `left_to_cpu` are those that an accelerator could not hold or compute. `is_up_to_date` tells that the output was
    there already, and nothing was done.
    """

    plan: Plan
    path: Path
    size: int
    data_sha256: dict[str, str]
    input_sha256: dict[str, str]
    seconds: float
    sync_seconds: float
    stages: dict[str, float]
    peak_memory: int | None
    survival: dict[int, float]
    computed: dict[str, tuple[str, ...]]
    device: str
    left_to_cpu: tuple[str, ...]
    cautions: tuple[Caution, ...] = ()
    is_up_to_date: bool = False

    @classmethod
    def of(
        cls,
        executed: Executed,
        kept: dict[int, float],
        cautions: tuple[Caution, ...],
        *,
        seconds: float,
        sync_seconds: float,
    ) -> Self:
        """Sum up one bake; `kept` is its survival, where that was estimated before."""
        plan = executed.plan
        return cls(
            plan=plan,
            path=plan.path,
            size=plan.size,
            data_sha256={
                file.name: sha256 for file, sha256 in zip(plan.files, executed.hashes, strict=True) if sha256
            },
            input_sha256=executed.input_sha256,
            seconds=seconds,
            sync_seconds=sync_seconds,
            stages=dict(executed.stages),
            peak_memory=executed.peak_memory,
            survival=kept or executed.survival,
            computed=dict(executed.computed),
            device=executed.device,
            left_to_cpu=executed.left_to_cpu,
            cautions=cautions,
        )

    @classmethod
    def standing(cls, plan: Plan, current: Current, seconds: float) -> Self:
        """Sum up a bake whose output was there already."""
        sizes = (plan.path, plan.size, dict(current.data_sha256), dict(current.input_sha256), seconds, 0.0)
        return cls(plan, *sizes, {}, None, {}, {}, current.device, (), is_up_to_date=True)

    def __repr__(self) -> str:
        if self.is_up_to_date:
            return f"<BakeResult {line_of(self.plan)}: up to date>"
        took = f"{self.seconds:.1f} s on {self.device}"
        warned = f"; {counted_as(len(self.cautions), 'warning')}" if self.cautions else ""
        return f"<BakeResult {line_of(self.plan)} in {took}{warned}>"

    def _repr_html_(self) -> str:
        from lorabake.notebook import Table, card

        digests = [(name, sha256) for name, sha256 in self.data_sha256.items()]
        warnings = [(caution.lora, caution.note) for caution in self.cautions]
        tables = [
            *tables_of(self.plan, self.survival),
            Table("Warnings", ("LoRA", "warning"), warnings),
            Table("SHA-256 of the tensor data", ("file", "SHA-256"), digests, is_folded=True),
        ]
        return card("Baked", f"{self.path}: {size_of(self.size)} in {self.seconds:.1f} s on {self.device}", tables)

    @property
    def bottleneck(self) -> str:
        """Name the stage that took the workers longest."""
        return max(self.stages, key=lambda stage: self.stages[stage], default="copy")

    def report(self) -> dict[str, object]:
        """Put the result in figures, for machines, as `lorabake schema bake` describes them."""
        from lorabake.documents import document
        from lorabake.documents.bake import BakeDocument, DataDigest, FileDigest, StageSeconds
        from lorabake.documents.records import PackageVersion
        from lorabake.planning.record import record_of, survival_of, told_path, warnings_of

        record = BakeDocument(
            path=told_path(self.plan, self.path),
            bytes=self.size,
            data_sha256=tuple(DataDigest(file, sha256) for file, sha256 in self.data_sha256.items()),
            inputs=tuple(
                FileDigest(told_path(self.plan, Path(path)), sha256) for path, sha256 in self.input_sha256.items()
            ),
            versions=tuple(PackageVersion(*each) for each in versions().items()),
            up_to_date=self.is_up_to_date,
            device=self.device,
            left_to_cpu=self.left_to_cpu,
            seconds=round(self.seconds, 3),
            sync_seconds=round(self.sync_seconds, 3),
            stages=tuple(StageSeconds(stage, round(seconds, 3)) for stage, seconds in sorted(self.stages.items())),
            bottleneck=self.bottleneck,
            peak_memory_bytes=self.peak_memory,
            survival=survival_of(self.plan, self.survival),
            warnings=warnings_of(self.cautions),
            plan=record_of(self.plan),
        )
        return document("bake", record)
