"""How the output stores the base's weights: which dtype each gets, which are decoded, and which stay as they are."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from lorabake.codecs.codec import Stored
from lorabake.codecs.plain import plain
from lorabake.errors import FileError
from lorabake.sources import Sources
from lorabake.storage.kept import Change, is_under
from lorabake.storage.packing import Packing
from lorabake.tensors.dtypes import is_output, named
from lorabake.tensors.header import TensorInfo


@dataclass(frozen=True, slots=True)
class Storage:
    """Say what becomes of weights that are no plain floats in the base.

    `decoded` maps every tensor that is part of a weight to be decoded to that weight; `grown` are those that a LoRA
    widens. `plain` are the weights that were stored otherwise and become plain ones, `kept` those that stay as they
    are stored, and `encoded` those of them that can be changed nevertheless. `changes` says of each component, by its
    folder, which layers become plain, by their own names.
    """

    decoded: Mapping[str, Stored]
    grown: Mapping[str, Stored]
    plain: frozenset[str]
    kept: frozenset[str]
    encoded: Mapping[str, Stored]
    changes: Mapping[str, Change]

    @property
    def change(self) -> Change:
        """Say of all components which layers become plain."""
        changes = self.changes.values()
        plain = dict.fromkeys(name for change in changes for name in change.plain)
        return Change(tuple(plain), is_partial=any(change.is_partial for change in changes))

    def stored(self, infos: Iterable[TensorInfo]) -> Iterator[Stored]:
        """Put decoded weights in the place of the first of their parts; what says how they were stored goes."""
        for info in infos:
            weight = self.decoded.get(info.key)
            if weight is None:
                if not info.key.endswith("scaled_fp8") or not self._is_over(info.key):
                    yield plain(info)
            elif info.key == weight.first.key:
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
    for weight in packing.known:
        if dtype_of(sources, weight) != weight.dtype:
            decoded |= dict.fromkeys((part.key for part in weight.parts.values()), weight)
        elif not weight.can_stay:
            raise FileError(f"{weight.file}: {weight.key} is packed ({weight.dtype})", weight.codec.why_not)
    plain_ones = frozenset(weight.key for weight in decoded.values() if weight.key not in grown)
    kept = frozenset({*packing.packed, *packing.scaled, *packing.strange} - plain_ones)
    encoded = {key: weight for key, weight in packing.scaled.items() if key in kept}
    return Storage(decoded, grown, plain_ones, kept, encoded, _changes(sources, decoded, plain_ones, kept))


def _changes(
    sources: Sources, decoded: Mapping[str, Stored], plain: Collection[str], kept: frozenset[str]
) -> dict[str, Change]:
    packing = sources.packing
    layers = {key: info.name.removesuffix(".weight") for key, info in decoded.items() if info.key in plain}
    stored = {key for weight in packing.known if weight.key in kept for key in weight.keys}
    stored.update(*(packing.strange[key].parts for key in kept & packing.strange.keys()))
    changes = {}
    for part in sources.base.parts:
        keys = [info.key for header in part.files for info in header.tensors.values()]
        own = tuple(dict.fromkeys(layers[key] for key in keys if key in layers))
        changes[part.folder] = Change(own, is_partial=not stored.isdisjoint(keys))
    return changes


def dtype_of(sources: Sources, weight: Stored) -> str:
    """Return a weight's output dtype: only weights are cast, and of a known family only its networks'."""
    wanted, packing = sources.recipe.output.dtype, sources.packing
    owner = sources.key_map.owner.get(weight.key)
    if isinstance(wanted, dict):
        wanted = wanted.get(owner or "", "keep")
    if weight.key in packing.grown:
        weight = plain(weight.first)
    if wanted == "keep" or not weight.nbytes or owner is None or is_fixed(packing, weight):
        return weight.dtype
    if not is_output(weight.dtype) and weight.key not in packing.scaled and weight.tensor is not None:
        return weight.dtype
    return named(wanted).name


def is_fixed(packing: Packing, weight: Stored) -> bool:
    """Tell whether a tensor stays as it is: a part of a stored weight, or one that cannot be decoded."""
    return weight.key in packing.strange or (weight.key in packing.fixed and weight.tensor is not None)
