"""GGUF files, read through the `gguf` package: a header like any other, quantised tensors as packed weights.

Image and video models keep their makers' names in GGUF. Language models do not: llama.cpp renames modules and
exchanges rows, which `lorabake.translation` undoes.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from lorabake.errors import FileError, SurroundingsError
from lorabake.tensors.packing import PackedInfo
from lorabake.tensors.safetensors import Header, TensorInfo, fingerprint

MAGIC = b"GGUF"
MAX_LIST = 256
"""Values of a list beyond which it is a vocabulary, or the like."""

PLAIN = ("F32", "F16", "BF16", "F64")
MODELS = {
    "aura", "cosmos", "flux", "hidream", "hyvid", "lumina2", "ltxv", "pixart", "qwen_image", "sd1", "sd3", "sdxl",
    "wan",
}  # fmt: skip
"""Names of architectures whose GGUF files keep the makers' names (ComfyUI-GGUF's converter)."""


def open_gguf(path: Path) -> Header:
    """Read a GGUF file's header, and what it says of its model but for long lists; raise FileError if damaged."""
    try:
        import gguf
    except ImportError:
        raise SurroundingsError(
            f"{path}: GGUF files need the package gguf", "Install the extra: pip install 'lorabake[gguf]'"
        ) from None
    try:
        reader = gguf.GGUFReader(path)
        facts = {key: field.contents() for key, field in reader.fields.items() if len(field.data) <= MAX_LIST}
    except (ValueError, OSError, IndexError, KeyError, UnicodeError) as error:
        raise FileError(f"{path}: a damaged GGUF file: {error}") from None
    if reader.endianess is not gguf.GGUFEndian.LITTLE:
        raise FileError(
            f"{path}: a GGUF file for machines that have the highest byte first", "Convert it with gguf-py."
        )
    pieces = facts.get("split.count", 1)
    if pieces not in (0, 1):
        raise FileError(
            f"{path}: one of {pieces} pieces of a GGUF file", "Join them with llama.cpp (llama-gguf-split --merge)."
        )
    tensors: dict[str, TensorInfo] = {}
    for tensor in reader.tensors:
        original = reader.get_field(f"comfy.gguf.orig_shape.{tensor.name}")
        shape = original.contents() if original else reversed(tensor.shape.tolist())
        start = int(tensor.data_offset)
        kind, size, stop = tensor.tensor_type.name, tuple(map(int, shape)), start + int(tensor.n_bytes)
        plain = TensorInfo(tensor.name, tensor.name, kind, size, path, start, stop)
        if kind in PLAIN:
            tensors[tensor.name] = plain
            continue
        data = replace(plain, dtype="U8", shape=(stop - start,))
        way = f"GGUF {kind}"
        tensors[tensor.name] = PackedInfo(
            tensor.name, tensor.name, way, size, path, start, stop, {"data": data}, {"type": kind}
        )
    start, identity = int(reader.data_offset), fingerprint(path)
    with path.open("rb") as stream:
        digest = hashlib.sha256(stream.read(start)).hexdigest()
    return Header(path, tensors, {}, start, path.stat().st_size, digest, facts, identity=identity)
