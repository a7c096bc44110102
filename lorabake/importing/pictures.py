"""Read what a PNG picture says of how it was made.

Its texts are the chunks tEXt, zTXt and iTXt (PNG specification, third edition, section 11.3.3). AUTOMATIC1111 and
Forge write one named `parameters`, ComfyUI one named `prompt`.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from lorabake.errors import FileError
from lorabake.importing.infotext import read_infotext
from lorabake.importing.wanted import Wanted
from lorabake.importing.workflow import read_workflow
from lorabake.paths import check_there
from lorabake.tensors.magic import format_at

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MOST = 1 << 24
"""Most bytes of one text; a large workflow has less than 1 MB."""


def read_picture(path: Path, presets: Mapping[str, tuple[float, ...]]) -> Wanted:
    """Return what a picture says; `presets` are known names of block weights.

    Raise FileError for a picture without such a text, or with one that cannot be followed.
    """
    texts = texts_in(path)
    if (text := texts.get("parameters")) is not None:
        return read_infotext(text, str(path), presets)
    if (text := texts.get("prompt")) is not None:
        return read_workflow(text, str(path))
    raise FileError(
        f"{path}: does not say how it was made",
        "Sites and chat programs take that out. Give the picture as the program wrote it, or the prompt: --prompt.",
    )


def texts_in(path: Path) -> dict[str, str]:
    """Map the keywords of a picture's texts to the texts; raise FileError for what is no PNG."""
    check_there(path)
    try:
        with path.open("rb") as file:
            if file.read(len(SIGNATURE)) != SIGNATURE:
                raise FileError(*_no_png(path))
            return dict(_texts(file, path))
    except OSError as error:
        raise FileError(f"{path}: {error.strerror}") from None


def _no_png(path: Path) -> tuple[str, str]:
    form = format_at(path)
    found = f"is {form.title}" if form else "is no picture"
    return (
        f"{path}: {found}, and the texts are read from PNG pictures only",
        "Give the PNG that the program wrote, or the prompt: --prompt '<lora:style:0.8>'.",
    )


def _texts(file: BinaryIO, path: Path) -> Iterator[tuple[str, str]]:
    while len(head := file.read(8)) == 8:
        size, kind = int.from_bytes(head[:4], "big"), head[4:]
        if kind not in (b"tEXt", b"zTXt", b"iTXt"):
            file.seek(size + 4, 1)
            continue
        if size > MOST:
            raise FileError(f"{path}: has a text of {size:,} bytes; at most {MOST:,} are read")
        data = file.read(size)
        file.seek(4, 1)
        keyword, _, rest = data.partition(b"\0")
        try:
            yield keyword.decode("latin-1"), _decoded(kind, rest)
        except (ValueError, zlib.error):
            raise FileError(f"{path}: the text {keyword!r} in it is damaged") from None


def _decoded(kind: bytes, rest: bytes) -> str:
    """Decode what follows the keyword in a chunk of this kind."""
    if kind == b"tEXt":
        return rest.decode("latin-1")
    if kind == b"zTXt":
        return _inflated(rest[1:]).decode("latin-1")
    is_packed, rest = rest[:1] == b"\1", rest[2:]
    _language, _, rest = rest.partition(b"\0")
    _translated, _, text = rest.partition(b"\0")
    return (_inflated(text) if is_packed else text).decode("utf-8")


def _inflated(data: bytes) -> bytes:
    inflater = zlib.decompressobj()
    text = inflater.decompress(data, MOST)
    if inflater.unconsumed_tail:
        raise ValueError("too long a text")
    return text
