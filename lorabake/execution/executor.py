"""Run steps on one device: by rows or whole, beside other workers, alone, or on the CPU after all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator, Sequence

import torch

from lorabake.errors import SurroundingsError, first_line
from lorabake.execution.device import CPU, Device, Lane, Turns, advice, is_short_of_memory
from lorabake.execution.emitting import Emitter
from lorabake.execution.ends import Reader, Writer
from lorabake.execution.products import Products
from lorabake.execution.reading import Loader
from lorabake.execution.rows import ByRows
from lorabake.execution.tiles import Span, tile_values, torch_dtype
from lorabake.execution.watching import Watch
from lorabake.execution.wholes import Wholes
from lorabake.planning.steps import Step, precision_of
from lorabake.planning.tally import Tally
from lorabake.settings import WORKERS
from lorabake.tensors.dtypes import DTYPES


class Executor:
    """Run the steps of a plan on one device, from one worker.

    `seconds` are by stage. `places` are the device classes that computed steps, by the steps' numbers. `tallies` are
    by the numbers of the step and of the LoRA.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        reader: Reader,
        writer: Writer,
        device: Device,
        turns: Turns,
        lane: Lane,
        products: Products,
    ) -> None:
        self.steps, self.device, self.lane, self.products = steps, device, lane, products
        self._reader, self._writer, self._turns = reader, writer, turns
        self.dtype = precision(steps)
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.places: dict[int, str] = {}
        self.tallies: dict[int, dict[int, Tally]] = {}
        self._on_cpu: Executor | None = None

    @property
    def uses_lapack(self) -> bool:
        """Tell whether anything but matrix products may be asked for."""
        by_kind = any(patch.kind.may_sum_weight for step in self.steps for patch in step.patches)
        return by_kind or any(step.method.name == "svd" for step in self.steps)

    def run(self, step: Step) -> Generator[int]:
        """Bake one step; yield the bytes written after each piece.

        Either the device computes the whole step, or the CPU does, if the device cannot compute it or one worker
        alone cannot hold it there.
        """
        yield from self._run_at_once(step) if self.device.is_cpu else self._run_in_turns(step)

    def _run_at_once(self, step: Step) -> Iterator[int]:
        try:
            for spans in self._pieces(step, 0):
                self._finish(spans)
                yield _size(spans)
        except torch.OutOfMemoryError:
            raise SurroundingsError(
                f"out of memory while baking {step.targets[0].key}; use fewer workers: {WORKERS}"
            ) from None
        self.places[step.number] = self.device.kind

    def _run_in_turns(self, step: Step) -> Iterator[int]:
        """Compute on the device in parallel to other workers, or else alone, or else on the CPU.

        Written bytes count as finished only when the whole step is, because the CPU may have to write them again.
        """
        done: list[tuple[Span, ...]] = []
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
                for spans in done:
                    self._finish(spans)
                self.places[step.number] = self.device.kind
                return
            if alone:
                break
        told, position = sum(map(_size, done)), 0
        for count in self._beside().run(step):
            before, position = max(position, told), position + count
            yield max(0, position - before)

    def _beside(self) -> Executor:
        """Return an executor on the CPU that shares this one's records."""
        if self._on_cpu is None:
            reader, writer, turns = self._reader, self._writer, self._turns
            self._on_cpu = Executor(self.steps, reader, writer, CPU, turns, lane_of(CPU), self.products)
            self._on_cpu.seconds, self._on_cpu.places = self.seconds, self.places
            self._on_cpu.tallies = self.tallies
        return self._on_cpu

    def _attempt(self, step: Step, done: list[tuple[Span, ...]]) -> Generator[int, None, bool]:
        """Compute the rest of a step, add it to `done`, and return whether the device could do all of it."""
        try:
            for spans in self._pieces(step, len(done)):
                done.append(spans)
                yield _size(spans)
        except (RuntimeError, TypeError) as error:  # a fault of the input fails on the CPU, too
            if is_short_of_memory(error) or isinstance(error, (NotImplementedError, TypeError)):
                return False
            if "can't allocate memory" in str(error):  # the host's memory, not the device's
                raise
            raise SurroundingsError(
                f"{self.device.place} failed while baking {step.targets[0].key}: {first_line(error)}", advice()
            ) from error
        return True

    def _pieces(self, step: Step, first: int) -> Iterator[tuple[Span, ...]]:
        """Compute and write a step's pieces, beginning with number `first`; the cuts are fixed."""
        if not first:
            self.tallies[step.number] = {}
        loader = Loader(self._reader, self.lane, self.dtype, self.seconds)
        emitter = Emitter(self._writer, self.lane, self.seconds)
        watch = Watch(step, self.tallies[step.number])
        if step.by_rows:
            return ByRows(step, loader, emitter, watch, self.seconds, self.products).pieces(first)
        return Wholes(step, loader, emitter, watch, self.seconds).pieces(first)

    def _finish(self, spans: Iterable[Span]) -> None:
        for span in spans:
            self._writer.finish(span.file, span.start, span.stop)


def _size(spans: Iterable[Span]) -> int:
    return sum(span.size for span in spans)


def lane_of(device: Device) -> Lane:
    """Make a lane to a device, for buffers of a few tiles."""
    return Lane(device, 16 * tile_values(device))


def precision(steps: Iterable[Step]) -> torch.dtype:
    """Return the dtype for the arithmetic of a plan's steps."""
    return torch.float64 if precision_of(steps) == "float64" else torch.float32


def dtypes(steps: Iterable[Step]) -> Iterator[torch.dtype]:
    """Yield the dtypes of all tensors that steps read and write, with repetitions."""
    return (dtype for step in steps for dtype in _dtypes(step))


def _dtypes(step: Step) -> set[torch.dtype]:
    infos = [*step.stored]
    infos += [part for patch in step.patches for own in patch.tensors.values() for part in own.parts.values()]
    names = {info.dtype for info in infos} | {target.dtype for target in step.targets}
    return {torch_dtype(name) for name in names if DTYPES[name].torch}
