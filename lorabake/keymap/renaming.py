"""Names on the disk and in memory: how a library renames tensors when it loads them.

PEFT names a LoRA's modules as they are called in memory. So a base's modules get the names in its file, and also the
names that any version of its library gives them in memory. A `Renaming` is a table, written once in `components/`. It
applies to the names of all tensors at once: forward if the file has the stored names, backward if it has the names in
memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

from lorabake.keymap.view import View, join

Named = dict[str, View]
"""All tensors of a base, by their names in one version."""

Pair = tuple[str, str]
"""A part of a name, and its replacement."""

_MOST_TEMPLATES = 300
"""Different names, numbers aside. A model with more of them is not identified by its names."""

_GUARD = re.compile(r"(\(\?<?![^()]*\))")
_SAMPLE = 8
"""How many tensors, of those whose names differ only in numbers, show how all of them are renamed."""
_TRANSFORMERS_OWN = {"query", "key", "value", "dense", "embed_out", "LayerNorm"}
"""Layer names that only transformers uses. `wq` and `wk` of Meta and Mistral have their rows in another order."""


@dataclass(frozen=True, slots=True)
class Rename:
    """Replace a part of a stored name by its counterpart in memory, at the first place where it occurs.

    `^` means the beginning of the name, and `{}` a number. In `stored`, `(?!a|b)` says what must not follow and
    `(?<!a)` what must not come before; inside these, `{}` is one digit. A part that ends in a letter or a digit
    matches only at the end of a word.
    """

    stored: str
    memory: str

    def of(self, model: str) -> Rename:
        """Return this with `{model}` filled in."""
        return Rename(self.stored.replace("{model}", model), self.memory)

    @property
    def forward(self) -> Pair:
        """Return the part of a stored name and its replacement in memory."""
        return self.stored, self.memory

    @property
    def backward(self) -> Pair:
        """Return the part of a name in memory and its replacement on the disk."""
        return _backward(self.stored, self.memory)


@dataclass(frozen=True, slots=True)
class Fused:
    """Say that one stored tensor is several in memory, with equally many rows; `apart` means the other way round."""

    whole: str
    parts: tuple[str, ...]
    apart: bool = False

    def forward(self, named: Named) -> Named:
        """Replace stored tensors by those in memory."""
        return self._joined(named) if self.apart else self._split(named)

    def backward(self, named: Named) -> Named:
        """Replace tensors in memory by the stored ones."""
        return self._split(named) if self.apart else self._joined(named)

    def _split(self, named: Named) -> Named:
        text = "\n".join(named)
        if not all(piece in text for piece in _pieces(self.whole)):
            return named
        tensors: Named = {}
        for name, view in named.items():
            pieces = [_replaced(name, self.whole, part) for part in self.parts]
            share, rest = divmod(view.rows, len(pieces))
            if name in pieces or rest or not view.shape:
                tensors[name] = view
                continue
            for part, piece in enumerate(pieces):
                tensors[piece] = view.take([range(part * share, (part + 1) * share)])
        return tensors

    def _joined(self, named: Named) -> Named:
        wholes: Named = {}
        taken: set[str] = set()
        text = "\n".join(named)
        for name in named if all(piece in text for piece in _pieces(self.parts[0])) else ():
            whole = _replaced(name, self.parts[0], self.whole)
            pieces = [_replaced(whole, self.whole, part) for part in self.parts]
            if whole != name and (view := join([named.get(piece) for piece in pieces])):
                wholes[whole] = view
                taken.update(pieces)
        return {name: view for name, view in named.items() if name not in taken} | wholes


@dataclass(frozen=True, slots=True)
class Renaming:
    """List what is renamed, in this order, in models with some `model_type` in config.json; with no `models`, in all.

    `{model}` in `stored` stands for the model type. `whole` means only whole models, not models that are parts of
    others. `below` lists the paths that such a part may have. `fused` applies after `renames`, to names in memory.
    """

    models: tuple[str, ...]
    renames: tuple[Rename, ...] = ()
    fused: tuple[Fused, ...] = ()
    below: tuple[str, ...] = ("",)
    whole: bool = False

    def of(self, models: Sequence[str]) -> list[Renaming]:
        """Return this for a model of the first type with parts of the other types; [] if it concerns none of them."""
        candidates = models[:1] if self.whole else models
        about = [model for model in candidates if model in self.models] if self.models else [""]
        texts = dict.fromkeys(tuple(rename.of(model) for rename in self.renames) for model in about)
        return [replace(self, renames=renames) for renames in texts]

    def could_give(self, text: str) -> bool:
        """Tell whether a text may contain a name that this makes, which ends in the last word of one side."""
        sides = [side for rename in self.renames for side in (rename.stored, rename.memory)]
        sides += [side for fused in self.fused for side in (fused.whole, *fused.parts)]
        return any(word in text for word in map(_last_word, sides))

    def forward(self, named: Named) -> list[Named]:
        """List a base's tensors by their names in memory: one result for each path below which something changes."""
        return self._changed(named, self.below, self._to_memory)

    def backward(self, named: Named) -> list[Named]:
        """List a base's tensors by their names on the disk, in the same way.

        A whole model and a part of another look alike here, so the path "" counts only if no other path does.
        """
        parts = [path for path in self.below if path]
        return self._changed(named, parts, self._to_disk) or self._changed(named, self.below, self._to_disk)

    def _changed(self, named: Named, paths: Iterable[str], rename: Callable[[Named, str], Named]) -> list[Named]:
        others = (rename(named, path) for path in paths)
        return [other for other in others if other is not named and other != named]

    def _to_memory(self, named: Named, path: str) -> Named:
        named = _renamed(named, path, [rename.forward for rename in self.renames])
        for fused in self.fused:
            named = fused.forward(named)
        return named

    def _to_disk(self, named: Named, path: str) -> Named:
        for fused in reversed(self.fused):
            named = fused.backward(named)
        return _renamed(named, path, [rename.backward for rename in reversed(self.renames)])


