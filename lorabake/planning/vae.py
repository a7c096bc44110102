"""Replace the base's VAE by another one: tensor for tensor, in the base's dtypes."""

from __future__ import annotations

import re
from collections import Counter

from lorabake.codecs.codec import Stored
from lorabake.codecs.plain import plain
from lorabake.errors import FileError
from lorabake.planning.checks import is_readable
from lorabake.planning.storage import Storage
from lorabake.sources import Sources
from lorabake.tensors.dtypes import is_output
from lorabake.visible import counted


def replaced_by_vae(sources: Sources, storage: Storage) -> tuple[dict[str, Stored], list[str]]:
    """Map each VAE tensor of the base to its replacement, and note which tensors of the VAE have no place.

    Raise FileError for a VAE that does not fit, or lacks tensors.
    """
    vae, vae_map = sources.vae, sources.vae_map
    if vae is None or vae_map is None:
        return {}, []
    key_map = sources.key_map
    if "vae" not in key_map.modules:
        raise FileError(f"{vae.path}: the base has no VAE that it could replace")
    replaced: dict[str, Stored] = {}
    used = set()
    for name, module in key_map.modules["vae"].items():
        other = vae_map.modules["vae"].get(name)
        for parameter, view in module.views.items():
            key = view.regions[0].key
            source = other.views.get(parameter) if other else None
            if source is None:
                continue
            info = plain(vae.tensors[source.regions[0].key])
            _check_fits(sources, storage, key, info)
            replaced[key] = info
            used.add(info.key)
    wanted = [key for key, owner in key_map.owner.items() if owner == "vae"]
    missing = [key for key in wanted if key not in replaced and key not in storage.decoded]
    if missing:
        raise FileError(f"{vae.path}: lacks {len(missing)} of the {len(wanted)} tensors of a VAE: {missing[0]} …")
    left = Counter(re.sub(r"\d+", "N", key) for key in vae.tensors if key not in used)
    if not left:
        return replaced, []
    return replaced, [f"of the VAE file these have no place in the base: {counted(dict(left.most_common(5)))}"]


def _check_fits(sources: Sources, storage: Storage, key: str, info: Stored) -> None:
    """Raise FileError if a VAE's tensor cannot become the base's tensor `key`."""
    vae, base, key_map = sources.vae, sources.base, sources.key_map
    if vae is None:
        return
    if key in storage.kept:
        way = key_map.tensors[key].dtype if key in key_map.tensors else "codes"
        raise FileError(
            f"{vae.path}: cannot take the place of the base's VAE, whose {key} is stored as {way}",
            "Make it a plain one with output.dtype (such as {vae: float32}).",
        )
    if _squeezed(info.shape) != _squeezed(base.tensors[key].shape):
        shapes = f"{info.shape}, the base's is {base.tensors[key].shape}"
        raise FileError(f"{vae.path}: {info.name} is {shapes}: a VAE of another model?")
    dtype = base.tensors[key].dtype
    if info.dtype != dtype and not (is_readable(info) and is_output(dtype)):
        raise FileError(f"{vae.path}: {info.name} is {info.dtype}, and cannot become the base's {dtype}")


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)
