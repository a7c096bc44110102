"""Choose the device of a bake, find out what it can do, and share its memory among workers.

CUDA, ROCm, XPU, MPS and all other accelerators of torch use the same code. What a device cannot do is found out by
trying it, not from its name.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import torch

from lorabake.errors import SurroundingsError, first_line
from lorabake.settings import ON_CPU

ENVIRONMENT = "LORABAKE_DEVICE"
"""Environment variable that names the device if neither the command line nor `RunOptions` does."""

AUTO = "auto"
SHORTAGE = ("out of memory", "ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED")
"""How libraries below torch word a lack of device memory."""


@dataclass(frozen=True, slots=True)
class Device:
    """Say what computes: torch's name for it and what it can do.

    `lacks` are dtypes that it cannot hold. With `is_async`, it has streams, and copies run in parallel to the host's
    work. `pins` means that the host has pinned memory for such copies.
    """

    place: torch.device
    lacks: frozenset[torch.dtype] = frozenset()
    is_async: bool = False
    pins: bool = False

    @property
    def kind(self) -> str:
        """Return the device class; within one class, the bytes of a bake are the same."""
        return self.place.type

    @property
    def is_cpu(self) -> bool:
        """Tell the CPU from an accelerator."""
        return self.place.type == "cpu"

    def let_go(self) -> None:
        """Release unused memory that torch's allocator keeps, and cuBLAS for each stream."""
        clear_workspaces = getattr(torch._C, f"_{self.kind}_clearCublasWorkspaces", None)
        if clear_workspaces is not None:
            clear_workspaces()
        empty_cache = getattr(torch.get_device_module(self.place), "empty_cache", None)
        if empty_cache is not None:
            empty_cache()


CPU = Device(torch.device("cpu"))


def choose_device(
    name: str | None, *, precision: torch.dtype, dtypes: Iterable[torch.dtype] = (), warn: Callable[[str], None]
) -> Device:
    """Return the device to compute on, with its tested abilities.

    Without a name, the environment's LORABAKE_DEVICE counts, and without that "auto": torch's accelerator, or else
    the CPU. `precision` is the dtype of the arithmetic; `dtypes` are those of tensors that go in and out. Fall back
    to the CPU, with a message, if an accelerator lacks the precision, or under "auto" if it does not work. Raise
    SurroundingsError for a named device that cannot be used.
    """
    torch.set_float32_matmul_precision("highest")
    origin = "" if name else f" ({ENVIRONMENT} in the environment)"
    name = name or os.environ.get(ENVIRONMENT) or AUTO
    if name != AUTO:
        try:
            return _asked(place_of(name, origin), precision, dtypes, warn)
        except (RuntimeError, AssertionError) as error:
            raise SurroundingsError(
                f"device {name!r}{origin} cannot be used: {first_line(error)}", advice()
            ) from None
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is not None:
        try:
            return _asked(accelerator, precision, dtypes, warn)
        except (RuntimeError, AssertionError) as error:
            warn(f"{accelerator.type} cannot be used: {first_line(error)}; computed on the CPU")
    return _asked(torch.device("cpu"), precision, dtypes, warn)


def advice() -> str:
    """Say what works where a device does not."""
    return f"Try {ON_CPU}."


def place_of(name: str, origin: str = "") -> torch.device:
    """Return torch's device of a name; raise SurroundingsError for a name that torch does not know.

    `origin` says, behind the name, where it was written.
    """
    try:
        return torch.device(name)
    except RuntimeError:
        raise SurroundingsError(
            f"device {name!r}{origin} cannot be used: torch knows no device of this name",
            f"Give {ON_CPU}, or auto, cuda, cuda:1, xpu or mps where there is one.",
        ) from None


