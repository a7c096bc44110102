"""Step 4 of the flow: a `Plan` in; baked tensors out.

Each worker reads rows of a tensor, computes them in the compute dtype, rounds once to the output dtype and
hands them on. Which rows go together depends on the tensor and the device class alone, so that the bytes depend
neither on the number of workers nor on the memory that happens to be free.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice, zip_longest
from math import isfinite, nan

import numpy as np
import torch
from numpy.typing import NDArray

from lorabake.adapters.effect import Effect
from lorabake.adapters.programs import SCALE_OF_ALPHA_0
from lorabake.adapters.settings import TermsOf
from lorabake.adapters.shapes import matrix
from lorabake.codecs.codec import Stored
from lorabake.codecs.plain import plain
from lorabake.errors import MatchError, SurroundingsError, ValueTooLargeError, first_line
from lorabake.execution.crew import refused
from lorabake.execution.device import (
    ADVICE,
    CPU,
    Buffer,
    Device,
    Lane,
    Turns,
    call_first,
    call_lapack_first,
    choose_device,
    is_short_of_memory,
)
from lorabake.execution.ends import Reader, Writer
from lorabake.execution.methods import combine, masks_of
from lorabake.execution.parts import (
    FEW,
    Look,
    Part,
    Place,
    Update,
    looks_at,
    overlaps,
    places_of,
    shaped,
    stacked,
)
from lorabake.execution.rounding import drawn, round_by
from lorabake.execution.units import SharedReader, Task, Unit
from lorabake.execution.zeros import keep_all_signs, keep_signs, negative_zeros
from lorabake.keymap.view import Picked
from lorabake.matching.patches import Patch
from lorabake.planning.cautions import no_scale
from lorabake.planning.cost import DEVICE_TILE_VALUES, TILE_VALUES
from lorabake.planning.steps import Result, Step, Target
from lorabake.planning.tally import Tally
from lorabake.tensors.dtypes import DTYPES, decode_scalar
from lorabake.tensors.header import TensorInfo


@dataclass(frozen=True, slots=True)
class Span:
    """Name bytes `start` to `stop` of the data of an output file."""

    file: int
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Count the bytes."""
        return self.stop - self.start


