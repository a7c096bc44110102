"""Find what the recipe ignores of a LoRA, by globs over the names of its modules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from lorabake.keymap.slots import LoraModule
from lorabake.matching.ledger import ignored_by
from lorabake.matching.names import BaseNames
from lorabake.matching.outcomes import Outcome
from lorabake.sources.loras import LoraSource


@dataclass(frozen=True, slots=True)
class Ignored:
    """Hold what is ignored, by which glob, and the globs that ignore nothing.

    `keys` are those of ignored tensors without a module, `kept` the modules that are not ignored.
    """

    globs: Mapping[str, str]
    idle: tuple[str, ...]
    keys: frozenset[str]
    kept: Mapping[str, LoraModule]

    def outcomes(self, lora: LoraSource) -> list[Outcome]:
        """Yield that each of them is left out."""
        modules = lora.tensors.modules
        sizes = {name: modules[name].size if name in modules else 1 for name in self.globs}
        return [Outcome(name, excluded={ignored_by(glob): sizes[name]}) for name, glob in self.globs.items()]


def ignored_of(lora: LoraSource, base: BaseNames) -> Ignored:
    """Find what the recipe ignores of a LoRA.

    A glob matches a module by its name in the file, by one of the base's names for it, or by the keys of all its
    tensors. A tensor without a module is matched by its key.
    """
    tensors = lora.tensors
    outside = {info.key: info for infos in (tensors.unknown, *tensors.unsupported.values()) for info in infos}
    first: dict[str, str] = {}
    idle = []
    for glob in lora.entry.ignore or ():
        matching = [key for key in outside if fnmatchcase(key, glob)]
        matching += [module.name for module in tensors.modules.values() if _matches(glob, module, base)]
        if not matching:
            idle.append(glob)
        for name in matching:
            first.setdefault(name, glob)
    kept = {name: module for name, module in tensors.modules.items() if name not in first}
    return Ignored(first, tuple(idle), frozenset(outside.keys() & first.keys()), kept)


def _matches(glob: str, module: LoraModule, base: BaseNames) -> bool:
    names = [module.name]
    for place in base.spelled.get(module.name, ()):
        own = [name for view in place.views.values() for name in base.names_at(view)]
        names += own + [f"{place.component}.{name}" for name in own]
    keys = module.own_keys
    return any(fnmatchcase(name, glob) for name in names) or (
        bool(keys) and all(fnmatchcase(key, glob) for key in keys)
    )
