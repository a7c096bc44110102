"""Checkpoints that torch has pickled, as headers like any other: where each tensor's bytes lie in the file itself.

torch.save writes a zip archive: a pickle that says which tensor is which part of which record, and a record for each
storage, as it is in memory. Before version 1.6 it wrote pickles and storages one after the other. Both are read here
without torch and without running what the pickle names (`unpickling`), and no tensor is read before it is needed.

What does not lie in one piece in the file (a transposed view, a compressed record) is copied into a temporary file
without a name, which goes with the process however that ends.
"""

from __future__ import annotations

import functools
import hashlib
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from io import BytesIO
from math import prod
from pathlib import Path
from typing import BinaryIO, Final, cast

from lorabake.errors import FileError, SurroundingsError
from lorabake.machine import unreadable
from lorabake.tensors.archives import MAGIC, Archive, ArchiveError, open_archive
from lorabake.tensors.dtypes import DTYPES
from lorabake.tensors.header import MAX_DIMENSIONS, MAX_HEADER, Fingerprint, Header, Record, TensorInfo
from lorabake.tensors.reader import fingerprint
from lorabake.tensors.safetensors import encode_header
from lorabake.tensors.pickles.machine import (
    MAX_PICKLE,
    Bounded,
    CodeError,
    Function,
    Inert,
    PickleError,
    as_key,
    load,
)
from lorabake.visible import some

MAGICS = (MAGIC, b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""First bytes of what torch has pickled, since version 1.6 and before."""

# What PyTorch Lightning stores beside the weights.
_TRAINING_STATE = {
    "callbacks",
    "hparams_name",
    "hyper_parameters",
    "loops",
    "lr_schedulers",
    "optimizer_states",
}

EMBEDDING = "<embed>"
"""What cloneofsimo's metadata say of a learned embedding: {"<s1>": "<embed>"}."""

_CONVERT = (
    "Use the model's SafeTensors release. If there is none and you trust the file, load it where it can do",
    "no harm with torch.load(path, weights_only=False), and save it with safetensors.torch.save_file.",
)
_AGAIN = "Download it again."

_LEGACY_MAGIC: Final = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION: Final = 1001
_COUNT_BYTES: Final = 8
"""Bytes before each storage of the older form: how many values it holds."""

_GROWTH, _LEAST = 16, 64 << 20
"""Tensors may share storages, but a file does not stand for more than so many times its size (or so many bytes)."""

_MAX_PACKED: Final = 2 << 20
"""Bytes of a pickle that is longer than its file, because it is compressed there."""

_MAX_NAME: Final = 1 << 16
"""Bytes of a tensor's name, those of the dicts that it lies in included."""


@dataclass(frozen=True, slots=True)
class _Storage:
    """Stand for a storage: its name, the dtype of its values (None for bytes), its first value, and how many."""

    name: str
    dtype: str | None
    first: int
    count: int


@dataclass(frozen=True, slots=True, eq=False)
class _Tensor:
    """Stand for a tensor: values of a storage from `offset`, `strides` apart; `flags` are torch's (conj, neg)."""

    storage: _Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    flags: frozenset[str] = frozenset()

    @property
    def width(self) -> int:
        """Count the bytes of a value."""
        return DTYPES[self.dtype].bits // 8

    @property
    def is_in_order(self) -> bool:
        """Tell whether the values lie one behind the other, first row first."""
        due = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size != 1 and stride != due:
                return prod(self.shape) == 0
            due *= size
        return not self.flags

    @property
    def span(self) -> int:
        """Count the values from the first to the last one."""
        steps = zip(self.shape, self.strides, strict=True)
        return 1 + sum((size - 1) * stride for size, stride in steps) if prod(self.shape) else 0


@dataclass(frozen=True, slots=True, eq=False)
class _Foreign:
    """Stand for a tensor that SafeTensors has no place for; `kind` is its layout, device and dtype."""

    kind: str


@dataclass(frozen=True, slots=True)
class _Dtype:
    """Stand for a dtype, or for the class of storages of one; `name` is SafeTensors', None where it has no such."""

    title: str
    name: str | None


class _Scratch(type(Path())):  # type: ignore[misc]
    """Be the path of an open file that has no name: the file lasts as long as somebody holds its path."""


class _Aside:
    """Keep the values of one pickle that do not lie in one piece in it, in a temporary file that has no name."""

    def __init__(self, origin: Path) -> None:
        self._origin = origin
        self._open: tuple[BinaryIO, Path] | None = None

    def add(self, pieces: Iterable[bytes]) -> tuple[Path, int]:
        """Append bytes; return the file's path, and where they begin. Raise SurroundingsError where that fails."""
        try:
            stream, path = self._open = self._open or _scratch()
            start = stream.seek(0, 2)
            stream.writelines(pieces)
            stream.flush()
        except OSError as error:
            raise SurroundingsError(
                f"{self._origin}: its tensors cannot be stored in a temporary file: {error.strerror or error}",
                "Set TMPDIR to a folder with enough space, or convert the file to SafeTensors.",
            ) from None
        return path, start


@dataclass(slots=True)
class _Places:
    """Say where storages lie: by name, the file, the first byte and how many; `records` are what to check."""

    aside: _Aside
    stored: dict[str, tuple[Path, int, int]] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)


