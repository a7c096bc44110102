"""Whole tensors inside an adapter (PEFT's `modules_to_save`, trained biases; ComfyUI's `set_weight`): W' = T."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from lorabake.adapters.kind import Replacement
from lorabake.adapters.shapes import Shapes, Tensors, fits, matrix

if TYPE_CHECKING:
    import torch


class Whole(Replacement):
    """Replace a parameter by the trained one."""

    name = "whole"
    title = "whole tensor"
    required = frozenset({"whole_weight"})
    suffixes = ((r"(?:\.base_layer|\.modules_to_save(?:\.[^.]+)?)?\.weight", "whole_weight"),)
    whole_in: ClassVar[frozenset[str]] = frozenset({"peft"})
    is_stored: ClassVar[bool] = True
    underlies: ClassVar[bool] = True  # PEFT saves the weight of an embedding or a head with the LoRA on it

    @property
    def announced(self) -> frozenset[str]:
        """Return the slot where it fits what a configuration announces."""
        return self.required if self.underlies else frozenset()

    def fault(self, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Ask for the parameter's own shape."""
        (shape,) = (shapes[slot] for slot in self.required)
        return None if fits(shape, weight) else f"it would replace {weight} by {shape}"

    def value(self, tensors: Tensors) -> torch.Tensor:
        """Return the trained parameter."""
        (tensor,) = (tensors[slot] for slot in self.required)
        return tensor.reshape(matrix(tuple(tensor.shape)))


class WholeBias(Whole):
    """Replace a bias by the trained one."""

    name = "whole_bias"
    title = "whole bias"
    required = frozenset({"whole_bias"})
    suffixes = ((r"(?:\.base_layer|\.modules_to_save(?:\.[^.]+)?)?\.bias", "whole_bias"),)
    parameter = "bias"


class SetWeight(Whole):
    """Replace a parameter by what the file says, as ComfyUI's `set_weight` does."""

    name = "set_weight"
    title = "set weight"
    is_stored = False
    underlies = False
    programs = frozenset({"comfyui", "forge"})
    whole_in = programs
    required = frozenset({"set_weight"})
    suffixes = ((r"(?:\.weight)?\.set_weight", "set_weight"),)


class SetBias(SetWeight):
    """Replace a bias by what the file says, as ComfyUI's `set_weight` does where it follows a bias's full name."""

    name = "set_bias"
    title = "set bias"
    required = frozenset({"set_bias"})
    suffixes = ((r"\.bias\.set_weight", "set_bias"),)
    parameter = "bias"


class SetScale(Whole):
    """Replace a norm layer's weight where it is called `scale` (Black Forest Labs' control LoRAs)."""

    name = "set_scale"
    title = "norm's scale"
    underlies = False
    programs = frozenset({"comfyui", "forge"})
    whole_in = programs
    required = frozenset({"norm_scale"})
    suffixes = ((r"(?<=_norm)\.scale", "norm_scale"),)


class NormWeight(Whole):
    """Replace a norm layer's weight (PEFT's LN tuning)."""

    name = "ln_tuning"
    is_stored = False
    title = "LN tuning"
    underlies = False
    required = frozenset({"ln_weight"})
    suffixes = ((r"\.ln_tuning_layers(?:\.[^.]+)?\.weight", "ln_weight"),)
    peft_type = "LN_TUNING"
    peft_fields = frozenset({"init_weights", "bias"})


class NormBias(Whole):
    """Replace a norm layer's bias (PEFT's LN tuning)."""

    name = "ln_tuning_bias"
    is_stored = False
    title = "LN tuning's bias"
    underlies = False
    required = frozenset({"ln_bias"})
    suffixes = ((r"\.ln_tuning_layers(?:\.[^.]+)?\.bias", "ln_bias"),)
    parameter = "bias"


KINDS = (Whole(), WholeBias(), SetWeight(), SetBias(), SetScale(), NormWeight(), NormBias())
