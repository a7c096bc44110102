"""The contract of a codec: how one format of stored weights is recognised, decoded and, where it can be, encoded.

A tensor is where bytes lie, a view is which rows in which order, a codec is what they mean. Each file in this folder
has one format. Functions that need torch import it themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from lorabake.tensors.header import TensorInfo
from lorabake.visible import short_repr

if TYPE_CHECKING:
    import torch

Says = Mapping[str, object]
"""Options of a statement, as JSON has them."""

Parts = Mapping[str, "torch.Tensor"]
"""The tensors that hold a weight, by role, as they are stored."""

WEIGHT = "weight"
"""The role of the tensor under the weight's own key."""

NAME_A_DTYPE = (
    "Packed weights are decoded, and not packed again: say what they become with output.dtype (such as bfloat16)."
)

FLOWING = frozenset({
    "input_scale", "scale_input", "output_scale", "input_global_scale", "input_zero_point", "output_zero_point",
    "q_scale", "k_scale", "v_scale", "k_zero_point", "v_zero_point", "prob_scale", "qscale_act",
})  # fmt: skip
"""Tensors about a layer's inputs and outputs. They do not affect its weight, and are dropped if it becomes plain."""

NOTE = "comfy_quant"
"""Last word of the key of a tensor that says in JSON how the weight beside it is stored (ComfyUI)."""

LAYOUT = "weight_format"
"""Last word of the key of a tensor that names the kernel for which the weight beside it is laid out: bitsandbytes."""

NOTES = (NOTE, LAYOUT, *sorted(FLOWING))
"""Short tensors beside a weight that decoding does not need; they are dropped if the weight becomes plain."""


