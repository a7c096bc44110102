"""Parity with other programs: LoRAs in sequence, and the laws by which they read each kind."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorabake import adapters, load_recipe, plan
from lorabake.adapters.programs import PROGRAMS
from lorabake.errors import MatchError, RecipeError
from lorabake.recipe.types import Semantics
from lorabake.verification import VerifyOptions, verify
from tests import builders as b
from tests.test_kinds import WEIGHTS, cases, tensors_of

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
    None: definition, "comfyui": comfyui, "forge": comfyui, "a1111": a1111, "peft": peft, "lycoris": lycoris,
}  # fmt: skip
STRENGTHS = (-1.0, 0.0, 0.3, 0.5, 1.0, 2.0)


def bakes(folder: Path, weight: torch.Tensor, semantics: str | None) -> Iterator[tuple[float, torch.Tensor]]:
    """Bake `lora.safetensors` into copies of a weight, each at a strength, and let `verify` prove them."""
    loras: list[dict[str, object]] = []
    file = load_file(folder / "lora.safetensors")
    for number, strength in enumerate(STRENGTHS):
        of_copy = {key.replace("fc.", f"fc{number}.", 1): tensor for key, tensor in file.items()}
        save_file(of_copy, folder / f"lora{number}.safetensors")
        entry = {"path": f"lora{number}.safetensors", "strength": strength}
        loras.append(entry | ({"semantics": semantics} if semantics else {}))
    b.save(folder / "base.safetensors", {f"fc{number}.weight": weight.clone() for number in range(len(loras))})
    recipe = b.recipe(folder, loras=loras)
    after = load_file(b.run(recipe, workers=1).path)
    assert_true(recipe)
    for number, strength in enumerate(STRENGTHS):
        yield strength, after[f"fc{number}.weight"].double()


def assert_laws(
    folder: Path, weight: torch.Tensor, semantics: str | None, law: Callable[[float], torch.Tensor]
) -> None:
    for strength, after in bakes(folder, weight, semantics):
        torch.testing.assert_close(after, law(strength).reshape(after.shape), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("axis", ["row", "column"])
@pytest.mark.parametrize("form", SHAPES)
@pytest.mark.parametrize("semantics", LAWS, ids=str)
def test_dora(semantics: str | None, form: str, axis: str, tmp_path: Path) -> None:
    shape = SHAPES[form]
    weight, slots = b.Values(20)(*shape), product(shape, 1)
    ends = (shape[0], 1) if axis == "row" else (1, shape[1])
    slots["dora_scale"] = b.Values(9)(*ends, *(1 for _ in shape[2:])).abs() + 0.5
    lora(tmp_path, "lora", slots)
    if semantics == "peft" and axis == "column":
        with pytest.raises(MatchError, match="PEFT has magnitudes of rows alone"):
            list(bakes(tmp_path, weight, semantics))
        return
    w, d, law = weight.double(), slots["dora_scale"].double(), LAWS[semantics]
    if semantics != "comfyui":
        assert_laws(tmp_path, weight, semantics, lambda s: law(w, change(slots), d, s))
        return
    assert_laws(tmp_path, weight, semantics, lambda s: law(w, change(slots), d, s) if s else w)


# -- What other programs make of OFT and BOFT -------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.2, 0.0, None], ids=str)
@pytest.mark.parametrize("prefix", ["lora_unet_", "oft_unet_"])
@pytest.mark.parametrize("semantics", [None, "comfyui", "a1111", "lycoris"], ids=str)
def test_oft(semantics: str | None, prefix: str, alpha: float | None, tmp_path: Path) -> None:
    """ComfyUI: strength squared, alpha itself as the bound, no rescale. LyCORIS: rescale whole at any strength.

    alpha 0 is no bound, but that of kohya's files is no rotation, by the definition.
    """
    blocks, rescale = b.Values(7)(3, 4, 4) * 0.5, b.Values(8)(12, 1).abs() + 0.5
    weight = b.Values(20)(12, 8)
    slots = {"oft_blocks": blocks, "rescale": rescale} | ({} if alpha is None else {"alpha": torch.tensor(alpha)})
    save_file({f"{prefix}fc.{slot}": tensor for slot, tensor in slots.items()}, tmp_path / "lora.safetensors")
    eye, skew = torch.eye(4, dtype=torch.float64), (blocks - blocks.transpose(1, 2)).double()
    if alpha:
        skew = skew * min(1.0, alpha * (1 if semantics == "comfyui" else 12) / float(skew.norm()))
    elif alpha == 0 and prefix == "oft_unet_" and semantics is None:
        skew = skew * 0
    turn, w, lengths = (eye + skew) @ (eye - skew).inverse(), weight.double().view(3, 4, 8), rescale.double()

    def law(s: float) -> torch.Tensor:
        if semantics == "comfyui":
            return (w + s * torch.einsum("knm,kni->kmi", turn * s - s * eye, w)).view(12, 8)
        if semantics == "lycoris":
            return lengths * torch.einsum("knm,kni->kmi", turn * s + (1 - s) * eye, w).view(12, 8)
        turned = torch.einsum("knm,kni->kmi", turn, w).view(12, 8) * lengths
        return weight.double() + s * (turned - weight.double())

    assert_laws(tmp_path, weight, semantics, law)


@pytest.mark.parametrize("rescaled", [True, False])
@pytest.mark.parametrize("semantics", [None, "comfyui", "a1111", "lycoris"], ids=str)
def test_boft(semantics: str | None, rescaled: bool, tmp_path: Path) -> None:
    """ComfyUI: the strength in each round and once more outside, the bound alpha. LyCORIS: in each round alone."""
    blocks, alpha, rescale = b.Values(7)(2, 4, 4, 4) * 0.5, 0.7, b.Values(8)(16, 1).abs() + 0.5
    weight = b.Values(20)(16, 8)
    slots = {"oft_blocks": blocks, "alpha": torch.tensor(alpha)} | ({"rescale": rescale} if rescaled else {})
    lora(tmp_path, "lora", slots)
    eye, skew = torch.eye(4, dtype=torch.float64), (blocks - blocks.transpose(2, 3)).double()
    skew = skew * min(1.0, alpha * (1 if semantics == "comfyui" else 16) / float(skew.norm()))

    def turned(inside: float) -> torch.Tensor:
        rows = weight.double()
        for number, turns in enumerate((eye + skew) @ (eye - skew).inverse()):
            apart = 2 * 2**number  # row c meets row c + apart
            pairs = [row for row in range(16) if row // apart % 2 == 0]
            order = [row for pair in pairs for row in (pair, pair + apart)]
            mixed = torch.block_diag(*(turns * inside + (1 - inside) * eye)) @ rows[order]
            rows = torch.empty_like(rows)
            rows[order] = mixed
        return rows * rescale.double() if rescaled else rows

    def law(s: float) -> torch.Tensor:
        if semantics == "lycoris":
            return turned(s)
        return weight.double() + s * (turned(s if semantics == "comfyui" else 1.0) - weight.double())

    assert_laws(tmp_path, weight, semantics, law)


# -- What other programs make of other kinds --------------------------------------------------------------


@pytest.mark.parametrize("alpha", [1.5, 0.0], ids=str)
@pytest.mark.parametrize("semantics", ["comfyui", "forge", "a1111", "lycoris"])
def test_glora_of_lycoris_1(semantics: str, alpha: float, tmp_path: Path) -> None:
    """AUTOMATIC1111 ignores alpha; elsewhere alpha 0 is no change, or, in LyCORIS, scale 1."""
    a1, a2, b1, b2 = b.Values(1)(3, 8), b.Values(2)(8, 3), b.Values(3)(3, 8), b.Values(4)(12, 3)
    weight = b.Values(20)(12, 8)
    factors = {"a1": a1, "a2": a2, "b1": b1, "b2": b2}
    slots = {f"{name}.weight": tensor * 0.4 for name, tensor in factors.items()}
    lora(tmp_path, "lora", slots | {"alpha": torch.tensor(alpha)})
    scale = 1.0 if semantics == "a1111" or (semantics == "lycoris" and not alpha) else alpha / 3
    w, (a1, a2, b1, b2) = weight.double(), (tensor.double() * 0.4 for tensor in factors.values())
    assert_laws(tmp_path, weight, semantics, lambda s: w + s * scale * (b2 @ b1 + (w @ a2) @ a1))


@pytest.mark.parametrize("semantics", ["comfyui", "forge", "a1111", "lycoris", None], ids=str)
def test_glora_that_fits_both_ways_is_of_lycoris_1_to_all_but_lycoris(semantics: str | None, tmp_path: Path) -> None:
    factors = [b.Values(seed)(8, 8) * 0.3 for seed in range(4)]
    slots = {f"{name}.weight": tensor for name, tensor in zip(("a1", "a2", "b1", "b2"), factors, strict=True)}
    lora(tmp_path, "lora", slots | {"alpha": torch.tensor(8.0)})
    weight, (a1, a2, b1, b2) = b.Values(20)(8, 8), (tensor.double() for tensor in factors)
    w = weight.double()
    new, old = b1 @ b2 + w @ a1 @ a2, b2 @ b1 + w @ a2 @ a1
    assert_laws(tmp_path, weight, semantics, lambda s: w + s * (new if semantics in ("lycoris", None) else old))


@pytest.mark.parametrize("semantics", ["comfyui", "forge", None], ids=str)
def test_what_replaces_a_weight_is_whole_in_comfyui_and_forge(semantics: str | None, tmp_path: Path) -> None:
    """At strength 0, too: but ComfyUI does not even load a LoRA whose strengths are all 0."""
    weight, new = b.Values(20)(12, 8), b.Values(21)(12, 8)
    lora(tmp_path, "lora", {"set_weight": new})
    w, t = weight.double(), new.double()
    for strength, after in bakes(tmp_path, weight, semantics):
        share = strength if semantics is None else float(semantics == "forge" or strength != 0)
        torch.testing.assert_close(after, w + share * (t - w), rtol=1e-5, atol=1e-5)


def test_a_component_of_strength_0_is_loaded_by_comfyui_with_the_others(tmp_path: Path) -> None:
    base = b.sd1()
    unet = "model.diffusion_model.input_blocks.0.0.weight"
    text = "cond_stage_model.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight"
    b.save(tmp_path / "base.safetensors", base)
    new = {key: b.Values(3)(*base[key].shape, dtype=base[key].dtype) for key in (unet, text)}
    names = {unet: "lora_unet_input_blocks_0_0", text: "lora_te_text_model_encoder_layers_0_self_attn_q_proj"}
    save_file({f"{names[key]}.set_weight": tensor for key, tensor in new.items()}, tmp_path / "lora.safetensors")
    strengths: dict[str, dict[str, float]] = {
        "both": {"unet": 0.0, "text_encoder": 0.5},
        "none": {"unet": 0.0, "text_encoder": 0.0},
    }
    for name, strength in strengths.items():
        recipe = b.recipe(
            tmp_path, loras=[{"path": "lora.safetensors", "semantics": "comfyui", "strength": strength}]
        )
        after = load_file(b.run(recipe).path)
        for key in (unet, text):
            assert torch.equal(after[key], new[key] if name == "both" else base[key])
        assert_true(recipe)


def test_a_block_pattern_leaves_out_whatever_the_program_would_do(tmp_path: Path) -> None:
    """The factor 0 is lorabake's own way to leave a module out; other factors are part of the strength."""
    weight = b.Values(20)(12, 8)
    b.save(tmp_path / "base.safetensors", {"fc.weight": weight})
    lora(tmp_path, "lora", {"set_weight": b.Values(21)(12, 8)})
    for factor, excluded in ((0.0, {"strength 0 by the block pattern 'fc'": 1}), (0.5, {})):
        entry = {"path": "lora.safetensors", "semantics": "forge", "strength": 1.0, "blocks": {"fc": factor}}
        (ledger,) = plan(load_recipe(b.recipe(tmp_path, loras=[entry]))).ledgers
        assert ledger.excluded == excluded
        assert ledger.applied == (0 if excluded else 1)
    assert [*ledger.notes] == ["semantics: Forge applies set weight whole at any strength: 1 modules"]


