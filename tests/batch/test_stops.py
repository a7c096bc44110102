"""A batch that is killed, or whose disk fails, at any point: nothing finished is lost, and the next run ends it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lorabake.baking import bake
from lorabake.options import RunOptions
from lorabake.recipe import load_recipe
from lorabake.writing.partial import partial_of
from tests import builders as b

ROOT = Path(__file__).parents[2]
PART = 6000
NAMES = ("a", "b")

POINTS = [
    ("writing a part", "lorabake.writing.weights.Weights.write", 5),
    ("copying", "lorabake.writing.weights.Weights.copy", 9),
    ("between parts", "lorabake.batch.restart.land_all", 3),
    ("while a receipt lands", "lorabake.batch.notes.write_all", 5),
    ("before a receipt has its name", "os.replace", 6),
    ("when all receipts are there", "lorabake.writing.weights.Weights.fill_in", 1),
    ("between two outputs", "lorabake.writing.weights.Weights.fill_in", 2),
    ("before the first move", "lorabake.writing.commit.Move.do", 1),
    ("before the second move", "lorabake.writing.commit.Move.do", 2),
    ("before what is left is removed", "lorabake.writing.together.Outputs.clean", 1),
]

# Each line names a function and a number: a child of this process bakes, and is killed before that call.
SCRIPT = """
    import json, os, pkgutil, signal, sys, threading
    import lorabake.artifacts.current, lorabake.execution.worker, lorabake.writing.together
    from lorabake.batch import BatchOptions, bake_all, work
    from lorabake.options import RunOptions
    from lorabake.recipe import load_recipe
    from lorabake.writing.inputs import Inputs
    from lorabake.writing.weights import Weights

    folder, part, names = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    recipes = [load_recipe(f"{folder}/{name}.yaml") for name in names]
    read, turn = [0], threading.Lock()

    def counted(function, size, source):
        def call(*given):
            if source(*given).name == "base.safetensors":
                with turn:
                    read[0] += size(*given)
            return function(*given)
        return call

    def child(point, count, back):
        Inputs.read = counted(Inputs.read, lambda _, path, start, into: len(into), lambda _, path, *other: path)
        Weights.copy = counted(
            Weights.copy, lambda _, each, *other: each.stop - each.start, lambda _, each, *other: each.source
        )
        if count:
            owner, _, name = point.rpartition(".")
            owner, called = pkgutil.resolve_name(owner), []
            function = getattr(owner, name)

            def killing(*given, **named):
                with turn:
                    called.append(1)
                    if len(called) == count:
                        os.kill(os.getpid(), signal.SIGKILL)
                return function(*given, **named)

            setattr(owner, name, killing)
        told, kept = [], {}
        run = RunOptions(device="cpu", workers=2, fsync=False, warn=told.append)
        options = BatchOptions(run=run, part_bytes=part, kept=lambda path, size: kept.update({path.stem: size}))
        outcomes = bake_all(recipes, options)
        said = [[outcome.status, str(outcome.error or "")] for outcome in outcomes]
        os.write(back, json.dumps([said, told, kept, read[0]]).encode())
        os._exit(0)

    for line in sys.stdin:
        point, count = json.loads(line)
        front, back = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                child(point, count, back)
            finally:
                os._exit(1)
        os.close(back)
        with open(front, "rb") as said:
            text = said.read()
        _, status = os.waitpid(pid, 0)
        print(json.dumps([os.waitstatus_to_exitcode(status), json.loads(text or "null")]), flush=True)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stops")
    b.save(folder / "base.safetensors", b.sd1())
    b.sd1_lora(folder / "lora.safetensors")
    for number, name in enumerate(NAMES):
        lora = {"path": "lora.safetensors", "strength": 0.5 + number}
        path = b.recipe(folder, loras=[lora], output={"path": f"out/{name}.safetensors"})
        path.rename(folder / f"{name}.yaml")
        alone = folder / "alone" / f"{name}.safetensors"
        alone.parent.mkdir(exist_ok=True)
        bake(load_recipe(folder / f"{name}.yaml"), RunOptions(device="cpu", fsync=False), output=alone)
    (folder / "out").mkdir()
    return folder


class Batches:
    """Run batches, each in a process of its own, that is killed before a call of a function."""

    def __init__(self, folder: Path) -> None:
        words = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(folder), str(PART), *NAMES]
        environment = dict(os.environ, PYTHONPATH=str(ROOT))
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(words, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, text=True)

    def run(self, point: str = "", count: int = 0) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([point, count]) + "\n")
        self.process.stdin.flush()
        code, said = json.loads(self.process.stdout.readline())
        assert code == (-9 if count else 0), f"{point} {count}: {code}"
        return said


@pytest.fixture(scope="module")
def batches(folder: Path) -> Iterator[Batches]:
    made = Batches(folder)
    with made.process:
        yield made


@pytest.fixture(autouse=True)
def _nothing_there(folder: Path) -> None:
    for path in [*(folder / "out").glob("*.safetensors")]:
        path.unlink()


def out(folder: Path, name: str) -> Path:
    return folder / "out" / f"{name}.safetensors"


def finished(folder: Path, name: str) -> int:
    """Count the bytes of which receipts speak."""
    places = (partial_of(out(folder, name)) / "receipts").glob("*.json")
    said = [json.loads(path.read_text())["receipt"]["ranges"] for path in places]
    return sum(stop - start for ranges in said for _, start, stop, _ in ranges)


def is_ended(folder: Path) -> bool:
    alike = (
        out(folder, name).read_bytes() == (folder / "alone" / f"{name}.safetensors").read_bytes() for name in NAMES
    )
    return all(alike) and not [*(folder / "out").glob("*.partial")]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(("what", "point", "count"), POINTS)
def test_a_killed_batch_goes_on(folder: Path, batches: Batches, what: str, point: str, count: int) -> None:
    batches.run(point, count)
    there = [name for name in NAMES if out(folder, name).exists()]
    for name in there:
        assert out(folder, name).read_bytes() == (folder / "alone" / f"{name}.safetensors").read_bytes(), (
            "names appear whole"
        )
    receipts = {name: finished(folder, name) for name in NAMES if name not in there}
    said, told, kept, read = batches.run()
    assert [status for status, _ in said] == ["current" if name in there else "baked" for name in NAMES], said
    assert told == []
    assert kept == {name: size for name, size in receipts.items() if size}
    assert is_ended(folder)
    whole = os.path.getsize(folder / "base.safetensors")
    if "Move" in point or "fill_in" in point or "Outputs" in point or "Complete" in point:
        assert read == 0, "all was finished"
    elif "land" in point or "receipts" in point or "replace" in point:
        assert 0 < read < 2 * whole - min(receipts.values())


def test_a_batch_is_killed_again_and_again(folder: Path, batches: Batches) -> None:
    """Each run lands two receipts before it is killed; all of them count."""
    sizes = [0]
    for _ in range(3):
        batches.run("lorabake.batch.notes.write_all", 3)
        sizes.append(sum(finished(folder, name) for name in NAMES))
    assert sizes == sorted({*sizes}), "each run finishes more"
    batches.run()
    assert is_ended(folder)
