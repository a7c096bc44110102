"""Run steps by themselves, into memory: no recipe, no sources, no plan."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from lorabake.execution.device import CPU, Turns
from lorabake.execution.units import units_of
from lorabake.execution.worker import Hands, Worker
from lorabake.planning.steps import Step, Target

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Files:
    """Read files by their names."""

    def read(self, path: Path, start: int, into: memoryview) -> None:
        with open(path, "rb") as stream:
            stream.seek(start)
            assert stream.readinto(into) == len(into)


class Memory:
    """Take what is written, a file of the plan after the other."""

    place = Path("memory")

    def __init__(self, sizes: Sequence[int]) -> None:
        self.files = [bytearray(size) for size in sizes]
        self.finished: list[tuple[int, int, int]] = []

    def write(self, file: int, offset: int, data: memoryview) -> None:
        self.files[file][offset : offset + len(data)] = data

    def finish(self, file: int, start: int, stop: int) -> None:
        self.finished.append((file, start, stop))

    def tensor(self, target: Target) -> torch.Tensor:
        """Return what was written for a target."""
        raw = self.files[target.file][target.offset : target.offset + target.nbytes]
        return torch.frombuffer(raw, dtype=DTYPES[target.dtype]).reshape(target.shape)


def run(steps: Sequence[Step]) -> Memory:
    """Compute steps on the CPU."""
    targets = [target for step in steps for target in step.targets]
    files = 1 + max(target.file for target in targets)
    memory = Memory(
        [max((t.offset + t.nbytes for t in targets if t.file == number), default=0) for number in range(files)]
    )
    worker = Worker([steps], Files(), [memory], Hands((CPU,), Turns(1)))
    worker.set_up()
    for unit in units_of([steps]):
        for _ in worker.run(unit):
            pass
    return memory
