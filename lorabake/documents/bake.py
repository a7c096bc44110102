"""What `lorabake bake --json` prints and `--report FILE` writes."""

from __future__ import annotations

from dataclasses import dataclass

from lorabake.documents.plan import PlanRecord
from lorabake.documents.records import STRICT, PackageVersion, Survival, Warned


@dataclass(frozen=True, slots=True)
class FileDigest:
    """A file's digest."""

    __pydantic_config__ = STRICT
    path: str
    """The file."""
    sha256: str
    """The SHA-256 of its bytes, in 64 hexadecimal digits."""


@dataclass(frozen=True, slots=True)
class DataDigest:
    """The digest of an output file's tensor data."""

    __pydantic_config__ = STRICT
    file: str
    """The file's name in the output."""
    sha256: str
    """The SHA-256 of its tensor data, without the header; it also stands in the header."""


@dataclass(frozen=True, slots=True)
class StageSeconds:
    """The time of one stage."""

    __pydantic_config__ = STRICT
    stage: str
    """The stage, such as read, compute or write."""
    seconds: float
    """The seconds that all workers spent on it, together."""


@dataclass(frozen=True, slots=True)
class BakeDocument:
    """What a bake wrote, and how long it took."""

    __pydantic_config__ = STRICT
    path: str
    """The output, told from the recipe's folder."""
    bytes: int
    """The bytes of its files with weights."""
    data_sha256: tuple[DataDigest, ...]
    """A digest for each output file; none without `output.hash`."""
    inputs: tuple[FileDigest, ...]
    """A digest for each input that was read whole; its path as the recipe writes it."""
    versions: tuple[PackageVersion, ...]
    """The versions of lorabake, Python and the packages that computed."""
    up_to_date: bool
    """Whether the output was there already, of this recipe and these inputs, and nothing was done."""
    device: str
    """The device class that computed, such as cpu or cuda; several are joined by a plus sign."""
    left_to_cpu: tuple[str, ...]
    """The keys of tensors that the accelerator could not hold or compute."""
    seconds: float
    """How long the bake took."""
    sync_seconds: float
    """The part of it that waited for the disk."""
    stages: tuple[StageSeconds, ...]
    """The workers' time, by stage."""
    bottleneck: str
    """The stage that took the workers longest; copy where nothing was computed."""
    peak_memory_bytes: int | None
    """The most memory that the process had for itself; null where the system does not tell."""
    survival: tuple[Survival, ...]
    """How much of each LoRA the output's dtype keeps, in the recipe's order."""
    warnings: tuple[Warned, ...]
    """What may be wrong with the recipe or its LoRAs."""
    plan: PlanRecord
    """What was planned."""
