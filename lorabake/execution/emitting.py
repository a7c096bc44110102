"""Round computed values once to the output's dtype, refuse values that it cannot hold, and write the rest."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
import torch

from lorabake.errors import ValueTooLargeError
from lorabake.execution.device import Lane
from lorabake.execution.ends import Writer
from lorabake.execution.reading import Seconds
from lorabake.execution.rounding import drawn, round_by, rounded_to_odd
from lorabake.execution.tiles import Span, bytes_of, torch_dtype
from lorabake.planning.steps import Step, Target
from lorabake.tensors.dtypes import DTYPES

ABSURD = 1e9
"""A strength beyond which it is at fault for a value that is no number, and not a file."""

INFINITE = {torch.float16: 0x7C00, torch.bfloat16: 0x7F80}
"""The codes of infinity; those of NaN are larger."""


class Emitter:
    """Write for one worker, through its lane."""

    def __init__(self, writer: Writer, lane: Lane, seconds: Seconds) -> None:
        self._writer, self._lane, self._seconds = writer, lane, seconds

    def emit(
        self, step: Step, target: Target, weight: torch.Tensor, start: int, before: Callable[[], torch.Tensor]
    ) -> Span:
        """Round rows of a target from `start`, write them, and return where they are.

        `before` reads the base's values there, for an error.
        """
        began = time.perf_counter()
        infinite = INFINITE.get(torch_dtype(target.dtype)) if _is_rounded_once(target, weight) else None
        if infinite is None and not _is_small(target, weight):
            _refuse(step, target, weight, start, before)
        rounded = self.rounded(target, weight, start)
        if infinite is not None and not _is_finite(rounded, infinite):
            _refuse(step, target, weight, start, before)
        computed = time.perf_counter()
        offset = target.offset + start * weight.shape[1] * rounded.itemsize
        self._writer.write(target.file, offset, bytes_of(rounded))
        self._seconds["compute"] += computed - began
        self._seconds["write"] += time.perf_counter() - computed
        return Span(target.file, offset, offset + rounded.nbytes)

    def rounded(self, target: Target, weight: torch.Tensor, start: int) -> torch.Tensor:
        """Round rows of a target from `start` to the output dtype; return them flat, on the host."""
        dtype, flat = torch_dtype(target.dtype), weight.reshape(-1)
        if flat.is_cpu and dtype is flat.dtype and weight.is_contiguous():
            return flat
        if target.rounding_seed is not None:
            flat = round_by(_numbers(target, weight, start, target.rounding_seed), flat, dtype)
        if flat.dtype is torch.float64 and dtype.itemsize <= 2 and dtype.is_floating_point:
            flat = rounded_to_odd(flat)
        if not dtype.is_floating_point:
            flat = flat.round()
        return self._lane.fetch(flat, dtype)


def _is_rounded_once(target: Target, weight: torch.Tensor) -> bool:
    """Tell whether the CPU rounds values to the nearest: then those that are too large become infinite."""
    return weight.is_cpu and target.rounding_seed is None


def _is_small(target: Target, weight: torch.Tensor) -> bool:
    """Prove in one cheap pass that a target's dtype can hold all values; False where that may not be so.

    A sum of squares below the limit's square proves it; NaN fails the test.
    """
    flat = weight.reshape(-1)
    return float(torch.dot(flat, flat)) < DTYPES[target.dtype].safe_square


def _is_finite(rounded: torch.Tensor, infinite: int) -> bool:
    """Tell whether all rounded values are finite, given the code of infinity; that reads fewer bytes.

    Infinity and NaN have the largest codes of all: of positive numbers as signed integers, of negative ones as
    unsigned integers.
    """
    signed = rounded.view(torch.int16).numpy()
    return int(signed.max()) < infinite and int(signed.view(np.uint16).max()) < infinite + (1 << 15)


def _numbers(target: Target, weight: torch.Tensor, start: int, seed: int) -> torch.Tensor:
    """Draw the numbers that round rows of a target from `start`, by the places that the values have in the base.

    So a value is the same in every layout.
    """
    if target.is_direct:
        return drawn(seed, target.key, start * weight.shape[1], weight.reshape(-1))
    stop, width = start + len(weight), weight.shape[1]
    if target.source.transpose:  # a column of the target is a row of the base
        rows = [
            drawn(seed, span.key, row * target.source.rows + start, weight[:, 0])
            for span in target.source.spans()
            for row in range(span.stored.start, span.stored.stop)
        ]
        return torch.stack(rows, dim=1).reshape(-1)
    pieces = []
    for span in target.source.spans():
        first, last = max(start, span.own.start), min(stop, span.own.stop)
        if first < last:
            place = span.stored.start + first - span.own.start
            pieces.append(drawn(seed, span.key, place * width, weight[first - start : last - start].reshape(-1)))
    return torch.cat(pieces)


def _refuse(
    step: Step, target: Target, weight: torch.Tensor, start: int, read_before: Callable[[], torch.Tensor]
) -> None:
    """Raise ValueTooLargeError for the first value that a target's dtype cannot hold, if there is one."""
    wrong = ~(weight.abs() < DTYPES[target.dtype].limit)
    if not wrong.any():  # only the sum was large
        return
    before = read_before().reshape(weight.shape)
    if not step.patches:
        wrong &= before.isfinite()
    if not wrong.any():  # a cast that keeps the base's own NaN or infinity
        return
    row, column = (int(index) for index in wrong.nonzero()[0])
    value, was = float(weight[row, column]), float(before[row, column])
    names = sorted({step.loras[patch.lora] for patch in step.patches})
    cause = f"with LoRA {', '.join(map(repr, names))}" if names else "when cast"
    if was - was:
        cause = f"in the base already, and {cause.removeprefix('with ')} would spread it"
    strongest = max((patch.strength for patch in step.patches), key=abs, default=0.0)
    advice = "Lower the strength, or choose a wider output.dtype."
    if abs(strongest) > ABSURD:
        advice = f"Lower the strength: it is {strongest:g}."
    elif value != value:
        holder = f"LoRA {names[0]!r}" if len(names) == 1 and math.isfinite(was) else "A file"
        advice = f"{holder} holds NaN, infinity or absurdly large numbers: download it again, or leave it out."
    elif names and abs(value) > ABSURD:
        advice = "A LoRA is probably broken: download it again, or leave it out. If it is right, lower its strength."
    raise ValueTooLargeError(
        f"{target.key}[{start + row}, {column}]: {value:g} {cause}; {target.dtype} cannot hold it "
        f"(the base has {was:g} there)",
        f"Nothing was written. {advice}",
    )
