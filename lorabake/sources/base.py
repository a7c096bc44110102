"""Open a recipe's base, and the VAE that replaces the base's own, and map both by their families' tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from lorabake.errors import FileError
from lorabake.keymap.expansion import KeyMap
from lorabake.recipe import Recipe
from lorabake.sources.family import VAE_ONLY, expert_layout, guess_models, identify, models_of
from lorabake.sources.finding import find
from lorabake.sources.sorts import check_vae
from lorabake.sources.translation import Transcript, config_of, transcribe
from lorabake.storage.recognition import find_packing
from lorabake.storage.statements import Beside, read_beside
from lorabake.tensors.checkpoint import (
    SHARD,
    WEIGHT_SUFFIXES,
    Checkpoint,
    open_checkpoint,
    optional_object,
    read_object,
)
from lorabake.tensors.emptiness import check_checkpoint
from lorabake.tensors.header import Described
from lorabake.tensors.links import source_of

SCHEDULE = Path("scheduler", "scheduler_config.json")


def open_base(recipe: Recipe) -> Transcript:
    """Open the recipe's base; a language model in GGUF gets transformers' names."""
    path = find(recipe, recipe.base)
    shard = SHARD.fullmatch(path.name) if path.suffix in WEIGHT_SUFFIXES else None
    if shard and int(shard[2]) > 1:
        raise FileError(
            f"{path}: is file {int(shard[1])} of {int(shard[2])} of a model, and the base must be the whole model",
            f"Name the folder, or the index of its files: {path.parent}",
        )
    transcript = transcribe(open_checkpoint(path, recipe.base.variant))
    base = transcript.checkpoint
    check_checkpoint(base.path, base.tensors)
    for name in base.side_files:
        source_of(base.path, base.path / name)
    return transcript


def open_vae(recipe: Recipe) -> Checkpoint | None:
    """Open the recipe's VAE, if it names one."""
    if recipe.vae is None:
        return None
    path = find(recipe, recipe.vae)
    vae = open_checkpoint(path)
    check_checkpoint(vae.path, vae.tensors)
    check_vae(vae)
    if ways := find_packing(vae, read_beside(vae)).titles:
        raise FileError(
            f"{vae.path}: {len(ways)} of its weights are stored as {ways[0]}",
            "Only a VAE of plain weights (float32, float16, bfloat16 or float8) can take another's place.",
        )
    return vae


def mapped_vae(vae: Checkpoint) -> KeyMap:
    """List the modules of a VAE that replaces the base's own."""
    return KeyMap.expand(VAE_ONLY, vae.tensors)


def model_config(base: Checkpoint, beside: Beside) -> Mapping[str, object]:
    """Return a model's config.json, or the same facts from a GGUF file; empty if there are none."""
    return config_of(base.facts) if base.facts else beside.get("config.json", {})


def configs_given(recipe: Recipe, base: Checkpoint, components: Iterable[str]) -> dict[str, Mapping[str, object]]:
    """Read the configurations that verify.config gives for a folder made of a single file, by their paths."""
    said = recipe.verify
    if base.is_folder or recipe.output.form != "diffusers" or said is None or said.config is None:
        return {}
    folder = recipe.locate(said.config)
    names = (SCHEDULE.as_posix(), *(f"{component}/config.json" for component in components))
    read = {name: optional_object(folder / name) for name in names}
    return {name: found for name, found in read.items() if found is not None}


def schedule_of(base: Checkpoint) -> Mapping[str, object]:
    """Return the configuration of a diffusers folder's scheduler; empty where there is none."""
    return read_object(base.path / SCHEDULE) if base.is_folder and SCHEDULE in base.side_files else {}


def mapped(tensors: Mapping[str, Described], config: Mapping[str, object]) -> KeyMap:
    """List a base's modules by its family's table and by the model type in its config.json."""
    models = models_of(config)
    return KeyMap.expand(identify(tensors), tensors, models, expert_layout(models))


def mapped_by_names(key_map: KeyMap, names: Iterable[str]) -> KeyMap:
    """Use the module names in LoRAs to find a base's model type, if its config.json does not state it."""
    models = guess_models(key_map, names)
    if not models:
        return key_map
    return KeyMap.expand(key_map.architecture, key_map.tensors, models, key_map.experts)


def mapped_with(key_map: KeyMap, wider: Mapping[str, Described]) -> KeyMap:
    """List a base's modules with the shapes that they get when LoRAs widen some weights."""
    if not wider:
        return key_map
    tensors = {**key_map.tensors, **wider}
    return KeyMap.expand(key_map.architecture, tensors, key_map.models, key_map.experts)
