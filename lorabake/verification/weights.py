"""The second stage: is every tensor what the recipe makes of it?

What no LoRA touches must be byte-equal to the base; what is baked is recomputed and compared in units in the last
place (ulps) of the output's dtype. Streamed, a few rows at a time; no torch.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import chain, islice
from math import prod, sqrt
from pathlib import Path

from threadpoolctl import threadpool_limits

from lorabake.errors import FileError
from lorabake.planning import Bake, Plan, Target, default_workers
from lorabake.provenance import DATA_HASHES
from lorabake.tensors.checkpoint import Checkpoint
from lorabake.tensors.dtypes import FLOAT_NAMES
from lorabake.tensors.safetensors import Header, TensorInfo, read_header
from lorabake.verification.arrays import CHUNK, Files
from lorabake.verification.comparison import Comparison, Share
from lorabake.verification.diagnosis import Diagnosis, Diagnostician, findings
from lorabake.verification.findings import Effect, Finding, Status, TensorVerdict
from lorabake.verification.recompute import Recomputation
from lorabake.verification.structure import name_of

FAINT = 0.9
"""Share of a LoRA's change that arrived, below which the output's dtype is too coarse for it."""


@dataclass(frozen=True, slots=True)
class WeightsResult:
    """Hold the stage's findings, what each LoRA does where, what was found of each in each tensor, and digests."""

    findings: tuple[Finding, ...]
    effects: tuple[Effect, ...]
    tensors: tuple[TensorVerdict, ...]
    digests: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Job:
    step: Bake
    is_copy: bool


