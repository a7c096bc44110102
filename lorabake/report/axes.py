"""Arrange the outputs of a matrix as users look at them: strength across, style down, other axes as sections."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from lorabake.verification.many import VerifiedOutput

NOTHING = "–"
"""What an axis shows where an output has no value on it."""

Values: TypeAlias = dict[str, dict[str, None]]
"""Axis -> its values, both in the order of the recipe."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Hold outputs by their values on two axes; without `across` they are in no order but their own.

    `section` tells the values on all other axes; it is empty where there are none.
    """

    outputs: tuple[VerifiedOutput, ...]
    section: str = ""
    across: str = ""
    down: str = ""
    columns: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()

    def at(self, row: str, column: str) -> tuple[VerifiedOutput, ...]:
        """Return the outputs of a cell: one, or none where the matrix leaves it out."""
        return tuple(
            each for each in self.outputs if (_value(each, self.down), _value(each, self.across)) == (row, column)
        )


@dataclass(slots=True)
class Group:
    """Hold the outputs of one recipe with a matrix, or those of all recipes without: `title` is the recipe's file."""

    title: str
    grids: list[Grid] = field(default_factory=list)

    @property
    def outputs(self) -> list[VerifiedOutput]:
        """Return all outputs."""
        return [output for grid in self.grids for output in grid.outputs]


def groups(outputs: Iterable[VerifiedOutput]) -> list[Group]:
    """Part outputs by recipe, and arrange each part by its axes. What has no recipe is left out."""
    parts: dict[str, list[VerifiedOutput]] = {}
    for output in outputs:
        if output.recipe is not None:
            file = output.recipe.file
            parts.setdefault(str(file) if file and output.choices else "", []).append(output)
    return [Group(file.rsplit("/", 1)[-1], arranged(part)) for file, part in parts.items()]


def arranged(outputs: Sequence[VerifiedOutput]) -> list[Grid]:
    """Arrange outputs: the two longest axes across and down, and a section for each combination of the others.

    Numbers go across, as a strength does; else the longer axis does.
    """
    values: Values = {}
    for output in outputs:
        for axis, value in output.choices.items():
            values.setdefault(axis, {})[value] = None
    for output in outputs:
        for axis, own in values.items():
            if axis not in output.choices:
                own[NOTHING] = None
    axes = sorted((axis for axis, own in values.items() if len(own) > 1), key=lambda axis: -len(values[axis]))
    if len(axes) < 2:
        return [Grid(tuple(outputs), across="", down="", section="")]
    across, down = sorted(axes[:2], key=lambda axis: (not _are_numbers(values[axis]), -len(values[axis])))
    others = [axis for axis in values if axis in axes[2:]]
    sections: dict[str, list[VerifiedOutput]] = {}
    for output in outputs:
        section = ", ".join(f"{axis} {_value(output, axis)}" for axis in others)
        sections.setdefault(section, []).append(output)
    return [
        Grid(
            tuple(part),
            section,
            across,
            down,
            *(tuple(value for value in values[axis] if _is_in(part, axis, value)) for axis in (across, down)),
        )
        for section, part in sections.items()
    ]


def label(output: VerifiedOutput, outputs: Sequence[VerifiedOutput]) -> str:
    """Name an output among others that stand in no grid: by its value on their one axis, else by its own name."""
    told = {axis for each in outputs for axis in each.choices}
    differing = [axis for axis in told if len({_value(each, axis) for each in outputs}) > 1]
    return f"{differing[0]} {_value(output, differing[0])}" if len(differing) == 1 else output.name


def _value(output: VerifiedOutput, axis: str) -> str:
    return output.choices.get(axis, NOTHING)


def _is_in(outputs: Iterable[VerifiedOutput], axis: str, value: str) -> bool:
    return any(_value(output, axis) == value for output in outputs)


def _are_numbers(values: Mapping[str, None]) -> bool:
    try:
        return all(value == NOTHING or float(value) == float(value) for value in values)
    except ValueError:
        return False
