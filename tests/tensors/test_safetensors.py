import gzip
import hashlib
import json
import os
import pickle
import struct
import time
from pathlib import Path

import pytest
import safetensors
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from lorabake.errors import FileError, SurroundingsError
from lorabake.tensors.dtypes import DTYPES, nbytes
from lorabake.tensors.reader import fingerprint
from lorabake.tensors.safetensors import encode_header, parse_object, read_header

in_one_folder = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def file_of(header, data=b""):
    """Build a file from a header that need not be valid: bytes, or whatever JSON can say."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def fault(path, content=None):
    """Return the message of the error that reading gives, less the path in front."""
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FileError) as caught:
        read_header(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


class TestRead:
    def test_everything_a_header_says(self, path):
        content = file_of(
            {"b": tensor(offsets=(6, 14)), "__metadata__": {"k": "v"}, "a": tensor("I8", (2, 3), (0, 6))},
            bytes(14),
        )
        path.write_bytes(content)
        header = read_header(path)
        start = len(content) - 14
        assert list(header.tensors) == ["b", "a"]
        assert header.metadata == {"k": "v"}
        assert (header.path, header.data_start, header.size) == (path, start, len(content))
        assert header.sha256 == hashlib.sha256(content[:start]).hexdigest()
        info = header.tensors["a"]
        assert (info.key, info.name, info.dtype, info.shape) == ("a", "a", "I8", (2, 3))
        assert (info.file, info.start, info.stop, info.nbytes) == (path, start, start + 6, 6)

    def test_metadata_may_be_null(self, path):
        """MLX writes so, and the library reads it."""
        path.write_bytes(file_of({"__metadata__": None, "a": tensor("I8", (2,), (0, 2))}, bytes(2)))
        assert read_header(path).metadata == {}
        assert safetensors.safe_open(path, "pt").metadata() is None

    def test_what_the_library_writes(self, path):
        tensors = {
            "half": torch.ones(3, dtype=torch.bfloat16),
            "scalar": torch.tensor(4.0),
            "no": torch.ones(0),
        }
        path.write_bytes(save(tensors, {"format": "pt"}))
        infos = read_header(path).tensors
        assert {key: info.shape for key, info in infos.items()} == {"half": (3,), "scalar": (), "no": (0,)}
        assert path.read_bytes()[infos["scalar"].start :][:4] == struct.pack("<f", 4.0)

    def test_a_file_without_tensors(self, path):
        path.write_bytes(file_of({}))
        assert read_header(path).tensors == {}

    def test_a_header_larger_than_what_is_sniffed(self, path):
        entries = [(f"layer.{i}", "F16", (2,)) for i in range(200)]
        path.write_bytes(encode_header(entries, {}) + bytes(800))
        assert len(read_header(path).tensors) == 200

    def test_2500_tensors_in_a_moment(self, path):
        entries = [(f"model.blocks.{i}.attention.to_q.weight", "F16", (1, 2)) for i in range(2500)]
        path.write_bytes(encode_header(entries, {}) + bytes(4 * 2500))
        seconds = []
        for _ in range(5):
            begin = time.perf_counter()
            read_header(path)
            seconds.append(time.perf_counter() - begin)
        assert min(seconds) < 0.2  # about 0.02; a loaded machine must not fail the test


class TestUnreadable:
    def test_missing(self, path):
        assert fault(path) == "no such file"

    def test_folder(self, tmp_path):
        assert fault(tmp_path) == "is a folder, not a file"

    def test_no_permission(self, path, monkeypatch):
        path.touch()
        monkeypatch.setattr(Path, "open", lambda *_: (_ for _ in ()).throw(PermissionError(13, "denied")))
        with pytest.raises(SurroundingsError, match=f"{path}: no permission to read it"):
            read_header(path)

    def test_pipe_does_not_block(self, path):
        os.mkfifo(path)
        assert fault(path) == "is not a regular file"

    def test_loop_of_links(self, path):
        path.symlink_to(path)
        assert fault(path).startswith("cannot be read: ")

    def test_name_with_a_zero_byte(self):
        assert fault(Path("a\0b")).startswith("cannot be read: ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty\nDownload it again."),
        (b"\x10\0\0", "too short for SafeTensors: 3 bytes\nDownload it again."),
        (bytes(64), "is a file that begins with zeros, not SafeTensors\nPerhaps an unfinished download."),
        (b"PK\x03\x04" + bytes(60), "is a zip archive or PyTorch pickle, not SafeTensors\n"),
        (pickle.dumps({"a": [1] * 20}, protocol=2), "is a pickle, not SafeTensors\n"),
        (pickle.dumps({"a": [1] * 20}, protocol=4), "is a pickle, not SafeTensors\n"),
        (b"GGUF\x03\0\0\0" + bytes(60), "is a GGUF file, not SafeTensors\n"),
        (gzip.compress(b"x" * 100, mtime=0), "is a gzip archive, not SafeTensors\nUnpack it"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
            "is a git-lfs pointer, not SafeTensors\nRun `git lfs pull` to fetch the real file.",
        ),
        (
            b"<!DOCTYPE html><html>Sign in</html>",
            "is an HTML page, not SafeTensors\nThe download gave a web page",
        ),
        (b"\n\n  <HTML lang='en'>", "is an HTML page, not SafeTensors\n"),
        (b'{"error": "Access denied"}', "is a JSON text, not SafeTensors\n"),
        (b'{"data":{"error": "denied"}}', "is a JSON text, not SafeTensors\n"),
        ("Zugriff für Gäste verboten".encode(), "is a text, not SafeTensors\n"),
        (
            b"\xff" * 7 + b"\0{",
            "not SafeTensors: the header would take 72057594037927935 bytes, the limit is",
        ),
        (struct.pack("<Q", 100_000_001) + b"{", "not SafeTensors: the header would take 100000001 bytes"),
        (file_of({"a": tensor()})[:20], "truncated: the header alone takes 69 bytes, the file has 20\n"),
        (file_of(b" {}"), "not SafeTensors: the header does not begin with '{'"),
        (file_of([1, 2]), "not SafeTensors: the header does not begin with '{'"),
    ],
)
def test_not_safetensors(path, content, message):
    assert fault(path, content).startswith(message)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"{a: 1}", "the header is not valid JSON: Expecting property name"),
        (b"{} {}", "the header is not valid JSON: Extra data"),
        (b'{"\xff": 1}', "the header is not UTF-8: byte 2 is 0xff"),
        (b'{"\\ud800": 1}', "the header is not Unicode: it has half of a surrogate pair"),
        (b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}", "the header is nested too deeply"),
        (b'{"a":{"shape":[' + b"9" * 5000 + b"]}}", "the header is not valid JSON: Exceeds the limit"),
        (b'{"w":1,"x":2,"w":3}', "the header is ambiguous: the key 'w' is there twice"),
        (b'{"w":{"dtype":"U8","dtype":"I8"}}', "the header is ambiguous: the key 'dtype' is there twice"),
        (b'{"__metadata__":{"k":"","k":""}}', "the header is ambiguous: the key 'k' is there twice"),
        ({"__metadata__": {"k": 1}}, "__metadata__ 'k' is not a string but 1"),
        ({"__metadata__": {"k": None}}, "__metadata__ 'k' is not a string but None"),
        ({"__metadata__": ["k"]}, "__metadata__ is not an object but ['k']"),
    ],
)
def test_damaged_header(path, header, message):
    assert fault(path, file_of(header)).startswith(message)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (7, "described by 7, not by an object"),
        ({}, "has the fields [], not data_offsets, dtype and shape"),
        (tensor() | {"x": 1}, "has the fields ['data_offsets', 'dtype', 'shape', 'x'], not"),
        (tensor("Q4_K"), "unknown dtype 'Q4_K'\nKnown: BOOL, U8, I8,"),
        (tensor(["F32"]), "unknown dtype ['F32']\nKnown: "),
        (tensor(shape=(-2,)), "impossible shape [-2]"),
        (tensor(shape=(True, 2)), "impossible shape [True, 2]"),
        (tensor(shape=(2.0,)), "impossible shape [2.0]"),
        (tensor(shape=("2",)), "impossible shape ['2']"),
        (tensor(shape=2), "impossible shape 2"),
        (tensor(shape=(2**63,)), "impossible shape [9223372036854775808]"),
        (tensor(shape=(2**40, 2**40)), "impossible shape [1099511627776, 1099511627776]"),
        (tensor(shape=(1,) * 65), "impossible shape [1, 1, 1, "),
        (tensor(shape=(3,)), "F32 [3] takes 12 bytes, but data_offsets give it 8"),
        (tensor("F4", (3,), (0, 2)), "[3] elements of F4 do not fill whole bytes"),
        (tensor(offsets=(8, 0)), "data_offsets [8, 0] run backwards"),
        (tensor(offsets=(0, 8, 8)), "data_offsets [0, 8, 8] are not two positions"),
        (tensor(offsets=(-8, 0)), "data_offsets [-8, 0] are not two positions"),
        (tensor(offsets=(0.0, 8.0)), "data_offsets [0.0, 8.0] are not two positions"),
        (tensor(offsets=(2**70, 2**70 + 8)), "data_offsets [1180591620717411303424, "),
        (tensor(offsets=None), "data_offsets None are not two positions"),
    ],
)
def test_damaged_entry(path, entry, message):
    assert fault(path, file_of({"w": entry}, bytes(8))).startswith(f"tensor 'w': {message}")


@pytest.mark.parametrize(
    ("header", "size", "message"),
    [
        ({"a": tensor(offsets=(4, 12))}, 12, "4 unused bytes before 'a'"),
        (
            {"b": tensor(offsets=(12, 20)), "a": tensor(offsets=(0, 8))},
            20,
            "4 unused bytes between 'a' and 'b'",
        ),
        ({"a": tensor()}, 9, "1 unused bytes after the last tensor"),
        ({"a": tensor(), "b": tensor()}, 8, "tensors 'a' and 'b' overlap"),
        ({"a": tensor(), "b": tensor(offsets=(4, 12))}, 12, "tensors 'a' and 'b' overlap"),
        ({"a": tensor(), "": tensor(shape=(0,), offsets=(4, 4))}, 8, "tensors 'a' and '' overlap"),
        ({"a": tensor(offsets=(2**60, 2**60 + 8))}, 8, f"{2**60} unused bytes before 'a'"),
    ],
)
def test_damaged_layout(path, header, size, message):
    assert fault(path, file_of(header, bytes(size))) == message


def test_truncated_data_says_how_much_is_missing(path):
    content = file_of({"a": tensor()}, bytes(8))
    assert fault(path, content[:-3]) == (
        f"truncated: the header describes {len(content)} bytes, the file has {len(content) - 3}\n"
        "3 bytes are missing. Download it again."
    )


def test_hostile_keys_neither_flood_nor_steer_the_terminal(path):
    message = fault(path, file_of({"\x1b[2J" + "x" * 10_000: 1}))
    assert len(message) < 400
    assert message.isprintable()


@in_one_folder
@given(content=st.binary(max_size=200))
def test_random_bytes_give_a_file_error(path, content):
    fault(path, content)


@in_one_folder
@given(data=st.data())
def test_mutated_files_give_a_file_error_or_a_consistent_header(path, data):
    entries = [("first", "F16", (2, 2)), ("second", "U8", (5,)), ("third", "F32", ())]
    content = bytearray(encode_header(entries, {"format": "pt"}) + bytes(17))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(len(content) - 9, len(content)))])
    try:
        header = read_header(path)
    except FileError:
        return
    assert sum(info.nbytes for info in header.tensors.values()) == header.size - header.data_start
    assert {name for name, _ in safetensors.deserialize(path.read_bytes())} == set(header.tensors)


class TestEncode:
    ENTRIES = (("b", "F16", (2, 3)), ("ä", "F32", ()))

    def test_golden_bytes(self):
        assert encode_header(self.ENTRIES, {"z": "1", "a": 'say "ü"'}) == (
            b"\xa0\0\0\0\0\0\0\0"
            b'{"__metadata__":{"a":"say \\"\xc3\xbc\\"","z":"1"},'
            b'"b":{"dtype":"F16","shape":[2,3],"data_offsets":[0,12]},'
            b'"\xc3\xa4":{"dtype":"F32","shape":[],"data_offsets":[12,16]}}      '
        )

    def test_nothing(self):
        assert encode_header([], {}) == b"\x08\0\0\0\0\0\0\0{}      "

    def test_order_changes_the_json_but_not_the_data(self, path):
        path.write_bytes(encode_header(self.ENTRIES, {}, order=["ä", "b"]) + bytes(16))
        header = read_header(path)
        assert list(header.tensors) == ["ä", "b"]
        assert header.tensors["b"].start == header.data_start

    @pytest.mark.parametrize(("phase", "align"), [(0, 1), (0, 8), (16, 64), (4096 + 8, 4096), (24, 24)])
    def test_alignment(self, phase, align):
        encoded = encode_header(self.ENTRIES, {}, phase=phase, align=align)
        assert len(encoded) % 8 == 0
        assert len(encoded) % align == phase % align
        assert len(encoded) < len(encode_header(self.ENTRIES, {})) + max(align, 8)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"align": 12}, "align 12 and phase 0 must be multiples of 8"),
            ({"align": 8, "phase": 4}, "align 8 and phase 4 must be multiples of 8"),
            ({"order": ["b"]}, "order must list each key"),
            ({"order": ["b", "b"]}, "order must list each key"),
            ({"entries": [("a", "U8", ()), ("a", "U8", ())]}, "'a' is reserved or there twice"),
            ({"entries": [("__metadata__", "U8", ())]}, "'__metadata__' is reserved"),
        ],
    )
    def test_refuses(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            encode_header(**{"entries": self.ENTRIES, "metadata": {}} | arguments)

    texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
    whole = sorted(name for name, dtype in DTYPES.items() if dtype.bits % 8 == 0)

    @in_one_folder
    @given(
        tensors=st.dictionaries(
            texts.filter(lambda key: key != "__metadata__"),
            st.tuples(st.sampled_from(whole), st.lists(st.integers(0, 4), max_size=4).map(tuple)),
            max_size=6,
        ),
        metadata=st.dictionaries(texts, texts, max_size=4),
        phase=st.integers(0, 20).map(lambda n: n * 8),
        align=st.sampled_from([1, 8, 512]),
        data=st.data(),
    )
    def test_round_trip_here_and_in_the_library(self, path, tensors, metadata, phase, align, data):
        entries = [(key, dtype, shape) for key, (dtype, shape) in tensors.items()]
        order = data.draw(st.permutations(list(tensors)))
        encoded = encode_header(entries, metadata, phase=phase, align=align, order=order)
        content = encoded + bytes(sum(nbytes(dtype, shape) for _, dtype, shape in entries))
        path.write_bytes(content)
        header = read_header(path)
        assert list(header.tensors) == order
        assert header.metadata == metadata
        assert {key: (info.dtype, info.shape) for key, info in header.tensors.items()} == tensors
        in_library = {key: (it["dtype"], tuple(it["shape"])) for key, it in safetensors.deserialize(content)}
        assert in_library == tensors


def test_parse_object_refuses_other_json():
    with pytest.raises(ValueError, match="not a JSON object but 3"):
        parse_object(b"3")


def test_parse_object_takes_whole_surrogate_pairs():
    assert parse_object(b'{"\\ud83d\\ude00": "\\u00e4"}') == {"\N{GRINNING FACE}": "ä"}


def test_fingerprint_changes_with_the_file(path):
    path.write_bytes(b"old")
    before = fingerprint(path)
    assert fingerprint(path) == before
    path.write_bytes(b"newer")
    assert fingerprint(path) != before
    path.unlink()
    with pytest.raises(FileError, match="no such file"):
        fingerprint(path)
