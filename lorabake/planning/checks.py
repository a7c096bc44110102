"""Refuse impossible bakes, each for one reason: the output's place and form, and patches that clash."""

from __future__ import annotations

import os
from collections.abc import Iterable
from math import prod
from pathlib import Path

from lorabake.codecs.codec import Stored
from lorabake.errors import MatchError, RecipeError, TargetError, lines_of
from lorabake.matching.patches import Patch
from lorabake.paths import expanded
from lorabake.planning.layout import is_folder
from lorabake.planning.steps import Touched
from lorabake.planning.storage import dtype_of
from lorabake.sources import Sources
from lorabake.sources.evidence import Inode, Location, inode_of
from lorabake.tensors.dtypes import DTYPES, is_output


def within_folder(sources: Sources, path: Path) -> Path:
    """Return the path of a file in a folder that is there, by the name that the recipe gives, where a file is due."""
    name = Path(sources.recipe.output.path).name
    if is_folder(sources) or Path(name).suffix != ".safetensors" or not os.path.isdir(expanded(str(path))):
        return path
    return path / name


def check_form(sources: Sources, path: Path) -> None:
    """Raise TargetError if the output's name is a folder's but the output is a file, or the other way round."""
    if is_folder(sources) and path.suffix in (".safetensors", ".ckpt"):
        raise TargetError(
            f"{path}: {_why_folder(sources)}, so the output must be a folder, not a file",
            f"Name it {path.stem}, without an ending.",
        )
    if is_folder(sources):
        return
    why = "output.layout is single, and " if sources.recipe.output.form == "single" else ""
    if path.suffix != ".safetensors" and os.path.isdir(path):
        raise TargetError(
            f"{path}: is a folder, and {why}the output must be a .safetensors file",
            f"Name a file in it, as in -o {path / 'out.safetensors'}",
        )
    if path.suffix != ".safetensors":
        own = Path(sources.recipe.output.path)
        inside = path / (own.name if own.suffix == ".safetensors" else "out.safetensors")
        advice = f"Name it {path.stem}.safetensors" + ("." if path.suffix else f", or a file in a folder: {inside}")
        advice = advice if len(path.stem) < 200 else "End its name in .safetensors."
        raise TargetError(f"{path}: {why}the output must be a .safetensors file", advice)


def _why_folder(sources: Sources) -> str:
    """Say what makes the output a folder."""
    if sources.recipe.output.form == "diffusers":
        return "output.layout is diffusers"
    return "the base is a folder" if sources.base.is_folder else "shard_size is set"


def check_dtypes(sources: Sources) -> None:
    """Raise RecipeError if the recipe wants a dtype for a component that the base lacks."""
    wanted, placed = sources.recipe.output.dtype, sources.key_map.placed
    for name in wanted if isinstance(wanted, dict) else ():
        if name not in placed:
            raise RecipeError(
                f"output.dtype names the component {name!r}, and the base has none",
                f"The base has: {', '.join(placed) or 'no component of a known name'}",
            )


class InputPlaces:
    """Tell of any path whether it is an input, is in an input folder, or has an input in it.

    Folders are known by inode: a link or a second mount gives one folder two names. The disk is asked about the
    path alone; where inputs lie is evidence. However many inputs there are, a path costs the same.
    """

    def __init__(self, locations: Iterable[Location]) -> None:
        self._known = tuple(dict.fromkeys(locations))
        self._by_path: dict[Path, int] = {}
        self._by_name: dict[tuple[Inode | None, str], int] = {}
        self._folders: dict[Inode | None, int] = {}
        self._above: dict[Inode | None, int] = {}
        for number, known in enumerate(self._known):
            self._by_path.setdefault(known.real, number)
            beside = known.folders[0] if known.folders else known.inode
            self._by_name.setdefault((beside, known.real.name), number)
            if known.is_folder:
                self._folders.setdefault(known.inode, number)
            for folder in known.folders:
                self._above.setdefault(folder, number)

    def check(self, written: Path) -> None:
        """Raise TargetError if a path that a bake writes is an input, is in one, or has one in it."""
        try:
            target = written.resolve(strict=False)
        except (OSError, RuntimeError) as error:
            raise TargetError(f"{written}: cannot follow this path: {error}") from None
        place, around = inode_of(target.parent), {inode_of(parent) for parent in target.parents} - {None}
        itself = inode_of(target) if os.path.isdir(target) else None
        named = self._by_name.get((place, target.name)) if place is not None else None
        within = [self._folders.get(inode) for inode in {*around, itself} - {None}]
        inputs = [number for number in (self._by_path.get(target), named, *within) if number is not None]
        held = self._above.get(itself) if itself is not None else None
        if inputs and (held is None or min(inputs) <= held):
            raise TargetError(
                f"{written}: is an input of this recipe ({self._known[min(inputs)].path}); choose another output"
            )
        if held is not None:
            raise TargetError(
                f"{written}: holds an input of this recipe ({self._known[held].path}); choose another output"
            )


