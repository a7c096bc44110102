"""Is a bake's output there already? Say so only where headers, inputs and what lies beside the weights all tell it.

An output is current if:

- its headers are those that the bake would write: the recipe, the inputs, the version of outputs, each tensor's name,
  dtype, shape and place; the files are complete by their sizes;
- it was computed by the class of device that is asked for, if one is;
- a folder has every file that the bake puts there, with its content, and learned embeddings lie beside it;
- its inputs are what it was made of, by their digests or, without reading them, because they are the very versions of
  files that a receipt names.

The data of the weights is not read: `verify` does that.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lorabake.artifacts import receipts
from lorabake.artifacts.digests import SMALLEST, file_sha256, is_settled, remember, remembered
from lorabake.artifacts.inputs import InputFiles
from lorabake.artifacts.receipts import Made
from lorabake.artifacts.watch import Watch
from lorabake.errors import FileError, LorabakeError
from lorabake.execution import Executed
from lorabake.planning import Plan, provenance
from lorabake.planning.files import Embedding, OutputFile
from lorabake.storage.fields import DATA_HASHES, INPUTS, LEGACY_HASH
from lorabake.tensors.header import Fingerprint, Header
from lorabake.tensors.reader import fingerprint, read_stored
from lorabake.tensors.safetensors import read_header
from lorabake.tensors.small import parse_json
from lorabake.writing.linking import linked_in
from lorabake.writing.output import form_of
from lorabake.writing.partial import partial_of

if TYPE_CHECKING:
    from lorabake.artifacts.pinned import PinnedOutput

SMALL = 32 << 20
"""Bytes up to which a file is digested when a receipt is kept: it takes a few hundredths of a second."""

OPEN = (provenance.VERSION, provenance.DEVICE, INPUTS, *DATA_HASHES, LEGACY_HASH)
"""Keys of a header that may differ from the planned ones, or are compared otherwise."""

Digest = Callable[[Path], str]


@dataclass(frozen=True, slots=True)
class Current:
    """Tell of an output that is there already: what its headers say of its data, its inputs, and what computed it."""

    data_sha256: Mapping[str, str]
    input_sha256: Mapping[str, str]
    device: str


@dataclass(frozen=True, slots=True)
class Doubt:
    """Tell why an output that carries the recipe may be of other inputs; `is_open` where nothing tells."""

    why: str
    is_open: bool = False


def find_current(watch: Watch, device: str | None) -> Current | Doubt | None:
    """Look for the output of a plan at its name; return None where there is none, or another one.

    `device` is what was asked for, as torch names it. With a lock, every input is read and has to be the lock's:
    LockError says which is not. Without one, digests may come from the user's cache.
    """
    if os.path.lexists(partial_of(watch.plan.path)):
        return None
    return _at_its_name(watch, device)


def find_shared(watch: Watch, device: str | None) -> Current | None:
    """Look for the output of a plan that several machines make; return None where it is not there.

    Another machine may have made it, and keeps the receipt of it. Then it is current if it was written after each
    input had changed for the last time.
    """
    state = _at_its_name(watch, device)
    if isinstance(state, Doubt) and state.is_open and _is_newer(watch):
        headers = _headers(watch.plan) or []
        return Current({}, {}, headers[0].metadata.get(provenance.DEVICE, "")) if headers else None
    return state if isinstance(state, Current) else None


def _is_newer(watch: Watch) -> bool:
    """Tell whether an output's files were written after all inputs; the system itself sets the times of inputs."""
    try:
        written = min(os.stat(path).st_mtime_ns for path in _paths(watch.plan))
        inputs = [os.stat(path) for each in watch.all_inputs for path in each.files.values()]
    except OSError:
        return False
    return all(written > max(status.st_mtime_ns, status.st_ctime_ns) for status in inputs)


def _at_its_name(watch: Watch, device: str | None) -> Current | Doubt | None:
    plan = watch.plan
    if not os.path.lexists(plan.path):
        return None
    headers = _headers(plan)
    if headers is None or not _is_computed_on(headers[0], device) or not _has_rest(plan):
        return None
    inputs = watch.all_inputs
    digest: Digest = file_sha256
    if watch.pins is not None:
        taken = {path: file_sha256(path, cached=False) for path in watch.pins.paths}
        for path, sha256 in taken.items():
            watch.check(path, sha256)
        digest = taken.__getitem__
    try:
        stated = {placeholder: digest(path) for placeholder, path in plan.digests.items()}
        doubt = _doubt(plan, watch, headers, stated, inputs, digest)
    except LorabakeError as error:  # whoever bakes tells what is wrong with an input
        return Doubt(str(error.lines[0]))
    if doubt is not None:
        return doubt
    hashes = {
        file.name: _data_hash(header)
        for file, header in zip(plan.files, headers, strict=True)
        if not file.is_linked  # what others wrote of the base's file is not known to be true
    }
    return Current(
        {name: sha256 for name, sha256 in hashes.items() if sha256},
        {str(path): stated[placeholder] for placeholder, path in plan.digests.items()},
        headers[0].metadata.get(provenance.DEVICE, ""),
    )


