"""A change that is zero: it is told in plan, bake and verify, and the output has the base's own bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lorabake import VerifyOptions, load_recipe, plan, verify
from lorabake.adapters import kinds
from lorabake.execution.zeros import negative_zeros
from lorabake.planning.cautions import cautions_of
from lorabake.reference.survival import estimate
from lorabake.verification.findings import Finding
from tests import builders as b
from tests.documents import check
from tests.test_kinds import LINEAR, Case, cases, formula, tensors_of
from tests.test_packing import FC, IN, OUT, SCALED

KEEPING = {"magnitude", "dora_scale", "rescale"}


def signed_zeros(tensor: torch.Tensor) -> torch.Tensor:
    """Put zeros of both signs in places of a tensor: every seventh value, and a whole row."""
    flat = tensor.clone().view(-1)
    flat[::7] = -0.0
    flat[1::14] = 0.0
    tensor = flat.view(tensor.shape)
    tensor[2] = -0.0
    return tensor


def told(recipe: Path) -> dict[str, set[str]]:
    """Bake and verify; return the names of what is warned of, by who warns."""
    made = plan(load_recipe(recipe))
    found = {"plan": {each.check for each in cautions_of(made, estimate(made))}}
    warnings: list[str] = []
    result = b.run(recipe, warn=warnings.append)
    assert [each for each in warnings if each.startswith("LoRA ")] == [str(each) for each in result.cautions]
    found["bake"] = {each.check for each in result.cautions}
    for stage in ("weights", "quick"):
        judged = verify(load_recipe(recipe), options=VerifyOptions(stages=(stage,)))
        assert judged.is_true, [each for each in judged.findings if each.status == "fail"]
        found[stage] = {each.check.split(".")[1] for each in judged.findings if each.status == "warn"}
    return found


def everywhere(found: dict[str, set[str]], check: str) -> bool:
    named = {check in names for names in found.values()}
    assert len(named) == 1, found
    return named.pop()


# -- Every kind ----------------------------------------------------------------------------------------------


def zeroed(case: Case) -> Case:
    """Let all that a kind trains be zero, but for lengths, which are of the weight and not of its change."""
    tensors = tensors_of(case)
    given = {
        suffix: (slot, tensor if slot in KEEPING or not tensor.is_floating_point() else torch.zeros_like(tensor))
        for suffix, (slot, tensor) in tensors.items()
        if suffix in case.shapes
    }
    return replace(case, shapes={}, given={**case.given, **given})


def is_idle(case: Case) -> bool:
    weight = b.Values(7)(*LINEAR)
    return torch.equal(formula(case, weight), weight.double())


ZEROED = {name: zeroed(case) for name, case in cases(LINEAR).items()}
IDLE = [name for name, case in ZEROED.items() if is_idle(case)]
ONE_EACH = {ZEROED[name].kind: name for name in reversed(IDLE)}


def test_most_kinds_change_nothing_with_zeros() -> None:
    assert len(IDLE) > len(ZEROED) / 2
    named = {kind.name: kind for kind in kinds()}
    assert all(named[ZEROED[name].kind].adds for name in IDLE)


@pytest.mark.parametrize("name", ONE_EACH.values())
def test_a_kind_without_a_change_is_told_and_keeps_bytes(name: str, tmp_path: Path) -> None:
    base = signed_zeros(b.Values(7)(*LINEAR, dtype=torch.float16))
    b.save(tmp_path / "base.safetensors", {"layer.weight": base, "other.weight": base.clone()})
    case = ZEROED[name]
    tensors = {f"{case.prefix}layer{suffix}": tensor for suffix, (_, tensor) in tensors_of(case).items()}
    b.save(tmp_path / "lora.safetensors", tensors)
    recipe = b.recipe(tmp_path)
    assert everywhere(told(recipe), "zero")
    assert b.tensor_bytes(tmp_path / "out.safetensors") == b.tensor_bytes(tmp_path / "base.safetensors")


@pytest.mark.parametrize("slot", ["up", "down"])
def test_one_factor_of_zeros_is_enough_and_others_are_not_blamed(slot: str, tmp_path: Path) -> None:
    names = [f"m{n}" for n in range(40)]
    b.save(tmp_path / "base.safetensors", {f"{name}.weight": b.Values(n)(24, 16) for n, name in enumerate(names)})
    modules = {f"lora_unet_{name}": b.lora((24, 16), seed=n, size=0.1) for n, name in enumerate(names)}
    idle = ["lora_unet_m7", "lora_unet_m30"]
    for name in idle:
        modules[name] = modules[name] | {slot: -torch.zeros_like(modules[name][slot])}
    b.kohya(tmp_path / "lora.safetensors", modules)
    recipe = b.recipe(tmp_path)
    result = b.run(recipe)
    (caution,) = result.cautions
    assert caution.note == "2 of 40 modules (lora_unet_m30, …) change nothing: what is added is zero"
    (warning,) = check(result.report())["warnings"]
    assert warning["message"] == f"LoRA 'lora.safetensors': {caution.note}"
    assert (warning["check"], warning["measured"], warning["limit"], warning["unit"]) == ("zero", 2, 0, "modules")
    (tally,) = estimate(result.plan).values()
    assert tally.idle == sorted(idle)
    (finding,) = [each for each in look(recipe) if each.check == "weights.zero"]
    assert finding.note == caution.note
    some = verify(load_recipe(recipe), options=VerifyOptions(stages=("weights",), sample_weights=39))
    assert "of the 39 sampled modules" in next(each.note for each in some.findings if each.check == "weights.zero")


def look(recipe: Path, baked: Path | None = None) -> list[Finding]:
    return list(verify(load_recipe(recipe), baked, VerifyOptions(stages=("structure", "weights"))).findings)


# -- Every path ----------------------------------------------------------------------------------------------

DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
    "e4m3": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
}
Change = Callable[[b.Slots], b.Slots]
PARTS: dict[str, Change] = {
    "all": lambda slots: slots | {"up": torch.zeros_like(slots["up"])},
    "rows": lambda slots: slots | {"up": slots["up"] * (torch.arange(len(slots["up"])) >= 8)[:, None]},
    "columns": lambda slots: slots | {"down": slots["down"] * (torch.arange(slots["down"].shape[1]) >= 6)},
    "cancelling": lambda slots: {"up": torch.ones(48, 2), "down": torch.stack([slots["down"][0], -slots["down"][0]])},
}


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_keep_their_signs_where_nothing_is_added(dtype: str, tmp_path: Path) -> None:
    base = {f"{part}.weight": signed_zeros(b.Values(1)(48, 40)).to(DTYPES[dtype]) for part in PARTS}
    slots = {part: make(b.lora((48, 40), seed=2, size=0.3)) for part, make in PARTS.items()}
    b.save(tmp_path / "base.safetensors", base)
    b.kohya(tmp_path / "lora.safetensors", {f"lora_unet_{part}": own for part, own in slots.items()})
    rounding = {"rounding": {"name": "stochastic", "seed": 1}} if DTYPES[dtype].itemsize < 4 else {}
    for output in ({}, rounding):
        found = load_file(b.run(b.recipe(tmp_path, output={"allow_loss": True, **output})).path)
        codes = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[DTYPES[dtype].itemsize]
        for part, own in slots.items():
            still = own["up"].double() @ own["down"].double() == 0
            after, before = (tensors[f"{part}.weight"].view(codes) for tensors in (found, base))
            assert still.any()
            assert torch.equal(after[still], before[still]), part
            assert still.all() or (after[~still] != before[~still]).float().mean() > 0.5


def dora(slots: b.Slots, base: torch.Tensor) -> b.Slots:
    """Give a change of nothing by columns, which takes the whole tensor at once, lengths that are others."""
    return slots | {"dora_scale": base.double().square().sum(dim=0, keepdim=True).sqrt().float() * 1.5}


@pytest.mark.parametrize("target", ["float16", "float32"])
def test_a_whole_tensor_keeps_the_signs_of_its_zeros(target: str, tmp_path: Path) -> None:
    base = signed_zeros(b.Values(1)(48, 40, dtype=torch.float16))
    b.save(tmp_path / "base.safetensors", {"fc.weight": base})
    b.kohya(tmp_path / "lora.safetensors", {FC: dora(PARTS["all"](b.lora((48, 40))), base)})
    after = load_file(b.run(b.recipe(tmp_path, output={"dtype": target})).path)["fc.weight"]
    zero = base == 0
    assert torch.equal(after[zero].signbit(), base[zero].signbit())
    assert (after[zero] == 0).all()


def test_a_transposed_weight_keeps_bytes(tmp_path: Path) -> None:
    base = b.gpt2()
    base["h.0.attn.c_attn.weight"] = signed_zeros(base["h.0.attn.c_attn.weight"])
    b.save(tmp_path / "base.safetensors", base)
    slots = b.lora((24, 8), seed=3)
    b.peft(tmp_path / "lora", {"transformer.h.0.attn.c_attn": PARTS["all"](slots)}, fan_in_fan_out=True)
    recipe = b.recipe(tmp_path, loras=["lora"])
    assert everywhere(told(recipe), "zero")
    assert b.tensor_bytes(tmp_path / "out.safetensors") == b.tensor_bytes(tmp_path / "base.safetensors")


@pytest.mark.parametrize("method", ["ties", "dare_linear", "svd"])
def test_a_method_keeps_bytes(method: str, tmp_path: Path) -> None:
    base = signed_zeros(b.Values(1)(48, 40))
    b.save(tmp_path / "base.safetensors", {"fc.weight": base})
    for seed, name in enumerate(("one", "two")):
        b.kohya(tmp_path / f"{name}.safetensors", {FC: PARTS["all"](b.lora((48, 40), seed=seed))})
    how = {"name": method} | ({"rank": 2} if method == "svd" else {"density": 0.5})
    recipe = b.recipe(tmp_path, loras=["one.safetensors", "two.safetensors"], method=how)
    assert everywhere(told(recipe), "zero")
    assert [each.subject for each in look(recipe) if each.check == "weights.zero"] == [
        "one.safetensors",
        "two.safetensors",
    ]
    assert b.tensor_bytes(tmp_path / "out.safetensors") == b.tensor_bytes(tmp_path / "base.safetensors")


@pytest.mark.parametrize("name", SCALED)
def test_a_scaled_weight_is_not_encoded_anew(name: str, tmp_path: Path) -> None:
    stored, _ = SCALED[name]("fc")
    b.save(tmp_path / "base.safetensors", stored)
    b.kohya(tmp_path / "lora.safetensors", {FC: PARTS["all"](b.lora((OUT, IN)))})
    recipe = b.recipe(tmp_path)
    assert everywhere(told(recipe), "zero")
    assert b.tensor_bytes(tmp_path / "out.safetensors") == b.tensor_bytes(tmp_path / "base.safetensors")
    assert not [each for each in look(recipe) if each.status == "fail"]


@pytest.mark.parametrize("size", [1e-8, 1e-12, 1e-30])
def test_a_change_below_float32_of_a_scaled_weight_is_proven(size: float, tmp_path: Path) -> None:
    """Whether float32 sees it or not: the weight may stay as it is stored, or be scaled anew."""
    stored, _ = SCALED["int8 rows"]("fc")
    b.save(tmp_path / "base.safetensors", stored)
    b.kohya(tmp_path / "lora.safetensors", {FC: b.lora((OUT, IN), size=size)})
    recipe = b.recipe(tmp_path, output={"allow_loss": True})
    b.run(recipe)
    assert not [each for each in look(recipe) if each.status == "fail"]


def test_what_replaces_has_zeros_of_its_own(tmp_path: Path) -> None:
    base = {"fc.weight": signed_zeros(b.Values(1)(48, 40)), "head.weight": signed_zeros(b.Values(2)(48, 40))}
    b.save(tmp_path / "base.safetensors", base)
    value = -signed_zeros(b.Values(3)(48, 40))
    b.peft(tmp_path / "lora", {"fc": b.lora((48, 40)), "head": {"whole": value}}, modules_to_save=["head"])
    after = load_file(b.run(b.recipe(tmp_path, loras=["lora"])).path)["head.weight"]
    assert torch.equal(after, value)


# -- What verify says of signs ---------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(48, 40), (256, 256)], ids=["small", "screened"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "e4m3"])
def test_a_zero_of_another_sign_is_told_where_nothing_is_added(
    dtype: str, shape: tuple[int, int], tmp_path: Path
) -> None:
    base = signed_zeros(b.Values(1)(*shape)).to(DTYPES[dtype])
    slots = b.lora(shape, seed=2, size=0.3)
    slots["up"][: shape[0] // 2] = 0
    b.save(tmp_path / "base.safetensors", {"fc.weight": base})
    b.kohya(tmp_path / "lora.safetensors", {FC: slots})
    recipe = b.recipe(tmp_path)
    path = b.run(recipe).path
    assert "weights.signs" not in {each.check for each in look(recipe)}
    other = load_file(path)
    other["fc.weight"][2, :3] = 0.0
    b.save(tmp_path / "other.safetensors", other, b.header(path)[1])
    (finding,) = [each for each in look(recipe, tmp_path / "other.safetensors") if each.check == "weights.signs"]
    assert finding.measured == "3 values"
    assert finding.status == "warn"


def test_numbers_on_the_host_show_where_negative_zeros_are() -> None:
    for dtype in DTYPES.values():
        values = (b.Values(1)(1000).abs() + 1).to(dtype)
        assert negative_zeros(values) is None
        for places in ([0], [999], [3, 4, 998], [*range(0, 1000, 7)]):
            values[places] = -0.0
            values[500] = 0.0
            found = negative_zeros(values)
            wanted = np.flatnonzero((values.double().numpy() == 0) & np.signbit(values.double().numpy()))
            assert found is not None
            assert [int(place) for place in found] == wanted.tolist()
    assert negative_zeros(torch.empty(0)) is None