def open_pickle(path: Path) -> Header:
    """Read what a pickled checkpoint says of its tensors; their data stay where they are.

    Nested dicts become dotted keys. A bare list of LoRA matrices, as cloneofsimo/lora first saved them, gets the keys
    of its later files: `unet:0:up`, `unet:0:down` …; their `.ti.pt` hold learned embeddings.

    Raise FileError for a damaged pickle, one that wants to run code, and one that holds anything else than
    tensors; SurroundingsError where a temporary file cannot be written.
    """
    return _read(path, fingerprint(path))


@functools.lru_cache(maxsize=64)
def _read(path: Path, identity: Fingerprint) -> Header:
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            is_zip = stream.read(len(MAGIC)) == MAGIC
            stream.seek(0)
            loaded, places = _read_zip(path, size) if is_zip else _read_legacy(path, stream, size)
        found = dict(_tensors(path, loaded))
        tensors = {key: _checked(path, key, tensor) for key, tensor in found.items()}
        return _header(path, size, tensors, places, identity)
    except CodeError as error:
        raise FileError(f"{path}: a pickle that wants to run code: {error.args[0]!r:.100}", *_CONVERT) from None
    except (PickleError, ArchiveError) as error:
        raise FileError(f"{path}: not a readable PyTorch file: {error!s:.150}", _AGAIN) from None
    except OSError as error:
        raise unreadable(path, error) from None


# -- what the pickle's names stand for -------------------------------------------------------------------


def _shape(value: object) -> tuple[int, ...]:
    if not isinstance(value, tuple | list) or len(value) > MAX_DIMENSIONS:
        raise PickleError("a shape that is none")
    sizes = tuple(value)
    if not all(type(size) is int and 0 <= size < 1 << 62 for size in sizes):
        raise PickleError("a shape that is none")
    return cast(tuple[int, ...], sizes)


def _rebuilt(storage: object, offset: object, size: object, stride: object, flags: object = None) -> object:
    if not isinstance(storage, _Storage):
        raise PickleError("a tensor without a storage")
    return _made(storage, storage.dtype or "U8", offset, size, stride, flags)


def _made(storage: _Storage, dtype: str, offset: object, size: object, stride: object, flags: object) -> object:
    shape, strides = _shape(size), _shape(stride)
    if len(shape) != len(strides) or type(offset) is not int or not 0 <= offset < 1 << 62:
        raise PickleError("a tensor whose sizes do not go together")
    if dtype not in DTYPES:
        return _Foreign(f"strided, cpu, {dtype}")
    told = frozenset(flag for flag, value in flags.items() if value) if isinstance(flags, dict) else frozenset()
    if told - _FLAGS:
        raise PickleError("a tensor with flags that are not torch's")
    return _Tensor(storage, dtype, offset, shape, strides, cast(frozenset[str], told))


