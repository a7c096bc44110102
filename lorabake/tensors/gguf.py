"""Read GGUF files: a header like any other, with quantised tensors as packed weights.

Image and video models keep their makers' names in GGUF. Language models do not: llama.cpp renames modules and
exchanges rows, which `lorabake.sources.translation` undoes.

A file begins with what it says of its model, by name, and a list of its tensors (ggml, docs/gguf.md, versions 2 and
3). The `gguf` package knows the types and unpacks their blocks; its reader stays out: it believes whatever numbers a
file says, and counts to 2^63 where one says so.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import BinaryIO, Final, cast

from lorabake.errors import FileError, SurroundingsError
from lorabake.machine import unreadable
from lorabake.tensors.header import MAX_HEADER, Header, TensorInfo, check_count
from lorabake.tensors.reader import fingerprint

MAGIC = b"GGUF"
VERSIONS: Final = (2, 3)
MAX_LIST = 256
"""Most values of a list that is read; longer ones are vocabularies and the like."""

MAX_SIDES: Final = 4
"""Dimensions of a tensor: ggml's limit."""

PLAIN = ("F32", "F16", "BF16", "F64")
"""Types that SafeTensors has, too."""

GGUF = "GGUF "
"""Prefix of the dtypes of all other tensors: "GGUF Q4_K"."""

MODELS = {
    "aura", "cosmos", "flux", "hidream", "hyvid", "lumina2", "ltxv", "pixart", "qwen_image", "sd1", "sd3", "sdxl",
    "wan",
}  # fmt: skip
"""Names of architectures whose GGUF files keep the makers' names (ComfyUI-GGUF's converter)."""

_ALIGNMENT: Final = 32
_NUMBERS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


class _DamagedError(ValueError):
    """Report a contradiction in a file; the message follows "a damaged GGUF file: "."""


class _Stream:
    """Read numbers and texts one after the other, never beyond the limit of a header."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._left = stream, MAX_HEADER
        self.place = 0

    def take(self, count: int) -> bytes:
        """Return the next bytes."""
        self._count(count)
        found = self._stream.read(count)
        if len(found) < count:
            raise _DamagedError("it ends early")
        return found

    def skip(self, count: int) -> None:
        """Skip bytes; a later read notices if the file is too short."""
        self._count(count)
        self._stream.seek(count, 1)

    def number(self, code: str) -> int:
        """Return the next number, of one of `struct`'s kinds."""
        return cast(int, struct.unpack(f"<{code}", self.take(struct.calcsize(code)))[0])

    def text(self) -> str:
        """Return the next text: its length, and its bytes."""
        try:
            return self.take(self.number("Q")).decode()
        except UnicodeDecodeError:
            raise _DamagedError("it has a text that is not UTF-8") from None

    def _count(self, count: int) -> None:
        self._left -= count
        self.place += count
        if self._left < 0:
            raise _DamagedError(f"its header takes more than {MAX_HEADER} bytes")