@pytest.mark.parametrize("semantics", ["comfyui", "forge", None], ids=str)
def test_the_ledger_says_what_is_changed_at_strength_0(semantics: str | None, tmp_path: Path) -> None:
    b.save(tmp_path / "base.safetensors", {"fc.weight": b.Values(20)(12, 8), "fc.bias": b.Values(19)(12)})
    lora(tmp_path, "lora", {"set_weight": b.Values(21)(12, 8), "diff_b": b.Values(22)(12)})
    entry: dict[str, object] = {"path": "lora.safetensors", "strength": 0}
    recipe = b.recipe(tmp_path, loras=[entry | ({"semantics": semantics} if semantics else {})])
    (ledger,) = plan(load_recipe(recipe)).ledgers
    acts = semantics == "forge"
    assert (ledger.applied, ledger.excluded) == (acts, {"strength 0": 2 - acts})
    whole, still = "applies set weight whole at any strength: 1 modules", "changes 1 modules at strength 0, too"
    assert [*ledger.notes] == [f"semantics: Forge {each}" for each in (whole, still) if acts]


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("semantics", ["comfyui", "forge", "a1111", "lycoris"])
def test_alpha_0_is_what_the_program_takes_it_for(semantics: str, dora: bool, tmp_path: Path) -> None:
    """Without a program it is refused: three divide it by the rank, and LyCORIS puts the rank in its place."""
    shape = SHAPES["linear"]
    weight, slots = b.Values(20)(*shape), product(shape, 1) | {"alpha": torch.tensor(0.0)}
    lengths = b.Values(9)(shape[0], 1).abs() + 0.5
    lora(tmp_path, "lora", slots | ({"dora_scale": lengths} if dora else {}))
    w, delta = weight.double(), change(slots) * (3 / 2 if semantics == "lycoris" else 0)

    def law(s: float) -> torch.Tensor:
        if dora:
            return LAWS[semantics](w, delta, lengths.double(), s) if s or semantics != "comfyui" else w
        return w + s * delta

    assert_laws(tmp_path, weight, semantics, law)