def check_is_no_input(sources: Sources, written: Path) -> None:
    """Raise TargetError if a path that a bake writes is an input, is in an input folder, or has an input in it."""
    InputPlaces(sources.evidence.locations).check(written)


def check_patches(sources: Sources, patches: Iterable[Patch]) -> None:
    """Raise MatchError for two patches that replace one tensor, and for tensors in a form that cannot be changed."""
    patches = tuple(patches)
    replaced: dict[str, Patch] = {}
    for patch in patches:
        for key in () if patch.kind.adds else patch.view.keys:
            if key in replaced:
                first = sources.loras[replaced[key].lora].name
                raise MatchError(
                    f"LoRA {sources.loras[patch.lora].name!r}: replaces {key} whole, as {first!r} does",
                    "Leave one of them out with blocks or components.",
                )
            replaced[key] = patch
    for patch in patches:
        name = sources.loras[patch.lora].name
        for slot, info in patch.tensors.items():
            single, whole = slot in patch.kind.numbers, slot in patch.kind.integers
            if not is_readable(info, integers=single or whole) or (single and prod(info.shape) != 1):
                wanted = "one number" if single else "whole numbers" if whole else "floats"
                raise MatchError(f"LoRA {name!r}: {info.name} is {info.dtype} {list(info.shape)}, not {wanted}")
        for key in patch.view.keys:
            if fault := stored_fault(sources, key):
                raise MatchError(*lines_of(f"LoRA {name!r}: {patch.module} would change {key}, ", fault))


def check_rows(sources: Sources, touched: Touched) -> None:
    """Refuse patches that need two different counts of one tensor's rows, or a part of a row's values."""
    method = sources.recipe.method.name
    for key, patches in touched.items():
        first = patches[0]
        for patch in patches:
            name = sources.loras[patch.lora].name
            if patch.view.width != first.view.width:
                raise MatchError(
                    f"LoRA {name!r}: {patch.module} changes {key} as a whole, and {first.module} single experts",
                    "Bake one of them after the other.",
                )
            if patch.view.picked is not None and method != "sum":
                raise MatchError(
                    f"LoRA {name!r}: {patch.module} is parts of the rows of {key}",
                    f"The method {method} takes rows whole: use sum.",
                )


def stored_fault(sources: Sources, key: str) -> str | None:
    """Say why a weight cannot be changed in its stored form; the result follows the weight's name."""
    info, packing = sources.key_map.tensors[key], sources.packing
    if key in packing.strange:
        return packing.strange[key].why
    if (weight := packing.packed.get(key)) is not None:
        if dtype_of(sources, weight) == weight.dtype:
            return f"which is packed ({weight.dtype})\n{weight.codec.why_not}"
    elif not is_output(info.dtype) and key not in packing.scaled and key not in packing.grown:
        return (
            f"whose dtype is {info.dtype}\n"
            "This version bakes into float8, float16, bfloat16, float32 and float64 tensors, and scaled int8."
        )
    return None


def is_readable(stored: Stored, *, integers: bool = False) -> bool:
    """Tell whether a bake and its verification can read a tensor as numbers: floats, or also `integers`."""
    if stored.tensor is None:
        return True
    dtype = DTYPES[stored.tensor.dtype]
    return dtype.is_number and (dtype.floating or integers)
