"""Adapter kinds: each against its formula, written out as sums over indices in float64."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, product
from math import prod

import pytest
import torch

from lorabake.adapters import kinds, kinds_of
from lorabake.adapters.dora import axis, renorm
from lorabake.adapters.kind import Delta, Kind, Product, Replacement
from lorabake.adapters.settings import TermsOf
from lorabake.adapters.shapes import matrix
from lorabake.keymap.said import Said

Shape = tuple[int, ...]
Tensors = dict[str, torch.Tensor]
KINDS = {kind.name: kind for kind in kinds()}
SLOTS = sorted(frozenset[str]().union(*(kind.required | kind.optional for kind in kinds())))


def make(shapes: dict[str, Shape], seed: int = 0) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {slot: torch.randn(shape, generator=generator, dtype=torch.float64) for slot, shape in shapes.items()}


def lora_sum(tensors: Tensors, shape: Shape) -> torch.Tensor:
    """ΔW[o, i, …] = Σ_r B[o, r] · A[r, i, …], element by element."""
    up, down = tensors["up"], tensors["down"]
    delta = torch.zeros(shape, dtype=torch.float64)
    for place in product(*map(range, shape)):
        for rank in range(down.shape[0]):
            down_at = down.flatten(1)[rank, torch.arange(prod(shape[1:])).reshape(shape[1:])[place[1:]]]
            delta[place] += up.flatten(1)[place[0], rank] * down_at
    return delta


def tucker_sum(tensors: Tensors, shape: Shape) -> torch.Tensor:
    """ΔW[o, i, …] = Σ_m Σ_n B[o, m] · M[m, n, …] · A[n, i], element by element."""
    up, mid, down = tensors["up"], tensors["mid"], tensors["down"]
    delta = torch.zeros(shape, dtype=torch.float64)
    for place in product(*map(range, shape)):
        for m, n in product(range(mid.shape[0]), range(mid.shape[1])):
            delta[place] += up.flatten(1)[place[0], m] * mid[(m, n, *place[2:])] * down.flatten(1)[n, place[1]]
    return delta


Formula = Callable[[Tensors, Shape], torch.Tensor]
# name of the case -> (kind, shapes by slot, shape of the parameter, what the kind says of it)
FORMULAS: dict[str, tuple[str, dict[str, Shape], Shape, Formula]] = {
    "linear": ("lora", {"up": (6, 2), "down": (2, 5)}, (6, 5), lora_sum),
    "conv 1×1": ("lora", {"up": (6, 2, 1, 1), "down": (2, 5, 1, 1)}, (6, 5, 1, 1), lora_sum),
    "conv 3×3": ("lora", {"up": (6, 2, 1, 1), "down": (2, 5, 3, 3)}, (6, 5, 3, 3), lora_sum),
    "conv 1×3": ("lora", {"up": (4, 2, 1, 1), "down": (2, 5, 1, 3)}, (4, 5, 1, 3), lora_sum),
    "conv1d": ("lora", {"up": (6, 2, 1), "down": (2, 5, 3)}, (6, 5, 3), lora_sum),
    "conv3d": ("lora", {"up": (4, 2, 1, 1, 1), "down": (2, 3, 1, 2, 2)}, (4, 3, 1, 2, 2), lora_sum),
    "linear on a 1×1 convolution": ("lora", {"up": (6, 2), "down": (2, 5)}, (6, 5, 1, 1), lora_sum),
    "1×1 convolution on a linear": ("lora", {"up": (6, 2, 1, 1), "down": (2, 5, 1, 1)}, (6, 5), lora_sum),
    "Tucker": (
        "lora",
        {"up": (6, 2, 1, 1), "mid": (2, 3, 3, 3), "down": (3, 5, 1, 1)},
        (6, 5, 3, 3),
        tucker_sum,
    ),
    "Tucker 3d": (
        "lora",
        {"up": (4, 2, 1, 1, 1), "mid": (2, 2, 1, 2, 3), "down": (2, 3, 1, 1, 1)},
        (4, 3, 1, 2, 3),
        tucker_sum,
    ),
    "MLX": (
        "mlx",
        {"lora_a": (5, 2), "lora_b": (2, 6)},
        (6, 5),
        lambda tensors, _: torch.einsum("ir,ro->oi", tensors["lora_a"], tensors["lora_b"]),
    ),
    "lora_bias": (
        "lora_bias",
        {"bias": (6,), "up": (6, 2), "down": (2, 5)},
        (6,),
        lambda tensors, _: tensors["bias"],
    ),
    "whole": ("whole", {"whole_weight": (6, 5, 3, 3)}, (6, 5, 3, 3), lambda tensors, _: tensors["whole_weight"]),
    "whole norm": ("whole", {"whole_weight": (6,)}, (6,), lambda tensors, _: tensors["whole_weight"]),
    "whole_bias": ("whole_bias", {"whole_bias": (6,)}, (6,), lambda tensors, _: tensors["whole_bias"]),
}


@pytest.mark.parametrize("case", FORMULAS)
def test_a_kind_computes_its_formula(case: str) -> None:
    name, shapes, shape, formula = FORMULAS[case]
    kind, tensors = KINDS[name], make(shapes)
    assert kind.fault(shapes, shape) is None
    terms = TermsOf(shape, 1.0, kind.settings(Said("fc"), shapes))
    if isinstance(kind, Product):
        up, down = kind.factors(tensors, terms)
        assert (up.ndim, down.ndim) == (2, 2)
        found = up @ down
    elif isinstance(kind, Replacement):
        found = kind.value(tensors)
    else:
        assert isinstance(kind, Delta)
        weight = torch.zeros(matrix(shape), dtype=torch.float64)
        found = kind.delta(kind.prepare(tensors, terms), weight, slice(0, matrix(shape)[0]), terms)
    assert found.shape == matrix(shape)
    torch.testing.assert_close(found.reshape(shape), formula(tensors, shape), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "shapes", "rank"),
    [
        ("lora", {"up": (6, 2), "down": (2, 5)}, 2),
        ("lora", {"up": (6, 2, 1, 1), "mid": (2, 3, 3, 3), "down": (3, 5, 1, 1)}, 3),
        ("lora_bias", {"bias": (6,), "up": (6, 4), "down": (4, 5)}, 4),
        ("mlx", {"lora_a": (5, 3), "lora_b": (3, 6)}, 3),
        ("whole", {"whole_weight": (6, 5)}, 1),
    ],
)
def test_alpha_is_divided_by_the_rank(name: str, shapes: dict[str, Shape], rank: int) -> None:
    assert KINDS[name].rank(shapes) == rank


# -- which kinds a module's slots ask for ----------------------------------------------------------------


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.name)
def test_a_kind_declares_what_it_needs(kind: Kind) -> None:
    assert kind.required or any(kind.claims(frozenset(slots)) for slots in combinations(kind.optional, 2))
    assert not kind.claims(frozenset())
    assert sum(isinstance(kind, shape) for shape in (Product, Delta, Replacement)) == 1
    assert not kind.required & kind.optional
    assert kind.parameter in ("weight", "bias")
    assert kind.title


def test_any_set_of_slots_is_accounted_for_whole_and_once_or_refused() -> None:
    assert len({kind.name for kind in kinds()}) == len(kinds())
    whole = [kind.required | part for kind in kinds() for part in (frozenset[str](), kind.optional)]
    few = [frozenset(slots) for count in range(4) for slots in combinations(SLOTS, count)]
    for slots in (*few, *whole, *(one | other for one, other in combinations(whole, 2))):
        chosen = kinds_of(slots)
        parameters = [(kind.parameter, kind.underlies) for kind in chosen]
        assert len(set(parameters)) == len(parameters), sorted(slots)
        under = {kind.parameter for kind in chosen if kind.underlies}
        assert all(isinstance(kind, Product) for kind in chosen if kind.parameter in under and not kind.underlies), (
            sorted(slots)
        )
        assert all(kind.required <= slots for kind in chosen)
        if chosen:
            assert slots <= frozenset().union(*(kind.claims(slots) for kind in chosen))


@pytest.mark.parametrize(
    ("slots", "expected"),
    [
        ("up down", {"lora"}),
        ("up down alpha mid dora_scale", {"lora"}),
        ("up down magnitude", {"lora"}),
        ("up down bias", {"lora", "lora_bias"}),
        ("up down alpha mid sparse_places sparse_values sparse_size", {"sparse_lora"}),
        ("up down alpha sparse_places sparse_values", set()),
        ("up down alpha whole_bias", {"lora", "whole_bias"}),
        ("whole_weight whole_bias", {"whole", "whole_bias"}),
        ("whole_weight", {"whole"}),
        ("whole_weight on_input", {"ia3"}),
        ("ia3_l", {"ia3_peft", "ia3_peft_bias"}),
        ("lokr_w1 lokr_w2", {"lokr"}),
        ("lokr_w1_a lokr_w1_b lokr_w2_a lokr_w2_b lokr_t2 alpha dora_scale", {"lokr"}),
        ("lokr_w1 lokr_w2_a", set()),
        ("lokr_w1 lokr_w1_a lokr_w1_b lokr_w2", set()),
        ("lokr_w1", set()),
        ("hada_w1_a hada_w1_b hada_w2_a hada_w2_b alpha", {"loha"}),
        ("hada_w1_a hada_w1_b hada_w2_a", set()),
        ("glora_a1 glora_a2 glora_b1 glora_b2 glora_bm alpha", {"glora"}),
        ("diff diff_b", {"diff", "diff_b"}),
        ("w_norm b_norm", {"w_norm", "b_norm"}),
        ("up down alpha diff_b", {"lora", "diff_b"}),
        ("diff w_norm", set()),
        ("oft_blocks alpha rescale", {"oft"}),
        ("oft_blocks_0 alpha", {"oft_parts"}),
        ("oft_blocks_0 oft_blocks_1 oft_blocks_2 alpha", {"oft_parts"}),
        ("oft_blocks_0 oft_blocks_2 alpha", set()),
        ("oft_blocks_1 alpha", set()),
        ("oft_blocks_0", set()),
        ("oft_R scaled_oft", {"oft_peft"}),
        ("boft_R boft_s", {"boft_peft"}),
        ("boft_R", set()),
        ("up", set()),
        ("down alpha", set()),
        ("alpha", set()),
        ("up bias", set()),
        ("down bias", set()),
        ("whole_weight alpha", set()),
        ("up down whole_weight", {"whole", "lora"}),
        ("up down bias whole_bias", {"whole_bias", "lora", "lora_bias"}),
        ("up down set_weight", set()),
        ("hada_w1_a hada_w1_b hada_w2_a hada_w2_b whole_weight", set()),
        ("up down unheard_of", set()),
        ("", set()),
    ],
)
def test_the_slots_choose_the_kinds(slots: str, expected: set[str]) -> None:
    assert {kind.name for kind in kinds_of(frozenset(slots.split()))} == expected


# -- shapes that do not fit --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shapes", "weight", "words"),
    [
        ("lora", {"up": (6, 2), "down": (2, 5)}, (6, 4), "its delta is 6 × 5"),
        ("lora", {"up": (6, 2), "down": (2, 5)}, (7, 5), "its delta is 6 × 5"),
        ("lora", {"up": (6, 2), "down": (2, 5)}, (6, 5, 3, 3), "its delta is 6 × 5"),
        ("lora", {"up": (6, 2), "down": (2, 5)}, (5, 6), "its delta is 6 × 5: the weight is stored transposed"),
        ("lora", {"up": (6, 2), "down": (3, 5)}, (6, 5), "disagree on the rank"),
        ("lora", {"up": (2, 5), "down": (6, 2)}, (6, 5), "up and down are exchanged"),
        ("lora", {"up": (6,), "down": (2, 5)}, (6, 5), "at least two dimensions"),
        ("lora", {"up": (6, 2), "down": ()}, (6, 5), "at least two dimensions"),
        ("lora", {"up": (6, 2), "mid": (2, 2), "down": (2, 5)}, (6, 5), "Tucker core"),
        ("lora", {"up": (6, 2), "mid": (2, 4, 3, 3), "down": (3, 5)}, (6, 5, 3, 3), "Tucker core"),
        ("lora", {"up": (6, 4), "mid": (2, 3, 3, 3), "down": (3, 5)}, (6, 5, 3, 3), "disagree on the rank"),
        ("lora", {"up": (6, 2), "mid": (2, 2, 3, 3), "down": (2, 5, 3, 3)}, (6, 5, 3, 3), "Tucker core"),
        ("lora", {"up": (2, 6), "down": (6, 2)}, (6, 6), "up and down are exchanged"),
        ("lora", {"up": (6, 0), "down": (0, 5), "magnitude": (6,)}, (6, 5), "its rank is 0"),
        ("lora_bias", {"bias": (5,), "up": (6, 2), "down": (2, 5)}, (6,), "its bias is (5,)"),
        ("whole", {"whole_weight": (6, 4)}, (6, 5), "replace"),
        ("whole_bias", {"whole_bias": (5,)}, (6,), "replace"),
    ],
)
def test_what_does_not_fit_is_said(name: str, shapes: dict[str, Shape], weight: Shape, words: str) -> None:
    assert words in str(KINDS[name].fault(shapes, weight))


def test_factors_of_full_rank_are_not_taken_for_exchanged_ones() -> None:
    assert KINDS["lora"].fault({"up": (6, 6), "down": (6, 6)}, (6, 6)) is None


# -- DoRA ----------------------------------------------------------------------------------------------------


def rows_scaled(updated: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    """V[o, …] · d[o] / √Σ V[o, …]², row by row."""
    result = torch.empty_like(updated)
    for row in range(updated.shape[0]):
        length = sum(float(value) ** 2 for value in updated[row].flatten()) ** 0.5
        result[row] = updated[row] * magnitude.flatten()[row] / length
    return result


def columns_scaled(updated: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    """V[:, i, …] · d[i] / √Σ V[:, i, …]², input by input."""
    result = torch.empty_like(updated)
    for column in range(updated.shape[1]):
        length = sum(float(value) ** 2 for value in updated[:, column].flatten()) ** 0.5
        result[:, column] = updated[:, column] * magnitude.flatten()[column] / length
    return result


@pytest.mark.parametrize(
    ("slot", "magnitude", "weight", "expected", "formula"),
    [
        ("magnitude", (6,), (6, 5), "row", rows_scaled),
        ("magnitude", (1, 6, 1, 1), (6, 5, 3, 3), "row", rows_scaled),  # PEFT's, on convolutions
        ("dora_scale", (6, 1), (6, 5), "row", rows_scaled),
        ("dora_scale", (6, 1, 1, 1), (6, 5, 3, 3), "row", rows_scaled),
        ("dora_scale", (1, 5), (6, 5), "column", columns_scaled),
        ("dora_scale", (1, 5, 1, 1), (6, 5, 3, 3), "column", columns_scaled),
        ("dora_scale", (1, 6), (6, 6), "column", columns_scaled),
        ("dora_scale", (6, 1), (6, 6), "row", rows_scaled),
        ("dora_scale", (5, 1), (5, 1), "row", rows_scaled),
    ],
)
def test_dora_gives_rows_or_columns_their_lengths(
    slot: str, magnitude: Shape, weight: Shape, expected: str, formula: Callable[..., torch.Tensor]
) -> None:
    found = axis({slot: magnitude}, weight)
    assert found == expected
    tensors = make({"updated": weight, "magnitude": magnitude})
    changed = renorm(tensors["updated"].flatten(1), tensors["magnitude"], found, weight).reshape(weight)
    torch.testing.assert_close(changed, formula(tensors["updated"], tensors["magnitude"]), rtol=1e-12, atol=1e-12)


def test_dora_by_rows_may_see_some_of_the_rows() -> None:
    tensors = make({"updated": (6, 5), "magnitude": (6,)})
    updated, magnitude = tensors["updated"], tensors["magnitude"]
    some = renorm(updated[2:4], magnitude[2:4], "row", (2, 5))
    assert torch.equal(some, renorm(updated, magnitude, "row", (6, 5))[2:4])


def test_a_magnitude_given_twice_fits_nothing() -> None:
    assert axis({"magnitude": (6,), "dora_scale": (6, 1)}, (6, 5)) is None


@pytest.mark.parametrize(
    ("slot", "magnitude", "weight"),
    [
        ("magnitude", (5,), (6, 5)),
        ("dora_scale", (5, 1), (6, 5)),
        ("dora_scale", (1, 6), (6, 5)),
        ("dora_scale", (6, 5), (6, 5)),
        ("dora_scale", (1, 45), (6, 5, 3, 3)),
        ("magnitude", (6,), (6,)),
        ("dora_scale", (), (6, 5)),
    ],
)
def test_a_magnitude_of_another_length_fits_nothing(slot: str, magnitude: Shape, weight: Shape) -> None:
    assert axis({slot: magnitude}, weight) is None