def test_a_fault_beside_alpha_0_is_named(tmp_path: Path) -> None:
    slots = product(SHAPES["linear"], 1) | {"alpha": torch.tensor(0.0), "dora_scale": torch.full((12, 1), 2.0)}
    lora(tmp_path, "lora", slots)
    b.save(tmp_path / "base.safetensors", {"fc.weight": b.Values(20)(12, 8)})
    entry = {"path": "lora.safetensors", "semantics": "comfyui"}
    b.run(b.recipe(tmp_path, loras=[{**entry, "strength": 0.5}]))
    found = verify(
        load_recipe(b.recipe(tmp_path, loras=[entry])),
        tmp_path / "out.safetensors",
        options=VerifyOptions(stages=("structure", "weights")),
    )
    assert "weights.strength" in {each.check for each in found.findings if each.status == "fail"}


@pytest.mark.parametrize("semantics", [None, "peft"], ids=str)
def test_alpha_0_is_refused_where_no_program_says_what_it_is(semantics: str | None, tmp_path: Path) -> None:
    lora(tmp_path, "lora", product(SHAPES["linear"], 1) | {"alpha": torch.tensor(0.0)})
    with pytest.raises(MatchError, match="which is no scale"):
        list(bakes(tmp_path, b.Values(20)(12, 8), semantics))


