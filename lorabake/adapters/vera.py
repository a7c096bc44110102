"""VeRA: all modules share two random matrices; each has two vectors of its own: ΔW = (λ_b ⊙ B)·(λ_d ⊙ A).

A (r, most inputs) and B (most outputs, r) are cut to the module's inputs and outputs; λ_d (r) and λ_b (out) scale
their rows. A file without A and B (`save_projection: false`) names the seed by which torch's generator on the CPU
drew them, A first, both uniform within ±√(6/columns). Kopiczko et al. 2024 (arXiv 2310.11454); PEFT's layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, TypeVar

from lorabake.adapters.draws import seed_of
from lorabake.adapters.kind import Product
from lorabake.adapters.settings import Settings, TermsOf
from lorabake.adapters.shapes import Shapes, Tensors
from lorabake.keymap.said import Said

if TYPE_CHECKING:
    import torch

Found = TypeVar("Found")


@lru_cache(maxsize=1)
def draw(drawn: VeraDraws) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw A and B; they are the same for all modules, so the last ones are kept."""
    import torch

    generator, found = torch.Generator().manual_seed(drawn.seed), []
    for rows, columns in ((drawn.high, drawn.inputs), (drawn.outputs, drawn.rank)):
        bound = (6 / columns) ** 0.5
        found.append(torch.empty((rows, columns), dtype=torch.float32).uniform_(-bound, bound, generator=generator))
    return found[0], found[1]


@dataclass(frozen=True, slots=True)
class VeraDraws:
    """Say how A (high, inputs) and B (outputs, rank) are drawn, and by which seed."""

    seed: int
    high: int
    rank: int
    outputs: int
    inputs: int


@dataclass(frozen=True, slots=True)
class VeraSettings(Settings):
    """Say how A and B are drawn, where the file lacks them."""

    drawn: VeraDraws | None = None


