"""What a configuration says of one module, as values of the types that adapter kinds ask for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from sys import float_info
from typing import TypeGuard

INTRODUCED = {"exclude_modules": (0, 14, 0)}
"""Field -> the first PEFT that writes it: it does so always, and so tells of files without a `peft_version`."""

WHO_TRAINED = "add to adapter_config.json the peft_version that trained it."


@dataclass(frozen=True, slots=True)
class Said:
    """Hold what PEFT's adapter_config.json, or MLX-LM's, says of a module; its own numbers stand in their fields.

    `module` is the module's name in the file. Where there is no configuration, nothing `is_given`. `side` is the side
    of a stack of experts that A reads, 1 or 2, as far as anything tells: no field of PEFT's says it.
    """

    module: str
    fields: Mapping[str, object] = field(default_factory=dict)
    is_given: bool = True
    side: int | None = None

    def value(self, name: str) -> object:
        """Return what a field holds, whatever that is; None where it is not there."""
        return self.fields.get(name)

    def has(self, name: str) -> bool:
        """Tell whether a field is there."""
        return name in self.fields

    def is_set(self, name: str) -> bool:
        """Tell whether a field is there, and neither false nor empty."""
        return bool(self.fields.get(name))

    def text(self, name: str) -> str:
        """Return a field's text; an empty one where it holds none."""
        value = self.fields.get(name)
        return value if isinstance(value, str) else ""

    def integer(self, name: str, default: int | None = None) -> int | None:
        """Return a field's whole number, `default` where the field is not there; None if it holds another thing."""
        value = self.fields.get(name, default)
        return value if type(value) is int else None

    def count(self, *names: str) -> int | None:
        """Return a whole number above 0, below these names; None where there is none."""
        value: object = self.fields
        for name in names:
            value = value.get(name) if isinstance(value, dict) else None
        return value if type(value) is int and value > 0 else None

    def number(self, name: str) -> float:
        """Return a finite number that has to be said; raise ValueError where it is not."""
        value = self.fields.get(name)
        if not is_finite(value):
            raise ValueError(f"no adapter_config.json says {name}, a finite number")
        return value

    def seed(self, name: str) -> int:
        """Return a seed that has to be said; raise ValueError where there is none that torch takes."""
        value = self.fields.get(name)
        if type(value) is not int or not -(1 << 63) <= value < 1 << 64:
            raise ValueError(f"no adapter_config.json says {name}, a whole number of 64 bits")
        return value

    def is_before(self, *release: int) -> bool | None:
        """Tell whether a PEFT before this release (major, minor, patch) wrote it; None where that is unknown."""
        return is_before(self.fields, *release)


def is_before(fields: Mapping[str, object], *release: int) -> bool | None:
    """Tell whether a PEFT before this release (major, minor, patch) wrote these fields; None where that is unknown.

    All laws that changed ask here. `peft_version` is there since 0.18. A version in the making (0.18.2.dev0@5f3c)
    comes after the release before it, and may have any of the next minor one's changes.
    """
    said = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?(\.?(?:dev|a|b|rc)\d*)?", str(fields.get("peft_version")))
    if said is None:
        is_later = any(release <= first for name, first in INTRODUCED.items() if name in fields)
        return False if is_later else None
    major, minor, patch = (int(number or 0) for number in said.groups()[:3])
    if said[4] is None:
        return (major, minor, patch) < release
    if release < (major, minor, patch):
        return False
    return True if release > (major, minor + (patch > 0), 0) else None


def is_finite(value: object) -> TypeGuard[float]:
    """Tell a number that a float can hold from anything else; JSON may say more digits, and infinity."""
    return isinstance(value, (int, float)) and type(value) is not bool and abs(value) <= float_info.max