def _rebuild_v2(
    storage: object, offset: object, size: object, stride: object, _grad: object, _hooks: object, flags: object = None
) -> object:
    return _rebuilt(storage, offset, size, stride, flags)


def _rebuild_v3(
    storage: object,
    offset: object,
    size: object,
    stride: object,
    _grad: object,
    _hooks: object,
    dtype: object,
    flags: object = None,
) -> object:
    if not isinstance(storage, _Storage) or not isinstance(dtype, _Dtype):
        raise PickleError("a tensor without a storage or a dtype")
    return _made(storage, dtype.name or dtype.title, offset, size, stride, flags)


def _rebuild_meta(dtype: object, *_: object) -> object:
    return _Foreign(f"strided, meta, {dtype.title if isinstance(dtype, _Dtype) else 'unknown'}")


def _foreign(kind: str) -> Function:
    return Function(lambda *_: _Foreign(kind))


def _rebuild_sparse(layout: object, data: object) -> object:
    title = layout.kind if isinstance(layout, Inert) else "sparse"
    values = data[1] if isinstance(data, tuple) and len(data) > 1 else None
    name = values.dtype if isinstance(values, _Tensor) else ""
    return _Foreign(f"{title}, cpu, {(DTYPES[name].torch if name else None) or 'unknown'}")


def _rebuild_subclass(function: object, _type: object, arguments: object, _state: object = None) -> object:
    """A tensor with attributes of its own: torch.Tensor's are of no concern, and other classes have no name here."""
    if not isinstance(function, Function) or not isinstance(arguments, tuple) or function is _OF_SUBCLASS:
        raise PickleError("a tensor made by no function")
    return function.make(*arguments)


_OF_SUBCLASS = Function(_rebuild_subclass)


def _first(value: object = None, *_: object) -> object:
    return value


def _unfilled(*_: object) -> object:
    raise PickleError("a tensor whose values are not in the file")


def _as_dict(pairs: object = (), *_: object) -> object:
    if isinstance(pairs, dict):
        return dict(pairs)
    if not isinstance(pairs, list | tuple) or not all(isinstance(p, list | tuple) and len(p) == 2 for p in pairs):
        raise PickleError("a dict that is none")
    return {as_key(key): value for key, value in pairs}


def _layout(name: object = "") -> object:
    if not isinstance(name, str):
        raise PickleError("a layout that is none")
    return Inert(name.removeprefix("torch."))


def _inert(kind: str) -> Function:
    return Function(lambda *_: Inert(kind))


_FLAGS = frozenset({"conj", "neg"})

_STORAGES = {
    "Float": "float32", "Double": "float64", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64",
    "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool", "ComplexFloat": "complex64",
    "ComplexDouble": "complex128", "QInt8": "qint8", "QUInt8": "quint8", "QInt32": "qint32",
    "QUInt4x2": "quint4x2", "QUInt2x4": "quint2x4",
}  # fmt: skip
"""torch's names of storages, and the dtypes of their values."""

_OTHERS = {
    "complex128": 16, "complex32": 4, "qint8": 1, "quint8": 1, "qint32": 4, "quint4x2": 1, "quint2x4": 1,
    "float4_e2m1fn_x2": 1, "bits8": 1, "bits16": 2, "bits1x8": 1, "bits2x4": 1, "bits4x2": 1,
    **{f"{sign}int{bits}": 1 for sign in ("", "u") for bits in range(1, 8)},
}  # fmt: skip
"""The dtypes of torch's that SafeTensors has no place for, and the bytes of a value."""

_SCHEMES = (
    "per_tensor_affine", "per_tensor_symmetric", "per_channel_affine", "per_channel_symmetric",
    "per_channel_affine_float_qparams",
)  # fmt: skip
"""torch's names of the ways to quantise."""

# Older torch has tensor classes for sparse tensors, and for those on a device.
_PLACES = ("torch", "torch.cuda", "torch.sparse", "torch.cuda.sparse")


