"""What `lorabake plan --json` prints."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

from lorabake.documents.records import STRICT, KindCount, RankCount, Survival, Warned


@dataclass(frozen=True, slots=True)
class ComponentLayout:
    """One component of the base."""

    __pydantic_config__ = STRICT
    component: str
    """Its name, such as unet or text_encoder."""
    layout: str
    """The layout of its keys, such as ldm or diffusers."""


@dataclass(frozen=True, slots=True)
class OutputFiles:
    """What the output will hold."""

    __pydantic_config__ = STRICT
    files: tuple[str, ...]
    """The names of its files with weights."""
    bytes: int
    """The bytes of these files."""
    tensors: int
    """The number of its tensors."""


@dataclass(frozen=True, slots=True)
class Amount:
    """A number of tensors, and their bytes."""

    __pydantic_config__ = STRICT
    tensors: int
    """How many tensors."""
    bytes: int
    """Their bytes."""


@dataclass(frozen=True, slots=True)
class Linkable:
    """Files that are hard links to the base's own, or would be with `--link`."""

    __pydantic_config__ = STRICT
    files: tuple[str, ...]
    """Their names."""
    bytes: int
    """How many bytes less are written than without links."""


@dataclass(frozen=True, slots=True)
class Excluded:
    """Tensors of a LoRA that are left out for one reason."""

    __pydantic_config__ = STRICT
    count: int
    """How many tensors."""
    note: str
    """The reason, for people."""


@dataclass(frozen=True, slots=True)
class ComponentCount:
    """How many modules of a component are changed."""

    __pydantic_config__ = STRICT
    component: str
    """The component's name, such as unet."""
    count: int
    """How many."""


@dataclass(frozen=True, slots=True)
class PlannedLora:
    """What becomes of one LoRA's tensors: all of them are applied, left out by the recipe, or learned embeddings."""

    __pydantic_config__ = STRICT
    path: str
    """Its path as the recipe writes it."""
    families: tuple[str, ...]
    """The names of the model families that it may have been trained for; none where nothing tells."""
    family_title: str | None
    """The same, for people; null where nothing tells."""
    tensors: int
    """How many tensors it has."""
    applied: int
    """How many of them are applied."""
    excluded: tuple[Excluded, ...]
    """Those that are left out, by reason."""
    modules: tuple[ComponentCount, ...]
    """The modules that it changes, by component."""
    kinds: tuple[KindCount, ...]
    """The same, by adapter kind."""
    ranks: tuple[RankCount, ...]
    """The same, by rank, where there is one."""
    notes: tuple[str, ...]
    """What was assumed and what may surprise, for people."""


@dataclass(frozen=True, slots=True)
class TensorShape:
    """A tensor's name and shape."""

    __pydantic_config__ = STRICT
    key: str
    """Its name."""
    shape: tuple[int, ...]
    """Its sides."""


@dataclass(frozen=True, slots=True)
class PlannedEmbedding:
    """A file of learned embeddings that is written beside the output."""

    __pydantic_config__ = STRICT
    path: str
    """Its name."""
    lora: str
    """The path of the LoRA that it comes from, as the recipe writes it."""
    token: str
    """The token that it is for."""
    tensors: tuple[TensorShape, ...]
    """What it holds."""
    bytes: int
    """Its size."""


@dataclass(frozen=True, slots=True)
class PlanRecord:
    """What a bake does; the documents of bake and verify hold it as `plan`."""

    __pydantic_config__ = STRICT
    architecture: str
    """The name of the base's model family."""
    layout: str | None
    """The layout of the base's keys, null where no table knows them."""
    components: tuple[ComponentLayout, ...]
    """The base's components."""
    output: OutputFiles
    """What the output will hold."""
    baked: Amount
    """What is computed."""
    copied: Amount
    """What is copied as it is."""
    linked: Amount
    """What is in files that are to be links to the base's own: these are as they are, and not copied."""
    peak_memory_bytes: int
    """An estimate of the memory that a bake with two workers takes."""
    loras: tuple[PlannedLora, ...]
    """The LoRAs, in the recipe's order."""
    embeddings: tuple[PlannedEmbedding, ...]
    """Files of learned embeddings that are written beside the output."""
    notes: tuple[str, ...]
    """What else happens to weights, for people."""


@dataclass(frozen=True, slots=True)
class PlanDocument(PlanRecord):
    """What a bake would do, and what it needs."""

    __pydantic_config__ = STRICT
    path: str
    """The output, an absolute path."""
    free_disk_bytes: int
    """The free bytes of the disk that the output is for."""
    needed_disk_bytes: int
    """The bytes that its files with weights take there: links take none."""
    linkable: Linkable
    """The files that are links, or would be with `--link`; none where the base lies on another disk."""
    survival: tuple[Survival, ...] | None
    """How much of each LoRA the output's dtype keeps, in the recipe's order; null without an estimate."""
    warnings: tuple[Warned, ...]
    """What may be wrong with the recipe or its LoRAs."""

    @classmethod
    def of(
        cls,
        plan: PlanRecord,
        *,
        path: str,
        free_disk_bytes: int,
        needed_disk_bytes: int,
        linkable: Linkable,
        survival: tuple[Survival, ...] | None,
        warnings: tuple[Warned, ...],
    ) -> Self:
        """Add to a plan what the command finds out beside it."""
        planned = {field.name: getattr(plan, field.name) for field in fields(PlanRecord)}
        return cls(
            **planned,
            path=path,
            free_disk_bytes=free_disk_bytes,
            needed_disk_bytes=needed_disk_bytes,
            linkable=linkable,
            survival=survival,
            warnings=warnings,
        )
