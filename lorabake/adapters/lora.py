"""LoRA and LoCon: ΔW = alpha/rank · B·A, also on convolutions, also with a Tucker core.

B (`up`) is (out, rank[, 1, 1]), A (`down`) is (rank, in[, kh, kw]); with a core M (`mid`, (rank, rank, kh, kw))
A is (rank, in, 1, 1) and ΔW[o,i,y,x] = Σ_{m,n} B[o,m]·M[m,n,y,x]·A[n,i].
LyCORIS's extraction may add what the product misses most, a sparse S: ΔW = alpha/rank · (B·A + S), n values
(`bias_values`) at places (`bias_indices`, (2, n)) of the flattened weight (`bias_size`); S is about no bias.
Hu et al. 2021 (arXiv 2106.09685); the convolutions and the core as in LyCORIS (arXiv 2309.14859).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, ClassVar

from lorabake.adapters.kind import Delta, Kind, Product
from lorabake.adapters.programs import EVERY, OF_KOHYA, core_unread
from lorabake.adapters.settings import Settings, Terms, TermsOf
from lorabake.adapters.shapes import Shapes, Tensors, fits, matrix, reads
from lorabake.keymap.said import Said

if TYPE_CHECKING:
    import torch


IN_TRAINING = {
    r"\.lora_velora_embed(?:\.[^.]+)?": "velora_embed",
    **{
        rf"\.lora_monteclora_sampler(?:\.[^.]+)?\.{part}": f"monteclora_{part}"
        for part in ("expert_weights", "expert_weights_prior", "gaussian_var_prior", "std_prior")
    },
}
"""What PEFT's VeLoRA and MonteCLoRA need for training alone, and save."""


