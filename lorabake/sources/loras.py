"""Open the LoRAs of a recipe, with tensors sorted by module, in the base's names and row order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from operator import le
from pathlib import Path

from lorabake.adapters import peft_fields, shared, suffixes
from lorabake.codecs.codec import Stored
from lorabake.errors import MatchError
from lorabake.keymap.adapter_config import from_metadata, read_config
from lorabake.keymap.expansion import KeyMap
from lorabake.keymap.names import PEFT_ROOT
from lorabake.keymap.peft import PeftConfig
from lorabake.keymap.slots import LoraTensors, sort_tensors
from lorabake.keymap.spelling import Spellings
from lorabake.keymap.view import padded
from lorabake.recipe import Lora
from lorabake.sources.evidence import TensorEvidence
from lorabake.sources.translation import translate
from lorabake.tensors.checkpoint import Checkpoint, open_lora
from lorabake.tensors.dtypes import DTYPES, is_output
from lorabake.tensors.emptiness import check_lora
from lorabake.tensors.values import read_shape
from lorabake.visible import short_repr


@dataclass(frozen=True, slots=True)
class LoraSource:
    """Hold one LoRA of the recipe: its file, its tensors by module, and its configuration.

    `evidence` is what was read from its tensors.
    """

    __repr__ = short_repr

    entry: Lora
    checkpoint: Checkpoint
    tensors: LoraTensors
    config: PeftConfig | None
    component_configs: Mapping[str, PeftConfig]
    evidence: TensorEvidence = field(default_factory=TensorEvidence)

    @property
    def name(self) -> str:
        """Return the LoRA's path as the recipe writes it."""
        return self.entry.path

    def config_of(self, module: str) -> tuple[PeftConfig | None, str]:
        """Return the configuration that applies to a module, and the module's path in that configuration."""
        whole = self.config or self.component_configs.get("")
        if whole is not None:
            return whole, module.removeprefix(PEFT_ROOT)
        component, _, path = module.partition(".")
        return self.component_configs.get(component), path


def open_source(entry: Lora, path: Path) -> LoraSource:
    """Open the LoRA that a recipe's entry names, at its path."""
    checkpoint, config = open_lora(path)
    check_lora(entry.path, checkpoint.tensors)
    where = str(checkpoint.path)
    return LoraSource(
        entry=entry,
        checkpoint=checkpoint,
        tensors=sort_tensors(checkpoint.tensors.values(), suffixes(), shared()),
        config=None if config is None else read_config(config, f"{where}: adapter_config.json", peft_fields()),
        component_configs=from_metadata(checkpoint.metadata, where, peft_fields()),
    )


def translated(
    key_map: KeyMap, loras: Iterable[LoraSource], config: Mapping[str, object]
) -> tuple[KeyMap, tuple[LoraSource, ...]]:
    """Put other libraries' LoRAs into transformers' row order, and add their names to the base's modules."""
    translated: list[LoraSource] = []
    for lora in loras:
        translation = translate(lora.name, lora.checkpoint, lora.tensors, lora.config, key_map, config)
        try:
            key_map = key_map.with_modules(translation.modules) if translation.modules else key_map
        except ValueError as error:
            raise MatchError(f"LoRA {lora.name!r}: finds {error} in other rows than a LoRA before it") from None
        translated.append(replace(lora, tensors=translation.tensors, config=translation.config))
    return key_map, tuple(translated)


def grown(key_map: KeyMap, tensors: Mapping[str, Stored], loras: tuple[LoraSource, ...]) -> dict[str, Stored]:
    """Find the weights that LoRAs widen: by ComfyUI's `reshape_weight`, or `img_in` in Flux's control LoRAs."""
    wider: dict[str, Stored] = {}
    spelled: Spellings | None = None
    for lora in loras:
        is_control = any("norm_scale" in module.slots for module in lora.tensors.modules.values())
        for module in lora.tensors.modules.values() if lora.entry.strength != 0 else ():
            if "reshape_weight" in module.slots:
                shape = read_shape(module.slots["reshape_weight"].first)
            elif is_control and module.name.endswith("img_in") and module.slots.keys() >= {"up", "down"}:
                shape = (module.shapes["up"][0], *module.shapes["down"][1:])
            else:
                continue
            spelled = spelled if spelled is not None else Spellings(key_map)
            for target in spelled.get(module.name, ()):
                view = target.views.get("weight")
                weight = tensors.get(view.keys[0]) if view else None
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
                if wider.setdefault(weight.key, padded(weight, shape)).shape != shape:
                    raise MatchError(f"LoRA {lora.name!r}: makes {weight.key} grow otherwise than a LoRA before it")
    return wider
