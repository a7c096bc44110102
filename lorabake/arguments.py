"""Check what Python code passes in, so that a wrong argument is told where it is made, and not deep inside."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Sequence
from functools import wraps
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, cast

from lorabake.errors import ArgumentError
from lorabake.likeness import nearest
from lorabake.paths import expanded
from lorabake.visible import at_a_glance

AnyPath: TypeAlias = str | os.PathLike[str]

Wanted = TypeVar("Wanted")
Called = TypeVar("Called", bound=Callable[..., Any])

DEVICES = {
    "auto": "automatic default any",
    "cpu": "host",
    "cuda": "gpu nvidia amd rocm hip",
    "xpu": "intel arc",
    "mps": "metal apple mac",
}
"""Device that most people have -> what people call it otherwise."""


def well_called(example: str) -> Callable[[Called], Called]:
    """Turn calls of a function whose arguments do not fit its signature into ArgumentErrors that show an example."""

    def decorated(function: Called) -> Called:
        signature = inspect.signature(function)

        @wraps(function)
        def called(*arguments: object, **keywords: object) -> object:
            try:
                signature.bind(*arguments, **keywords)
            except TypeError as error:
                raise ArgumentError(f"{function.__name__}: {error}", f"Write {example}.") from None
            return function(*arguments, **keywords)

        return cast(Called, called)

    return decorated


def well_made(kind: type[Wanted]) -> type[Wanted]:
    """Turn wrong calls of a dataclass of options into ArgumentErrors with the nearest name."""
    make: Callable[..., None] = kind.__init__
    known = [name for name in inspect.signature(make).parameters if name != "self"]

    @wraps(make)
    def made(self: object, *arguments: object, **keywords: object) -> None:
        for unknown in keywords.keys() - known:
            near = nearest(unknown, known, cutoff=0.5)
            hint = f", did you mean {near!r}?" if near else ""
            raise ArgumentError(f"{kind.__name__} has no {unknown!r}{hint}", f"It has {', '.join(known)}.")
        if len(arguments) > len(known) or not keywords.keys().isdisjoint(known[: len(arguments)]):
            raise ArgumentError(
                f"{kind.__name__}: too many arguments", f"Write them with their names: {kind.__name__}({known[0]}=…)."
            )
        make(self, *arguments, **keywords)

    kind.__init__ = made  # type: ignore[method-assign]
    return kind


def path_of(value: object, name: str) -> Path:
    """Take a path, as text or as a path object."""
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(path, str):
        raise _wrong(name, "a path, as text or as a pathlib.Path", value)
    if not path.strip() or "\0" in path:
        raise _wrong(name, "the path of a file or a folder", value)
    return Path(expanded(path))


def paths_of(value: object, name: str) -> tuple[Path, ...]:
    """Take a path, or several in a list or a tuple."""
    values = value if isinstance(value, (list, tuple)) else (value,)
    return tuple(path_of(item, name) for item in values)


def whole(value: object, name: str, least: int) -> int:
    """Take a whole number from `least` on, NumPy's too."""
    if isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least:
        return int(value)
    raise _wrong(name, f"a whole number, {least} or more", value)


def number(value: object, name: str, least: float = -math.inf) -> float:
    """Take a finite number from `least` on, NumPy's too."""
    if isinstance(value, Real) and not isinstance(value, bool):
        try:
            exact = float(value)
        except OverflowError:  # a very large whole number
            exact = math.inf
        if math.isfinite(exact) and exact >= least:
            return exact
    raise _wrong(name, "a finite number" if least == -math.inf else f"a finite number, {least:g} or more", value)


def text(value: object, name: str) -> str:
    """Take one text, which may be empty."""
    if isinstance(value, str):
        return value
    raise _wrong(name, "a text", value)


def texts(value: object, name: str) -> tuple[str, ...]:
    """Take texts in a list or a tuple; one text alone counts as a list of one."""
    values = (value,) if isinstance(value, str) else value
    if isinstance(values, (list, tuple)) and values and all(isinstance(text, str) for text in values):
        return tuple(values)
    raise _wrong(name, "a list of texts", value)


def chosen(value: object, name: str, known: Sequence[str]) -> tuple[str, ...]:
    """Take some of the known names."""
    names = texts(value, name)
    for unknown in (text for text in names if text not in known):
        near = nearest(unknown, known, cutoff=0.5)
        raise ArgumentError(
            f"{name}: there is no {at_a_glance(unknown)}{f', did you mean {near!r}?' if near else ''}",
            f"Choose from {', '.join(known)}.",
        )
    return names


def numbers(value: object, name: str) -> tuple[float, ...]:
    """Take finite numbers in a list, a tuple, or another collection of numbers."""
    values = value.tolist() if hasattr(value, "tolist") else value  # NumPy's, torch's and pandas' collections have it
    if isinstance(values, (list, tuple, range)):
        return tuple(number(item, f"each of {name}") for item in values)
    raise _wrong(name, "a list of numbers", value)


def rising(value: object, name: str) -> tuple[float, ...]:
    """Take finite numbers, each once, in rising order."""
    return tuple(sorted({*numbers(value, name)}))


def size(value: object, name: str) -> tuple[int, int]:
    """Take the size of a picture: one whole number, or width and height."""
    sides = tuple(value) if isinstance(value, (list, tuple)) else (value, value)
    if len(sides) != 2:
        raise _wrong(name, "a side in pixels, or [width, height]", value)
    width, height = (whole(side, name, 1) for side in sides)
    return width, height


def device_name(value: object, name: str) -> str | None:
    """Take a device's name, or torch's own object for one."""
    if value is None or (isinstance(value, str) and not value):
        return None
    if isinstance(value, str):
        _check_device(value)
        return str(value)
    if type(value).__module__ == "torch" and type(value).__name__ == "device":
        return str(value)
    raise _wrong(name, "the name of a device, such as 'cpu' or 'cuda:1'", value)


def _check_device(device: str) -> None:
    """Raise ArgumentError for a name that no device has; whether this machine has it is seen when it computes."""
    kind, colon, number = device.partition(":")
    if kind in DEVICES and (not colon or number.isdecimal()):
        return
    try:
        import torch

        torch.device(device)  # knows the names of rarer ones, and of those that its plugins bring
    except RuntimeError:
        near = next((known for known, words in DEVICES.items() if kind.lower() in {known, *words.split()}), None)
        near = near or nearest(kind.lower(), [*DEVICES], cutoff=0.7)
        hint = f", did you mean {near!r}?" if near else ""
        raise ArgumentError(
            f"there is no device {at_a_glance(device)}{hint}",
            f"Give one of {', '.join(DEVICES)}; cuda:1 is the second GPU.",
        ) from None


def yes_or_no(value: object, name: str) -> bool:
    """Take True or False."""
    if isinstance(value, bool):
        return value
    raise _wrong(name, "True or False", value)


def called(value: Wanted, name: str, example: str) -> Wanted:
    """Take something that can be called."""
    if callable(value):
        return value
    raise _wrong(name, f"a function, such as {example}", value)


def instance(value: object, kind: type[Wanted], name: str, example: str) -> Wanted:
    """Take an object of a class."""
    if isinstance(value, kind):
        return value
    raise _wrong(name, example, value)


def _wrong(name: str, wanted: str, value: object) -> ArgumentError:
    given = "nothing" if value is None else f"{at_a_glance(value)} ({type(value).__name__})"
    return ArgumentError(f"{name} must be {wanted}, not {given}")
