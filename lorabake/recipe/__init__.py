"""Step 1 of the flow: YAML text in; a `Recipe` out, or a `RecipeError` that lists every fault with its place.

The recipe says everything that may change the baked bytes and nothing else. Its shape is declared once, as
pydantic models: they check the values, they are the JSON Schema that editors use, and `normal_form` is what
baked files carry. The YAML is walked node by node, so that each value's line and column is known.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Annotated, Literal, TypeAlias, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PrivateAttr,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from lorabake.errors import FileError, RecipeError
from lorabake.likeness import nearest
from lorabake.tensors.small import read_small

__all__ = [
    "Base",
    "Lora",
    "Output",
    "Recipe",
    "Source",
    "Verify",
    "load_recipe",
    "parse_recipe",
    "recipe_schema",
]

MAX_BYTES = 1 << 20
MAX_DEPTH = 64
MAX_FAULTS = 20
"""Faults of a recipe that are told at once."""
MAX_VALUES = 10_000


# -- The values ------------------------------------------------------------------------------------

_VISIBLE = r"\S"
_FILE = r"^[^\x00-\x1f]*[^\s\x00-\x1f][^\x00-\x1f]*$"
_SHA256 = r"^[0-9a-fA-F]{64}$"
_SIZE = r"^[0-9]{1,15}([KMGT]i?B)$"

_PATTERN_WORDS = {
    _VISIBLE: "text that is not blank",
    _FILE: "a file path",
    _SHA256: "64 hexadecimal digits",
}
"""What each pattern asks for, in the words of an error message."""


def _expected(words: str) -> PydanticCustomError:
    """Say what ought to stand there; `_Tree.explain` adds the name and what was found."""
    return PydanticCustomError("expected", words)


def _branch(one: tuple[type, ...], many: type) -> Callable[[object], str | None]:
    """Tell a single value from a collection by exact type, so that a boolean is no number."""
    return lambda value: "one" if type(value) in one else "many" if type(value) is many else None


def _bytes(value: object) -> int:
    """Read 5GB as 5·10⁹ and 5GiB as 5·2³⁰ bytes."""
    size = value if type(value) is int else 0
    if isinstance(value, str) and (match := re.fullmatch(_SIZE, value)):
        unit = match[1]
        size = int(value.removesuffix(unit)) * (1024 if "i" in unit else 1000) ** ("KMGT".index(unit[0]) + 1)
    if size < 1:
        raise _expected("a positive number of bytes or a size such as 5GB or 2GiB")
    return size


def _width_and_height(value: object) -> tuple[int, int]:
    sides = value if isinstance(value, tuple) else (value, value)
    match sides:
        case (int(width), int(height)) if type(width) is type(height) is int and min(width, height) > 0:
            return width, height
    raise _expected("a positive whole number or a list of two, [width, height]")


def _exactly_int(value: object) -> int:
    """Refuse `true` and 1.0, which equal 1."""
    if type(value) is int:
        return value
    raise _expected("1")


def _name_to_mapping(value: object) -> object:
    """Let a name alone stand for a mapping."""
    return {"name": value} if isinstance(value, str) else value


def _path_to_mapping(value: object) -> object:
    match value:
        case str():
            return {"path": value}
        case dict() | Source():
            return value
    raise _expected("a file path or a mapping with the key 'path'")


Text: TypeAlias = Annotated[str, Field(pattern=_VISIBLE)]
FilePath: TypeAlias = Annotated[str, Field(pattern=_FILE)]
Sha256: TypeAlias = Annotated[str, Field(pattern=_SHA256), AfterValidator(str.lower)]
Whole: TypeAlias = Annotated[int, Field(ge=1)]
Semantics: TypeAlias = Literal["comfyui", "forge", "a1111", "peft", "lycoris"]
Dtype: TypeAlias = Literal["keep", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"]

ByteSize: TypeAlias = Annotated[
    int,
    BeforeValidator(_bytes, json_schema_input_type=Whole | Annotated[str, Field(pattern=_SIZE)]),
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
OutputDtype: TypeAlias = Annotated[
    Annotated[Dtype, Tag("one")] | Annotated[dict[str, Dtype], Field(min_length=1), Tag("many")],
    Discriminator(
        _branch((str,), dict),
        custom_error_type="expected",
        custom_error_message="the name of a dtype or a mapping from component to dtype",
    ),
]


# -- The models ------------------------------------------------------------------------------------


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class Source(_Part):
    """Name an input file and, if given, the digest it must have."""

    path: FilePath = Field(description="The file, relative to the recipe's folder.")
    sha256: Sha256 | None = Field(None, description="The SHA-256 that the whole file must have.")

    @property
    def portable_path(self) -> str:
        """Return the path as outputs may carry it: relative, or only the file's name."""
        path = PurePath(self.path)
        return path.name if path.is_absolute() else path.as_posix()

    def _normal(self) -> dict[str, object]:
        return {"path": self.portable_path, "sha256": self.sha256}


