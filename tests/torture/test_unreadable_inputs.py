"""Disks that fail and names that are no text: each call that reads an input fails once, and names are any bytes."""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lorabake.baking import plan
from lorabake.errors import LorabakeError
from lorabake.inspection import inspect
from lorabake.recipe import load_recipe
from lorabake.tensors import pickles
from tests import builders as b
from tests.torture.conftest import Tally
from tests.torture.fuzzing import outcome

ROOT = Path(__file__).parents[2]
Q = "model.layers.0.self_attn.q_proj"


class _Failing(io.RawIOBase):
    """Be an open file that cannot be read."""

    def __init__(self, number: int) -> None:
        self.number = number

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, *_: int) -> int:
        return 0

    def readinto(self, _: Any) -> int:
        raise OSError(self.number, os.strerror(self.number))


class Faults:
    """Let the n-th call that reaches for a file of a folder fail, and count the calls."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.at, self.number, self.count = str(folder), -1, errno.EIO, 0
        self.opens: list[str] = []
        for module, name in ((os, "stat"), (os, "lstat"), (os, "open"), (os, "listdir"), (os, "scandir")):
            monkeypatch.setattr(module, name, self._failing(getattr(module, name)))
        opening = self._opening(io.open)
        monkeypatch.setattr(io, "open", opening)
        monkeypatch.setattr(builtins, "open", opening)

    def arm(self, at: int, number: int) -> None:
        self.at, self.number, self.count = at, number, 0

    def _is_due(self, path: object) -> bool:
        if not isinstance(path, str | os.PathLike) or not os.fspath(path).startswith(self.folder):
            return False
        self.count += 1
        return self.count == self.at

    def _failing(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def made(path: Any = ".", *arguments: Any, **named: Any) -> Any:
            if self._is_due(path):
                raise OSError(self.number, os.strerror(self.number), path)
            return call(path, *arguments, **named)

        return made

    def _opening(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def made(path: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:
            if self._is_due(path):
                raise OSError(self.number, os.strerror(self.number), path)
            if "r" in mode and self._is_due(path):  # opened, and not to be read
                buffered = io.BufferedReader(_Failing(self.number))
                return buffered if "b" in mode else io.TextIOWrapper(buffered)
            return call(path, mode, *arguments, **named)

        return made


def of_a_model(folder: Path) -> Path:
    b.llama(folder / "base", shards=2)
    b.peft(folder / "lora", {Q: b.lora((8, 8))})
    return b.recipe(folder, base="base", loras=["lora"], output={"path": "out"})


def of_a_pipeline(folder: Path) -> Path:
    b.sd1_folder(folder / "base")
    b.sd1_lora(folder / "lora.safetensors")
    return b.recipe(folder, base="base", output={"path": "out"})


def of_pickles(folder: Path) -> Path:
    turned = {key: each.mT.contiguous().mT if each.dim() == 2 else each for key, each in b.sd1(extras=False).items()}
    torch.save(turned, folder / "base.ckpt")
    factors = {"lora_up": torch.ones(8, 2), "lora_down": torch.ones(2, 8)}
    lora = {f"{b.unet_lora(b.Q)}.{name}.weight": factor for name, factor in factors.items()}
    torch.save(lora, folder / "lora.pt", _use_new_zipfile_serialization=False)
    return b.recipe(folder, base="base.ckpt", loras=["lora.pt"])


def of_numpy(folder: Path) -> Path:
    b.llama(folder / "base")
    (folder / "lora").mkdir()
    ones = np.ones((8, 2), np.float32)
    np.savez(folder / "lora" / "adapters.npz", **{f"{Q}.lora_a": ones, f"{Q}.lora_b": np.asfortranarray(ones.T)})
    (folder / "lora" / "adapter_config.json").write_text(json.dumps({"lora_parameters": {"rank": 2, "scale": 2.0}}))
    return b.recipe(folder, base="base", loras=["lora"], output={"path": "out"})


def of_gguf(folder: Path) -> Path:
    package = pytest.importorskip("gguf")
    writer = package.GGUFWriter(folder / "base.gguf", "flux")
    writer.add_tensor("fc.weight", np.ones((8, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    b.kohya(folder / "lora.safetensors", {"fc": b.lora((8, 8), alpha=2.0)})
    return b.recipe(folder, base="base.gguf")


WORLDS = {
    "a model": of_a_model,
    "a pipeline": of_a_pipeline,
    "pickles": of_pickles,
    "NumPy": of_numpy,
    "GGUF": of_gguf,
}


def uses(folder: Path, recipe: Path) -> Iterator[Callable[[], object]]:
    yield lambda: plan(load_recipe(recipe))
    for path in sorted(each for each in folder.iterdir() if each.name.startswith(("base", "lora"))):
        yield lambda path=path: inspect(path)  # type: ignore[misc]


@pytest.mark.parametrize("name", WORLDS)
def test_disks_that_fail(
    name: str,
    tally: Callable[[str, str], Tally],
    effort: Callable[[Any, Any], Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    counted = tally("inputs whose disk fails, at every call", "one error that names the file, or none was needed")
    recipe = WORLDS[name](tmp_path)
    calls = [*uses(tmp_path, recipe)]
    faults = Faults(tmp_path, monkeypatch)
    for use in calls:
        faults.arm(-1, 0)
        pickles._read.cache_clear()
        use()
        total = faults.count
        assert total
        for at in range(1, total + 1, effort(max(1, total // 6), 1)):
            for number in (errno.EIO, errno.ESTALE):
                said: list[str] = []

                def run(use: Callable[[], object] = use, said: list[str] = said) -> None:
                    try:
                        use()
                    except LorabakeError as error:
                        said.append(str(error))

                faults.arm(at, number)
                pickles._read.cache_clear()
                told = outcome(run)
                told = told or ("does not name the file" if said and str(tmp_path) not in said[0] else "")
                counted.hold(not told, f"{name}, call {at}: {told} {said}")


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="the system has no /proc/self/mem")
@pytest.mark.parametrize("place", ["base.safetensors", "lora.safetensors", "recipe.yaml"])
def test_files_that_the_system_cannot_read(place: str, tmp_path: Path) -> None:
    """The first page of a process's memory is a file that gives EIO."""
    b.save(tmp_path / "base.safetensors", b.sd1(extras=False))
    b.sd1_lora(tmp_path / "lora.safetensors")
    recipe = b.recipe(tmp_path)
    (tmp_path / place).unlink()
    (tmp_path / place).symlink_to("/proc/self/mem")
    with pytest.raises(LorabakeError, match=f"{place}: .*(Input/output error|empty)"):
        plan(load_recipe(recipe))


