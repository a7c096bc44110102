"""One file a weight format. A new file here is found by itself: it lists its codecs in `CODECS`."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from lorabake.codecs.codec import Codec, Stored
from lorabake.codecs.plain import plain
from lorabake.tensors.dtypes import DTYPES
from lorabake.tensors.header import TensorInfo


@cache
def codecs() -> tuple[type[Codec], ...]:
    """List every codec, by file name; the order carries no meaning, since no two recognise the same weight."""
    modules = [
        importlib.import_module(f"{__name__}.{info.name}")
        for info in sorted(pkgutil.iter_modules(__path__), key=lambda info: info.name)
    ]
    return tuple(codec for module in modules for codec in getattr(module, "CODECS", ()))


def alone(info: TensorInfo) -> Stored:
    """Describe a tensor that is a weight by itself: in a format that its dtype tells, or else a plain one."""
    if info.dtype in DTYPES:
        return plain(info)
    found = (stored for codec in codecs() if (stored := codec.recognise_alone(info)) is not None)
    return next(found, None) or plain(info)
