"""What a kind needs to know beside its tensors, from PEFT's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from lorabake.adapters.shapes import Shapes
from lorabake.adapters.slots import Slots
from lorabake.keymap.peft import is_finite

Settings = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Terms:
    """Say what holds for all rows of one module: its shape (out, in[, kernel…]), its scale, and its settings.

    `scale` is alpha/rank or what takes its place; `settings` what `Configured.settings` made of the configuration.
    """

    shape: tuple[int, ...]
    scale: float = 1.0
    settings: Settings = field(default_factory=dict)


class Configured(Slots):
    """Read settings from a configuration, and compare the tensors with it.

    `peft_type` is PEFT's name, `peft_fields` the fields of its configuration that the kind reads, that the shapes
    tell, or that have no effect on a merge.
    """

    peft_type: ClassVar[str] = ""
    peft_fields: ClassVar[frozenset[str]] = frozenset()

    def settings(self, config: Settings | None, module: str, shapes: Shapes) -> Settings:
        """Choose what the kind needs to know of PEFT's configuration, None where there is none.

        `module` is the module's name in the file. Raise ValueError, saying why, if it can't be baked as configured.
        """
        return {}

    def doubt(self, config: Settings | None, shapes: Shapes) -> str:
        """Say what an older PEFT did otherwise that may have trained it; empty if none did."""
        return ""

    def redraw(self, config: Settings | None, shapes: Shapes, largest: tuple[int, int]) -> Settings:
        """Choose what drawing again takes; `largest` are the most outputs and inputs of all weights of the file.

        Raise ValueError, saying why, if that cannot be known.
        """
        raise NotImplementedError

    def configured(self, config: Settings, shapes: Shapes, weight: tuple[int, ...]) -> Shapes:
        """Return the shapes that PEFT's configuration asks for; slots of which it says nothing are left out.

        `config` holds for the module: patterns of ranks and the like are in its numbers. The tensors fit the weight.
        """
        return {}

    def misconfigured(self, config: Settings, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Say where tensors that fit their weight have other shapes than the configuration asks for, if anywhere."""
        wanted = self.configured(config, shapes, weight)
        for slot in sorted(wanted.keys() & shapes.keys()):
            if shapes[slot] != wanted[slot]:
                return f"its {slot} is {shapes[slot]}, and adapter_config asks for {wanted[slot]}"
        return None

    def unsettled(self, settings: Settings, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Say why these settings of the kind's ask for other tensors, or None if they do not."""
        return None

    def drawn_shapes(self, shapes: Shapes, largest: tuple[int, int]) -> Shapes:
        """Return the shapes of the random matrices that all modules of a file share.

        `largest` are the most outputs and inputs of all their weights.
        """
        return {}


def whole_number(config: Settings, *names: str) -> int | None:
    """Return a whole number above 0 that a configuration says, below these names; None where it says none."""
    value: object = config
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value if type(value) is int and value > 0 else None


def stated(config: Settings | None, name: str) -> float:
    """Return a finite number that PEFT's configuration has to say; raise ValueError where it does not."""
    value = (config or {}).get(name)
    if not is_finite(value):
        raise ValueError(f"no adapter_config.json says {name}, a finite number")
    return value


def stated_seed(config: Settings | None, name: str) -> int:
    """Return a seed that PEFT's configuration has to say; raise ValueError where it says none that torch takes."""
    seed = (config or {}).get(name)
    if type(seed) is not int or not -(1 << 63) <= seed < 1 << 64:
        raise ValueError(f"no adapter_config.json says {name}, a whole number of 64 bits")
    return seed


def seed_of(config: Settings | None) -> int:
    """Return the seed of random matrices that a file left out; raise ValueError where that was not meant."""
    seed = stated_seed(config, "projection_prng_key")
    if (config or {}).get("save_projection", True):
        raise ValueError("adapter_config.json says save_projection, and its random matrices are not in the file")
    return seed