def _names() -> dict[str, object]:
    ours = {dtype.torch: dtype.name for dtype in DTYPES.values() if dtype.torch}
    titles = {*ours, *_OTHERS}
    found: dict[str, object] = {f"torch.{title}": _Dtype(title, ours.get(title)) for title in titles}
    for name, title in _STORAGES.items():
        for place in _PLACES:
            found[f"{place}.{name}Storage"] = _Dtype(title, ours.get(title))
            found[f"{place}.{name}Tensor"] = Function(_unfilled)
    for scheme in _SCHEMES:
        found[f"torch.{scheme}"] = Inert(scheme)
    for place in ("torch", "torch.storage"):
        found[f"{place}.UntypedStorage"] = _Dtype("bytes", None)
    return found | {
        "torch._utils._rebuild_tensor": Function(_rebuilt),
        "torch._utils._rebuild_tensor_v2": Function(_rebuild_v2),
        "torch._utils._rebuild_tensor_v3": Function(_rebuild_v3),
        "torch._utils._rebuild_parameter": Function(_first),
        "torch._utils._rebuild_parameter_with_state": Function(_first),
        "torch._utils._rebuild_meta_tensor_no_storage": Function(_rebuild_meta),
        "torch._utils._rebuild_sparse_tensor": Function(_rebuild_sparse),
        "torch._utils._rebuild_sparse_csr_tensor": Function(_rebuild_sparse),
        "torch._utils._rebuild_qtensor": _foreign("strided, cpu, quantized"),
        "torch._utils._rebuild_nested_tensor": _foreign("nested"),
        "torch._utils._rebuild_wrapper_subclass": _foreign("a wrapper without values of its own"),
        "torch._utils._rebuild_device_tensor_from_numpy": _foreign("of another device"),
        "torch._utils._rebuild_device_tensor_from_cpu_tensor": _foreign("of another device"),
        "torch._tensor._rebuild_from_type_v2": _OF_SUBCLASS,
        "torch.nn.parameter.Parameter": Function(_first),
        "torch.nn.parameter.Buffer": Function(_first),
        "torch.Tensor": Function(_unfilled),
        "torch.Size": Function(lambda sizes=(): _shape(sizes)),
        "torch.device": _inert("device"),
        "torch.serialization._get_layout": Function(_layout),
        "collections.OrderedDict": Function(_as_dict),
        "collections.defaultdict": Function(lambda *_: {}),
        "collections.Counter": Function(_as_dict),
        "__builtin__.set": _inert("set"),
        "builtins.set": _inert("set"),
        "builtins.complex": _inert("complex"),
        "builtins.bytearray": _inert("bytearray"),
        "_codecs.encode": _inert("bytes"),
    }


NAMES: Final[Mapping[str, object]] = _names()
"""What a pickle may name. None of it is looked up in torch, and nothing of it runs but the functions above."""


class _Storages:
    """Make what stands for a storage of its persistent id, and keep what each name was said to be."""

    def __init__(self) -> None:
        self.dtypes: dict[str, str | None] = {}

    def find(self, saved: object) -> object:
        """Read a persistent id: ("storage", class, name, device, count[, (root, first, count)])."""
        match saved:
            case ("storage", _Dtype() as kind, str(name), _, int(count)) | (
                "storage", _Dtype() as kind, str(name), _, int(count), None
            ):  # fmt: skip
                first = 0
            case ("storage", _Dtype() as kind, str(name), _, int(), (_, int(first), int(count))):
                pass
            case _:
                raise PickleError("a storage that is none")
        if not (0 <= first < 1 << 62 and 0 <= count < 1 << 62):
            raise PickleError("a storage that is none")
        dtype = None if kind.title == "bytes" else kind.name or kind.title
        if self.dtypes.setdefault(name, dtype) != dtype:
            raise PickleError(f"the storage {name!r:.50} of two dtypes")
        return _Storage(name, dtype, first, count)


def _no_storage(_: object) -> object:
    raise PickleError("a storage where none is due")


