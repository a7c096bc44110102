"""Write a recipe's values as commented YAML: what stands for options of a command line, as a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import yaml

from lorabake.recipe.models import Recipe
from lorabake.recipe.values import scalar
from lorabake.visible import visible

HEADING = "# Written by lorabake. Paths in it start from this file's folder.\n"


def written(data: Mapping[str, object], notes: Iterable[str] = ()) -> str:
    """Write values so that reading them gives the same ones; each key is told what it is for.

    `notes` stand above, as comments.
    """
    told = "".join(f"# {visible(note)}\n" for note in notes)
    return HEADING + told + "".join(_entry(key, value) for key, value in data.items())


def _entry(key: str, value: object) -> str:
    field = Recipe.model_fields.get(key)
    comment = f"# {field.description}\n" if field else ""
    text: str = yaml.dump({key: value}, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=float("inf"))
    return f"\n{comment}{text}"


class _Dumper(yaml.SafeDumper):
    """Write YAML that `values.read_values` reads as it was, with the entries of lists indented."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Quote what would be read as a number: YAML 1.1, in which this library writes, and 1.2 differ in that."""
    is_safe = scalar(text) == text and "\n" not in text
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if is_safe else '"')


_Dumper.add_representer(str, _text)
