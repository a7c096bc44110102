"""The names and figures that documents share with the rest of the program.

Every command imports them, so no record is here: records cost time, and are imported where they are written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

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

ErrorKind = Literal[
    "argument", "recipe", "file", "lock", "match", "value_too_large", "change_lost", "target", "surroundings",
    "internal", "usage", "interrupted",
]  # fmt: skip
"""Sorts of errors: those of `errors`, a command line that cannot be read, and a signal."""

What = Literal[
    "checkpoint", "lora", "vae", "controlnet", "textual_inversion", "embeddings", "hypernetwork", "control_lora",
    "t2i_adapter", "ip_adapter", "upscaler", "image_encoder", "optimizer_state", "empty",
]  # fmt: skip
"""The names of the sorts in `tensors.sorts`."""


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

AnyVerdict = Literal["verified", "mismatch", "not_finished", "not_checked", "failed"]
"""What became of one output of several that were verified; failed is one that could not be looked at."""

WarningName = Literal["zero", "alpha", "magnitude", "resolution", "large", "strength", "twice", "held"]
