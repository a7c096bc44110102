"""Pickles that were made to do harm: each is read, or refused with one error, in bounded time and memory."""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import random
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from lorabake.errors import FileError
from lorabake.tensors import pickles
from lorabake.tensors.checkpoint import open_checkpoint
from lorabake.tensors.pickles import open_pickle
from lorabake.tensors.pickles.names import NAMES
from tests.torture.conftest import Tally
from tests.torture.fuzzing import mutated, open_files, outcome, seeds

Make = Callable[[str, str], Tally]
Effort = Callable[[object, object], object]

PROMISE = "tensors or one error, within seconds, without code, temporary files or memory that nothing filled"
FLOATS = struct.pack("<8f", *range(8))
MEMORY = 400 << 20
"""Bytes that reading a hostile file may take."""


def packed(
    path: Path, program: bytes, records: dict[str, bytes] | None = None, how: int = zipfile.ZIP_STORED
) -> Path:
    """Write an archive as torch.save does."""
    with zipfile.ZipFile(path, "w", how) as archive:
        archive.writestr("a/data.pkl", program)
        for name, content in {"byteorder": b"little", "data/0": FLOATS, **(records or {})}.items():
            archive.writestr(f"a/{name}", content)
    return path


def legacy(path: Path, program: bytes, records: bytes = struct.pack("<q", 8) + FLOATS) -> Path:
    """Write a file as torch.save did before version 1.6."""
    head = b"".join(pickle.dumps(each, 2) for each in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    path.write_bytes(head + program + pickle.dumps(["0"], 2) + records)
    return path


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def whole(value: int) -> bytes:
    return f"I{value}\n".encode()


def storage(kind: str = "FloatStorage", key: str = "0", size: int = 8, tail: bytes = b"") -> bytes:
    return (
        b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + whole(size) + tail + b"tQ"
    )


def rebuilt(*arguments: bytes, by: str = "torch._utils _rebuild_tensor_v2") -> bytes:
    module, _, name = by.partition(" ")
    return f"c{module}\n{name}\n".encode() + b"(" + b"".join(arguments) + b"tR"


def tup(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def tensor(
    shape: tuple[int, ...] = (2, 4), strides: tuple[int, ...] = (4, 1), offset: int = 0, **kind: object
) -> bytes:
    sizes = (tup(*map(whole, each)) for each in (shape, strides))
    return rebuilt(storage(**kind), whole(offset), *sizes, b"I00\n", b"N")  # type: ignore[arg-type]


def named(**values: bytes) -> bytes:
    return b"}" + b"".join(text(name) + value + b"s" for name, value in values.items()) + b"."


GOOD = tensor()
DOUBLING = b"".join(f"({f'g{level}'}\n{f'g{level}'}\ntp{level + 1}\n".encode() for level in range(60))
DEEP = b"(" * 30_000 + b"t" * 30_000

PROGRAMS: dict[str, bytes] = {
    "nothing at all": b"",
    "an end alone": b".",
    "a deep tuple": DEEP + b".",
    "a deep list": b"]" * 50_000 + b"a" * 49_999 + b".",
    "a deep dict": named(w=b"}" + (text("a") + b"}") * 30_000 + b"s" * 30_000),
    "a deep dict of long names": named(w=b"}" + text("n" * 60_000) + b"p1\n0" + b"g1\n}" * 9_000 + b"s" * 9_000),
    "a wide dict below a long name": b"}" + text("n" * 60_000) + b"}(" + b"".join(
        text(str(i)) + b"N" for i in range(30_000)) + b"us.",
    "a tuple as a key": b"}" + DEEP + b"Ns.",
    "a tuple as a module's name": DEEP + text("a") + b"\x93.",
    "a tuple as a storage's name": named(w=rebuilt(
        b"(" + text("storage") + b"ctorch\nFloatStorage\n" + DEEP + b"NK\1tQ")),
    "a tuple as a layout": named(w=rebuilt(DEEP, by="torch.serialization _get_layout")),
    "a tuple as a pair's key": named(w=rebuilt(b"](" + DEEP + b"Nta", by="collections OrderedDict")),
    "a tuple as a flag": named(w=rebuilt(
        storage(), whole(0), tup(whole(1)), tup(whole(1)), b"I00\n", b"N", b"}" + DEEP + b"I01\ns")),
    "a tuple as a shape": named(w=rebuilt(storage(), whole(0), DEEP, DEEP, b"I00\n", b"N")),
    "a tuple that doubles": b"()p0\n" + DOUBLING + b".",
    "a name that doubles": b"()p0\n" + DOUBLING + text("a") + b"\x93.",
    "a key that doubles": b"}()p0\n" + DOUBLING + b"Ns.",
    "a layout that doubles": b"()p0\n" + DOUBLING + rebuilt(b"g60\n", by="torch.serialization _get_layout") + b".",
    "a pair's key that doubles": b"()p0\n" + DOUBLING + rebuilt(b"](g60\nNta", by="collections OrderedDict") + b".",
    "a dict copied again and again": named(w=b"}(" + b"".join(whole(i) + b"N" for i in range(20_000)) + b"up1\n0"
        + b"ccollections\nOrderedDict\np2\n0" + b"g2\n(g1\ntR0" * 20_000 + b"N"),
    "a list made a dict again and again": named(w=b"](" + b"N\x85" * 20_000 + b"ep1\n0"
        + b"ccollections\nOrderedDict\np2\n0" + b"g2\n(g1\ntR0" * 20_000 + b"N"),
    "a shape made again and again": named(w=b"(" + b"K\1" * 60 + b"tp1\n0"
        + b"ctorch\nSize\n(g1\ntR0" * 20_000 + b"N"),
    "a function within itself": named(w=b"ctorch._tensor\n_rebuild_from_type_v2\np1\n0(g1\nN"
        + b"(g1\nN" * 5_000 + b")" + b"t" * 5_000 + b"tp2\n0g1\ng2\nR"),
    "marks alone": b"(" * 100_000 + b".",
    "marks and tuples": (b"(" * 100 + b"t" * 100) * 500 + b".",
    "a long stack popped again and again": b"N" * 100_000 + b"(1" * 50_000 + b".",
    "a mark that is remembered": b"(p1\n" + b"g1\n" * 50_000 + b"1" * 50_000 + b".",
    "a thousand marks doubled": b"(" + b"2" * 50_000 + b"t" * 50_000 + b".",
    "a list that grows by itself": b"]p1\n(" + b"g1\n" * 50_000 + b"e.",
    "a list in itself": named(w=b"]p1\ng1\na"),
    "a dict in itself": b"}p1\n" + text("a") + b"g1\ns.",
    "a text of 4 GB": b"X\xff\xff\xff\xff",
    "bytes of 16 EB": b"\x8e" + b"\xff" * 8,
    "bytes of a negative number": b"B\xff\xff\xff\xff",
    "a number of 2 GB": b"\x8b\xff\xff\xff\x7f",
    "a number of a negative size": b"\x8b\xff\xff\xff\xff",
    "a number of a million digits": b"L" + b"9" * 1_000_000 + b"L\n.",
    "a number of a million bytes": named(w=b"\x8b" + struct.pack("<I", 1_000_000) + b"\x7f" * 1_000_000),
    "a tensor of a number of a million bytes": named(w=rebuilt(
        storage(), b"\x8b" + struct.pack("<I", 900_000) + b"\x7f" * 900_000, tup(whole(1)), tup(whole(1)))),
    "a line without an end": b"S'" + b"a" * 1_500_000,
    "a memo's number": b"Nr\xff\xff\xff\xff.",
    "a frame of 16 EB": b"\x95" + b"\xff" * 8 + named(w=GOOD),
    "eval": named(w=b"cbuiltins\neval\n(" + text("1") + b"tR"),
    "eval by another opcode": named(w=b"(" + text("1") + b"ibuiltins\neval\n"),
    "eval as an object": named(w=b"(cbuiltins\neval\n" + text("1") + b"o"),
    "eval as a new object": named(w=b"cbuiltins\neval\n)}\x92"),
    "eval by the stack": named(w=text("builtins") + text("eval") + b"\x93" + tup(text("1")) + b"R"),
    "eval by its dots": named(w=text("torch") + text("serialization.os.system") + b"\x93" + tup(text("true")) + b"R"),
    "an extension": named(w=b"\x82\x01"),
    "a buffer from outside": named(w=b"\x97\x98"),
    "attributes of a tensor": named(w=GOOD + b"}" + text("data") + b"Nsb"),
    "a call of a dtype": named(w=b"ctorch\nfloat32\n)R"),
    "a call of a storage's class": named(w=b"ctorch\nFloatStorage\n(I1000\ntR"),
    "a tensor's class, called": named(w=b"ctorch\nFloatTensor\n(I1000\ntR"),
    "a tensor's class, made": named(w=b"ctorch\nTensor\n(I1000\nt\x81"),
    "a tensor's class of a device": named(w=b"ctorch.cuda\nHalfTensor\n(I1000\ntR"),
    "a parameter of nothing": named(w=rebuilt(b"N", b"I01\n", b"N", by="torch._utils _rebuild_parameter")),
    "a parameter of a parameter of a class": named(w=rebuilt(
        b"ctorch\nFloatTensor\n(I1000\ntR", b"I01\n", b"N", by="torch._utils _rebuild_parameter")),
    "a tensor on meta": named(w=rebuilt(
        b"ctorch\nfloat32\n", tup(whole(9)), tup(whole(1)), b"I00\n",
        by="torch._utils _rebuild_meta_tensor_no_storage")),
    "a tensor of no storage": named(w=rebuilt(b"N", whole(0), tup(whole(9)), tup(whole(1)), b"I00\n", b"N")),
    "a storage alone": named(w=storage()),
    "a storage of the wrong name": named(w=tensor(key="7")),
    "a storage of an odd name": named(w=tensor(key="../../data.pkl")),
    "a storage larger than its record": named(w=tensor((16,), (1,), size=16)),
    "a storage of 2^61 values": named(w=tensor((1,), (1,), 1 << 60, size=1 << 61)),
    "a storage of two dtypes": named(w=tensor(), v=tensor((2, 8), (8, 1), kind="HalfStorage", size=16)),
    "a storage of half a value": named(w=tensor((4,), (1,), kind="DoubleStorage", size=5)),
    "bytes without a dtype": named(w=tensor((32,), (1,), kind="UntypedStorage", size=32)),
    "another dtype than the storage's": named(w=rebuilt(
        storage(), whole(1), tup(whole(3)), tup(whole(1)), b"I00\n", b"N", b"ctorch\nint64\n",
        by="torch._utils _rebuild_tensor_v3")),
    "a view of a storage over its end": named(w=rebuilt(
        storage(tail=tup(text("0"), whole(6), whole(9))), whole(0), tup(whole(9)), tup(whole(1)))),
    "no stride, a billion times": named(w=tensor((1 << 30,), (0,))),
    "no stride, in 64 dimensions": named(w=tensor((2,) * 64, (0,) * 64)),
    "65 dimensions": named(w=tensor((1,) * 65, (1,) * 65)),
    "strides beyond all": named(w=tensor((2, 2), (1 << 61, 1 << 61))),
    "a negative stride": named(w=tensor((2,), (-1,), 4)),
    "a negative size": named(w=tensor((-1,), (1,))),
    "a negative offset": named(w=tensor((1,), (1,), -1)),
    "an empty tensor of a far offset": named(w=tensor((0, 4), (4, 1), 1 << 60)),
    "no whole sizes": named(w=rebuilt(storage(), whole(0), tup(b"F1.0\n"), tup(b"F1.0\n"), b"I00\n", b"N")),
    "true as a size": named(w=rebuilt(storage(), whole(0), tup(b"\x88"), tup(b"\x88"), b"I00\n", b"N")),
    "a negated tensor of whole numbers": named(w=rebuilt(
        storage("LongStorage", size=4), whole(0), tup(whole(4)), tup(whole(2)), b"I00\n", b"N",
        b"}" + text("neg") + b"I01\ns")),
    "a text with half of a pair": b"}" + b"X\3\0\0\0\xed\xa0\x80" + GOOD + b"s.",
    "a thousand pairs of one tensor": named(**{f"w{i}": GOOD for i in range(1_000)}),
    "many wide spans of two values": named(**{f"w{i}": tensor((2,), (7,)) for i in range(3_000)}),
}  # fmt: skip


def archives() -> Iterator[tuple[str, Callable[[Path], object]]]:
    """Yield archives whose directory or records lie."""
    good = io.BytesIO()
    with zipfile.ZipFile(good, "w") as archive:
        for name, content in (("data.pkl", named(w=GOOD)), ("byteorder", b"little"), ("data/0", FLOATS)):
            archive.writestr(f"a/{name}", content)
    raw = good.getvalue()
    central = raw.index(b"PK\1\2")
    last = raw.rindex(b"PK\1\2")

    def changed(at: int, code: str, *values: int) -> Callable[[Path], object]:
        new = struct.pack("<" + code, *values)
        return lambda path: path.write_bytes(raw[:at] + new + raw[at + len(new) :])

    yield "a wrong checksum of the pickle", changed(central + 16, "I", 1)
    yield "a size that is too small", changed(last + 20, "II", 16, 16)
    yield "two sizes", changed(last + 20, "II", 16, 32)
    yield "a size that is too large", changed(last + 20, "II", 1 << 20, 1 << 20)
    yield "sizes of zip64 that are not there", changed(last + 20, "II", 0xFFFFFFFF, 0xFFFFFFFF)
    yield "an offset into another record", changed(last + 42, "I", 5)
    yield "the offset of another record", changed(last + 42, "I", 0)
    yield "an offset beyond the end", changed(last + 42, "I", 0xFFFFFFF0)
    yield "an encrypted record", changed(last + 8, "H", 1)
    yield "an encrypted pickle", changed(central + 8, "H", 1)
    yield "a compression that nobody knows", changed(last + 10, "H", 99)
    yield "a compression that is none", changed(last + 10, "H", 8)
    yield "a directory beyond the end", changed(len(raw) - 6, "I", 0xFFFFFF00)
    yield "a directory of 4 GB", changed(len(raw) - 10, "I", 0xFFFFFF00)
    yield "no directory", lambda path: path.write_bytes(raw[:central])
    yield "half a record", lambda path: path.write_bytes(raw[:-200])
    yield "a directory of zip64 beyond all", lambda path: path.write_bytes(
        raw[:-22]
        + struct.pack("<4sQHHLLQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, 3, 3, 1 << 63, 1 << 62)
        + struct.pack("<4sLQL", b"PK\6\7", 0, len(raw) - 22, 1)
        + raw[-22:-16] + b"\xff" * 14 + raw[-2:]
    )  # fmt: skip

    def doubled(path: Path) -> None:
        packed(path, named(w=GOOD))
        with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a/data/0", FLOATS)

    yield "two records of one name", doubled
    yield (
        "a bomb of zeros",
        lambda path: packed(path, named(w=GOOD), {"data/0": bytes(80 << 20)}, zipfile.ZIP_DEFLATED),
    )
    yield "a pickle as a bomb", lambda path: packed(path, b"N0" * (8 << 20) + b".", how=zipfile.ZIP_DEFLATED)
    yield "a small pickle as a bomb", lambda path: packed(path, b"]" * ((1 << 21) - 9), how=zipfile.ZIP_DEFLATED)
    yield "two pickles", lambda path: packed(path, named(w=GOOD), {"b/data.pkl": named(w=GOOD)})
    yield "a program of TorchScript", lambda path: packed(path, named(w=GOOD), {"constants.pkl": b"."})
    yield "compressed by another method", lambda path: packed(path, named(w=GOOD), how=zipfile.ZIP_BZIP2)
    yield "many records", lambda path: packed(path, named(w=GOOD), {f"data/{i}": b"" for i in range(1, 4000)})


READABLE = {  # odd, but each value is in the file, and torch reads the same
    "a frame of 16 EB", "a thousand pairs of one tensor", "many wide spans of two values", "many records",
    "an empty tensor of a far offset", "another dtype than the storage's", "bytes without a dtype",
    "a storage of half a value",
}  # fmt: skip


def read(path: Path) -> dict[str, bytes]:
    """Read all that a file says, and each tensor's bytes."""
    result = {}
    for key, info in open_pickle(path).tensors.items():
        with open(info.file, "rb") as stream:
            stream.seek(info.start)
            result[key] = stream.read(info.nbytes)
            assert len(result[key]) == info.nbytes
    return result


def refusal(path: Path) -> str:
    """Return what is wrong with how a hostile file was refused; empty if nothing is."""
    try:
        read(path)
    except FileError as error:
        return "" if str(error).startswith(f"{path}: ") else f"a message without the file's name: {error}"
    return "was read"


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def test_pickles_made_to_do_harm(tally: Make, effort: Effort, tmp_path: Path, scratch: Path) -> None:
    counted = tally("pickles made to do harm", PROMISE)
    cases: list[tuple[str, Callable[[Path], object]]] = list(archives())
    forms = {"": packed, ", older form": legacy}
    for number, (name, program) in enumerate([*PROGRAMS.items()][:: effort(2, 1)]):  # type: ignore[misc]
        for form in effort([*forms][number % 2 :][:1], [*forms]):  # type: ignore[attr-defined]
            made = partial(forms[form], program=program)
            cases.append((name + form, made))
    for number, (name, make) in enumerate(cases):
        path = tmp_path / f"{number}.pt"
        make(path)
        said: list[str] = []
        before = open_files()
        told = outcome(lambda path=path, said=said: said.append(refusal(path)))  # type: ignore[misc]
        if name.removesuffix(", older form") in READABLE:
            told = told or ("was refused" if said == [""] and "older form" not in name else "")
        else:
            told = told or "".join(said)
        pickles._read.cache_clear()
        told = told or ("leaves files open" if open_files() > before else "")
        counted.hold(not told, f"{name}: {told}")
        path.unlink()
    assert not [*scratch.iterdir()]


def test_memory_is_bounded(tally: Make, tmp_path: Path) -> None:
    counted = tally("pickles made to do harm", PROMISE)
    wanted = {
        "a pickle as a bomb", "a bomb of zeros", "a key that doubles", "a deep dict of long names",
        "a wide dict below a long name", "a dict copied again and again",
    }  # fmt: skip
    cases = {name: make for name, make in archives() if name in wanted}
    cases |= {
        name: lambda path, program=program: packed(path, program)  # type: ignore[misc]
        for name, program in PROGRAMS.items()
        if name in wanted
    }
    assert cases.keys() == wanted
    for name, make in cases.items():
        path = tmp_path / "a.pt"
        make(path)
        tracemalloc.start()
        with pytest.raises(FileError):
            read(path)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        counted.hold(peak < MEMORY, f"{name}: {peak >> 20} MiB")


def test_the_same_bytes_each_time(tmp_path: Path) -> None:
    """What is read twice is the same: no value comes from memory."""
    content = {"w": torch.ones(3, 4).T, "v": torch.arange(5.0)[::2], "u": torch.ones(2)}
    for number in range(3):
        torch.save(content, tmp_path / f"{number}.pt")
    first, *others = (read(tmp_path / f"{number}.pt") for number in range(3))
    assert all(each == first for each in others)
    assert first["v"] == struct.pack("<3f", 0, 2, 4)


# -- by chance -------------------------------------------------------------------------------------------


def valid(tmp_path: Path) -> dict[str, bytes]:
    """Make right files of each form and protocol."""
    state = torch.nn.Linear(3, 2).state_dict()
    content = {
        "w": torch.ones(2, 3),
        "turned": torch.ones(2, 3).T,
        "p": torch.nn.Parameter(torch.ones(2)),
        "in": state,
    }
    made = {}
    for protocol in (2, 3, 4, 5):
        for zipped in (True, False):
            path = tmp_path / "valid.pt"
            torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
            made[f"{protocol} {zipped}"] = path.read_bytes()
    return made


def argument(opcode: pickletools.OpcodeInfo, rng: random.Random) -> bytes:
    """Make what follows an opcode, mostly in its form."""
    if opcode.arg is None:
        return b""
    if opcode.name in ("GLOBAL", "INST"):
        return rng.choice([*NAMES, "builtins.eval"]).replace(".", "\n", 1).encode() + b"\n"
    kind, number = opcode.arg, rng.choice((0, 1, 2, 3, 5, 255, 1 << 31, (1 << 64) - 1))
    if kind.n >= 0:
        return (number % (1 << 8 * kind.n)).to_bytes(kind.n, "little") if kind.n else b""
    if kind.n == -1:
        return rng.choice((b"1\n", b"0\n", b"-5\n", b"'a'\n", b"01\n", b"1L\n", b"1.5\n", b"\n", b"w\n"))
    width = {-2: 1, -3: 4, -4: 4, -5: 8}.get(kind.n, 4)
    content = rng.choice((b"", b"w", b"storage", b"torch", b"cpu", b"0", b"\xff\xfe", b"a" * 300))
    return (rng.choice((len(content), len(content), number)) % (1 << 8 * width)).to_bytes(width, "little") + content


def by_chance(rng: random.Random) -> bytes:
    """Write opcodes of every kind in any order, with pieces of right programs between them."""
    pieces = [GOOD, storage(), tup(whole(2), whole(4)), text("w"), b"(", b"}", b"]", b"N", b"ctorch\nFloatStorage\n"]
    made = [b"}"]
    for _ in range(rng.choice((3, 10, 40, 200))):
        if rng.random() < 0.5:
            made.append(rng.choice(pieces))
        else:
            opcode = rng.choice(pickletools.opcodes)
            made.append(opcode.code.encode("latin-1") + argument(opcode, rng))
    return b"".join(made) + b"."


def test_opcodes_of_every_kind_in_any_order(tally: Make, effort: Effort, tmp_path: Path) -> None:
    counted = tally("pickles of random opcodes", PROMISE)
    path = tmp_path / "a.pt"
    for number, rng in enumerate(seeds(400, effort(None, 60.0))):  # type: ignore[arg-type]
        program = by_chance(rng)
        (packed if number % 2 else legacy)(path, program)
        told = outcome(lambda: read(path))
        counted.hold(not told, f"seed {number}: {told}")


def test_right_files_changed_by_chance(tally: Make, effort: Effort, tmp_path: Path) -> None:
    counted = tally("damaged pickles", PROMISE)
    path, made = tmp_path / "a.pt", valid(tmp_path)
    names, donors = [*made], tuple(made.values())
    for number, rng in enumerate(seeds(400, effort(None, 60.0))):  # type: ignore[arg-type]
        path.write_bytes(mutated(made[names[number % len(names)]], rng, donors))
        told = outcome(lambda: open_checkpoint(path) and (path.read_bytes()[:2] == b"PK" or read(path)))
        counted.hold(not told, f"seed {number}: {told}")


def test_right_programs_changed_by_chance_in_right_archives(tally: Make, effort: Effort, tmp_path: Path) -> None:
    """The checksum of a changed pickle is right here, so that its reader gets to see it."""
    counted = tally("damaged pickles", PROMISE)
    torch.save({"w": torch.ones(2, 3).T, "v": torch.nn.Parameter(torch.ones(4))}, tmp_path / "valid.pt")
    with zipfile.ZipFile(tmp_path / "valid.pt") as archive:
        program, record = archive.read("valid/data.pkl"), archive.read("valid/data/0")
    path = tmp_path / "a.pt"
    for number, rng in enumerate(seeds(400, effort(None, 60.0))):  # type: ignore[arg-type]
        packed(path, mutated(program, rng), {"data/0": record, "data/1": record})
        told = outcome(lambda: read(path))
        counted.hold(not told, f"seed {number}: {told}")


def test_a_process_with_little_memory_refuses_them_too(tmp_path: Path) -> None:
    """A limit of the system's, below what a bomb unpacks to, ends nothing."""
    pytest.importorskip("resource")
    path = packed(tmp_path / "a.pt", b"N0" * (30 << 20) + b".", how=zipfile.ZIP_DEFLATED)
    code = (
        "import resource, sys; from pathlib import Path; from lorabake.errors import FileError\n"
        "from lorabake.tensors.pickles import open_pickle\n"
        "resource.setrlimit(resource.RLIMIT_AS, (600 << 20, 600 << 20))\n"
        "try: open_pickle(Path(sys.argv[1]))\n"
        "except FileError as error: print(error)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, path], cwd=root, capture_output=True, text=True, env=os.environ
    )
    assert "not a readable PyTorch file" in done.stdout, done.stderr
