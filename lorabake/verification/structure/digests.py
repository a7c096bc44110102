"""Hash a checkpoint's inputs and data, and compare the hashes with those in its header and recipe."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import numpy as np

from lorabake.artifacts.locking import stated_as
from lorabake.artifacts.watch import Watch
from lorabake.documents.names import Figures
from lorabake.errors import FileError
from lorabake.planning import Plan
from lorabake.reference.arrays import CHUNK, Files
from lorabake.storage.fields import DATA_HASHES, INPUTS
from lorabake.tensors.checkpoint import Checkpoint
from lorabake.tensors.header import Header
from lorabake.tensors.safetensors import read_header
from lorabake.tensors.small import parse_json
from lorabake.verification.findings import Finding, Status
from lorabake.verification.structure.links import links_in, name_of
from lorabake.verification.structure.recipes import compare


class Digests:
    """Take digests, and turn them into findings of `stage`.

    `whole` has the SHA-256 of the base's and the checkpoint's files by path, where they are asked for.
    """

    def __init__(self, plan: Plan, baked: Checkpoint, files: Files, stage: str) -> None:
        self.plan, self.baked, self.files, self.stage = plan, baked, files, stage
        self.whole: dict[str, str] = {}
        self._stop = Event()
        self.watch = Watch.of(plan, locked=False)

    def take(self, *, data: bool, whole: bool = False) -> dict[str, str]:
        """Take the digests of inputs that a header states, and of `data` with a stated digest.

        With `whole`, also those of all files of the base and the checkpoint. Each file is read once for all of them.
        """
        inputs = dict.fromkeys([*self.plan.digests.values(), *self.watch.paths])
        digests = {str(path): self._sha256(path) for path in inputs}
        if whole:
            files = dict.fromkeys(header.path for header in self.plan.sources.base.headers)
            self.whole = {str(path): digests.get(str(path)) or self._sha256(path) for path in files}
        for header in _headers(self.baked):
            is_stated = data and any(name in header.metadata for name in DATA_HASHES)
            if whole:
                of_file, of_data = self._sha256_with_data(header)
                self.whole[str(header.path)] = of_file
                digests |= {self._data_of(header): of_data} if is_stated else {}
            elif is_stated:
                digests[self._data_of(header)] = self._sha256(header.path, header.data_start)
        return digests

    @contextmanager
    def stopped_with(self) -> Iterator[None]:
        """Stop taking digests if what is done meanwhile breaks off."""
        try:
            yield
        except BaseException:
            self._stop.set()
            raise

    def named(self, digests: Mapping[str, str]) -> dict[str, str]:
        """Name hashed files as the recipe does."""
        return {self._named(path): digest for path, digest in digests.items()}

    def findings(self, digests: Mapping[str, str], *, data: bool) -> Iterator[Finding]:
        """Compare the digests taken with those that are stated."""
        own = {str(path) for path in self.plan.digests.values()}
        yield from self._inputs({path: digest for path, digest in digests.items() if path in own})
        yield from self._folders(digests)
        yield from self._configs()
        yield from self._data_hashes(digests) if data else ()
        yield from self._embeddings()

    def _inputs(self, digests: Mapping[str, str]) -> Iterator[Finding]:
        """Compare inputs with the checkpoint's own list of them, and with the recipe's."""
        made_of = self.baked.metadata.get(INPUTS)
        texts = re.findall(r'"sha256":"([0-9a-f]{64})"', made_of or "")
        check = f"{self.stage}.input"
        for path, digest in digests.items():
            of_input = next((each for each in self.plan.sources.inputs if _is_part(path, each[0])), None)
            if of_input is None:
                continue
            checkpoint, said = of_input
            is_stated = said.sha256 is not None and path == str(checkpoint.path)
            if is_stated and said.sha256 != digest:
                note = "the recipe states another SHA-256"
                figures = Figures(digest, said.sha256, "sha256")
                yield Finding(check, Status.FAIL, said.path, digest[:12], str(said.sha256)[:12], note, figures)
            elif made_of is None and is_stated:
                note, figures = "has the SHA-256 that the recipe states", Figures(digest, said.sha256, "sha256")
                yield Finding(check, Status.PASS, said.path, digest[:12], "", note, figures)
            elif digest in texts:
                figures = Figures(digest, unit="sha256")
                yield Finding(check, Status.PASS, said.path, digest[:12], "", "is the file that was baked", figures)
            elif made_of is not None:
                note = f"changed since the bake: the checkpoint's header names other files than {Path(path).name}"
                figures = Figures(digest, unit="sha256")
                yield Finding(check, Status.FAIL, said.path, digest[:12], "", note, figures)

    def _folders(self, digests: Mapping[str, str]) -> Iterator[Finding]:
        """Compare folders with the digests that the recipe states of them."""
        check = f"{self.stage}.input"
        for each, stated in self.watch.stated():
            pinned = self.watch.digested(each, {Path(path): digest for path, digest in digests.items()})
            is_same = stated in stated_as(pinned, each)
            note = "has the SHA-256 that the recipe states" if is_same else "the recipe states another SHA-256"
            status, limit = (Status.PASS, "") if is_same else (Status.FAIL, stated[:12])
            figures = Figures(pinned.sha256, stated, "sha256")
            yield Finding(check, status, each.path, pinned.sha256[:12], limit, note, figures)

    def _configs(self) -> Iterator[Finding]:
        """Compare the files beside LoRAs that state scales with those at the time of the bake."""
        try:
            said = parse_json(self.baked.metadata.get(INPUTS, "{}"))
        except ValueError:
            return
        made_of = said.get("loras") if isinstance(said, dict) else None
        listed = made_of if isinstance(made_of, list) else []
        places = compare(self.plan, self.baked.metadata).order
        for source, place in zip(self.plan.sources.loras, places, strict=True):
            if place >= len(listed):  # the checkpoint says nothing of it
                continue
            entry = listed[place]
            said_files = entry.get("files") if isinstance(entry, dict) else None
            files = said_files if isinstance(said_files, list) else []
            due = {
                str(each["name"]): each["sha256"]
                for each in files
                if isinstance(each, dict) and each.keys() == {"name", "sha256"}
            }
            there = {side.name: side.sha256 for side in self.plan.sources.evidence.sides_of(source.checkpoint)}
            for name in sorted(due | there):
                if due.get(name) != there.get(name):
                    how = "changed" if name in due and name in there else "went" if name in due else "came"
                    note = f"{name} {how} after the bake: it says how the LoRA is applied"
                    yield Finding(f"{self.stage}.input", Status.FAIL, source.name, "", "", note)

    def _data_hashes(self, digests: Mapping[str, str]) -> Iterator[Finding]:
        check = f"{self.stage}.digest"
        for header in _own_headers(self.plan, self.baked):
            taken = digests.get(self._data_of(header))
            if taken is None:
                continue
            subject = name_of(self.baked, header)
            for name in DATA_HASHES:
                said = header.metadata.get(name, taken).removeprefix("0x")
                if said != taken:
                    note = f"the header's {name} is not the SHA-256 of the data: it was changed after it was written"
                    figures = Figures(taken, said, "sha256")
                    yield Finding(check, Status.FAIL, subject, taken[:12], said[:12], note, figures)
                    break
            else:
                note = "the data has the SHA-256 that the header states"
                figures = Figures(taken, taken, "sha256")
                yield Finding(check, Status.PASS, subject, taken[:12], taken[:12], note, figures)

    def _embeddings(self) -> Iterator[Finding]:
        """Compare the files of learned embeddings with the LoRAs' tensors; missing files are reported elsewhere."""
        for embedding in self.plan.embeddings:
            try:
                there = read_header(embedding.path).tensors
            except FileError:
                continue
            pairs = [(each.info, there[each.name]) for each in embedding.vectors if each.name in there]
            if not pairs:
                continue
            wrong = sum(not self.files.equal(due, found) for due, found in pairs)
            status = Status.FAIL if wrong else Status.PASS
            lora = self.plan.sources.loras[embedding.lora].name
            note = f"{'other bytes than' if wrong else 'byte-equal to'} those of {embedding.token!r} in {lora}"
            measured, figures = f"{len(pairs)} tensors", Figures(len(pairs), unit="tensors")
            yield Finding(f"{self.stage}.embedding", status, embedding.path.name, measured, "", note, figures)

    def _data_of(self, header: Header) -> str:
        return f"data of {name_of(self.baked, header)}"

    def _named(self, path: str) -> str:
        for checkpoint, said in self.plan.sources.inputs:
            if _is_part(path, checkpoint):
                return said.portable_path + path.removeprefix(str(checkpoint.path))
        return path

    def _sha256(self, path: Path, start: int = 0) -> str:
        digest = hashlib.sha256()
        for piece in self._pieces(path, start, path.stat().st_size):
            digest.update(piece)
        return digest.hexdigest()

    def _sha256_with_data(self, header: Header) -> tuple[str, str]:
        """Take the digests of a whole file and of the data in it in one reading."""
        head, data = self.files.raw(header.path, 0, header.data_start), hashlib.sha256()
        whole = hashlib.sha256(head)
        for piece in self._pieces(header.path, header.data_start, header.path.stat().st_size):
            whole.update(piece)
            data.update(piece)
        return whole.hexdigest(), data.hexdigest()

    def _pieces(self, path: Path, start: int, stop: int) -> Iterator[memoryview]:
        buffer = np.empty(min(CHUNK, max(stop - start, 0)), np.uint8)
        for place in range(start, stop, CHUNK):
            if self._stop.is_set():
                return
            piece = buffer[: stop - place]
            self.files.fill(path, place, piece)
            yield piece.data


def _own_headers(plan: Plan, baked: Checkpoint) -> Iterator[Header]:
    """Yield the headers that a bake wrote; what the base's own say of its data is not the bake's word."""
    links = links_in(plan, baked)
    return (header for header in _headers(baked) if name_of(baked, header) not in links)


def _headers(checkpoint: Checkpoint) -> Iterator[Header]:
    return (header for part in checkpoint.parts for header in part.files)


def _is_part(path: str, checkpoint: Checkpoint) -> bool:
    """Tell whether a file is a checkpoint, or lies in its folder."""
    return path == str(checkpoint.path) or Path(path).is_relative_to(checkpoint.path)
