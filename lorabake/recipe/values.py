"""Read the values of a recipe with the spots where they were written: from YAML, or from Python's own values.

YAML's text is read node by node, so that every fault can be reported with its line and column. Tags, unlimited
nesting and excessive aliases are refused. Scalars follow the core schema of YAML 1.2.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import yaml

from lorabake.errors import RecipeError
from lorabake.recipe.syntax import in_quotes, is_of_a_template, syntax_error
from lorabake.recipe.words import Fault, Spot, error_at, found, mark_after, quoted

MAX_DEPTH = 64
MAX_VALUES = 10_000

SHORTEST = (
    "A recipe has at least these four keys:",
    "    version: 1",
    "    base: model.safetensors",
    "    loras: [style.safetensors]",
    "    output: {path: baked.safetensors}",
)

MATRIX = "matrix"
"""The key of a recipe that stands for several outputs."""

Place: TypeAlias = tuple[str | int, ...]
"""Keys and indices from the recipe's top to a value."""


@dataclass(frozen=True, slots=True)
class Values:
    """Hold a recipe's plain data, where its keys stand and where its values do (`spots`), and the faults of keys."""

    data: object
    keys: Mapping[Place, Spot]
    spots: Mapping[Place, Spot]
    faults: tuple[Fault, ...] = ()

    @property
    def has_matrix(self) -> bool:
        """Tell whether the recipe stands for several outputs."""
        return isinstance(self.data, Mapping) and MATRIX in self.data


def read_values(text: str, name: str) -> Values:
    """Read a recipe's text, which is one mapping; `name` stands for the file in messages."""
    node = _compose(text, name)
    if node is None:
        raise error_at(mark_after(name, ""), "the recipe is empty", *SHORTEST)
    if not isinstance(node, yaml.MappingNode):
        if toml := re.match(r"\s*(\w+)\s*=\s*([^\s#]+)", text):
            what = f"this looks like TOML ({toml[1]} = …): a recipe is YAML, and has a colon in place of ="
            raise error_at(node.start_mark, what, f"Write {toml[1]}: {toml[2]}")
        raise error_at(node.start_mark, f"the recipe must be a mapping, found {found(_plain(node))}", *SHORTEST)
    return _built(node)


def read_value(text: str, name: str) -> Values:
    """Read one value: YAML if the text begins with a bracket or a quote, else a number, true, null or the text."""
    node = _compose(text, name) if text.startswith(("{", "[", '"', "'")) else None
    if node is None:
        return Values(scalar(text), {}, {(): Spot(name)})
    return _built(node)


def _built(node: yaml.Node) -> Values:
    tree = _Tree()
    data = tree.build(node)
    return Values(data, tree.keys, tree.spots, tuple(tree.faults))


def values_of(data: object, name: str) -> Values:
    """Take a recipe's values from Python's mappings and sequences, whose spots begin with `name`: name["loras"][0].

    Sequences become tuples, as they do in YAML, and paths become text.
    """
    spots: dict[Place, Spot] = {}
    faults: list[Fault] = []

    def taken(value: object, place: Place, spot: str) -> object:
        spots[place] = Spot(spot)
        if len(place) > MAX_DEPTH:
            raise RecipeError(Fault(Spot(spot), f"nested more than {MAX_DEPTH} deep").line)
        match value:
            case Mapping():
                faults.extend(_no_text(Spot(spot), key) for key in value if not isinstance(key, str))
                named = {key: item for key, item in value.items() if isinstance(key, str)}
                return {key: taken(item, (*place, key), f'{spot}["{key}"]') for key, item in named.items()}
            case list() | tuple():
                return tuple(taken(item, (*place, index), f"{spot}[{index}]") for index, item in enumerate(value))
            case os.PathLike():
                return os.fspath(value)
        return value

    return Values(taken(data, (), name), spots, spots, tuple(faults))


def _no_text(spot: Spot, key: object) -> Fault:
    hint = "; write it in quotes" if not isinstance(key, Mapping) else "; braces in a value need quotes"
    return Fault(spot, f"a key must be text, found {found(key)}{hint}")


