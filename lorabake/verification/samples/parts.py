"""Gather what a diffusers pipeline is made of, wholly offline: configurations, weights, tokenizers, where they lie.

In: a plan. Out: a `Kit`, or a CannotDrawError that says what to give. Nothing here knows a family: the folder
`configs/<architecture>` does, as diffusers lays it out. Its `lorabake.json` adds what a configuration cannot say:

    sizes      what a header tells, by component: {"num_layers": "count transformer_blocks.{}.attn.to_q"}
    optional   components that the pipeline can do without
    arguments  what the pipeline is called with
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from inspect import signature
from math import isqrt
from pathlib import Path
from types import ModuleType
from typing import Any

from lorabake.errors import FileError, first_line
from lorabake.keymap.expansion import KeyMap
from lorabake.planning import Plan
from lorabake.reference.arrays import Files
from lorabake.tensors.checkpoint import open_checkpoint, optional_object
from lorabake.tensors.header import TensorInfo
from lorabake.tensors.reader import is_folder, is_there
from lorabake.verification.samples.foreign_code import NO_CODE, check_folder, without_kernels
from lorabake.verification.samples.networks import Config, as_torch, shipped, tokenizer

NOTES = "lorabake.json"
GIVE = "name a diffusers folder that has them in verify.config"


class CannotDrawError(Exception):
    """Say why nothing can be drawn with a base, and what would help."""


def check_words(tokenizer: Any, texts: Iterable[str], rows: int, encoder: str) -> None:
    """Raise CannotDrawError where a tokenizer makes numbers of texts that an embedding of so many rows has not."""
    largest = max((number for text in texts for number in tokenizer(text).input_ids), default=0)
    if largest >= rows:
        raise CannotDrawError(
            f"the tokenizer has {len(tokenizer):,} tokens, and {encoder} knows {rows:,}: it is another model's; "
            "name the folder of its own in verify.tokenizers"
        )


@dataclass(slots=True)
class Part:
    """Describe one network of a pipeline: its class, its configuration, and the tensors that fill it.

    `keys` pairs the keys of `infos` with the names that the layout has for them; `infos` is None where the tensors
    are those of the base, or of the checkpoint at hand. Without keys there are no weights. `by_tables` tells why
    lorabake's tables named them, if they did.
    """

    name: str
    maker: Any
    config: Config
    keys: Mapping[str, str]
    infos: Mapping[str, TensorInfo] | None = None
    by_tables: str = ""

    @property
    def is_encoder(self) -> bool:
        """Tell whether it reads prompts."""
        return self.name.startswith("text_encoder")

    @property
    def is_decoder(self) -> bool:
        """Tell whether it turns latents into what is seen."""
        return hasattr(self.maker, "decode") and not self.is_encoder


@dataclass(frozen=True, slots=True)
class Kit:
    """Hold a pipeline's class, its networks, all that is no network, and its settings."""

    pipeline: Any
    networks: Mapping[str, Part]
    others: Mapping[str, Any]
    settings: Config
    arguments: Config = field(default_factory=dict)


def index_of(plan: Plan) -> Config | None:
    """Return the model_index.json that speaks for a plan's base: the recipe's, the base's, the family's."""
    return _config(plan, "", "model_index.json")


def kit(plan: Plan) -> Kit:
    """Gather what the pipeline of a plan's base is made of; raise CannotDrawError where something is missing."""
    index = index_of(plan)
    if index is None:
        raise CannotDrawError(f"lorabake cannot sample {plan.sources.key_map.architecture.title}")
    pipeline = _pipeline(str(index["_class_name"]))
    notes = notes_of(plan.sources.key_map.architecture.name)
    networks, others = _gather(plan, index)
    optional = {*notes.get("optional", ()), *pipeline._optional_components}
    if missing := [name for name, made in (networks | others).items() if made is None and name not in optional]:
        raise CannotDrawError(f"{pipeline.__name__} takes more than the base has: {', '.join(missing)}; {GIVE}")
    for name in others:
        if networks.get(name.replace("tokenizer", "text_encoder"), name) is None:  # it would have nobody to read to
            others[name] = None
    wanted = signature(pipeline.__init__).parameters
    settings = {key: value for key, value in index.items() if key in wanted and not isinstance(value, list)}
    there = {name: part for name, part in networks.items() if part is not None}
    return Kit(pipeline, there, others, settings, dict(notes.get("arguments", {})))


def _pipeline(name: str) -> Any:
    import diffusers

    pipeline = getattr(diffusers, name, None)
    if not isinstance(pipeline, type):
        raise CannotDrawError(f"this diffusers has no {name}")
    if backends := getattr(pipeline, "_backends", None):  # diffusers' stand-in for what it cannot import
        raise CannotDrawError(f"{name} takes {', '.join(backends)}, which are not all installed")
    if not issubclass(pipeline, diffusers.DiffusionPipeline):
        raise CannotDrawError(f"{name} is no pipeline of diffusers")
    return pipeline


