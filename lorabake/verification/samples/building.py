"""Build the networks of a pipeline: hollow ones that take no memory, and ones with weights, in float32."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lorabake.codecs.codec import Stored
from lorabake.errors import first_line
from lorabake.keymap.expansion import KeyMap
from lorabake.reference.arrays import Files
from lorabake.verification.samples.foreign_code import without_kernels
from lorabake.verification.samples.kit import Part
from lorabake.verification.samples.refusals import CannotDrawError
from lorabake.verification.samples.values import as_torch


def hollow(part: Part, device: str) -> Any:
    """Build a network of zeros that takes no memory: one number stands for all of a tensor."""
    import torch

    network = empty(part)
    for module in network.modules():
        for name, value in [*module.named_parameters(recurse=False)]:
            zeros = torch.zeros((), device=device, dtype=value.dtype).expand(value.shape)
            setattr(module, name, torch.nn.Parameter(zeros, requires_grad=False))
    return network.to(device)


def empty(part: Part) -> Any:
    """Build a network on no memory, which has names and shapes alone."""
    from accelerate import init_empty_weights

    with init_empty_weights():
        network = _from_config(part)
    return network.eval().requires_grad_(False)


def fill(part: Part, infos: Mapping[str, Stored], key_map: KeyMap, files: Files) -> Any:
    """Build a network in float32; diffusers' or transformers' own code names the tensors, where it can."""
    import torch

    source = infos if part.infos is None else part.infos
    state = {name: as_torch(source[key], files) for key, name in part.keys.items() if key in source}
    if not hasattr(part.maker, "from_config"):
        network, told = part.maker.from_pretrained(
            None, config=_text_config(part), state_dict=state, output_loading_info=True, dtype=torch.float32
        )
        if lost := [*told["missing_keys"], *told["mismatched_keys"]]:
            raise CannotDrawError(f"{part.name}: transformers finds no {lost[0]}")
    else:
        network = _filled(part, state, key_map)
    if lost := [name for name, each in network.named_parameters() if each.is_meta]:
        raise CannotDrawError(f"{part.name}: the base has nothing for {lost[0]}")
    return network.eval().requires_grad_(False)


def _filled(part: Part, state: dict[str, Any], key_map: KeyMap) -> Any:
    """Build a network of diffusers, whose tensors are in its own layout or in a maker's."""
    network = empty(part)
    due = network.state_dict().keys()
    if state.keys() != due:
        converted = _converted(part, dict(state))
        if converted is not None:
            return converted
        state = _renamed(part, state, due, key_map)
    try:
        network.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        told = " ".join(str(error).split())
        raise CannotDrawError(f"{part.name}: its configuration is for another network: {told[:200]}") from error
    return network


def _from_config(part: Part) -> Any:
    if hasattr(part.maker, "from_config"):
        return part.maker.from_config(part.config)
    return part.maker(_text_config(part))


def _text_config(part: Part) -> Any:
    """Read a configuration of transformers by the class that the network asks for."""
    with _written(part) as folder:
        config = part.maker.config_class.from_pretrained(folder / part.name, local_files_only=True)
    return without_kernels(config)


def _converted(part: Part, state: dict[str, Any]) -> Any:
    """Let diffusers convert a maker's own layout; None where it has no conversion, or one for other sizes only."""
    import torch
    from diffusers.loaders import single_file_model

    find: Any = single_file_model._get_single_file_loadable_mapping_class
    if find(part.maker) is None:
        part.by_tables = "diffusers has no conversion"
        return None
    try:
        with _written(part) as folder:
            return part.maker.from_single_file(
                state, config=str(folder), subfolder=part.name, local_files_only=True, torch_dtype=torch.float32
            )
    except (RuntimeError, ValueError, KeyError) as error:
        part.by_tables = f"diffusers' conversion fails: {first_line(error)}"
        return None


@contextmanager
def _written(part: Part) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="lorabake-") as name:
        (Path(name) / part.name).mkdir()
        (Path(name) / part.name / "config.json").write_text(json.dumps(part.config), encoding="utf-8")
        yield Path(name)


def _renamed(part: Part, state: Mapping[str, Any], due: Any, key_map: KeyMap) -> dict[str, Any]:
    """Name tensors as diffusers does, by lorabake's tables; what they do not speak of keeps its name."""
    _, prefix = key_map.placed[part.name]
    values = {prefix + name: value for name, value in state.items()}
    found = {name: value for name, value in state.items() if name in due}
    for name, module in key_map.modules_in(part.name, "diffusers").items():
        for parameter, view in module.views.items():
            place = next((each for each in (f"{name}.{parameter}", name) if each in due), None)
            if place is not None:
                found[place] = view.read({key: values[key] for key in view.keys}).contiguous()
    return found
