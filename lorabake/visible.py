"""Show text from untrusted files: letters as they are, and all that a terminal obeys or hides as escapes.

Names of tensors, metadata, tokens and file names come from files that anyone may have made. A line break could forge
a verdict, an escape code could overwrite lorabake's own, and a mark of direction could reverse a name.
"""

from __future__ import annotations

import json
import os
import re
import reprlib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import fields
from typing import Any

_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode's categories of characters without a glyph: controls, formats, surrogates, private and unassigned codes."""

_IGNORED = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0000-\U000e0fff]")
"""Letters and marks that are invisible, too (Default_Ignorable_Code_Point in Unicode's DerivedCoreProperties)."""

GLANCE = 60
"""About how many letters a value may take in a short form of a record."""

MOST_ITEMS = 5
"""How many items of a collection are too many for a short form."""

_SHOWN = 3

SECRETS = re.compile(
    r"(?:\w*[_-])?(?:api|access|auth)?[_-]?(?:token|key|secret|password|passwd|pwd|signature|sig|credential|credentials|auth)"
    r"|x-(?:amz|goog)-.*|policy|key-pair-id|authorization|bearer",
    re.IGNORECASE,
)
"""Names of an address's parameters whose values are nobody else's business."""

_USER = re.compile(r"(?<=://)[^/\s@'\"]+@")
_PARAMETER = re.compile(r"(?<=[?&])([\w.%-]+)=([^&\s'\"<>]*)")
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{8,}|(?i:(?<=bearer )[\w.~+/=-]{8,})")
_HELD = re.compile(r"HF_TOKEN|HUGGING_FACE_HUB_TOKEN|LORABAKE_TOKEN_\w+")
"""Environment variables that hold tokens."""

_brief = reprlib.Repr()
_brief.maxstring = 200
_brief.maxother = 200
_brief.maxlong = 40


def visible(text: str) -> str:
    """Return a text as one line with every character visible; others become Python's escapes."""
    if text.isprintable() and not _IGNORED.search(text):
        return text
    return "".join(ascii(character)[1:-1] if is_hidden(character) else character for character in text)


def redacted(text: str) -> str:
    """Take passwords and tokens out of a text: those in addresses, the hub's, and those in the environment."""
    if "://" in text:
        text = _USER.sub("…@", text)
        text = _PARAMETER.sub(lambda match: f"{match[1]}=…" if SECRETS.fullmatch(match[1]) else match[0], text)
    if "hf_" in text or "earer " in text:
        text = _TOKEN.sub("…", text)
    for value in _held():
        text = text.replace(value, "…")
    return text


def keep_secret(text: str) -> None:
    """Take a text out of everything that is said from now on: a token that came from a login."""
    _secrets.add(text)


_secrets: set[str] = set()


def _held() -> list[str]:
    held = [value for name, value in os.environ.items() if len(value) >= 8 and _HELD.fullmatch(name)]
    return [*held, *filter(None, _secrets)]


_ADDRESS = re.compile(r"(?<![a-z])(?:www(?=\.)|(?:https?|ftp|mailto|xmpp)(?=:))|@(?=\w)", re.IGNORECASE)
"""Matches what GitHub turns into a link in plain text: an address, or a user's name."""


def in_markdown(text: str) -> str:
    """Escape a text so that Markdown and HTML show it as it is, in tables, too, and GitHub makes no links of it.

    GitHub turns addresses in plain text into links. It looks for them in the rendered text, so escapes do not help.
    Instead, an entity of zero width goes after `@` and into `://` and `www.`.
    """
    spaced = visible(" ".join(text.split()))
    plain = re.sub(r"([\\`*_\[\]|!#~@$])", r"\\\1", spaced.replace("&", "&amp;").replace("<", "&lt;"))
    return _ADDRESS.sub(r"\g<0>&#8203;", plain)


def visible_json(value: object) -> str:
    """Write a value as JSON with every character visible; parsing it gives the same value."""
    lines = json.dumps(value, indent=2, ensure_ascii=False).split("\n")
    return "\n".join(line if line.isprintable() and not _IGNORED.search(line) else _escaped(line) for line in lines)


