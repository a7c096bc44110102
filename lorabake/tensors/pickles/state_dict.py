"""Find the tensors in an unpickled value, and name them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, cast

from lorabake.errors import FileError
from lorabake.tensors.header import EMBEDDING, MAX_HEADER
from lorabake.tensors.pickles.machine import Inert
from lorabake.tensors.pickles.names import Foreign, Tensor
from lorabake.tensors.sorts import sort_of_names
from lorabake.visible import some

# What PyTorch Lightning stores in addition to the weights.
_TRAINING_STATE = {
    "callbacks",
    "hparams_name",
    "hyper_parameters",
    "loops",
    "lr_schedulers",
    "optimizer_states",
}

_MAX_NAME: Final = 1 << 16
"""Most letters of a tensor's name, including the names of the dicts around it."""


def tensors_by_name(path: Path, loaded: object) -> dict[str, Tensor]:
    """Return the tensors of an unpickled value; raise FileError for one that holds anything else."""
    return {key: _checked(path, key, tensor) for key, tensor in dict(_named(path, loaded)).items()}


def _named(path: Path, loaded: object) -> Iterator[tuple[str, object]]:
    if isinstance(loaded, list):
        return _pairs(path, loaded)
    if not isinstance(loaded, dict):
        raise FileError(f"{path}: holds a {_kind(loaded)}, not tensors by name")
    if isinstance(loaded.get("state_dict"), dict):
        loaded = _unwrapped(path, loaded)
    return iter(_flattened(path, loaded).items())


def _kind(value: object) -> str:
    """Name what a value is, in torch's words."""
    if isinstance(value, Tensor | Foreign):
        return "Tensor"
    return value.kind if isinstance(value, Inert) else type(value).__name__.lstrip("_")


def _pairs(path: Path, loaded: list[object]) -> Iterator[tuple[str, object]]:
    """Name the matrices of a bare list: up and down of one module after the other (cloneofsimo/lora 0.0.x)."""
    tensors = [item for item in loaded if isinstance(item, Tensor) and len(item.shape) == 2]
    if len(tensors) < len(loaded) or len(tensors) % 2:
        raise FileError(f"{path}: holds a list, but not of pairs of LoRA matrices")
    component = "text_encoder" if path.name.endswith(".text_encoder.pt") else "unet"
    for position, tensor in enumerate(tensors):
        yield f"{component}:{position // 2}:{'down' if position % 2 else 'up'}", tensor


def metadata_of(path: Path, keys: Iterable[str]) -> dict[str, str]:
    """Return the metadata that cloneofsimo's SafeTensors files have for learned embeddings; its pickles lack them."""
    return dict.fromkeys(keys, EMBEDDING) if path.name.endswith(".ti.pt") else {}


def _unwrapped(path: Path, wrapper: dict[object, object]) -> dict[object, object]:
    """Take the weights out of a training checkpoint; raise FileError if it may hold other weights."""
    rest = [
        str(name)
        for name, value in wrapper.items()
        if name != "state_dict"
        and name not in _TRAINING_STATE
        and not isinstance(value, bool | int | float | str | None)
    ]
    if rest:
        raise FileError(f"{path}: beside state_dict there is more than training state: {some(rest)}")
    return cast(dict[object, object], wrapper["state_dict"])


def _flattened(path: Path, tree: dict[object, object]) -> dict[str, object]:
    """Join the names of nested dicts with dots; a dict may occur only once, so that no pickle grows endlessly."""
    tensors: dict[str, object] = {}
    strangers: list[str] = []
    seen: set[int] = set()
    waiting: list[tuple[str, object]] = [("", tree)]
    room = MAX_HEADER
    while waiting:
        prefix, value = waiting.pop()
        room -= len(prefix) * (len(value) if isinstance(value, dict) else 1)
        if len(prefix) > _MAX_NAME or room < 0:
            raise FileError(
                f"{path}: has names of more than {_MAX_NAME} letters, or of more than {MAX_HEADER} together"
            )
        if isinstance(value, Tensor | Foreign):
            if prefix in tensors:
                raise FileError(f"{path}: two tensors would have the key {prefix!r:.100}")
            tensors[prefix] = value
        elif isinstance(value, dict) and id(value) not in seen and all(isinstance(name, str) for name in value):
            seen.add(id(value))
            dot = "." if prefix else ""
            waiting += [(f"{prefix}{dot}{name}", item) for name, item in reversed(value.items())]
        else:
            strangers.append(f"{prefix} ({_kind(value)})")
    if strangers:
        names = [*tensors, *(name.rpartition(" (")[0] for name in strangers), *map(str, tree)]
        if (sort := sort_of_names(filter(None, names))) is not None:
            raise FileError(f"{path}: is {sort.title}, and no checkpoint or LoRA", sort.advice)
        raise FileError(f"{path}: holds more than tensors by name: {some(strangers)}")
    return tensors


def _checked(path: Path, key: str, tensor: object) -> Tensor:
    if isinstance(tensor, Foreign):
        raise FileError(f"{path}: {key!r:.100} cannot be stored in SafeTensors: {tensor.kind}")
    return cast(Tensor, tensor)