@pytest.mark.parametrize("semantics", ["comfyui", "forge", "a1111", "lycoris", None], ids=str)
def test_no_program_reads_the_sparse_values_of_an_extracted_lora(semantics: str | None, tmp_path: Path) -> None:
    slots, weight = product(SHAPES["linear"], 1), b.Values(20)(12, 8)
    places, values = torch.tensor([[0, 5, 11], [7, 0, 3]]), torch.tensor([1.0, -2.0, 0.5])
    sparse = torch.zeros(12, 8, dtype=torch.float64)
    sparse[places[0], places[1]] = values.double()
    tensors = {"bias_indices": places, "bias_values": values, "bias_size": torch.tensor([12, 8])}
    lora(tmp_path, "lora", slots | tensors)
    due = change(slots) + (2 / 3 * sparse if semantics is None else 0)
    assert_laws(tmp_path, weight, semantics, lambda s: weight.double() + s * due)


ONES = {"dora_scale": torch.ones(16, 1)}
NEW_GLORA = {"a1.weight": (8, 3), "a2.weight": (3, 8), "b1.weight": (16, 3), "b2.weight": (3, 8)}
OLD_GLORA = {"a1.weight": (3, 8), "a2.weight": (8, 3), "b1.weight": (3, 8), "b2.weight": (16, 3)}
OLD_GLORA_3X3 = {**OLD_GLORA, "b1.weight": (3, 8, 3, 3)}
PRODUCT = {"lora_up.weight": (16, 3), "lora_down.weight": (3, 8)}
CORES = {"lora_up.weight": (16, 3, 1), "lora_down.weight": (3, 8, 1), "lora_mid.weight": (3, 3, 3)}
Shapes = dict[str, tuple[int, ...]]

