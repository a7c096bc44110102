"""What the hostile campaign's readers share: changed files by the number of a seed, and what each try may do."""

from __future__ import annotations

import os
import random
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

from lorabake.errors import LorabakeError

SECONDS = 20.0
"""What a try may take of this process's time; a machine that is busy takes no more of that."""

EDGES = (0, 1, 2, 7, 0x7F, 0x80, 0xFF)
WIDE = (0, 1, (1 << 16) - 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
NUMBERS: tuple[object, ...] = (
    0, -1, 1, 2, 3, 7, 64, 2**31, 2**63, -(2**63), 2**64, 10**400, -(10**400), 0.5, -0.0, 1e308, 1e-320,
    float("nan"), float("inf"), float("-inf"), True, False, None, "", "4", "x", "nan", [], [4], {}, {"a": 1},
)  # fmt: skip
"""What may stand where a number is due, as JSON and YAML write it."""


def seeds(short: int, seconds: float | None) -> Iterator[random.Random]:
    """Yield generators of the seeds 0, 1, 2 …: so many, or as many as go into the time."""
    began = time.monotonic()
    for seed in count() if seconds is not None else range(short):
        if seconds is not None and time.monotonic() - began > seconds:
            return
        yield random.Random(seed)


def mutated(raw: bytes, rng: random.Random, donors: tuple[bytes, ...] = ()) -> bytes:
    """Change some bytes, as files get damaged and as attackers change them."""
    data = bytearray(raw)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(data) + 1)
        size = rng.choice((1, 1, 2, 4, 8, 16, 64))
        match rng.randrange(8):
            case 0:
                data[at : at + 1] = bytes([rng.choice(EDGES)])
            case 1 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 2:
                width = rng.choice((2, 4, 8))
                data[at : at + width] = (rng.choice(WIDE) % (1 << 8 * width)).to_bytes(width, "little")
            case 3:
                del data[at : at + size]
            case 4:
                data[at:at] = data[at : at + size] * rng.choice((1, 1, 2, 100))
            case 5:
                data[at:at] = rng.randbytes(size)
            case 6:
                del data[at:]
            case 7:
                donor = rng.choice((raw, *donors))
                other = rng.randrange(len(donor) + 1)
                data[at : at + size] = donor[other : other + size]
    return bytes(data)


def outcome(call: Callable[[], object], seconds: float = SECONDS) -> str:
    """Run a call; return "" where it succeeds or raises a LorabakeError in time, or else what it did.

    A warning is an error here: nothing of another library's may stand before the one clear message.
    """
    began = time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            call()
    except LorabakeError as error:
        text = str(error)
        if not text.strip() or len(text) > 20_000:
            return f"a message of {len(text)} letters"
    except Exception as error:  # what must not be
        return f"{type(error).__name__}: {str(error)[:200]}"
    took = time.process_time() - began
    return f"took {took:.1f} s" if took > seconds else ""


def open_files() -> int:
    """Count this process's open descriptors, where the system tells."""
    folder = Path("/proc/self/fd")
    return len(os.listdir(folder)) if folder.is_dir() else 0
