"""What records of several documents share: their strictness, numbers, counts, figures and warnings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

STRICT: Final = {
    "extra": "forbid",
    "json_schema_serialization_defaults_required": True,
    "use_attribute_docstrings": True,
}
"""What pydantic is told of a record: its schema asks for all keys and no others, and a field's text describes it."""

Number = float | Literal["Infinity", "-Infinity", "NaN"]
"""A number; JSON writes no others than finite ones."""

Value = int | Number | str | list[int] | None
"""What a check measures or asks for: a number, a name such as a dtype's or a digest, or the sides of a shape."""

Unit = Literal[
    "bytes", "tensors", "modules", "values", "files", "shards", "differences",
    "ulp", "share", "factor", "strength", "ratio", "distance", "logit", "bound",
    "dtype", "shape", "sha256", "program", "semantics", "compose",
]  # fmt: skip
"""What a figure counts or measures. A share is between 0 and 1; of a factor, a ratio and a distance, 1 is the whole.
`bound` is a share of the error that rounding allows. A program, semantics and compose are names, not numbers."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Hold what a check measured, for programs; people read the same in its words.

    `count` says of how many things the check is, where it is not of one that has a name.
    """

    measured: Value = None
    limit: Value = None
    unit: Unit | None = None
    count: int | None = None


NO_FIGURES: Final = Figures()
"""The figures of a check that measures nothing."""

WarningName = Literal["zero", "alpha", "magnitude", "resolution", "large", "strength", "twice"]


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
