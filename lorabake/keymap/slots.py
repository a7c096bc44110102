"""Slots: sort a LoRA file's tensors by module and by role (up, down, alpha …), which the end of each key tells."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from lorabake.codecs.codec import Stored
from lorabake.keymap.names import WRAPPED
from lorabake.keymap.view import seen
from lorabake.tensors.header import TensorInfo
from lorabake.visible import short_repr

# A pattern for the end of a key, and the slot that such a tensor fills.
Suffix = tuple[str, str]

# Suffix -> kind, for kinds that this version cannot bake. They are refused by name, never skipped. If an adapter kind
# declares the same suffix, that kind wins.
UNSUPPORTED = (
    (r"\.oft_blocks\.\d+", "OFT in more than four parts"),
    (r"\.oft_r", "OFT of PEFT before 0.16"),
    (r"\.(?:lora_[AB]|up_list|down_list)\.\d+", "DyLoRA in blocks"),
    (r"\.(?:[qp]_layer\.weight|lambda_layer)", "T-LoRA"),
    (r"\.lora_(?:down|up)", "nunchaku's LoRA"),
    (r"\.___\.(?:layer\.W_(?:down|up)|alpha)", "HCP-Diffusion's LoRA"),
)

# Kind -> why it cannot be baked, and what helps.
REASONS = {
    "OFT of PEFT before 0.16": "PEFT before 0.16 laid OFT out otherwise, and today's cannot read it\n"
    "Merge it with the PEFT that trained it.",
    "DyLoRA in blocks": "DyLoRA's blocks as they are in training, before the trainer saves them as one LoRA\n"
    "Load it with the program that trained it, and save it as its scripts do.",
    "T-LoRA": "its rank depends on the timestep, and its change on where its training began: the file does not say",
    "nunchaku's LoRA": "nunchaku packs a LoRA for one kernel; bake the LoRA that it was made of",
    "HCP-Diffusion's LoRA": "HCP-Diffusion's scale cannot be told from the file\n"
    "Convert it with hcpdiff.tools.lora_convert (--to_webui), and bake that.",
}

# Endings of keys for parameters that are not called `weight` -> the parameter's full name and the suffix.
_PARAMETERS = ((".diff_m", ".modulation.diff"),)  # LightX2V

# A number in the module's name. No suffix needs a certain number before its last dot, so these may become 0.
_NUMBER_WITHIN = re.compile(r"(?<![a-zA-Z0-9])\d+(?=[^.]*\.)")


@dataclass(frozen=True, slots=True)
class LoraModule:
    """Hold a LoRA file's tensors for one module, by slot; the slots in `shared` also serve other modules."""

    __repr__ = short_repr

    name: str
    slots: Mapping[str, Stored]
    shared: frozenset[str] = frozenset()

    @property
    def size(self) -> int:
        """Count the tensors that belong to this module only."""
        return len(self.slots) - len(self.shared)

    @property
    def own_keys(self) -> list[str]:
        """List the keys of the tensors that belong to this module only."""
        return [info.key for slot, info in self.slots.items() if slot not in self.shared]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each slot's tensor."""
        return {slot: info.shape for slot, info in self.slots.items()}


@dataclass(frozen=True, slots=True)
class LoraTensors:
    """Hold a LoRA file's tensors: by module, unsupported ones by kind, and those whose key has no known form.

    `common` counts the tensors that several modules share. `unlike` pairs a shared tensor with a module's own copy of
    it that has another shape.
    """

    __repr__ = short_repr

    modules: Mapping[str, LoraModule]
    unsupported: Mapping[str, tuple[Stored, ...]]
    unknown: tuple[Stored, ...]
    common: int = 0
    unlike: tuple[tuple[Stored, Stored], ...] = ()


def sort_tensors(
    tensors: Iterable[TensorInfo], suffixes: tuple[Suffix, ...], shared: tuple[tuple[str, str, str], ...] = ()
) -> LoraTensors:
    """Read each key of a LoRA file as (module, slot), by the suffixes that the adapter kinds declare.

    `shared` describes tensors that modules share: a pattern of the key, the slot, and the slot of modules that need
    it.
    """
    slots: dict[str, dict[str, Stored]] = {}
    unsupported: dict[str, list[Stored]] = {}
    unknown: list[Stored] = []
    rows = (*suffixes, *UNSUPPORTED)
    row_of: dict[str, int | None] = {}
    modules_of: dict[str, str] = {}
    common, in_common = list[Stored](), re.compile("|".join(key for key, _, _ in shared) or r"(?!)")
    for info in map(seen, tensors):
        if in_common.fullmatch(info.key):
            common.append(info)
            continue
        key = info.key
        for ending, parameter in _PARAMETERS:
            key = key.removesuffix(ending) + parameter if key.endswith(ending) else key
        template = _NUMBER_WITHIN.sub("0", key)
        if template not in row_of:
            row_of[template] = _row_of(template, suffixes)
        row = row_of[template]
        match = _suffix(rows[row][0]).search(key) if row is not None else None
        if row is None or match is None or (row < len(suffixes) and not match.start()):
            unknown.append(info)
        elif row >= len(suffixes):
            unsupported.setdefault(rows[row][1], []).append(info)
        else:
            name = key[: match.start()]
            if name not in modules_of:
                modules_of[name] = WRAPPED.sub("", name)
            if slots.setdefault(modules_of[name], {}).setdefault(rows[row][1], info) is not info:
                unknown.append(info)
    borrowed: dict[str, set[str]] = {name: set() for name in slots}
    idle, unlike = [], []
    for info in common:
        needed = {by: slot for key, slot, by in shared if re.fullmatch(key, info.key)}
        takers = [(name, needed[by]) for name, own in slots.items() for by in needed.keys() & own.keys()]
        if not takers:
            idle.append(info)
        for name, slot in takers:
            if (own := slots[name].setdefault(slot, info)) is info:
                borrowed[name].add(slot)
            elif own.shape != info.shape:
                unlike.append((info, own))
    modules = {name: LoraModule(name, own, frozenset(borrowed[name])) for name, own in slots.items()}
    return LoraTensors(
        modules,
        {kind: tuple(infos) for kind, infos in unsupported.items()},
        (*unknown, *idle),
        len(common) - len(idle),
        tuple(unlike),
    )


def _row_of(key: str, suffixes: tuple[Suffix, ...]) -> int | None:
    """Return the number of the longest suffix that a key ends with; None if it has none."""
    match = _any_suffix(suffixes).search(key)
    return int(match.lastgroup.removeprefix("row")) if match and match.lastgroup else None


@cache
def _any_suffix(suffixes: tuple[Suffix, ...]) -> re.Pattern[str]:
    """Join all suffixes in one pattern. Its leftmost match up to the key's end is the longest suffix."""
    rows = enumerate((*suffixes, *UNSUPPORTED))
    return _suffix("|".join(f"(?P<row{row}>{suffix})" for row, (suffix, _) in rows))


@cache
def _suffix(suffix: str) -> re.Pattern[str]:
    where = r"(?:\A|(?=[.:]|_lora))"  # no suffix begins elsewhere, and trying every letter is slow
    return re.compile(rf"{where}(?:{suffix})\Z")
