"""The records of a recipe's inputs: a file or folder with its path or address, its digest, and how it is applied."""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from lorabake.paths import DIGESTED, expanded, hub_address
from lorabake.recipe.part import Part
from lorabake.recipe.types import InputPath, Semantics, Sha256, Strength, Text, expected
from lorabake.recipe.words import quoted
from lorabake.remote import Address, address_of


def in_order(value: object) -> object:
    """Sort the keys of mappings, on all levels."""
    match value:
        case dict():
            return {key: in_order(value[key]) for key in sorted(value)}
        case list():
            return [in_order(item) for item in value]
    return value


def path_to_mapping(value: object) -> object:
    """Turn a plain path into a mapping with that path."""
    match value:
        case str():
            return {"path": value}
        case dict() | Source():
            return value
    raise expected("a file path or a mapping with the key 'path'")


class Source(Part):
    """Name an input file and, if given, the digest it must have."""

    _spot = "vae."
    path: InputPath = Field(
        description="The file, relative to the recipe's folder; ~ is the home folder. "
        "Or an address: hf://…, or https:// with sha256."
    )
    sha256: Sha256 | None = Field(None, description="The SHA-256 that the whole file must have.")

    @model_validator(mode="after")
    def _has_digest(self) -> Self:
        if (address := self.address) is not None and address.needs_digest and self.sha256 is None:
            hub = hub_address(self.path)
            told = "is an address of the web, and needs the SHA-256 of its file"
            if hub:
                told = f"is an address of Hugging Face: write {hub}"
            raise PydanticCustomError(
                "no_digest",
                "{address} {told}",
                {"address": quoted(self.path), "told": told, "example": "" if hub else f"; write {DIGESTED}"},
            )
        return self

    @property
    def address(self) -> Address | None:
        """Return the input's address; None if it has a path on this machine."""
        return address_of(self.path)

    @property
    def portable_path(self) -> str:
        """Return the path in the form that outputs may contain: an address, a relative path, or a file's name."""
        if self.address is not None:
            return self.path
        path = PurePath(expanded(self.path))
        return path.name if path.is_absolute() else path.as_posix()

    def named(self, inside: PurePath) -> str:
        """Name a file in this folder, or this file itself, in the form that outputs may contain."""
        name = inside.as_posix()
        return self.portable_path if name == "." else f"{self.portable_path.removesuffix('/')}/{name}"

    def normal(self) -> dict[str, object]:
        """Reduce it to what may change the bytes."""
        return {"path": self.portable_path, "sha256": self.sha256}


class Base(Source):
    """Name the checkpoint that the LoRAs are baked into."""

    _spot = "base."
    path: InputPath = Field(
        description="The file or the diffusers folder, relative to the recipe's folder, or an address.",
    )
    variant: Text | None = Field(None, description="The variant of a diffusers folder's files, such as fp16.")

    def normal(self) -> dict[str, object]:
        """Reduce it to what may change the bytes."""
        return {**super().normal(), "variant": self.variant}


class Lora(Source):
    """Name a LoRA and say how strongly, and where, it is applied."""

    _spot = "loras.0."
    strength: Strength = Field(
        1.0,
        description="How strongly the LoRA is applied: any finite number, or one for each component.",
    )
    blocks: dict[str, float] = Field(
        {},
        description="Factors on top of the strength, by glob over module paths; the first match wins.",
    )
    components: Annotated[tuple[Text, ...], Field(min_length=1)] | None = Field(
        None,
        description="The only components to take from the LoRA; its other components are left out.",
    )
    ignore: Annotated[tuple[Text, ...], Field(min_length=1)] | None = Field(
        None,
        description="Globs over the names of the LoRA's modules; what they match is left out.",
    )
    trained_on: Text | None = Field(
        None,
        description="The family that the LoRA was trained on, to bake it onto another one's base all the same.",
    )
    semantics: Semantics | None = Field(
        None,
        description="The program whose reading of the LoRA is followed, where it differs from the definition.",
    )

    def normal(self) -> dict[str, object]:
        """Reduce it to what may change the bytes."""
        return {
            **super().normal(),
            "strength": in_order(self.strength),
            "blocks": [[glob, factor] for glob, factor in self.blocks.items()],
            "components": None if self.components is None else sorted(set(self.components)),
            **({"ignore": sorted(set(self.ignore))} if self.ignore else {}),
            **({"trained_on": self.trained_on} if self.trained_on else {}),
            **({"semantics": self.semantics} if self.semantics else {}),
        }
