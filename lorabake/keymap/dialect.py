"""Dialects: how other libraries name the modules of transformers' language models, and how they order rows.

A dialect is a table, written once in `dialects/`. A base's modules get its names in addition to their own, so that a
LoRA's modules are looked up as usual. Rows in another order are reordered in the LoRA's tensors, never in the base:
all code that reads or changes a weight uses transformers' order only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from lorabake.keymap.module import Module
from lorabake.keymap.peft import PeftConfig
from lorabake.keymap.reading import numbered
from lorabake.keymap.slots import LoraTensors
from lorabake.tensors.checkpoint import Checkpoint

Config = Mapping[str, object]
"""What a config.json says."""

HALVES = ("gate", "up")
PARTS = ("q", "k", "v")


@dataclass(frozen=True, slots=True)
class Heads:
    """Count a model's heads: `queries` heads, in `groups` that each share one key and one value."""

    queries: int
    groups: int

    def parts(self, rows: int, *, by_group: bool) -> dict[str, tuple[range, ...]]:
        """Return the rows of q, k and v: one block each, or, with `by_group`, one in each group of heads.

        Raise ValueError if the rows cannot be divided that way.
        """
        per_group, rest = divmod(self.queries, self.groups)
        size, over = divmod(rows, self.queries + 2 * self.groups)
        if rest or over or not size:
            raise ValueError(f"{rows} rows are not those of {self.queries} heads in {self.groups} groups")
        bands, many = (self.groups, 1) if by_group else (1, self.groups)
        ends = [0, per_group * many * size, (per_group + 1) * many * size, (per_group + 2) * many * size]
        starts = [band * ends[3] for band in range(bands)]
        return {
            part: tuple(range(start + ends[i], start + ends[i + 1]) for start in starts)
            for i, part in enumerate(PARTS)
        }


@dataclass(frozen=True, slots=True)
class Part:
    """Name a part of a fused module: `q`, `k` or `v` (in blocks or by groups of heads), or a half, `gate` or `up`."""

    of: str
    part: str
    by_group: bool = False

    def rows(self, count: int, heads: Heads) -> tuple[range, ...]:
        """Return the part's rows in the fused module; raise ValueError if the rows cannot be divided that way."""
        if self.part in PARTS:
            return heads.parts(count, by_group=self.by_group)[self.part]
        if count % 2:
            raise ValueError(f"{count} rows have no halves")
        start = HALVES.index(self.part) * count // 2
        return (range(start, start + count // 2),)


@dataclass(frozen=True, slots=True)
class Naming:
    """Pair a library's names for one sort of model with transformers'; `{}` stands for a number.

    `paired` lists modules with their rows in pairs, as rotary embeddings use them; transformers has all first rows of
    a head's pairs before all second ones. Each is mapped to what counts its heads: `queries` or `groups`. `left_out`
    names tensors that transformers computes itself.
    """

    rows: tuple[tuple[str, str | Part], ...]
    paired: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    @property
    def needs_heads(self) -> bool:
        """Tell whether reading it needs the number of heads."""
        return bool(self.paired) or any(isinstance(place, Part) and place.part in PARTS for _, place in self.rows)

    def modules(self, known: Mapping[str, Module], heads: Heads) -> Iterator[Module]:
        """Yield a base's modules under this library's names; raise ValueError if the heads do not divide one."""
        alike: dict[str, list[tuple[tuple[str, ...], Module]]] = {}
        for name, module in known.items():
            template, numbers = _split(name)
            alike.setdefault(template, []).append((numbers, module))
        for name, place in self.rows:
            for numbers, module in alike.get(place.of if isinstance(place, Part) else place, ()):
                views = dict(module.views)
                if isinstance(place, Part):
                    views = {key: view.take(place.rows(view.rows, heads)) for key, view in views.items()}
                yield Module(module.component, name.format(*numbers), views)

    def theirs(self, name: str) -> str | None:
        """Return transformers' name of a module; None if it is unknown or only a part of a module there."""
        template, numbers = _split(name)
        place = next((place for own, place in self.rows if own == template), None)
        return place.format(*numbers) if isinstance(place, str) else None

    def order(self, name: str, rows: int, heads: Heads) -> tuple[range, ...]:
        """Return a module's rows in transformers' order; () if they are in it already.

        Raise ValueError if the heads do not divide the rows.
        """
        counted = self.paired.get(_split(name)[0])
        if counted is None:
            return ()
        count = int(getattr(heads, counted))
        size = rows // count
        if rows % count or size % 2 or not size:
            raise ValueError(f"its {rows} rows are not those of {count} heads")
        return tuple(range(start + i, start + size, 2) for start in range(0, rows, size) for i in (0, 1))


@dataclass(frozen=True, slots=True)
class Facts:
    """Hold what configurations say of a LoRA: naming, heads, rank and alpha, and which of q, k and v were trained."""

    naming: Naming
    heads: Heads | None
    config: PeftConfig
    trained: tuple[str, ...] = PARTS


@dataclass(frozen=True, slots=True)
class DialectLora:
    """Hold a LoRA before its translation; `name` is its name in the recipe, `base` the base's config.json."""

    name: str
    checkpoint: Checkpoint
    tensors: LoraTensors
    config: PeftConfig | None
    base: Config


@dataclass(frozen=True, slots=True)
class Dialect:
    """Hold one library's naming: `mark` matches keys of its LoRAs; `models` has a naming for each type of model.

    `read` reads the configurations of such a LoRA; it raises MatchError if they do not say how its rows are ordered.

    The keys of `models` are the library's names of model types, or "" for all types. `turned` names modules whose up
    and down are exchanged and transposed. `fused` maps modules that hold q, k and v, with low-rank factors of their
    own, to whether their rows are ordered by groups of heads.
    """

    title: str
    mark: str
    models: Mapping[str, Naming]
    read: Callable[[Dialect, DialectLora], Facts]
    turned: tuple[str, ...] = ()
    fused: Mapping[str, bool] = field(default_factory=dict)

    def speaks(self, keys: Iterator[str]) -> bool:
        """Tell whether a LoRA's keys are in this dialect."""
        return any(map(re.compile(self.mark).search, keys))


def heads_of(config: Config) -> Heads | None:
    """Read the number of heads in a config.json; return None if it lacks a clear one."""
    queries = config.get("num_attention_heads")
    groups = queries if config.get("num_key_value_heads") is None else config["num_key_value_heads"]
    if type(queries) is not int or type(groups) is not int or min(queries, groups) < 1:
        return None
    return Heads(queries, groups)


def _split(name: str) -> tuple[str, tuple[str, ...]]:
    """Split a name into its template and its numbers."""
    words = name.split(".")
    return numbered(words), tuple(word for word in words if word.isdigit())
