"""The records of a recipe: they check what is in them, and are the JSON Schema that editors use.

The shape of a recipe is declared here once. Its normal form is what baked files carry.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PrivateAttr, model_validator
from pydantic_core import PydanticCustomError

from lorabake.paths import expanded, name_of_output, without_dots
from lorabake.recipe.inputs import Base, Lora, Source, in_order, path_to_mapping
from lorabake.recipe.part import Part, Short
from lorabake.recipe.types import (
    ByteSize,
    FilePath,
    InputPath,
    Metadata,
    OutputDtype,
    OutputLayout,
    PictureSize,
    Text,
    Whole,
    expected,
)
from lorabake.remote import Wanted, address_of
from lorabake.visible import at_a_glance, counted_as


def _exactly_int(value: object) -> int:
    """Refuse `true` and 1.0, which equal 1."""
    if type(value) is int:
        return value
    raise expected("1")


def _name_to_mapping(value: object) -> object:
    """Turn a plain name into a mapping with that name."""
    return {"name": value} if isinstance(value, str) else value


EXAMPLES = {"density": 0.5, "rank": 64}
"""Field that a method may need -> an example."""


class Method(Part):
    """Say how the deltas of several LoRAs on one weight become one."""

    _spot = "method."
    name: Literal["sum", "ties", "dare_linear", "dare_ties", "magnitude_prune", "svd"] = Field(
        "sum", description="The method: the exact sum, TIES, DARE, pruning by magnitude, or a sum of limited rank."
    )
    density: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="The share of each delta's values that ties, dare and magnitude_prune keep."
    )
    seed: Annotated[int, Field(ge=0)] = Field(0, description="The seed of what dare drops.")
    rank: Whole | None = Field(None, description="The rank that svd keeps.")

    @model_validator(mode="after")
    def _is_whole(self) -> Method:
        wanted = {"sum": set(), "svd": {"rank"}}.get(
            self.name, {"density"} | ({"seed"} if "dare" in self.name else set())
        )
        for field in ("density", "rank"):
            if field in wanted and field not in self.model_fields_set:
                raise PydanticCustomError(
                    "method_field",
                    "the method {name} needs {field}; write method: {example}",
                    {
                        "name": self.name,
                        "field": field,
                        "example": f"{{name: {self.name}, {field}: {EXAMPLES[field]}}}",
                    },
                )
        for field in sorted(self.model_fields_set - wanted - {"name"}):
            raise PydanticCustomError(
                "method_field", "the method {name} has no {field}; remove it", {"name": self.name, "field": field}
            )
        return self


class Rounding(Part):
    """Say which of its two neighbours in the output's dtype a value becomes."""

    _spot = "output.rounding."
    name: Literal["nearest", "stochastic"] = Field(
        "nearest", description="The nearest one, or one drawn so that on average the value stays what it is."
    )
    seed: Annotated[int, Field(ge=0)] = Field(0, description="The seed of what stochastic rounding draws.")

    @model_validator(mode="after")
    def _is_whole(self) -> Rounding:
        if "seed" in self.model_fields_set and not self.is_drawn:
            raise PydanticCustomError(
                "method_field", "the rounding {name} has no seed; remove it", {"name": self.name}
            )
        return self

    @property
    def is_drawn(self) -> bool:
        """Tell whether rounding is random, by the seed."""
        return self.name == "stochastic"


class Output(Part):
    """Say where the baked checkpoint goes and in which form."""

    _spot = "output."
    path: FilePath = Field(description="The file to write, relative to the recipe's folder.")
    layout: OutputLayout = Field(
        "keep",
        description="The base's form, a single file in the maker's names, or a diffusers folder.",
    )
    parts: dict[
        Text, Annotated[Source, BeforeValidator(path_to_mapping, json_schema_input_type=InputPath | Source)]
    ] = Field(
        {},
        description="What a single file lacks that becomes a folder, by its folder's name: a file or a folder.",
    )
    dtype: OutputDtype = Field("keep", description="The dtype of the tensors, or one for each component.")
    rounding: Annotated[Rounding, Short(_name_to_mapping, Text | Rounding, "name")] = Field(
        default_factory=lambda: Rounding.model_validate({}),
        description="How what is computed becomes values of the output's dtype.",
    )
    hash: bool = Field(True, description="Whether the header carries the SHA-256 of the tensor data.")
    shard_size: ByteSize | None = Field(None, description="The largest size of one file, such as 5GB.")
    allow_loss: bool = Field(False, description="Whether most of a LoRA may be lost in the output's dtype.")
    metadata: Metadata = Field({}, description="Fields of the header to set, by name; null removes one.")
    thumbnail: Literal["verify"] | None = Field(None, description="Whether verify puts its picture into the header.")

    @property
    def form(self) -> Literal["keep", "single", "diffusers"]:
        """Return the layout in one word; `names_of` says which names a single file has."""
        return "single" if isinstance(self.layout, dict) else self.layout

    @property
    def names_of(self) -> str | None:
        """Return the layout whose names a single file is to have; None where the family's first one will do."""
        return self.layout["single"] if isinstance(self.layout, dict) else None


