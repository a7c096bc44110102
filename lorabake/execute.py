"""Step 4 of the flow: a `Plan` in; baked tensors out. The only module that knows devices.

Each worker reads rows of a tensor, computes them in the compute dtype, rounds once to the output dtype and
hands them on. Which rows go together depends on the tensor alone, so that the bytes don't depend on the
number of workers.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from lorabake.adapters import dora
from lorabake.adapters.kind import MAGNITUDES, Tensors, Terms, matrix
from lorabake.errors import MatchError, SurroundingsError, ValueTooLargeError
from lorabake.keymap.view import Picked
from lorabake.matching import Patch
from lorabake.methods import combine, masks_of
from lorabake.planning import TILE_VALUES, Bake, Plan, Target
from lorabake.rounding import drawn, round_by
from lorabake.tensors.dtypes import DTYPES, LARGEST, decode_scalar
from lorabake.tensors.packing import PackedInfo, decode, largest_of, spread, unit
from lorabake.tensors.safetensors import TensorInfo

DEVICE_TILE_VALUES = 1 << 24
LIMITS = {
    "F8_E4M3": 464.0,
    "F8_E5M2": 61440.0,
    "I8": 127.5,
    "F16": 65520.0,
    "BF16": 3.3961775292304957e38,
    "F32": float("inf"),
    "F64": float("inf"),
}
"""The least magnitude that rounds to no number."""

SAFE_SQUARES = {"F8_E4M3": 2e5, "F8_E5M2": 3.7e9, "I8": 1.6e4, "F16": 4e9, "BF16": 1e38, "F32": 1e38, "F64": 1e38}
"""Bounds on a sum of squares, as float32 can hold it, below which no value can reach its dtype's limit."""


class Reader(Protocol):
    """Fill buffers from input files."""

    def read(self, path: Any, start: int, into: memoryview) -> None:
        """Fill `into` with the bytes of a file from `start`."""


Writer = Callable[[int, int, memoryview], None]


@dataclass(frozen=True, slots=True)
class Product:
    """Add `up @ down` to rows `start` to `stop`: the stacked factors of all plain patches on those rows.

    `picked` are the values of each row that it is for; all, where it is None.
    """

    start: int
    stop: int
    up: torch.Tensor
    down: torch.Tensor
    picked: slice | None = None


@dataclass(frozen=True, slots=True)
class Update:
    """Change rows `start` to `stop` by a patch whose delta is no plain product; `start` is the module's row `row`."""

    start: int
    stop: int
    row: int
    patch: Patch
    tensors: Tensors
    terms: Terms
    picked: slice | None = None


@dataclass(frozen=True, slots=True)
class Replace:
    """Move rows towards `value` by `strength`."""

    start: int
    stop: int
    value: torch.Tensor
    strength: float


