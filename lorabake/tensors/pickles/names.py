"""The names that a torch pickle may use, and what stands for them here: storages, tensors, dtypes, functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Final, cast

from lorabake.tensors.dtypes import DTYPES
from lorabake.tensors.header import MAX_DIMENSIONS
from lorabake.tensors.pickles.machine import Function, Inert, PickleError, as_key


@dataclass(frozen=True, slots=True)
class Storage:
    """Stand for a storage: its name, the dtype of its values (None for bytes), its first value, and their count."""

    name: str
    dtype: str | None
    first: int
    count: int


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """Stand for a tensor: values of a storage from `offset` on, `strides` apart; `flags` are torch's (conj, neg)."""

    storage: Storage
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
        """Tell whether the values are stored row by row without gaps."""
        due = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size != 1 and stride != due:
                return prod(self.shape) == 0
            due *= size
        return not self.flags

    @property
    def span(self) -> int:
        """Count the stored values from the tensor's first one to its last one."""
        steps = zip(self.shape, self.strides, strict=True)
        return 1 + sum((size - 1) * stride for size, stride in steps) if prod(self.shape) else 0


@dataclass(frozen=True, slots=True, eq=False)
class Foreign:
    """Stand for a tensor that SafeTensors cannot hold; `kind` is its layout, device and dtype."""

    kind: str


@dataclass(frozen=True, slots=True)
class Dtype:
    """Stand for a dtype or its class of storages; `name` is SafeTensors' name, or None."""

    title: str
    name: str | None


def _shape(value: object) -> tuple[int, ...]:
    if not isinstance(value, tuple | list) or len(value) > MAX_DIMENSIONS:
        raise PickleError("a shape that is none")
    sizes = tuple(value)
    if not all(type(size) is int and 0 <= size < 1 << 62 for size in sizes):
        raise PickleError("a shape that is none")
    return cast(tuple[int, ...], sizes)


def _rebuilt(storage: object, offset: object, size: object, stride: object, flags: object = None) -> object:
    if not isinstance(storage, Storage):
        raise PickleError("a tensor without a storage")
    return _made(storage, storage.dtype or "U8", offset, size, stride, flags)


def _made(storage: Storage, dtype: str, offset: object, size: object, stride: object, flags: object) -> object:
    shape, strides = _shape(size), _shape(stride)
    if len(shape) != len(strides) or type(offset) is not int or not 0 <= offset < 1 << 62:
        raise PickleError("a tensor whose sizes do not go together")
    if dtype not in DTYPES:
        return Foreign(f"strided, cpu, {dtype}")
    told = frozenset(flag for flag, value in flags.items() if value) if isinstance(flags, dict) else frozenset()
    if told - _FLAGS:
        raise PickleError("a tensor with flags that are not torch's")
    return Tensor(storage, dtype, offset, shape, strides, cast(frozenset[str], told))


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
    if not isinstance(storage, Storage) or not isinstance(dtype, Dtype):
        raise PickleError("a tensor without a storage or a dtype")
    return _made(storage, dtype.name or dtype.title, offset, size, stride, flags)


def _rebuild_meta(dtype: object, *_: object) -> object:
    return Foreign(f"strided, meta, {dtype.title if isinstance(dtype, Dtype) else 'unknown'}")


def _foreign(kind: str) -> Function:
    return Function(lambda *_: Foreign(kind))


def _rebuild_sparse(layout: object, data: object) -> object:
    title = layout.kind if isinstance(layout, Inert) else "sparse"
    values = data[1] if isinstance(data, tuple) and len(data) > 1 else None
    name = values.dtype if isinstance(values, Tensor) else ""
    return Foreign(f"{title}, cpu, {(DTYPES[name].torch if name else None) or 'unknown'}")


def _rebuild_subclass(function: object, _type: object, arguments: object, _state: object = None) -> object:
    """Rebuild a tensor that has Python attributes, and drop them; other subclasses are not in the table of names."""
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
"""torch's names of storage classes -> the dtype of their values."""

_OTHERS = {
    "complex128": 16, "complex32": 4, "qint8": 1, "quint8": 1, "qint32": 4, "quint4x2": 1, "quint2x4": 1,
    "float4_e2m1fn_x2": 1, "bits8": 1, "bits16": 2, "bits1x8": 1, "bits2x4": 1, "bits4x2": 1,
    **{f"{sign}int{bits}": 1 for sign in ("", "u") for bits in range(1, 8)},
}  # fmt: skip
"""torch's dtypes that SafeTensors cannot hold -> the bytes of a value."""

_SCHEMES = (
    "per_tensor_affine", "per_tensor_symmetric", "per_channel_affine", "per_channel_symmetric",
    "per_channel_affine_float_qparams",
)  # fmt: skip
"""torch's names of quantisation schemes."""

# Older versions of torch have their own classes for sparse tensors and for tensors on a GPU.
_PLACES = ("torch", "torch.cuda", "torch.sparse", "torch.cuda.sparse")


def _names() -> dict[str, object]:
    ours = {dtype.torch: dtype.name for dtype in DTYPES.values() if dtype.torch}
    titles = {*ours, *_OTHERS}
    names: dict[str, object] = {f"torch.{title}": Dtype(title, ours.get(title)) for title in titles}
    for name, title in _STORAGES.items():
        for place in _PLACES:
            names[f"{place}.{name}Storage"] = Dtype(title, ours.get(title))
            names[f"{place}.{name}Tensor"] = Function(_unfilled)
    for scheme in _SCHEMES:
        names[f"torch.{scheme}"] = Inert(scheme)
    for place in ("torch", "torch.storage"):
        names[f"{place}.UntypedStorage"] = Dtype("bytes", None)
    return names | {
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
"""All names that a pickle may use. None is looked up in torch; only the functions above run."""


class Storages:
    """Turn persistent ids into storages, and remember the dtype of each storage's name."""

    def __init__(self) -> None:
        self.dtypes: dict[str, str | None] = {}

    def find(self, saved: object) -> object:
        """Read a persistent id: ("storage", class, name, device, count[, (root, first, count)])."""
        match saved:
            case ("storage", Dtype() as kind, str(name), _, int(count)) | (
                "storage", Dtype() as kind, str(name), _, int(count), None
            ):  # fmt: skip
                first = 0
            case ("storage", Dtype() as kind, str(name), _, int(), (_, int(first), int(count))):
                pass
            case _:
                raise PickleError("a storage that is none")
        if not (0 <= first < 1 << 62 and 0 <= count < 1 << 62):
            raise PickleError("a storage that is none")
        dtype = None if kind.title == "bytes" else kind.name or kind.title
        if self.dtypes.setdefault(name, dtype) != dtype:
            raise PickleError(f"the storage {name!r:.50} of two dtypes")
        return Storage(name, dtype, first, count)


def width_of(dtype: str | None) -> int:
    """Return the bytes of a value, also for dtypes that only torch has."""
    return 1 if dtype is None else _OTHERS[dtype] if dtype in _OTHERS else DTYPES[dtype].bits // 8
