"""Read checkpoints that torch has pickled as headers like any other, with each tensor's place in the file.

torch.save writes a zip archive. Its pickle says which part of which record each tensor is, and each record holds one
storage as it was in memory. Before version 1.6, torch wrote pickles and storages one after the other. Both are read
here without torch, and without running anything that the pickle names (`machine`). No tensor is read before it is
needed.

Tensors that are not in one piece in the file (a transposed view, a compressed record) are copied into a temporary
file. It has no name, so it goes away with the process, however that ends.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import replace
from math import prod
from pathlib import Path

from lorabake.errors import FileError
from lorabake.machine import unreadable
from lorabake.tensors.archives import MAGIC, ArchiveError
from lorabake.tensors.dtypes import DTYPES
from lorabake.tensors.header import Fingerprint, Header, TensorInfo
from lorabake.tensors.pickles.machine import CodeError, PickleError
from lorabake.tensors.pickles.names import Tensor, width_of
from lorabake.tensors.pickles.state_dict import metadata_of, tensors_by_name
from lorabake.tensors.pickles.storages import AGAIN, CONVERT, LEAST, Places, check_growth, read_legacy, read_zip
from lorabake.tensors.reader import fingerprint, read_stored
from lorabake.tensors.safetensors import encode_header


def open_pickle(path: Path) -> Header:
    """Read a pickled checkpoint's header; the tensors' data stay in the file.

    Nested dicts become dotted keys. A bare list of LoRA matrices, as early versions of cloneofsimo/lora saved them,
    gets the keys of later versions: `unet:0:up`, `unet:0:down` … Their `.ti.pt` files hold learned embeddings.

    Raise FileError for a pickle that is damaged, wants to run code, or holds anything but tensors. Raise
    SurroundingsError if a temporary file cannot be written.
    """
    return _read(path, fingerprint(path))


@functools.lru_cache(maxsize=64)
def _read(path: Path, identity: Fingerprint) -> Header:
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            is_zip = stream.read(len(MAGIC)) == MAGIC
            stream.seek(0)
            loaded, places = read_zip(path, size) if is_zip else read_legacy(path, stream, size)
        return _header(path, size, tensors_by_name(path, loaded), places, identity)
    except CodeError as error:
        raise FileError(f"{path}: a pickle that wants to run code: {error.args[0]!r:.100}", *CONVERT) from None
    except (PickleError, ArchiveError) as error:
        raise FileError(f"{path}: not a readable PyTorch file: {error!s:.150}", AGAIN) from None
    except OSError as error:
        raise unreadable(path, error) from None


def _header(path: Path, size: int, tensors: Mapping[str, Tensor], places: Places, identity: Fingerprint) -> Header:
    for key, tensor in tensors.items():
        _check_claim(path, key, tensor, size)
    check_growth(path, size, sum(prod(one.shape) * one.width for one in tensors.values()))
    metadata = metadata_of(path, tensors)
    try:
        text = encode_header(((key, one.dtype, one.shape) for key, one in tensors.items()), metadata)
    except ValueError as error:
        raise FileError(f"{path}: has a key that SafeTensors cannot hold: {error}") from None
    infos: dict[str, TensorInfo] = {}
    apart: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        file, start, length = _place(path, key, tensor, places)
        if tensor.is_in_order:
            count = prod(tensor.shape) * tensor.width
            infos[key] = TensorInfo(key, key, tensor.dtype, tensor.shape, file, start, start + count)
        else:
            infos[key] = TensorInfo(key, key, tensor.dtype, tensor.shape, file, start, start + length)
            apart[key] = tensor
    check_growth(path, size, sum(infos[key].nbytes for key in apart))
    for key, tensor in apart.items():
        ordered = _in_order(tensor, read_stored(infos[key]))
        file, start = places.aside.add([ordered])
        infos[key] = replace(infos[key], file=file, start=start, stop=start + len(ordered))
    digest = hashlib.sha256(text).hexdigest()
    return Header(path, infos, metadata, 0, size, digest, records=tuple(places.records), identity=identity)


def _check_claim(path: Path, key: str, tensor: Tensor, size: int) -> None:
    claimed = prod(tensor.shape) * tensor.width
    if claimed > max(tensor.storage.count * tensor.width, size, LEAST):
        raise FileError(f"{path}: {key!r:.100} claims {claimed} bytes, more than the whole file holds")


def _place(path: Path, key: str, tensor: Tensor, places: Places) -> tuple[Path, int, int]:
    """Return a tensor's file, its first byte, and how many bytes there are from its first value to its last."""
    storage = tensor.storage
    if not prod(tensor.shape):
        return path, 0, 0
    width = width_of(storage.dtype)
    if storage.name not in places.stored:
        raise FileError(f"{path}: {key!r:.100}: its values are not in the file", AGAIN)
    file, start, length = places.stored[storage.name]
    first = storage.first * width + tensor.offset * tensor.width
    bytes_spanned = tensor.span * tensor.width
    inside = first + bytes_spanned <= min(length, (storage.first + storage.count) * width)
    if not inside:
        raise FileError(f"{path}: {key!r:.100}: reaches over the end of its storage", AGAIN)
    return file, start + first, bytes_spanned


def _in_order(tensor: Tensor, raw: bytes) -> bytes:
    """Return a tensor's values row by row, and apply its flags, which only change signs."""
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
        for step, flag in enumerate(("neg", "conj"), 1):  # every second value is an imaginary part
            if flag in tensor.flags:
                signs[step - 1 :: step] ^= signs.dtype.type(1 << 8 * width - 1)
    return values.tobytes()