class Watches:
    """Hold the watches of bakes that run together, each with what was said of its output's state."""

    def __init__(self, watches: Sequence[tuple[Watch, Doubt | None]]) -> None:
        self._watches = tuple(watch for watch, _ in watches)
        self._in_doubt = tuple(watch for watch, state in watches if state is not None and state.is_open)

    @property
    def plans(self) -> tuple[Plan, ...]:
        """List the plans."""
        return tuple(watch.plan for watch in self._watches)

    @property
    def paths(self) -> tuple[Path, ...]:
        """List the files that have to be digested, beside those that the plans need.

        Where an output is baked again because nobody could tell whether it is of these inputs, they are digested, so
        that the next bake can.
        """
        own = (path for watch in self._watches for path in watch.paths)
        unknown = (path for watch in self._in_doubt for each in watch.all_inputs for path in each.files.values())
        return tuple(dict.fromkeys([*own, *unknown]))

    def check(self, path: Path, sha256: str) -> None:
        """Raise LockError where an input is another one than a lock says."""
        for watch in self._watches:
            watch.check(path, sha256)

    def check_executed(self, executed: Iterable[Executed], warn: Callable[[str], None]) -> None:
        """Compare folders with what recipes state of them, and outputs with what locks have of them."""
        for watch, outcome in zip(self._watches, executed, strict=True):
            watch.check_stated(outcome.taken)
            if (warning := watch.check_output(outcome.hashes, outcome.device)) is not None:
                warn(warning)

    def keep(
        self,
        executed: Iterable[Executed],
        seen: Callable[[Path], Fingerprint | None],
        began: int,
        warn: Callable[[str], None],
    ) -> None:
        """Remember what the finished bakes were made of, and write into locks what they lack.

        `seen` tells a file's version during the bake, which `began` then.
        """
        for watch, outcome in zip(self._watches, executed, strict=True):
            for path, sha256 in outcome.taken.items():
                if (version := seen(path)) is not None and version[2] >= SMALLEST:
                    remember(version, sha256, began)
            with suppress(LorabakeError, OSError):  # an input that has gone meanwhile
                _keep_receipt(watch, outcome.taken, seen, began)
        self._record(executed, warn)

    def _record(self, executed: Iterable[Executed], warn: Callable[[str], None]) -> None:
        """Write into locks what the finished bakes gave."""
        pairs = zip(self._watches, executed, strict=True)
        pinned = [(watch.pinned, outcome.hashes, outcome.device) for watch, outcome in pairs]
        if known := [(output, hashes, device) for output, hashes, device in pinned if output is not None]:
            from lorabake.artifacts.pinned import record  # most bakes have no lock

            for warning in record(known):
                warn(warning)


def keep_receipt(watch: Watch) -> None:
    """Remember what a finished bake was made of, whose inputs are still what they were."""
    with suppress(LorabakeError, OSError):  # an input that has gone meanwhile
        _keep_receipt(watch, {}, lambda _: None, time.time_ns())


def _keep_receipt(
    watch: Watch, taken: Mapping[Path, str], seen: Callable[[Path], Fingerprint | None], began: int
) -> None:
    """Remember what a finished bake was made of; `taken` are the digests that were taken."""
    made: dict[str, dict[str, Made]] = {}
    for each in watch.all_inputs:
        for name, path in each.files.items():
            now = fingerprint(path)
            version = seen(path) or now
            sha256 = taken.get(path) or (_at_no_cost(path, now) if version == now else None)
            made.setdefault(each.path, {})[name] = Made(version if is_settled(version, began) else None, sha256)
    receipts.keep(_paths(watch.plan), made)


# -- the output ------------------------------------------------------------------------------------------


def _paths(plan: Plan) -> list[Path]:
    form = form_of(plan)
    return [form.place(plan.path, file) for file in plan.files]


def _headers(plan: Plan) -> list[Header] | None:
    """Read the headers at the output's name; None unless each is the planned one, apart from digests."""
    headers = []
    for file, path in zip(plan.files, _paths(plan), strict=True):
        try:
            header = read_header(path)
        except (FileError, OSError):
            return None
        if not _is_planned(file, header):
            return None
        headers.append(header)
    return headers


def _is_planned(file: OutputFile, header: Header) -> bool:
    """Tell whether a file has the tensors and the metadata that are planned, or is as the base's that it links to."""
    if (link := file.link) is not None:
        return (header.sha256, header.size) == (link.sha256, link.size)
    due = {target.name: (target.dtype, tuple(target.shape), target.offset, target.nbytes) for target in file.targets}
    is_there = {
        info.name: (info.dtype, tuple(info.shape), info.start - header.data_start, info.nbytes)
        for info in header.tensors.values()
    }
    planned, said = dict(file.metadata), dict(header.metadata)
    said.pop(provenance.DEVICE, None)
    return (
        due == is_there
        and header.size == header.data_start + file.data_size
        and planned.keys() == said.keys()
        and all(said[key] == text for key, text in planned.items() if key not in OPEN)
    )