def versions(own: Named, renamings: Iterable[Renaming], models: Sequence[str]) -> list[Named]:
    """List a base's tensors by their names in every version except the file's own.

    `models` are the model types in config.json.
    """
    known = [own]
    for renaming in (read for general in renamings for read in general.of(models)):
        for named in tuple(known):
            for other in renaming.forward(named) or renaming.backward(named):
                if other not in known:
                    known.append(other)
    return known[1:]


def _renamed(named: Named, path: str, pairs: Sequence[Pair]) -> Named:
    """Rename what follows a path; drop a name that two different tensors would get."""
    names = [*named]
    below = [place for place, name in enumerate(names) if name.startswith(path)]
    own = rests = [names[place][len(path) :] for place in below]
    text = "\n".join(rests)
    for old, new in pairs:
        if all(piece in text for piece in _pieces(old)):  # otherwise no name contains it
            rests = [_replaced(rest, old, new) for rest in rests]
            text = "\n".join(rests)
    if rests == own:
        return named
    for place, rest in zip(below, rests, strict=True):
        names[place] = path + rest
    tensors: Named = {}
    twice = set()
    for name, view in zip(names, named.values(), strict=True):
        if tensors.setdefault(name, view) != view:
            twice.add(name)
    return {name: view for name, view in tensors.items() if name not in twice}


