"""Types of a recipe's values: patterns of text, sizes, and values that may be single or several."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from lorabake.paths import never_a_path
from lorabake.remote import address_of, fault_of
from lorabake.storage.fields import whole_name, why_not

VISIBLE = r"\S"
FILE = r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*[^\s\x00-\x1f\x7f-\x9f\u2028\u2029][^\x00-\x1f\x7f-\x9f\u2028\u2029]*$"
SHA256 = r"^[0-9a-fA-F]{64}$"
LAYOUT = "keep, single, diffusers or a mapping from single to a maker's name"
SIZE = r"^[0-9]{1,15}([KMGT]i?B)$"


def expected(words: str) -> PydanticCustomError:
    """Raise an error that says what is expected; `faults.explained` adds the name and the value found."""
    return PydanticCustomError("expected", words)


def _branch(one: tuple[type, ...], many: type) -> Callable[[object], str | None]:
    """Tell a single value from a collection by its exact type, so that a boolean does not count as a number."""
    return lambda value: "one" if type(value) in one else "many" if type(value) is many else None


def _bytes(value: object) -> int:
    """Read 5GB as 5·10⁹ and 5GiB as 5·2³⁰ bytes."""
    size = value if type(value) is int else 0
    if isinstance(value, str) and (match := re.fullmatch(SIZE, value)):
        unit = match[1]
        size = int(value.removesuffix(unit)) * (1024 if "i" in unit else 1000) ** ("KMGT".index(unit[0]) + 1)
    if size < 1:
        raise expected("a positive number of bytes or a size such as 5GB or 2GiB")
    return size


def _path(text: str) -> str:
    """Refuse what can be no path; the message is whole but for the name of the value."""
    if (words := never_a_path(text)) is not None:
        raise PydanticCustomError("no_path", "{words}", {"words": words})
    return text


def _fields(fields: dict[str, str | None]) -> dict[str, str | None]:
    """Give the fields of a header their whole names; refuse those that no recipe may set, and one named twice."""
    named: dict[str, str | None] = {}
    for name, text in fields.items():
        whole = whole_name(name)
        at = ("output", "metadata", name)
        if reason := why_not(whole):
            raise PydanticCustomError(
                "field", "{name} cannot be set: {reason}", {"name": whole, "reason": reason, "at": at}
            )
        if whole in named:
            raise PydanticCustomError(
                "field", "{name} is there twice: with and without modelspec.", {"name": whole, "at": at}
            )
        named[whole] = text
    return named


def _input(text: str) -> str:
    """Take an address that can be fetched, or a path."""
    if (words := fault_of(text)) is not None:
        raise PydanticCustomError("no_path", "{words}", {"words": words})
    return text if address_of(text) is not None else _path(text)


def _of_single(value: dict[object, object]) -> dict[object, object]:
    if value.keys() != {"single"}:
        raise expected(LAYOUT)
    return value


def _width_and_height(value: object) -> tuple[int, int]:
    sides = value if isinstance(value, tuple) else (value, value)
    match sides:
        case (int(width), int(height)) if type(width) is type(height) is int and min(width, height) > 0:
            return width, height
    raise expected("a positive whole number or a list of two, [width, height]")


Text: TypeAlias = Annotated[str, Field(pattern=VISIBLE)]
FilePath: TypeAlias = Annotated[str, Field(pattern=FILE), AfterValidator(_path)]
InputPath: TypeAlias = Annotated[str, Field(pattern=FILE), AfterValidator(_input)]
"""The path of an input, or its address: hf://…, https://…"""
Sha256: TypeAlias = Annotated[str, Field(pattern=SHA256), AfterValidator(str.lower)]
Whole: TypeAlias = Annotated[int, Field(ge=1)]
Semantics: TypeAlias = Literal["comfyui", "forge", "a1111", "peft", "lycoris"]
Dtype: TypeAlias = Literal["keep", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"]

ByteSize: TypeAlias = Annotated[
    int,
    BeforeValidator(_bytes, json_schema_input_type=Whole | Annotated[str, Field(pattern=SIZE)]),
]
PictureSize: TypeAlias = Annotated[
    tuple[int, int],
    BeforeValidator(_width_and_height, json_schema_input_type=Whole | tuple[Whole, Whole]),
]
Strength: TypeAlias = Annotated[
    Annotated[float, Tag("one")] | Annotated[dict[str, float], Field(min_length=1), Tag("many")],
    Discriminator(
        _branch((int, float), dict),
        custom_error_type="expected",
        custom_error_message="a number or a mapping from component to number",
    ),
]
Metadata: TypeAlias = Annotated[dict[Text, str | None], AfterValidator(_fields)]
OutputDtype: TypeAlias = Annotated[
    Annotated[Dtype, Tag("one")] | Annotated[dict[str, Dtype], Field(min_length=1), Tag("many")],
    Discriminator(
        _branch((str,), dict),
        custom_error_type="expected",
        custom_error_message="the name of a dtype or a mapping from component to dtype",
    ),
]
OutputLayout: TypeAlias = Annotated[
    Annotated[Literal["keep", "single", "diffusers"], Tag("one")]
    | Annotated[dict[Literal["single"], Text], BeforeValidator(_of_single), Tag("many")],
    Discriminator(
        _branch((str,), dict),
        custom_error_type="expected",
        custom_error_message=LAYOUT,
    ),
]