def _is_computed_on(header: Header, device: str | None) -> bool:
    """Tell whether the class of device that is asked for computed a file; `auto` asks for none."""
    asked = device if device is not None else os.environ.get("LORABAKE_DEVICE") or "auto"
    kind = asked.partition(":")[0]
    return kind == "auto" or kind in header.metadata.get(provenance.DEVICE, "").split("+")


def _has_rest(plan: Plan) -> bool:
    """Tell whether all that the bake puts beside the weights is there, with its content."""
    try:
        return form_of(plan).has_rest(plan.path) and all(map(_is_written, plan.embeddings))
    except (LorabakeError, OSError):
        return False


def _is_written(embedding: Embedding) -> bool:
    """Tell whether the file of a learned embedding is there, as the bake writes it."""
    data = b"".join(read_stored(vectors.info) for vectors in embedding.vectors)
    return embedding.path.is_file() and embedding.path.read_bytes() == embedding.header() + data


def _data_hash(header: Header) -> str:
    return header.metadata.get(DATA_HASHES[1], "")


# -- the inputs ------------------------------------------------------------------------------------------


def _doubt(
    plan: Plan,
    watch: Watch,
    headers: list[Header],
    stated: Mapping[str, str],
    inputs: tuple[InputFiles, ...],
    digest: Digest,
) -> Doubt | None:
    """Return why the output may be of other inputs; None if it is of these."""
    for file, header in zip(plan.files, headers, strict=True):
        if file.is_linked:
            continue
        planned = file.metadata[INPUTS]
        for placeholder, sha256 in stated.items():
            planned = provenance.filled_in(planned, placeholder, sha256)
        if planned != header.metadata[INPUTS]:
            return Doubt(_other_input(planned, header.metadata[INPUTS]))
    if (pinned := watch.pinned) is not None:
        return _doubt_of_lock(pinned, headers, inputs, digest)
    receipt = receipts.find(_paths(plan))
    proven = _proven(plan)
    for each in inputs:
        for name, path in each.files.items():
            made = receipt.get(each.path, {}).get(name) if receipt is not None else None
            if path in proven or (made is not None and made.seen == fingerprint(path)):
                continue
            if made is None or made.sha256 is None:
                return Doubt(f"nothing tells whether {each.path} is what it was made of", is_open=True)
            if made.sha256 != digest(path):
                return Doubt(f"{each.path} has changed")
    return None


def _doubt_of_lock(
    pinned: PinnedOutput, headers: list[Header], inputs: tuple[InputFiles, ...], digest: Digest
) -> Doubt | None:
    """Return why the output may be of other inputs than the lock's, which are as they should be now.

    It is of them if the lock has its data's digest, or a receipt has each input's.
    """
    plan, data = (
        pinned.plan,
        pinned.data_sha256(
            [
                "" if file.is_linked else _data_hash(header)
                for file, header in zip(pinned.plan.files, headers, strict=True)
            ]
        ),
    )
    recorded = pinned.recorded(headers[0].metadata.get(provenance.DEVICE, ""))
    if data is not None and recorded is not None:
        return None if recorded.data_sha256 == data else Doubt("the lock has other data of it")
    receipt, proven = receipts.find(_paths(plan)) or {}, _proven(plan)
    for each in inputs:
        for name, path in each.files.items():
            made = receipt.get(each.path, {}).get(name)
            if path not in proven and (made is None or made.sha256 != digest(path)):
                return Doubt(f"nothing tells whether it was made of the {each.path} that the lock pins", is_open=True)
    return None


def _proven(plan: Plan) -> set[Path]:
    """Collect the files that need no further proof.

    A header carries the digests of some, and they have been compared with it. Others are in the output themselves.
    """
    sides = {
        next(checkpoint.headers).path.with_name(side.name)
        for checkpoint, _ in plan.sources.inputs
        for side in plan.sources.evidence.sides_of(checkpoint)
    }
    return {*plan.digests.values(), *sides, *linked_in(plan.files, plan.path)}


def _other_input(planned: str, said: str) -> str:
    """Name the first input that a header names otherwise than planned."""
    try:
        due, is_there = parse_json(planned), parse_json(said)
    except ValueError:
        return "its header names no inputs"
    for name, entry in _entries(due):
        if dict(_entries(is_there)).get(name) != entry:
            return f"{name} has changed"
    return "its header names other inputs"


def _entries(inputs: object) -> Iterator[tuple[str, str]]:
    """Yield the files of a header's list of inputs with what it says of each."""
    match inputs:
        case {"name": str(name)}:
            yield name, json.dumps(inputs, sort_keys=True)
        case dict():
            for entry in inputs.values():
                yield from _entries(entry)
        case list():
            for entry in inputs:
                yield from _entries(entry)


def _at_no_cost(path: Path, seen: Fingerprint) -> str | None:
    """Return a file's digest if that costs next to nothing: from the cache, or because the file is small."""
    return file_sha256(path) if seen[2] <= SMALL else remembered(seen)
