"""VeRA: all modules share two random matrices; each has two vectors of its own: ΔW = (λ_b ⊙ B)·(λ_d ⊙ A).

A (r, most inputs) and B (most outputs, r) are cut to the module's inputs and outputs; λ_d (r) and λ_b (out) scale
their rows. Kopiczko et al. 2024 (arXiv 2310.11454); PEFT's layout.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorabake.adapters.kind import Kind, Settings, Shapes, Tensors, Terms

if TYPE_CHECKING:
    import torch


class Vera(Kind):
    """Add a product of scaled random matrices."""

    name = "vera"
    title = "VeRA"
    required = frozenset({"vera_lambda_b", "vera_lambda_d"})
    optional = frozenset({"vera_A", "vera_B"})
    suffixes = ((r"\.vera_lambda_b", "vera_lambda_b"), (r"\.vera_lambda_d", "vera_lambda_d"))
    shared = (
        (r"base_model\.vera_A(?:\.[^.]+)?", "vera_A", "vera_lambda_d"),
        (r"base_model\.vera_B(?:\.[^.]+)?", "vera_B", "vera_lambda_d"),
    )
    low_rank = True
    peft_type = "VERA"
    peft_fields = frozenset(
        {"r", "projection_prng_key", "save_projection", "vera_dropout", "d_initial", "fan_in_fan_out", "bias"}
        | {"init_weights"}
    )

    def rank(self, shapes: Shapes) -> int:
        """Return the length of λ_d."""
        return shapes["vera_lambda_d"][0]

    def settings(self, config: Settings | None, module: str, shapes: Shapes) -> Settings:
        """Ask for the matrices themselves: drawn again, they depend on all modules that were trained."""
        if not shapes.keys() >= self.optional:
            raise ValueError(
                "its random matrices are not in the file (save_projection was off)\n"
                "Load it with PEFT, set save_projection, and save it again."
            )
        return {}

    def fault(self, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Ask for matrices that reach to the weight's sides."""
        rank, outputs = shapes["vera_lambda_d"], shapes["vera_lambda_b"]
        a, b = shapes.get("vera_A", (*rank, 1 << 62)), shapes.get("vera_B", (1 << 62, *rank))
        if len(rank) != 1 or len(a) != 2 or len(b) != 2 or a[0] < rank[0] or b[1] != a[0] or a[0] != rank[0]:
            return f"its vectors {rank} and matrices {a}, {b} disagree on the rank"
        if len(weight) != 2 or outputs != weight[:1] or a[1] < weight[1] or b[0] < weight[0]:
            return f"its delta is {outputs[0] if outputs else 1} × {a[1]} at most"
        return None

    def factors(self, tensors: Tensors, terms: Terms) -> tuple[torch.Tensor, torch.Tensor]:
        """Cut the matrices and scale their rows."""
        out, inputs = terms.shape
        up = tensors["vera_lambda_b"][:, None] * tensors["vera_B"][:out]
        return up, tensors["vera_lambda_d"][:, None] * tensors["vera_A"][:, :inputs]


KINDS = (Vera(),)