class Showing(Protocol):
    """Show a weight otherwise than it is stored; `lorabake.keymap.view` says how."""

    @property
    def rows(self) -> tuple[range, ...]:
        """Say which rows come when; empty where they come as they lie."""

    @property
    def transpose(self) -> bool:
        """Tell whether rows become columns."""

    @property
    def within(self) -> Showing | None:
        """Return the view by which what it shows is seen; None where that is the weight as it is stored."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape that the weight then has."""

    @property
    def title(self) -> str:
        """Name it in words: "reordered"."""

    def read(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Gather the weight from its values as they are stored, given by its key."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Say how one weight is stored: which tensors hold it, by role, and the codec that knows what they mean.

    `shape` is the weight's own, as `view` shows it, if there is one. A plain weight has one part, and the plain
    codec. Holds no data.
    """

    __repr__ = short_repr

    key: str
    name: str
    shape: tuple[int, ...]
    codec: Codec
    parts: Mapping[str, TensorInfo]
    view: Showing | None = None

    @property
    def tensor(self) -> TensorInfo | None:
        """Return the tensor whose rows are the weight's own as they lie; None where it has to be read whole."""
        return self.first if self.codec.is_plain and self.view is None else None

    @property
    def can_stay(self) -> bool:
        """Tell whether SafeTensors can hold it as it is."""
        return self.codec.in_safetensors and self.view is None

    @property
    def first(self) -> TensorInfo:
        """Return the part in whose place it lies."""
        return next(iter(self.parts.values()))

    @property
    def dtype(self) -> str:
        """Return the dtype under the weight's own key; the title if no tensor is there, or not in its usual form."""
        return self.codec.dtype(self) if self.view is None else self.title

    @property
    def title(self) -> str:
        """Name the way in words: "int8 with row scales, ConvRot"."""
        title = self.codec.title(self)
        return title if self.view is None else f"{self.view.title} {title}"

    @property
    def file(self) -> Path:
        """Return the file of the first part."""
        return self.first.file

    @property
    def nbytes(self) -> int:
        """Count the bytes of all parts."""
        return sum(part.nbytes for part in self.parts.values())

    @property
    def keys(self) -> frozenset[str]:
        """Collect the keys of the tensors that hold it, or go with it."""
        return frozenset(part.key for part in self.parts.values())

    def decode(self, parts: Parts, dtype: torch.dtype) -> torch.Tensor:
        """Return the values in the weight's own shape; `parts` hold its tensors as they are stored."""
        values = self.codec.decode(self, parts, dtype)
        return values if self.view is None else self.view.read({self.key: values}).contiguous()


class Codec:
    """One format of stored weights; a frozen dataclass, whose fields are what else it takes to read one of them.

    `name` selects the formula in `reference/codecs.py`. No two codecs may claim one weight. If both would
    recognise it, the one that lists the other in `before` wins.
    """

    __slots__ = ()

    name: ClassVar[str]
    is_plain: ClassVar[bool] = False
    before: ClassVar[frozenset[str]] = frozenset()
    caution: ClassVar[str] = ""
    """What users are told about a weight that a LoRA changes."""

    options: ClassVar[frozenset[str]] = frozenset()
    """The options of statements about whole models that recognition looks at."""

    in_safetensors: ClassVar[bool] = True
    """Whether SafeTensors can hold a weight of the format."""

    encodes: ClassVar[bool] = False
    why_not: ClassVar[str] = NAME_A_DTYPE
    """Why a changed weight cannot be encoded, and what helps."""

    @classmethod
    def recognise(cls, group: Group) -> Stored | None:
        """Describe a weight of this format; None for other formats, and for a weight that is not fully understood."""
        return None

    @classmethod
    def recognise_alone(cls, info: TensorInfo) -> Stored | None:
        """Describe a tensor that is a weight of this format by its dtype alone."""
        return None

    @classmethod
    def contradiction(cls, group: Group) -> str:
        """Say how statements about a weight contradict its tensors, to follow its key; "" if they do not."""
        return ""

    @property
    def mixes(self) -> bool:
        """Tell whether values are sums of larger numbers; small values then have the error of large ones."""
        return False

    def title(self, stored: Stored) -> str:
        """Name the format of a weight in words."""
        raise NotImplementedError

    def dtype(self, stored: Stored) -> str:
        """Return the dtype under the weight's own key while it stays stored so; the title where none lies there."""
        return self.title(stored)

    def decode(self, stored: Stored, parts: Parts, dtype: torch.dtype) -> torch.Tensor:
        """Return a weight's values in its own shape."""
        raise NotImplementedError

    def written(self, stored: Stored) -> tuple[str, ...]:
        """List the roles that `encode` fills, the weight's own first; the other parts stay unchanged."""
        return ()

    def encode(self, stored: Stored, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return a changed weight by role, to be rounded to the dtypes of its parts.

        All statements about how the weight is stored stay true.
        """
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Strange:
    """Name a weight whose stored values are not its own, in a way that this version does not know.

    `title` is what the way is called; `why` goes on after the weight's key, with advice on further lines; `parts` are
    the keys of the tensors that stand for the weight, which stay as they are; codes are in a dtype of no parameter.
    """

    title: str
    why: str
    parts: frozenset[str]
    has_codes: bool = False


@dataclass(frozen=True, slots=True)
class Statement:
    """Hold what one place says: `place` names it in messages, `says` are its options."""

    place: str
    says: Says


@dataclass(frozen=True, slots=True)
class Group:
    """Hold what stands for one weight: its tensors by role, "" for one under the weight's own key, and what is said.

    `notes` speak of this layer, `options` are what statements about the whole model say, `model` are these; `rows`
    are those of the bias, and `is_linear` tells that the network has no convolutions that could be stored as
    matrices.
    """

    key: str
    parts: Mapping[str, TensorInfo]
    notes: tuple[Statement, ...] = ()
    options: Says = field(default_factory=dict)
    model: tuple[Statement, ...] = ()
    rows: int | None = None
    is_linear: bool = False

    @property
    def roles(self) -> set[str]:
        """Return the roles that have a say in the values."""
        return {role for role in self.parts if role not in NOTES}

    @property
    def beside(self) -> dict[str, TensorInfo]:
        """Return the short tensors that have none, or that speak through `notes`."""
        return {role: self.parts[role] for role in NOTES if role in self.parts}

    def stored(self, codec: Codec, shape: tuple[int, ...], parts: Mapping[str, TensorInfo]) -> Stored:
        """Describe the weight as one of this shape that these parts hold, and the notes beside it."""
        return described(codec, self.key, shape, {**parts, **self.beside})


def described(codec: Codec, key: str, shape: tuple[int, ...], parts: Mapping[str, TensorInfo]) -> Stored:
    """Describe a weight of this key and shape that these parts hold."""
    first = next(iter(parts.values()))
    return Stored(key, key.removeprefix(first.key.removesuffix(first.name)), shape, codec, parts)