class Base(Source):
    """Name the checkpoint that the LoRAs are baked into."""

    path: FilePath = Field(
        description="The file or the diffusers folder, relative to the recipe's folder.",
    )
    variant: Text | None = Field(None, description="The variant of a diffusers folder's files, such as fp16.")

    def _normal(self) -> dict[str, object]:
        return {**super()._normal(), "variant": self.variant}


class Lora(Source):
    """Name a LoRA and say how strongly, and where, it is applied."""

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

    def _normal(self) -> dict[str, object]:
        return {
            **super()._normal(),
            "strength": _sorted(self.strength),
            "blocks": [[glob, factor] for glob, factor in self.blocks.items()],
            "components": None if self.components is None else sorted(set(self.components)),
            **({"ignore": sorted(set(self.ignore))} if self.ignore else {}),
            **({"trained_on": self.trained_on} if self.trained_on else {}),
            **({"semantics": self.semantics} if self.semantics else {}),
        }


class Method(_Part):
    """Say how the deltas of several LoRAs on one weight become one."""

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
                    "method_field", "the method {name} needs {field}", {"name": self.name, "field": field}
                )
        for field in sorted(self.model_fields_set - wanted - {"name"}):
            raise PydanticCustomError(
                "method_field", "the method {name} has no {field}", {"name": self.name, "field": field}
            )
        return self


class Rounding(_Part):
    """Say which of its two neighbours in the output's dtype a value becomes."""

    name: Literal["nearest", "stochastic"] = Field(
        "nearest", description="The nearest one, or one drawn so that on average the value stays what it is."
    )
    seed: Annotated[int, Field(ge=0)] = Field(0, description="The seed of what stochastic rounding draws.")

    @model_validator(mode="after")
    def _is_whole(self) -> Rounding:
        if "seed" in self.model_fields_set and not self.is_drawn:
            raise PydanticCustomError("method_field", "the rounding {name} has no seed", {"name": self.name})
        return self

    @property
    def is_drawn(self) -> bool:
        """Tell whether chance decides, by the seed."""
        return self.name == "stochastic"


class Output(_Part):
    """Say where the baked checkpoint goes and in which form."""

    path: FilePath = Field(description="The file to write, relative to the recipe's folder.")
    dtype: OutputDtype = Field("keep", description="The dtype of the tensors, or one for each component.")
    rounding: Annotated[Rounding, BeforeValidator(_name_to_mapping, json_schema_input_type=Text | Rounding)] = Field(
        default_factory=lambda: Rounding.model_validate({}),
        description="How what is computed becomes values of the output's dtype.",
    )
    hash: bool = Field(True, description="Whether the header carries the SHA-256 of the tensor data.")
    shard_size: ByteSize | None = Field(None, description="The largest size of one file, such as 5GB.")
    allow_loss: bool = Field(False, description="Whether most of a LoRA may be lost in the output's dtype.")


class Verify(_Part):
    """Say which pictures the verify command makes with the base and with the baked checkpoint."""

    prompts: Annotated[tuple[Text, ...], Field(min_length=1)] = Field(description="One picture each.")
    negative_prompt: str = Field("", description="What the pictures must not show.")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="The seed of the first noise.")
    steps: Whole | None = Field(None, description="The number of denoising steps.")
    size: PictureSize | None = Field(None, description="The pictures' side, or [width, height], in pixels.")
    guidance: Annotated[float, Field(ge=0)] | None = Field(None, description="The guidance scale.")
    prediction: Literal["epsilon", "v_prediction"] | None = Field(
        None, description="What the model predicts, where its family does not say."
    )
    config: FilePath | None = Field(
        None,
        description="A diffusers folder: configurations, if the family's do not fit, and what the base lacks.",
    )
    tokenizers: FilePath | None = Field(
        None, description="A folder with the tokenizers of a model, where the base has none."
    )