def _asked(
    place: torch.device, precision: torch.dtype, dtypes: Iterable[torch.dtype], warn: Callable[[str], None]
) -> Device:
    """Test what a device can do; raise torch's own error if it does not work."""
    if place.type == "cpu":
        _call_first_on_cpu()
        return CPU
    if place.type == "meta":
        raise RuntimeError("it holds no values")
    call_first(place, torch.float32, sizes=(8,))
    if precision is not torch.float32:
        if not _holds(place, precision):
            warn(f"{place.type} cannot compute in {str(precision).removeprefix('torch.')}; computed on the CPU")
            return _asked(torch.device("cpu"), precision, (), warn)
        call_first(place, precision, sizes=(8,))
    lacks = frozenset(dtype for dtype in set(dtypes) if not _holds(place, dtype))
    is_async = _has_streams(place)
    device = Device(place, lacks, is_async, pins=is_async and _pins())
    device.let_go()
    return device


def _holds(place: torch.device, dtype: torch.dtype) -> bool:
    """Tell whether a device can hold a dtype and convert it to float32."""
    try:
        torch.zeros(1).to(dtype).to(place).to(torch.float32)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError):
        return False
    return True


def _has_streams(place: torch.device) -> bool:
    """Tell whether the device has streams, and events to wait for."""
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is None or accelerator.type != place.type:
        return False
    try:
        before = torch.accelerator.current_stream(place)
        torch.accelerator.set_stream(torch.Stream(device=place))
        try:
            torch.accelerator.current_stream(place).record_event().synchronize()
        finally:
            torch.accelerator.set_stream(before)
    except RuntimeError:
        return False
    return True


def _pins() -> bool:
    try:
        return torch.empty(1, pin_memory=True).is_pinned()
    except RuntimeError:
        return False


def is_short_of_memory(error: Exception) -> bool:
    """Tell whether an error of torch means that a device has not enough free memory."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in SHORTAGE)


@cache
def _call_first_on_cpu() -> None:
    for dtype in (torch.float32, torch.float64):
        call_first(CPU.place, dtype)


def call_first(place: torch.device, dtype: torch.dtype, sizes: Iterable[int] = (8, 256)) -> None:
    """Call once, in a single thread, all functions that the workers will call.

    When two threads make MKL's first calls at the same moment, one of them may compute with a precision below
    float32 (seen with torch 2.13 on a processor with AMX, in one fresh process of a hundred).
    """
    for size in sizes:
        square = torch.ones(size, size, dtype=dtype, device=place)
        square.addmm_(square, square).addmm_(square[:, :1], square[:1]).addmm_(square, square.T)
        square[:, :1].addmm_(square[:, :1], square[:1, :1])  # a bias
        torch.mm(square, square, out=torch.empty_like(square))  # a product by itself
        (square @ square.expand(3, size, size)).sum()  # a Tucker core
        square.square().sum(dim=1, keepdim=True).sqrt()  # a magnitude: roots come from MKL, too
        square.softmax(dim=-1).cos().add_(square.sin())  # banks of vectors, and rotations by angles
        torch.dot(square[0], square[0]).cpu()


def call_lapack_first(place: torch.device, dtype: torch.dtype) -> None:
    """Call once, for the same reason, the functions that only rotations and the method svd need.

    torch initialises LAPACK in the first call, and fails if two threads make it at the same moment.
    """
    square = torch.eye(256, dtype=dtype, device=place)
    try:
        torch.linalg.solve(square, square)
        torch.linalg.svd(square[:8, :8])
    except NotImplementedError:  # a step that needs it reports that itself
        return


class Turns:
    """Let workers use a device's memory in parallel, or one worker alone.

    A worker that finds no memory leaves and comes back alone, when no other worker holds any. So the number of
    workers never limits what the device can hold. Whenever that helped, one worker fewer runs in parallel from then
    on. In the end all workers run alone, and nothing is tried twice.
    """

    def __init__(self, workers: int) -> None:
        self._places = workers
        self._taken = 0
        self._most = workers
        self._want_to_be_alone = 0
        self._news = threading.Condition()

    @contextmanager
    def take(self, *, alone: bool) -> Iterator[bool]:
        """Wait for a turn, and keep it inside the context; workers that want to be alone go first.

        The context's value says whether this worker is alone.
        """
        with self._news:
            alone = alone or self._most == 0
            places = self._places if alone else 1
            self._want_to_be_alone += alone
            try:
                self._news.wait_for(lambda: self._has_room(alone=alone))
            finally:
                self._want_to_be_alone -= alone
            self._taken += places
        try:
            yield alone
        finally:
            with self._news:
                self._taken -= places
                self._news.notify_all()

    def _has_room(self, *, alone: bool) -> bool:
        if alone:
            return self._taken == 0
        return not self._want_to_be_alone and self._taken < max(1, self._most)

    def allow_fewer(self) -> None:
        """Let one worker fewer run in parallel."""
        with self._news:
            self._most = max(0, self._most - 1)


class Buffer:
    """Hold host memory for copies to or from a device, and wait for them before its next use."""

    def __init__(self, size: int, *, pinned: bool) -> None:
        self.is_pinned = False
        if pinned:
            try:
                self._memory = torch.empty(size, dtype=torch.uint8, pin_memory=True)
                self.is_pinned = True
            except RuntimeError:  # the host lacks pinned memory: copies are slower, with the same result
                pass
        if not self.is_pinned:
            self._memory = torch.empty(size, dtype=torch.uint8)
        self._bytes = memoryview(self._memory.numpy())  # type: ignore[arg-type]
        self._copy: torch.Event | None = None

    @property
    def size(self) -> int:
        """Count the bytes."""
        return self._memory.numel()

    def copied(self, event: torch.Event) -> None:
        """Note a copy in the background; `event` marks its end."""
        self._copy = event

    def to_fill(self) -> torch.Tensor:
        """Return the memory when it may be written to, after copies from it have ended."""
        self._wait()
        return self._memory

    def bytes_to_fill(self) -> memoryview:
        """Return the memory's bytes when they may be written to."""
        self.to_fill()
        return self._bytes

    def to_read(self) -> torch.Tensor:
        """Return the memory when it may be read, after copies into it have ended."""
        self._wait()
        return self._memory

    def _wait(self) -> None:
        if self._copy is not None:
            self._copy.synchronize()
            self._copy = None


