"""Checkpoints that torch has pickled: loaded without running their code, and stored as SafeTensors.

The rest of the program then reads tensors in one way only.
"""

from __future__ import annotations

import atexit
import functools
import pickle
import re
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lorabake.errors import FileError, SurroundingsError
from lorabake.tensors.dtypes import DTYPES
from lorabake.tensors.safetensors import Header, encode_header, fingerprint, read_header, some

if TYPE_CHECKING:
    import torch

_ZIP = b"PK\x03\x04"
MAGICS = (_ZIP, b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
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
    "Use the model's SafeTensors release. If there is none and you trust the file, load it where it can do\n"
    "no harm with torch.load(path, weights_only=False), and save it with safetensors.torch.save_file."
)


def open_pickle(path: Path) -> Header:
    """Store a pickle's tensors in a temporary SafeTensors file, and return the header of that.

    The temporary file is named after the pickle and lasts until the process ends; the same pickle, unchanged,
    is stored once. Nested dicts become dotted keys. A bare list of LoRA matrices, as cloneofsimo/lora first
    saved them, gets the keys of its later files: `unet:0:up`, `unet:0:down` …; their `.ti.pt` hold learned
    embeddings.

    Raise FileError for a damaged pickle, one that wants to run code, and one that holds anything else than
    tensors; SurroundingsError where the temporary file cannot be written.
    """
    return _stored(path, fingerprint(path))


@functools.cache
def _stored(path: Path, identity: tuple[int, int, int, int]) -> Header:
    tensors = dict(_tensors(path, _load(path)))
    for key, tensor in tensors.items():
        _check_storable(path, key, tensor, identity[2])
    entries = [(key, _names()[tensor.dtype], tuple(tensor.shape)) for key, tensor in tensors.items()]
    try:
        header = encode_header(entries, _metadata(path, tensors))
    except ValueError as error:
        raise FileError(f"{path}: has a key that SafeTensors cannot hold: {error}") from None
    try:
        target = Path(tempfile.mkdtemp(dir=_scratch())) / f"{path.stem}.safetensors"
        with target.open("wb") as file:
            file.write(header)
            for tensor in tensors.values():
                file.write(_data(tensor))
    except OSError as error:
        raise SurroundingsError(
            f"{path}: its tensors cannot be stored in a temporary file: {error.strerror or error}\n"
            "Set TMPDIR to a folder with enough space, or convert the file to SafeTensors."
        ) from None
    return read_header(target)


@functools.cache
def _scratch() -> str:
    """Make the process's folder for converted pickles, removed when the process ends."""
    folder = tempfile.mkdtemp(prefix="lorabake-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _load(path: Path) -> object:
    import torch

    try:
        return torch.load(path, weights_only=True, map_location="cpu", mmap=_is_plain_zip(path))
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if wanted is None:
            raise FileError(f"{path}: a damaged pickle, or one that wants to run code\n{_CONVERT}") from None
        raise FileError(f"{path}: a pickle that wants to run code: {wanted[1]!r:.100}\n{_CONVERT}") from None
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        EOFError,
        LookupError,
        MemoryError,
        NotImplementedError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
        struct.error,
        zipfile.BadZipFile,
    ) as error:  # whatever torch's unpickler stumbles over in a damaged file
        raise FileError(f"{path}: not a readable PyTorch file: {error!r:.150}\nDownload it again.") from None


def _is_plain_zip(path: Path) -> bool:
    """Tell whether the tensors lie in the file as they are, so that they need not be loaded all at once."""
    with path.open("rb") as file:
        if not file.read(4).startswith(_ZIP):
            return False
    with zipfile.ZipFile(path) as archive:
        return all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist())


def _tensors(path: Path, loaded: object) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(loaded, list):
        return _pairs(path, loaded)
    if not isinstance(loaded, dict):
        raise FileError(f"{path}: holds a {type(loaded).__name__}, not tensors by name")
    if isinstance(loaded.get("state_dict"), dict):
        loaded = _unwrapped(path, loaded)
    return iter(_flattened(path, loaded).items())


def _pairs(path: Path, loaded: list[object]) -> Iterator[tuple[str, torch.Tensor]]:
    """Name the matrices of a bare list: up and down of each module in turn (cloneofsimo/lora 0.0.x)."""
    import torch

    tensors = [item for item in loaded if isinstance(item, torch.Tensor) and item.ndim == 2]
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
    weights = wrapper["state_dict"]
    assert isinstance(weights, dict)
    rest = [
        str(name)
        for name, value in wrapper.items()
        if name != "state_dict"
        and name not in _TRAINING_STATE
        and not isinstance(value, bool | int | float | str | None)
    ]
    if rest:
        raise FileError(f"{path}: beside state_dict there is more than training state: {some(rest)}")
    return weights


def _flattened(path: Path, tree: dict[object, object]) -> dict[str, torch.Tensor]:
    """Join the names of nested dicts with dots; a dict may occur once, lest a pickle grow endlessly."""
    import torch

    found: dict[str, torch.Tensor] = {}
    strangers: list[str] = []
    seen: set[int] = set()
    waiting: list[tuple[str, object]] = [("", tree)]
    while waiting:
        prefix, value = waiting.pop()
        if isinstance(value, torch.Tensor):
            if prefix in found:
                raise FileError(f"{path}: two tensors would have the key {prefix!r}")
            found[prefix] = value
        elif isinstance(value, dict) and id(value) not in seen and all(isinstance(name, str) for name in value):
            seen.add(id(value))
            dot = "." if prefix else ""
            waiting += [(f"{prefix}{dot}{name}", item) for name, item in reversed(value.items())]
        else:
            strangers.append(f"{prefix} ({type(value).__name__})")
    if strangers:
        raise FileError(f"{path}: holds more than tensors by name: {some(strangers)}")
    return found


@functools.cache
def _names() -> dict[torch.dtype, str]:
    """Map torch's dtypes to SafeTensors' names; older versions of torch have fewer."""
    import torch

    return {
        getattr(torch, dtype.torch): dtype.name
        for dtype in DTYPES.values()
        if dtype.torch is not None and hasattr(torch, dtype.torch)
    }


def _check_storable(path: Path, key: str, tensor: torch.Tensor, size: int) -> None:
    import torch

    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.dtype not in _names():
        kind = f"{tensor.layout}, {tensor.device}, {tensor.dtype}".replace("torch.", "")
        raise FileError(f"{path}: {key!r} cannot be stored in SafeTensors: {kind}")
    if tensor.nbytes > max(tensor.untyped_storage().nbytes(), size):
        raise FileError(f"{path}: {key!r} claims {tensor.nbytes} bytes, more than the whole file holds")


def _data(tensor: torch.Tensor) -> memoryview:
    """Give the elements in order, whatever strides and storage they come with."""
    import torch

    flat = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
