"""Lay out the files of an output whose layout is not the base's: which tensors, by which names, in which files.

Every tensor of the base is in the output, or is named in a note as left out, or stops the plan.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from lorabake.codecs.codec import Stored
from lorabake.components.outside import OUTSIDE
from lorabake.errors import FileError
from lorabake.keymap.names import patterns
from lorabake.keymap.rewriting import NoPlaceError, Rewritten, rewritten
from lorabake.keymap.table import Component
from lorabake.keymap.view import View
from lorabake.planning.files import Draft, index_name
from lorabake.planning.layout import ComponentPlace, OutputLayout
from lorabake.planning.rebuilt import Rebuilt, rebuilt
from lorabake.planning.steps import Target, whole
from lorabake.planning.storage import Storage, dtype_of, is_fixed
from lorabake.sources import Sources
from lorabake.tensors.checkpoint import Part
from lorabake.tensors.dtypes import DTYPES

KEEP = "Remove output.layout: the output then has the base's names and form."


@dataclass(frozen=True, slots=True)
class LaidOut:
    """Hold the files with weights, the indexes of those that are cut, and what is to be told of them."""

    drafts: tuple[Draft, ...]
    indexes: Mapping[str, str]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Content:
    """Hold the weights of one component, by their names below it in the layout `here`, and where they go.

    `left_out` are those that the new layout lacks. What is here may be the base's, or another checkpoint's.
    """

    place: ComponentPlace
    component: Component
    here: str
    weights: Mapping[str, Stored]
    left_out: tuple[str, ...]


def laid_out(sources: Sources, layout: OutputLayout, storage: Storage, vae: Mapping[str, Stored]) -> LaidOut:
    """Lay out a converted output; raise FileError for a tensor that has no place in it.

    `vae` has the weights that take the place of the base's, by its keys.
    """
    _check_plain(sources, storage)
    contents, rest = _contents(sources, layout, storage, vae)
    made_anew = () if layout.is_folder else tuple(_made_anew(sources, layout))
    is_file_again = not layout.is_folder and not sources.base.is_folder
    carried = [_carried(sources, weight) for weight in rest] if is_file_again else []
    notes = [*_renamed(contents), *_told_anew(made_anew), *_left_out(contents)]
    notes += [] if is_file_again else _dropped(sources, [weight.key for weight in rest])
    shards = (
        [*_in_folders(sources, contents)]
        if layout.is_folder
        else [_in_one(sources, contents, [*carried, *map(_anew, made_anew)])]
    )
    drafts: list[Draft] = []
    for name, folder, targets in shards:
        part = _part_of(sources, targets)
        drafts.append(Draft(name, folder, part, tuple(_placed(targets, len(drafts)))))
    return LaidOut(tuple(drafts), _indexes(layout, drafts), tuple(notes))


def targets_in(sources: Sources, content: Content) -> Iterator[Target]:
    """Yield the tensors of a component under their new names, all at the beginning of no file yet."""
    place = content.place
    by_key = {weight.key: weight for weight in content.weights.values()}
    try:
        for made in rewritten(content.component, content.here, place.layout, content.weights):
            yield _target(sources, place, made, tuple(by_key[key] for key in made.view.keys))
    except NoPlaceError as error:
        raise FileError(f"{sources.base.path}: {error}", KEEP) from None


def _target(sources: Sources, place: ComponentPlace, made: Rewritten, weights: tuple[Stored, ...]) -> Target:
    dtypes = {dtype_of(sources, weight): weight for weight in weights}
    if len(dtypes) > 1:
        one, other = [*dtypes.values()][:2]
        raise FileError(
            f"{sources.base.path}: {made.name} is made of {one.key}, which is {one.dtype}, and of {other.key}, "
            f"which is {other.dtype}",
            "Choose one dtype for the output, as in output.dtype: float16",
        )
    (dtype,) = dtypes
    rounding = sources.recipe.output.rounding
    is_rounded = not DTYPES[dtype].is_fine and not any(is_fixed(sources.packing, weight) for weight in weights)
    return Target(
        key=place.key_prefix + made.name,
        name=place.prefix + made.name,
        source=made.view,
        weights=weights,
        dtype=dtype,
        shape=made.view.shape,
        file=0,
        offset=0,
        rounding_seed=rounding.seed if rounding.is_drawn and is_rounded else None,
    )


# -- what goes where ---------------------------------------------------------------------------------------


def _contents(
    sources: Sources, layout: OutputLayout, storage: Storage, vae: Mapping[str, Stored]
) -> tuple[list[Content], list[Stored]]:
    """Sort the base's weights by component, in its files' order; return them and those that no component has."""
    key_map = sources.key_map
    own: dict[str, dict[str, Stored]] = {place.component: {} for place in layout.places}
    lacking: dict[str, list[str]] = {place.component: [] for place in layout.places}
    rest: list[Stored] = []
    lacks = {place.component: frozenset(_names(sources, place)) for place in layout.places}
    for weight in _stored(sources, storage):
        owner = key_map.owner.get(weight.key)
        if owner is None:
            rest.append(weight)
            continue
        name = weight.key.removeprefix(key_map.placed[owner][1])
        if name in lacks[owner]:
            lacking[owner].append(weight.key)
        else:
            own[owner][name] = vae.get(weight.key, weight)
    contents = [
        Content(
            place,
            key_map.component(place.component),
            key_map.placed[place.component][0].name,
            own[place.component],
            tuple(lacking[place.component]),
        )
        for place in layout.places
    ]
    return contents, rest


def _names(sources: Sources, place: ComponentPlace) -> Iterator[str]:
    """Yield the names in the base's layout of tensors that a component's new layout lacks."""
    component = sources.key_map.component(place.component)
    for layout in component.layouts:
        if layout.name == place.layout:
            yield from layout.lacks


def _stored(sources: Sources, storage: Storage) -> Iterator[Stored]:
    for part in sources.base.parts:
        for header in part.files:
            yield from storage.stored(header.in_order())


def _in_folders(sources: Sources, contents: Iterable[Content]) -> Iterator[tuple[str, str, list[Target]]]:
    """Yield each file's name, folder and tensors: one file a component, or several of a size."""
    limit = sources.recipe.output.shard_size
    for content in contents:
        shards: list[list[Target]] = [[]]
        size = 0
        for target in targets_in(sources, content):
            if limit is not None and shards[-1] and size + target.nbytes > limit:
                shards.append([])
                size = 0
            shards[-1].append(target)
            size += target.nbytes
        folder, stem = content.place.folder, content.place.stem
        for number, shard in enumerate(shards, 1):
            count = f"-{number:05}-of-{len(shards):05}" if len(shards) > 1 else ""
            yield str(PurePosixPath(folder, f"{stem}{count}.safetensors")), folder, shard