class Vera(Product):
    """Add a product of scaled random matrices."""

    name = "vera"
    title = "VeRA"
    required = frozenset({"vera_lambda_b", "vera_lambda_d"})
    optional = frozenset({"vera_A", "vera_B"})
    suffixes: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"\.vera_lambda_b", "vera_lambda_b"),
        (r"\.vera_lambda_d", "vera_lambda_d"),
    )
    shared: ClassVar[tuple[tuple[str, str, str], ...]] = (
        (r"base_model\.vera_A(?:\.[^.]+)?", "vera_A", "vera_lambda_d"),
        (r"base_model\.vera_B(?:\.[^.]+)?", "vera_B", "vera_lambda_d"),
    )
    drawn = optional
    peft_type = "VERA"
    peft_fields = frozenset(
        {"r", "projection_prng_key", "save_projection", "vera_dropout", "d_initial", "fan_in_fan_out", "bias"}
        | {"init_weights"}
    )

    def rank(self, shapes: Shapes) -> int:
        """Return the length of λ_d."""
        return shapes["vera_lambda_d"][0]

    def settings(self, said: Said, shapes: Shapes) -> VeraSettings:
        """Begin with matrices in the file."""
        return VeraSettings()

    def redrawn(self, settings: VeraSettings, said: Said, shapes: Shapes, largest: tuple[int, int]) -> VeraSettings:
        """Read the seed."""
        high = next(shapes[slot][0] for slot in shapes if slot.endswith("vera_lambda_d"))
        return VeraSettings(VeraDraws(seed_of(said), high, self.rank(shapes), *largest))

    def working_values(self, shapes: Shapes, settings: VeraSettings) -> int:
        """Count both matrices that are drawn, too."""
        drawn = settings.drawn
        count = drawn.rank * drawn.outputs + drawn.high * drawn.inputs if drawn else 0
        return super().working_values(shapes, settings) + 2 * count

    def fault(self, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Ask for matrices that reach to the weight's sides."""
        if ("vera_A" in shapes) != ("vera_B" in shapes):
            return "only one of its two random matrices is in the file"
        rank, outputs = shapes["vera_lambda_d"], shapes["vera_lambda_b"]
        a, b = shapes.get("vera_A", (*rank, 1 << 62)), shapes.get("vera_B", (1 << 62, *rank))
        if len(rank) != 1 or len(a) != 2 or len(b) != 2 or b[1] != a[0] or a[0] != rank[0]:
            return "its vectors and matrices disagree on the rank"
        if len(weight) != 2 or outputs != weight[:1] or a[1] < weight[1] or b[0] < weight[0]:
            return f"its delta is {outputs[0] if outputs else 1} × {a[1]} at most"
        return None

    def configured(self, said: Said, shapes: Shapes, weight: tuple[int, ...]) -> Shapes:
        """Ask for a λ_d as long as the rank."""
        rank = said.count("r")
        return {"vera_lambda_d": (rank,)} if rank else {}

    def drawn_shapes(self, shapes: Shapes, largest: tuple[int, int]) -> Shapes:
        """Return A (r, most inputs) and B (most outputs, r)."""
        rank = self.rank(shapes)
        return {"vera_A": (rank, largest[1]), "vera_B": (largest[0], rank)}

    def factors(self, tensors: Tensors, terms: TermsOf[VeraSettings]) -> tuple[torch.Tensor, torch.Tensor]:
        """Cut the matrices and scale their rows."""
        outer, inner = tensors["vera_lambda_b"][:, None], tensors["vera_lambda_d"][:, None]
        if terms.settings.drawn:
            a, b = draw(terms.settings.drawn)
        else:
            a, b = tensors["vera_A"], tensors["vera_B"]
        return outer * b[: terms.shape[0]].to(outer), inner * a[: len(inner), : terms.shape[1]].to(inner)


class Pvera(Vera):
    """Add the mean of what PVeRA samples: the upper halves of A and λ_d; the lower ones are about its spread."""

    name = "pvera"
    title = "PVeRA"
    required = frozenset({"pvera_lambda_b", "pvera_lambda_d"})
    optional = frozenset({"pvera_A", "pvera_B"})
    suffixes = ((r"\.pvera_lambda_b", "pvera_lambda_b"), (r"\.pvera_lambda_d", "pvera_lambda_d"))
    shared = (
        (r"base_model\.pvera_A(?:\.[^.]+)?", "pvera_A", "pvera_lambda_d"),
        (r"base_model\.pvera_B(?:\.[^.]+)?", "pvera_B", "pvera_lambda_d"),
    )
    drawn = optional
    peft_type = "PVERA"
    peft_fields = frozenset(
        {"r", "projection_prng_key", "save_projection", "pvera_dropout", "d_initial", "fan_in_fan_out", "bias"}
        | {"init_weights", "sample_at_inference", "generator_seed"}
    )

    def rank(self, shapes: Shapes) -> int:
        """Return half the length of λ_d."""
        return shapes["pvera_lambda_d"][0] // 2

    def settings(self, said: Said, shapes: Shapes) -> VeraSettings:
        """Refuse what is drawn anew for each token."""
        if said.is_set("sample_at_inference"):
            raise ValueError("sample_at_inference is set: it draws anew for each token; no weight can hold that")
        return VeraSettings()

    def fault(self, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Ask for halves that VeRA would take."""
        both = shapes["pvera_lambda_d"], shapes.get("pvera_A", shapes["pvera_lambda_d"])
        if any(not shape or shape[0] % 2 for shape in both):
            return f"its vectors {both[0]} and matrix {both[1]} have no halves"
        halves = {slot: (shape[0] // 2, *shape[1:]) for slot, shape in shapes.items() if slot.endswith(("_d", "_A"))}
        return super().fault(_as_vera({**shapes, **halves}), weight)

    def configured(self, said: Said, shapes: Shapes, weight: tuple[int, ...]) -> Shapes:
        """Ask for a λ_d of twice the rank."""
        rank = said.count("r")
        return {"pvera_lambda_d": (2 * rank,)} if rank else {}

    def drawn_shapes(self, shapes: Shapes, largest: tuple[int, int]) -> Shapes:
        """Return A (2·r, most inputs) and B (most outputs, r)."""
        rank = self.rank(shapes)
        return {"pvera_A": (2 * rank, largest[1]), "pvera_B": (largest[0], rank)}

    def factors(self, tensors: Tensors, terms: TermsOf[VeraSettings]) -> tuple[torch.Tensor, torch.Tensor]:
        """Take the upper halves, as VeRA's."""
        halves = {slot: tensor.chunk(2)[0] for slot, tensor in tensors.items() if slot.endswith(("_d", "_A"))}
        return super().factors(_as_vera({**tensors, **halves}), terms)


def _as_vera(found: Mapping[str, Found]) -> dict[str, Found]:
    return {slot.removeprefix("p"): each for slot, each in found.items()}


KINDS = (Vera(), Pvera())
