"""What are these bytes? Recognise a file's format by how it begins, whatever its name says.

This is the one table of formats: readers of weights and of recipes ask it what they were given instead.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from lorabake.settings import filled

SNIFFED = 512
"""How many bytes of a file's beginning tell its format."""

_CONVERT = "If it holds the model or LoRA, give the file a name in .pt, .ckpt or .bin, or convert it."
_AGAIN = "Download it again."
_UNPACK = "Unpack it, and give the file with the weights that is in it."
_PICTURE = "Give the file that holds the tensors; pictures often lie beside it under the same name."
_PAGE = "The download gave a web page, perhaps a login: download it again."
_ELSEWHERE = "Give the same model as SafeTensors: lorabake cannot read this format."


@dataclass(frozen=True, slots=True)
class Format:
    """Describe a file format: what to call it, and what to do if it stands where weights should be.

    `has_weights` says that it may hold what a bake needs, `is_text` that a recipe may begin like it.
    """

    title: str
    template: str
    pattern: bytes
    has_weights: bool = False
    is_text: bool = False

    @property
    def advice(self) -> str:
        """Say what to do instead."""
        return filled(self.template)

    @property
    def begins(self) -> re.Pattern[bytes]:
        """Return the pattern of a file's beginning, compiled when it is needed: all of them take 10 ms."""
        return re.compile(self.pattern, re.DOTALL | re.IGNORECASE)


# A header's length, below 2⁴⁸, and the brace after it. The length may be any bytes, such as those of a pickle.
_SAFETENSORS = rb"(?!\0{8}).{6}\0\0\{"


def _format(title: str, advice: str, begins: bytes, *, has_weights: bool = False, is_text: bool = False) -> Format:
    apart = b"(?!" + _SAFETENSORS + b")" + begins
    return Format(title, advice, apart, has_weights, is_text)


# A text may begin with a byte-order mark and blank lines.
_TEXT = rb"(?:\xef\xbb\xbf)?\s*"

SAFETENSORS = Format("a SafeTensors file", "", _SAFETENSORS, has_weights=True)
RECIPE = _format(
    "a recipe",
    "Give the file that holds the tensors. To bake this recipe: {BAKE}.",
    _TEXT + rb"(?![{<])(?=.*?(?:\A|\n)version:)(?=.*?(?:\A|\n)(?:base|loras|output):)",
    is_text=True,
)

ZIP = _format("a zip archive or PyTorch pickle", _CONVERT, rb"PK\x03\x04", has_weights=True)
PICKLE = _format("a pickle", _CONVERT, rb"\x80[\x02-\x05]", has_weights=True)
GGUF = _format("a GGUF file", "Name it *.gguf, so that it is read as one.", rb"GGUF", has_weights=True)

FORMATS = (
    SAFETENSORS,
    RECIPE,
    ZIP,
    PICKLE,
    GGUF,
    _format("a NumPy array", "Give a *.npz, or a SafeTensors file.", rb"\x93NUMPY"),
    _format("an HDF5 file", _ELSEWHERE, rb"\x89HDF\r\n"),
    _format("a gzip archive", "Unpack it first (gunzip).", rb"\x1f\x8b"),
    _format("a 7z archive", _UNPACK, rb"7z\xbc\xaf\x27\x1c"),
    _format("a RAR archive", _UNPACK, rb"Rar!\x1a\x07"),
    _format("an xz archive", _UNPACK, rb"\xfd7zXZ\0"),
    _format("a Zstandard archive", _UNPACK, rb"\x28\xb5\x2f\xfd"),
    _format("a PNG picture", _PICTURE, rb"\x89PNG\r\n"),
    _format("a JPEG picture", _PICTURE, rb"\xff\xd8\xff"),
    _format("a WebP picture", _PICTURE, rb"RIFF....WEBP"),
    _format("a GIF picture", _PICTURE, rb"GIF8[79]a"),
    _format("a video", "Give the file that holds the tensors.", rb"....ftyp"),
    _format("a PDF document", "Give the file that holds the tensors.", rb"%PDF-"),
    _format("a git-lfs pointer", "Run `git lfs pull` to fetch the real file.", _TEXT + rb"version https://git-lfs"),
    _format("an HTML page", _PAGE, _TEXT + rb"<(?:!doctype|html)"),
    _format("an XML text", "Give the file that holds the tensors.", _TEXT + rb"<\?xml"),
    _format(
        "a JSON text",
        "Give the file that holds the tensors, or a *.safetensors.index.json.",
        _TEXT + rb"\{(?!\0)",
        is_text=True,
    ),
    _format("a file that begins with zeros", f"Perhaps an unfinished download. {_AGAIN}", rb"\0{8}"),
)
"""All formats, in no order: no beginning is of two."""

TEXT = Format("a text", "Give the file that holds the tensors.", rb"[\t\n\r\x20-\xff]{8,}", is_text=True)
"""What has only letters, and none of the beginnings above."""


_NEVER = rb"(?!)"

BY_NAME = {
    suffix: Format(title, _ELSEWHERE, _NEVER)
    for suffix, title in {
        ".onnx": "an ONNX model",
        ".msgpack": "a MessagePack file, as Flax writes it,",
        ".tflite": "a TensorFlow Lite model",
        ".pb": "a TensorFlow graph",
    }.items()
}
"""Formats that only a file's name tells: they begin with any bytes."""


def format_of(head: bytes) -> Format | None:
    """Return the format that a file begins like; None if it is unknown."""
    found = next((form for form in FORMATS if form.begins.match(head)), None)
    return found or (TEXT if TEXT.begins.fullmatch(head) else None)


def format_at(path: Path) -> Format | None:
    """Return the format of a file; None if it is unknown, or the file cannot be read."""
    if not os.path.isfile(path):  # a pipe would make us wait; a disk that fails is told by the reader
        return None
    try:
        with path.open("rb") as file:
            return format_of(file.read(SNIFFED))
    except (OSError, ValueError):
        return None
