"""Take this machine's folders out of a verification: a report is read elsewhere, and by strangers.

A path below the recipe's folder is told from there, an input as the recipe writes it, any other by its name alone.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from copy import copy
from dataclasses import fields, is_dataclass, replace
from functools import cached_property
from os.path import normpath, realpath
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import lorabake
from lorabake.errors import FileError
from lorabake.verification.findings import Verification

if TYPE_CHECKING:
    from lorabake.matching.ledger import Ledger
    from lorabake.recipe import Recipe
    from lorabake.verification.many import VerifiedBatch, VerifiedOutput

T = TypeVar("T")


def portable(verification: Verification, folder: Path | None = None) -> Verification:
    """Return a verification whose texts hold no absolute path that is known here; `folder` is the report's."""
    places = _Places(verification, folder)
    plan = verification.plan
    return replace(
        verification,
        baked=Path(places.plain(str(verification.baked.absolute()))),
        recipe=places.told(verification.recipe),
        findings=places.told(verification.findings),
        effects=places.told(verification.effects),
        tensors=places.told(verification.tensors),
        samples=places.told(verification.samples),
        digests=places.told(verification.digests),
        failures=places.told(verification.failures),
        environment=places.told(verification.environment),
        plan=plan and replace(plan, ledgers=tuple(map(places.told_of, plan.ledgers)), notes=places.told(plan.notes)),
    )


def portable_batch(batch: VerifiedBatch, folder: Path | None = None) -> VerifiedBatch:
    """Return a batch whose errors hold no absolute path that is known here; its findings are portable already."""
    return replace(batch, outputs=tuple(_portable_error(output, folder) for output in batch.outputs))


def _portable_error(output: VerifiedOutput, folder: Path | None) -> VerifiedOutput:
    if output.error is None:
        return output
    recipe = output.recipe
    path = recipe.locate(recipe.output.path) if recipe else Path(output.name)
    places = _Places(Verification(path, "", (), {}), folder, recipe)
    told = copy(output.error)
    told.args = tuple(map(places.plain, told.args))
    return replace(output, error=told)


class _Places:
    """Know the paths that may stand in a verification's texts, and what to write instead."""

    def __init__(self, verification: Verification, folder: Path | None, recipe: Recipe | None = None) -> None:
        self.verification, self.folder = verification, folder
        self.recipe = verification.plan.sources.recipe if verification.plan else recipe

    def told(self, value: T) -> T:
        """Return a value, which may be a record or hold others, with portable texts."""
        match value:
            case str() if type(value) is str:
                return self.plain(value)  # type: ignore[return-value]
            case Mapping():
                return {self.told(key): self.told(inner) for key, inner in value.items()}  # type: ignore[return-value]
            case tuple() | list():
                return type(value)(map(self.told, value))
        if is_dataclass(value) and not isinstance(value, type):
            return replace(value, **{each.name: self.told(getattr(value, each.name)) for each in fields(value)})
        return value

    def told_of(self, ledger: Ledger) -> Ledger:
        """Return a ledger with portable texts; its counts are of no paths."""
        return replace(ledger, lora=self.plain(ledger.lora), notes=self.told(ledger.notes))

    def plain(self, text: str) -> str:
        """Write the paths of one text as somebody elsewhere would know them."""
        return self._pattern.sub(self._instead, text) if "/" in text else text

    def _instead(self, match: re.Match[str]) -> str:
        path, stroke = match.groups()
        if path in self._names:
            return self._names[path] + stroke
        if stroke:
            return ""
        return "." if path in self._start else Path(path).name

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        """Match a known path, the longest first, and the stroke after it; nothing inside another name or path."""
        known = sorted({*self._names, *self._start, *self._folders} - {"/"}, key=lambda path: (-len(path), path))
        return re.compile(rf"(?<![\w./~\\-])({'|'.join(map(re.escape, known))})(?![\w-]|\.\w)(/?)")

    @cached_property
    def _names(self) -> dict[str, str]:
        """Map paths to the names that they have in the recipe; the user's own folder has one everywhere."""
        named = [(Path.home(), "~"), *(_named(self.recipe) if self.recipe else ())]
        return {path: name for given, name in named for path in _spelled(given)}

    @cached_property
    def _start(self) -> set[str]:
        """Return the folder that paths are told from: the recipe's, or else the current one."""
        return {*_spelled(self.recipe.folder if self.recipe else Path.cwd())}

    @cached_property
    def _folders(self) -> set[str]:
        """Collect the folders that go unsaid: those of inputs, the report, installed programs and this session."""
        files = [*map(Path, self._names), self.verification.baked.absolute()]
        used = [*(path.parent for path in files), Path.cwd(), Path(tempfile.gettempdir())]
        used += [self.folder.absolute().parent] if self.folder else []
        used += [Path(lorabake.__file__).parent.parent, Path(sys.prefix), Path(sys.base_prefix)]
        used += [Path(path) for path in sys.path if path.startswith("/")]
        folders = {path for folder in used for path in _spelled(folder)}
        return {path for path in folders if not any(Path(path).is_relative_to(start) for start in self._start)}


def _named(recipe: Recipe) -> Iterator[tuple[Path, str]]:
    """Yield the paths that a recipe writes, each with a name that says nothing of this machine."""
    for source in recipe.inputs:
        with suppress(FileError):  # an address that was not fetched
            yield recipe.locate(source), source.portable_path
    others = [recipe.output.path]
    others += [path for path in (recipe.verify.config, recipe.verify.tokenizers) if path] if recipe.verify else []
    for path in others:
        yield recipe.locate(path), Path(path).name if Path(path).is_absolute() else path


def _spelled(path: Path) -> Iterator[str]:
    """Yield the ways in which one path may be written."""
    yield from (str(path), normpath(path), realpath(path))
