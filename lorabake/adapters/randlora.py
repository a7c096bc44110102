"""RandLoRA: a sum of products of random matrices that all modules share, scaled by two small trained matrices.

With n bases of rank r for a weight whose shorter side is m: A (r, 1, ≥ m), B (≥ longer side, ≥ n, r),
`randlora_lambda` (r, n), `randlora_gamma` (n, m). P[r', n', j] = λ[r', n']·A[r', 0, j]·γ[n', j]; P and B are laid out
flat as they lie in memory, (r·n, m) and (longer, n·r), and multiplied: ΔW = alpha/r·B·P, or its transpose where
outputs are the shorter side. Albert et al. 2025 (arXiv 2502.00987); PEFT's layout, flat order included.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from lorabake.adapters.kind import Kind, Settings, Shapes, Tensors, Terms, stated

if TYPE_CHECKING:
    import torch


class RandLora(Kind):
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
    low_rank = True
    peft_type = "RANDLORA"
    peft_fields = frozenset(
        {"r", "projection_prng_key", "save_projection", "sparse", "very_sparse", "randlora_dropout", "fan_in_fan_out"}
        | {"randlora_alpha", "bias", "init_weights"}
    )

    def rank(self, shapes: Shapes) -> int:
        """Return the number of products that are summed."""
        return shapes["randlora_lambda"][0] * shapes["randlora_lambda"][1]

    def settings(self, config: Settings | None, module: str, shapes: Shapes) -> Settings:
        """Compute the scale, and ask for the matrices themselves."""
        alpha = stated(config, "randlora_alpha")
        if not shapes.keys() >= self.optional:
            raise ValueError(
                "its random matrices are not in the file (save_projection was off)\n"
                "Load it with PEFT, set save_projection, and save it again."
            )
        return {"scale": alpha / shapes["randlora_lambda"][0]}

    def fault(self, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        """Ask for matrices that reach to the weight's sides."""
        scales, gamma = shapes["randlora_lambda"], shapes["randlora_gamma"]
        if len(weight) != 2 or len(scales) != 2 or gamma != (scales[1], min(weight)):
            return f"its scales {scales} and {gamma} are for another size"
        if not shapes.keys() >= self.optional:
            return None
        a, b = shapes["randlora_A"], shapes["randlora_B"]
        fits = len(a) == len(b) == 3 and a[:2] == (scales[0], 1) and b[2] == scales[0]
        if not fits or a[2] < min(weight) or b[0] < max(weight) or b[1] < scales[1]:
            return f"its matrices {a} and {b} do not reach"
        return None

    def factors(self, tensors: Tensors, terms: Terms) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale the smaller matrix; the other stays as it is."""
        short, long = min(terms.shape), max(terms.shape)
        scales = tensors["randlora_lambda"]
        right = scales[:, :, None] * tensors["randlora_A"][:, :, :short] * tensors["randlora_gamma"]
        right = right.flatten(end_dim=1) * cast(float, terms.settings["scale"])
        left = tensors["randlora_B"][:long, : scales.shape[1]].flatten(1)
        return (left, right) if short == terms.shape[1] else (right.T, left.T)


KINDS = (RandLora(),)
