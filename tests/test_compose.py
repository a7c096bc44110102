"""Parity with other programs: LoRAs in sequence, and their readings of DoRA and OFT."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorabake import load_recipe, plan
from lorabake.errors import MatchError, RecipeError
from lorabake.verification import VerifyOptions, verify
from tests import builders as b

SHAPES = {"linear": (12, 8), "convolution": (12, 8, 3, 3)}
FC = "lora_unet_fc"


def assert_true(recipe: Path) -> None:
    found = verify(load_recipe(recipe), options=VerifyOptions(stages=("structure", "weights")))
    assert found.is_true, [each for each in found.findings if each.status == "fail"]


def product(shape: tuple[int, ...], seed: int) -> dict[str, torch.Tensor]:
    kernel = shape[2:]
    return {
        "lora_up.weight": b.Values(seed)(shape[0], 3, *(1 for _ in kernel)),
        "lora_down.weight": b.Values(seed + 1)(3, *shape[1:]),
        "alpha": torch.tensor(2.0),
    }


def lora(folder: Path, name: str, slots: dict[str, torch.Tensor]) -> None:
    save_file({f"{FC}.{slot}": tensor for slot, tensor in slots.items()}, folder / f"{name}.safetensors")


def change(slots: dict[str, torch.Tensor]) -> torch.Tensor:
    up, down = slots["lora_up.weight"].double(), slots["lora_down.weight"].double()
    return 2 / 3 * torch.einsum("or,r...->o...", up.flatten(1), down)


# -- In sequence -----------------------------------------------------------------------------------------


def kinds(shape: tuple[int, ...]) -> dict[str, dict[str, torch.Tensor]]:
    skew = b.Values(7)(3, 4, 4) * 0.3
    return {
        "a": product(shape, 1),
        "b": {"oft_blocks": skew, "alpha": torch.tensor(1.0)},
        "c": product(shape, 3) | {"dora_scale": b.Values(9)(shape[0], *(1 for _ in shape[1:])).abs() + 0.5},
        "d": {"weight": b.Values(5)(shape[0]), "on_input": torch.tensor(False)},
        "e": product(shape, 11) | {"dora_scale": b.Values(13)(1, *shape[1:2], *(1 for _ in shape[2:])).abs() + 0.5},
    }


@pytest.mark.parametrize("form", SHAPES)
@pytest.mark.parametrize("order", ["abcde", "edcba", "cbead"])
def test_in_sequence_is_one_bake_after_the_other(order: str, form: str, tmp_path: Path) -> None:
    shape = SHAPES[form]
    b.save(tmp_path / "base.safetensors", {"fc.weight": b.Values(20)(*shape, dtype=torch.float64)})
    for name, slots in kinds(shape).items():
        lora(tmp_path, name, slots)
    loras = [{"path": f"{name}.safetensors", "strength": 0.7 - 0.3 * (name == "b")} for name in order]
    recipe = b.recipe(tmp_path, compose="sequential", loras=loras)
    together = load_file(b.run(recipe).path)["fc.weight"]
    assert_true(recipe)
    summed = load_file(b.run(b.recipe(tmp_path, loras=loras)).path)["fc.weight"]
    b.run(b.recipe(tmp_path, loras=loras[:1]))
    for each in loras[1:]:
        (tmp_path / "out.safetensors").rename(tmp_path / "base.safetensors")
        b.run(b.recipe(tmp_path, loras=[each]))
    torch.testing.assert_close(together, load_file(tmp_path / "out.safetensors")["fc.weight"], rtol=1e-12, atol=1e-12)
    assert float((together - summed).abs().max()) > 1e-2


def test_what_reads_the_weight_sees_what_came_before(tmp_path: Path) -> None:
    shape = (24, 8)
    b.save(tmp_path / "base.safetensors", {"fc.weight": b.Values(20)(*shape)})
    whole = {"weight": b.Values(5)(shape[1]), "on_input": torch.tensor(True)}
    lora(tmp_path, "a", product(shape, 1))
    lora(tmp_path, "b", whole)
    both = [{"path": "a.safetensors"}, {"path": "b.safetensors"}]
    recipe = b.recipe(tmp_path, compose="sequential", loras=both)
    after = load_file(b.run(recipe).path)["fc.weight"].double()
    exact = (b.Values(20)(*shape).double() + change(product(shape, 1))) * (1 + whole["weight"].double())
    torch.testing.assert_close(after, exact, rtol=1e-5, atol=1e-6)
    assert_true(recipe)


@pytest.mark.parametrize(
    "fields", [{"compose": "sequential"}, {"loras": [{"path": "a.safetensors", "semantics": "peft"}]}], ids=str
)
def test_methods_take_deltas_against_the_base(fields: dict[str, object], tmp_path: Path) -> None:
    recipe = b.recipe(tmp_path, method={"name": "ties", "density": 0.5}, **fields)
    with pytest.raises(RecipeError, match="is for the exact sum"):
        load_recipe(recipe)


# -- What other programs make of DoRA ---------------------------------------------------------------------

Law = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]


def rows(weight: torch.Tensor) -> torch.Tensor:
    return weight.flatten(1).norm(dim=1).view(-1, *[1] * (weight.dim() - 1))


def columns(weight: torch.Tensor) -> torch.Tensor:
    return weight.transpose(0, 1).flatten(1).norm(dim=1).view(1, -1, *[1] * (weight.dim() - 2))


def norms(weight: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    return rows(weight) if d.shape[0] == weight.shape[0] else columns(weight)


def comfyui(w: torch.Tensor, delta: torch.Tensor, d: torch.Tensor, s: float) -> torch.Tensor:
    v = w + delta
    length = rows(w) if d.shape[0] == w.shape[0] else columns(v)
    return w + s * (v * (d / length) - w)


def a1111(w: torch.Tensor, delta: torch.Tensor, d: torch.Tensor, s: float) -> torch.Tensor:
    v = w + delta
    return w + s * (v * (d / columns(v)) - w)


def peft(w: torch.Tensor, delta: torch.Tensor, d: torch.Tensor, s: float) -> torch.Tensor:
    v = w + s * delta
    return d / rows(v) * v


def lycoris(w: torch.Tensor, delta: torch.Tensor, d: torch.Tensor, s: float) -> torch.Tensor:
    v = w + delta
    return v * (s * (d / norms(v, d) - 1) + 1)


def definition(w: torch.Tensor, delta: torch.Tensor, d: torch.Tensor, s: float) -> torch.Tensor:
    v = w + delta
    return (1 - s) * w + s * d * v / norms(v, d)


LAWS: dict[str | None, Law] = {
    None: definition, "comfyui": comfyui, "a1111": a1111, "peft": peft, "lycoris": lycoris,
}  # fmt: skip


@pytest.mark.parametrize("strength", [1.0, 0.5, -1.0])
@pytest.mark.parametrize("axis", ["row", "column"])
@pytest.mark.parametrize("form", SHAPES)
@pytest.mark.parametrize("semantics", LAWS, ids=str)
def test_dora(semantics: str | None, form: str, axis: str, strength: float, tmp_path: Path) -> None:
    shape = SHAPES[form]
    weight, slots = b.Values(20)(*shape), product(shape, 1)
    ends = (shape[0], 1) if axis == "row" else (1, shape[1])
    slots["dora_scale"] = b.Values(9)(*ends, *(1 for _ in shape[2:])).abs() + 0.5
    b.save(tmp_path / "base.safetensors", {"fc.weight": weight})
    lora(tmp_path, "lora", slots)
    entry: dict[str, object] = {"path": "lora.safetensors", "strength": strength}
    recipe = b.recipe(tmp_path, loras=[entry | ({"semantics": semantics} if semantics else {})])
    if semantics == "peft" and axis == "column":
        with pytest.raises(MatchError, match="PEFT has magnitudes of rows alone"):
            b.run(recipe)
        return
    b.run(recipe)
    after = load_file(tmp_path / "out.safetensors")["fc.weight"].double()
    exact = LAWS[semantics](weight.double(), change(slots), slots["dora_scale"].double(), strength)
    torch.testing.assert_close(after, exact, rtol=1e-5, atol=1e-5)
    assert_true(recipe)


@pytest.mark.parametrize("strength", [1.0, 0.5, -1.0])
@pytest.mark.parametrize("semantics", [None, "comfyui", "a1111", "lycoris"], ids=str)
def test_oft(semantics: str | None, strength: float, tmp_path: Path) -> None:
    """ComfyUI: strength squared, alpha itself as the bound, no rescale."""
    blocks, alpha, rescale = b.Values(7)(3, 4, 4) * 0.5, 0.2, b.Values(8)(12, 1).abs() + 0.5
    weight = b.Values(20)(12, 8)
    b.save(tmp_path / "base.safetensors", {"fc.weight": weight})
    lora(tmp_path, "lora", {"oft_blocks": blocks, "alpha": torch.tensor(alpha), "rescale": rescale})
    entry: dict[str, object] = {"path": "lora.safetensors", "strength": strength}
    recipe = b.recipe(tmp_path, loras=[entry | ({"semantics": semantics} if semantics else {})])
    b.run(recipe)
    after = load_file(tmp_path / "out.safetensors")["fc.weight"].double()
    comfy, eye = semantics == "comfyui", torch.eye(4, dtype=torch.float64)
    skew = (blocks - blocks.transpose(1, 2)).double()
    skew = skew * min(1.0, alpha * (1 if comfy else 12) / float(skew.norm()))
    turn = (eye + skew) @ (eye - skew).inverse()
    w = weight.double().view(3, 4, 8)
    if comfy:
        exact = w + strength * torch.einsum("knm,kni->kmi", turn * strength - strength * eye, w)
    else:
        turned = torch.einsum("knm,kni->kmi", turn, w).view(12, 8) * rescale.double()
        exact = w + strength * (turned.view(3, 4, 8) - w)
    torch.testing.assert_close(after, exact.view(12, 8), rtol=1e-5, atol=1e-5)
    assert_true(recipe)


@pytest.mark.parametrize("strength", [1.0, 0.5, -1.0])
@pytest.mark.parametrize("semantics", [None, "comfyui", "lycoris"], ids=str)
def test_boft(semantics: str | None, strength: float, tmp_path: Path) -> None:
    """ComfyUI: the strength inside each round and outside once more, alpha itself as the bound."""
    blocks, alpha, rescale = b.Values(7)(2, 4, 4, 4) * 0.5, 0.7, b.Values(8)(16, 1).abs() + 0.5
    weight = b.Values(20)(16, 8)
    b.save(tmp_path / "base.safetensors", {"fc.weight": weight})
    lora(tmp_path, "lora", {"oft_blocks": blocks, "alpha": torch.tensor(alpha), "rescale": rescale})
    entry: dict[str, object] = {"path": "lora.safetensors", "strength": strength}
    recipe = b.recipe(tmp_path, loras=[entry | ({"semantics": semantics} if semantics else {})])
    b.run(recipe)
    after = load_file(tmp_path / "out.safetensors")["fc.weight"].double()
    comfy, eye = semantics == "comfyui", torch.eye(4, dtype=torch.float64)
    skew = (blocks - blocks.transpose(2, 3)).double()
    skew = skew * min(1.0, alpha * (1 if comfy else 16) / float(skew.norm()))
    turned = weight.double()
    for number, turns in enumerate((eye + skew) @ (eye - skew).inverse()):
        if comfy:
            turns = turns * strength + (1 - strength) * eye
        apart = 2 * 2**number  # row c meets row c + apart
        pairs = [row for row in range(16) if row // apart % 2 == 0]
        order = [row for pair in pairs for row in (pair, pair + apart)]
        mixed = torch.block_diag(*turns) @ turned[order]
        turned = torch.empty_like(turned)
        turned[order] = mixed
    exact = weight.double() + strength * (turned * rescale.double() - weight.double())
    torch.testing.assert_close(after, exact, rtol=1e-5, atol=1e-5)
    assert_true(recipe)


def test_dora_on_oft_has_no_law_of_comfyui(tmp_path: Path) -> None:
    b.save(tmp_path / "base.safetensors", {"fc.weight": b.Values(20)(16, 8)})
    lora(tmp_path, "lora", {"oft_blocks": b.Values(7)(4, 4, 4), "dora_scale": torch.ones(16, 1)})
    with pytest.raises(MatchError, match="comfyui has no law of DoRA on OFT that lorabake knows"):
        b.run(b.recipe(tmp_path, loras=[{"path": "lora.safetensors", "semantics": "comfyui"}]))


def test_boft_that_comfyui_cannot_read_is_refused(tmp_path: Path) -> None:
    b.save(tmp_path / "base.safetensors", {"fc.weight": b.Values(20)(16, 8)})
    lora(tmp_path, "lora", {"oft_blocks": b.Values(7)(2, 4, 4, 4)})
    with pytest.raises(MatchError, match="ComfyUI fails at BOFT without alpha"):
        b.run(b.recipe(tmp_path, loras=[{"path": "lora.safetensors", "semantics": "comfyui"}]))


def test_plain_loras_mean_the_same_to_all(tmp_path: Path) -> None:
    b.save(tmp_path / "base.safetensors", {"fc.weight": b.Values(20)(12, 8)})
    lora(tmp_path, "lora", product((12, 8), 1))
    found = set()
    for semantics in ("comfyui", "a1111", "peft", "lycoris"):
        recipe = b.recipe(tmp_path, loras=[{"path": "lora.safetensors", "strength": 0.5, "semantics": semantics}])
        b.run(recipe)
        found.add(b.tensor_bytes(tmp_path / "out.safetensors")["fc.weight"])
        (told,) = [note for ledger in plan(load_recipe(recipe)).ledgers for note in ledger.notes]
        assert told == f"semantics: {semantics} changes nothing here: it is about DoRA and OFT"
    assert len(found) == 1


# -- Against the programs themselves ----------------------------------------------------------------------


@pytest.mark.oracle
@pytest.mark.parametrize("strength", [1.0, 0.5, -1.0])
def test_pefts_own_dora_at_a_strength(strength: float, tmp_path: Path) -> None:
    peft_package = pytest.importorskip("peft")
    model = torch.nn.Sequential()
    model.add_module("fc", torch.nn.Linear(8, 12, bias=False))
    b.save(tmp_path / "base.safetensors", {"fc.weight": model.fc.weight.detach().clone()})
    config = peft_package.LoraConfig(r=3, lora_alpha=2, target_modules=["fc"], use_dora=True, init_lora_weights=False)
    tuned = peft_package.get_peft_model(model, config).double()
    layer = tuned.base_model.model.fc
    with torch.no_grad():
        layer.lora_magnitude_vector["default"].weight.mul_(1.3)
    tuned.float().save_pretrained(tmp_path / "lora")
    tuned.double()
    layer.set_scale("default", strength)
    layer.merge()
    recipe = b.recipe(tmp_path, loras=[{"path": "lora", "strength": strength, "semantics": "peft"}])
    b.run(recipe)
    after = load_file(tmp_path / "out.safetensors")["fc.weight"].double()
    torch.testing.assert_close(after, layer.base_layer.weight.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.oracle
@pytest.mark.parametrize("output", [True, False], ids=["rows", "columns"])
@pytest.mark.parametrize("strength", [1.0, 0.5, -1.0])
def test_lycoris_own_dora_at_a_strength(strength: float, output: bool, tmp_path: Path) -> None:
    module_of = pytest.importorskip("lycoris.modules.locon").LoConModule
    linear = torch.nn.Linear(8, 12, bias=False)
    module = module_of("fc", linear, 1.0, 3, 2, weight_decompose=True, wd_on_out=output)
    with torch.no_grad():
        module.lora_up.weight.normal_()
        module.dora_scale.mul_(1.3)
    b.save(tmp_path / "base.safetensors", {"fc.weight": linear.weight.detach().clone()})
    state = module.state_dict().items()
    lora(
        tmp_path, "lora", {key: value.clone() for key, value in state if "." in key or key in ("alpha", "dora_scale")}
    )
    module.double()
    linear.double()
    own = module.apply_weight_decompose(
        linear.weight.detach() + module.make_weight().detach() * module.scale, strength
    ).detach()
    recipe = b.recipe(tmp_path, loras=[{"path": "lora.safetensors", "strength": strength, "semantics": "lycoris"}])
    b.run(recipe)
    after = load_file(tmp_path / "out.safetensors")["fc.weight"].double()
    torch.testing.assert_close(after, own, rtol=1e-5, atol=1e-5)
