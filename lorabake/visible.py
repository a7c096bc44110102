"""Show text that somebody else wrote: letters as they are, and what a terminal would obey or hide as escapes.

Names of tensors, metadata, tokens and file names come from files that anyone may have made. With a line break they
could write a verdict of their own, with escape codes paint over lorabake's, with marks of direction turn names round.
"""

from __future__ import annotations

import json
import re
import reprlib
import unicodedata
from collections.abc import Sequence

_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode's general categories of what is no sign: controls, formats, halves of surrogate pairs, unassigned codes."""

_IGNORED = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0000-\U000e0fff]")
"""Letters and marks that are not shown either (Default_Ignorable_Code_Point of Unicode's DerivedCoreProperties)."""

_SHOWN = 3

_brief = reprlib.Repr()
_brief.maxstring = 200
_brief.maxother = 200
_brief.maxlong = 40


def visible(text: str) -> str:
    """Return a text as one line in which every character is seen: what is not is written as Python writes it."""
    if text.isprintable() and not _IGNORED.search(text):
        return text
    return "".join(ascii(each)[1:-1] if is_hidden(each) else each for each in text)


def visible_json(value: object) -> str:
    """Write a value as JSON in which every character is seen; whoever reads it gets the value itself."""
    lines = json.dumps(value, indent=2, ensure_ascii=False).split("\n")
    return "\n".join(line if line.isprintable() and not _IGNORED.search(line) else _escaped(line) for line in lines)


def is_hidden(character: str) -> bool:
    """Tell whether a character is one that is not seen: it steers what is shown, or takes no place."""
    return unicodedata.category(character) in _HIDDEN or _IGNORED.match(character) is not None


def _escaped(line: str) -> str:
    return "".join(json.dumps(each)[1:-1] if is_hidden(each) else each for each in line)


def brief(value: object) -> str:
    """Quote a value from a file: shortened, with control characters escaped."""
    return _brief.repr(value)


def some(names: Sequence[str]) -> str:
    """Quote the first few names, shortened and with control characters escaped, and count the rest."""
    shown = ", ".join(brief(name) for name in names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
