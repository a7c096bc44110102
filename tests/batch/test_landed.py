"""What receipts cover together: a process reads each once, and what it says is what a first look would say."""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from lorabake.baking import bake, plan
from lorabake.batch import BatchOptions, bake_all, landed, receipts
from lorabake.batch.engines import Telling
from lorabake.batch.landed import Landed
from lorabake.batch.parts import Part, parts_of
from lorabake.batch.work import Job, do
from lorabake.execution.agenda import Computed
from lorabake.options import RunOptions
from lorabake.recipe import Recipe, load_recipe
from lorabake.writing.inputs import Inputs
from lorabake.writing.output import Output
from lorabake.writing.ranges import Ranges
from tests import builders as b

PART = 1500
GROUND = {"recipe": "of this test"}
OPTIONS = RunOptions(device="cpu", workers=1, fsync=False)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    b.save(tmp_path / "base.safetensors", b.sd1())
    b.sd1_lora(tmp_path / "lora.safetensors")
    return load_recipe(b.recipe(tmp_path, output={"path": "a.safetensors"}))


@pytest.fixture
def output(recipe: Recipe) -> Iterator[Output]:
    made = plan(recipe)
    with Inputs(made) as inputs, Output(made, inputs, overwrite=True, fsync=False) as output:
        yield output


def land(output: Output, part: Part) -> Path | None:
    """Land a receipt of a part, whatever its bytes are."""
    (share,) = part.portion
    computed = {step.number: Computed("cpu", "cpu", {}) for step in share.steps}
    receipt = receipts.land(output, share, computed, GROUND, threading.Event())
    return None if receipt is None else receipts.folder_of(output) / receipt.name


