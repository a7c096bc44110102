"""RandLoRA: a sum of products of random matrices that all modules share, scaled by two small trained matrices.

With n bases of rank r for a weight whose shorter side is m: A (r, 1, ≥ m), B (≥ longer side, ≥ n, r),
`randlora_lambda` (r, n), `randlora_gamma` (n, m). P[r', n', j] = λ[r', n']·A[r', 0, j]·γ[n', j]; P and B are laid out
flat as they lie in memory, (r·n, m) and (longer, n·r), and multiplied: ΔW = alpha/r·B·P, or its transpose where
outputs are the shorter side. Albert et al. 2025 (arXiv 2502.00987); PEFT's layout, flat order included.
A file without A and B (`save_projection: false`) names the seed by which torch's generator on the CPU drew them, for
the largest sides of all weights: uniform, in bfloat16, B basis by basis; or, sparse, −1, 0 and 1 by uniform numbers.
Both are divided by their standard deviation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING

from lorabake.adapters.draws import seed_of
from lorabake.adapters.kind import Product
from lorabake.adapters.settings import Settings, TermsOf
from lorabake.adapters.shapes import Shapes, Tensors
from lorabake.keymap.said import Said

if TYPE_CHECKING:
    import torch


Shape = tuple[int, int, int]


def sizes(rank: int, largest: tuple[int, int]) -> tuple[Shape, Shape]:
    """Return the shapes of A and B for the most outputs and inputs."""
    return (rank, 1, min(largest)), (max(largest), -(-min(largest) // rank), rank)


@lru_cache(maxsize=1)
def draw(drawn: RandLoraDraws) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw A and B; they are the same for all modules, and large, so the last ones are kept."""
    import torch

    generator, found, sparsity = torch.Generator().manual_seed(drawn.seed), [], drawn.sparsity
    for rows, bases, columns in (drawn.a, drawn.b):
        if sparsity:
            chances = torch.rand((rows, bases, columns), generator=generator)
            values = (chances > 1 - 1 / (2 * sparsity)).float() - (chances < 1 / (2 * sparsity)).float()
        else:
            bound = columns**-0.5  # Kaiming's uniform law with a = √5, whose fan-in is 1 · columns
            each = [torch.empty((rows, 1, columns), dtype=torch.bfloat16) for _ in range(bases)]
            values = torch.cat([basis.uniform_(-bound, bound, generator=generator) for basis in each], dim=1)
        found.append(values / values.std())
    return found[0], found[1]


@dataclass(frozen=True, slots=True)
class RandLoraDraws:
    """Say how A and B are drawn: by which seed, in which shapes, how sparse."""

    seed: int
    a: Shape
    b: Shape
    sparsity: float


@dataclass(frozen=True, slots=True)
class RandLoraSettings(Settings):
    """Scale by alpha over the rank; `drawn` says how A and B are drawn, where the file lacks them."""

    scale: float
    drawn: RandLoraDraws | None = None


class RandLora(Product):
    """Add products of scaled random matrices."""

    name = "randlora"
    title = "RandLoRA"
    required = frozenset({"randlora_lambda", "randlora_gamma"})
    optional = frozenset({"randlora_A", "randlora_B"})
    suffixes = (
        (r"\.randlora_lambda", "randlora_lambda"),
        (r"\.randlora_gamma", "randlora_gamma"),
        (r"\.randlora_A", "randlora_A"),  # PEFT saves the shared ones with each module, too
        (r"\.randlora_B", "randlora_B"),
    )
    shared = (
        (r"base_model\.randlora_A(?:\.[^.]+)?", "randlora_A", "randlora_lambda"),
        (r"base_model\.randlora_B(?:\.[^.]+)?", "randlora_B", "randlora_lambda"),
    )
    drawn = optional
    peft_type = "RANDLORA"
    peft_fields = frozenset(
        {"r", "projection_prng_key", "save_projection", "sparse", "very_sparse", "randlora_dropout", "fan_in_fan_out"}
        | {"randlora_alpha", "bias", "init_weights"}
    )

    def rank(self, shapes: Shapes) -> int:
        """Return the number of products that are summed."""
        return shapes["randlora_lambda"][0] * shapes["randlora_lambda"][1]

    def settings(self, said: Said, shapes: Shapes) -> RandLoraSettings:
        """Compute the scale."""
        return RandLoraSettings(said.number("randlora_alpha") / shapes["randlora_lambda"][0])

    def redrawn(
        self, settings: RandLoraSettings, said: Said, shapes: Shapes, largest: tuple[int, int]
    ) -> RandLoraSettings:
        """Read the seed and how sparse the matrices are."""
        sparsity = min(largest) ** 0.5 if said.is_set("very_sparse") else 3.0 if said.is_set("sparse") else 0.0
        drawn = RandLoraDraws(seed_of(said), *sizes(shapes["randlora_lambda"][0], largest), sparsity)
        return replace(settings, drawn=drawn)

    def working_values(self, shapes: Shapes, settings: RandLoraSettings) -> int:
        """Count both matrices that are drawn, too."""
        drawn = prod(settings.drawn.a) + prod(settings.drawn.b) if settings.drawn else 0
        return super().working_values(shapes, settings) + 2 * drawn

    def fault(self, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Ask for matrices that reach to the weight's sides."""
        scales, gamma = shapes["randlora_lambda"], shapes["randlora_gamma"]
        if len(weight) != 2 or len(scales) != 2 or gamma != (scales[1], min(weight)):
            return f"its scales {scales} and {gamma} are for another size"
        if not shapes.keys() & self.drawn:
            return None
        if not shapes.keys() >= self.drawn:
            return "only one of its two random matrices is in the file"
        a, b = shapes["randlora_A"], shapes["randlora_B"]
        fits = len(a) == len(b) == 3 and a[:2] == (scales[0], 1) and b[2] == scales[0]
        if not fits or a[2] < min(weight) or b[0] < max(weight) or b[1] < scales[1]:
            return f"its matrices {a} and {b} do not reach"
        return None

    def configured(self, said: Said, shapes: Shapes, weight: tuple[int, ...]) -> Shapes:
        """Ask for as many scales a basis as the rank, and for as many bases as it takes to fill the shorter side."""
        rank = said.count("r")
        return {"randlora_lambda": (rank, -(-min(weight) // rank))} if rank else {}

    def drawn_shapes(self, shapes: Shapes, largest: tuple[int, int]) -> Shapes:
        """Return A and B, as they are drawn."""
        a, b = sizes(shapes["randlora_lambda"][0], largest)
        return {"randlora_A": a, "randlora_B": b}

    def factors(self, tensors: Tensors, terms: TermsOf[RandLoraSettings]) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale the smaller matrix; the other stays as it is."""
        short, long = min(terms.shape), max(terms.shape)
        scales = tensors["randlora_lambda"]
        if terms.settings.drawn:
            a, b = draw(terms.settings.drawn)
        else:
            a, b = tensors["randlora_A"], tensors["randlora_B"]
        right = scales[:, :, None] * a[:, :, :short].to(scales) * tensors["randlora_gamma"]
        right = right.flatten(end_dim=1) * terms.settings.scale
        left = b[:long, : scales.shape[1]].to(scales).flatten(1)
        return (left, right) if short == terms.shape[1] else (right.T, left.T)


KINDS = (RandLora(),)