def models_called(own: Named, renamings: Sequence[Renaming], wanted: Iterable[str]) -> tuple[str, ...]:
    """Return the model type that gives a base's tensors the most wanted names; () if they have all of them already.

    Numbers and the path to the model itself are ignored. The result has several types if they place the wanted names
    differently. A type is left out if it renames layers whose rows another library may order differently.
    """
    alike: dict[str, list[str]] = {}
    for name in own:
        alike.setdefault(_template(name), []).append(name)
    has, templates = _Ends(alike), {_template(name) for name in wanted}
    missing = _Ends(name for name in templates if name not in has)
    if not missing.names or len(alike) > _MOST_TEMPLATES:
        return ()
    sample = {name: own[name] for names in alike.values() for name in names[:_SAMPLE]}
    by_count: dict[int, dict[frozenset[tuple[str, View]], str]] = {}
    for chain, model in _chains(tuple(renamings)).items():
        if not any(renaming.could_give(missing.text) for renaming in chain):
            continue
        named = [pair for other in versions(sample, chain, (model,)) for pair in other.items()]
        if all(_is_one_layer(name, view.regions[0].key) for name, view in named):
            given = _Ends({_template(name) for name, _ in named})
            placed = frozenset(pair for pair in named if _template(pair[0]) in missing)
            by_count.setdefault(sum(name in given for name in missing.names), {}).setdefault(placed, model)
    best = max(by_count, default=0)
    return tuple(by_count[best].values()) if best else ()


@cache
def _chains(renamings: tuple[Renaming, ...]) -> dict[tuple[Renaming, ...], str]:
    """Map what is renamed in some model type, in order, to the first of the model types in which it is all."""
    chains: dict[tuple[Renaming, ...], str] = {}
    for model in dict.fromkeys(model for renaming in renamings for model in renaming.models):
        chains.setdefault(tuple(read for renaming in renamings for read in renaming.of((model,))), model)
    return chains


def _template(name: str) -> str:
    return ".".join("{}" if word.isdigit() else word for word in name.split("."))


class _Ends:
    """Tell whether a name is in a set, also if one of the two has a path to the model in front."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = frozenset(names)
        self._ends = {end for name in self.names for end in _ends(name)}

    def __contains__(self, name: str) -> bool:
        return name in self._ends or any(end in self.names for end in _ends(name))

    @property
    def text(self) -> str:
        """Return all names as one text."""
        return "\n".join(self.names)


def _ends(name: str) -> Iterator[str]:
    """Yield a name, and the rest of it after each of its dots."""
    yield name
    yield from (name[match.end() :] for match in re.finditer(r"\.", name))


@cache
def _backward(stored: str, memory: str) -> Pair:
    stored = _GUARD.sub("", stored)
    start = "^" if stored.startswith("^") else ""
    return start + memory, stored.removeprefix("^")


@cache
def _last_word(text: str) -> str:
    return re.split(r"[.^]|\{\}", _GUARD.sub("", text).rstrip(".^{}"))[-1]


def _is_one_layer(name: str, key: str) -> bool:
    """Tell whether a layer has the same last word as in the file, or a word there that only transformers uses."""
    last, stored = (path.rpartition(".")[2] for path in (name.rpartition(".")[0], key.rpartition(".")[0]))
    return last == stored or stored in _TRANSFORMERS_OWN


def _replaced(name: str, old: str, new: str) -> str:
    """Replace the first `old` by `new`, unless `new` is there already."""
    match = _compiled(old).search(name)
    if match is None:
        return name
    for number in match.groups():
        new = new.replace("{}", number, 1)
    if len(new) > len(match[0]) and name.startswith(new, match.start()):
        return name
    return name[: match.start()] + new + name[match.end() :]


@cache
def _pieces(text: str) -> tuple[str, ...]:
    """Return the literal pieces that every name matching `text` contains."""
    return tuple(filter(None, re.split(r"\{\}", _GUARD.sub("{}", text).removeprefix("^"))))


@cache
def _compiled(text: str) -> re.Pattern[str]:
    start = "^" if text.startswith("^") else ""
    pieces = _GUARD.split(text.removeprefix("^"))
    pattern = "".join(_guard(piece) if i % 2 else _literal(piece) for i, piece in enumerate(pieces))
    return re.compile(start + pattern + (r"(?!\w)" if text[-1:].isalnum() else ""))


def _guard(text: str) -> str:
    return text.replace(".", r"\.").replace("{}", r"\d")


def _literal(text: str) -> str:
    return re.escape(text).replace(r"\{\}", r"(\d+)")
