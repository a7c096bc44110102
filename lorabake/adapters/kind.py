"""What an adapter kind is: its slots, the shapes it asks for, and the change it makes to a weight.

Strength, dtype, device, slicing and accumulation are the executor's business. A weight is seen as a matrix
(out, columns), columns = inputs × kernel; tensors arrive in the compute dtype on the compute device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from math import prod
from typing import TYPE_CHECKING, ClassVar, Literal

from lorabake.keymap.peft import is_finite

if TYPE_CHECKING:
    import torch

PROGRAMS = {
    "comfyui": "ComfyUI",
    "forge": "Forge",
    "a1111": "AUTOMATIC1111",
    "peft": "PEFT",
    "lycoris": "LyCORIS",
}
"""The programs whose reading of a LoRA a recipe may ask for (`semantics`), and what they are called."""

EVERY = frozenset(PROGRAMS)

OF_KOHYA = EVERY - {"peft"}
"""Those that read the files of kohya's scripts and of LyCORIS."""

SCALE_OF_ALPHA_0 = {"comfyui": 0.0, "forge": 0.0, "a1111": 0.0, "lycoris": 1.0}
"""What takes the place of alpha/rank where alpha is 0: LyCORIS puts the rank for alpha, the others divide 0 by it."""

SKIPPING_STRENGTH_0 = frozenset({"comfyui"})
"""Those that do not load a LoRA whose strengths are all 0; the others load it, and apply their laws."""

MAGNITUDES = frozenset({"magnitude", "dora_scale"})
"""The slots of DoRA's lengths, which may sit on whatever kind changes a weight."""

Tensors = Mapping[str, "torch.Tensor"]
Shapes = Mapping[str, tuple[int, ...]]
Settings = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Terms:
    """Say what holds for all rows of one module: its shape (out, in[, kernel…]), its scale, and its settings.

    `scale` is alpha/rank or what takes its place; `settings` what `Kind.settings` made of the file's configuration.
    """

    shape: tuple[int, ...]
    scale: float = 1.0
    settings: Settings = field(default_factory=dict)