def test_names_that_are_no_text(tmp_path: Path) -> None:
    """A folder, a base, an output and a report whose names are not UTF-8 are read, written and told of."""
    odd = os.fsdecode(b"a\xff\xfe")
    folder = tmp_path / odd
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("the file system takes no such names")
    b.save(folder / "base.safetensors", b.sd1(extras=False))
    b.sd1_lora(folder / "lora.safetensors")
    b.recipe(folder)
    target, report = tmp_path / f"{odd}.safetensors", tmp_path / f"{odd}.json"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8"}

    def run(*words: str) -> None:
        line = [sys.executable, "-m", "lorabake", *words]
        done = subprocess.run(line, env=environment, capture_output=True, cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stderr
        assert rb"a\udcff\udcfe" in done.stdout + done.stderr

    run("bake", f"{odd}/recipe.yaml", "-o", str(target), "--report", str(report), "--no-fsync")
    assert os.path.normpath(folder / json.loads(report.read_text())["path"]) == str(target)
    run("inspect", target.name)
    b.llama(tmp_path / "base")
    (tmp_path / "base" / f"{odd}.txt").write_text("beside it")
    b.peft(tmp_path / "lora", {Q: b.lora((8, 8))})
    b.run(b.recipe(tmp_path, base="base", loras=["lora"], output={"path": "out"}))
    assert (tmp_path / "out" / f"{odd}.txt").read_text() == "beside it"
