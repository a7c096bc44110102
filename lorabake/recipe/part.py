"""What all parts of a recipe have in common: they are checked when they are made, and stay as they are then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from lorabake.errors import ArgumentError
from lorabake.visible import at_a_glance, named_fields

MADE = 'A recipe is made by lorabake.load_recipe("recipe.yaml"); bake and plan also take a mapping or keywords.'


@dataclass(frozen=True, slots=True)
class Short(BeforeValidator):
    """Let a plain text stand for a part: it is the value of this key."""

    key: str = ""


class Part(BaseModel):
    """Check what a part of a recipe is made of, show it in a few letters, and keep it as it is."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    _spot: ClassVar[str] = ""
    """Where the part stands in a recipe: the beginning of its keys."""

    def __init__(self, **keys: Any) -> None:
        try:
            super().__init__(**keys)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise ArgumentError(f"{type(self).__name__}: {place}: {first['msg']}", MADE) from None

    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]  # reading a recipe goes on without it

    def __repr__(self) -> str:
        return named_fields(self, (name for name in type(self).model_fields if name in self.model_fields_set))

    def __str__(self) -> str:
        return repr(self)

    def __setattr__(self, name: str, value: object) -> None:
        if not name.startswith("_"):
            raise ArgumentError(
                f"a recipe stays as it is: its {name} cannot be set",
                f"Make another: lorabake.change(recipe, {{{self._spot + name!r}: {at_a_glance(value)}}}).",
            )
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        raise ArgumentError(
            f"a recipe stays as it is: its {name} cannot be removed", "Load or make another, without it."
        )