def _gather(plan: Plan, index: Config) -> tuple[dict[str, Part | None], dict[str, Any]]:
    """Find the networks that model_index.json names, and the rest; None for what is not there."""
    from torch.nn import Module

    networks: dict[str, Part | None] = {}
    others: dict[str, Any] = {}
    for name, said in index.items():
        if not isinstance(said, list) or said[:1] == [None]:
            continue
        if not name.isidentifier():  # it is a folder's name, too
            raise CannotDrawError(f"model_index.json has a component {name!r}, which cannot be a folder's name")
        if len(said) != 2 or not all(isinstance(word, str) for word in said):
            raise CannotDrawError(f"model_index.json says no library and class of {name}")
        maker = _class(*said)
        if issubclass(maker, Module):
            part = _part(plan, name, maker)
            # Without a VAE's weights, its configuration still says where latents end.
            networks[name] = part if part is not None and (part.keys or part.is_decoder) else None
        else:
            others[name] = _other(plan, name, maker)
    return networks, others


def notes_of(family: str) -> dict[str, Any]:
    """Read what lorabake adds to a family's configurations."""
    place = shipped().joinpath(family, NOTES)
    return json.loads(place.read_text(encoding="utf-8")) if place.is_file() else {}


def family_config(key_map: KeyMap, component: str, file: str) -> Config | None:
    """Return what ships for one part of a family's pipeline, with what the header tells put in."""
    family = key_map.architecture.name
    place = shipped().joinpath(family, component, file)
    if not place.is_file():
        return None
    config: Config = json.loads(place.read_text(encoding="utf-8"))
    said = notes_of(family).get("sizes", {}).get(component or "model_index", {})
    return config | sizes(said, key_map.modules, config)


# -- where things lie --------------------------------------------------------------------------------------


def _config(plan: Plan, component: str, file: str) -> Config | None:
    """Find a configuration: in the folder of the recipe, of the base, or of what ships with lorabake."""
    for folder in _folders(plan):
        if (said := optional_object(folder / component / file)) is not None:
            return dict(said)
    return family_config(plan.sources.key_map, component, file)


def _folders(plan: Plan) -> list[Path]:
    given, base = given_folder(plan), plan.sources.base
    return [*([given] if given is not None else []), *([base.path] if base.is_folder else [])]


def given_folder(plan: Plan) -> Path | None:
    """Return the folder that the recipe names in verify.config."""
    said = plan.sources.recipe.verify
    if said is None or said.config is None:
        return None
    folder = plan.sources.recipe.locate(said.config)
    if not folder.is_dir():
        raise FileError(f"{folder}: verify.config must be a diffusers folder: model_index.json, vae/config.json …")
    return folder


def _class(library: str, name: str) -> Any:
    """Find a class that model_index.json names; a library may be a folder of diffusers' pipelines.

    Raise CannotDrawError for all but classes of the two libraries' own: a model's folder may hold others, and what
    the libraries import can be reached by a name in them, too.
    """
    import diffusers

    if library in ("diffusers", "transformers"):
        module: Any = import_module(library)
    elif isinstance(getattr(diffusers.pipelines, library, None), ModuleType):
        module = getattr(diffusers.pipelines, library)
    else:
        raise CannotDrawError(f"the pipeline takes {name} of {library}, which is neither diffusers nor transformers")
    found = getattr(module, name, None)
    if not isinstance(found, type) or not found.__module__.startswith(("diffusers.", "transformers.")):
        raise CannotDrawError(f"this {library} has no {name}")
    return found


def _part(plan: Plan, name: str, maker: Any) -> Part | None:
    """Find one network's configuration and weights; None without a configuration."""
    config = _config(plan, name, "config.json")
    if config is None:
        return None
    key_map, base = plan.sources.key_map, plan.sources.base
    if name in key_map.placed:
        _, prefix = key_map.placed[name]
        keys = {key: key.removeprefix(prefix) for key, owner in key_map.owner.items() if owner == name}
        return Part(name, maker, config, keys)
    start = f"{name}/"
    if keys := {key: key.removeprefix(start) for key in base.tensors if key.startswith(start)}:
        return Part(name, maker, config, keys)
    given = given_folder(plan)
    if given is not None and is_there(given / name) and is_folder(given / name):
        try:
            infos = open_checkpoint(given / name).tensors
        except FileError as error:
            if "no weights" not in str(error):
                raise
            infos = {}
        return Part(name, maker, config, {key: key for key in infos}, infos)
    return Part(name, maker, config, {})


def given_tokenizer(plan: Plan, name: str, maker: str) -> Any:
    """Read the tokenizer in the folder of verify.tokenizers by a class of transformers; None where none is named."""
    import transformers

    said = plan.sources.recipe.verify
    if said is None or said.tokenizers is None:
        return None
    folder = plan.sources.recipe.locate(said.tokenizers)
    if not folder.is_dir():
        raise FileError(f"{folder}: verify.tokenizers must be a folder with a tokenizer")
    return _read_folder(getattr(transformers, maker), folder / name if (folder / name).is_dir() else folder)


