"""Make anew what files of a maker have beside their networks, and a diffusers folder says in its scheduler.

The noise schedule is CompVis' LDM's `register_schedule`, in float64, rounded once to float32.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import log, sqrt
from operator import mul

from lorabake.configs import V_PRED, VELOCITY, ZERO_SNR

Floats = Sequence[float]


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """Hold a small tensor that is of no tensor of the base."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes


@dataclass(frozen=True, slots=True)
class Schedule:
    """Hold how much noise each step of the training adds, `betas`, and what is left of the picture after it."""

    betas: Floats
    left: Floats

    @property
    def before(self) -> Floats:
        """Say what was left of the picture before each step."""
        return [1.0, *self.left[:-1]]

    @property
    def variances(self) -> list[float]:
        """Say by how much the picture before a step may vary, given the one after it."""
        triples = zip(self.betas, self.left, self.before, strict=True)
        return [beta * (1 - before) / (1 - left) for beta, left, before in triples]


BUFFERS: Mapping[str, Callable[[Schedule], Floats]] = {
    "betas": lambda made: made.betas,
    "alphas_cumprod": lambda made: made.left,
    "alphas_cumprod_prev": lambda made: made.before,
    "sqrt_alphas_cumprod": lambda made: [sqrt(left) for left in made.left],
    "sqrt_one_minus_alphas_cumprod": lambda made: [sqrt(1 - left) for left in made.left],
    "log_one_minus_alphas_cumprod": lambda made: [log(1 - left) for left in made.left],
    "sqrt_recip_alphas_cumprod": lambda made: [sqrt(1 / left) for left in made.left],
    "sqrt_recipm1_alphas_cumprod": lambda made: [sqrt(1 / left - 1) for left in made.left],
    "posterior_variance": lambda made: made.variances,
    "posterior_log_variance_clipped": lambda made: [log(max(each, 1e-20)) for each in made.variances],
    "posterior_mean_coef1": lambda made: [
        beta * sqrt(before) / (1 - left)
        for beta, left, before in zip(made.betas, made.left, made.before, strict=True)
    ],
    "posterior_mean_coef2": lambda made: [
        (1 - before) * sqrt(1 - beta) / (1 - left)
        for beta, left, before in zip(made.betas, made.left, made.before, strict=True)
    ],
}
"""Name of a buffer -> its values."""


def rebuilt(names: Sequence[str], said: Mapping[str, object]) -> Iterator[Rebuilt]:
    """Yield those of the named tensors that a scheduler's configuration speaks of; nothing where there is none.

    A schedule that the configuration takes from elsewhere, or bends, is not made anew.
    """
    schedule, markers = _schedule(said), _markers(said)
    for name in names:
        if name in BUFFERS and schedule is not None:
            values = BUFFERS[name](schedule)
            yield Rebuilt(name, "F32", (len(values),), struct.pack(f"<{len(values)}f", *values))
        elif name in markers:
            yield Rebuilt(name, "F32", (0,), b"")


def _markers(said: Mapping[str, object]) -> tuple[str, ...]:
    """List the empty tensors by which programs know what a model predicts, and how its schedule ends."""
    if said.get("prediction_type") != VELOCITY:
        return ()
    return (V_PRED, ZERO_SNR) if said.get("rescale_betas_zero_snr") is True else (V_PRED,)


def _schedule(said: Mapping[str, object]) -> Schedule | None:
    count, first, last = (said.get(name) for name in ("num_train_timesteps", "beta_start", "beta_end"))
    if said.get("trained_betas") is not None or said.get("rescale_betas_zero_snr"):
        return None
    if said.get("beta_schedule") != "scaled_linear" or type(count) is not int or not 2 <= count <= 1 << 16:
        return None
    if not isinstance(first, float) or not isinstance(last, float) or not 0 < first < last < 1:
        return None
    start, stop, low = sqrt(first), sqrt(last), count // 2
    step = (stop - start) / (count - 1)
    roots = [start + step * at if at < low else stop - step * (count - 1 - at) for at in range(count)]
    betas = [root * root for root in roots]
    return Schedule(betas, [*accumulate((1 - beta for beta in betas), mul)])