# program, the weight's shape, the shapes of the file's tensors, others of its tensors, what is said
UNREAD: list[tuple[str, tuple[int, ...], Shapes, dict[str, torch.Tensor], str]] = [
    ("comfyui", (16, 8), {"oft_blocks": (4, 4, 4)}, ONES, "comfyui has no law of DoRA on OFT that lorabake knows"),
    ("lycoris", (16, 8), {"oft_blocks": (4, 4, 4)}, ONES, "lycoris has no law of DoRA on OFT that lorabake knows"),
    (
        "comfyui",
        (16, 8),
        {"diff": (16, 8)},
        ONES,
        "comfyui has no law of DoRA on full difference that lorabake knows",
    ),
    ("comfyui", (16, 8), {"oft_blocks": (2, 4, 4, 4)}, {}, "ComfyUI fails at BOFT without alpha"),
    ("comfyui", (16, 8), {"oft_diag": (4, 4, 4)}, {}, "ComfyUI does not read this form of OFT"),
    ("comfyui", (16, 8), {"weight": (16,)}, {"on_input": torch.tensor(0)}, "ComfyUI does not read this form of IA3"),
    ("comfyui", (16, 8), PRODUCT, {"magnitude": torch.ones(16)}, "ComfyUI does not read magnitudes of this spelling"),
    ("forge", (16, 8), PRODUCT, {"magnitude": torch.ones(16)}, "Forge does not read magnitudes of this spelling"),
    ("a1111", (16, 8), PRODUCT, {"magnitude": torch.ones(16)}, "AUTOMATIC1111 does not read magnitudes of this"),
    ("forge", (16, 8), {"oft_blocks": (4, 4, 4)}, {}, "Forge does not read this form of OFT"),
    ("forge", (16, 8), {"oft_blocks": (2, 4, 4, 4)}, {}, "Forge does not read this form of OFT"),
    ("a1111", (16, 8), {"set_weight": (16, 8)}, {}, "AUTOMATIC1111 does not read this form of set weight"),
    ("lycoris", (16, 8), {"set_weight": (16, 8)}, {}, "LyCORIS does not read this form of set weight"),
    ("peft", (16, 8), {"diff": (16, 8)}, {}, "PEFT does not read this form of full difference"),
    ("peft", (16, 8), {"oft_blocks": (4, 4, 4)}, {}, "PEFT does not read this form of OFT"),
    ("lycoris", (16, 8), {"oft_R.weight": (2, 6)}, {"scaled_oft": torch.tensor(True)}, "LyCORIS does not read this"),
    ("a1111", (16, 8), NEW_GLORA, {"alpha": torch.tensor(1.0)}, "AUTOMATIC1111 fails at GLoRA but for that of"),
    ("a1111", (16, 8), OLD_GLORA, {}, "AUTOMATIC1111 does not read GLoRA without alpha"),
    ("forge", (16, 8, 3, 3), OLD_GLORA_3X3, {}, "Forge fails at GLoRA of LyCORIS 1 on convolutions"),
    ("comfyui", (16, 8, 3), CORES, {}, "ComfyUI fails at Tucker cores but on 2-D convolutions"),
    ("comfyui", (16, 8, 3), {"lokr_w1": (4, 2), "lokr_w2": (4, 4, 3)}, {}, "ComfyUI scrambles LoKr with a whole"),
    ("forge", (16, 8, 2, 2, 2), {"lokr_w1": (4, 2), "lokr_w2": (4, 4, 2, 2, 2)}, {}, "Forge scrambles LoKr with a"),
    ("a1111", (16, 8), {**PRODUCT, "diff_b": (16,)}, {}, "AUTOMATIC1111 does not read bias differences without"),
    ("a1111", (16,), {"w_norm": (16,)}, {}, "AUTOMATIC1111 does not read norms without their b_norm"),
    ("a1111", (16, 8, 3, 3), {"weight": (1, 16, 1, 1)}, {"on_input": torch.tensor(0)}, "AUTOMATIC1111 fails at IA3"),
]


