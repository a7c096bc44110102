"""Find globs that match what a base lacks and nothing that it has, for a recipe line that leaves it out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from lorabake.keymap.names import pattern_of

MOST_GLOBS = 12
"""Most globs of a line that is worth showing; a LoRA that needs more is for another base."""


def line_for(left: Sequence[str], kept: Sequence[str], globs: Sequence[str] = ()) -> str | None:
    """Return the line that leaves out some names and no others, in addition to `globs`; None if it is too long."""
    globs = list(globs)
    remaining = list(dict.fromkeys(left))
    while remaining and len(globs) < MOST_GLOBS:
        candidates = _candidates(remaining)
        glob = next(glob for glob in candidates if not any(fnmatchcase(name, glob) for name in kept))
        globs.append(glob)
        remaining = [name for name in remaining if not fnmatchcase(name, glob)]
    return None if remaining else f"ignore: {json.dumps(globs, ensure_ascii=False)}"


def by_end(name: str) -> str:
    """Return a glob for all names with the same words after the last number: `*.cross_attn.k_img`."""
    end = re.split(r"(?<![a-zA-Z0-9])\d+", name)[-1]
    return f"*{_quoted(end)}" if end not in ("", name) else _quoted(name)


def _candidates(names: Sequence[str]) -> Iterator[str]:
    """Yield globs that match the first of some names, from wide to narrow, its own name last."""
    first, pattern = names[0], pattern_of(names[0])
    yield by_end(first)
    if sum(pattern_of(name) == pattern for name in names) > 1:
        yield re.sub(r"(?<![a-zA-Z0-9])N(?![a-zA-Z0-9])", "*", _quoted(pattern))
        for match in re.finditer(r"[._]", first):
            yield _quoted(first[: match.end()]) + "*"
    yield _quoted(first)


def _quoted(text: str) -> str:
    """Escape a text as a glob that matches only itself."""
    return re.sub(r"([*?[])", r"[\1]", text)
