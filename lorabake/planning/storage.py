"""How the output stores the base's weights: which dtype each gets, which are decoded, and which stay as they are."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from lorabake.errors import FileError
from lorabake.sources import Sources
from lorabake.storage.statements import Change, is_under
from lorabake.tensors.dtypes import is_output, named
from lorabake.tensors.header import TensorInfo
from lorabake.tensors.packing import PackedInfo, Packing

NAME_A_DTYPE = (
    "Packed weights are decoded, and not packed again: say what they become with output.dtype (such as bfloat16)."
)


@dataclass(frozen=True, slots=True)
class Storage:
    """Say what becomes of weights that are no plain floats in the base.

    `decoded` maps every tensor that is part of a weight to be decoded to that weight; `grown` are those that a LoRA
    widens. `plain` are the weights that were stored otherwise and become plain ones, `kept` those that stay as they
    are stored. `changes` says of each component, by its folder, which layers become plain, by their own names.
    """

    decoded: Mapping[str, PackedInfo]
    grown: Mapping[str, PackedInfo]
    plain: frozenset[str]
    kept: frozenset[str]
    changes: Mapping[str, Change]

    @property
    def change(self) -> Change:
        """Say of all components which layers become plain."""
        changes = self.changes.values()
        plain = dict.fromkeys(name for change in changes for name in change.plain)
        return Change(tuple(plain), is_partial=any(change.is_partial for change in changes))

    def stored(self, infos: Iterable[TensorInfo]) -> Iterator[TensorInfo]:
        """Put decoded weights in the place of the first of their parts; what says how they were stored goes."""
        for info in infos:
            weight = self.decoded.get(info.key)
            if weight is None:
                if not info.key.endswith("scaled_fp8") or not self._is_over(info.key):
                    yield info
            elif info.key == next(iter(weight.parts.values())).key:
                yield weight

    def _is_over(self, marker: str) -> bool:
        """Tell whether a marker speaks of weights that were scaled, and of none that still is."""
        plain, stored = (any(is_under(key, marker) for key in keys) for keys in (self.plain, self.kept))
        return plain and not stored


def storage_of(sources: Sources, touched: Collection[str]) -> Storage:
    """Choose how weights are stored; raise FileError for one that no SafeTensors could hold as it is."""
    packing = sources.packing
    grown = {key: info for key, info in packing.grown.items() if key in touched}
    decoded = dict(grown)
    for key, info in (*packing.packed.items(), *packing.scaled.items()):
        stored = info.parts["weight"] if key in packing.scaled else info
        if dtype_of(sources, key, stored) != stored.dtype:
            decoded |= dict.fromkeys((part.key for part in info.parts.values()), info)
        elif isinstance(sources.base.tensors.get(key), PackedInfo):
            raise FileError(f"{info.file}: {key} is packed ({info.dtype})", f"{NAME_A_DTYPE}")
    plain = frozenset(info.key for info in decoded.values() if info.key not in grown)
    kept = frozenset({*packing.packed, *packing.scaled, *packing.strange} - plain)
    return Storage(decoded, grown, plain, kept, _changes(sources, decoded, plain, kept))


def _changes(
    sources: Sources, decoded: Mapping[str, PackedInfo], plain: Collection[str], kept: frozenset[str]
) -> dict[str, Change]:
    packing = sources.packing
    layers = {key: info.name.removesuffix(".weight") for key, info in decoded.items() if info.key in plain}
    infos = (packing.packed.get(key) or packing.scaled.get(key) for key in kept)
    stored = {part.key for info in infos if info is not None for part in info.parts.values()}
    stored.update(*(packing.strange[key].parts for key in kept & packing.strange.keys()))
    changes = {}
    for part in sources.base.parts:
        keys = [info.key for header in part.files for info in header.tensors.values()]
        own = tuple(dict.fromkeys(layers[key] for key in keys if key in layers))
        changes[part.folder] = Change(own, is_partial=not stored.isdisjoint(keys))
    return changes


def dtype_of(sources: Sources, key: str, base: TensorInfo) -> str:
    """Return a tensor's output dtype: only weights are cast, and of a known family only its networks'."""
    wanted, packing = sources.recipe.output.dtype, sources.packing
    owner = sources.key_map.owner.get(key)
    if isinstance(wanted, dict):
        wanted = wanted.get(owner or "", "keep")
    if isinstance(base, PackedInfo) and key in packing.grown:
        return dtype_of(sources, key, base.parts["weight"])
    if wanted == "keep" or not base.nbytes or owner is None or is_fixed(packing, key, base):
        return base.dtype
    if not is_output(base.dtype) and key not in packing.scaled and not isinstance(base, PackedInfo):
        return base.dtype
    return named(wanted).name


def is_fixed(packing: Packing, key: str, info: TensorInfo) -> bool:
    """Tell whether a tensor stays as it is: a part of a stored weight, or one that cannot be decoded."""
    return key in packing.strange or (key in packing.fixed and not isinstance(info, PackedInfo))