def _in_one(sources: Sources, contents: Iterable[Content], others: Iterable[Target]) -> tuple[str, str, list[Target]]:
    targets = [target for content in contents for target in targets_in(sources, content)]
    return "model.safetensors", "", [*targets, *others]  # the output's own name takes the place of this one


def _carried(sources: Sources, weight: Stored) -> Target:
    """Keep a tensor of no component as it is, where a file becomes a file."""
    dtype = dtype_of(sources, weight)
    return Target(weight.key, weight.name, whole(weight.key, weight.shape), (weight,), dtype, weight.shape, 0, 0)


def _anew(made: Rebuilt) -> Target:
    return Target(made.name, made.name, View((), made.shape), (), made.dtype, made.shape, 0, 0, data=made.data)


def _made_anew(sources: Sources, layout: OutputLayout) -> Iterator[Rebuilt]:
    """Make what files in a layout have beside a network, as far as the folder's scheduler says it."""
    for place in layout.places:
        component = sources.key_map.component(place.component)
        names = next(names for names in component.layouts if names.name == place.layout)
        yield from rebuilt(names.adds, sources.evidence.schedule)


def _placed(targets: Iterable[Target], file: int) -> Iterator[Target]:
    """Give targets their places in a file, one after the other."""
    offset = 0
    for target in targets:
        yield replace(target, file=file, offset=offset)
        offset += target.nbytes


def _part_of(sources: Sources, targets: Iterable[Target]) -> Part:
    """Return the part of the base that the first tensor of a file comes from."""
    file = next((weight.file for target in targets for weight in target.weights), None)
    parts = (part for part in sources.base.parts if any(header.path == file for header in part.files))
    return next(parts, sources.base.parts[0])


def _indexes(layout: OutputLayout, drafts: Iterable[Draft]) -> dict[str, str]:
    """Write the index of each component that lies in several files."""
    texts = {}
    for place in layout.places if layout.is_folder else ():
        own = [draft for draft in drafts if draft.folder == place.folder]
        if len(own) < 2:
            continue
        weight_map = {target.name: PurePosixPath(draft.name).name for draft in own for target in draft.targets}
        size = sum(target.nbytes for draft in own for target in draft.targets)
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
        name = str(PurePosixPath(place.folder, index_name(place.stem)))
        texts[name] = json.dumps(index, indent=2) + "\n"
    return texts


# -- what is told ------------------------------------------------------------------------------------------


def _check_plain(sources: Sources, storage: Storage) -> None:
    """Raise FileError for weights that stay stored otherwise than as plain ones: they cannot be cut or joined."""
    if not storage.kept:
        return
    packing = sources.packing
    key = min(storage.kept)
    title = (packing.strange.get(key) or packing.packed.get(key) or packing.scaled[key]).title
    raise FileError(
        f"{sources.base.path}: {len(storage.kept)} of its weights are stored as {title}, and only plain weights can "
        f"be written in another layout: {key}",
        "Say what they become with output.dtype (such as bfloat16), or remove output.layout.",
    )


def _renamed(contents: Iterable[Content]) -> Iterator[str]:
    for content in contents:
        place, here = content.place, content.here
        names = f"from the names of {here} to those of {place.layout}" if here != place.layout else "the same names"
        where = (
            f", in the folder {place.folder}" if place.folder else f", below {place.prefix}" if place.prefix else ""
        )
        yield f"{place.component}: {names}{where}"


def _told_anew(made: Iterable[Rebuilt]) -> Iterator[str]:
    if names := [each.name for each in made]:
        yield f"made anew, as the folder's scheduler says: {patterns(names)}"


def _left_out(contents: Iterable[Content]) -> Iterator[str]:
    for content in contents:
        if content.left_out:
            told = patterns(content.left_out)
            yield f"{content.place.component}: left out, since no program reads it in this layout: {told}"


def _dropped(sources: Sources, keys: Iterable[str]) -> Iterator[str]:
    """Say which tensors of no component are left out; raise FileError for those whose meaning is not known."""
    dropped: dict[str, list[str]] = {}
    unknown = []
    for key in keys:
        what = next((each for each in OUTSIDE if any(fnmatchcase(key, glob) for glob in each.keys)), None)
        if what is None:
            unknown.append(key)
        else:
            dropped.setdefault(what.title, []).append(key)
    if unknown:
        raise FileError(
            f"{sources.base.path}: {len(unknown)} of its tensors belong to no component that is known, and have "
            f"no place in another layout: {patterns(unknown)}",
            KEEP,
        )
    for title, own in dropped.items():
        yield f"left out: {title}: {patterns(own)}"