def _twice(spot: Spot, key: str, first: Spot, *, is_entry: bool) -> Fault:
    hint = " (for another entry of the list, write a dash before its first key)" if is_entry else ""
    return Fault(spot, f"duplicate key {quoted(key)}, first on line {first.line + 1}; remove one of them{hint}")


def _compose(text: str, name: str) -> yaml.Node | None:
    """Parse the only document of the text, if it has one, into nodes that know their places."""
    try:
        composer = _Composer(text)
    except yaml.reader.ReaderError as error:
        mark = mark_after(name, text[: error.position])
        what = f"the character U+{ord(text[error.position]):04X} is not allowed"
        raise error_at(mark, what, "Remove it. If there are many, save the recipe as UTF-8 text.") from error
    composer.name = name
    try:
        node: yaml.Node | None = composer.get_single_node()
    except yaml.MarkedYAMLError as error:
        raise syntax_error(error, text, name, composer.get_mark()) from error
    except (ValueError, OverflowError) as error:  # PyYAML lets chr() fail on "\UFFFFFFFF"
        raise error_at(
            composer.get_mark(),
            "an escape in double quotes stands for no character",
            "Write the text in single quotes.",
        ) from error
    return node


class _Composer(yaml.SafeLoader):
    """Compose nodes; refuse tags and unlimited nesting."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if tag := getattr(event, "tag", None):
            tag = tag.replace("tag:yaml.org,2002:", "!!")
            advice = f"Put it in quotes if it is text: {in_quotes(tag)}. Remove it if not: tags have no meaning here."
            raise error_at(event.start_mark, f"the tag {tag} is not allowed", advice)
        if self.depth == MAX_DEPTH:
            raise error_at(event.start_mark, f"nested more than {MAX_DEPTH} deep", "A recipe is four deep at most.")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Tree:
    """Turn nodes into plain data, and remember the position of every key and value."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.keys: dict[Place, Spot] = {}
        self.spots: dict[Place, Spot] = {}
        self._open: set[yaml.Node] = set()
        self._count = 0

    def build(self, node: yaml.Node, place: Place = ()) -> object:
        """Read a node with all nodes below it; sequences become tuples."""
        mark = node.start_mark
        self.spots[place] = Spot.of(mark)
        if node in self._open:
            raise error_at(mark, "an alias stands inside what it stands for", "Write the value instead.")
        self._count += 1
        if self._count > MAX_VALUES:
            what = f"more than {MAX_VALUES} values, counting what aliases repeat"
            raise error_at(mark, what, "Write out the few values that the recipe needs.")
        self._open.add(node)
        value: object
        match node:
            case yaml.MappingNode() if (variable := _variable_of_a_template(node)) is not None:
                key = next((part for part in reversed(place) if isinstance(part, str)), "")
                advice = f"Write the value itself: {key}: model.safetensors" if key in ("base", "path") else ""
                raise error_at(mark, is_of_a_template(variable), advice or "Write the value itself.")
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
            key, spot = _plain(key_node), Spot.of(key_node.start_mark)
            if not isinstance(key, str):
                self.faults.append(_no_text(spot, key))
            elif first := self.keys.get((*place, key)):
                self.faults.append(_twice(spot, key, first, is_entry=bool(place) and isinstance(place[-1], int)))
            else:
                self.keys[*place, key] = spot
                yield key, self.build(value_node, (*place, key))


def _variable_of_a_template(node: yaml.MappingNode) -> str | None:
    """Return what other programs would fill in, as {{ base }}; for YAML it is a mapping in a mapping's key."""
    match node.value:
        case [(yaml.MappingNode(value=[(yaml.ScalarNode(value=name), yaml.ScalarNode(value=""))]), _)]:
            return f"{{{{ {name} }}}}"
    return None


def _plain(node: yaml.Node) -> object:
    """Read a scalar; a quoted one is text."""
    if not isinstance(node, yaml.ScalarNode):
        return {} if isinstance(node, yaml.MappingNode) else ()
    text: str = node.value
    if re.search("[\ud800-\udfff]", text):
        what = "the text has an escape that stands for half a character"
        raise error_at(node.start_mark, what, "Write the character itself.")
    return text if node.style else scalar(text)


def scalar(text: str) -> object:
    """Read a scalar by the core schema of YAML 1.2, where `yes`, `12:30` and `2024-01-01` are text."""
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
