"""Digests of an output's files, each taken by one process once all of a file is finished, so that many hash at once.

Each lies in a folder of its own, `NAME.partial/receipts/file.N`, in which processes that know nothing of one another
lay claims to it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from typing import Final

from lorabake.batch import notes
from lorabake.batch.parts import Coverage, is_covered
from lorabake.batch.receipts import BROKEN, Ground, folder_of
from lorabake.errors import LorabakeError
from lorabake.writing.claim import Claim
from lorabake.writing.output import Output

KIND: Final = "digest"


def _folder(output: Output, file: int) -> Path:
    return folder_of(output) / f"file.{file}"


def _note(output: Output, file: int) -> Path:
    return _folder(output, file) / "digest"


def whole_of(output: Output, covered: Coverage) -> Iterator[int]:
    """Yield the numbers of an output's files that are to be hashed, and of which all is finished."""
    for number, file in enumerate(output.plan.files if output.weights.is_hashed else ()):
        if file.link is None and is_covered((number, 0, file.data_size), covered.places):
            yield number


def take(output: Output, file: int, ground: Ground, stop: threading.Event) -> None:
    """Hash the data of a file of which all is finished, and put the digest beside the receipts."""
    sha256 = output.weights.sha256(file, 0, output.plan.files[file].data_size, stop)
    if not stop.is_set():
        notes.put(_note(output, file), KIND, _said(file, sha256, ground), durable=False)  # it can be taken again


def taken(output: Output, ground: Ground, covered: Coverage) -> dict[int, str]:
    """Return the digests that were taken of an output's files, by number; one of other inputs does not count."""
    found = ((file, _taken(output, ground, file)) for file in whole_of(output, covered))
    return {file: sha256 for file, sha256 in found if sha256 is not None}


def due(output: Output, ground: Ground, covered: Coverage) -> list[int]:
    """List the files of which all is finished, and no digest is taken."""
    return [file for file in whole_of(output, covered) if _taken(output, ground, file) is None]


def _taken(output: Output, ground: Ground, file: int) -> str | None:
    try:
        said = notes.taken(_note(output, file), KIND)
    except BROKEN:
        return None
    return str(said["sha256"]) if said == _said(file, str(said.get("sha256")), ground) else None


def _said(file: int, sha256: str, ground: Ground) -> dict[str, object]:
    return {"file": file, "sha256": sha256, "ground": notes.sha256_of(dict(ground))}


def forget(output: Output) -> None:
    """Remove all digests: the files will be read."""
    for number in range(len(output.plan.files)):
        _note(output, number).unlink(missing_ok=True)


class Hands:
    """Hash files, but for those that another process hashes, and see whether that one still gives signs of life."""

    def __init__(self) -> None:
        self._claims: dict[Path, Claim] = {}

    def take_free(self, outputs: Iterable[tuple[Output, Ground, Coverage]], workers: int) -> bool:
        """Hash what is finished and in nobody's hands, side by side; tell whether nothing is in another's hands.

        A file that cannot be read is left to whoever completes the output.
        """
        stop = threading.Event()
        with ThreadPoolExecutor(workers) as pool:
            try:
                began = [pool.submit(self._take, *each[:2], file, stop) for each in outputs for file in due(*each)]
                return all(each.result() for each in as_completed(began))
            except BaseException:
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise

    def _take(self, output: Output, ground: Ground, file: int, stop: threading.Event) -> bool:
        folder = _folder(output, file)
        with suppress(LorabakeError, OSError):
            folder.mkdir(exist_ok=True)
            claim = self._claims.setdefault(folder, Claim(folder))
            if not claim.take():
                return False
            with claim:
                del self._claims[folder]
                if not stop.is_set() and _taken(output, ground, file) is None:
                    take(output, file, ground, stop)
        return True