@contextmanager
def reads() -> Iterator[Counter[Path]]:
    """Count how often each receipt is read."""
    count, read = Counter[Path](), receipts.read

    def counted(path: Path) -> receipts.Receipt:
        count[path] += 1
        return read(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(landed, "read", counted)
        yield count


def test_a_look_costs_what_is_new(output: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the receipts are twice the work, not four times, with a look after each."""
    asked: list[int] = []
    add, is_free = Ranges.add, Ranges.is_free
    monkeypatch.setattr(Ranges, "add", lambda *given: asked.append(1) or add(*given))
    monkeypatch.setattr(Ranges, "is_free", lambda *given: asked.append(1) or is_free(*given))
    known = Landed(output.plan, GROUND)
    parts = random.Random(3).sample(parts := parts_of([output.plan], PART), len(parts))
    size = 0
    with reads() as count:
        for part in parts:
            land(output, part)
            covered, refused = known.look(output)
            assert not refused
            size += part.size
            assert covered.size == size
    assert len(count) == len(parts) > 20
    assert {*count.values()} == {1}
    assert len(asked) == 2 * sum(len(part.portion[0].places) for part in parts)
    assert covered.places == ((0, 0, output.plan.files[0].data_size),)
    assert len(covered.computed) == len(output.plan.steps)


def spoil(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"ranges": [[0, ', b'"ranges": [[0, 1'))


def replace(path: Path) -> None:
    """Put another file there, as long and as old."""
    was, other = path.stat(), path.with_name("other")
    other.write_bytes(path.read_bytes()[::-1])
    os.utime(other, ns=(was.st_atime_ns, was.st_mtime_ns))
    other.replace(path)


@pytest.mark.parametrize("change", [Path.unlink, spoil, replace])
def test_what_is_gone_or_replaced_counts_no_more(output: Output, change: Callable[[Path], None]) -> None:
    known = Landed(output.plan, GROUND)
    parts = parts_of([output.plan], PART)[:6]
    paths = [land(output, part) for part in parts]
    with reads() as count:
        before, _ = known.look(output)
        text = paths[2].read_bytes()
        change(paths[2])
        for _ in range(3):
            after, refused = known.look(output)
            assert after.size == before.size - parts[2].size
            assert after.computed.keys() == before.computed.keys() - {
                step.number for step in parts[2].portion[0].steps
            }
            assert refused == ({paths[2]: "a receipt is damaged"} if paths[2].exists() else {})
        paths[2].write_bytes(text)
        assert known.look(output) == (before, {})
    again = count.pop(paths[2])
    assert again == (2 if change is Path.unlink else 3)
    assert {*count.values()} == {1}


def test_a_receipt_that_cannot_be_read_now_is_read_another_time(
    output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = Landed(output.plan, GROUND)
    path = land(output, parts_of([output.plan], PART)[0])

    def failing(path: Path) -> None:
        raise OSError("not now")

    with monkeypatch.context() as patch:
        patch.setattr(landed, "read", failing)
        assert known.look(output)[1] == {path: "a receipt is damaged"}
    assert known.look(output)[1] == {}


def test_receipts_of_a_file_that_is_gone_count_again_when_it_is_there(output: Output) -> None:
    known = Landed(output.plan, GROUND)
    path = land(output, parts_of([output.plan], PART)[0])
    before = known.look(output)
    file = output.partial.new
    file.rename(file.with_name("gone"))
    assert known.look(output)[1] == {path: "a file is gone, or has another size"}
    file.with_name("gone").rename(file)
    assert known.look(output) == before


@pytest.mark.parametrize("seed", range(6))
def test_looks_on_the_way_say_what_a_first_look_says(output: Output, seed: int) -> None:
    """Receipts of several cuts overlap; of two, the one counts whose name is first, whichever landed first."""
    choose = random.Random(seed)
    known = Landed(output.plan, GROUND)
    parts = [part for size in (1500, 2500, 4000) for part in parts_of([output.plan], size)]
    seen = set[str]()
    for part in choose.sample(parts, 40):
        path = land(output, part)
        there = sorted(path.parent.glob("*.json"))
        match choose.randrange(8):
            case 0:
                choose.choice(there).unlink()
            case 1:
                spoil(choose.choice(there))
            case 2:
                continue
        said = known.look(output)
        assert said == Landed(output.plan, GROUND).look(output)
        assert all(one[0] < other[0] or one[2] < other[1] for one, other in pairwise(said[0].places))
        seen |= {*said[1].values()}
    assert seen == {"a receipt is damaged", "two receipts speak of the same bytes"}


def test_ranges_are_kept_as_single_bytes_would_be() -> None:
    choose = random.Random(1)
    for _ in range(300):
        ranges, held = Ranges(), set[int]()
        for _ in range(12):
            start = choose.randrange(30)
            own = range(start, start + choose.randrange(6))
            is_free = held.isdisjoint(own)
            assert ranges.is_free(own.start, own.stop) is is_free
            try:
                ranges.add(own.start, own.stop)
            except ValueError:
                assert not is_free
            else:
                assert is_free
                held |= {*own}
            assert [byte for each in ranges for byte in range(*each)] == sorted(held)
            assert all(one[1] < other[0] for one, other in pairwise(ranges)), "what follows each other is one"
            assert ranges.reach == next(byte for byte in range(99) if byte not in held)


def test_a_worker_reads_each_receipt_once_and_the_driver_does(recipe: Recipe) -> None:
    alone = bake(recipe, OPTIONS)
    whole = alone.path.read_bytes()
    alone.path.unlink()
    ran: list[tuple[Counter[Path], int]] = []

    class Here:
        def hash(self, job: Job, files: Sequence[tuple[int, int]], telling: Telling) -> None:
            pass

        def run(self, job: Job, numbers: Sequence[int], telling: Telling) -> None:
            with reads() as count:
                for number in numbers:
                    assert len(do(job, number)) == 1
            ran.append((count, len(numbers)))

    with reads() as count:
        bake_all([recipe], BatchOptions(run=OPTIONS, part_bytes=PART, engine=Here()))  # type: ignore[arg-type]
    (own, parts), *rest = ran
    assert not rest
    assert len(own) == parts - 1 > 20, "the last one landed after the last look"
    assert {*own.values()} == {1}
    assert len(count) == parts
    assert {*count.values()} == {1}
    assert alone.path.read_bytes() == whole