def _width(dtype: str | None) -> int:
    """Return the bytes of a value, of one of torch's dtypes that is not SafeTensors', too."""
    return 1 if dtype is None else _OTHERS[dtype] if dtype in _OTHERS else DTYPES[dtype].bits // 8


# -- the two forms of file -------------------------------------------------------------------------------


def _read_zip(path: Path, size: int) -> tuple[object, _Places]:
    """Read the archive that torch.save writes: NAME/data.pkl, NAME/data/0, NAME/data/1 …"""
    with open_archive(path) as archive:
        roots = [name.removesuffix("data.pkl") for name in archive.members if name.rpartition("/")[2] == "data.pkl"]
        if len(roots) != 1:
            raise PickleError(f"{len(roots)} records called data.pkl")
        root = roots[0]
        if f"{root}constants.pkl" in archive.members:
            raise PickleError("a TorchScript program, not tensors by name")
        order = archive.members.get(f"{root}byteorder")
        if order is not None and archive.read(order, limit=64).strip() != b"little":
            raise FileError(f"{path}: was saved by a machine that has the highest byte first", *_CONVERT)
        pickled = archive.read(archive.members[f"{root}data.pkl"], limit=min(MAX_PICKLE, max(size, _MAX_PACKED)))
        loaded = load(BytesIO(pickled), NAMES, _Storages().find)
        return loaded, _records(path, size, archive, f"{root}data/")


def _records(path: Path, size: int, archive: Archive, folder: str) -> _Places:
    """Find where the records of storages lie; those that are compressed are unpacked into a temporary file."""
    places = _Places(_Aside(path))
    members = {name.removeprefix(folder): each for name, each in archive.members.items() if name.startswith(folder)}
    packed = {name: member for name, member in members.items() if member.is_packed}
    _check_growth(path, size, sum(member.size for member in packed.values()))
    for name, member in members.items():
        if member.is_packed:
            file, start = places.aside.add(archive.pieces(member))
            places.stored[name] = file, start, member.size
        else:
            places.stored[name] = path, member.start, member.size
            places.records.append(member.record)
    return places


def _read_legacy(path: Path, stream: BinaryIO, size: int) -> tuple[object, _Places]:
    """Read what torch.save wrote before version 1.6: a mark, the tensors, the storages' names, the storages."""

    def plain() -> object:
        return load(Bounded(stream), {}, _no_storage)

    if plain() != _LEGACY_MAGIC or plain() != _LEGACY_VERSION:
        raise PickleError("no file of torch.save")
    told = plain()
    if not isinstance(told, dict) or told.get("little_endian") is not True:
        raise FileError(f"{path}: was saved by a machine that has the highest byte first", *_CONVERT)
    storages = _Storages()
    loaded, names = load(Bounded(stream), NAMES, storages.find), plain()
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise PickleError("the list of storages is missing")
    places, start = _Places(_Aside(path)), stream.tell()
    for name in names:
        if name in places.stored or name not in storages.dtypes:
            raise PickleError(f"the storage {name!r:.50}, of which no tensor is, or two are")
        stream.seek(start)
        count = int.from_bytes(stream.read(_COUNT_BYTES), "little")
        start, length = start + _COUNT_BYTES, count * _width(storages.dtypes[name])
        if start + length > size:
            raise PickleError(f"the storage {name!r:.50} reaches over the end of the file")
        places.stored[name] = path, start, length
        start += length
    return loaded, places


# -- tensors by name -------------------------------------------------------------------------------------


def _tensors(path: Path, loaded: object) -> Iterator[tuple[str, object]]:
    if isinstance(loaded, list):
        return _pairs(path, loaded)
    if not isinstance(loaded, dict):
        raise FileError(f"{path}: holds a {_kind(loaded)}, not tensors by name")
    if isinstance(loaded.get("state_dict"), dict):
        loaded = _unwrapped(path, loaded)
    return iter(_flattened(path, loaded).items())


def _kind(value: object) -> str:
    """Name what a value is, in torch's words."""
    if isinstance(value, _Tensor | _Foreign):
        return "Tensor"
    return value.kind if isinstance(value, Inert) else type(value).__name__.lstrip("_")


