"""Step 2 of the flow: a `Recipe` in; `Sources` out: every input found, its header read, its family known.

Headers only: no tensor is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from operator import le
from pathlib import Path

from lorabake.adapters import peft_fields, shared, suffixes
from lorabake.architectures import architectures
from lorabake.components.experts import LAYOUTS
from lorabake.components.vae import VAE
from lorabake.errors import FileError, MatchError
from lorabake.keymap.expansion import KeyMap
from lorabake.keymap.experts import ExpertLayout
from lorabake.keymap.names import PEFT_ROOT
from lorabake.keymap.peft import PeftConfig, from_metadata
from lorabake.keymap.renaming import models_called
from lorabake.keymap.slots import LoraTensors, sort_tensors
from lorabake.keymap.spelling import Spellings
from lorabake.keymap.table import Architecture, find
from lorabake.recipe import Lora, Recipe, Source
from lorabake.sources.translation import config_of, transcribe, translate
from lorabake.storage.recognition import find_packing
from lorabake.tensors.checkpoint import Checkpoint, open_checkpoint, open_lora, optional_object
from lorabake.tensors.dtypes import DTYPES, is_output
from lorabake.tensors.emptiness import check_checkpoint, check_lora
from lorabake.tensors.header import TensorInfo
from lorabake.tensors.links import source_of
from lorabake.tensors.packing import PackedInfo, Packing, grow, read_shape

GENERIC = "generic"
VAE_ONLY = Architecture(name="vae", title="VAE", components=(VAE,))


@dataclass(frozen=True, slots=True)
class LoraSource:
    """Hold one LoRA of the recipe: its file, its tensors by module, and what its configuration says."""

    entry: Lora
    checkpoint: Checkpoint
    tensors: LoraTensors
    config: PeftConfig | None
    component_configs: Mapping[str, PeftConfig]

    @property
    def name(self) -> str:
        """Return the LoRA's path as the recipe writes it."""
        return self.entry.path

    def config_of(self, module: str) -> tuple[PeftConfig | None, str]:
        """Return the configuration that speaks of a module, and the module's path in its words."""
        whole = self.config or self.component_configs.get("")
        if whole is not None:
            return whole, module.removeprefix(PEFT_ROOT)
        component, _, path = module.partition(".")
        return self.component_configs.get(component), path


@dataclass(frozen=True, slots=True)
class Sources:
    """Hold every input of a recipe, opened and identified; `packing` says what of the base is no plain floats."""

    recipe: Recipe
    base: Checkpoint
    packing: Packing
    key_map: KeyMap
    loras: tuple[LoraSource, ...]
    vae: Checkpoint | None
    vae_map: KeyMap | None

    @property
    def inputs(self) -> tuple[tuple[Checkpoint, Source], ...]:
        """List every input, and what the recipe says of it."""
        found: list[tuple[Checkpoint, Source]] = [(self.base, self.recipe.base)]
        found += [(lora.checkpoint, lora.entry) for lora in self.loras]
        if self.vae is not None and self.recipe.vae is not None:
            found.append((self.vae, self.recipe.vae))
        return tuple(found)


def resolve(recipe: Recipe) -> Sources:
    """Open every input of the recipe; raise FileError for what is missing, damaged or of another format."""
    base = transcribe(open_checkpoint(recipe.locate(recipe.base.path), recipe.base.variant))
    check_checkpoint(base.path, base.tensors)
    for name in base.side_files:
        source_of(base.path, base.path / name)
    if base.is_folder and recipe.base.sha256:
        raise FileError(f"{base.path}: sha256 is for a file, and the base is a folder")
    vae = vae_map = None
    if recipe.vae is not None:
        vae = open_checkpoint(recipe.locate(recipe.vae.path))
        check_checkpoint(vae.path, vae.tensors)
        if find(VAE, vae.tensors) is None:
            raise FileError(f"{vae.path}: not a VAE: it has no encoder.down… tensors")
        if ways := find_packing(vae).titles:
            raise FileError(
                f"{vae.path}: {len(ways)} of its weights are stored as {ways[0]}",
                "Only a VAE of plain weights (float32, float16, bfloat16 or float8) can take another's place.",
            )
        vae_map = KeyMap.expand(VAE_ONLY, vae.tensors)
    config = model_config(base)
    packing = find_packing(base)
    tensors = packing.logical(base.tensors)
    models = models_of(config)
    experts = expert_layout(models)
    key_map = KeyMap.expand(identify(tensors), tensors, models, experts)
    loras = tuple(open_source(entry, recipe.locate(entry.path)) for entry in recipe.loras)
    if guessed := _guess_models(key_map, loras):
        key_map = KeyMap.expand(key_map.architecture, tensors, guessed, experts)
    if wider := grown(key_map, loras):
        packing = replace(packing, grown=wider)
        key_map = KeyMap.expand(key_map.architecture, tensors | wider, key_map.models, experts)
    key_map = key_map.with_single_experts(name for lora in loras for name in lora.tensors.modules)
    key_map, loras = _translated(key_map, loras, config)
    return Sources(recipe, base, packing, key_map, loras, vae, vae_map)


