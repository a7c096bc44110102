"""IA3: each output (or input) of a module is scaled by a trained number. Liu et al. 2022 (arXiv 2205.05638).

LyCORIS stores what is added to 1 (`weight`, with `on_input` 0 or 1): W' = W ⊙ (1 + w), the bias as it was.
PEFT stores the factor itself (`ia3_l`): W' = W ⊙ l; where it scales outputs, b' = b ⊙ l as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, ClassVar

from lorabake.adapters.kind import Delta
from lorabake.adapters.settings import Settings, Terms, TermsOf
from lorabake.adapters.shapes import Shapes, Tensors
from lorabake.keymap.patterns import matches_whole
from lorabake.keymap.said import Said

if TYPE_CHECKING:
    import torch


def _scaled(weight: torch.Tensor, factor: torch.Tensor, rows: slice, terms: Terms, *, inputs: bool) -> torch.Tensor:
    """Return W ⊙ factor, with one factor an input or one an output."""
    if not inputs:
        return weight * factor.reshape(-1, 1)[rows]
    cube = weight.reshape(weight.shape[0], terms.shape[1], -1)
    return (cube * factor.reshape(1, -1, 1)).reshape(weight.shape)


class Ia3(Delta):
    """Scale outputs or inputs by 1 + w (LyCORIS)."""

    name = "ia3"
    title = "IA3"
    required = frozenset({"whole_weight", "on_input"})
    suffixes = ((r"\.on_input", "on_input"),)
    numbers = frozenset({"on_input"})
    reads_weight = True
    programs = frozenset({"a1111", "lycoris"})
    dora_in = frozenset({"a1111"})

    def unread(self, program: str, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Name convolutions' outputs, which AUTOMATIC1111 does not find."""
        of_inputs = shapes["whole_weight"][:2] == (1, weight[1]) and weight[0] != weight[1]
        if program == "a1111" and len(weight) > 2 and not of_inputs:
            return "AUTOMATIC1111 fails at IA3 on the outputs of convolutions"
        return None

    def fault(self, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Ask for one number an output or an input."""
        shape = shapes["whole_weight"]
        count = prod(shape)
        if count in weight[:2] and max(shape, default=1) == count:
            return None
        return f"its weight is {shape}: it scales {count} outputs or inputs"

    def prepare(self, tensors: Tensors, terms: Terms) -> Tensors:
        """Read which side is scaled."""
        factor = tensors["whole_weight"].reshape(-1)
        side = "inputs" if bool(tensors["on_input"].reshape(-1)[0]) else "outputs"
        if factor.numel() != terms.shape[side == "inputs"]:
            raise ValueError(f"on_input says that it scales {side}, and it has {factor.numel()} numbers")
        return {side: factor}

    def delta(self, tensors: Tensors, weight: torch.Tensor, rows: slice, terms: Terms) -> torch.Tensor:
        """Return W ⊙ w."""
        ((side, factor),) = tensors.items()
        return _scaled(weight, factor, rows, terms, inputs=side == "inputs")


@dataclass(frozen=True, slots=True)
class PeftIa3Settings(Settings):
    """Say whether inputs are scaled, and not outputs."""

    inputs: bool


class PeftIa3(Delta):
    """Scale outputs or inputs by l (PEFT)."""

    name = "ia3_peft"
    title = "IA3"
    required = frozenset({"ia3_l"})
    reads_weight = True
    suffixes: ClassVar[tuple[tuple[str, str], ...]] = ((r"\.ia3_l", "ia3_l"),)
    peft_type = "IA3"
    peft_fields = frozenset({"feedforward_modules", "init_ia3_weights", "fan_in_fan_out"})

    def settings(self, said: Said, shapes: Shapes) -> PeftIa3Settings:
        """Tell by the shape which side is scaled; a convolution's tells nothing, there `feedforward_modules` does."""
        shape = shapes["ia3_l"]
        told = shape[0] == 1 if len(shape) == 2 and 1 in shape and shape != (1, 1) else None
        listed, module = said.value("feedforward_modules"), said.module
        meant: bool | None = None
        if isinstance(listed, str):
            meant = matches_whole(listed, module)
        elif isinstance(listed, list) or (told is None and said.is_given and listed is None):
            meant = any(module.endswith(str(name)) for name in listed or ())  # as PEFT: `conv` is `preconv`, too
        if told is None and meant is None:
            raise ValueError("no adapter_config.json says whether IA3 scales its inputs or outputs")
        if None not in (told, meant) and told != meant:
            side = "inputs" if meant else "outputs"
            raise ValueError(f"its ia3_l is {shape}, and feedforward_modules in adapter_config.json means {side}")
        return PeftIa3Settings(bool(meant if told is None else told))

    def fault(self, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Ask for one number an output or an input."""
        shape = shapes["ia3_l"]
        if len(weight) == 2 and shape in ((weight[0], 1), (1, weight[1])):
            return None
        ones = (1,) * (len(weight) - 2)
        if len(weight) > 2 and shape in ((1, weight[0], *ones), (1, weight[1], *ones)):
            return None
        return f"its factors are {shape}"

    def unsettled(self, settings: PeftIa3Settings, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Ask for one factor for each of what is scaled; a grouped convolution has fewer inputs a row."""
        inputs, count = settings.inputs, prod(shapes["ia3_l"])
        if count == weight[inputs]:
            return None
        side = "inputs" if inputs else "outputs"
        return f"it scales {count} {side}, and the base's weight is {' × '.join(map(str, weight))}"

    def delta(
        self, tensors: Tensors, weight: torch.Tensor, rows: slice, terms: TermsOf[PeftIa3Settings]
    ) -> torch.Tensor:
        """Return W ⊙ (l − 1)."""
        return _scaled(weight, tensors["ia3_l"] - 1, rows, terms, inputs=terms.settings.inputs)


class PeftIa3Bias(PeftIa3):
    """Scale the bias with the outputs."""

    name = "ia3_peft_bias"
    title = "IA3 bias"
    suffixes = ()
    parameter = "bias"
    where_present = True

    def fault(self, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Leave the check to the weight."""
        return None

    def unsettled(self, settings: PeftIa3Settings, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Leave the check to the weight, too."""
        return None

    def delta(
        self, tensors: Tensors, weight: torch.Tensor, rows: slice, terms: TermsOf[PeftIa3Settings]
    ) -> torch.Tensor:
        """Return b ⊙ (l − 1) if l scales outputs."""
        if terms.settings.inputs:
            return weight.new_zeros(weight.shape)
        return weight * (tensors["ia3_l"] - 1).reshape(-1, 1)[rows]


KINDS = (Ia3(), PeftIa3(), PeftIa3Bias())
