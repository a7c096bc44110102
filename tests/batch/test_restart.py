"""A batch that is stopped goes on: what has a receipt is not done again, and the bytes are the same."""

from __future__ import annotations

import errno
import json
import os
import pickle
import pkgutil
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from lorabake.baking import bake, plan
from lorabake.batch import BatchOptions, Outcome, bake_all, notes, receipts
from lorabake.batch.engines import Telling
from lorabake.batch.parts import parts_of
from lorabake.batch.work import Job, do, hash_file
from lorabake.errors import SurroundingsError
from lorabake.options import RunOptions
from lorabake.recipe import Recipe, load_recipe
from lorabake.writing.inputs import Inputs
from lorabake.writing.partial import partial_of
from lorabake.writing.weights import Weights
from tests import builders as b

PART = 6000
"""Bytes of a part here: the tiny base has some ten."""

NAMES = ("a", "b")

ALONE: dict[str, bytes] = {}
"""A recipe's name and normal form -> the bytes of its single bake; all inputs here are alike."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    b.save(tmp_path / "base.safetensors", b.sd1())
    b.sd1_lora(tmp_path / "lora.safetensors")
    return tmp_path


def recipes(folder: Path) -> list[Recipe]:
    made = []
    for number, name in enumerate(NAMES):
        lora = {"path": "lora.safetensors", "strength": 0.5 + number}
        path = b.recipe(folder, loras=[lora], output={"path": f"{name}.safetensors"})
        made.append(load_recipe(path.rename(folder / f"{name}.yaml")))
    return made


def run(made: Sequence[Recipe], **others: object) -> tuple[Outcome, ...]:
    warned: list[str] = []
    options = RunOptions(device="cpu", workers=2, fsync=False, warn=warned.append)
    others = {"part_bytes": PART, **others}
    outcomes = bake_all(made, BatchOptions(run=options, **others))  # type: ignore[arg-type]
    told.extend(warned)
    return outcomes


told: list[str] = []


@pytest.fixture(autouse=True)
def _nothing_told() -> Iterator[None]:
    told.clear()
    yield
    told.clear()


def stop_after(count: int, monkeypatch: pytest.MonkeyPatch, error: BaseException | None = None) -> None:
    """Fail as Ctrl-C does when the receipt number `count` would land."""
    land, landed = receipts.land, list[int]()

    def failing(*given: object, **others: object) -> object:
        if len(landed) == count:
            raise error or KeyboardInterrupt
        landed.append(1)
        return land(*given, **others)  # type: ignore[arg-type]

    monkeypatch.setattr("lorabake.batch.work.land", failing)


def stopped(folder: Path, monkeypatch: pytest.MonkeyPatch, count: int = 7) -> list[Recipe]:
    made = recipes(folder)
    with monkeypatch.context() as patch:
        stop_after(count, patch)
        with pytest.raises(KeyboardInterrupt):
            run(made)
    assert not any((folder / f"{name}.safetensors").exists() for name in NAMES)
    assert sum(len([*receipts_in(folder, name)]) for name in NAMES) == count
    return made


def receipts_in(folder: Path, name: str) -> Iterator[Path]:
    yield from sorted((partial_of(folder / f"{name}.safetensors") / "receipts").glob("*.json"))


def is_right(folder: Path, made: Sequence[Recipe]) -> bool:
    """Tell whether outputs have the bytes of single bakes, and nothing is beside them."""
    for each in made:
        key = each.name + each.normal_json()
        if key not in ALONE:
            alone = folder / "alone" / f"{each.name}.safetensors"
            alone.parent.mkdir(exist_ok=True)
            bake(each, RunOptions(device="cpu", workers=1, fsync=False, overwrite=True), output=alone)
            ALONE[key] = alone.read_bytes()
        if ALONE[key] != each.locate(each.output.path).read_bytes():
            return False
    return not [*folder.glob("*.partial")]


class Reads:
    """Count the bytes of the base that are read: those that are computed from, and those that are copied."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.of: defaultdict[str, int] = defaultdict(int)
        read, copy = Inputs.read, Weights.copy
        turn = threading.Lock()

        def counted(inputs: Inputs, path: Path, start: int, into: memoryview) -> None:
            with turn:
                self.of[path.name] += len(into)
            read(inputs, path, start, into)

        def copied(weights: Weights, each: object, *others: object) -> None:
            with turn:
                self.of[each.source.name] += each.stop - each.start  # type: ignore[attr-defined]
            copy(weights, each, *others)  # type: ignore[arg-type]

        monkeypatch.setattr(Inputs, "read", counted)
        monkeypatch.setattr(Weights, "copy", copied)

    @property
    def base(self) -> int:
        return self.of["base.safetensors"]


