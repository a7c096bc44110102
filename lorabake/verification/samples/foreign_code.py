"""Find programs in a model's folder: lorabake runs none of them, and reports them.

transformers and diffusers can run Python files that lie beside a model's weights, where a configuration names them:
`auto_map` in config.json or the tokenizer's, `custom_generate/generate.py`, a pipeline or a component of a module of
the model's own in model_index.json. Whoever calls these libraries passes NO_CODE, and reads weights from SafeTensors
files or by lorabake's own reader, never from a pickle.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from lorabake.errors import FileError
from lorabake.tensors.checkpoint import WEIGHT_SUFFIXES, read_object
from lorabake.tensors.links import files_below
from lorabake.tensors.reader import is_there
from lorabake.tensors.small import MIB

NO_CODE = {"local_files_only": True, "trust_remote_code": False}
"""Arguments of every call by which transformers or diffusers read a folder."""

LARGEST = 256 * MIB
"""Most bytes of a file without weights; the largest tokenizers have less than a fifth of it."""

PROGRAMS = ("pipeline.py", "custom_generate/generate.py")
"""Files that the libraries would run without any configuration naming them, if they were allowed to."""


MOST_PARTS: Final = 10_000
"""Most layers, or experts of a layer, that a library is asked to build; known models have some hundred."""


def check_folder(folder: Path) -> None:
    """Raise FileError for what no library should read: pipes, devices, and files or models of excessive size."""
    for path in files_below(folder):
        if path.suffix.lower() not in WEIGHT_SUFFIXES and path.stat().st_size > LARGEST:
            raise FileError(f"{path}: larger than {LARGEST} bytes, so it is hardly a part of a tokenizer")
        if path.name == "config.json":
            for name, count in read_object(path).items():
                if name.endswith(("layer", "layers", "experts")) and isinstance(count, int) and count > MOST_PARTS:
                    raise FileError(f"{path}: {name} is {count}, and no model has so many")


def without_kernels(config: Any) -> Any:
    """Return a configuration of transformers without the attention that it names: a name may be that of a program."""
    config._attn_implementation = None
    return config


def carried(folder: Path) -> str:
    """Say how a folder asks for a program of its own to be run; return "" if it does not."""
    return ", ".join(dict.fromkeys(_requests(folder)))


def _requests(folder: Path) -> Iterator[str]:
    for path in files_below(folder):
        name = path.relative_to(folder).as_posix()
        if name in PROGRAMS:
            yield name
        if path.suffix == ".json" and path.name.endswith(("config.json", "model_index.json")):
            try:
                said = read_object(path)
            except FileError:
                continue
            yield from (f"{what} in {name}" for what in _named(said, path.parent))


def _named(said: Mapping[str, object], folder: Path) -> Iterator[str]:
    """Yield the fields of a configuration in `folder` that name a program."""
    if said.get("auto_map"):
        yield "auto_map"
    if isinstance(said.get("_class_name"), list):
        yield "_class_name"
    for name, value in said.items():
        module = value[0] if isinstance(value, list) and value else None
        if isinstance(module, str) and module.isidentifier() and is_there(folder / name / f"{module}.py"):
            yield name