def check_weights(
    plan: Plan,
    baked: Checkpoint,
    *,
    sample: int | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> WeightsResult:
    """Compare a checkpoint's tensors with what the plan would make; `sample` looks at so many of them only.

    `progress` receives counts of bytes, from any thread. Raise FileError where an input or the checkpoint cannot be
    read to its end.
    """
    files = Files()
    try:
        with threadpool_limits(1):
            return _Check(plan, baked, files, progress).run(sample)
    finally:
        files.close()


class _Check:
    def __init__(self, plan: Plan, baked: Checkpoint, files: Files, progress: Callable[[int], None]) -> None:
        self.plan, self.baked, self.files, self.progress = plan, baked, files, progress
        self.recomputation = Recomputation(plan, files)

    def run(self, sample: int | None) -> WeightsResult:
        jobs = self._jobs()
        chosen = jobs if sample is None or sample >= len(jobs) else _spread(jobs, sample)
        with ThreadPoolExecutor(default_workers() + 1) as pool:
            digesting = pool.submit(self._digest)
            results = list(self._compared(pool, chosen))
            digests = digesting.result()
        diagnostician = Diagnostician(self.plan, self.recomputation)
        diagnoses = [each for result in results if not result.is_right for each in diagnostician.explain(result)]
        return WeightsResult(
            (
                *self._inputs(digests),
                *self._data_hashes(digests),
                *_untouched([each for each in results if each.is_copy]),
                *_baked([each for each in results if not each.is_copy]),
                *_sampled(len(chosen), len(jobs)),
                *self._loras(results),
                *self._embeddings(),
                *findings(self.plan, diagnoses, results),
            ),
            tuple(self._effects(results)),
            tuple(self._verdicts(results, diagnoses)),
            {self._named(path): digest for path, digest in digests.items()},
        )

    # -- the work --------------------------------------------------------------------------------------

    def _jobs(self) -> list[_Job]:
        """List the steps of the plan, and each untouched tensor as one; without what the checkpoint lacks."""
        touched = {target.key for bake in self.plan.bakes for target in bake.targets}
        copies = (target for file in self.plan.files for target in file.targets if target.key not in touched)
        jobs = [_Job(bake, False) for bake in self.plan.bakes] + [_Job(Bake((each,), ()), True) for each in copies]
        return [job for job in jobs if any(self._found(target) for target in job.step.targets)]

    def _found(self, target: Target) -> TensorInfo | None:
        info = self.baked.tensors.get(target.key)
        return info if info is not None and info.shape == target.shape else None

    def _compared(self, pool: ThreadPoolExecutor, jobs: Iterable[_Job]) -> Iterator[Comparison]:
        """Run jobs in a pool, few of them waiting at a time, and yield what they give."""
        left = iter(jobs)
        running = {pool.submit(self._compare, job) for job in islice(left, default_workers())}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            running |= {pool.submit(self._compare, job) for job in islice(left, len(done))}
            for each in done:
                yield from each.result()

    def _compare(self, job: _Job) -> list[Comparison]:
        results = {
            target.key: Comparison(target, found, job.step, job.is_copy)
            for target in job.step.targets
            if (found := self._found(target)) is not None
        }
        if job.is_copy:
            (copied,) = results.values()
            source, found = copied.target.source, copied.found
            are_floats = {source.dtype, found.dtype} <= {*FLOAT_NAMES.values()}
            if source.dtype == found.dtype or not are_floats:
                same = self._holds_same(source, found)
                if same or not are_floats:
                    copied.wrong = int(not same)
                    self.progress(found.nbytes)
                    return [copied]
        for tile in self.recomputation.tiles(job.step):
            if tile.target.key in results:
                result = results[tile.target.key]
                rows, columns = tile.base.shape
                values = self.files.rows(result.found, tile.start, tile.start + rows, columns)
                result.add(tile, values, self.recomputation)
                self.progress(result.found.nbytes * tile.base.size // max(1, prod(result.target.shape)))
        for result in results.values():
            if job.is_copy and result.target.source.dtype == result.found.dtype:
                result.wrong = max(1, result.wrong)  # other bytes may mean the same numbers, such as -0 for 0
        return [*results.values()]

    def _holds_same(self, source: TensorInfo, found: TensorInfo) -> bool:
        """Tell whether two tensors hold the same bytes, or, in another dtype, the same numbers."""
        if source.dtype == found.dtype:
            return self.files.equal(source, found)
        return bool((self.files.whole(source) == self.files.whole(found)).all())

    def _digest(self) -> dict[str, str]:
        """Take the digests of the LoRAs, and of the data of files that say their own."""
        inputs = dict.fromkeys(self.plan.digests.values())
        digests = {str(path): self._sha256(path, 0, path.stat().st_size) for path in inputs}
        for header in _headers(self.baked):
            if any(name in header.metadata for name in DATA_HASHES):
                digests[self._data_of(header)] = self._sha256(header.path, header.data_start, header.size)
        return digests

    def _data_of(self, header: Header) -> str:
        return f"data of {name_of(self.baked, header)}"

    def _sha256(self, path: Path, start: int, stop: int) -> str:
        digest = hashlib.sha256()
        for place in range(start, stop, CHUNK):
            digest.update(self.files.raw(path, place, min(CHUNK, stop - place)))
        return digest.hexdigest()

    # -- what it says ----------------------------------------------------------------------------------

    def _inputs(self, digests: Mapping[str, str]) -> Iterator[Finding]:
        """Compare the LoRAs' digests with those that the checkpoint says it was made of."""
        said = self.baked.metadata.get("lorabake.inputs")
        if said is None:
            return
        texts = re.findall(r'"sha256":"([0-9a-f]{64})"', said)
        for path, digest in digests.items():
            lora = next((each for each in self.plan.sources.loras if _is_part(path, each.checkpoint)), None)
            if lora is None:
                continue
            if digest in texts:
                yield Finding("weights.input", Status.PASS, lora.name, digest[:12], "", "is the file that was baked")
            else:
                note = f"changed since the bake: the checkpoint's header names other files than {Path(path).name}"
                yield Finding("weights.input", Status.FAIL, lora.name, digest[:12], "", note)

    def _named(self, path: str) -> str:
        """Name a digested file as the recipe does."""
        for checkpoint, said in self.plan.sources.inputs:
            if _is_part(path, checkpoint):
                return said.portable_path + path.removeprefix(str(checkpoint.path))
        return path

    def _data_hashes(self, digests: Mapping[str, str]) -> Iterator[Finding]:
        for header in _headers(self.baked):
            taken = digests.get(self._data_of(header))
            if taken is None:
                continue
            subject = name_of(self.baked, header)
            for name in DATA_HASHES:
                said = header.metadata.get(name, taken).removeprefix("0x")
                if said != taken:
                    note = f"the header's {name} is not the SHA-256 of the data: it was changed after it was written"
                    yield Finding("weights.digest", Status.FAIL, subject, taken[:12], said[:12], note)
                    break
            else:
                note = "the data has the SHA-256 that the header states"
                yield Finding("weights.digest", Status.PASS, subject, taken[:12], taken[:12], note)

    def _loras(self, results: Sequence[Comparison]) -> Iterator[Finding]:
        for index, lora in enumerate(self.plan.sources.loras):
            own = [(each, share) for each in results for share in _shares(each, index)]
            right = [each for each, _ in own if each.is_right]
            if own and len(right) == len(own):
                note = f"applied to all {len(own)} tensors at the recipe's strength"
                yield Finding("weights.lora", Status.PASS, lora.name, f"{len(right)} tensors", f"{len(own)}", note)
            arrived, due = sum(share.arrived for _, share in own), sum(share.due for _, share in own)
            if right and due > 0 and arrived / due < FAINT:
                note = "the rest of its change was lost below the resolution of the output's dtype"
                yield Finding(
                    "weights.resolution", Status.WARN, lora.name, f"{arrived / due:.0%}", f"{FAINT:.0%}", note
                )

    def _embeddings(self) -> Iterator[Finding]:
        """Compare the files of learned embeddings with the LoRAs' tensors; what is not there, the headers told."""
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
            yield Finding("weights.embedding", status, embedding.path.name, f"{len(pairs)} tensors", "", note)

    def _verdicts(self, results: Iterable[Comparison], diagnoses: Iterable[Diagnosis]) -> Iterator[TensorVerdict]:
        loras = self.plan.sources.loras
        faults = {(each.key, each.lora, each.module): each for each in diagnoses}
        for result in results:
            loose = faults.get((result.target.key, None, ""))
            for patch in result.step.patches:
                key = result.target.key
                if key not in patch.view.keys:
                    continue
                fault = faults.get((key, patch.lora, patch.module), loose)
                what, factor = ("applied", 1.0) if fault is None else (fault.cause.value, fault.factor)
                yield TensorVerdict(loras[patch.lora].name, patch.module, key, what, factor)

    def _effects(self, results: Iterable[Comparison]) -> Iterator[Effect]:
        """Sum ‖ΔW‖² and ‖W‖² up over blocks, in the model's order."""
        names: dict[str, tuple[str, str]] = {}
        for component, modules in self.plan.sources.key_map.modules.items():
            for name, module in modules.items():
                for key in {key for view in module.views.values() for key in view.keys}:
                    names[key] = max(names.get(key, ("", "")), (component, name), key=lambda pair: _telling(pair[1]))
        for module in chain(self.plan.sources.key_map.outside, *self.plan.sources.key_map.in_memory.values()):
            for key in {key for view in module.views.values() for key in view.keys}:
                names.setdefault(key, (module.component, module.name))
        place = {key: (component, block_of(name)) for key, (component, name) in names.items()}
        sums: dict[tuple[int, str, str], list[float]] = {}
        for result in results:
            if result.target.key not in place:  # a scale, no weight
                continue
            component, block = place[result.target.key]
            for number, share in result.shares.items():
                entry = sums.setdefault((result.step.patches[number].lora, component, block), [0.0, 0.0])
                entry[0] += share.energy
                entry[1] += result.base_energy
        components = [*self.plan.sources.key_map.modules]
        for (lora, component, block), (change, base) in sorted(
            sums.items(), key=lambda item: (components.index(item[0][1]), in_order(item[0][2]), item[0][0])
        ):
            if base:
                yield Effect(self.plan.sources.loras[lora].name, component, block, sqrt(change / base))


def block_of(module: str) -> str:
    """Shorten a module's path to its block: down_blocks.1.attentions.0, text_model.encoder.layers.3."""
    parts = module.split(".")
    numbers = [at for at, part in enumerate(parts) if part.isdigit()]
    if not numbers:
        return parts[0]
    last = numbers[0]
    if len(numbers) > 1 and numbers[1] == last + 2 and parts[last + 1] not in ("to_out", "net", "transformer_blocks"):
        last = numbers[1]
    return ".".join(parts[: last + 1])


STAGES = ("conv_in", "time_", "add_embedding", "down_", "mid_", "up_", "conv_norm_out", "conv_out")
"""How the names of diffusers' UNets begin, in the order in which they run."""


def _telling(name: str) -> tuple[bool, int]:
    """Rank a module's names in several layouts: diffusers' first, else the longest tells most."""
    return name.startswith(STAGES), len(name)


def in_order(block: str) -> tuple[int, list[int], str]:
    """Rank a block as the model runs: inputs, down, middle, up, outputs; else by its numbers."""
    stage = next((number for number, start in enumerate(STAGES) if block.startswith(start)), len(STAGES))
    numbers = [int(part) for part in block.split(".") if part.isdigit()]
    if "samplers" in block:  # a level ends with it
        numbers[-1] = 99
    return stage, [*numbers, "attentions" in block], block  # an attention follows the resnet of its number


def _untouched(results: Sequence[Comparison]) -> Iterator[Finding]:
    right = sum(each.is_right for each in results)
    if right:
        subject = f"{right} untouched tensors"
        yield Finding(
            "weights.untouched", Status.PASS, subject, f"{right}", f"{len(results)}", "byte-equal to the base"
        )


def _baked(results: Sequence[Comparison]) -> Iterator[Finding]:
    ways = {False: ("0.5 ulp", "the nearest ones"), True: ("1 ulp as drawn", "the ones that the seed draws")}
    for is_drawn, (bound, what) in ways.items():
        right = [each for each in results if each.is_right and each.is_drawn is is_drawn]
        if not right:
            continue
        values, inexact = sum(each.values for each in right), sum(each.inexact for each in right)
        worst = max(each.worst for each in right)
        note = f"{1 - inexact / max(values, 1):.4%} of {values:,} values are {what}"
        limit = f"{bound} and float32's own error"
        subject = f"{len(right)} baked tensors"
        yield Finding("weights.baked", Status.PASS, subject, f"worst {worst:.3f} ulp", limit, note)


def _sampled(chosen: int, jobs: int) -> Iterator[Finding]:
    if chosen < jobs:
        note = "the others were not looked at; leave --sample-weights out to see them all"
        yield Finding("weights.sampled", Status.SKIP, f"{chosen} of {jobs} tensors", "", "", note)


def _shares(result: Comparison, lora: int) -> Iterator[Share]:
    return (share for place, share in result.shares.items() if result.step.patches[place].lora == lora)


def _spread(jobs: list[_Job], count: int) -> list[_Job]:
    """Choose jobs at even distances, so that every part of the model is looked at."""
    return [jobs[at * len(jobs) // count] for at in range(count)]


def _headers(checkpoint: Checkpoint) -> Iterator[Header]:
    return (header for part in checkpoint.parts for header in part.files)


def _is_part(path: str, checkpoint: Checkpoint) -> bool:
    """Tell whether a file is a checkpoint, or lies in its folder."""
    return path == str(checkpoint.path) or Path(path).is_relative_to(checkpoint.path)
