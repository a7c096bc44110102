"""What `lorabake plan --json` prints of several outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lorabake.documents.batch import Chosen
from lorabake.documents.plan import PlanRecord
from lorabake.documents.records import STRICT, Warned


@dataclass(frozen=True, slots=True)
class PlannedOutput:
    """What a bake of one output would do."""

    __pydantic_config__ = STRICT
    name: str
    """The output's name: its file's without the ending, or its folder's."""
    recipe: str | None
    """The recipe's file; null for a recipe of options."""
    path: str
    """The output, as the recipe writes it."""
    choices: tuple[Chosen, ...]
    """Its values on the axes of the matrix; empty without one."""
    status: Literal["due", "current"]
    """current: it is there already, made by this recipe of these inputs; due: it would be baked."""
    needed_disk_bytes: int
    """The bytes that its files with weights take on the disk; 0 for one that is current."""
    warnings: tuple[Warned, ...]
    """What may be wrong with the recipe or its LoRAs."""
    plan: PlanRecord
    """What a bake does."""


@dataclass(frozen=True, slots=True)
class SharedInput:
    """An input that several outputs have."""

    __pydantic_config__ = STRICT
    path: str
    """Its path as the recipe writes it."""
    outputs: int
    """How many outputs have it."""


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk that outputs would be written to."""

    __pydantic_config__ = STRICT
    folder: str
    """A folder on it."""
    needed_bytes: int
    """The bytes that the outputs need there."""
    free_bytes: int
    """The bytes that are free there."""
    missing_bytes: int
    """The bytes that are missing; 0 where there is enough room."""


@dataclass(frozen=True, slots=True)
class PlanBatchDocument:
    """What baking several outputs would do, and what those need that are due."""

    __pydantic_config__ = STRICT
    outputs: tuple[PlannedOutput, ...]
    """Every output, in the order of the matrix."""
    shared: tuple[SharedInput, ...]
    """The inputs that more than one output has, bases first."""
    passes: int
    """How many times a base would be read."""
    base_bytes: int
    """The bytes of bases that would be read."""
    lora_bytes: int
    """The bytes of LoRAs, VAEs and added parts that would be read."""
    written_bytes: int
    """The bytes that would be written."""
    peak_memory_bytes: int
    """An estimate of the memory that a job needs."""
    disks: tuple[Disk, ...]
    """The disks that would be written to."""