class Verify(Part):
    """Say which pictures the verify command makes with the base and with the baked checkpoint."""

    _spot = "verify."
    prompts: Annotated[tuple[Text, ...], Field(min_length=1)] = Field(description="One picture each.")
    negative_prompt: str = Field("", description="What the pictures must not show.")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="The seed of the first noise.")
    steps: Whole | None = Field(None, description="The number of denoising steps.")
    size: PictureSize | None = Field(None, description="The pictures' side, or [width, height], in pixels.")
    guidance: Annotated[float, Field(ge=0)] | None = Field(None, description="The guidance scale.")
    prediction: Literal["epsilon", "v_prediction"] | None = Field(
        None, description="What the model predicts, where its family does not say."
    )
    config: InputPath | None = Field(
        None,
        description="A diffusers folder: configurations, if the family's do not fit, and what the base lacks.",
    )
    tokenizers: InputPath | None = Field(
        None, description="A folder with the tokenizers of a model, where the base has none."
    )


class Spots(dict[str, str]):
    """Map the path of each input to where it is written. That is no part of what a recipe says: all are equal."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Spots)

    __hash__ = None


class Recipe(Part):
    """Hold everything that may change the baked bytes, and the folder that relative paths start from."""

    version: Annotated[Literal[1], BeforeValidator(_exactly_int)] = Field(
        description="The version of the recipe's grammar."
    )
    base: Annotated[Base, Short(path_to_mapping, InputPath | Base, "path")] = Field(
        description="The checkpoint that the LoRAs are baked into.",
    )
    loras: tuple[Annotated[Lora, Short(path_to_mapping, InputPath | Lora, "path")], ...] = Field(
        (), description="The LoRAs to bake."
    )
    vae: Annotated[Source, Short(path_to_mapping, InputPath | Source, "path")] | None = Field(
        None, description="A VAE that takes the place of the base's own."
    )
    method: Annotated[Method, Short(_name_to_mapping, Text | Method, "name")] = Field(
        default_factory=lambda: Method.model_validate({}),
        description="How the deltas of several LoRAs on one weight become one.",
    )
    compose: Literal["sum", "sequential"] = Field(
        "sum",
        description="Whether each LoRA is taken against the base's own weight, or against what those before it made.",
    )
    compute_dtype: Literal["float32", "float64"] = Field(
        "float32",
        description="The precision in which deltas are computed and summed.",
    )
    output: Output = Field(description="Where the baked checkpoint goes, and in which form.")
    verify: Verify | None = Field(None, description="What the verify command samples.")

    _folder: Path = PrivateAttr(default_factory=Path.cwd)
    _named: Spots = PrivateAttr(default_factory=Spots)
    _file: Path | None = PrivateAttr(None)
    _text: str | None = PrivateAttr(None)
    _commits: Mapping[str, str] = PrivateAttr(default_factory=dict)
    _choices: dict[str, str] = PrivateAttr(default_factory=dict)

    def __repr__(self) -> str:
        loras = counted_as(len(self.loras), "LoRA")
        base, output = (at_a_glance(PurePath(path).name) for path in (self.base.path, self.output.path))
        return f"<Recipe {loras} into {base}: {output}>"

    @model_validator(mode="after")
    def _bakes_something(self) -> Recipe:
        is_same = self.output.dtype == "keep" and self.output.form == "keep"
        if not self.loras and self.vae is None and is_same:
            raise PydanticCustomError(
                "nothing_to_bake",
                "nothing to bake: give at least one of loras, vae, output.dtype and output.layout",
                {"at": ("loras",)},
            )
        if self.output.parts and self.output.form != "diffusers":
            raise PydanticCustomError(
                "parts_of_folder",
                "parts adds to a single file that becomes a folder; write layout: diffusers",
                {"at": ("output", "parts")},
            )
        other = "compose" if self.is_sequential else "semantics" if any(each.semantics for each in self.loras) else ""
        if other and self.method.name != "sum":
            raise PydanticCustomError(
                "method_and",
                "{other} is for the exact sum: the method {name} takes each delta against the base, at strength 1",
                {"name": self.method.name, "other": other, "at": ("method",)},
            )
        return self

    @property
    def is_sequential(self) -> bool:
        """Tell whether each LoRA is applied to the result of the LoRAs before it."""
        return self.compose == "sequential"

    @property
    def inputs(self) -> tuple[Source, ...]:
        """List every input: the base, the LoRAs, the VAE, and what is added to the output."""
        return (self.base, *self.loras, *filter(None, [self.vae]), *self.output.parts.values())

    @property
    def folder(self) -> Path:
        """The absolute folder that relative paths start from."""
        return self._folder

    @property
    def file(self) -> Path | None:
        """The absolute path of the recipe itself, unless it came as text."""
        return self._file

    def locate(self, entry: Source | str) -> Path:
        """Return where an input, or a file at a path, is on this machine.

        A path is joined to the recipe's folder. An absolute one stays, and a leading `~` is the user's home folder.
        Raise FileError for an address whose file was not fetched yet.
        """
        path = entry.path if isinstance(entry, Source) else entry
        address = address_of(path)
        return without_dots(self._folder / expanded(path)) if address is None else address.cached(self.wanted(entry))

    def wanted(self, entry: Source | str) -> Wanted:
        """Collect what the recipe, and its lock, say of an input with an address."""
        path = entry.path if isinstance(entry, Source) else entry
        return Wanted(
            sha256=entry.sha256 if isinstance(entry, Source) else None,
            commit=self._commits.get(path),
            variant=entry.variant if isinstance(entry, Base) else None,
        )

    def commit_of(self, entry: Source) -> str | None:
        """Return the commit that an input's address leads to: that of the lock, or what this machine's cache has."""
        if entry.address is None:
            return None
        return self._commits.get(entry.path) or entry.address.resolved()

    def pinned(self, commits: Mapping[str, str]) -> Recipe:
        """Return this recipe with the commit for each address, as it is written, whatever its revision says now."""
        pinned = self.model_copy()
        pinned._commits = dict(commits)
        return pinned

    def placed(self, folder: Path, named: Mapping[str, str] | None = None) -> Recipe:
        """Return this recipe with another start of relative paths; `named` says where each input's is written."""
        moved = self.model_copy()
        moved._folder = folder.absolute()
        moved._named = self._named if named is None else Spots(named)
        return moved

    def named_at(self, entry: Source) -> str | None:
        """Say where the path of an input is written; None where that is not known."""
        return self._named.get(entry.path)

    @property
    def text(self) -> str | None:
        """The recipe as YAML, unless it came otherwise."""
        return self._text

    def kept_in(self, file: Path | None, text: str) -> Recipe:
        """Return this recipe with its YAML, and with `file` (absolute) as the file that it came from."""
        kept = self.model_copy()
        kept._file, kept._text = file, text
        return kept

    @property
    def name(self) -> str:
        """What the output is called: its file's name without the ending, or its folder's name."""
        return name_of_output(self.output.path)

    @property
    def choices(self) -> Mapping[str, str]:
        """The name of this recipe's value on each axis of the matrix that it comes from; empty without a matrix."""
        return MappingProxyType(self._choices)

    def chosen(self, choices: Mapping[str, str]) -> Recipe:
        """Return this recipe as the one of a matrix that has these values."""
        kept = self.model_copy()
        kept._choices = dict(choices)
        return kept

    @property
    def in_float64(self) -> bool:
        """Tell whether deltas are computed in float64: if the recipe says so, or a method selects by values."""
        return self.compute_dtype == "float64" or self.method.name != "sum"

    def normal_form(self) -> dict[str, object]:
        """Reduce the recipe to what may change the bytes, with defaults filled in and keys sorted.

        Recipes that differ in spelling, in the order of keys, in the output's path or in the folder of an
        absolute path have one normal form. `blocks` becomes a list of pairs, because its order has a meaning.
        """
        parts = self.output.parts
        form: dict[str, object] = {
            "version": self.version,
            "base": self.base.normal(),
            "loras": [lora.normal() for lora in self.loras],
            "vae": self.vae and self.vae.normal(),
            "compute_dtype": self.compute_dtype,
            "output": {
                "dtype": self.output.dtype,
                "hash": self.output.hash,
                "shard_size": self.output.shard_size,
                **({"layout": self.output.layout} if self.output.form != "keep" else {}),
                **({"parts": {name: part.normal() for name, part in parts.items()}} if parts else {}),
                **({"metadata": dict(self.output.metadata)} if self.output.metadata else {}),
                **({"thumbnail": self.output.thumbnail} if self.output.thumbnail else {}),
                **({"rounding": self.output.rounding.model_dump()} if self.output.rounding.is_drawn else {}),
            },
        }
        if self.method.name != "sum":
            form["method"] = self.method.model_dump()
        if self.is_sequential:
            form["compose"] = self.compose
        if self.verify is not None and self.verify.prediction is not None:
            form["prediction"] = self.verify.prediction  # the header says it, and the scheduler of a folder
        return {key: in_order(form[key]) for key in sorted(form)}

    def normal_json(self) -> str:
        """Write the normal form as one line of canonical JSON."""
        form, separators = self.normal_form(), (",", ":")
        return json.dumps(form, sort_keys=True, separators=separators, ensure_ascii=False, allow_nan=False)


def recipe_schema() -> dict[str, object]:
    """Describe the grammar as a JSON Schema (draft 2020-12), for editors that complete and check YAML."""
    from lorabake.recipe.references import with_matrix  # only this needs it

    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:lorabake:recipe:1",
        **with_matrix(Recipe.model_json_schema()),
    }
