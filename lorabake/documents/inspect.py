"""What `lorabake inspect --json` prints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lorabake.documents.names import Number, What
from lorabake.documents.records import STRICT, RankCount


@dataclass(frozen=True, slots=True)
class DtypeCount:
    """How many tensors have a dtype."""

    __pydantic_config__ = STRICT
    dtype: str
    """The dtype as SafeTensors writes it, such as F16."""
    count: int
    """How many tensors."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What keeps the file from being baked."""

    __pydantic_config__ = STRICT
    problem: Literal["empty_tensors", "no_lora", "configuration", "kind"]
    """The sort of problem: tensors without values, a file of another sort, a configuration that no bake takes, an
    adapter kind that this version does not bake."""
    message: str
    """What it is, for people."""


@dataclass(frozen=True, slots=True)
class FoundKind:
    """What an adapter kind has in the file."""

    __pydantic_config__ = STRICT
    kind: str | None
    """The kind's name, such as LoRA, DoRA or LoKr; null for tensors that make no known kind."""
    slots: tuple[str, ...]
    """The parts that are there, where the kind is null."""
    count: int
    """How many modules or tensors it has."""
    unit: Literal["modules", "tensors"]
    """What is counted: tensors of kinds that cannot be baked, modules of all others."""


@dataclass(frozen=True, slots=True)
class FoundAlpha:
    """An alpha of the file."""

    __pydantic_config__ = STRICT
    alpha: Number | None
    """Its value, null where that is no number."""
    source: Literal["tensor", "adapter_config", "lora_adapter_metadata", "header"]
    """What says it: a tensor, adapter_config.json, the header's lora_adapter_metadata, or the header itself."""
    count: int
    """How many modules have it."""
    note: str | None
    """What the tensor is where it holds no number, for people."""


@dataclass(frozen=True, slots=True)
class FoundScale:
    """A scale of the file: alpha over rank, or what the kind makes of its alpha."""

    __pydantic_config__ = STRICT
    scale: Number | None
    """Its value, null where the alpha is no number."""
    count: int
    """How many modules have it."""


@dataclass(frozen=True, slots=True)
class FoundComponent:
    """A component that a checkpoint has, or that a LoRA changes."""

    __pydantic_config__ = STRICT
    names: tuple[str, ...]
    """Its name, such as unet. Several names: it is one of them. None: the file does not tell."""
    layout: str | None
    """The layout of a checkpoint's keys, such as ldm; null for a LoRA."""
    prefix: str | None
    """What stands before all of its keys in a checkpoint, perhaps nothing; null for a LoRA."""
    tensors: int | None
    """How many tensors of a checkpoint it has; null for a LoRA."""
    modules: int | None
    """How many modules a LoRA changes in it; null for a checkpoint."""


@dataclass(frozen=True, slots=True)
class StoredFormat:
    """How many weights are stored in a packed or scaled format."""

    __pydantic_config__ = STRICT
    format: str
    """The format's name."""
    count: int
    """How many weights."""


@dataclass(frozen=True, slots=True)
class TriggerWords:
    """What to write into a prompt for a LoRA."""

    __pydantic_config__ = STRICT
    words: str
    """A word or a phrase."""
    count: int | None
    """How often the trainer met it; null for a phrase that the header states."""


@dataclass(frozen=True, slots=True)
class InspectDocument:
    """What a file is. A field that does not apply to this sort of file is null, or an empty list."""

    __pydantic_config__ = STRICT
    path: str
    """The file or folder, as it was given."""
    what: What
    """What it is."""
    bytes: int
    """Its size."""
    files: int
    """How many files hold its tensors."""
    tensors: int
    """How many tensors it has."""
    dtypes: tuple[DtypeCount, ...]
    """Their dtypes."""
    data_sha256: str | None = None
    """The SHA-256 of its tensor data, as its header says it."""
    problems: tuple[Problem, ...] = ()
    """What keeps it from being baked; none where nothing is known to."""
    families: tuple[str, ...] = ()
    """The names of the families that it may belong to, as `architecture` of a plan."""
    family_title: str | None = None
    """The same, for people; null where it is not recognised."""
    family_by: Literal["structure", "names"] | None = None
    """How the family is known: by names and shapes together, or by names alone."""
    modules: int | None = None
    """How many modules a LoRA has."""
    kinds: tuple[FoundKind, ...] = ()
    """The adapter kinds of a LoRA, or of an adapter that lies unmerged beside a checkpoint's weights."""
    ranks: tuple[RankCount, ...] = ()
    """The ranks of a LoRA's modules."""
    alphas: tuple[FoundAlpha, ...] = ()
    """The alphas of a LoRA's modules."""
    scales: tuple[FoundScale, ...] = ()
    """The scales of a LoRA's modules."""
    components: tuple[FoundComponent, ...] = ()
    """The components that a checkpoint has, or that a LoRA changes."""
    adapter_config: Mapping[str, Any] | None = None
    """What adapter_config.json says of ranks and scales, in its own words."""
    lora_adapter_metadata: Mapping[str, Any] | None = None
    """What the header's lora_adapter_metadata says of them, by component."""
    names_of: str | None = None
    """The program whose own names the file has, such as llama.cpp."""
    seen_by: str | None = None
    """A module by which the family was recognised."""
    learned_embeddings: tuple[str, ...] = ()
    """The tokens whose embeddings a LoRA file holds."""
    of_no_known_form: tuple[str, ...] = ()
    """Tensors that no known kind has, five of them at most."""
    packed_weights: tuple[StoredFormat, ...] = ()
    """The formats of a checkpoint's packed or scaled weights."""
    outside_any_component: int | None = None
    """How many tensors of a checkpoint belong to none of its components."""
    markers: tuple[str, ...] = ()
    """Keys of a checkpoint that tell programs how to sample, such as v_pred."""
    baked_by_lorabake: str | None = None
    """The version of lorabake that baked it."""
    computed_on: str | None = None
    """The device class that computed it."""
    recipe: Any = None
    """The recipe in its header."""
    inputs: Any = None
    """The inputs in its header."""
    trigger_words: tuple[TriggerWords, ...] = ()
    """What to write into a prompt: the phrase in the header, and the tags that the trainer met most often."""
    training: Mapping[str, str] | None = None
    """What a LoRA's header says of its training, in the trainer's words."""
    metadata: Mapping[str, str] | None = None
    """What a checkpoint's header says of it, in its maker's words."""
