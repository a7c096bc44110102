"""What a patch makes of rows, for every kind: its effect against the second account, all rows at once and some."""

from __future__ import annotations

import pytest
import torch

from lorabake.adapters import kinds
from lorabake.adapters.effect import Effect
from lorabake.adapters.kind import Kind
from lorabake.adapters.settings import NO_SETTINGS, TermsOf
from lorabake.keymap.said import Said
from tests import builders as b
from tests.test_kinds import ALL, WEIGHTS, Case, cases, formula, tensors_of

KINDS = {kind.name: kind for kind in kinds()}


def effect_of(case: Case, shape: tuple[int, ...]) -> Effect:
    tensors = {slot: tensor.double() for slot, tensor in tensors_of(case).values()}
    shapes = {slot: tuple(tensor.shape) for slot, tensor in tensors.items()}
    kind: Kind = KINDS[case.kind]
    settings = kind.settings(Said(f"{case.prefix}layer", is_given=False), shapes)
    assert case.settings in (settings, NO_SETTINGS)
    terms = TermsOf(shape, case.scale, settings)
    return kind.effect(kind.operands(tensors), terms, check, kind.dora_of(shapes, shape, "", 1.0))


def check(tensor: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    assert tensor.shape == shape
    return tensor


@pytest.mark.parametrize(("name", "weight"), ALL)
def test_an_effect_is_what_the_formula_says(name: str, weight: str) -> None:
    case, shape = cases(WEIGHTS[weight])[name], WEIGHTS[weight]
    base = b.Values(7)(*shape).double()
    effect, flat, rows = effect_of(case, shape), base.flatten(1), slice(0, shape[0])
    wanted = formula(case, base).flatten(1)
    torch.testing.assert_close(flat + effect.difference(flat, rows), wanted)
    torch.testing.assert_close(effect.of(flat, rows), wanted if effect.is_result else wanted - flat)
    for before in (None, torch.full_like(flat, 2.0)):  # nothing was added before, and something was
        after = flat.clone() if before is None else flat + before
        effect.apply(after, after if before is None else flat, rows, 0.25)
        due = flat + 0.25 * (wanted - flat)
        if before is not None:
            due = due + (before if KINDS[case.kind].adds else 0.75 * before)
        torch.testing.assert_close(after, due)


@pytest.mark.parametrize(("name", "weight"), ALL)
def test_rows_stand_alone_where_a_kind_says_so(name: str, weight: str) -> None:
    case, shape = cases(WEIGHTS[weight])[name], WEIGHTS[weight]
    kind = KINDS[case.kind]
    tensors = {slot: tuple(tensor.shape) for slot, tensor in tensors_of(case).values()}
    needs_all = kind.needs_all_rows(kind.dora_of(tensors, shape, "", 1.0), turned=False)
    base = b.Values(7)(*shape).double().flatten(1)
    effect, some = effect_of(case, shape), slice(5, 11)
    whole = effect.difference(base, slice(0, shape[0]))
    if not needs_all:
        torch.testing.assert_close(effect.difference(base[some], some), whole[some])
    else:  # other rows of the weight change these
        other = base.clone()
        other[11:] = 1.0
        other[:5] = 1.0
        assert not torch.allclose(effect.difference(other, slice(0, shape[0]))[some], whole[some])


@pytest.mark.parametrize(("name", "weight"), ALL)
def test_factors_are_given_where_a_kind_adds_a_product_alone(name: str, weight: str) -> None:
    case, shape = cases(WEIGHTS[weight])[name], WEIGHTS[weight]
    effect, base = effect_of(case, shape), b.Values(7)(*shape).double().flatten(1)
    if effect.factors is not None:
        up, down = effect.factors
        torch.testing.assert_close(up @ down, effect.of(base, slice(0, shape[0])))
        assert not effect.reads_weight
    assert (effect.factors is not None) == (not KINDS[case.kind].may_sum_weight and not effect.is_result)


def test_no_magnitude_is_passed_over() -> None:
    """A magnitude without a place is an error, as is a place without a magnitude."""
    kind, terms = KINDS["lora"], TermsOf((6, 5), 1.0, NO_SETTINGS)
    tensors = {"up": torch.ones(6, 2), "down": torch.ones(2, 5)}
    with_magnitude = {**tensors, "magnitude": torch.ones(6)}
    lengths = kind.dora_of({slot: tuple(each.shape) for slot, each in with_magnitude.items()}, (6, 5), "", 1.0)
    assert kind.effect(with_magnitude, terms, check, lengths).is_result
    for slots, place in ((with_magnitude, None), (tensors, lengths)):
        with pytest.raises(ValueError, match="magnitude has neither rows nor columns"):
            kind.effect(slots, terms, check, place)
    with pytest.raises(ValueError, match="magnitude has neither rows nor columns"):
        kind.dora_of({"up": (6, 2), "down": (2, 5), "magnitude": (4,)}, (6, 5), "", 1.0)