def open_gguf(path: Path) -> Header:
    """Read a GGUF file's header and its facts on the model, except long lists; raise FileError if it is damaged."""
    try:
        from gguf.constants import GGML_QUANT_SIZES
    except ImportError:
        raise SurroundingsError(
            f"{path}: GGUF files need the package gguf",
            "Install the extra: in the clone of lorabake, pip install '.[gguf]'",
        ) from None
    types = {int(kind): (kind.name, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()}
    identity = fingerprint(path)
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(0)
            facts, tensors, start = _header(path, _Stream(stream), size, types)
            stream.seek(0)
            digest = hashlib.sha256(stream.read(start)).hexdigest()
    except _DamagedError as error:
        raise FileError(f"{path}: a damaged GGUF file: {error}", "Download it again.") from None
    except OSError as error:
        raise unreadable(path, error) from None
    return Header(path, tensors, {}, start, size, digest, facts, identity=identity)


def model_of(facts: Mapping[str, object]) -> str | None:
    """Return a GGUF file's name of its model, shortened to a plausible length; None if it has none."""
    model = facts.get("general.architecture")
    return model[:100] if isinstance(model, str) else None


def _header(
    path: Path, stream: _Stream, size: int, types: Mapping[int, tuple[str, int, int]]
) -> tuple[dict[str, object], dict[str, TensorInfo], int]:
    """Return a file's facts, its tensors by name, and where their data begin."""
    if stream.take(len(MAGIC)) != MAGIC:
        raise _DamagedError("it does not begin as one")
    version = stream.number("I")
    if version and version & 0xFFFF == 0:
        raise FileError(
            f"{path}: a GGUF file for machines that have the highest byte first", "Convert it with gguf-py."
        )
    if version not in VERSIONS:
        raise _DamagedError(f"its version is {version}, and 2 and 3 are known")
    tensor_count, fact_count = stream.number("Q"), stream.number("Q")
    check_count(path, tensor_count)
    facts: dict[str, object] = {}
    for _ in range(fact_count):
        name = stream.text()
        if name in facts:
            raise _DamagedError(f"it says {name!r:.100} twice")
        facts[name] = _value(stream, stream.number("I"))
    pieces = facts.get("split.count", 1)
    if pieces not in (0, 1):
        raise FileError(
            f"{path}: one of {pieces!s:.20} pieces of a GGUF file",
            "Join them with llama.cpp (llama-gguf-split --merge).",
        )
    alignment = facts.get("general.alignment", _ALIGNMENT)
    if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
        raise _DamagedError("its alignment is no power of two")
    described = [_described(stream, types) for _ in range(tensor_count)]
    start = -(-stream.place // alignment) * alignment
    tensors: dict[str, TensorInfo] = {}
    for name, kind, shape, offset, nbytes in described:
        if name in tensors:
            raise _DamagedError(f"it has two tensors called {name!r:.100}")
        tensors[name] = _tensor(path, name, kind, _first_shape(facts, name, shape), start + offset, nbytes)
    _check_places([*tensors.values()], start, size)
    told = {name: value for name, value in facts.items() if value is not None}
    return told, tensors, start


def _value(stream: _Stream, kind: int) -> object:
    """Return the next value, or None for a long list; lists of lists do not occur."""
    if kind == _STRING:
        return stream.text()
    if kind in _NUMBERS:
        return stream.number(_NUMBERS[kind])
    if kind != _ARRAY:
        raise _DamagedError(f"it has a value of the type {kind}")
    inner, count = stream.number("I"), stream.number("Q")
    if inner in _NUMBERS:
        if count > MAX_LIST:
            stream.skip(count * struct.calcsize(_NUMBERS[inner]))
            return None
        return [stream.number(_NUMBERS[inner]) for _ in range(count)]
    if inner != _STRING:
        raise _DamagedError(f"it has a list of values of the type {inner}")
    if count <= MAX_LIST:
        return [stream.text() for _ in range(count)]
    for _ in range(count):
        stream.skip(stream.number("Q"))
    return None


def _described(
    stream: _Stream, types: Mapping[int, tuple[str, int, int]]
) -> tuple[str, str, tuple[int, ...], int, int]:
    """Return the next tensor's name, type, shape (rows first), offset from the data's start, and bytes."""
    name, sides = stream.text(), stream.number("I")
    if sides > MAX_SIDES:
        raise _DamagedError(f"{name!r:.100} has {sides} dimensions")
    shape = tuple(stream.number("Q") for _ in range(sides))[::-1]
    kind, offset = stream.number("I"), stream.number("Q")
    if kind not in types:
        raise _DamagedError(f"{name!r:.100} is of the type {kind}, which the gguf package does not know")
    title, block, width = types[kind]
    if shape[-1:] and shape[-1] % block:
        raise _DamagedError(f"{name!r:.100} has rows of {shape[-1]} values, and {title} has blocks of {block}")
    return name, title, shape, offset, prod(shape) // block * width


def _first_shape(facts: Mapping[str, object], name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape that a tensor had before ComfyUI-GGUF's converter changed it."""
    said = facts.get(f"comfy.gguf.orig_shape.{name}")
    if said is None:
        return shape
    if not isinstance(said, list) or not all(type(side) is int and side >= 0 for side in said):
        raise _DamagedError(f"the shape that {name!r:.100} had is none")
    if len(said) > 64 or prod(said) != prod(shape):
        raise _DamagedError(f"{name!r:.100} had other values than it has")
    return tuple(said)


def _tensor(path: Path, name: str, kind: str, shape: tuple[int, ...], start: int, nbytes: int) -> TensorInfo:
    dtype = kind if kind in PLAIN else f"{GGUF}{kind}"
    return TensorInfo(name, name, dtype, shape, path, start, start + nbytes)


def _check_places(tensors: list[TensorInfo], start: int, size: int) -> None:
    """Check that each tensor lies inside the file and overlaps no other."""
    position = start
    for info in sorted(tensors, key=lambda info: (info.start, info.stop)):
        if info.start < position:
            raise _DamagedError(f"{info.name!r:.100} overlaps another tensor")
        position = info.stop
    if position > size:
        raise _DamagedError(f"it ends early: its tensors take {position} bytes, and it has {size}")