class LoraFactors(Kind):
    """Take two thin matrices, and a core between them."""

    required: ClassVar[frozenset[str]] = frozenset({"up", "down"})
    optional: ClassVar[frozenset[str]] = frozenset({"mid", "alpha"})

    def rank(self, shapes: Shapes) -> int:
        """Return the number of rows of `down`."""
        return shapes["down"][0]

    def fault(self, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Check up (out, r), down (r, columns) and the core, if any, against the weight."""
        up, down, mid = shapes["up"], shapes["down"], shapes.get("mid")
        if min(len(up), len(down)) < 2:
            return f"up {up} and down {down} must have at least two dimensions"
        if mid is not None and (len(mid) < 3 or mid[1] != down[0] or prod(down[2:]) != 1):
            return f"the Tucker core {mid} does not fit down {down}"
        if not down[0] and shapes.keys() & {"magnitude", "dora_scale", "bias"}:
            return "its rank is 0, and it has more than a low-rank delta"
        outputs, inputs = up[0], matrix(down)[1] * (prod(mid[2:]) if mid else 1)
        agree = fits(up[1:], (mid or down)[:1])
        if agree and (outputs, inputs) == matrix(weight):
            if fits(mid[2:], weight[2:]) if mid else reads(down, weight):
                return None
            slot, shape = ("mid", mid) if mid else ("down", down)
            return f"{slot} {shape} lays its kernel out otherwise than the weight"
        if mid is None and outputs == inputs and (down[0], matrix(up)[1]) == matrix(weight):
            return "up and down are exchanged"
        if not agree:
            return f"up {up} and {'mid' if mid else 'down'} {mid or down} disagree on the rank"
        if (inputs, outputs) == matrix(weight):
            return f"its delta is {outputs} × {inputs}: the weight is stored transposed"
        return f"its delta is {outputs} × {inputs}"

    def unread(self, program: str, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Ask whether the program can fold a core in."""
        return core_unread(program, weight) if "mid" in shapes else None

    def factors(self, tensors: Tensors, terms: Terms) -> tuple[torch.Tensor, torch.Tensor]:
        """Flatten both; a Tucker core is folded into the right-hand factor."""
        up, down = tensors["up"].flatten(1), tensors["down"].flatten(1)
        if "mid" in tensors:
            down = (down.T @ tensors["mid"].flatten(2)).flatten(1)
        return up, down


class Lora(LoraFactors, Product):
    """Add the product of two thin matrices."""

    name = "lora"
    title = "LoRA"
    markers = frozenset({"reshape_weight", *IN_TRAINING.values()})
    optional = LoraFactors.optional | markers
    suffixes = (
        (r"\.lora_down\.weight", "down"),  # kohya, LyCORIS
        (r"\.lora_up\.weight", "up"),
        (r"\.lora_mid\.weight", "mid"),
        (r"\.lora_A(?:\.[^.]+)?\.weight", "down"),  # PEFT, diffusers; an adapter's name may stand inside
        (r"\.lora_B(?:\.[^.]+)?\.weight", "up"),
        (r"\.lora_a\.weight", "down"),  # torchtune
        (r"\.lora_b\.weight", "up"),
        (r"\.weight\.lora_a", "down"),  # llama.cpp
        (r"\.weight\.lora_b", "up"),
        (r"\.lora_A", "down"),
        (r"\.lora_B", "up"),
        (r"[._]lora\.down\.weight", "down"),  # diffusers up to 0.26, with `_lora` its attention processors
        (r"[._]lora\.up\.weight", "up"),
        (r"(?<=_lora[12])\.down\.weight", "down"),  # XLabs: `qkv_lora1.down.weight` for the image, 2 for the text
        (r"(?<=_lora[12])\.up\.weight", "up"),
        (r"\.lora_linear_layer\.down\.weight", "down"),  # diffusers, LoRACompatible layers
        (r"\.lora_linear_layer\.up\.weight", "up"),
        (r":down", "down"),  # cloneofsimo: `unet:3:down`
        (r":up", "up"),
        (r"\.dyn_down", "down"),  # LyCORIS's first DyLoRA
        (r"\.dyn_up", "up"),
        (r"\.alpha", "alpha"),
        (r"\.dora_scale", "dora_scale"),  # LyCORIS
        (r"\.lora_magnitude_vector(?:\.[^.]+)?(?:\.weight)?", "magnitude"),  # PEFT
        (r"\.magnitude", "magnitude"),  # ai-toolkit, torchtune
        (r"\.reshape_weight", "reshape_weight"),  # ComfyUI: the weight grows to this shape first
        *IN_TRAINING.items(),
    )
    peft_type = "LORA"
    peft_fields = frozenset(
        {"r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "fan_in_fan_out", "lora_bias"}
        | {"bias", "trainable_token_indices", "target_parameters", "velora_config", "monteclora_config"}
    )
    programs = EVERY
    dora_in = EVERY

    def configured(self, said: Said, shapes: Shapes, weight: tuple[int, ...]) -> Shapes:
        """Ask for the shapes of what the training alone needed."""
        rank = self.rank(shapes)
        wanted: dict[str, tuple[int, ...]] = {
            "monteclora_std_prior": (rank,),
            "monteclora_gaussian_var_prior": (rank, rank),
        }
        if samples := said.count("monteclora_config", "num_samples"):
            wanted |= dict.fromkeys(("monteclora_expert_weights", "monteclora_expert_weights_prior"), (samples,))
        if groups := said.count("velora_config", "num_groups"):
            wanted["velora_embed"] = (-(-matrix(weight)[1] // groups),)
        return wanted

    def misconfigured(self, said: Said, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Compare the rank first."""
        if (rank := said.count("r")) not in (None, self.rank(shapes)):
            return f"its rank is {self.rank(shapes)}, and adapter_config says {rank}"
        return super().misconfigured(said, shapes, weight)


@dataclass(frozen=True, slots=True)
class SparseSettings(Settings):
    """Say whether the sparse values are left out, as programs do."""

    is_bare: bool = False


class SparseLora(LoraFactors, Delta):
    """Add the product of two thin matrices and sparse values (LyCORIS's extraction)."""

    name = "sparse_lora"
    title = "LoRA with a sparse residual"
    required = frozenset({"up", "down", "sparse_places", "sparse_values", "sparse_size"})
    integers = frozenset({"sparse_places", "sparse_size"})
    may_be_empty = frozenset({"sparse_places", "sparse_values"})
    suffixes = (
        (r"\.bias_indices", "sparse_places"),
        (r"\.bias_values", "sparse_values"),
        (r"\.bias_size", "sparse_size"),
    )
    programs = OF_KOHYA
    dora_in = OF_KOHYA

    def settings(self, said: Said, shapes: Shapes) -> SparseSettings:
        """Begin with the definition."""
        return SparseSettings()

    def follow(
        self, settings: SparseSettings, program: str, shapes: Shapes, weight: tuple[int, ...], strength: float
    ) -> Settings:
        """Leave the sparse values out: no program reads them but an extension of AUTOMATIC1111, no longer kept."""
        return SparseSettings(is_bare=True)

    def fault(self, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Ask for one row and one column a value."""
        values, places, size = (shapes[f"sparse_{what}"] for what in ("values", "places", "size"))
        if len(values) != 1 or places != (2, *values) or size != (2,):
            return f"its sparse values {values}, places {places} and size {size} do not go together"
        return super().fault(shapes, weight)

    def prepare(self, tensors: Tensors, terms: TermsOf[SparseSettings]) -> Tensors:
        """Put the values in their places."""
        size = tuple(int(side) for side in tensors["sparse_size"])
        if size != matrix(terms.shape):
            raise ValueError(f"its sparse values are for a weight of {size[0]} × {size[1]}")
        rows, columns = tensors["sparse_places"].long()
        inside = (rows >= 0) & (rows < size[0]) & (columns >= 0) & (columns < size[1])
        if not bool(inside.all()):
            raise ValueError("its sparse values have places out of the weight")
        up, down = self.factors(tensors, terms)
        dense = tensors["sparse_values"].new_zeros(size)
        if not terms.settings.is_bare:
            dense.index_put_((rows, columns), tensors["sparse_values"], True)
        return {"up": up, "down": down, "rest": dense}

    def delta(
        self, tensors: Tensors, weight: torch.Tensor, rows: slice, terms: TermsOf[SparseSettings]
    ) -> torch.Tensor:
        """Add the product's rows and the sparse ones."""
        return (tensors["up"][rows] @ tensors["down"]).add_(tensors["rest"][rows]).mul_(terms.scale)


KINDS = (Lora(), SparseLora())
