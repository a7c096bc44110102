"""Find the file that another program calls by a name: a stem, a path below its folder, or a trainer's name for it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path, PureWindowsPath

from lorabake.errors import FileError, LorabakeError
from lorabake.likeness import nearest
from lorabake.paths import MODEL_SUFFIXES, check_folder
from lorabake.tensors.safetensors import read_header
from lorabake.visible import and_more, at_a_glance

TRAINERS_NAME = "ss_output_name"
"""Where kohya's trainer keeps the name that a LoRA had; AUTOMATIC1111 takes it for one of the file's."""

PIECE = 1 << 20


def named_file(name: str, folders: Sequence[Path], what: str, option: str) -> Path:
    """Return the one file below the folders that `name` means; `what` is it: LoRA or checkpoint.

    Raise FileError for a name of no file, or of two. `option` names the folders in messages.
    """
    if not folders:
        raise FileError(
            f"{what} {at_a_glance(name)}: it is not said where its file is", f"Give the folder: {option} DIR"
        )
    files = [file for folder in folders for file in _files(folder, option)]
    wanted = PureWindowsPath(name).as_posix()
    for names in (_paths_of, _stem_of, _folded_of, _trainers_of):
        if found := [file for file, folder in files if wanted in names(file, folder, wanted)]:
            return _only(name, found, what)
    stems = {file.stem: file for file, _ in files}
    near = nearest(PureWindowsPath(wanted).stem, stems)
    hint = f"Did you mean {stems[near].name}? " if near is not None else ""
    listed = and_more(sorted({file.name for file, _ in files})[:3], len(files))
    there = f"There are {listed}." if files else "There are no files of weights in it."
    places = " or ".join(map(str, folders))
    raise FileError(f"{what} {at_a_glance(name)}: no file of this name in {places}", f"{hint}{there}")


def _only(name: str, found: list[Path], what: str) -> Path:
    if len(found) > 1:
        listed = and_more([str(file) for file in found[:3]], len(found))
        raise FileError(
            f"{what} {at_a_glance(name)}: {len(found)} files have this name: {listed}",
            "Write the folder before the name, or give a folder that has one of them.",
        )
    return found[0]


def _files(folder: Path, option: str) -> Iterable[tuple[Path, Path]]:
    check_folder(folder, option)
    if not folder.is_dir():
        raise FileError(f"{folder}: is a file, and {option} takes a folder")
    suffixes = {suffix for suffix in MODEL_SUFFIXES if suffix != ".json"}
    return sorted((file, folder) for file in folder.rglob("*") if file.suffix.lower() in suffixes and file.is_file())


def _paths_of(file: Path, folder: Path, wanted: str) -> tuple[str, ...]:
    """Return the paths of a file below its folder: ComfyUI's name, and one with a folder but without the ending.

    A stem alone is AUTOMATIC1111's name for the file in whichever folder.
    """
    path = file.relative_to(folder)
    return path.as_posix(), *([path.with_suffix("").as_posix()] if "/" in wanted else [])


def _stem_of(file: Path, folder: Path, wanted: str) -> tuple[str, ...]:
    return file.name, file.stem


def _folded_of(file: Path, folder: Path, wanted: str) -> tuple[str, ...]:
    """Return the wanted name itself if it is the file's but for the letters' case."""
    same = wanted.casefold() in (file.name.casefold(), file.stem.casefold())
    return (wanted,) if same else ()


def _trainers_of(file: Path, folder: Path, wanted: str) -> tuple[str, ...]:
    if file.suffix != ".safetensors":
        return ()
    try:
        return (read_header(file).metadata.get(TRAINERS_NAME, ""),)
    except LorabakeError:  # a damaged file has no such name; who bakes it is told
        return ()


def check_digest(file: Path, digest: str, name: str) -> None:
    """Raise FileError unless a LoRA's digest begins with the one that a picture has.

    Programs digest the tensors' bytes of a SafeTensors file, or take `sshs_model_hash`, and every byte of others.
    """
    if not digest:
        return
    start, known = 0, ""
    if file.suffix == ".safetensors":
        header = read_header(file)
        start, known = header.data_start, header.metadata.get("sshs_model_hash", "")
    own = hashlib.sha256()
    with file.open("rb") as opened:
        opened.seek(start)
        while piece := opened.read(PIECE):
            own.update(piece)
    if not (own.hexdigest().startswith(digest) or known.startswith(digest)):
        raise FileError(
            f"{file}: is not the LoRA that the picture was made with: its hash begins with "
            f"{own.hexdigest()[: len(digest)]}, and the picture has {digest} for {at_a_glance(name)}",
            "Find that file, or give this one yourself: --lora PATH=0.8.",
        )