def _pairs(path: Path, loaded: list[object]) -> Iterator[tuple[str, object]]:
    """Name the matrices of a bare list: up and down of each module in turn (cloneofsimo/lora 0.0.x)."""
    tensors = [item for item in loaded if isinstance(item, _Tensor) and len(item.shape) == 2]
    if len(tensors) < len(loaded) or len(tensors) % 2:
        raise FileError(f"{path}: holds a list, but not of pairs of LoRA matrices")
    component = "text_encoder" if path.name.endswith(".text_encoder.pt") else "unet"
    for position, tensor in enumerate(tensors):
        yield f"{component}:{position // 2}:{'down' if position % 2 else 'up'}", tensor


def _metadata(path: Path, keys: Iterable[str]) -> dict[str, str]:
    """Say what cloneofsimo's SafeTensors files say of learned embeddings, whose pickles hold nothing else."""
    return dict.fromkeys(keys, EMBEDDING) if path.name.endswith(".ti.pt") else {}


def _unwrapped(path: Path, wrapper: dict[object, object]) -> dict[object, object]:
    """Take the weights out of a training checkpoint, if what lies beside them is known to be none."""
    rest = [
        str(name)
        for name, value in wrapper.items()
        if name != "state_dict"
        and name not in _TRAINING_STATE
        and not isinstance(value, bool | int | float | str | None)
    ]
    if rest:
        raise FileError(f"{path}: beside state_dict there is more than training state: {some(rest)}")
    return cast(dict[object, object], wrapper["state_dict"])


def _flattened(path: Path, tree: dict[object, object]) -> dict[str, object]:
    """Join the names of nested dicts with dots; a dict may occur once, lest a pickle grow endlessly."""
    found: dict[str, object] = {}
    strangers: list[str] = []
    seen: set[int] = set()
    waiting: list[tuple[str, object]] = [("", tree)]
    room = MAX_HEADER
    while waiting:
        prefix, value = waiting.pop()
        room -= len(prefix) * (len(value) if isinstance(value, dict) else 1)
        if len(prefix) > _MAX_NAME or room < 0:
            raise FileError(
                f"{path}: has names of more than {_MAX_NAME} letters, or of more than {MAX_HEADER} together"
            )
        if isinstance(value, _Tensor | _Foreign):
            if prefix in found:
                raise FileError(f"{path}: two tensors would have the key {prefix!r:.100}")
            found[prefix] = value
        elif isinstance(value, dict) and id(value) not in seen and all(isinstance(name, str) for name in value):
            seen.add(id(value))
            dot = "." if prefix else ""
            waiting += [(f"{prefix}{dot}{name}", item) for name, item in reversed(value.items())]
        else:
            strangers.append(f"{prefix} ({_kind(value)})")
    if strangers:
        raise FileError(f"{path}: holds more than tensors by name: {some(strangers)}")
    return found


def _checked(path: Path, key: str, tensor: object) -> _Tensor:
    if isinstance(tensor, _Foreign):
        raise FileError(f"{path}: {key!r:.100} cannot be stored in SafeTensors: {tensor.kind}")
    return cast(_Tensor, tensor)


# -- the header ------------------------------------------------------------------------------------------


