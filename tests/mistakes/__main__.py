"""Compare all answers with the written ones, or write them anew: python -m tests.mistakes --write."""

from __future__ import annotations

import contextlib
import difflib
import sys
import tempfile
from pathlib import Path

from tests.mistakes.cases import FILES, read, rewritten
from tests.mistakes.folder import fill


def run(*, write: bool) -> int:
    """Run every command; show what changed, or write it. Return how many files changed."""
    changed = 0
    with tempfile.TemporaryDirectory(prefix="mistakes-") as name:
        folder = Path(name).resolve()
        fill(folder)
        with contextlib.chdir(folder):
            for file in FILES:
                text = rewritten(file, {case.name: case.run(folder) for case in read(file)})
                old = file.read_text(encoding="utf-8")
                changed += text != old
                if write:
                    file.write_text(text, encoding="utf-8")
                sys.stdout.writelines(
                    difflib.unified_diff(old.splitlines(True), text.splitlines(True), file.name, file.name, n=1)
                )
    return changed


if __name__ == "__main__":
    changed_files = run(write="--write" in sys.argv[1:])
    sys.exit(bool(changed_files) and "--write" not in sys.argv[1:])
