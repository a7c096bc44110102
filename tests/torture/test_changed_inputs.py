"""Inputs that change between plan and bake, or while a bake runs, also with their times set back."""

from __future__ import annotations

import json
import os
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lorabake import RunOptions, bake, load_recipe, plan
from lorabake.errors import FileError
from lorabake.writing.inputs import Inputs
from tests import builders as b
from tests.torture.conftest import Tally

PROMISE = "the bake is refused, and there is no target"
Q = "model.layers.0.self_attn.q_proj"
FACTORS = {"lora_A": torch.ones(2, 8), "lora_B": torch.ones(8, 2)}


def peft(folder: Path, scale: float = 1.0) -> dict[str, torch.Tensor]:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
    return {f"base_model.model.{Q}.{name}.weight": value * scale for name, value in FACTORS.items()}


def as_safetensors(folder: Path, scale: float) -> Path:
    return b.save(folder / "lora" / "adapter_model.safetensors", peft(folder / "lora", scale))


def as_zip(folder: Path, scale: float) -> Path:
    path, tensors = folder / "lora" / "adapter_model.bin", peft(folder / "lora", scale)
    torch.save({key: value.T.contiguous().T for key, value in tensors.items()}, path)  # set aside when it is read
    return path


def as_legacy(folder: Path, scale: float) -> Path:
    path, tensors = folder / "lora" / "adapter_model.bin", peft(folder / "lora", scale)
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    return path


def as_compressed(folder: Path, scale: float) -> Path:
    path = as_zip(folder, scale)
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    raw = path.read_bytes()  # a remark makes all as long
    path.write_bytes(raw[:-2] + (2000 - len(raw)).to_bytes(2, "little") + bytes(2000 - len(raw)))
    return path


def as_npz(folder: Path, scale: float) -> Path:
    (folder / "lora").mkdir(exist_ok=True)
    (folder / "lora" / "adapter_config.json").write_text(json.dumps({"lora_parameters": {"rank": 2, "scale": 2.0}}))
    path = folder / "lora" / "adapters.npz"
    ones = np.ones((8, 2), np.float32) * np.float32(scale)
    np.savez(path, **{f"{Q}.lora_a": ones, f"{Q}.lora_b": np.asfortranarray(ones.T)})
    return path


def base_shard(folder: Path, scale: float) -> Path:
    as_safetensors(folder, 1.0)
    (folder / "base" / "model.safetensors").unlink(missing_ok=True)
    tensors = b.llama(folder / "base", shards=2)
    path = next((folder / "base").glob("*-00002-of-*"))
    keys = [*b.header(path)[0]]
    return b.save(path, {key: tensors[key] * scale for key in keys}, metadata={"format": "pt"})


def side_file(folder: Path, scale: float) -> Path:
    as_safetensors(folder, 1.0)
    path = folder / "lora" / "adapter_config.json"
    path.write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": int(2 * scale)}))
    return path


FORMS: dict[str, Callable[[Path, float], Path]] = {
    "SafeTensors": as_safetensors,
    "a .pt, rearranged": as_zip,
    "a .pt of older torch": as_legacy,
    "a .pt, compressed": as_compressed,
    "NumPy": as_npz,
    "a shard of the base": base_shard,
    "adapter_config.json": side_file,
}


def in_place(path: Path, raw: bytes) -> None:
    """Write other bytes of the same length into the file, and set its times back."""
    before = path.stat()
    with path.open("r+b") as stream:
        stream.write(raw)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def by_rename(path: Path, raw: bytes) -> None:
    """Put another file of the same length and times in its place."""
    before, other = path.stat(), path.with_name("other.tmp")
    other.write_bytes(raw)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


def aged(path: Path) -> None:
    """Let the clock of the file system tick: a change within one tick of the last one cannot be seen by its times."""
    before, probe = path.stat().st_ctime_ns, path.with_name("probe.tmp")
    while True:
        probe.write_bytes(b"")
        later = probe.stat().st_ctime_ns
        probe.unlink()
        if later > before:
            return


def world(folder: Path, make: Callable[[Path, float], Path]) -> tuple[Path, Path, bytes]:
    """Make inputs; return the recipe, the file that will change, and what will be in it."""
    b.llama(folder / "base")
    path = make(folder, 2.0)
    changed = path.read_bytes()
    path = make(folder, 1.0)
    assert len(changed) == path.stat().st_size
    assert changed != path.read_bytes()
    aged(path)
    return b.recipe(folder, base="base", loras=["lora"], output={"path": "out"}), path, changed


WAYS = {"in place, its time set back": in_place, "by another file": by_rename}


@pytest.mark.parametrize("name", FORMS)
def test_changed_between_plan_and_bake(name: str, tally: Callable[[str, str], Tally], tmp_path: Path) -> None:
    counted = tally("inputs that change between plan and bake, or during it", PROMISE)
    for number, (way, change) in enumerate(WAYS.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        recipe, path, changed = world(folder, FORMS[name])
        planned = plan(load_recipe(recipe))
        change(path, changed)
        told = ""
        try:
            bake(planned, RunOptions(device="cpu", workers=1, fsync=False))
        except FileError as error:
            told = str(error)
        kept = "changed since the bake was planned" in told and path.name in told and not (folder / "out").exists()
        counted.hold(kept, f"{name}, {way}: {told or 'was baked'}")


@pytest.fixture
def when_read(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[], None]], None]]:
    """Return a function that has something done once, when the bake first reads values of an input."""
    read, lock = Inputs.read, threading.Lock()
    waiting: list[Callable[[], None]] = []

    def reading(self: Inputs, *arguments: Any) -> None:
        with lock:
            if waiting:
                waiting.pop()()
        read(self, *arguments)

    monkeypatch.setattr(Inputs, "read", reading)
    return waiting.append


@pytest.mark.parametrize("name", FORMS)
def test_changed_during_the_bake(
    name: str,
    tally: Callable[[str, str], Tally],
    when_read: Callable[[Callable[[], None]], None],
    tmp_path: Path,
) -> None:
    counted = tally("inputs that change between plan and bake, or during it", PROMISE)
    for number, (way, change) in enumerate(WAYS.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        recipe, path, changed = world(folder, FORMS[name])
        planned = plan(load_recipe(recipe))
        when_read(lambda path=path, changed=changed, change=change: change(path, changed))  # type: ignore[misc]
        told = ""
        try:
            bake(planned, RunOptions(device="cpu", workers=1, fsync=False))
        except FileError as error:
            told = str(error)
        kept = ("changed" in told or "damaged" in told) and not (folder / "out").exists()
        counted.hold(kept, f"{name}, {way}: {told or 'was baked'}")


def test_a_bake_that_nothing_disturbs_is_not_refused(tmp_path: Path) -> None:
    """Another pickle that is read meanwhile does not touch what was set aside of the first."""
    recipe, _, _ = world(tmp_path, as_zip)
    planned = plan(load_recipe(recipe))
    torch.save({"other": torch.ones(4, 6).T}, tmp_path / "other.pt")
    from lorabake.tensors.pickles import open_pickle

    inputs = Inputs(planned)
    open_pickle(tmp_path / "other.pt")
    inputs.check_unchanged()
    inputs.close()
    assert bake(planned, RunOptions(device="cpu", fsync=False)).size