class Executor:
    """Run the steps of a plan on one device, from one worker; `seconds` tells where its time went."""

    def __init__(
        self, plan: Plan, reader: Reader, write: Writer, device: torch.device, warn: Callable[[str], None]
    ) -> None:
        self.plan, self.reader, self._write, self.device, self._warn = plan, reader, write, device, warn
        double = plan.sources.recipe.in_float64 or any(
            target.source.dtype == "F64" for bake in plan.bakes for target in bake.targets
        )
        self.dtype = torch.float64 if double else torch.float32
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.sequential = plan.sources.recipe.is_sequential
        self.tile_values = TILE_VALUES if device.type == "cpu" else DEVICE_TILE_VALUES
        self._buffers: dict[str, torch.Tensor] = {}
        self._stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    @property
    def uses_lapack(self) -> bool:
        """Tell whether anything but matrix products may be asked for."""
        plan = self.plan
        by_kind = any(not (patch.kind.low_rank or patch.kind.replaces) for patch in plan.patches)
        return by_kind or plan.sources.recipe.method.name == "svd"

    def run(self, step: Bake) -> Iterator[int]:
        """Bake one step; yield the bytes written after each piece. Split pieces when the device is full."""
        with self._on_stream():
            try:
                yield from self._by_rows(step, step.targets[0]) if step.by_rows else self._whole(step)
            except torch.OutOfMemoryError:
                if self.device.type == "cpu":
                    raise SurroundingsError(
                        f"out of memory while baking {step.targets[0].key}; use fewer --workers"
                    ) from None
                self._warn(
                    f"{step.targets[0].key}: does not fit into the memory of {self.device}; computed on the CPU"
                )
                on_cpu = Executor(self.plan, self.reader, self._write, torch.device("cpu"), self._warn)
                yield from on_cpu.run(step)
                for stage, seconds in on_cpu.seconds.items():
                    self.seconds[stage] += seconds

    def _on_stream(self) -> AbstractContextManager[Any]:
        return torch.cuda.stream(self._stream) if self._stream is not None else nullcontext()

    # -- row by row ------------------------------------------------------------------------------------

    def _by_rows(self, step: Bake, target: Target) -> Iterator[int]:
        rows, columns = step.matrix(target)
        parts = self._parts(step, target)
        size = max(1, self.tile_values // max(1, columns))
        start = 0
        while start < rows:
            stop = min(start + size, rows)
            try:
                weight = self._read_rows(target.source, start, stop, columns)
                self._apply(weight, parts, start)
                self._emit(step, target, weight, start)
            except torch.OutOfMemoryError:
                if self.device.type == "cpu" or size == 1:
                    raise
                size = max(1, size // 2)
                self._buffers.clear()
                torch.cuda.empty_cache()
                continue
            yield (stop - start) * columns * _torch_dtype(target.dtype).itemsize
            start = stop

    def _parts(self, step: Bake, target: Target) -> list[Product | Update | Replace]:
        stacks: dict[tuple[int, int, Picked | None], list[tuple[torch.Tensor, torch.Tensor]]] = {}
        parts: list[Product | Update | Replace] = []
        for patch in step.patches:
            tensors, terms = self._prepare(patch)
            row, chosen = 0, patch.view.chosen
            for region in patch.view.regions:
                rows = slice(row, row + region.stop - region.start)
                row = rows.stop
                if region.key != target.key:
                    continue
                if patch.kind.replaces:
                    parts.append(Replace(region.start, region.stop, tensors["value"][rows], patch.strength))
                elif patch.has_dora or not patch.kind.low_rank:
                    parts.append(Update(region.start, region.stop, rows.start, patch, tensors, terms, chosen))
                else:
                    up, right = tensors["up"], tensors["down"] * patch.strength
                    left, right = (right.T, up.T) if patch.view.transpose else (up[rows], right)
                    if self.sequential:
                        parts.append(
                            Product(region.start, region.stop, left.contiguous(), right.contiguous(), chosen)
                        )
                    else:
                        place = region.start, region.stop, patch.view.picked
                        stacks.setdefault(place, []).append((left, right))
        for (start, stop, picked), factors in stacks.items():
            left = torch.cat([left for left, _ in factors], dim=1) if len(factors) > 1 else factors[0][0]
            right = torch.cat([right for _, right in factors]) if len(factors) > 1 else factors[0][1]
            chosen = None if picked is None else picked.slice
            parts.append(Product(start, stop, left.contiguous(), right.contiguous(), chosen))
        return parts if self.sequential else sorted(parts, key=lambda part: not isinstance(part, Replace))

    def _apply(self, weight: torch.Tensor, parts: list[Product | Update | Replace], first: int) -> None:
        began = time.perf_counter()
        reads = len(parts) > 1 and any(isinstance(part, Update) for part in parts)
        base = weight.clone() if reads and not self.sequential else weight
        for part in parts:
            start, stop = max(part.start, first), min(part.stop, first + weight.shape[0])
            if start >= stop:
                continue
            inner, outer = slice(start - part.start, stop - part.start), slice(start - first, stop - first)
            if isinstance(part, Replace):
                weight[outer].lerp_(part.value[inner], part.strength)
                continue
            place = outer if part.picked is None else (outer, part.picked)
            if isinstance(part, Product):
                weight[place].addmm_(part.up[inner], part.down)
            else:
                rows = slice(part.row + inner.start, part.row + inner.stop)
                change = _change(part.patch, part.tensors, base[place], rows, part.terms)
                strength = part.patch.share
                if not part.patch.has_dora:
                    weight[place].add_(change, alpha=strength)
                elif base is weight:
                    weight[place].lerp_(change, strength)
                else:
                    weight[place].add_(change.sub_(base[place]), alpha=strength)
        self.seconds["compute"] += time.perf_counter() - began

    # -- whole tensors at once -------------------------------------------------------------------------

    def _whole(self, step: Bake) -> Iterator[int]:
        base = {target.key: self._read_whole(target.source).contiguous() for target in step.targets}
        for target in step.targets:
            if target.scale_key:
                scale = base[target.scale_key] * unit(target.scale_key)
                base[target.key].view(matrix(target.shape)).mul_(spread(scale, target.shape))
        baked = {key: tensor.clone() for key, tensor in base.items()}
        deltas: dict[int, torch.Tensor] = {}
        began = time.perf_counter()
        in_order = step.patches if self.sequential else sorted(step.patches, key=lambda each: not each.kind.replaces)
        for patch in in_order:
            weight = patch.view.read(baked if self.sequential else base).reshape(patch.view.rows, -1)
            tensors, terms = self._prepare(patch)
            if patch.kind.replaces:
                delta = tensors["value"]
            else:
                delta = _change(patch, tensors, weight, slice(0, patch.view.rows), terms)
            if patch.kind.replaces or patch.has_dora:  # it is no difference so far
                is_all = delta.numel() == baked[patch.view.keys[0]].numel()
                if len(step.patches) == 1 and step.summed and patch.share == 1 and patch.view.transpose and is_all:
                    baked[patch.view.keys[0]] = delta.T.contiguous()
                    continue
                delta = delta - weight
            if step.summed or patch.kind.replaces:
                patch.view.add(baked, delta * patch.share)
            else:
                deltas[id(patch)] = delta.contiguous()
        self._combine(step, deltas, baked)
        dtypes = {target.key: target.dtype for target in step.targets}
        for target in step.targets:
            if target.scale_key:
                self._rescale(target, dtypes[target.scale_key], baked)
        self.seconds["compute"] += time.perf_counter() - began
        for target in step.targets:
            rows, columns = step.matrix(target)
            flat = baked[target.key].reshape(rows, columns)
            size = max(1, self.tile_values // max(1, columns))
            for start in range(0, rows, size):
                tile = flat[start : start + size]
                self._emit(step, target, tile, start)
                yield tile.numel() * _torch_dtype(target.dtype).itemsize

    def _combine(self, step: Bake, deltas: Mapping[int, torch.Tensor], baked: Mapping[str, torch.Tensor]) -> None:
        """Add what the recipe's method makes of deltas at strength 1, piece by piece."""
        if step.summed:
            return
        method = self.plan.sources.recipe.method
        for key, start, stop, there in step.pieces():
            turned = there[0].patch.view.transpose
            parts = [
                (deltas[id(piece.patch)].T.contiguous() if turned else deltas[id(piece.patch)])[piece.rows]
                for piece in there
            ]
            masks = masks_of(method, key, start, [piece.patch.lora for piece in there], parts[0].numel())
            total = combine(method, parts, [piece.patch.strength for piece in there], masks)
            rows = baked[key].view(-1, there[0].patch.view.width)[start:stop]
            rows += total.reshape(rows.shape)

    def _rescale(self, target: Target, scale_dtype: str, baked: dict[str, torch.Tensor]) -> None:
        """Divide a weight by fresh scales: the largest value that each is for becomes its dtype's largest."""
        shape = tuple(baked[target.scale_key].shape)
        largest = largest_of(baked[target.key], target.shape, shape) / (
            LARGEST[target.dtype] * unit(target.scale_key)
        )
        fresh = torch.where(largest > 0, largest, torch.ones_like(largest))
        fresh = fresh.to(_torch_dtype(scale_dtype)).to(self.dtype)
        baked[target.scale_key] = fresh
        flat = baked[target.key].reshape(matrix(target.shape))
        scale = spread(fresh * unit(target.scale_key), target.shape)
        baked[target.key] = (flat / scale).reshape(target.shape)

    # -- in and out ------------------------------------------------------------------------------------

    def _prepare(self, patch: Patch) -> tuple[Tensors, Terms]:
        """Read a patch's tensors, and compute what all of its rows share; products take the scale in."""
        kind = patch.kind
        tensors = {
            slot: self._read_whole(info)
            for slot, info in patch.tensors.items()
            if slot != "alpha" or not kind.alpha_is_scale
        }
        terms = Terms(patch.view.shape, self._scale(patch), patch.settings)
        if kind.replaces:
            return {"value": _shaped(patch, kind.value(tensors), (patch.view.rows, patch.view.columns))}, terms
        own = {slot: tensor for slot, tensor in tensors.items() if slot not in MAGNITUDES}
        try:
            if kind.low_rank:
                up, down = kind.factors(own, terms)
                rows, columns = patch.view.rows, patch.view.columns
                _shaped(patch, up, (rows, len(down)))
                prepared: dict[str, torch.Tensor] = {
                    "up": up,
                    "down": _shaped(patch, down, (len(down), columns)) * terms.scale,
                }
            else:
                prepared = dict(kind.prepare(own, terms))
        except ValueError as error:
            name = self.plan.sources.loras[patch.lora].name
            raise MatchError(f"LoRA {name!r}: {patch.module}: {str(error).splitlines()[0]}") from None
        return prepared | {slot: tensors[slot] for slot in MAGNITUDES & tensors.keys()}, terms

    def _scale(self, patch: Patch) -> float:
        if patch.scale is not None:
            return patch.scale
        info = patch.tensors.get("alpha")
        if info is None or not patch.kind.alpha_is_scale:
            return 1.0
        raw = bytearray(info.nbytes)
        self.reader.read(info.file, info.start, memoryview(raw))
        alpha = decode_scalar(info.dtype, bytes(raw))
        if not alpha or alpha - alpha:
            name = self.plan.sources.loras[patch.lora].name
            raise MatchError(
                f"LoRA {name!r}: {info.name} is {alpha}, which is no scale\n"
                f'Leave the module out with a block pattern that names it and the factor 0: blocks: {{"…": 0}}'
            )
        return patch.kind.scale(alpha, patch.shapes) * patch.parts

    def _read_whole(self, info: TensorInfo) -> torch.Tensor:
        """Read a whole tensor into the compute dtype on the device, decoded, in its own shape."""
        if isinstance(info, PackedInfo):
            return decode(info, {role: self._read_stored(part) for role, part in info.parts.items()}, self.dtype)
        return self._read_rows(info, 0, *matrix(info.shape), fresh=True).reshape(info.shape)

    def _read_stored(self, info: TensorInfo) -> torch.Tensor:
        """Read a whole tensor as it is stored; a part that is packed itself, decoded."""
        if isinstance(info, PackedInfo):
            return self._read_whole(info)
        raw = torch.empty(info.nbytes, dtype=torch.uint8)
        self.reader.read(info.file, info.start, _view(raw))
        return raw.view(_torch_dtype(info.dtype)).reshape(info.shape).to(self.device)

    def _read_rows(
        self, info: TensorInfo, start: int, stop: int, columns: int, *, fresh: bool = False
    ) -> torch.Tensor:
        """Read rows of a tensor into the compute dtype on the device; a buffer of this worker unless `fresh`."""
        began = time.perf_counter()
        width = _torch_dtype(info.dtype).itemsize
        count = (stop - start) * columns
        raw = self._buffer("in", count * width, torch.uint8, pinned=True)
        self.reader.read(info.file, info.start + start * columns * width, _view(raw))
        source = raw.view(_torch_dtype(info.dtype))
        read = time.perf_counter()
        if self.device.type != "cpu":  # a stream waits in `_emit` before the pinned buffer is filled again
            weight = source.to(self.device, copy=True, non_blocking=self._stream is not None and not fresh).to(
                self.dtype
            )
        elif fresh:
            weight = source.to(self.dtype, copy=True)
        else:
            weight = self._buffer("weight", count, self.dtype)
            weight.copy_(source)
        self.seconds["read"] += read - began
        self.seconds["compute"] += time.perf_counter() - read
        return weight.view(stop - start, columns)

    def _emit(self, step: Bake, target: Target, weight: torch.Tensor, start: int) -> None:
        """Round rows to the output dtype, refuse what it cannot hold, and write them."""
        began = time.perf_counter()
        flat = weight.reshape(-1)
        # A sum of squares below the limit's square clears all values in one cheap pass; NaN fails it, too.
        if not float(torch.dot(flat, flat)) < SAFE_SQUARES[target.dtype]:
            self._refuse(step, target, weight, start)
        dtype = _torch_dtype(target.dtype)
        if self.device.type == "cpu" and dtype is self.dtype and weight.is_contiguous():
            rounded = flat
        else:
            if target.is_drawn:
                seed = self.plan.sources.recipe.output.rounding.seed
                numbers = drawn(seed, target.key, start * weight.shape[1], flat)
                flat = round_by(numbers, flat, dtype)
            if self.dtype is torch.float64 and dtype.itemsize <= 2 and dtype.is_floating_point:
                flat = _rounded_to_odd(flat)
            if not dtype.is_floating_point:
                flat = flat.round()
            rounded = self._buffer("out", flat.numel(), dtype, pinned=True)
            rounded.copy_(flat, non_blocking=self._stream is not None)
            if self._stream is not None:
                self._stream.synchronize()
        computed = time.perf_counter()
        self._write(target.file, target.offset + start * weight.shape[1] * dtype.itemsize, _view(rounded))
        self.seconds["compute"] += computed - began
        self.seconds["write"] += time.perf_counter() - computed

    def _refuse(self, step: Bake, target: Target, weight: torch.Tensor, start: int) -> None:
        wrong = ~(weight.abs() < LIMITS[target.dtype])
        if not wrong.any():  # a large sum of harmless values
            return
        rows, columns = weight.shape
        if isinstance(target.source, PackedInfo):
            before = self._read_whole(target.source).reshape(-1, columns)[start : start + rows]
        else:
            before = self._read_rows(target.source, start, start + rows, columns, fresh=True)
        if not step.patches:
            wrong &= before.isfinite()
        if not wrong.any():  # a cast that passes on what the base had
            return
        row, column = (int(index) for index in wrong.nonzero()[0])
        value, was = float(weight[row, column]), float(before[row, column])
        names = sorted({self.plan.sources.loras[patch.lora].name for patch in step.patches})
        cause = f"with LoRA {', '.join(map(repr, names))}" if names else "when cast"
        if was - was:
            cause = f"in the base already, and {cause.removeprefix('with ')} would spread it"
        advice = "Lower the strength, or choose a wider output.dtype."
        if value != value:
            advice = "No number comes of numbers that are none, or too large: the file that holds them is damaged."
        raise ValueTooLargeError(
            f"{target.key}[{start + row}, {column}]: {value:g} {cause}; {target.dtype} cannot hold it "
            f"(the base has {was:g} there)\nNothing was written. {advice}"
        )

    def _buffer(self, name: str, count: int, dtype: torch.dtype, *, pinned: bool = False) -> torch.Tensor:
        """Return `count` values of a buffer that the worker keeps."""
        wanted = count * dtype.itemsize
        kept = self._buffers.get(name)
        if kept is None or kept.numel() < wanted:
            pin = pinned and self.device.type == "cuda"
            kept = torch.empty(max(wanted, 1), dtype=torch.uint8, pin_memory=pin)
            if wanted <= 16 * self.tile_values:
                self._buffers[name] = kept
        return kept[:wanted].view(dtype)


def choose_device(name: str | None, *, float64: bool, warn: Callable[[str], None]) -> torch.device:
    """Return the device to compute on: the one named, or the CPU.

    Fall back to the CPU, with a message, where the device cannot compute float64; raise SurroundingsError
    for one that is not there.
    """
    try:
        device = torch.device(name or "cpu")
        if device.type == "mps" and float64:
            warn("mps cannot compute in float64; computed on the CPU")
            return torch.device("cpu")
        _call_first(device, torch.float32)
        if device.type != "mps":
            _call_first(device, torch.float64)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first = str(error).splitlines()[0]
        raise SurroundingsError(f"device {name!r} cannot be used: {first}\nTry --device cpu.") from None
    if device.type == "meta":
        raise SurroundingsError("device 'meta' holds no values\nTry --device cpu.")
    torch.backends.cuda.matmul.allow_tf32 = False
    return device


_TURN = threading.Lock()


def _call_first(device: torch.device, dtype: torch.dtype) -> None:
    """Call what the workers will call, once, while there is one thread.

    When two threads make MKL's first calls at the same moment, one of them may compute with a precision below
    float32 (seen with torch 2.13 on a processor with AMX, in one fresh process of a hundred).
    """
    for size in (8, 256):
        square = torch.ones(size, size, dtype=dtype, device=device)
        square.addmm_(square, square).addmm_(square[:, :1], square[:1]).addmm_(square, square.T)
        square[:, :1].addmm_(square[:, :1], square[:1, :1])  # a bias
        (square @ square.expand(3, size, size)).sum()  # a Tucker core
        square.square().sum(dim=1, keepdim=True).sqrt()  # a magnitude: roots come from MKL, too
        square.softmax(dim=-1).cos().add_(square.sin())  # banks of vectors, rotations by angles
        torch.dot(square[0], square[0]).cpu()


def _call_lapack(dtype: torch.dtype) -> None:
    """Call once, for the same reason, what only rotations and the method svd need."""
    square = torch.eye(256, dtype=dtype)
    torch.linalg.solve(square, square)
    torch.linalg.svd(square[:8, :8])


def work(
    executor: Executor,
    steps: Iterator[Bake],
    progress: Callable[[int], None],
    stop: threading.Event,
    ready: threading.Barrier,
) -> None:
    """Take steps, one at a time, until none is left or `stop` is set; `steps` may be shared by threads.

    What a thread sets up in its own first calls must not race either: workers make them in turns, and none begins
    before all have (`ready` counts them).
    """
    torch.set_num_threads(1)
    try:
        with _TURN:
            _call_first(torch.device("cpu"), executor.dtype)
            if executor.uses_lapack:
                _call_lapack(executor.dtype)
        ready.wait()
    except BaseException:
        ready.abort()
        raise
    for step in steps:
        for count in executor.run(step):
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


def _view(tensor: torch.Tensor) -> memoryview:
    """Show a contiguous CPU tensor's bytes."""
    return memoryview(tensor.view(torch.uint8).numpy())  # type: ignore[arg-type]


def _shaped(patch: Patch, tensor: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a tensor of just this shape; what torch would repeat to fill it is no part of a patch."""
    if tensor.shape != shape:
        found, wanted = (" × ".join(map(str, each)) for each in (tensor.shape, shape))
        raise MatchError(
            f"{patch.module}: {patch.kind.title} made {found} of its tensors, and the weight takes {wanted}\n"
            "The plan should have refused them: please report this."
        )
    return tensor


def _change(patch: Patch, tensors: Tensors, weight: torch.Tensor, rows: slice, terms: Terms) -> torch.Tensor:
    """Return W(1) − W of some rows of a module; where a magnitude sets their lengths, W(1) or what stands for it."""
    kind = patch.kind
    own = {slot: tensor for slot, tensor in tensors.items() if slot not in MAGNITUDES} if patch.has_dora else tensors
    delta = own["up"][rows] @ own["down"] if kind.low_rank else kind.delta(own, weight, rows, terms)
    _shaped(patch, delta, tuple(weight.shape))
    if not patch.has_dora:
        return delta
    axis = dora.axis(patch.shapes, terms.shape, kind.length_axis)
    assert axis is not None
    magnitude = next(tensors[slot] for slot in MAGNITUDES & tensors.keys()).reshape(-1)
    lengths = magnitude[rows] if axis == "row" else magnitude
    return dora.apply(weight, delta, lengths, axis, terms.shape, patch.semantics, patch.strength)