def open_source(entry: Lora, path: Path) -> LoraSource:
    """Open the LoRA that a recipe's entry names."""
    checkpoint, config = open_lora(path)
    check_lora(entry.path, checkpoint.tensors)
    where = str(checkpoint.path)
    return LoraSource(
        entry=entry,
        checkpoint=checkpoint,
        tensors=sort_tensors(checkpoint.tensors.values(), suffixes(), shared()),
        config=None if config is None else PeftConfig.read(config, f"{where}: adapter_config.json", peft_fields()),
        component_configs=from_metadata(checkpoint.metadata, where, peft_fields()),
    )


def _translated(
    key_map: KeyMap, loras: Iterable[LoraSource], config: Mapping[str, object]
) -> tuple[KeyMap, tuple[LoraSource, ...]]:
    """Put other libraries' LoRAs into transformers' order, and give the base's modules their names, too."""
    translated: list[LoraSource] = []
    for lora in loras:
        translation = translate(lora.name, lora.checkpoint, lora.tensors, lora.config, key_map, config)
        try:
            key_map = key_map.with_modules(translation.modules) if translation.modules else key_map
        except ValueError as error:
            raise MatchError(f"LoRA {lora.name!r}: finds {error} in other rows than a LoRA before it") from None
        translated.append(replace(lora, tensors=translation.tensors, config=translation.config))
    return key_map, tuple(translated)


def identify(tensors: Mapping[str, TensorInfo]) -> Architecture:
    """Return the one family that a checkpoint's tensors are of; the generic one if no table knows it."""
    known = [each for each in architectures() if each.components and each.name != GENERIC]
    fitting = [each for each in known if each.fits(tensors)]
    if len(fitting) > 1:
        names = " and ".join(each.title for each in fitting)
        raise MatchError(f"the base looks like {names}: its tensors do not tell them apart")
    return fitting[0] if fitting else next(each for each in architectures() if each.name == GENERIC)


def _guess_models(key_map: KeyMap, loras: Iterable[LoraSource]) -> tuple[str, ...]:
    """Tell by LoRAs' names what sort of model a base is of which config.json does not say so; empty if it does."""
    component = key_map.architecture.components[0]
    is_told = any(renaming.models and renaming.of(key_map.models) for renaming in component.renamings)
    if is_told or not component.renamings:
        return ()
    names = {name.removeprefix(PEFT_ROOT) for lora in loras for name in lora.tensors.modules}
    return models_called(key_map.stored(component), component.renamings, {f"{name}.weight" for name in names})


def grown(key_map: KeyMap, loras: tuple[LoraSource, ...]) -> dict[str, PackedInfo]:
    """Find the weights that LoRAs widen: by ComfyUI's `reshape_weight`, or as Flux's control LoRAs do `img_in`."""
    found: dict[str, PackedInfo] = {}
    spelled: Spellings | None = None
    for lora in loras:
        is_control = any("norm_scale" in module.slots for module in lora.tensors.modules.values())
        for module in lora.tensors.modules.values() if lora.entry.strength != 0 else ():
            if "reshape_weight" in module.slots:
                shape = read_shape(module.slots["reshape_weight"])
            elif is_control and module.name.endswith("img_in") and module.slots.keys() >= {"up", "down"}:
                shape = (module.shapes["up"][0], *module.shapes["down"][1:])
            else:
                continue
            spelled = spelled if spelled is not None else Spellings(key_map)
            for target in spelled.get(module.name, ()):
                view = target.views.get("weight")
                weight = key_map.tensors.get(view.keys[0]) if view else None
                if view is None or weight is None or weight.shape == shape:
                    continue
                smaller = len(shape) == len(weight.shape) and all(map(le, weight.shape, shape))
                is_plain = view.shape == weight.shape and not view.transpose and is_output(weight.dtype)
                if not smaller or not is_plain or DTYPES[weight.dtype].takes_scale:
                    sizes = f"from {list(weight.shape)} ({weight.dtype}) to {list(shape)}"
                    raise MatchError(
                        f"LoRA {lora.name!r}: {module.name} would make {weight.key} grow {sizes}",
                        "Only a plain weight of its own can grow, and none can shrink.",
                    )
                if found.setdefault(weight.key, grow(weight, shape)).shape != shape:
                    raise MatchError(f"LoRA {lora.name!r}: makes {weight.key} grow otherwise than a LoRA before it")
    return found


def expert_layout(models: Iterable[str]) -> ExpertLayout | None:
    """Return how a model of these sorts stacks its experts; None where none of them is known to, or they differ."""
    named = {*models}
    found = {layout for known, layout in LAYOUTS if named & {*known}}
    return found.pop() if len(found) == 1 else None


def model_config(base: Checkpoint) -> dict[str, object]:
    """Read the config.json of a model's folder, or what a GGUF file says in its place; empty where there is none."""
    if base.facts:
        return config_of(base.facts)
    config = (base.path if base.is_folder else base.path.parent) / "config.json"
    return optional_object(config) or {}


def models_of(config: Mapping[str, object]) -> tuple[str, ...]:
    """List the sorts of model that a config.json names: its own first, then those of its parts."""
    own = config.get("model_type")
    parts = [models_of(part) for part in config.values() if isinstance(part, dict)]
    found = [own] if isinstance(own, str) else []
    return tuple(dict.fromkeys([*found, *(name for part in parts for name in part)]))
