"""A process that has imported torch once, and bakes in children of its own, at whose system calls something happens.

`shim.c` counts the calls, where gcc is there to build it. Each child is forked, so that it costs the bake alone.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests import builders as b

ROOT = Path(__file__).parents[2]
NOTHING, KILL, FAIL, PART, INTERRUPT, STOP, INTERRUPT_EACH = range(7)
WRITES = " open pwrite write copy_file_range ftruncate fallocate fsync rename link unlink rmdir mkdir close "
ALL = " all "

SERVER = """
    import ctypes, json, os, signal, sys, threading, traceback
    import lorabake.execution.device, lorabake.execution.worker, lorabake.reference.survival
    from lorabake.baking import bake
    from lorabake.options import RunOptions
    from lorabake.cli import main
    from lorabake.errors import LorabakeError
    from lorabake.baking import plan
    from lorabake.recipe import load_recipe

    shim = ctypes.CDLL(None)
    shim.counted.restype = ctypes.c_char_p
    here, threads = os.getpid(), threading.active_count()

    def child(job, back):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        said = {}
        arm = lambda: shim.arm(*[x.encode() if isinstance(x, str) else x for x in job["arm"]]) if job["arm"] else None
        if job["command"]:
            out = os.open(job["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(out, 1), os.dup2(out, 2)
            sys.argv = ["lorabake", *job["command"]]
            arm()
            try:
                main()
            except SystemExit as end:
                said["code"] = end.code or 0
            except BaseException:
                said["code"] = "traceback: " + traceback.format_exc()
            sys.stdout.flush(), sys.stderr.flush()
        else:
            warnings = []
            options = RunOptions(**job["options"], warn=warnings.append)
            arm()
            try:
                bake(load_recipe(job["recipe"]), options)
                said["error"] = None
            except LorabakeError as error:
                said["error"] = type(error).__name__ + ": " + str(error)
            except BaseException:
                said["error"] = "traceback: " + traceback.format_exc()
            said["warnings"] = warnings
        said["count"] = shim.disarm()
        said["calls"] = shim.counted().decode().split()
        os.write(back, json.dumps(said).encode())
        os._exit(0)

    children, planned = {}, set()
    for line in sys.stdin:
        job = json.loads(line)
        if "recipe" in job and job["recipe"] not in planned:  # what planning looks up once is there in each child
            planned.add(job["recipe"])
            plan(load_recipe(job["recipe"]))
        if job["wait"] is None:
            front, back = os.pipe()
            pid = os.fork()
            if not pid:
                os.close(front)
                try:
                    child(job, back)
                finally:
                    os._exit(99)
            os.close(back)
            children[pid] = front
        else:
            pid = job["wait"]
            os.kill(pid, signal.SIGCONT)
        _, status = os.waitpid(pid, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            print(json.dumps({"stopped": pid}), flush=True)
            continue
        front, said = children.pop(pid), b""
        while piece := os.read(front, 1 << 16):
            said += piece
        os.close(front)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        print(json.dumps({"killed": killed, "status": status} | json.loads(said or b"{}")), flush=True)
"""


@functools.cache
def shim() -> Path:
    """Build the library that counts system calls; skip the test where that cannot be."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("no C compiler here to build what counts system calls")
    place = Path(tempfile.mkdtemp()) / "shim.so"
    source = Path(__file__).with_name("shim.c")
    built = subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", place, source, "-ldl"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return place


@dataclass(frozen=True, slots=True)
class Outcome:
    """Say how a child ended, or that it is stopped and can be continued."""

    killed: bool = False
    error: str | None = None
    code: object = None
    count: int = 0
    calls: tuple[str, ...] = field(default=(), repr=False)
    warnings: tuple[str, ...] = ()
    stopped: int | None = None
    status: int = 0

    @property
    def is_done(self) -> bool:
        """Tell whether the bake ended well."""
        return not self.killed and self.stopped is None and self.status == 0 and self.error is None and not self.code


class Server:
    """Talk to the process that bakes."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def bake(
        self,
        recipe: Path,
        at: int = -1,
        how: int = NOTHING,
        *,
        calls: str = WRITES,
        code: int = 0,
        command: list[str] | None = None,
        output: Path | None = None,
        **options: object,
    ) -> Outcome:
        """Bake in a child, with something happening at its call number `at` in the recipe's folder."""
        return self._ask(
            recipe=str(recipe),
            arm=[str(recipe.parent), calls, at, how, code],
            options={"workers": 2, "fsync": True, "overwrite": True, **options},
            command=command,
            output=str(output),
            wait=None,
        )

    def go_on(self, stopped: Outcome) -> Outcome:
        """Let a stopped child continue."""
        return self._ask(wait=stopped.stopped)

    def _ask(self, **job: Any) -> Outcome:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the process that bakes has died"
        said = json.loads(line)
        return Outcome(**{name: tuple(value) if isinstance(value, list) else value for name, value in said.items()})


@contextmanager
def serving() -> Iterator[Server]:
    """Run the process that bakes."""
    import textwrap

    environment = dict(os.environ, LD_PRELOAD=str(shim()), PYTHONPATH=str(ROOT), PYTHONHASHSEED="0")
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SERVER)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Server(process)
    finally:
        process.kill()
        process.communicate()


# -- Small bakes -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Scene:
    """Hold a small bake in a folder: `targets` are the output and what goes beside it."""

    folder: Path
    recipe: Path
    targets: tuple[Path, ...]
    old: dict[str, bytes]

    def restore(self) -> None:
        """Put the folder back as it was before any bake."""
        for path in self.folder.iterdir():
            if path.name not in ("base", "base.safetensors", "lora.safetensors") and not path.name.endswith(".yaml"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for name, content in self.old.items():
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_bytes(content)

    def contents(self) -> tuple[object, ...]:
        """Return what each target holds; None where it is not there."""
        return tuple(self._content(path) for path in self.targets)

    @staticmethod
    def _content(path: Path) -> object:
        if path.is_dir():
            return hash(tuple(sorted(b.tree(path).items())))
        return hash(path.read_bytes()) if os.path.lexists(path) else None

    def ends(self, server: Server) -> tuple[tuple[object, ...], tuple[object, ...], tuple[str, ...]]:
        """Return what the targets hold before a bake and after it, and all calls that it makes."""
        self.restore()
        before = self.contents()
        done = server.bake(self.recipe, calls=ALL)
        assert done.is_done, done
        return before, self.contents(), done.calls

    def other(self) -> Path:
        """Write a recipe of the same target with another strength."""
        before = self.recipe.read_text()
        b.recipe(
            self.folder,
            base="base" if "base: base\n" in before else "base.safetensors",
            output={"path": self.targets[0].name},
            loras=[{"path": "lora.safetensors", "strength": 2}],
        )
        other = self.recipe.rename(self.folder / "other.yaml")
        self.recipe.write_text(before)
        return other

    def left(self) -> list[str]:
        """List what is in the folder and belongs neither to the inputs nor to the targets."""
        known = {path.name for path in self.targets} | {"base", "base.safetensors", "lora.safetensors"}
        return [path.name for path in self.folder.iterdir() if path.name not in known and path.suffix != ".yaml"]


SORTS = ("file", "folder", "embeddings", "new file")


def scene(folder: Path, sort: str) -> Scene:
    """Make a small bake: of a file, a folder, a file with learned embeddings beside it, onto nothing."""
    import torch

    embeddings = {}
    if sort == "embeddings":
        embeddings = {f"bundle_emb.{word}.clip_l": torch.full((1, b.TEXT), 0.5) for word in ("one", "two")}
    lora = folder / "lora.safetensors"
    b.sd1_lora(lora)
    if embeddings:
        from safetensors.torch import load_file

        b.save(lora, load_file(lora) | embeddings)
    if sort == "folder":
        b.sd1_folder(folder / "base")
        recipe = b.recipe(folder, base="base", output={"path": "out"})
        targets, old = ["out"], {"out/model_index.json": b"what was there before"}
    else:
        b.save(folder / "base.safetensors", b.sd1())
        recipe = b.recipe(folder)
        targets = ["out.safetensors", *(f"out.{word}.safetensors" for word in ("one", "two") if embeddings)]
        old = {} if sort == "new file" else {name: b"what was there before: " + name.encode() for name in targets}
    return Scene(folder, recipe, tuple(folder / name for name in targets), old)
