"""Gather what a diffusers pipeline is made of, wholly offline: configurations, weights, tokenizers, where they lie.

In: a plan. Out: a `Kit`, or a CannotDrawError that says what to give. Nothing here knows a family: `lorabake/configs`
does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any

from lorabake.codecs.codec import Stored
from lorabake.codecs.plain import all_plain
from lorabake.configs import family_config, notes_of
from lorabake.configs.sizes import Config, SizeUnknownError
from lorabake.configs.tokenizers import padding_of
from lorabake.errors import FileError, first_line
from lorabake.keymap.expansion import KeyMap
from lorabake.planning import Plan
from lorabake.planning.beside import told_of
from lorabake.tensors.checkpoint import open_checkpoint, optional_object
from lorabake.tensors.reader import is_folder, is_there
from lorabake.verification.samples.refusals import CannotDrawError
from lorabake.verification.samples.tokenizers import clip_tokenizer, read_tokenizer

GIVE = "name a diffusers folder that has them in verify.config"


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
    infos: Mapping[str, Stored] | None = None
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


def gather(plan: Plan) -> Kit:
    """Gather what the pipeline of a plan's base is made of; raise CannotDrawError where something is missing."""
    index = index_of(plan)
    if index is None:
        raise CannotDrawError(f"lorabake cannot sample {plan.sources.key_map.architecture.title}")
    pipeline = pipeline_class(str(index["_class_name"]))
    notes = notes_of(plan.sources.key_map.architecture.name)
    networks, others = _components(plan, index)
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


def pipeline_class(name: str) -> Any:
    """Return a pipeline's class; raise CannotDrawError where diffusers has none of this name that can be used."""
    import diffusers

    pipeline = getattr(diffusers, name, None)
    if not isinstance(pipeline, type):
        raise CannotDrawError(f"this diffusers has no {name}")
    if backends := getattr(pipeline, "_backends", None):  # diffusers' stand-in for what it cannot import
        raise CannotDrawError(f"{name} takes {', '.join(backends)}, which are not all installed")
    if not issubclass(pipeline, diffusers.DiffusionPipeline):
        raise CannotDrawError(f"{name} is no pipeline of diffusers")
    return pipeline


def _components(plan: Plan, index: Config) -> tuple[dict[str, Part | None], dict[str, Any]]:
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
        maker = class_of(*said)
        if issubclass(maker, Module):
            part = _part(plan, name, maker)
            # Without a VAE's weights, its configuration still says where latents end.
            networks[name] = part if part is not None and (part.keys or part.is_decoder) else None
        else:
            others[name] = _other(plan, name, maker)
    return networks, others


# -- where things lie --------------------------------------------------------------------------------------


def _config(plan: Plan, component: str, file: str) -> Config | None:
    """Find a configuration: in the folder of the recipe, of the base, or of what ships with lorabake."""
    for folder in _folders(plan):
        if (said := optional_object(folder / component / file)) is not None:
            return dict(said)
    try:
        return family_config(told_of(plan.sources), component, file)
    except SizeUnknownError:
        if component and component not in plan.sources.key_map.placed:  # nothing of this network is there
            return None
        raise


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


def class_of(library: str, name: str) -> Any:
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
        return Part(name, maker, config, keys_of(key_map, name))
    start = f"{name}/"
    if keys := {key: key.removeprefix(start) for key in base.tensors if key.startswith(start)}:
        return Part(name, maker, config, keys)
    given = given_folder(plan)
    if given is not None and is_there(given / name) and is_folder(given / name):
        try:
            infos = all_plain(open_checkpoint(given / name).tensors)
        except FileError as error:
            if "no weights" not in str(error):
                raise
            infos = {}
        return Part(name, maker, config, {key: key for key in infos}, infos)
    return Part(name, maker, config, {})


def keys_of(key_map: KeyMap, component: str) -> dict[str, str]:
    """Pair the keys of a component's tensors with their names below it."""
    _, prefix = key_map.placed[component]
    return {key: key.removeprefix(prefix) for key, owner in key_map.owner.items() if owner == component}


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
            return read_tokenizer(maker, folder)
    if maker.__name__.startswith("CLIPTokenizer"):
        return clip_tokenizer(padding_of(plan.sources.key_map.architecture.name, name))
    return None


def _configured(maker: Any, config: Config) -> Any:
    try:
        return maker.from_config(config)
    except Exception as error:  # whatever a library says of values that it cannot take
        raise CannotDrawError(f"no {maker.__name__} is made of its configuration: {first_line(error)}") from error