class Lane:
    """Copy one worker's values to the device and back, in its own stream, through its own buffers.

    `largest` is the largest buffer, in bytes, that is kept.
    """

    def __init__(self, device: Device, largest: int) -> None:
        self.device, self._largest = device, largest
        self._stream = torch.Stream(device=device.place) if device.is_async else None
        self._buffers: dict[str, Buffer] = {}

    def enter(self) -> None:
        """Make this lane's stream the calling thread's stream."""
        if self._stream is not None:
            torch.accelerator.set_stream(self._stream)

    def settle(self) -> None:
        """Wait until the device has finished this lane's work, so that released memory is free."""
        if self._stream is not None:
            self._stream.synchronize()

    def buffer(self, name: str, size: int) -> Buffer:
        """Return the buffer of a name, with at least so many bytes."""
        kept = self._buffers.get(name)
        if kept is None or kept.size < size:
            kept = Buffer(max(size, 1), pinned=self.device.pins)
            if size <= self._largest:
                self._buffers[name] = kept
        return kept

    def send(self, buffer: Buffer, count: int, dtype: torch.dtype) -> torch.Tensor:
        """Copy the first `count` values of a buffer to the device; the copy may go on while the buffer is kept."""
        values = buffer.to_read()[: count * dtype.itemsize].view(dtype)
        sent = values.to(self.device.place, copy=True, non_blocking=buffer.is_pinned and buffer.size <= self._largest)
        if buffer.is_pinned and self._stream is not None:
            buffer.copied(self._stream.record_event())
        return sent

    def fetch(self, values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Copy flat values from the device to the host, in another dtype; return them when they have arrived."""
        size = values.numel() * dtype.itemsize
        buffer = self.buffer("out", size)
        into = buffer.to_fill()[:size].view(dtype)
        into.copy_(values, non_blocking=buffer.is_pinned)
        if buffer.is_pinned and self._stream is not None:
            buffer.copied(self._stream.record_event())
        return buffer.to_read()[:size].view(dtype)