def is_hidden(character: str) -> bool:
    """Tell whether a character is invisible: it controls the display or has no width."""
    return unicodedata.category(character) in _HIDDEN or _IGNORED.match(character) is not None


def _escaped(line: str) -> str:
    return "".join(json.dumps(character)[1:-1] if is_hidden(character) else character for character in line)


def brief(value: object) -> str:
    """Quote a value from a file: shortened, with control characters escaped."""
    return _brief.repr(value)


def and_more(shown: Sequence[str], count: int, what: str = "more", *, between: str = ", ") -> str:
    """Join texts that stand for `count` things, and count the rest: "a, b, c and 4 more"."""
    rest = count - len(shown)
    return between.join(shown) + (f" {the_rest(rest, what)}" if rest > 0 else "")


def the_rest(count: int, what: str = "more") -> str:
    """Count what a list leaves out: "and 4 more"."""
    return f"and {count} {what}"


def counted(counts: Mapping[str, int]) -> str:
    """Write names and how often each was met: "attn ×2, norm ×1"."""
    return ", ".join(f"{name} ×{count}" for name, count in counts.items())


def some(names: Sequence[str]) -> str:
    """Quote the first few names, shortened and with control characters escaped, and count the rest."""
    return and_more([brief(name) for name in names[:_SHOWN]], len(names))


def size_of(count: int) -> str:
    """Write a number of bytes in decimal units."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count = count / 1000  # type: ignore[assignment]
    return f"{count:.2f} GB"


def counted_as(count: int, what: str) -> str:
    """Count things of one name: "1 LoRA", "2 LoRAs"."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def at_a_glance(value: object, letters: int = GLANCE, *, is_outer: bool = True) -> str:
    """Show a value in a few letters: a long collection as how many it holds, a record and a function by its name.

    What a collection holds is shown without `is_outer`, so that collections in it are counted.
    """
    if isinstance(value, str):
        text = repr(str(value))
    elif isinstance(value, (Mapping, Sequence, Set)) and not isinstance(value, bytes):
        counted = f"<{counted_as(len(value), 'item')}>"
        text = _items(value, letters) if len(value) < MOST_ITEMS and is_outer else counted
        return text if len(text) <= letters else counted
    elif callable(value) and not isinstance(value, type) and hasattr(value, "__qualname__"):
        text = value.__qualname__
    elif isinstance(value, int) and value.bit_length() > 4 * letters:  # Python refuses to write out very long ones
        text = f"a number of {value.bit_length()} bits"
    else:
        text = type(value).__name__ if type(value).__module__.partition(".")[0] == __package__ else repr(value)
    half = letters // 2
    return text if len(text) <= letters else f"{text[:half]}…{text[-half:]}"


def _items(value: Mapping[Any, object] | Sequence[object] | Set[object], letters: int) -> str:
    """Write a small collection with its items."""
    if isinstance(value, Mapping):
        pairs = (
            f"{at_a_glance(key, letters, is_outer=False)}: {at_a_glance(item, letters, is_outer=False)}"
            for key, item in value.items()
        )
        return f"{{{', '.join(pairs)}}}"
    items = [at_a_glance(item, letters, is_outer=False) for item in value]
    if isinstance(value, Set):
        return f"{{{', '.join(sorted(items))}}}"
    shown = ", ".join(items)
    return f"({shown}{',' if len(items) == 1 else ''})" if isinstance(value, tuple) else f"[{shown}]"


def named_fields(record: object, shown: Iterable[str], letters: int = GLANCE) -> str:
    """Show a record as its name and some of its fields: Copy(source=0, start=8, stop=136)."""
    told = ", ".join(f"{name}={at_a_glance(getattr(record, name), letters)}" for name in shown)
    return f"{type(record).__name__}({told})"


def short_repr(record: Any) -> str:
    """Show a dataclass in a few hundred letters, however much hangs below it: to be a class's `__repr__`."""
    return named_fields(record, (field.name for field in fields(record)))