class Recipe(_Part):
    """Hold everything that may change the baked bytes, and the folder that relative paths start from."""

    version: Annotated[Literal[1], BeforeValidator(_exactly_int)] = Field(
        description="The version of the recipe's grammar."
    )
    base: Annotated[Base, BeforeValidator(_path_to_mapping, json_schema_input_type=FilePath | Base)] = Field(
        description="The checkpoint that the LoRAs are baked into.",
    )
    loras: tuple[Annotated[Lora, BeforeValidator(_path_to_mapping, json_schema_input_type=FilePath | Lora)], ...] = (
        Field((), description="The LoRAs to bake.")
    )
    vae: Annotated[Source, BeforeValidator(_path_to_mapping, json_schema_input_type=FilePath | Source)] | None = (
        Field(None, description="A VAE that takes the place of the base's own.")
    )
    method: Annotated[Method, BeforeValidator(_name_to_mapping, json_schema_input_type=Text | Method)] = Field(
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
    _file: Path | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _bakes_something(self) -> Recipe:
        if not self.loras and self.vae is None and self.output.dtype == "keep":
            raise PydanticCustomError(
                "nothing_to_bake",
                "nothing to bake: give at least one of loras, vae and output.dtype",
                {"at": ("loras",)},
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
        """Tell whether each LoRA sees the weight as the LoRAs before it left it."""
        return self.compose == "sequential"

    @property
    def folder(self) -> Path:
        """The absolute folder that relative paths start from."""
        return self._folder

    @property
    def file(self) -> Path | None:
        """The absolute path of the recipe itself, unless it came as text."""
        return self._file

    def locate(self, path: str) -> Path:
        """Join a path to the recipe's folder; an absolute one stays, and `~` and variables mean nothing."""
        return self._folder / path

    def placed(self, folder: Path) -> Recipe:
        """Return this recipe with relative paths starting from another folder."""
        moved = self.model_copy()
        moved._folder = folder.absolute()
        return moved

    @property
    def in_float64(self) -> bool:
        """Tell whether deltas are computed in float64: as asked for, or where a method decides by their values."""
        return self.compute_dtype == "float64" or self.method.name != "sum"

    def normal_form(self) -> dict[str, object]:
        """Reduce the recipe to what may change the bytes, with defaults filled in and keys sorted.

        Recipes that differ in spelling, in the order of keys, in the output's path or in the folder of an
        absolute path have one normal form. `blocks` becomes a list of pairs, because its order has a meaning.
        """
        form: dict[str, object] = {
            "version": self.version,
            "base": self.base._normal(),
            "loras": [lora._normal() for lora in self.loras],
            "vae": self.vae and self.vae._normal(),
            "compute_dtype": self.compute_dtype,
            "output": {
                "dtype": self.output.dtype,
                "hash": self.output.hash,
                "shard_size": self.output.shard_size,
                **({"rounding": self.output.rounding.model_dump()} if self.output.rounding.is_drawn else {}),
            },
        }
        if self.method.name != "sum":
            form["method"] = self.method.model_dump()
        if self.is_sequential:
            form["compose"] = self.compose
        return {key: _sorted(form[key]) for key in sorted(form)}

    def normal_json(self) -> str:
        """Write the normal form as one line of canonical JSON."""
        return json.dumps(
            self.normal_form(),
            sort_keys=True,
            separators=(",", ":"),
            ensure_ascii=False,
            allow_nan=False,
        )


def _sorted(value: object) -> object:
    match value:
        case dict():
            return {key: _sorted(value[key]) for key in sorted(value)}
        case list():
            return [_sorted(item) for item in value]
    return value


def recipe_schema() -> dict[str, object]:
    """Describe the grammar as a JSON Schema (draft 2020-12), for editors that complete and check YAML."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:lorabake:recipe:1",
        **Recipe.model_json_schema(),
    }


# -- From text to recipe ---------------------------------------------------------------------------


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe file; paths in it are relative to the folder it lies in."""
    try:
        data = read_small(path, MAX_BYTES, "a recipe")
    except FileError as error:
        raise RecipeError(*error.args) from None
    except (OSError, ValueError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        raise RecipeError(f"{path}: cannot read the recipe: {reason}") from error
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8")
        mark = _mark(str(path), before)
        raise _error(mark, f"not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}") from error
    file = Path(path).absolute()
    recipe = parse_recipe(text, file.parent, str(path))
    recipe._file = file
    return recipe


def parse_recipe(text: str, folder: Path, name: str = "recipe") -> Recipe:
    """Read a recipe's text; `name` stands for the file in error messages."""
    tree = _Tree()
    data = tree.build(_compose(text, name))
    faults = tree.faults
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        faults += map(tree.explain, error.errors(include_url=False))
    if faults:
        faults.sort(key=lambda fault: (fault[0].line, fault[0].column))
        told = [_line(mark, message) for mark, message in faults[:MAX_FAULTS]]
        told += [f"and {len(faults) - MAX_FAULTS} more faults"] if len(faults) > MAX_FAULTS else []
        raise RecipeError(*told)
    recipe._folder = folder.absolute()
    return recipe


def _compose(text: str, name: str) -> yaml.Node:
    """Parse the only document of the text into nodes that know their places."""
    try:
        composer = _Composer(text)
    except yaml.reader.ReaderError as error:
        mark = _mark(name, text[: error.position])
        raise _error(mark, f"the character U+{ord(text[error.position]):04X} is not allowed") from error
    composer.name = name
    try:
        node = composer.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark or composer.get_mark()
        since = f" from line {error.context_mark.line + 1}" if error.context_mark else ""
        problem = f"{error.context}{since}, {error.problem}" if error.context else error.problem
        raise _error(mark, f"not valid YAML: {problem}") from error
    except (ValueError, OverflowError) as error:  # PyYAML lets chr() fail on "\UFFFFFFFF"
        raise _error(composer.get_mark(), "not valid YAML: an escape stands for no character") from error
    if node is None:
        raise _error(_mark(name, ""), "the recipe is empty")
    if not isinstance(node, yaml.MappingNode):
        raise _error(node.start_mark, f"the recipe must be a mapping, found {_found(_plain(node))}")
    return node


class _Composer(yaml.SafeLoader):
    """Compose nodes without tags and without bottomless nesting."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if tag := getattr(event, "tag", None):
            tag = tag.replace("tag:yaml.org,2002:", "!!")
            raise _error(event.start_mark, f"the tag {tag} is not allowed")
        if self.depth == MAX_DEPTH:
            raise _error(event.start_mark, f"nested more than {MAX_DEPTH} deep")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


Place: TypeAlias = tuple[str | int, ...]
"""Keys and indices that lead from the recipe's top to a value."""


class _Tree:
    """Turn nodes into plain data and remember where every key and value stands."""

    def __init__(self) -> None:
        self.faults: list[tuple[yaml.Mark, str]] = []
        self._keys: dict[Place, yaml.Mark] = {}
        self._values: dict[Place, yaml.Mark] = {}
        self._open: set[yaml.Node] = set()
        self._count = 0

    def build(self, node: yaml.Node, place: Place = ()) -> object:
        """Read a node and all below it; sequences become tuples."""
        mark = self._values[place] = node.start_mark
        if node in self._open:
            raise _error(mark, "an alias stands inside what it stands for")
        self._count += 1
        if self._count > MAX_VALUES:
            raise _error(mark, f"more than {MAX_VALUES} values, counting what aliases repeat")
        self._open.add(node)
        value: object
        match node:
            case yaml.MappingNode():
                value = dict(self._items(node, place))
            case yaml.SequenceNode():
                value = tuple(self.build(item, (*place, index)) for index, item in enumerate(node.value))
            case _:
                value = _plain(node)
        self._open.remove(node)
        return value

    def _items(self, node: yaml.MappingNode, place: Place) -> Iterator[tuple[str, object]]:
        for key_node, value_node in node.value:
            key, mark = _plain(key_node), key_node.start_mark
            if not isinstance(key, str):
                self.faults.append((mark, f"a key must be text, found {_found(key)}"))
            elif first := self._keys.get((*place, key)):
                self.faults.append((mark, f"duplicate key {_quoted(key)}, first on line {first.line + 1}"))
            else:
                self._keys[*place, key] = mark
                yield key, self.build(value_node, (*place, key))

    def explain(self, error: ErrorDetails) -> tuple[yaml.Mark, str]:
        """Put what pydantic found wrong at its place and into a user's words."""
        context, found, hint = error.get("ctx", {}), error["input"], ""
        place = self._place(context.get("at", error["loc"]))
        mark = self._values[place]
        name = _name(place)
        match error["type"]:
            case "missing":
                where = f" in {name}" if name in place else ""
                return mark, f"missing key {_quoted(str(error['loc'][-1]))}{where}"
            case "extra_forbidden":
                key = str(place[-1])
                return self._keys[place], f"unknown key {_quoted(key)}{_nearest(key, _known_keys(place))}"
            case "nothing_to_bake" | "method_and" | "method_field":
                return mark, error["msg"]
            case "too_short":
                return mark, f"{name} must not be empty"
            case "literal_error":
                expected = context["expected"].replace("'", "")
                hint = _nearest(found, re.findall(r"'(\w+)'", context["expected"]))
            case "string_pattern_mismatch":
                expected = _PATTERN_WORDS[context["pattern"]]
            case kind:
                expected = _WORDS.get(kind, error["msg"]).format(**context)
        return mark, f"{name} must be {expected}, found {_found(found)}{hint}"

    def _place(self, location: Place) -> Place:
        """Drop from a location what the user didn't write: the branch of a union, the `path` of a string."""
        place: Place = ()
        for part in location:
            if (*place, part) in self._values:
                place = (*place, part)
        return place


_WORDS = {
    "string_type": "text",
    "bool_type": "true or false",
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "greater_than_equal": "{ge:g} or more",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
}
"""What each of pydantic's checks asks for, in the words of an error message."""


def _plain(node: yaml.Node) -> object:
    """Read a scalar by the core schema of YAML 1.2, where `yes`, `12:30` and `2024-01-01` are text."""
    if not isinstance(node, yaml.ScalarNode):
        return {} if isinstance(node, yaml.MappingNode) else ()
    text: str = node.value
    if re.search("[\ud800-\udfff]", text):
        raise _error(node.start_mark, "the text has an escape that stands for half a character")
    if node.style:
        return text
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return text.lower() == "true"
    if re.fullmatch(r"[-+]?[0-9]{1,40}", text):
        return int(text)
    if re.fullmatch(r"0o[0-7]{1,40}|0x[0-9a-fA-F]{1,40}", text):
        return int(text, 0)
    if re.fullmatch(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", text):
        return float(text)
    if re.fullmatch(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", text):
        return float(text.replace(".", ""))
    return text


def _name(place: Place) -> str:
    """Name a value by its key, or by the list it stands in."""
    match place:
        case ():
            return "the recipe"
        case (*_, str(key)):
            return key if key.isidentifier() else _quoted(key)
    return f"each of {place[-2]}"


def _found(value: object) -> str:
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case int() | float():
            return f"the number {value}"
        case str():
            return f"the text {_quoted(value)}"
        case tuple():
            return "a list"
        case Mapping():
            return "a mapping"
    return f"a {type(value).__name__}"


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:79] + "…")


def _nearest(name: object, names: list[str]) -> str:
    near = nearest(str(name), names, cutoff=0.5)
    return f", did you mean {near!r}?" if near else ""


def _known_keys(location: Place) -> list[str]:
    """List the keys that the mapping at the end of a location may have."""
    model: type[BaseModel] = Recipe
    for part in location[:-1]:
        if isinstance(part, str):
            model = next(_models(model.model_fields[part].annotation))
    return list(model.model_fields)


def _models(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def _mark(name: str, before: str) -> yaml.Mark:
    """Make the mark of the character that follows this text."""
    return yaml.Mark(name, len(before), before.count("\n"), len(before) - before.rfind("\n") - 1, None, 0)


def _line(mark: yaml.Mark, message: str) -> str:
    return f"{mark.name}:{mark.line + 1}:{mark.column + 1}: {message}"


def _error(mark: yaml.Mark, message: str) -> RecipeError:
    return RecipeError(_line(mark, message))