@pytest.mark.parametrize(("program", "shape", "shapes", "others", "said"), UNREAD, ids=lambda value: str(value)[:30])
def test_what_a_program_cannot_read_is_refused(
    program: str, shape: tuple[int, ...], shapes: Shapes, others: dict[str, torch.Tensor], said: str, tmp_path: Path
) -> None:
    b.save(tmp_path / "base.safetensors", {"fc.weight": b.Values(20)(*shape), "fc.bias": b.Values(5)(16)})
    lora(tmp_path, "lora", {slot: b.Values(1)(*size) for slot, size in shapes.items()} | others)
    recipe = b.recipe(tmp_path, loras=[{"path": "lora.safetensors", "semantics": program, "strength": 0.5}])
    with pytest.raises(MatchError, match=re.escape(said)):
        plan(load_recipe(recipe))
    plan(load_recipe(b.recipe(tmp_path, loras=["lora.safetensors"])))  # without a program it goes


@pytest.mark.parametrize("semantics", ["comfyui", "forge"])
@pytest.mark.parametrize("kind", ["DoRA by row", "OFT", "DoRA by column", "LoRA"])
def test_halves_that_comfyui_swaps_without_what_goes_with_them(kind: str, semantics: str, tmp_path: Path) -> None:
    """The halves of Flux's last modulation lie in the other order in Black Forest Labs' files than in diffusers'."""
    shapes = {
        "double_blocks.0.img_attn.qkv.weight": (36, 12), "double_blocks.0.img_mod.lin.weight": (72, 12),
        "single_blocks.0.linear1.weight": (84, 12), "img_in.weight": (12, 16),
        "vector_in.in_layer.weight": (12, 12), "final_layer.adaLN_modulation.1.weight": (24, 12),
    }  # fmt: skip
    b.save(tmp_path / "base.safetensors", {key: b.Values(3)(*shape) for key, shape in shapes.items()})
    up, down = b.Values(1)(24, 3), b.Values(2)(3, 12)
    slots = {"lora_B.weight": up, "lora_A.weight": down} if kind != "OFT" else {"oft_blocks": b.Values(1)(6, 4, 4)}
    lengths = {"DoRA by row": torch.ones(24, 1), "DoRA by column": torch.ones(1, 12)}
    slots |= {"dora_scale": lengths[kind]} if kind in lengths else {}
    save_file({f"transformer.norm_out.linear.{slot}": t for slot, t in slots.items()}, tmp_path / "lora.safetensors")
    recipe = b.recipe(tmp_path, loras=[{"path": "lora.safetensors", "semantics": semantics}])
    if kind == "LoRA" or kind == "DoRA by column":
        assert len(plan(load_recipe(recipe)).patches) == 1
        return
    with pytest.raises(MatchError, match=r"swaps the halves of this module's change|does not read this form"):
        plan(load_recipe(recipe))


def test_plain_loras_mean_the_same_to_all(tmp_path: Path) -> None:
    b.save(tmp_path / "base.safetensors", {"fc.weight": b.Values(20)(12, 8)})
    lora(tmp_path, "lora", product((12, 8), 1))
    found = set()
    for semantics, title in PROGRAMS.items():
        recipe = b.recipe(tmp_path, loras=[{"path": "lora.safetensors", "strength": 0.5, "semantics": semantics}])
        b.run(recipe)
        found.add(b.tensor_bytes(tmp_path / "out.safetensors")["fc.weight"])
        (told,) = [note for ledger in plan(load_recipe(recipe)).ledgers for note in ledger.notes]
        assert told == f"semantics: {semantics} changes nothing here: {title} has no law of its own for its kinds"
    assert len(found) == 1