class Executor:
    """Run the steps of a plan on one device, from one worker.

    `seconds` tells where its time went, `computed` which tensors each device class computed, and `tallies` what was
    seen of each LoRA's change, by the numbers of the step and of the LoRA.
    """

    def __init__(
        self, steps: Sequence[Step], reader: Reader, writer: Writer, device: Device, turns: Turns, lane: Lane
    ) -> None:
        self.steps, self.device, self.lane = steps, device, lane
        self._reader, self._writer, self._turns = reader, writer, turns
        self.dtype = precision(steps)
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.computed: defaultdict[str, list[str]] = defaultdict(list)
        self.tallies: dict[int, dict[int, Tally]] = {}
        self.tile_values = TILE_VALUES if device.is_cpu else DEVICE_TILE_VALUES
        self._on_cpu: Executor | None = None

    @property
    def uses_lapack(self) -> bool:
        """Tell whether anything but matrix products may be asked for."""
        by_kind = any(patch.kind.may_sum_weight for step in self.steps for patch in step.patches)
        return by_kind or any(step.method.name == "svd" for step in self.steps)

    def run(self, step: Step) -> Generator[int]:
        """Bake one step; yield the bytes written after each piece.

        The device computes all of it, or the CPU does: what one worker alone cannot hold on the device, or what the
        device cannot compute.
        """
        yield from self._run_at_once(step) if self.device.is_cpu else self._run_in_turns(step)

    def _run_at_once(self, step: Step) -> Iterator[int]:
        try:
            for span in self._spans(step, 0):
                self._writer.finish(span.file, span.start, span.stop)
                yield span.size
        except torch.OutOfMemoryError:
            raise SurroundingsError(
                f"out of memory while baking {step.targets[0].key}; use fewer --workers"
            ) from None
        self.computed[self.device.kind] += [target.key for target in step.targets]

    def _run_in_turns(self, step: Step) -> Iterator[int]:
        """Compute on the device beside other workers, else alone, else on the CPU.

        What is written counts as finished when all of the step is: the CPU may have to write it again.
        """
        done: list[Span] = []
        tries = () if _dtypes(step) & self.device.lacks else (False, True)
        for again in tries:
            with self._turns.take(alone=again) as alone:
                if alone:
                    self.device.let_go()
                is_done = yield from self._attempt(step, done)
                self.lane.settle()
            if is_done:
                if again:
                    self._turns.allow_fewer()
                for span in done:
                    self._writer.finish(span.file, span.start, span.stop)
                self.computed[self.device.kind] += [target.key for target in step.targets]
                return
            if alone:
                break
        told, position = sum(span.size for span in done), 0
        for count in self._beside().run(step):
            before, position = max(position, told), position + count
            yield max(0, position - before)

    def _beside(self) -> Executor:
        """Return what does on the CPU what the device cannot, its account kept with this one's."""
        if self._on_cpu is None:
            self._on_cpu = Executor(self.steps, self._reader, self._writer, CPU, self._turns, _lane(CPU))
            self._on_cpu.seconds, self._on_cpu.computed = self.seconds, self.computed
            self._on_cpu.tallies = self.tallies
        return self._on_cpu

    def _attempt(self, step: Step, done: list[Span]) -> Generator[int, None, bool]:
        """Compute what is left of a step, add it to `done`, and return whether the device could do all of it."""
        try:
            for span in self._spans(step, len(done)):
                done.append(span)
                yield span.size
        except (RuntimeError, TypeError) as error:  # what is at fault anywhere fails on the CPU, too
            if is_short_of_memory(error) or isinstance(error, (NotImplementedError, TypeError)):
                return False
            if "can't allocate memory" in str(error):  # the host
                raise
            raise SurroundingsError(
                f"{self.device.place} failed while baking {step.targets[0].key}: {first_line(error)}", ADVICE
            ) from error
        return True

    def _spans(self, step: Step, first: int) -> Iterator[Span]:
        """Compute and write a step's pieces from the one with the number `first` on; how they are cut is fixed."""
        if not first:
            self.tallies[step.number] = {}
        return self._by_rows(step, step.targets[0], first) if step.by_rows else self._whole(step, first)

    # -- row by row ------------------------------------------------------------------------------------

    def _by_rows(self, step: Step, target: Target, first: int) -> Iterator[Span]:
        rows, columns = step.matrix(target)
        parts = self._parts(step, target)
        spans = ((part.start, part.stop) for part in parts)
        places = places_of(spans, columns) if step.is_watched else []
        size = max(1, self.tile_values // max(1, columns))
        for start in range(first * size, rows, size):
            yield self._piece(step, target, parts, places, start, min(start + size, rows))

    def _piece(
        self, step: Step, target: Target, parts: list[Part], places: list[Place], start: int, stop: int
    ) -> Span:
        """Compute and write some rows, and let go of them: each piece needs its own memory, whatever came before."""
        columns = step.matrix(target)[1]
        buffer, source = self._stored_rows(target.source.first, start, stop, columns)
        zeros = negative_zeros(source) if parts else None
        weight = self._widened(buffer, source).view(stop - start, columns)
        looks = [self._look(step, parts, weight, start, place) for place in places if start <= place[0] < stop]
        self._note_moves(step, parts, weight, start)
        self._apply(weight, parts, start, in_sequence=step.is_sequential)
        if zeros is not None:
            replaced = [(part.start, part.stop) for part in parts if part.patches[0].sets_all]
            keep_signs(weight, zeros, replaced, start)
        for look in looks:
            after = weight[look.start - start :][: len(look.base)]
            self._see(step, step.results[0], look, after, is_sum=not step.is_sequential)
        return self._emit(step, target, weight, start)

    def _parts(self, step: Step, target: Target) -> list[Part]:
        stacks: dict[tuple[int, int, Picked | None], list[tuple[Patch, torch.Tensor, torch.Tensor]]] = {}
        parts: list[Part] = []
        for patch in step.patches:
            effect, scale = self._effect(patch, step.loras[patch.lora])
            self._note_patch(step, patch, effect, scale)
            chosen = patch.view.chosen
            for span in patch.view.spans(target.key):
                start, stop, rows = span.stored.start, span.stored.stop, span.own
                if effect.factors is None:
                    parts.append(Update(start, stop, rows.start, patch, effect, chosen))
                else:
                    up, right = effect.factors[0], effect.factors[1] * patch.strength
                    left, right = (right.T, up.T) if patch.view.transpose else (up[rows], right)
                    if step.is_sequential:
                        parts.append(stacked(start, stop, chosen, [(patch, left, right)]))
                    else:
                        place = start, stop, patch.view.picked
                        stacks.setdefault(place, []).append((patch, left, right))
        for (start, stop, picked), factors in stacks.items():
            parts.append(stacked(start, stop, None if picked is None else picked.slice, factors))
        return parts if step.is_sequential else sorted(parts, key=lambda part: part.adds)

    def _apply(self, weight: torch.Tensor, parts: list[Part], first: int, *, in_sequence: bool) -> None:
        began = time.perf_counter()
        reads = len(parts) > 1 and any(part.reads_weight for part in parts)
        base = weight.clone() if reads and not in_sequence else weight
        for part, inner, outer in overlaps(parts, first, first + len(weight)):
            rows = weight[outer]
            part.apply(rows, rows if base is weight else base[outer], inner)
        self.seconds["compute"] += time.perf_counter() - began

    # -- what becomes of each LoRA's change ------------------------------------------------------------

    def _tally(self, step: Step, patch: Patch) -> Tally:
        """Return what sums up a LoRA's changes in a step."""
        return self.tallies[step.number].setdefault(patch.lora, Tally())

    def _note_patch(self, step: Step, patch: Patch, effect: Effect, scale: float) -> None:
        """Note of a patch what its own tensors tell."""
        tally = self._tally(step, patch)
        tally.count(patch.module, moves=False)
        if patch.scale is None and scale < 0:  # a configuration's is told by itself
            tally.negative.add(patch.module)
        if effect.erases:
            tally.erasing.add(patch.module)

    def _look(self, step: Step, parts: list[Part], weight: torch.Tensor, first: int, place: Place) -> Look:
        """Take a few rows as they are, and what each patch adds to them; `weight` holds the rows from `first`."""
        start, stop = place[0], min(place[1], first + len(weight))
        base = weight[start - first : stop - first].clone()
        look = Look(step.targets[0].key, start, base)
        for part, inner, outer in overlaps(parts, start, stop):
            for patch in part.patches:
                change = part.change(patch, base[outer], inner)
                look.changes.append((patch, outer, change))
                self._tally(step, patch).count(patch.module, moves=bool(change.any()))
        return look

    def _note_moves(self, step: Step, parts: list[Part], weight: torch.Tensor, first: int) -> None:
        """Note whose change of these rows is not all zero; of a module that is known to change something no more."""
        if all(all(tally.moves.values()) for tally in self.tallies[step.number].values()):
            return
        for part, inner, outer in overlaps(parts, first, first + len(weight)):
            for patch in part.patches:
                tally = self._tally(step, patch)
                if not tally.moves[patch.module]:
                    tally.count(patch.module, moves=part.moves(patch, weight[outer], inner))

    @np.errstate(invalid="ignore", over="ignore")  # what is no number stops the bake, or is the base's
    def _see(self, step: Step, result: Result, look: Look, after: torch.Tensor, *, is_sum: bool) -> None:
        """Sum up how much of each change arrives: ⟨W_written − W_due + δ, δ⟩; W_due is W + Σδ, or else `after`."""
        base = _doubles(look.base)
        changes = [(patch, rows, _doubles(change)) for patch, rows, change in look.changes]
        due = base.copy() if is_sum else _doubles(after)
        for _, rows, change in changes if is_sum else ():
            due[rows] += change
        lost = None
        if result.codec.is_plain:
            lost = _doubles(self._rounded(result.target, after, look.start)).reshape(base.shape) - due
        for patch, rows, change in changes:
            tally, energy = self._tally(step, patch), float(np.vdot(change, change))
            met = float(np.vdot(base[rows], base[rows]))
            if patch.kind.adds and isfinite(energy + met):
                tally.energy += energy
                tally.base += met
            missing = float(np.vdot(lost[rows], change)) if lost is not None else nan
            if isfinite(energy + missing):
                tally.due += energy
                tally.arrived += energy + missing

    # -- whole tensors at once -------------------------------------------------------------------------

    def _whole(self, step: Step, first: int) -> Iterator[Span]:
        base = {result.key: self._read_whole(result.source).contiguous() for result in step.results}
        baked = {key: tensor.clone() for key, tensor in base.items()}
        looks = list(looks_at(step, base)) if step.is_watched else []
        deltas: dict[int, torch.Tensor] = {}
        began = time.perf_counter()
        in_order = step.patches if step.is_sequential else sorted(step.patches, key=lambda each: each.kind.adds)
        for patch in in_order:
            weight = patch.view.read(baked if step.is_sequential else base).reshape(patch.view.rows, -1)
            effect, scale = self._effect(patch, step.loras[patch.lora])
            self._note_patch(step, patch, effect, scale)
            made = effect.of(weight, slice(0, patch.view.rows))
            whole = made if effect.is_result else None
            delta = made - weight if effect.is_result else made
            self._tally(step, patch).count(patch.module, moves=bool(delta[:FEW].any() or delta.any()))
            for _, look in looks:
                look.add(patch, delta)
            is_all = delta.numel() == baked[patch.view.keys[0]].numel()
            is_alone = len(step.patches) == 1 and step.summed and patch.share == 1 and is_all
            if whole is not None and is_alone and patch.view.transpose:
                baked[patch.view.keys[0]] = whole.T.contiguous()
            elif step.summed or not patch.kind.adds:
                patch.view.add(baked, delta * patch.share)
            else:
                deltas[patch.number] = delta.contiguous()
        self._combine(step, deltas, baked)
        for result in step.results:
            baked |= self._encoded(step, result, baked[result.key], base[result.key])
        for result, look in looks:
            after = baked[result.key].reshape(step.matrix(result.target))[look.start :][: len(look.base)]
            self._see(step, result, look, after, is_sum=step.summed and not step.is_sequential)
        self.seconds["compute"] += time.perf_counter() - began
        for target, start, stop in islice(self._tiles(step), first, None):
            tile = baked[target.key].reshape(step.matrix(target))[start:stop]
            yield self._emit(step, target, tile, start)

    def _encoded(
        self, step: Step, result: Result, weight: torch.Tensor, before: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Return what is to be rounded for each target of a weight, by its key; `before` is what it was worth."""
        if result.codec.is_plain:
            keep_all_signs(step, result.target, weight, before)
        if not result.codec.is_plain and torch.equal(weight, before):  # it stays as it is stored
            parts = {role: self._read_whole(plain(result.source.parts[role])) for role in result.targets}
        else:
            parts = result.codec.encode(result.source, weight)
        return {target.key: parts[role] for role, target in result.targets.items()}

    def _tiles(self, step: Step) -> Iterator[tuple[Target, int, int]]:
        for target in step.targets:
            rows, columns = step.matrix(target)
            size = max(1, self.tile_values // max(1, columns))
            for start in range(0, rows, size):
                yield target, start, min(start + size, rows)

    def _combine(self, step: Step, deltas: Mapping[int, torch.Tensor], baked: Mapping[str, torch.Tensor]) -> None:
        """Add what the recipe's method makes of deltas at strength 1, piece by piece."""
        if step.summed:
            return
        for key, start, stop, there in step.pieces():
            turned = there[0].patch.view.transpose
            parts = [
                (deltas[piece.patch.number].T.contiguous() if turned else deltas[piece.patch.number])[piece.rows]
                for piece in there
            ]
            masks = masks_of(step.method, key, start, [piece.patch.lora for piece in there], parts[0].numel())
            total = combine(step.method, parts, [piece.patch.strength for piece in there], masks)
            rows = baked[key].view(-1, there[0].patch.view.width)[start:stop]
            rows += total.reshape(rows.shape)

    # -- in and out ------------------------------------------------------------------------------------

    def _effect(self, patch: Patch, lora: str) -> tuple[Effect, float]:
        """Read a patch's tensors, and compute what all of its rows share; return the effect, and the scale in it."""
        kind, scale = patch.kind, self._scale(patch, lora)
        tensors = {
            slot: self._read_integers(info) if slot in kind.integers else self._read_whole(info)
            for slot, info in kind.operands(patch.tensors).items()
        }
        terms = TermsOf(patch.view.shape, scale, patch.settings)
        try:
            return kind.effect(tensors, terms, partial(shaped, patch), patch.lengths), scale
        except ValueError as error:
            raise MatchError(f"LoRA {lora!r}: {patch.module}: {first_line(error, None)}") from None

    def _scale(self, patch: Patch, lora: str) -> float:
        if patch.scale is not None:
            return patch.scale
        info = patch.kind.alpha_of(patch.tensors)
        if info is None:
            return 1.0
        raw = bytearray(info.nbytes)
        self._reader.read(info.file, info.first.start, memoryview(raw))
        alpha = decode_scalar(info.dtype, bytes(raw))
        if not alpha and patch.semantics in SCALE_OF_ALPHA_0:
            return patch.kind.scale(SCALE_OF_ALPHA_0[patch.semantics] * patch.kind.rank(patch.shapes), patch.shapes)
        if not alpha or alpha - alpha:
            raise no_scale(lora, info.name, alpha)
        return patch.kind.scale(alpha, patch.shapes) * patch.parts

    def _read_whole(self, weight: Stored) -> torch.Tensor:
        """Read a whole weight into the compute dtype on the device, decoded, in its own shape."""
        if (info := weight.tensor) is not None:
            return self._read_rows(info, 0, *matrix(info.shape), fresh=True).reshape(info.shape)
        return weight.decode({role: self._read_stored(part) for role, part in weight.parts.items()}, self.dtype)

    def _read_integers(self, weight: Stored) -> torch.Tensor:
        """Read a whole weight of integers as it is stored; one that is not plain, decoded."""
        return self._read_whole(weight) if weight.tensor is None else self._read_stored(weight.tensor)

    def _read_stored(self, info: TensorInfo) -> torch.Tensor:
        """Read a whole tensor as it is stored."""
        raw = torch.empty(info.nbytes, dtype=torch.uint8)
        self._reader.read(info.file, info.start, _view(raw))
        return raw.view(_torch_dtype(info.dtype)).reshape(info.shape).to(self.device.place)

    def _read_rows(
        self, info: TensorInfo, start: int, stop: int, columns: int, *, fresh: bool = False
    ) -> torch.Tensor:
        """Read rows of a tensor into the compute dtype on the device; a buffer of this worker unless `fresh`."""
        buffer, source = self._stored_rows(info, start, stop, columns)
        return self._widened(buffer, source, fresh=fresh).view(stop - start, columns)

    def _stored_rows(self, info: TensorInfo, start: int, stop: int, columns: int) -> tuple[Buffer, torch.Tensor]:
        """Read rows of a tensor as they are stored; return this worker's buffer, and flat the values in it."""
        began = time.perf_counter()
        dtype = _torch_dtype(info.dtype)
        size = (stop - start) * columns * dtype.itemsize
        buffer = self.lane.buffer("in", size)
        raw = buffer.to_fill()[:size]
        self._reader.read(info.file, info.start + start * columns * dtype.itemsize, _view(raw))
        self.seconds["read"] += time.perf_counter() - began
        return buffer, raw.view(dtype)

    def _widened(self, buffer: Buffer, source: torch.Tensor, *, fresh: bool = False) -> torch.Tensor:
        """Bring values in a buffer into the compute dtype on the device; into this worker's own unless `fresh`."""
        began = time.perf_counter()
        if not self.device.is_cpu:
            weight = self.lane.send(buffer, source.numel(), source.dtype).to(self.dtype)
        elif fresh:
            weight = source.to(self.dtype, copy=True)
        else:
            weight = self._values("weight", source.numel(), self.dtype)
            weight.copy_(source)
        self.seconds["compute"] += time.perf_counter() - began
        return weight

    def _emit(self, step: Step, target: Target, weight: torch.Tensor, start: int) -> Span:
        """Round rows to the output dtype, refuse what it cannot hold, write them, and return where they are."""
        began = time.perf_counter()
        flat = weight.reshape(-1)
        # A sum of squares below the limit's square clears all values in one cheap pass; NaN fails it, too.
        if not float(torch.dot(flat, flat)) < DTYPES[target.dtype].safe_square:
            self._refuse(step, target, weight, start)
        rounded = self._rounded(target, weight, start)
        computed = time.perf_counter()
        offset = target.offset + start * weight.shape[1] * rounded.itemsize
        self._writer.write(target.file, offset, _view(rounded))
        self.seconds["compute"] += computed - began
        self.seconds["write"] += time.perf_counter() - computed
        return Span(target.file, offset, offset + rounded.nbytes)

    def _rounded(self, target: Target, weight: torch.Tensor, start: int) -> torch.Tensor:
        """Round rows of a target from `start` to the output dtype; return them flat, on the host."""
        dtype, flat = _torch_dtype(target.dtype), weight.reshape(-1)
        if self.device.is_cpu and dtype is self.dtype and weight.is_contiguous():
            return flat
        if target.rounding_seed is not None:
            numbers = drawn(target.rounding_seed, target.key, start * weight.shape[1], flat)
            flat = round_by(numbers, flat, dtype)
        if self.dtype is torch.float64 and dtype.itemsize <= 2 and dtype.is_floating_point:
            flat = _rounded_to_odd(flat)
        if not dtype.is_floating_point:
            flat = flat.round()
        return self.lane.fetch(flat, dtype)

    def _refuse(self, step: Step, target: Target, weight: torch.Tensor, start: int) -> None:
        wrong = ~(weight.abs() < DTYPES[target.dtype].limit)
        if not wrong.any():  # a large sum of harmless values
            return
        rows, columns = weight.shape
        if (info := target.source.tensor) is None:
            before = self._read_whole(target.source).reshape(-1, columns)[start : start + rows]
        else:
            before = self._read_rows(info, start, start + rows, columns, fresh=True)
        if not step.patches:
            wrong &= before.isfinite()
        if not wrong.any():  # a cast that passes on what the base had
            return
        row, column = (int(index) for index in wrong.nonzero()[0])
        value, was = float(weight[row, column]), float(before[row, column])
        names = sorted({step.loras[patch.lora] for patch in step.patches})
        cause = f"with LoRA {', '.join(map(repr, names))}" if names else "when cast"
        if was - was:
            cause = f"in the base already, and {cause.removeprefix('with ')} would spread it"
        advice = "Lower the strength, or choose a wider output.dtype."
        if value != value:
            advice = "No number comes of numbers that are none, or too large: the file that holds them is damaged."
        raise ValueTooLargeError(
            f"{target.key}[{start + row}, {column}]: {value:g} {cause}; {target.dtype} cannot hold it "
            f"(the base has {was:g} there)",
            f"Nothing was written. {advice}",
        )

    def _values(self, name: str, count: int, dtype: torch.dtype) -> torch.Tensor:
        """Return `count` values of a buffer that the worker keeps."""
        size = count * dtype.itemsize
        return self.lane.buffer(name, size).to_fill()[:size].view(dtype)


def precision(steps: Iterable[Step]) -> torch.dtype:
    """Return the dtype that the arithmetic of a plan's steps takes."""
    return torch.float64 if any(step.precision == "float64" for step in steps) else torch.float32


def devices_for(plans: Sequence[Sequence[Step]], name: str | None, warn: Callable[[str], None]) -> tuple[Device, ...]:
    """Choose for the steps of each plan where they are computed, as if they were alone; warn of each thing once."""
    warnings: list[str] = []
    devices = tuple(
        choose_device(name, precision=precision(steps), dtypes=dtypes(steps), warn=warnings.append) for steps in plans
    )
    for warning in dict.fromkeys(warnings):
        warn(warning)
    return devices


def dtypes(steps: Iterable[Step]) -> Iterator[torch.dtype]:
    """Yield the dtypes of all tensors that steps read and write, many times over."""
    return (dtype for step in steps for dtype in _dtypes(step))


def _dtypes(step: Step) -> set[torch.dtype]:
    infos = [*step.stored]
    infos += [info for patch in step.patches for weight in patch.tensors.values() for info in weight.parts.values()]
    names = {info.dtype for info in infos} | {target.dtype for target in step.targets}
    return {_torch_dtype(name) for name in names if DTYPES[name].torch}


_TURN = threading.Lock()


class Worker:
    """Run units of work in one thread: each task by the executor of its plan, all through one lane a device."""

    def __init__(
        self, plans: Sequence[Sequence[Step]], reader: Reader, writers: Sequence[Writer], hands: Hands
    ) -> None:
        self.reader, self.writers = SharedReader(reader), writers
        self.lanes = {device.place: _lane(device) for device in hands.devices}
        self.executors = [
            Executor(steps, self.reader, writer, device, hands.turns, self.lanes[device.place])
            for steps, writer, device in zip(plans, writers, hands.devices, strict=True)
        ]

    def set_up(self) -> None:
        """Make the first calls of this thread."""
        torch.set_num_threads(1)
        for lane in self.lanes.values():
            lane.enter()
        for executor in self.executors:
            call_first(CPU.place, executor.dtype)
            for place in {CPU.place, executor.device.place} if executor.uses_lapack else ():
                call_lapack_first(place, executor.dtype)

    def run(self, unit: Unit) -> Generator[int]:
        """Run the tasks of a unit; yield the bytes written after each piece.

        Where all compute on the CPU, and can, they go through their tensor side by side. On another device each has
        its turn, with the memory that it would have alone.
        """
        in_tiles = unit.in_tiles and all(self.executors[task.plan].device.is_cpu for task in unit.tasks)
        with self.reader.sharing(unit, in_tiles=in_tiles), ExitStack() as open_tasks:
            running = [open_tasks.enter_context(closing(self._run(task))) for task in unit.tasks]
            if in_tiles:
                for counts in zip_longest(*running, fillvalue=0):
                    yield sum(counts)
            else:
                yield from chain.from_iterable(running)

    def _run(self, task: Task) -> Generator[int]:
        """Run one task; word what the system refuses to its writer: reading words its own failures."""
        try:
            yield from self.executors[task.plan].run(task.step)
        except OSError as error:
            raise refused(error, self.writers[task.plan].place) from error


@dataclass(frozen=True, slots=True)
class Hands:
    """Say by what the workers compute: the device of each plan, and turns that they take there."""

    devices: tuple[Device, ...]
    turns: Turns


def _lane(device: Device) -> Lane:
    return Lane(device, 16 * (TILE_VALUES if device.is_cpu else DEVICE_TILE_VALUES))


def work(
    worker: Worker,
    units: Iterator[Unit],
    progress: Callable[[int], None],
    stop: threading.Event,
    ready: threading.Barrier,
) -> None:
    """Take units, one at a time, until none is left or `stop` is set; `units` may be shared by threads.

    What a thread sets up in its own first calls must not race either: workers make them in turns, and none begins
    before all have (`ready` counts them).
    """
    try:
        with _TURN:
            worker.set_up()
        ready.wait()
    except BaseException:
        ready.abort()
        raise
    for unit in units:
        if stop.is_set():
            return
        with closing(worker.run(unit)) as counts:
            for count in counts:
                progress(count)
                if stop.is_set():
                    return


def _torch_dtype(name: str) -> torch.dtype:
    found = getattr(torch, str(DTYPES[name].torch))
    assert isinstance(found, torch.dtype)
    return found


def _rounded_to_odd(values: torch.Tensor) -> torch.Tensor:
    """Narrow float64 to float32 so that rounding once more, to 16 or 8 bits, gives what rounding once would give.

    torch narrows to so few bits by way of float32, and rounding to nearest twice may end at the wrong neighbour. Cut
    off instead, with the last bit set where anything was cut (Boldo and Melquiond 2008).
    """
    near = values.float()
    inexact, beyond = near.double() != values, near.double().abs() > values.abs()
    bits = near.view(torch.int32) - beyond.int()
    return (bits | inexact.int()).view(torch.float32)


def _doubles(tensor: torch.Tensor) -> NDArray[np.float64]:
    """Bring values to the host in float64."""
    values: NDArray[np.float64] = tensor.cpu().double().numpy()
    return values


def _view(tensor: torch.Tensor) -> memoryview:
    """Show a contiguous CPU tensor's bytes."""
    return memoryview(tensor.view(torch.uint8).numpy())  # type: ignore[arg-type]
