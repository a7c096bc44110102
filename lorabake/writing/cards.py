"""Know a model card that lorabake wrote, as long as nobody has edited it: a bake may replace it, and no other one.

A card's last line is a comment with the SHA-256 of all before it, and of the picture that it shows.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from lorabake.errors import LorabakeError
from lorabake.planning import is_card
from lorabake.tensors.small import content_of, holds

CARD = "README.md"
"""The name of a folder's card."""

SUFFIX = ".md"
"""What a file's card has in place of `.safetensors`."""

_MARK = re.compile(
    rb"<!-- Written by lorabake\. sha256:([0-9a-f]{64})(?: ([\w.-]+\.png) sha256:([0-9a-f]{64}))? -->\n\Z"
)


def marked(text: str, picture: str = "", content: bytes = b"") -> bytes:
    """Return a card's text with its last line; `picture` is the name of the file that it shows, with this content."""
    body = f"{text.rstrip()}\n\n".encode()
    shown = f" {picture} sha256:{hashlib.sha256(content).hexdigest()}" if picture else ""
    return body + f"<!-- Written by lorabake. sha256:{hashlib.sha256(body).hexdigest()}{shown} -->\n".encode()


def own_files(card: Path) -> Iterator[Path]:
    """Yield a card and its picture, if lorabake wrote them and nobody has edited them since."""
    if not card.is_file():
        return
    try:
        content = content_of(card)
    except LorabakeError:  # unreadable or huge: not lorabake's
        return
    mark = _MARK.search(content)
    if mark is None or hashlib.sha256(content[: mark.start()]).hexdigest() != mark[1].decode():
        return
    yield card
    if mark[2] is not None:
        picture = card.with_name(mark[2].decode())
        if picture.is_file() and hashlib.sha256(picture.read_bytes()).hexdigest() == mark[3].decode():
            yield picture


def lost_with(root: Path, base: Path) -> set[Path]:
    """Return the cards in a folder that may go, by their paths in it: lorabake's own, and copies of the base's."""
    own = {path.relative_to(root) for path in own_files(root / CARD)}
    copies = (path for path in root.iterdir() if is_card(Path(path.name)) and path.is_file())
    return own | {
        Path(path.name)
        for path in copies
        if (base / path.name).is_file() and holds(path, (base / path.name).read_bytes())
    }
