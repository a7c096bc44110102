"""Read a table: find the row that a tensor's name belongs to, and the tensor's names in each layout."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from lorabake.keymap.table import Bare, Name, Row


@dataclass(frozen=True, slots=True)
class Match:
    """Hold where a table names a base tensor: the rows from the top, the numbers, the part and the parameter."""

    path: tuple[Row, ...]
    numbers: tuple[str, ...]
    part: int | None
    rest: str
    parameter: str

    @property
    def row(self) -> Row:
        """Return the row that names the tensor."""
        return self.path[-1]

    def is_bare(self, column: int) -> bool:
        """Tell whether the layout's name for it is a whole tensor key."""
        return isinstance(self.row.names[column], Bare)

    def key(self, column: int, path: str) -> str:
        """Return the key of this parameter of a module that one layout calls `path`."""
        leaf = self.row.names[column]
        if isinstance(leaf, Bare):
            return path
        return f"{path}{'_' if str(leaf).endswith('_@') else '.'}{self.parameter}"

    def sibling(self, key: str) -> str:
        """Return the key of the weight beside a bias."""
        return key[: -len("bias")] + "weight" if self.parameter == "bias" else key

    def spell(self, column: int) -> Iterator[tuple[str, int, int]]:
        """Yield (module name, part, parts) for each of the layout's names that means this tensor or a part of it."""
        leaf = self.row.names[column]
        if isinstance(leaf, tuple) and self.part is None:
            for part, name in enumerate(leaf):
                yield self._join(column, name), part, len(leaf)
        elif isinstance(leaf, tuple) and self.part is not None:
            yield self._join(column, leaf[self.part]), 0, 1
        elif self.part is None:
            yield self._join(column, leaf), 0, 1
            parts = next((len(name) for name in self.row.names if isinstance(name, tuple)), 0)
            for part in range(parts):
                yield f"{self._join(column, leaf)}.{part}", part, parts
        else:
            yield f"{self._join(column, leaf)}.{self.part}", 0, 1

    def fused(self, column: int) -> tuple[str, int, int] | None:
        """Return (module name, part, parts) if the layout fuses this tensor with others; None otherwise."""
        if self.part is None or isinstance(self.row.names[column], tuple):
            return None
        parts = next(len(name) for name in self.row.names if isinstance(name, tuple))
        return self._join(column, self.row.names[column]), self.part, parts

    def glued(self, column: int) -> Iterator[str]:
        """Yield the module's name if the parameter is part of the last word: `in_proj` of `in_proj_weight`."""
        leaf = self.row.names[column]
        if isinstance(leaf, str) and leaf.endswith("_@"):
            yield self._join(column, leaf)

    def _join(self, column: int, leaf: Name) -> str:
        pieces = [row.names[column] for row in self.path[:-1]] + [leaf] + ([self.rest] if self.rest else [])
        template = ".".join(str(piece) for piece in pieces if piece)
        template = template.removesuffix("_@").removesuffix(".@")
        for number in self.numbers:
            template = template.replace("{}", number, 1)
        return template


class Reader:
    """Look up tensor names of one layout in a table. The longest path wins, then the one with the fewest `{}`.

    Templates with a `{}` inside a word (`block{}`) are tried last.
    """

    def __init__(self, rows: tuple[Row, ...], layout: int, layouts: int) -> None:
        self.layouts = layouts
        self.index: dict[str, tuple[Row, int | None, str | None, Reader | None]] = {}
        for row in rows:
            name = row.names[layout]
            below = Reader(row.rows, layout, layouts) if row.rows else None
            for part, part_name in enumerate(name) if isinstance(name, tuple) else ((None, name),):
                for template, parameter in _parameters(part_name):
                    self.index[template] = (row, part, parameter, below)
        self.numbered: dict[str, list[tuple[str, list[str]]]] = {}
        self.inside: list[tuple[str, list[str]]] = []
        for template in sorted(self.index, key=lambda template: template.count("{}")):
            holes = template.split(".")
            if any("{}" in hole and hole != "{}" for hole in holes):
                self.inside.append((template, holes))
            else:
                self.numbered.setdefault(numbered(holes), []).append((template, holes))
        self.lengths = sorted({template.count(".") + 1 for template in self.index}, reverse=True)

    def matches(self, key: str) -> Iterator[Match]:
        """Yield the match of a tensor name; nothing for other parameters of a module that some layout splits."""
        match = self._walk(key.split("."), (), ())
        if match is None:  # no row names it, so it keeps its own name in every layout
            module, _, parameter = key.rpartition(".")
            if parameter not in ("weight", "bias"):
                yield Match((Row((Bare(key),) * self.layouts),), (), None, "", "weight")
            elif module:
                yield Match((Row((module,) * self.layouts),), (), None, "", parameter)
        elif match.parameter:
            yield match

    def _templates(self, words: list[str], marked: str) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Yield the templates that fit these words, and what fills their `{}`; those with the fewest first.

        `marked` are the words as a template.
        """
        for template, holes in self.numbered.get(marked, ()):
            if template == marked or all(hole in ("{}", word) for hole, word in zip(holes, words, strict=True)):
                yield template, tuple([word for hole, word in zip(holes, words, strict=True) if hole == "{}"])
        for template, holes in self.inside:
            if len(holes) == len(words) and (numbers := _numbers(template, words)) is not None:
                yield template, numbers

    def _walk(self, words: list[str], path: tuple[Row, ...], numbers: tuple[str, ...]) -> Match | None:
        marks = [_marked(word) for word in words]
        for length in (length for length in self.lengths if length <= len(words)):
            head, tail = words[:length], words[length:]
            for template, own in self._templates(head, ".".join(marks[:length])):
                row, part, parameter, below = self.index[template]
                captured = numbers + own
                if below is not None and (match := below._walk(tail, (*path, row), captured)):
                    return match
                if parameter is not None:
                    return Match((*path, row), captured, part, "", parameter) if not tail else None
                if tail and tail[-1] in ("weight", "bias"):
                    return Match((*path, row), captured, part, ".".join(tail[:-1]), tail[-1])
                itself = Row((Bare(".".join(tail)),) * self.layouts)
                is_cut = any(isinstance(name, tuple) for name in row.names)
                return Match((*path, row, itself), captured, None, "", "" if is_cut else "weight")
        return None


def numbered(words: list[str]) -> str:
    """Return the template of a name, with `{}` for each word that is a number."""
    return ".".join(map(_marked, words))


def _marked(word: str) -> str:
    return "{}" if word.isdigit() else word


def _numbers(template: str, words: list[str]) -> tuple[str, ...] | None:
    """Return the numbers that fill the `{}` inside the words of a template; None if the words do not fit it."""
    match = re.fullmatch(re.escape(template).replace(r"\{\}", r"(\d+)"), ".".join(words))
    return match and match.groups()


def _parameters(name: str) -> Iterator[tuple[str, str | None]]:
    if isinstance(name, Bare):
        yield str(name), "weight"
    elif "@" in name:
        for parameter in ("weight", "bias"):
            yield name.replace("@", parameter), parameter
    else:
        yield name, None