def test_a_recipe_may_name_each_program() -> None:
    assert get_args(Semantics) == tuple(PROGRAMS)


# -- Each kind in each program that reads it --------------------------------------------------------------


@pytest.mark.parametrize("form", ["linear", "conv2d"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_all_that_a_program_reads_is_baked_by_its_law(program: str, form: str, tmp_path: Path) -> None:
    """`verify` has each law from its own formulas; what a program does not read is refused, and said."""
    shape, names = WEIGHTS[form], dict[str, str]()
    tensors, base = dict[str, torch.Tensor](), dict[str, torch.Tensor]()
    for name, case in cases(shape).items():
        kind = next(kind for kind in adapters.kinds() if kind.name == case.kind)
        own = {slot: tuple(tensor.shape) for slot, tensor in tensors_of(case).values()}
        lengths = kind.lengths & own.keys()
        if program not in kind.programs or (lengths and program not in kind.dora_in):
            continue
        if kind.unread(program, own, shape):
            continue
        module = f"layer{len(names)}"
        names[module] = name
        base[f"{module}.weight"] = b.Values(len(names))(*shape)
        tensors |= {case.prefix + module + suffix: tensor for suffix, (_, tensor) in tensors_of(case).items()}
    assert names, f"{program} reads nothing"
    loras = []
    for number, strength in enumerate(STRENGTHS):
        own = {key.replace("layer", f"layer{number}_", 1): tensor for key, tensor in tensors.items()}
        b.save(tmp_path / f"lora{number}.safetensors", own)
        loras.append({"path": f"lora{number}.safetensors", "strength": strength, "semantics": program})
    copies = {
        key.replace("layer", f"layer{number}_", 1): weight.clone()
        for number in range(len(STRENGTHS))
        for key, weight in base.items()
    }
    b.save(tmp_path / "base.safetensors", copies)
    recipe = b.recipe(tmp_path, loras=loras)
    after = load_file(b.run(recipe, workers=1).path)
    assert_true(recipe)
    whole = STRENGTHS.index(1.0)
    assert all(not torch.equal(after[key], copies[key]) for key in copies if key.startswith(f"layer{whole}_"))


PAGE = Path(__file__).parents[1] / "docs" / "kinds.md"
BOUNDS = "<!-- written by tests/test_compose.py -->\n", "<!-- until here -->\n"


def page() -> str:
    """Write which program reads which kind into docs/kinds.md."""
    read: dict[tuple[str, ...], list[str]] = {}
    titles = Counter(kind.title for kind in adapters.kinds())
    for kind in adapters.kinds():
        with_dora = kind.dora_in if kind.lengths else frozenset()
        marks = tuple("" if each not in kind.programs else "+" if each in with_dora else "yes" for each in PROGRAMS)
        name = kind.title if titles[kind.title] == 1 else f"{kind.title} (`{kind.name}`)"
        read.setdefault(marks, []).append(name)
    order = sorted(read.items(), key=lambda row: (row[0].count(""), row[1]))
    rows = [f"| {', '.join(names)} | {' | '.join(marks)} |" for marks, names in order]
    head = f"| kind | {' | '.join(PROGRAMS.values())} |"
    lines = ["", head, "|---|" + "---|" * len(PROGRAMS), *rows, ""]
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BOUNDS[0])
    return before + BOUNDS[0] + "\n".join(lines) + "\n" + BOUNDS[1] + rest.partition(BOUNDS[1])[2]


def test_the_page_says_which_program_reads_which_kind() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "write it anew: python -m tests.test_compose"


# -- Against the programs themselves ----------------------------------------------------------------------


@pytest.mark.oracle
@pytest.mark.parametrize("strength", STRENGTHS)
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
@pytest.mark.parametrize("strength", STRENGTHS)
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


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