class Kind:
    """Define one adapter algorithm.

    `required` and `optional` name its slots, `suffixes` how files spell them: a pattern at a key's end, and the
    slot that it fills; of `markers` the presence counts, not the value, `numbers` are single ones, of any dtype, and
    `integers` hold whole numbers. `shared` are tensors that modules of a file have in common: the pattern of a whole
    key, the slot that it fills, and the slot by which a module shows that it needs it; `drawn` are those of random
    values, which are drawn again where the file lacks them. With `by_place` slots do not tell the kind, but where the
    module lies; with `on_embedding` it is for embeddings, which no model turns. `parameter` is what it changes in a
    module (`weight`, `bias`); with `where_present` it may lack in the base. With `as_stored` its tensors are called
    as a checkpoint's own are. A kind overrides `fault` and one of

    - `factors`, with `low_rank`: a product that is added,
    - `delta`: anything else that is added, or that depends on the weight,
    - `value`, with `replaces`: what the parameter becomes, whatever it was; with `underlies` another may add to that.

    Those that do not replace a weight may have DoRA on top; `length_axis` says of what a `magnitude` has the lengths.
    `may_be_empty` are slots that need have no values. `reads_weight` is true where the delta depends on the weight,
    and `by_rows` false where rows of it depend on other rows of the weight. `alpha_is_scale` is false where alpha
    means something else: then it comes with the tensors. `peft_type` is PEFT's name, `peft_fields` the fields of its
    configuration that it reads, that the shapes tell, or that have no effect on a merge. Of `PROGRAMS`, `programs`
    read the kind, `dora_in` with DoRA on top, and `whole_in` apply it whole at any strength.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    required: ClassVar[frozenset[str]]
    optional: ClassVar[frozenset[str]] = frozenset()
    markers: ClassVar[frozenset[str]] = frozenset()
    numbers: ClassVar[frozenset[str]] = frozenset({"alpha"})
    integers: ClassVar[frozenset[str]] = frozenset()
    suffixes: ClassVar[tuple[tuple[str, str], ...]]
    shared: ClassVar[tuple[tuple[str, str, str], ...]] = ()
    drawn: ClassVar[frozenset[str]] = frozenset()
    by_place: ClassVar[bool] = False
    on_embedding: ClassVar[bool] = False
    parameter: ClassVar[str] = "weight"
    where_present: ClassVar[bool] = False
    low_rank: ClassVar[bool] = False
    replaces: ClassVar[bool] = False
    underlies: ClassVar[bool] = False
    may_be_empty: ClassVar[frozenset[str]] = frozenset()
    reads_weight: ClassVar[bool] = False
    as_stored: ClassVar[bool] = False
    by_rows: ClassVar[bool] = True
    length_axis: ClassVar[Literal["row", "column"]] = "row"
    alpha_is_scale: ClassVar[bool] = True
    peft_type: ClassVar[str] = ""
    peft_fields: ClassVar[frozenset[str]] = frozenset()
    programs: ClassVar[frozenset[str]] = frozenset({"peft"})
    dora_in: ClassVar[frozenset[str]] = frozenset()
    whole_in: ClassVar[frozenset[str]] = frozenset()

    def claims(self, slots: frozenset[str]) -> frozenset[str]:
        """Return the slots of a module that this kind accounts for; none if it lacks one that it needs."""
        return slots & (self.required | self.optional | self.lengths) if self.required <= slots else frozenset()

    @property
    def lengths(self) -> frozenset[str]:
        """Return the slots of DoRA's lengths, if there may be any."""
        return frozenset() if self.replaces or self.parameter != "weight" else MAGNITUDES

    def rank(self, shapes: Shapes) -> int:
        """Return the rank that alpha is divided by; 1 for a kind without one."""
        return 1

    def told_rank(self, shapes: Shapes, weight: tuple[int, ...] | None = None) -> int | None:
        """Return the rank that people are told, None where there is none; `weight` is the base's shape, if known."""
        return self.rank(shapes)

    def told_title(self, shapes: Shapes) -> str:
        """Return what people call the kind, where the shapes tell two of one law apart."""
        return self.title

    def scale(self, alpha: float, shapes: Shapes) -> float:
        """Return what the file's alpha multiplies the delta by."""
        return alpha / self.rank(shapes)

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

    def drawn_values(self, settings: Settings) -> int:
        """Count the values that are drawn again."""
        return 0

    def meant(self, program: str, shapes: Shapes, weight: tuple[int, ...], strength: float) -> Settings:
        """Return the settings that follow a program of `programs`, {} where its law is the definition.

        `weight` is the module's shape. Raise ValueError, saying why, for what the program fails at.
        """
        return {}

    def share(self, strength: float, settings: Settings) -> float:
        """Return what the delta is multiplied by at a strength, in the reading that the settings follow."""
        return strength

    def fault(self, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Say why tensors of these shapes cannot change a weight of that shape, or None if they can.

        Nothing may fit by being repeated: a tensor of one value for many is another tensor than it should be.
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

    def factors(self, tensors: Tensors, terms: Terms) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (up, down), shaped (out, rank) and (rank, columns), whose product is the unscaled delta."""
        raise NotImplementedError

    def prepare(self, tensors: Tensors, terms: Terms) -> Tensors:
        """Compute once what all rows need; `delta` gets the result in the place of the tensors."""
        return tensors

    def delta(self, tensors: Tensors, weight: torch.Tensor, rows: slice, terms: Terms) -> torch.Tensor:
        """Return W(1) − W of some rows of the module, scale included; `weight` holds those rows (rows, columns)."""
        raise NotImplementedError

    def value(self, tensors: Tensors) -> torch.Tensor:
        """Return what the parameter becomes at strength 1, shaped (out, columns), whatever it was."""
        raise NotImplementedError


def fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Tell whether a shape is the one wanted, but for sides of 1 at the end: they do not change how values lie."""
    return all(size == other for size, other in zip_longest(shape, wanted, fillvalue=1))


def reads(down: tuple[int, ...], weight: tuple[int, ...]) -> bool:
    """Tell whether the rows of a factor (rank, …) are as long as the weight's: input by kernel, or flattened."""
    return fits(down[1:], weight[1:]) or fits(down[1:], matrix(weight)[1:])


def whole_number(config: Settings, *names: str) -> int | None:
    """Return a whole number above 0 that a configuration says, below these names; None where it says none."""
    value: object = config
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value if type(value) is int and value > 0 else None


def product_fault(up: tuple[int, ...], down: tuple[int, ...], weight: tuple[int, ...], names: str) -> str | None:
    """Say why up (out, rank) times down (rank, columns) has not the weight's shape, or None if it has."""
    if len(up) != 2 or len(down) != 2:
        return f"{names} must be matrices, and are {up} and {down}"
    if up[1] != down[0]:
        return f"{names} disagree on the rank: {up[0]} × {up[1]} times {down[0]} × {down[1]}"
    return None if (up[0], down[1]) == matrix(weight) else f"its delta is {up[0]} × {down[1]}"


def check_core(program: str, has_core: bool, weight: tuple[int, ...]) -> None:
    """Raise ValueError for a Tucker core that a program cannot fold in: most do for two dimensions alone."""
    if has_core and len(weight) != 4 and program in ("comfyui", "forge", "a1111"):
        raise ValueError(f"{PROGRAMS[program]} fails at Tucker cores but on 2-D convolutions")


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


def scattered(values: torch.Tensor, shape: tuple[int, int], seed: int) -> torch.Tensor:
    """Put values into a matrix of zeros, in places drawn as PEFT does: by torch's generator on the CPU."""
    import torch

    count = shape[0] * shape[1]
    places = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[: len(values)]
    dense = values.new_zeros(count)
    dense[places.to(values.device)] = values
    return dense.view(shape)


def matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Flatten a weight's shape to (rows, columns)."""
    return (shape[0], prod(shape[1:])) if shape else (1, 1)
