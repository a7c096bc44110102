"""What records of several documents share: their strictness, counts and warnings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from lorabake.documents.names import Unit, Value, WarningName

STRICT: Final = {
    "extra": "forbid",
    "json_schema_serialization_defaults_required": True,
    "use_attribute_docstrings": True,
}
"""What pydantic is told of a record: its schema asks for all keys and no others, and a field's text describes it."""


@dataclass(frozen=True, slots=True)
class Warned:
    """A warning about one LoRA."""

    __pydantic_config__ = STRICT
    check: WarningName
    """What the warning is about: a change of zero, a negative alpha, DoRA magnitudes of zero, a change that the
    output's dtype loses, a very large change, a very large strength, a file that is listed twice."""
    lora: str
    """The LoRA's path as the recipe writes it."""
    measured: Value
    """What was measured, in `unit`."""
    limit: Value
    """The value beyond which there is a warning."""
    unit: Unit | None
    """The unit of `measured` and `limit`."""
    message: str
    """The warning for people."""


@dataclass(frozen=True, slots=True)
class Survival:
    """How much of a LoRA's change the output's dtype keeps."""

    __pydantic_config__ = STRICT
    lora: str
    """The LoRA's path as the recipe writes it."""
    share: float | None
    """An estimate between 0 and 1, null where nothing was estimated."""


@dataclass(frozen=True, slots=True)
class KindCount:
    """How many modules an adapter kind changes."""

    __pydantic_config__ = STRICT
    kind: str
    """The kind's name, such as LoRA, DoRA or LoKr."""
    count: int
    """How many."""


@dataclass(frozen=True, slots=True)
class RankCount:
    """How many modules have a rank."""

    __pydantic_config__ = STRICT
    rank: int
    """The rank."""
    count: int
    """How many."""


@dataclass(frozen=True, slots=True)
class PackageVersion:
    """The version of a package that took part."""

    __pydantic_config__ = STRICT
    package: str
    """Its name, such as torch; Python counts as one."""
    version: str
    """Its version."""
