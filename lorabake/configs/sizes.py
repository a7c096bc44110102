"""Sizes read from a header: each is said in a phrase that names modules.

A phrase is

    count NAME{}              how many modules there are of this name
    numbers NAME{}            their numbers
    rows NAME, columns NAME   the first and the second dimension of a module's weight; of NAME{}, a list of all
    root NAME                 the root of the second one
    has NAME                  whether there is one

NAME being a module of the component in any layout's words, or one of another component, as `transformer:NAME`; or a
phrase is a number, or a field of the configuration. Of phrases with ` or ` between them the first counts whose module
is there. ` / `, ` * `, ` at most `, ` at least ` and ` is ` calculate, from left to right.
A list of a phrase and two values chooses; more phrases, each with its value, may come before the last value.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from math import isqrt
from operator import eq
from typing import Any

from lorabake.keymap.module import Module

Config = dict[str, Any]
Modules = Mapping[str, Module]

OPERATIONS: Mapping[str, Callable[[Any, Any], Any]] = {
    "/": lambda value, other: value // other,
    "*": lambda value, other: value * other,
    "at most": min,
    "at least": max,
    "is": eq,
}
BETWEEN = re.compile(f" ({'|'.join(map(re.escape, OPERATIONS))}) ")
DIMENSIONS = {"rows": 0, "columns": 1, "root": 1}


class SizeUnknownError(Exception):
    """Say which module a header lacks that would tell how large a network is."""


def sizes(said: Mapping[str, Any], modules: Modules, config: Mapping[str, Any]) -> Config:
    """Work out what a header tells, each value said in a phrase."""
    found: Config = {}
    for field, phrase in said.items():
        known = {**config, **found}
        found[field] = _chosen(phrase, modules, known) if isinstance(phrase, list) else _value(phrase, modules, known)
    return found


def _chosen(said: list[Any], modules: Modules, config: Mapping[str, Any]) -> Any:
    """Return the value after the first phrase that is true, or else the last value."""
    *pairs, otherwise = said
    for phrase, value in zip(pairs[::2], pairs[1::2], strict=True):
        if _value(phrase, modules, config):
            return value
    return otherwise


def _value(phrase: str, modules: Modules, config: Mapping[str, Any]) -> Any:
    first, *rest = BETWEEN.split(phrase)
    value = _choice(first, modules, config)
    for operation, term in zip(rest[::2], rest[1::2], strict=True):
        value = OPERATIONS[operation](value, _choice(term, modules, config))
    return value


def _choice(terms: str, modules: Modules, config: Mapping[str, Any]) -> Any:
    """Work out the first of some terms whose module is there, or else say what the first one lacks."""
    first, *others = terms.split(" or ")
    for term in (first, *others) if others else ():
        if term.partition(" ")[2] in modules:
            return _term(term, modules, config)
    return _term(first, modules, config)


def _term(term: str, modules: Modules, config: Mapping[str, Any]) -> Any:
    what, _, name = term.partition(" ")
    if not name:
        return int(what) if what.isdigit() else config[what]
    if what == "has":
        return name in modules
    if what in ("count", "numbers"):
        numbers = _numbers(name, modules)
        return len(numbers) if what == "count" else numbers
    if "{}" in name:
        return [_size(what, name.format(number), modules) for number in _numbers(name, modules)]
    return _size(what, name, modules)


def _numbers(name: str, modules: Modules) -> list[int]:
    before, _, after = name.partition("{}")
    texts = (key.removeprefix(before).removesuffix(after) for key in modules if key.startswith(before))
    return sorted({int(text) for text in texts if text.isdigit() and before + text + after in modules})


def _size(what: str, name: str, modules: Modules) -> int:
    if what not in DIMENSIONS:
        raise ValueError(f"{what} {name!r} says no size")
    if name not in modules or "weight" not in modules[name].views:
        shown = name.rpartition(":")[2]
        raise SizeUnknownError(f"the base has no {shown}, which tells how large the network is")
    size = modules[name].views["weight"].shape[DIMENSIONS[what]]
    return isqrt(size) if what == "root" else size