@pytest.mark.parametrize("count", [7])
def test_a_second_run_keeps_what_has_receipts(folder: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    made = stopped(folder, monkeypatch, count)
    kept: dict[str, int] = {}
    with monkeypatch.context() as patch:
        reads = Reads(patch)
        outcomes = run(made, kept=lambda path, size: kept.update({path.stem: size}))
    assert [outcome.status for outcome in outcomes] == ["baked"] * 2
    assert is_right(folder, made)
    assert told == []
    plans = [plan(each) for each in made]
    written = sum(file.data_size for each in plans for file in each.files)
    again = reads.base
    for each in made:
        each.locate(each.output.path).unlink()
    with monkeypatch.context() as patch:
        reads = Reads(patch)
        run(made)
    assert 0 < sum(kept.values()) < written
    saved = reads.base - again
    assert saved >= sum(kept.values()) // 2, "a step that two plans share is read once"


def test_the_result_is_that_of_a_bake_in_one_go(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = stopped(folder, monkeypatch)
    second = [outcome.result for outcome in run(made)]
    for each in made:
        each.locate(each.output.path).unlink()
    once = [outcome.result for outcome in run(made)]
    for one, other in zip(once, second, strict=True):
        assert one is not None
        assert other is not None
        for field in ("size", "data_sha256", "input_sha256", "survival", "computed", "device", "cautions"):
            assert getattr(one, field) == getattr(other, field), field
        assert one.survival


def test_another_cut_keeps_what_is_finished(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = stopped(folder, monkeypatch)
    kept: list[int] = []
    run(made, part_bytes=4 * PART, kept=lambda path, size: kept.append(size))
    assert len(kept) == 2
    assert is_right(folder, made)


def test_a_single_bake_removes_what_a_batch_left(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = stopped(folder, monkeypatch)
    for each in made:
        bake(each, RunOptions(device="cpu", fsync=False))
    assert is_right(folder, made)


CHANGES = {
    "recipe": ("the recipe has changed", lambda folder: None),
    "base": ("base.safetensors has changed", lambda folder: os.utime(folder / "base.safetensors", (1, 1))),
    "torch": ("it was made with another version of torch", lambda folder: None),
}


@pytest.mark.parametrize("what", [*CHANGES])
def test_what_is_of_something_else_is_done_again(folder: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    made = stopped(folder, monkeypatch)
    message, change = CHANGES[what]
    change(folder)
    if what == "recipe":
        made = [
            each.model_copy(update={"loras": (each.loras[0].model_copy(update={"strength": 0.1}),)}) for each in made
        ]
    if what == "torch":
        now = receipts.versions()
        monkeypatch.setattr(receipts, "versions", lambda: {**now, "torch": "0.0"})
    kept: list[int] = []
    run(made, kept=lambda path, size: kept.append(size))
    assert not kept
    assert len(told) == 2
    assert all(f"{message} (" in line for line in told), told
    assert is_right(folder, made)


def damage(path: Path, how: str) -> None:
    text = path.read_bytes()
    match how:
        case "truncated":
            path.write_bytes(text[: len(text) // 2])
        case "flipped":
            said = json.loads(text)
            said["receipt"]["ranges"][0][2] -= 1
            path.write_text(json.dumps(said))


@pytest.mark.parametrize("how", ["truncated", "flipped"])
def test_a_damaged_receipt_does_not_count(folder: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    made = stopped(folder, monkeypatch)
    first, *_ = receipts_in(folder, "a")
    damage(first, how)
    for name, text in {"empty": "", "foreign": "[1, 2]", "other": '{"receipt": {}, "sha256": 3}'}.items():
        (first.parent / f"{name}.json").write_text(text)
    run(made)
    assert told == [
        f"{folder / 'a.safetensors'}: what a stopped batch left of it is done again: "
        "a receipt is damaged (4 receipts)"
    ]
    assert is_right(folder, made)


@pytest.mark.parametrize("how", ["gone", "longer"])
def test_receipts_of_a_file_that_is_not_whole_do_not_count(
    folder: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    made = stopped(folder, monkeypatch)
    file = partial_of(folder / "a.safetensors") / "new"
    if how == "gone":
        file.unlink()
    else:
        os.truncate(file, file.stat().st_size + 1)
    run(made)
    assert is_right(folder, made)


def test_recheck_finds_bytes_that_are_no_longer_what_they_were(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = stopped(folder, monkeypatch)
    file = partial_of(folder / "a.safetensors") / "new"
    said = json.loads(next(receipts_in(folder, "a")).read_text())["receipt"]
    header = len(plan(made[0]).files[0].header())
    with open(file, "r+b") as stream:
        stream.seek(header + said["ranges"][0][1])
        byte = stream.read(1)
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte[0] ^ 1]))
    run(made, recheck=True)
    assert [line for line in told if "the bytes are no longer those" in line]
    assert is_right(folder, made)


@pytest.mark.parametrize("hashed", [True, False])
def test_no_byte_is_hashed_twice_for_its_receipt(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, hashed: bool
) -> None:
    """With a digest of the data in the header, receipts have that of all data up to them: it is on the way."""
    ranges, kept, land = [], list[bool](), receipts.land
    monkeypatch.setattr(Weights, "sha256", lambda *given: ranges.append(given) or "0" * 64)

    def seen(*given: object, **others: object) -> object:
        receipt = land(*given, **others)  # type: ignore[arg-type]
        kept.append(receipt is not None and receipt.from_start)
        return receipt

    monkeypatch.setattr("lorabake.batch.work.land", seen)
    path = b.recipe(folder, output={"path": "a.safetensors", "hash": hashed})
    run([load_recipe(path)])
    assert kept
    assert {*kept} == {hashed}
    assert bool(ranges) is not hashed


def test_recheck_reads_ranges_of_an_output_without_a_digest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = b.recipe(folder, output={"path": "a.safetensors", "hash": False})
    with monkeypatch.context() as patch:
        stop_after(3, patch)
        with pytest.raises(KeyboardInterrupt):
            run([load_recipe(path)])
    file = partial_of(folder / "a.safetensors") / "new"
    spoilt = bytearray(file.read_bytes())
    said = [json.loads(place.read_text())["receipt"] for place in receipts_in(folder, "a")]
    assert [each["from_start"] for each in said] == [False] * 3
    spoilt[len(plan(load_recipe(path)).files[0].header()) + said[1]["ranges"][0][1]] ^= 1
    file.write_bytes(spoilt)
    run([load_recipe(path)], recheck=True)
    assert [line for line in told if "the bytes are no longer those" in line and "(1 receipt)" in line]
    assert is_right(folder, [load_recipe(path)])


class Backwards:
    """Run parts and hash files from pickled jobs, the last ones first."""

    def __init__(self) -> None:
        self.hashed: list[tuple[int, int]] = []

    def run(self, job: Job, numbers: Sequence[int], telling: Telling) -> None:
        job = pickle.loads(pickle.dumps(job))
        assert len(pickle.dumps(job)) < 20_000
        for number in reversed(numbers):
            assert do(job, number, telling.progress, telling.warn)
            assert do(job, number) == (), "its receipts have landed"

    def hash(self, job: Job, files: Sequence[tuple[int, int]], telling: Telling) -> None:
        for number, file in reversed(files):
            hash_file(pickle.loads(pickle.dumps(job)), number, file)
            self.hashed.append((number, file))


def test_parts_are_done_in_any_process_and_order(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver completes the outputs, and reads nothing of what others have hashed."""
    monkeypatch.setattr(Weights, "_follow", None)
    made, engine = recipes(folder), Backwards()
    run(made, engine=engine)
    assert is_right(folder, made)
    assert engine.hashed == [(number, 0) for number in reversed(range(len(made)))]


# -- digests of whole files ------------------------------------------------------------------------------------


class HashesAndStops(Backwards):
    def hash(self, job: Job, files: Sequence[tuple[int, int]], telling: Telling) -> None:
        super().hash(job, files[:-1], telling)
        raise KeyboardInterrupt


def hashed_but_for_one(folder: Path) -> list[Recipe]:
    """Stop a batch when all is computed, and all outputs but the last have a digest."""
    made = recipes(folder)
    with pytest.raises(KeyboardInterrupt):
        run(made, engine=HashesAndStops())
    assert not any((folder / f"{name}.safetensors").exists() for name in NAMES)
    return made


def digest_of(folder: Path, name: str) -> Path:
    return partial_of(folder / f"{name}.safetensors") / "receipts" / "file.0" / "digest"


def test_a_second_run_hashes_what_has_no_digest(folder: Path) -> None:
    made, engine = hashed_but_for_one(folder), Backwards()
    run(made, engine=engine)
    assert is_right(folder, made)
    assert engine.hashed == [(len(made) - 1, 0)]


@pytest.mark.parametrize("how", ["cut", "another file's", "of other inputs", "another digest"])
def test_a_digest_that_is_damaged_or_of_something_else_does_not_count(folder: Path, how: str) -> None:
    made, engine = hashed_but_for_one(folder), Backwards()
    place = digest_of(folder, NAMES[0])
    said = json.loads(place.read_bytes())
    match how:
        case "cut":
            place.write_bytes(place.read_bytes()[:-9])
        case "another digest":
            said["digest"]["sha256"] = "0" * 64
            place.write_text(json.dumps(said))
        case _:
            name, value = ("file", 1) if how == "another file's" else ("ground", "0" * 64)
            place.unlink()
            notes.put(place, "digest", said["digest"] | {name: value}, durable=False)
    run(made, engine=engine)
    assert is_right(folder, made)
    assert {number for number, _ in engine.hashed} == {0, len(made) - 1}


def of_a_folder(folder: Path) -> list[Recipe]:
    """Write a recipe of one output, on a base of three files with weights."""
    (folder / "shards").mkdir()
    b.save_shards(folder / "shards", "model", b.sd1(), 3)
    return [load_recipe(b.recipe(folder, base="shards", output={"path": "a"}))]


def test_every_file_of_a_folder_is_a_piece_of_its_own(folder: Path) -> None:
    made, engine = of_a_folder(folder), Backwards()
    run(made, engine=engine)
    assert engine.hashed == [(0, 2), (0, 1), (0, 0)]
    alone = bake(made[0], RunOptions(device="cpu", fsync=False), output=folder / "alone" / "a").path
    assert b.tree(folder / "a") == b.tree(alone)


def test_workers_hash_files_of_an_output_side_by_side(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    follow, both, calls = Weights._follow, threading.Barrier(2), list[int]()

    def met(*given: object) -> str:
        calls.append(1)
        if len(calls) <= 2:
            both.wait(20)
        return follow(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(Weights, "_follow", met)
    bake(of_a_folder(folder)[0], RunOptions(device="cpu", workers=2, fsync=False))
    assert len(calls) == 3


def test_recheck_takes_all_digests_again(folder: Path) -> None:
    made, engine = hashed_but_for_one(folder), Backwards()
    run(made, engine=engine, recheck=True)
    assert is_right(folder, made)
    assert len(engine.hashed) == len(made)


def test_a_batch_of_one_small_part_lands_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorabake.batch.work.land", None)
    made = recipes(folder)
    assert len(parts_of([plan(each) for each in made])) == 1
    run(made, part_bytes=1 << 30)
    assert is_right(folder, made)


# -- disks that fail -------------------------------------------------------------------------------------------

FAILURES = [
    ("lorabake.writing.weights.write_all", errno.EROFS),
    ("lorabake.batch.notes.write_all", errno.ENOSPC),
    ("lorabake.batch.notes.os.replace", errno.EIO),
]


@pytest.mark.parametrize(("seam", "code"), FAILURES)
def test_a_disk_that_fails_loses_nothing_finished(
    folder: Path, monkeypatch: pytest.MonkeyPatch, seam: str, code: int
) -> None:
    made = recipes(folder)
    owner, _, name = seam.rpartition(".")
    function, calls, turn = pkgutil.resolve_name(seam), list[int](), threading.Lock()

    def failing(*given: object, **others: object) -> object:
        with turn:
            calls.append(1)
            fails = len(calls) > 8
        if fails:
            raise OSError(code, os.strerror(code))
        return function(*given)

    with monkeypatch.context() as patch:
        patch.setattr(pkgutil.resolve_name(owner), name, failing)
        outcomes = run(made)
    assert [outcome.status for outcome in outcomes] == ["failed"] * 2
    assert all(isinstance(outcome.error, SurroundingsError) for outcome in outcomes), outcomes
    left = sum(receipt_bytes(folder, name) for name in NAMES)
    kept: list[int] = []
    run(made, kept=lambda path, size: kept.append(size))
    assert sum(kept) == left
    assert left or "weights" in seam
    assert is_right(folder, made)


def receipt_bytes(folder: Path, name: str) -> int:
    said = [json.loads(path.read_text())["receipt"]["ranges"] for path in receipts_in(folder, name)]
    return sum(stop - start for ranges in said for _, start, stop, _ in ranges)


def test_a_disk_that_vanishes_and_comes_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = recipes(folder)
    land, landed = receipts.land, list[int]()
    partials = [partial_of(folder / f"{name}.safetensors") for name in NAMES]

    def vanishing(*given: object, **others: object) -> object:
        landed.append(1)
        if len(landed) == 6:
            for place in partials:
                place.rename(folder / f"{place.name}.gone")
        return land(*given, **others)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr("lorabake.batch.work.land", vanishing)
        outcomes = run(made[:1])
    assert [outcome.status for outcome in outcomes] == ["failed"]
    for place in partials:
        with suppress(FileNotFoundError):
            (folder / f"{place.name}.gone").rename(place)
    left = receipt_bytes(folder, "a")
    assert left
    kept: list[int] = []
    run(made, kept=lambda path, size: kept.append(size))
    assert kept == [left]
    assert is_right(folder, made)


def test_an_output_at_fault_leaves_nothing_and_the_others_go_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass that one output stops is done again one by one: what is finished of the others is kept."""
    slots = b.lora((b.W, b.W))
    slots["up"] *= float("nan")
    b.kohya(folder / "nan.safetensors", {b.unet_lora(b.Q): slots})
    made = recipes(folder)
    path = b.recipe(folder, loras=["nan.safetensors"], output={"path": "nan.out.safetensors"})
    made.append(load_recipe(path.rename(folder / "nan.yaml")))
    kept: list[str] = []
    outcomes = run(made, kept=lambda path, size: kept.append(path.stem))
    assert [outcome.status for outcome in outcomes] == ["baked", "baked", "failed"]
    assert is_right(folder, made[:2])