def _header(path: Path, size: int, tensors: Mapping[str, _Tensor], places: _Places, identity: Fingerprint) -> Header:
    for key, tensor in tensors.items():
        _check_claim(path, key, tensor, size)
    _check_growth(path, size, sum(prod(each.shape) * each.width for each in tensors.values()))
    try:
        text = encode_header(
            ((key, each.dtype, each.shape) for key, each in tensors.items()), _metadata(path, tensors)
        )
    except ValueError as error:
        raise FileError(f"{path}: has a key that SafeTensors cannot hold: {error}") from None
    infos: dict[str, TensorInfo] = {}
    apart: dict[str, _Tensor] = {}
    for key, tensor in tensors.items():
        file, start, length = _place(path, key, tensor, places)
        if tensor.is_in_order:
            count = prod(tensor.shape) * tensor.width
            infos[key] = TensorInfo(key, key, tensor.dtype, tensor.shape, file, start, start + count)
        else:
            infos[key] = TensorInfo(key, key, tensor.dtype, tensor.shape, file, start, start + length)
            apart[key] = tensor
    _check_growth(path, size, sum(infos[key].nbytes for key in apart))
    for key, tensor in apart.items():
        info = infos[key]
        with info.file.open("rb") as stream:
            stream.seek(info.start)
            raw = stream.read(info.nbytes)
        if len(raw) < info.nbytes:
            raise FileError(f"{path}: became shorter while it was read")
        ordered = _in_order(tensor, raw)
        file, start = places.aside.add([ordered])
        infos[key] = replace(info, file=file, start=start, stop=start + len(ordered))
    digest = hashlib.sha256(text).hexdigest()
    metadata = _metadata(path, tensors)
    return Header(path, infos, metadata, 0, size, digest, records=tuple(places.records), identity=identity)


def _check_claim(path: Path, key: str, tensor: _Tensor, size: int) -> None:
    claimed = prod(tensor.shape) * tensor.width
    if claimed > max(tensor.storage.count * tensor.width, size, _LEAST):
        raise FileError(f"{path}: {key!r:.100} claims {claimed} bytes, more than the whole file holds")


def _check_growth(path: Path, size: int, claimed: int) -> None:
    if claimed > max(_GROWTH * size, _LEAST):
        raise FileError(f"{path}: its tensors claim {claimed} bytes, and the file has {size}", _AGAIN)


def _place(path: Path, key: str, tensor: _Tensor, places: _Places) -> tuple[Path, int, int]:
    """Return the file, the first byte, and the bytes from a tensor's first value to its last."""
    storage = tensor.storage
    if not prod(tensor.shape):
        return path, 0, 0
    width = _width(storage.dtype)
    if storage.name not in places.stored:
        raise FileError(f"{path}: {key!r:.100}: its values are not in the file", _AGAIN)
    file, start, length = places.stored[storage.name]
    first = storage.first * width + tensor.offset * tensor.width
    bytes_spanned = tensor.span * tensor.width
    inside = first + bytes_spanned <= min(length, (storage.first + storage.count) * width)
    if not inside:
        raise FileError(f"{path}: {key!r:.100}: reaches over the end of its storage", _AGAIN)
    return file, start + first, bytes_spanned


def _in_order(tensor: _Tensor, raw: bytes) -> bytes:
    """Put a tensor's values in order, first row first, and carry out what its flags say: both change signs alone."""
    import numpy as np

    unit = {1: "u1", 2: "<u2", 4: "<u4", 8: "<u8"}
    sides = zip(tensor.shape, tensor.strides, strict=True)
    steps = tuple(stride * tensor.width if size > 1 else 0 for size, stride in sides)
    flat = np.frombuffer(raw, unit[tensor.width])
    values = np.lib.stride_tricks.as_strided(flat, tensor.shape, steps, writeable=False).copy(order="C")
    if tensor.flags:
        if not (DTYPES[tensor.dtype].floating or tensor.dtype == "C64"):
            raise PickleError("a negated tensor of whole numbers")
        width = tensor.width // 2 if tensor.dtype == "C64" else tensor.width
        signs = values.reshape(-1).view(unit[width])
        for step, flag in enumerate(("neg", "conj"), 1):  # the second of each pair is the imaginary part
            if flag in tensor.flags:
                signs[step - 1 :: step] ^= signs.dtype.type(1 << 8 * width - 1)
    return values.tobytes()


def _scratch() -> tuple[BinaryIO, Path]:
    """Make a temporary file that has no name; it closes when nobody holds its path any more."""
    stream = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115
    folder = "/proc/self/fd" if Path("/proc/self/fd").is_dir() else "/dev/fd"
    path = _Scratch(f"{folder}/{stream.fileno()}")
    weakref.finalize(path, stream.close)
    return stream, path