def _read_folder(maker: Any, folder: Path) -> Any:
    check_folder(folder)
    try:
        return maker.from_pretrained(folder, **NO_CODE)
    except Exception as error:  # whatever a library says of files that it cannot read
        raise CannotDrawError(f"{folder}: no {maker.__name__} can be read: {first_line(error)}") from error


def _other(plan: Plan, name: str, maker: Any) -> Any:
    """Make a scheduler, a tokenizer, a processor or a guider of what lies in a folder; None where none has it."""
    from diffusers.configuration_utils import ConfigMixin
    from transformers.utils.hub import PushToHubMixin

    said = plan.sources.recipe.verify
    if issubclass(maker, ConfigMixin):
        config = _config(plan, name, str(maker.config_name))
        return None if config is None else _configured(maker, config)
    folders = [place / name for place in _folders(plan)]
    if said is not None and said.tokenizers is not None:
        folder = plan.sources.recipe.locate(said.tokenizers)
        folders[:0] = [folder / name, folder]
    for folder in folders:
        if is_there(folder) and is_folder(folder) and any(not is_folder(each) for each in folder.iterdir()):
            if not issubclass(maker, PushToHubMixin):  # as all tokenizers and processors are
                raise CannotDrawError(f"{name} is a {maker.__name__}: neither a network nor what prepares its input")
            return _read_folder(maker, folder)
    if maker.__name__.startswith("CLIPTokenizer"):
        return tokenizer("!" if name.endswith("_2") else "<|endoftext|>")
    return None


def _configured(maker: Any, config: Config) -> Any:
    try:
        return maker.from_config(config)
    except Exception as error:  # whatever a library says of values that it cannot take
        raise CannotDrawError(f"no {maker.__name__} is made of its configuration: {first_line(error)}") from error


# -- what a header tells -----------------------------------------------------------------------------------


def sizes(said: Mapping[str, Any], modules: Mapping[str, Mapping[str, Any]], config: Mapping[str, Any]) -> Config:
    """Work out what a header tells, each value said in a phrase.

    A phrase is `count NAME{}`, `numbers NAME{}`, `rows NAME`, `columns NAME`, `root NAME` (of the second dimension)
    or `has NAME`, NAME being a module in any layout's words; or a number, or a field of the configuration. ` / `
    and ` * ` between phrases calculate, from left to right. A list of a phrase and two values chooses.
    """
    known = {name: module for own in modules.values() for name, module in own.items()}
    found: Config = {}
    for field_name, phrase in said.items():
        if isinstance(phrase, list):
            found[field_name] = phrase[1] if _value(phrase[0], known, {**config, **found}) else phrase[2]
        else:
            found[field_name] = _value(phrase, known, {**config, **found})
    return found


def _value(phrase: str, known: Mapping[str, Any], config: Mapping[str, Any]) -> Any:
    first, *rest = phrase.replace(" / ", " \0/ ").replace(" * ", " \0* ").split(" \0")
    value = _term(first.strip(), known, config)
    for each in rest:
        other = _term(each[2:].strip(), known, config)
        value = value // other if each[0] == "/" else value * other
    return value


def _term(term: str, known: Mapping[str, Any], config: Mapping[str, Any]) -> Any:
    what, _, name = term.partition(" ")
    if not name:
        return int(what) if what.isdigit() else config[what]
    if what in ("count", "numbers"):
        before, _, after = name.partition("{}")
        numbers = [key.removeprefix(before).removesuffix(after) for key in known if key.startswith(before)]
        there = sorted({int(each) for each in numbers if each.isdigit() and before + each + after in known})
        return len(there) if what == "count" else there
    if what == "has":
        return name in known
    if name not in known or "weight" not in known[name].views:
        raise CannotDrawError(f"the base has no {name}, which tells how large the network is")
    shape = known[name].views["weight"].shape
    match what:
        case "rows":
            return shape[0]
        case "columns":
            return shape[1]
        case "root":
            return isqrt(shape[1])
    raise ValueError(f"{term!r} says no size")


# -- building ----------------------------------------------------------------------------------------------


def hollow(part: Part, device: str) -> Any:
    """Build a network of zeros that takes no memory: one number stands for all of a tensor."""
    import torch

    network = _empty(part)
    for module in network.modules():
        for name, value in [*module.named_parameters(recurse=False)]:
            zeros = torch.zeros((), device=device, dtype=value.dtype).expand(value.shape)
            setattr(module, name, torch.nn.Parameter(zeros, requires_grad=False))
    return network.to(device)


def _empty(part: Part) -> Any:
    from accelerate import init_empty_weights

    with init_empty_weights():
        network = _from_config(part)
    return network.eval().requires_grad_(False)


def fill(part: Part, infos: Mapping[str, TensorInfo], key_map: KeyMap, files: Files) -> Any:
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
    network = _empty(part)
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
