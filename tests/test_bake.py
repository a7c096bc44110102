"""Baked values against their formula in float64; untouched bytes against the base's; refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lorabake import VerifyOptions, load_recipe, verify
from lorabake.errors import FileError, LorabakeError, MatchError, TargetError, ValueTooLargeError
from tests import builders as b
from tests.builders import CONV, FF, K2, PROJ_IN, SD1_KEYS, TE_Q, Q, W

Check = Callable[..., torch.Tensor]

DTYPES = [torch.float16, torch.bfloat16, torch.float32]
NAMES = {torch.float16: "float16", torch.bfloat16: "bfloat16", torch.float32: "float32"}


@pytest.fixture
def base(tmp_path: Path) -> b.Tensors:
    """Save an SD 1.x base in half precision."""
    tensors = b.sd1()
    b.save(tmp_path / "base.safetensors", tensors)
    return tensors


def baked(folder: Path, **fields: object) -> b.Tensors:
    return load_file(b.bake_sd1(folder, **fields))


def kohya(folder: Path, module: str, slots: b.Slots, name: str = "lora.safetensors") -> b.Slots:
    prefix = "lora_te_" if module == TE_Q else "lora_unet_"
    b.kohya(folder / name, {prefix + module.replace(".", "_"): slots})
    return slots


# -- Kinds and shapes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES.values())
@pytest.mark.parametrize(
    ("module", "options"),
    [
        (Q, {}),
        (K2, {"rank": 5, "alpha": 3.0}),
        (FF, {"rank": 4, "alpha": 1.0}),
        (TE_Q, {"alpha": 0.5}),
        (CONV, {"rank": 3, "alpha": 2.0}),
        (CONV, {"rank": 3, "alpha": 2.0, "tucker": True}),
        (PROJ_IN, {"alpha": 2.0}),
        (PROJ_IN, {"alpha": 2.0, "conv": False}),  # linear factors on a 1×1 convolution
        (Q, {"alpha": 2.0, "conv": True}),  # 1×1 convolutions on a linear layer
    ],
    ids=["linear", "cross", "wide", "text", "conv", "tucker", "1x1", "linear-on-1x1", "1x1-on-linear"],
)
def test_lora_is_added_and_rounded_once(
    tmp_path: Path, dtype: torch.dtype, module: str, options: dict[str, object]
) -> None:
    base = b.sd1(dtype=dtype)
    b.save(tmp_path / "base.safetensors", base)
    weight = base[SD1_KEYS[module]]
    slots = kohya(tmp_path, module, b.lora(tuple(weight.shape), **options))  # type: ignore[arg-type]
    out = baked(tmp_path, loras=[{"path": "lora.safetensors", "strength": 0.75}])
    change = 0.75 * b.delta(slots, tuple(weight.shape))
    actual = out[SD1_KEYS[module]]
    assert actual.dtype == dtype
    b.assert_rounded_once(actual, weight.double() + change, terms=[weight, change])
    assert not torch.equal(actual, weight)


@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES.values())
def test_float64_arithmetic_leaves_only_the_rounding(tmp_path: Path, dtype: torch.dtype) -> None:
    base = b.sd1(dtype=dtype)
    b.save(tmp_path / "base.safetensors", base)
    made = b.sd1_lora(tmp_path / "lora.safetensors", rank=6, alpha=4.0)
    out = baked(tmp_path, compute_dtype="float64", loras=[{"path": "lora.safetensors", "strength": 0.3}])
    for module, slots in made.items():
        weight = base[SD1_KEYS[module]]
        exact = weight.double() + 0.3 * b.delta(slots, tuple(weight.shape))
        b.assert_rounded_once(out[SD1_KEYS[module]], exact, exactly=True)


def test_factors_in_half_precision_are_widened_before_they_are_multiplied(tmp_path: Path, base: b.Tensors) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        slots = kohya(tmp_path, FF, b.lora((8 * W, W), rank=7, alpha=3.0, dtype=dtype))
        weight = base[SD1_KEYS[FF]]
        change = b.delta(slots, tuple(weight.shape))
        out = baked(tmp_path, output={"dtype": "float32"})
        b.assert_rounded_once(out[SD1_KEYS[FF]], weight.double() + change, terms=[weight, change])


@pytest.mark.parametrize("shape", [(), (1,)], ids=["0-d", "1-d"])
@pytest.mark.parametrize("dtype", DTYPES, ids=NAMES.values())
def test_alpha_of_any_form(tmp_path: Path, base: b.Tensors, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    slots = kohya(tmp_path, Q, b.lora((W, W), rank=4, alpha=0.5, alpha_dtype=dtype, alpha_shape=shape))
    weight = base[SD1_KEYS[Q]]
    change = b.delta({**slots, "alpha": torch.tensor(0.5)}, (W, W))
    b.assert_rounded_once(baked(tmp_path)[SD1_KEYS[Q]], weight.double() + change, terms=[weight, change])


def test_without_alpha_the_scale_is_one(tmp_path: Path, base: b.Tensors) -> None:
    slots = kohya(tmp_path, Q, b.lora((W, W), rank=4))
    weight = base[SD1_KEYS[Q]]
    change = slots["up"].double() @ slots["down"].double()
    b.assert_rounded_once(baked(tmp_path)[SD1_KEYS[Q]], weight.double() + change, terms=[weight, change])


@pytest.mark.parametrize("alpha", [0.0, float("nan"), float("inf")])
def test_an_alpha_that_is_no_scale_is_refused(tmp_path: Path, base: b.Tensors, alpha: float) -> None:
    kohya(tmp_path, Q, b.lora((W, W), alpha=alpha))
    with pytest.raises(MatchError, match=r"lora\.safetensors.*to_q\.alpha is (0\.0|nan|inf)"):
        baked(tmp_path)
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("kind", ["row", "column"])
@pytest.mark.parametrize("module", [Q, FF, CONV, PROJ_IN], ids=["linear", "wide", "conv", "1x1"])
@pytest.mark.parametrize("strength", [1.0, -0.4])
def test_dora(tmp_path: Path, base: b.Tensors, module: str, kind: str, strength: float) -> None:
    weight = base[SD1_KEYS[module]]
    slots = kohya(tmp_path, module, b.lora(tuple(weight.shape), alpha=1.0, dora=kind))
    out = baked(tmp_path, loras=[{"path": "lora.safetensors", "strength": strength}])
    changed = b.dora(weight, slots)
    exact = weight.double() + strength * (changed - weight.double())
    b.assert_rounded_once(out[SD1_KEYS[module]], exact, terms=[weight, 4 * changed])


def test_dora_beside_a_lora_is_taken_against_the_base(tmp_path: Path, base: b.Tensors) -> None:
    weight = base[SD1_KEYS[FF]]
    shape = tuple(weight.shape)
    first = kohya(tmp_path, FF, b.lora(shape, alpha=1.0, dora="row", seed=3), "a.safetensors")
    second = kohya(tmp_path, FF, b.lora(shape, alpha=1.0, seed=4), "b.safetensors")
    third = kohya(tmp_path, FF, b.lora(shape, alpha=2.0, dora="row", seed=5), "c.safetensors")
    exact = (
        weight.double()
        + 0.5 * (b.dora(weight, first) - weight.double())
        + 2.0 * b.delta(second, shape)
        + 0.25 * (b.dora(weight, third) - weight.double())
    )
    entries = [{"path": f"{n}.safetensors", "strength": s} for n, s in (("a", 0.5), ("b", 2.0), ("c", 0.25))]
    for order in (entries, entries[::-1]):
        b.assert_rounded_once(baked(tmp_path, loras=order)[SD1_KEYS[FF]], exact, terms=[8 * weight])


def test_rows_beyond_one_tile_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: b.Tensors) -> None:
    made = b.sd1_lora(tmp_path / "lora.safetensors", dora="row")
    whole = b.bake_sd1(tmp_path, output={"path": "whole.safetensors"}).read_bytes()
    monkeypatch.setattr("lorabake.execution.tiles.TILE_VALUES", 24)
    tiled = b.bake_sd1(tmp_path, output={"path": "tiled.safetensors"})
    assert len(whole) == tiled.stat().st_size
    for module, slots in made.items():
        weight = base[SD1_KEYS[module]]
        b.assert_rounded_once(load_file(tiled)[SD1_KEYS[module]], b.dora(weight, slots), terms=[4 * weight])


# -- Fused, transposed, split storage ------------------------------------------------------------------

XL = "conditioner.embedders.1.model."


@pytest.mark.parametrize("dora", [None, "row", "column"])
def test_q_k_v_on_openclips_fused_projection(tmp_path: Path, dora: str | None) -> None:
    base = b.sdxl()
    b.save(tmp_path / "base.safetensors", base)
    key = XL + "transformer.resblocks.1.attn.in_proj_weight"
    size = b.TEXT
    slots = {n: b.lora((size, size), alpha=1.0, seed=i, dora=dora) for i, n in enumerate(("q_proj", "v_proj"))}
    b.kohya(
        tmp_path / "lora.safetensors",
        {f"lora_te2_text_model_encoder_layers_1_self_attn_{n}": s for n, s in slots.items()},
    )
    out = baked(tmp_path)
    exact = base[key].double().clone()
    for name, row in (("q_proj", 0), ("v_proj", 2 * size)):
        weight = base[key][row : row + size]
        exact[row : row + size] = (
            b.dora(weight, slots[name]) if dora else weight.double() + b.delta(slots[name], (size, size))
        )
    b.assert_rounded_once(out[key], exact, terms=[4 * base[key]])
    middle = slice(size, 2 * size)
    assert torch.equal(out[key][middle], base[key][middle])


def test_openclips_transposed_text_projection(tmp_path: Path) -> None:
    base = b.sdxl()
    b.save(tmp_path / "base.safetensors", base)
    rows, columns = b.TEXT + 2, b.TEXT  # as transformers has it: (out, in)
    slots = b.lora((rows, columns), alpha=1.0)
    b.kohya(tmp_path / "lora.safetensors", {"lora_te2_text_projection": slots})
    change = b.delta(slots, (rows, columns)).T
    weight = base[XL + "text_projection"]
    b.assert_rounded_once(baked(tmp_path)[XL + "text_projection"], weight.double() + change, terms=[weight, change])


@pytest.mark.parametrize("module", ["attn.c_attn", "attn.c_proj", "mlp.c_fc"])
@pytest.mark.parametrize("dora", [None, "magnitude"])
def test_gpt2s_conv1d_is_transposed(tmp_path: Path, module: str, dora: str | None) -> None:
    base = b.gpt2()
    b.save(tmp_path / "base.safetensors", base)
    weight = base[f"h.0.{module}.weight"].T  # (out, in)
    slots = b.lora(tuple(weight.shape), dora=dora)
    b.peft(
        tmp_path / "lora",
        {f"transformer.h.0.{module}": slots},
        fan_in_fan_out=True,
        lora_alpha=3,
        use_dora=bool(dora),
    )
    out = baked(tmp_path, loras=["lora"])[f"h.0.{module}.weight"].T
    exact = b.dora(weight, slots, 1.5) if dora else weight.double() + b.delta(slots, tuple(weight.shape), 1.5)
    b.assert_rounded_once(out.contiguous(), exact, terms=[4 * weight])


@pytest.mark.parametrize("module", ["mlp.c_fc", "attn.c_proj"], ids=["oblong", "square"])
def test_modules_to_save_of_a_conv1d_are_stored_as_the_base_stores_them(tmp_path: Path, module: str) -> None:
    base = b.gpt2()
    b.save(tmp_path / "base.safetensors", base)
    own = b.Values(9)(*base[f"h.0.{module}.weight"].shape)
    b.peft(tmp_path / "lora", {f"transformer.h.0.{module}": {"whole": own}}, modules_to_save=[module.split(".")[-1]])
    assert torch.equal(baked(tmp_path, loras=["lora"])[f"h.0.{module}.weight"], own)


# -- PEFT's other tensors --------------------------------------------------------------------------------


def test_lora_bias(tmp_path: Path) -> None:
    base = b.gpt2()
    b.save(tmp_path / "base.safetensors", base)
    slots = b.lora((24, 8)) | {"bias": b.Values(5)(24)}
    b.peft(
        tmp_path / "lora", {"transformer.h.0.attn.c_attn": slots}, lora_bias=True, lora_alpha=3, fan_in_fan_out=True
    )
    out = baked(tmp_path, loras=[{"path": "lora", "strength": 0.5}])
    bias = base["h.0.attn.c_attn.bias"]
    b.assert_rounded_once(out["h.0.attn.c_attn.bias"], bias.double() + 0.75 * slots["bias"].double(), terms=[bias])
    weight = base["h.0.attn.c_attn.weight"]
    change = 0.5 * b.delta(slots, (24, 8), 1.5).T
    b.assert_rounded_once(out["h.0.attn.c_attn.weight"], weight.double() + change, terms=[weight, change])


def test_a_peft_file_under_another_name_keeps_the_scale_beside_it(tmp_path: Path) -> None:
    base = b.llama(tmp_path / "base")
    slots, key = b.lora((8, 8)), "model.layers.0.self_attn.q_proj"
    b.peft(tmp_path / "lora", {key: slots}, lora_alpha=6)
    (tmp_path / "lora" / "adapter_model.safetensors").rename(tmp_path / "lora" / "style.safetensors")
    path = b.recipe(tmp_path, base="base", loras=["lora/style.safetensors"], output={"path": "out"})
    out = load_file(b.run(path).path / "model.safetensors")[f"{key}.weight"]
    change = b.delta(slots, (8, 8), 3.0)
    b.assert_rounded_once(out, base[f"{key}.weight"].double() + change, terms=[base[f"{key}.weight"], change])


@pytest.mark.parametrize("compose", ["sum", "sequential"])
@pytest.mark.parametrize("strength", [1.0, 0.25])
def test_a_lora_is_added_to_the_weight_that_is_saved_with_it(tmp_path: Path, strength: float, compose: str) -> None:
    """PEFT does so where an embedding or the head is a target; it is not always the base's to the last bit."""
    base = b.llama(tmp_path / "base")
    own, slots = b.Values(7)(20, 8, dtype=torch.bfloat16), b.lora((20, 8))
    b.peft(tmp_path / "lora", {"lm_head.base_layer": {"whole": own}, "lm_head": slots})
    recipe = {"base": "base", "output": {"path": "out"}, "compose": compose}
    path = b.recipe(tmp_path, loras=[{"path": "lora", "strength": strength}], **recipe)
    out = load_file(b.run(path).path / "model.safetensors")["lm_head.weight"]
    change = b.delta(slots, (20, 8), 1.0)
    exact = base["lm_head.weight"].double() * (1 - strength) + strength * (own.double() + change)
    b.assert_rounded_once(out, exact, terms=[base["lm_head.weight"], own, change])


@pytest.mark.parametrize("strength", [1.0, 0.25, -1.0])
def test_modules_to_save_replace(tmp_path: Path, strength: float) -> None:
    base = b.llama(tmp_path / "base")
    own = b.Values(7)(20, 8, dtype=torch.bfloat16)
    norm = b.Values(8)(8, dtype=torch.bfloat16)
    b.peft(
        tmp_path / "lora",
        {"lm_head": {"whole": own}, "model.norm": {"whole": norm}, "model.layers.0.self_attn.q_proj": b.lora((8, 8))},
        modules_to_save=["lm_head", "norm"],
    )
    path = b.recipe(tmp_path, base="base", loras=[{"path": "lora", "strength": strength}], output={"path": "out"})
    out = load_file(b.run(path).path / "model.safetensors")
    for key, trained in (("lm_head.weight", own), ("model.norm.weight", norm)):
        exact = base[key].double() + strength * (trained.double() - base[key].double())
        b.assert_rounded_once(out[key], exact, terms=[base[key], trained])
        if strength == 1:
            assert torch.equal(out[key].view(torch.int16), trained.view(torch.int16))


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("dora", [None, "magnitude"])
def test_a_lora_is_added_to_what_another_replaces(tmp_path: Path, order: int, dora: str | None) -> None:
    base = b.llama(tmp_path / "base", dtype=torch.float32)["lm_head.weight"]
    own, slots = b.Values(7)(20, 8), b.lora((20, 8), dora=dora)
    b.peft(tmp_path / "whole", {"lm_head": {"whole": own}}, modules_to_save=["lm_head"])
    b.peft(tmp_path / "lora", {"lm_head": slots}, use_dora=bool(dora))
    loras = [{"path": "whole", "strength": 0.5}, {"path": "lora", "strength": 2}][::order]
    b.run(b.recipe(tmp_path, base="base", loras=loras, output={"path": "out"}))
    change = b.dora(base, slots) - base.double() if dora else b.delta(slots, (20, 8))
    exact = 0.5 * (base.double() + own.double()) + 2 * change
    out = load_file(tmp_path / "out" / "model.safetensors")["lm_head.weight"]
    b.assert_rounded_once(out, exact, terms=[4 * base, 4 * own])


def test_rslora_and_patterns_scale_as_peft_does(tmp_path: Path) -> None:
    base = b.llama(tmp_path / "base", dtype=torch.float32)
    slots = {"self_attn.q_proj": b.lora((8, 8), rank=4), "mlp.up_proj": b.lora((16, 8), rank=9)}
    b.peft(
        tmp_path / "lora",
        {f"model.layers.1.{name}": each for name, each in slots.items()},
        r=4,
        lora_alpha=6,
        use_rslora=True,
        rank_pattern={"up_proj": 9},
        alpha_pattern={"mlp.up_proj": 12},
    )
    b.run(b.recipe(tmp_path, base="base", loras=["lora"], output={"path": "out"}))
    out = load_file(tmp_path / "out" / "model.safetensors")
    for name, scale in (("self_attn.q_proj", 6 / 2), ("mlp.up_proj", 12 / 3)):
        weight = base[f"model.layers.1.{name}.weight"]
        change = b.delta(slots[name], tuple(weight.shape), scale)
        b.assert_rounded_once(out[f"model.layers.1.{name}.weight"], weight.double() + change, terms=[weight, change])


# -- Strengths -------------------------------------------------------------------------------------------


def test_several_loras_on_one_tensor_in_any_order(tmp_path: Path, base: b.Tensors) -> None:
    weight = base[SD1_KEYS[FF]]
    shape = tuple(weight.shape)
    exact = weight.double()
    entries = []
    for number, (strength, rank) in enumerate([(0.8, 2), (-1.5, 5), (0.1, 1), (3.0, 8)]):
        slots = kohya(tmp_path, FF, b.lora(shape, rank=rank, alpha=1.0, seed=number), f"{number}.safetensors")
        entries.append({"path": f"{number}.safetensors", "strength": strength})
        exact = exact + strength * b.delta(slots, shape)
    for order in (entries, entries[::-1], entries[2:] + entries[:2]):
        out = baked(tmp_path, loras=order)[SD1_KEYS[FF]]
        b.assert_rounded_once(out, exact, terms=[weight, exact, 4 * torch.ones(1)])


def test_one_lora_twice_adds_up(tmp_path: Path, base: b.Tensors) -> None:
    slots = kohya(tmp_path, Q, b.lora((W, W), alpha=1.0))
    entries = [{"path": "lora.safetensors", "strength": s} for s in (0.5, 0.25)]
    weight = base[SD1_KEYS[Q]]
    change = 0.75 * b.delta(slots, (W, W))
    b.assert_rounded_once(
        baked(tmp_path, loras=entries)[SD1_KEYS[Q]], weight.double() + change, terms=[weight, change]
    )


def test_strength_by_component_and_blocks(tmp_path: Path, base: b.Tensors) -> None:
    made = b.sd1_lora(tmp_path / "lora.safetensors")
    out = baked(
        tmp_path,
        loras=[
            {
                "path": "lora.safetensors",
                "strength": {"unet": 0.5, "text_encoder": -2},
                "blocks": {"down_blocks.0.attentions.*": 0.5, "down_blocks.*": 0, "*": 3},
            }
        ],
    )
    for module, strength in ((Q, 0.25), (FF, 1.5), (TE_Q, -6.0)):
        weight = base[SD1_KEYS[module]]
        change = strength * b.delta(made[module], tuple(weight.shape))
        b.assert_rounded_once(out[SD1_KEYS[module]], weight.double() + change, terms=[weight, change])
    assert torch.equal(out[SD1_KEYS[CONV]], base[SD1_KEYS[CONV]])


def test_components_leave_the_others_out(tmp_path: Path, base: b.Tensors) -> None:
    b.sd1_lora(tmp_path / "lora.safetensors")
    out = baked(tmp_path, loras=[{"path": "lora.safetensors", "components": ["text_encoder"]}])
    changed = {key for key in base if not torch.equal(out[key], base[key])}
    assert changed == {SD1_KEYS[TE_Q]}


def test_strength_zero_changes_no_byte_of_data(tmp_path: Path, base: b.Tensors) -> None:
    b.sd1_lora(tmp_path / "lora.safetensors")
    out = b.bake_sd1(tmp_path, loras=[{"path": "lora.safetensors", "strength": 0}])
    assert b.header(out)[2] == b.header(tmp_path / "base.safetensors")[2]


# -- What no LoRA touches --------------------------------------------------------------------------------


def test_keys_order_dtypes_shapes_and_untouched_bytes_are_the_bases(tmp_path: Path) -> None:
    base = b.sd1(ema=True)
    base["odd.bool"] = torch.tensor([True, False])
    base["odd.f64"] = torch.tensor([1.5], dtype=torch.float64)
    base["odd.f8"] = torch.tensor([1.5, 2.0]).to(torch.float8_e4m3fn)
    b.save(tmp_path / "base.safetensors", base, metadata={"config": '{"a": 1}'})
    b.sd1_lora(tmp_path / "lora.safetensors")
    out = b.bake_sd1(tmp_path)
    before, after = b.header(tmp_path / "base.safetensors"), b.header(out)
    assert list(before[0].items()) == list(after[0].items())  # names in order, dtypes, shapes, offsets
    assert after[1]["config"] == '{"a": 1}'
    old, new = b.tensor_bytes(tmp_path / "base.safetensors"), b.tensor_bytes(out)
    changed = {key for key in old if old[key] != new[key]}
    assert changed == {SD1_KEYS[name] for name in (Q, FF, CONV, TE_Q)}


def test_json_order_that_differs_from_the_datas_is_kept(tmp_path: Path) -> None:
    b.save(tmp_path / "sorted.safetensors", b.sd1())
    entries, _, data = b.header(tmp_path / "sorted.safetensors")
    text = json.dumps(dict(reversed(entries.items()))).encode()
    (tmp_path / "base.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    b.sd1_lora(tmp_path / "lora.safetensors")
    assert list(b.header(b.bake_sd1(tmp_path))[0].items()) == list(reversed(entries.items()))


def test_nan_passes_untouched_and_stops_where_a_lora_would_spread_it(tmp_path: Path) -> None:
    base = b.sd1()
    base[SD1_KEYS[K2]][0, 0] = float("nan")
    base["betas"][0] = float("inf")
    b.save(tmp_path / "base.safetensors", base)
    kohya(tmp_path, Q, b.lora((W, W)))
    out = b.bake_sd1(tmp_path)
    for key in (SD1_KEYS[K2], "betas"):
        assert b.tensor_bytes(out)[key] == b.tensor_bytes(tmp_path / "base.safetensors")[key]
    kohya(tmp_path, K2, b.lora((W, b.CONTEXT)))
    with pytest.raises(ValueTooLargeError, match=r"attn2\.to_k\.weight\[0, 0\]: nan in the base already"):
        b.bake_sd1(tmp_path, output={"path": "other.safetensors"})
    assert not (tmp_path / "other.safetensors").exists()


EIGHT_BITS = {"float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}


@pytest.mark.parametrize("dtype", EIGHT_BITS.values(), ids=str)
@pytest.mark.parametrize("compute", ["float32", "float64"])
def test_floats_of_eight_bits_are_decoded_changed_and_rounded_once(
    dtype: torch.dtype, compute: str, tmp_path: Path
) -> None:
    base = {key: tensor.to(dtype) if tensor.is_floating_point() else tensor for key, tensor in b.sd1().items()}
    b.save(tmp_path / "base.safetensors", base)
    slots = b.lora((W, W), size=0.5)
    kohya(tmp_path, Q, slots)
    out = b.bake_sd1(tmp_path, compute_dtype=compute)
    after, key = load_file(out), SD1_KEYS[Q]
    assert {name for name in base if after[name].view(torch.uint8).ne(base[name].view(torch.uint8)).any()} == {key}
    exact = base[key].double() + b.delta(slots, (W, W))
    b.assert_rounded_once(after[key], exact, terms=[exact.abs() * 4])
    options = VerifyOptions(stages=("structure", "weights"))
    assert verify(load_recipe(tmp_path / "recipe.yaml"), options=options).is_true


@pytest.mark.parametrize(("word", "dtype"), EIGHT_BITS.items())
def test_the_output_may_have_eight_bits_and_a_base_of_eight_more(
    word: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    base = b.sd1(extras=False)
    b.save(tmp_path / "base.safetensors", base)
    narrow = load_file(b.bake_sd1(tmp_path, loras=[], output={"dtype": word}))
    assert all(torch.equal(narrow[key].float(), tensor.to(dtype).float()) for key, tensor in base.items())
    b.save(tmp_path / "base.safetensors", narrow)
    wide = load_file(b.bake_sd1(tmp_path, loras=[], output={"dtype": "float16", "path": "wide.safetensors"}))
    assert all(torch.equal(wide[key], tensor.half()) for key, tensor in narrow.items())


def test_eight_bits_that_overflow_are_refused(tmp_path: Path) -> None:
    base = b.sd1()
    base[SD1_KEYS[Q]] = torch.full((W, W), 440.0).to(torch.float8_e4m3fn)
    b.save(tmp_path / "base.safetensors", base)
    kohya(tmp_path, Q, {"up": torch.full((W, 1), 60.0), "down": torch.ones(1, W)})
    with pytest.raises(ValueTooLargeError, match=r"508 with LoRA .*; F8_E4M3 cannot hold it"):
        b.bake_sd1(tmp_path)
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("rows", [False, True], ids=["one scale", "one a row"])
@pytest.mark.parametrize("name", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize("dtype", EIGHT_BITS.values(), ids=str)
def test_scaled_weights_are_decoded_changed_and_scaled_anew(
    dtype: torch.dtype, name: str, rows: bool, tmp_path: Path
) -> None:
    """Twice the decoded weight must not become twice the old numbers: the scale grows, and nothing overflows."""
    base, largest = b.sd1(), torch.finfo(dtype).max
    scales = {}
    for number, key in enumerate((SD1_KEYS[Q], SD1_KEYS[FF], SD1_KEYS[CONV])):
        weight = b.Values(number)(*base[key].shape) * 0.02
        size = weight.abs().flatten(1).amax(1) if rows else weight.abs().amax().reshape(1)
        scales[key] = (size / largest).reshape(-1, *[1] * (weight.dim() - 1))
        base[key] = (weight / scales[key]).to(dtype)
        base[key.removesuffix("weight") + name] = scales[key].reshape(-1, 1) if rows else scales[key].reshape(())
    base["scaled_fp8"] = torch.empty(2).to(dtype)
    b.save(tmp_path / "base.safetensors", base)
    slots = {Q: b.lora((W, W), size=0.5), CONV: b.lora(tuple(base[SD1_KEYS[CONV]].shape), size=0.3)}
    b.kohya(tmp_path / "lora.safetensors", {b.unet_lora(each): slots[each] for each in slots})
    after = load_file(b.bake_sd1(tmp_path))
    touched = {SD1_KEYS[Q], SD1_KEYS[CONV]}
    old, new = b.tensor_bytes(tmp_path / "base.safetensors"), b.tensor_bytes(tmp_path / "out.safetensors")
    changed = {key for key in base if old[key] != new[key]}
    assert changed == touched | {key.removesuffix("weight") + name for key in touched}
    for each, key in ((Q, SD1_KEYS[Q]), (CONV, SD1_KEYS[CONV])):
        exact = base[key].double() * scales[key].double() + b.delta(slots[each], tuple(base[key].shape))
        fresh = after[key.removesuffix("weight") + name].double()
        wanted = exact.abs().flatten(1).amax(1, keepdim=True) if rows else exact.abs().amax()
        torch.testing.assert_close(fresh, wanted.reshape(fresh.shape) / largest, rtol=1e-6, atol=0)
        units = exact / fresh.reshape(-1, *[1] * (exact.dim() - 1))
        b.assert_rounded_once(after[key], units, terms=[units.abs() * 4])
        assert float(after[key].float().abs().max()) == largest
    options = VerifyOptions(stages=("structure", "weights"))
    verification = verify(load_recipe(tmp_path / "recipe.yaml"), options=options)
    assert verification.is_true, [each for each in verification.findings if each.status == "fail"]
    wrong = after | {SD1_KEYS[Q].removesuffix("weight") + name: base[SD1_KEYS[Q].removesuffix("weight") + name]}
    b.save(tmp_path / "wrong.safetensors", wrong)
    found = verify(load_recipe(tmp_path / "recipe.yaml"), tmp_path / "wrong.safetensors", options=options)
    assert not found.is_true
    assert any(each.status == "fail" and each.check.startswith("weights.") for each in found.findings)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        *((name, (1,)) for name in ("comfy_quant", "scale", "scales", "SCB", "weight_scale_2")),
        *((name, (1,)) for name in ("weight.scale", "zero_point")),
        *((name, shape) for name in ("weight_scale", "scale_weight") for shape in ((3, W), (4, 2), (2, 2, 2))),
    ],
    ids=str,
)
def test_weights_of_other_scales_are_refused_not_misread(name: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    """Columns and blocks may be as many as rows (here 8), and names as many as there are programs."""
    base = b.sd1()
    base[SD1_KEYS[Q]] = base[SD1_KEYS[Q]].to(torch.float8_e4m3fn)
    base[SD1_KEYS[Q].removesuffix("weight") + name] = torch.ones(shape)
    b.save(tmp_path / "base.safetensors", base)
    kohya(tmp_path, Q, b.lora((W, W)))
    with pytest.raises(MatchError, match=f"which is scaled by .*{name}|of which .*{name} says"):
        b.bake_sd1(tmp_path)
    out = b.bake_sd1(tmp_path, loras=[], output={"dtype": "bfloat16"})
    before, after = b.tensor_bytes(tmp_path / "base.safetensors"), b.tensor_bytes(out)
    kept = {key for key in before if before[key] == after[key] and key.startswith("model.diffusion_model.")}
    assert kept == {SD1_KEYS[Q], SD1_KEYS[Q].removesuffix("weight") + name}
    kohya(tmp_path, K2, b.lora((W, b.CONTEXT)))
    assert b.bake_sd1(tmp_path).exists()  # what no LoRA touches may be scaled


def test_a_scale_of_a_scale_is_refused(tmp_path: Path) -> None:
    base = b.sd1()
    base[SD1_KEYS[Q]] = base[SD1_KEYS[Q]].to(torch.float8_e4m3fn)
    module = SD1_KEYS[Q].removesuffix("weight")
    base |= {module + "weight_scale": torch.ones(1), module + "weight_scale_2": torch.ones(1)}
    b.save(tmp_path / "base.safetensors", base)
    kohya(tmp_path, Q, b.lora((W, W)))
    with pytest.raises(MatchError, match=r"which is scaled by .*weight_scale"):
        b.bake_sd1(tmp_path)
    del base[module + "weight_scale_2"]
    base |= {module + "input_scale": torch.ones(1), module + "bias": torch.ones(W)}
    b.save(tmp_path / "base.safetensors", base)
    assert b.bake_sd1(tmp_path).exists()  # scales of inputs have no say in the weight


# -- What a dtype cannot hold ----------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 1e9])
@pytest.mark.parametrize("dora", [None, "row", "column"])
def test_what_float16_cannot_hold_stops_the_bake(
    tmp_path: Path, base: b.Tensors, value: float, dora: str | None
) -> None:
    slots = b.lora((W, W), dora=dora)
    slots["down"] = torch.eye(2, W)
    slots["up"][3] = torch.tensor([0.0, value])
    if dora:
        slots["dora_scale"] *= 1e6 if value == 1e9 else 1
    kohya(tmp_path, Q, slots, "strong.safetensors")
    with pytest.raises(ValueTooLargeError) as caught:
        b.bake_sd1(tmp_path, loras=[{"path": "strong.safetensors", "strength": 2}])
    first = str(caught.value).splitlines()[0]
    assert first.startswith(SD1_KEYS[Q] + "[")
    assert "'strong.safetensors'" in first
    if not dora:
        assert "[3, 1]: " in first or "[3, 0]: nan" in first
        assert ("2e+09" if value == 1e9 else f"{abs(value):g}") in first or "nan" in first
    assert {path.name for path in tmp_path.iterdir()} == {"base.safetensors", "strong.safetensors", "recipe.yaml"}


def test_float16_holds_what_rounds_below_its_limit(tmp_path: Path, base: b.Tensors) -> None:
    base[SD1_KEYS[Q]].zero_()
    b.save(tmp_path / "base.safetensors", base)
    slots = {"up": torch.zeros(W, 1), "down": torch.zeros(1, W)}
    slots["up"][0], slots["down"][0, 0] = 1.0, 65519.0
    kohya(tmp_path, Q, slots)
    assert float(baked(tmp_path)[SD1_KEYS[Q]][0, 0]) == 65504
    slots["down"][0, 0] = 65520.0
    kohya(tmp_path, Q, slots)
    with pytest.raises(ValueTooLargeError, match=r"\[0, 0\]: 65520 "):
        baked(tmp_path, output={"path": "other.safetensors"})


def test_a_lora_with_nan_is_called_damaged(tmp_path: Path) -> None:
    b.save(tmp_path / "base.safetensors", b.sd1())
    b.sd1_lora(tmp_path / "lora.safetensors")
    tensors = load_file(tmp_path / "lora.safetensors")
    next(value for key, value in tensors.items() if key.endswith("lora_up.weight"))[0, 0] = float("nan")
    b.save(tmp_path / "lora.safetensors", tensors)
    told = "LoRA 'lora.safetensors' holds NaN, infinity or absurdly large numbers: download it again"
    with pytest.raises(ValueTooLargeError, match=rf"nan with LoRA 'lora\.safetensors'(.|\n)*{told}"):
        b.bake_sd1(tmp_path, loras=["lora.safetensors"])


@pytest.mark.parametrize("strength", [1e39, -1e300])
def test_an_absurd_strength_is_blamed_for_what_it_makes(tmp_path: Path, strength: float) -> None:
    b.save(tmp_path / "base.safetensors", b.sd1())
    b.sd1_lora(tmp_path / "lora.safetensors")
    with pytest.raises(ValueTooLargeError) as caught:
        b.bake_sd1(tmp_path, loras=[{"path": "lora.safetensors", "strength": strength}])
    assert caught.value.lines[1] == f"Nothing was written. Lower the strength: it is {strength:g}."


def test_a_cast_that_overflows_stops_and_one_of_nan_passes(tmp_path: Path) -> None:
    base = b.sd1(dtype=torch.float32)
    base[SD1_KEYS[Q]][1, 2] = float("nan")
    b.save(tmp_path / "base.safetensors", base)
    out = baked(tmp_path, loras=[], output={"dtype": "float16"})
    assert out[SD1_KEYS[Q]][1, 2].isnan()
    base[SD1_KEYS[Q]][1, 3] = 1e5
    b.save(tmp_path / "base.safetensors", base)
    with pytest.raises(ValueTooLargeError, match=r"to_q\.weight\[1, 3\]: 100000 when cast; F16 cannot hold it"):
        baked(tmp_path, loras=[], output={"dtype": "float16", "path": "other.safetensors"})
    assert baked(tmp_path, loras=[], output={"dtype": "bfloat16"})[SD1_KEYS[Q]].dtype == torch.bfloat16


# -- Output dtypes ---------------------------------------------------------------------------------------


def test_dtype_casts_the_networks_floats_only(tmp_path: Path) -> None:
    base = b.sd1(dtype=torch.float32, ema=True)
    b.save(tmp_path / "base.safetensors", base)
    made = b.sd1_lora(tmp_path / "lora.safetensors")
    out = baked(tmp_path, output={"dtype": "bfloat16"})
    networks = ("model.diffusion_model.", "cond_stage_model.", "first_stage_model.")
    for key, tensor in base.items():
        if key in {SD1_KEYS[name] for name in made}:
            assert out[key].dtype == torch.bfloat16
        elif key.startswith(networks) and tensor.is_floating_point():
            assert torch.equal(out[key], tensor.bfloat16()), key
        else:
            assert out[key].dtype == tensor.dtype, key
            assert torch.equal(out[key], tensor), key
    assert {"betas", "v_pred", "model_ema.decay"} <= out.keys()


def test_a_touched_tensor_is_rounded_once_to_the_new_dtype(tmp_path: Path) -> None:
    base = b.sd1(dtype=torch.float32)
    b.save(tmp_path / "base.safetensors", base)
    made = b.sd1_lora(tmp_path / "lora.safetensors")
    out = baked(tmp_path, output={"dtype": "float16"}, compute_dtype="float64")
    for name, slots in made.items():
        weight = base[SD1_KEYS[name]]
        exact = weight.double() + b.delta(slots, tuple(weight.shape))
        b.assert_rounded_once(out[SD1_KEYS[name]], exact, exactly=True)


def test_dtype_by_component(tmp_path: Path, base: b.Tensors) -> None:
    out = baked(tmp_path, loras=[], output={"dtype": {"vae": "float32", "text_encoder": "bfloat16"}})
    for key, tensor in base.items():
        wanted = tensor.dtype
        if tensor.is_floating_point():
            wanted = torch.float32 if key.startswith("first_stage_model.") else wanted
            wanted = torch.bfloat16 if key.startswith("cond_stage_model.") else wanted
        assert out[key].dtype == wanted, key
        assert torch.equal(out[key], tensor.to(wanted)), key


def test_a_dtype_for_a_component_that_the_base_has_not_is_an_error(tmp_path: Path, base: b.Tensors) -> None:
    with pytest.raises(LorabakeError, match="text_encoder_9"):
        baked(tmp_path, loras=[], output={"dtype": {"text_encoder_9": "float32"}})


# -- VAE -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["ldm", "diffusers"])
@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_vae_takes_the_place_of_the_bases(tmp_path: Path, base: b.Tensors, layout: str, prefix: str) -> None:
    if layout == "diffusers" and prefix:
        pytest.skip("no such files")
    b.save(tmp_path / "vae.safetensors", b.vae_file(layout, seed=5, prefix=prefix))
    out = b.bake_sd1(tmp_path, loras=[], vae="vae.safetensors")
    before, after = b.header(tmp_path / "base.safetensors"), b.header(out)
    assert list(before[0].items()) == list(after[0].items())
    wanted = b.vae_file("ldm", seed=5, prefix="first_stage_model.")
    old = b.tensor_bytes(tmp_path / "base.safetensors")
    for key, raw in b.tensor_bytes(out).items():
        assert raw == (wanted[key].numpy().tobytes() if key in wanted else old[key]), key


def test_vae_of_another_dtype_is_cast_to_the_bases(tmp_path: Path, base: b.Tensors) -> None:
    vae = b.vae_file("ldm", seed=5, dtype=torch.float32)
    b.save(tmp_path / "vae.safetensors", vae)
    out = baked(tmp_path, loras=[], vae="vae.safetensors")
    for key, tensor in vae.items():
        assert torch.equal(out[f"first_stage_model.{key}"], tensor.half())


def test_vae_into_a_diffusers_folder(tmp_path: Path) -> None:
    parts = b.sd1_folder(tmp_path / "base", dtype=torch.float32)
    vae = b.vae_file("ldm", seed=6)
    b.save(tmp_path / "vae.safetensors", vae)
    out = b.run(b.recipe(tmp_path, base="base", loras=[], vae="vae.safetensors", output={"path": "out"})).path
    file = Path("vae", "diffusion_pytorch_model.safetensors")
    written = load_file(out / file)
    for key, tensor in b.vae_file("diffusers", seed=6).items():
        assert written[key].shape == parts["vae"][key].shape
        assert torch.equal(written[key], tensor.float())
    before, after = b.header(tmp_path / "base" / file), b.header(out / file)
    assert list(before[0].items()) == list(after[0].items())
    assert after[1]["of"] == "vae"


def test_vae_with_tensors_missing_or_of_other_sizes_is_refused(tmp_path: Path, base: b.Tensors) -> None:
    vae = b.vae_file("ldm", seed=5)
    b.save(tmp_path / "vae.safetensors", {key: t for key, t in vae.items() if not key.startswith("quant_conv")})
    with pytest.raises(FileError, match=r"lacks 2 of the \d+ tensors of a VAE: first_stage_model\.quant_conv"):
        baked(tmp_path, loras=[], vae="vae.safetensors")
    b.save(tmp_path / "vae.safetensors", vae | {"decoder.conv_in.weight": torch.zeros(4, 5, 3, 3)})
    with pytest.raises(FileError, match=r"decoder\.conv_in\.weight is \(4, 5, 3, 3\), the base's is \(4, 4, 3, 3\)"):
        baked(tmp_path, loras=[], vae="vae.safetensors")
    b.save(tmp_path / "vae.safetensors", {"something.weight": torch.zeros(2, 2)})
    with pytest.raises(FileError, match="not a VAE"):
        baked(tmp_path, loras=[], vae="vae.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


# -- Folders and shards ----------------------------------------------------------------------------------


def test_diffusers_folder_in_folder_out(tmp_path: Path) -> None:
    parts = b.sd1_folder(tmp_path / "base")
    made = b.sd1_lora(tmp_path / "lora.safetensors")
    out = b.run(b.recipe(tmp_path, base="base", output={"path": "deep/out"})).path
    before, after = b.tree(tmp_path / "base"), b.tree(out)
    assert before.keys() == after.keys()
    for name in before:
        if name.endswith(".json"):
            assert before[name] == after[name], name
    unet = load_file(out / "unet" / "diffusion_pytorch_model.safetensors")
    text = load_file(out / "text_encoder" / "model.safetensors")
    for module, slots in made.items():
        weight = parts["text_encoder" if module == TE_Q else "unet"][f"{module}.weight"]
        change = b.delta(slots, tuple(weight.shape))
        written = (text if module == TE_Q else unet)[f"{module}.weight"]
        b.assert_rounded_once(written, weight.double() + change, terms=[weight, change])
    for name in before:
        if name.endswith(".safetensors"):
            old, new = b.header(tmp_path / "base" / name), b.header(out / name)
            assert list(old[0].items()) == list(new[0].items())
            assert new[1]["of"] == old[1]["of"]
    assert (
        b.header(out / "vae" / "diffusion_pytorch_model.safetensors")[2]
        == (b.header(tmp_path / "base" / "vae" / "diffusion_pytorch_model.safetensors")[2])
    )


def test_single_file_and_folder_give_the_same_tensors(tmp_path: Path) -> None:
    b.save(tmp_path / "base.safetensors", b.sd1(extras=False))
    b.sd1_folder(tmp_path / "folder")
    b.sd1_lora(tmp_path / "lora.safetensors")
    single = load_file(b.bake_sd1(tmp_path))
    out = b.run(b.recipe(tmp_path, base="folder", output={"path": "out"})).path
    unet = load_file(out / "unet" / "diffusion_pytorch_model.safetensors")
    for ldm, hf, _ in b.sd1_unet():
        assert torch.equal(single[f"model.diffusion_model.{ldm}"], unet[hf]), hf


def test_variant_names_are_kept(tmp_path: Path) -> None:
    b.sd1_folder(tmp_path / "base", variant="fp16")
    b.save(tmp_path / "base" / "unet" / "diffusion_pytorch_model.safetensors", {"other": torch.zeros(1)})
    b.sd1_lora(tmp_path / "lora.safetensors")
    path = b.recipe(tmp_path, base={"path": "base", "variant": "fp16"}, output={"path": "out"})
    out = b.run(path).path
    written = {name for name in b.tree(out) if name.endswith(".safetensors")}
    assert written == {
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder/model.fp16.safetensors",
    }


def joined(folder: Path, index: str = "model.safetensors.index.json") -> b.Tensors:
    """Load shards through their index, as transformers does, and check the index against them."""
    described = json.loads((folder / index).read_text())
    tensors: b.Tensors = {}
    for name in sorted(set(described["weight_map"].values())):
        own = load_file(folder / name)
        assert {key for key, file in described["weight_map"].items() if file == name} == own.keys()
        tensors |= own
    assert described["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    return tensors


def test_shards_in_shards_out(tmp_path: Path) -> None:
    base = b.llama(tmp_path / "base", shards=3)
    slots = b.lora((8, 8))
    b.peft(tmp_path / "lora", {"model.layers.1.self_attn.q_proj": slots})
    out = b.run(b.recipe(tmp_path, base="base", loras=["lora"], output={"path": "out", "dtype": "float32"})).path
    assert b.tree(out).keys() == b.tree(tmp_path / "base").keys()
    tensors = joined(out)
    assert tensors.keys() == base.keys()
    for key, weight in base.items():
        change = b.delta(slots, (8, 8)) if key == "model.layers.1.self_attn.q_proj.weight" else torch.zeros(1)
        b.assert_rounded_once(tensors[key], weight.double() + change, terms=[weight, change])
    assert b.tree(out)["config.json"] == b.tree(tmp_path / "base")["config.json"]


@pytest.mark.parametrize(("limit", "count"), [(600, None), (10_000_000, 1)])
def test_shard_size_shards_a_folder_anew(tmp_path: Path, limit: int, count: int | None) -> None:
    base = b.llama(tmp_path / "base", shards=2)
    b.peft(tmp_path / "lora", {"lm_head": {"whole": base["lm_head.weight"]}}, modules_to_save=["lm_head"])
    path = b.recipe(tmp_path, base="base", loras=["lora"], output={"path": "out", "shard_size": limit})
    out = b.run(path).path
    files = sorted(out.glob("*.safetensors"))
    if count == 1:
        assert [file.name for file in files] == ["model.safetensors"]
        assert not list(out.glob("*.index.json"))
        tensors = load_file(files[0])
    else:
        assert all(len(b.header(file)[2]) <= limit for file in files)
        assert [file.name for file in files] == [
            f"model-{n:05}-of-{len(files):05}.safetensors" for n in range(1, len(files) + 1)
        ]
        tensors = joined(out)
    assert tensors.keys() == base.keys()
    assert all(torch.equal(tensors[key], base[key]) for key in base)


def test_shard_size_shards_a_file_into_a_folder(tmp_path: Path, base: b.Tensors) -> None:
    b.sd1_lora(tmp_path / "lora.safetensors")
    whole = baked(tmp_path)
    out = b.run(b.recipe(tmp_path, output={"path": "out", "shard_size": "20KB"})).path
    tensors = joined(out, "base.safetensors.index.json")
    assert tensors.keys() == whole.keys()
    assert all(torch.equal(tensors[key], whole[key]) for key in whole)
    assert len(list(out.glob("base-*.safetensors"))) > 1


def test_a_tensor_above_the_shard_size_gets_a_shard_of_its_own(tmp_path: Path) -> None:
    base = b.llama(tmp_path / "base")
    b.peft(tmp_path / "lora", {"model.norm": {"whole": base["model.norm.weight"]}}, modules_to_save=["norm"])
    out = b.run(b.recipe(tmp_path, base="base", loras=["lora"], output={"path": "out", "shard_size": 1})).path
    assert len(list(out.glob("*.safetensors"))) == len(base)
    assert joined(out).keys() == base.keys()


def test_sharding_a_variant_names_the_index_as_diffusers_looks_for_it(tmp_path: Path) -> None:
    b.sd1_folder(tmp_path / "base", variant="fp16")
    b.sd1_lora(tmp_path / "lora.safetensors")
    path = b.recipe(tmp_path, base={"path": "base", "variant": "fp16"}, output={"path": "out", "shard_size": "10KB"})
    out = b.run(path).path
    assert (out / "unet" / "diffusion_pytorch_model.safetensors.index.fp16.json").exists()
    names = sorted(p.name for p in (out / "unet").glob("*.safetensors"))
    assert names[0] == f"diffusion_pytorch_model.fp16-00001-of-{len(names):05}.safetensors"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"output": {"path": "out", "dtype": "float32"}}, "must be a .safetensors file"),
        ({"output": {"path": "out.safetensors", "shard_size": 100}}, "shard_size is set"),
        ({"base": "folder", "output": {"path": "out.safetensors"}}, "the base is a folder"),
    ],
)
def test_a_file_where_a_folder_must_be_and_the_reverse(
    tmp_path: Path, base: b.Tensors, fields: dict[str, object], message: str
) -> None:
    b.sd1_folder(tmp_path / "folder")
    b.sd1_lora(tmp_path / "lora.safetensors")
    with pytest.raises(TargetError, match=message):
        b.run(b.recipe(tmp_path, **fields))


# -- Single components -----------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["ldm", "diffusers"])
def test_a_bare_unet(tmp_path: Path, layout: str) -> None:
    values = b.Values()
    names = {hf: (ldm if layout == "ldm" else hf) for ldm, hf, _ in b.sd1_unet()}
    base = {names[hf]: values(*shape, dtype=torch.float16) for _, hf, shape in b.sd1_unet()}
    b.save(tmp_path / "base.safetensors", base)
    slots = b.lora((W, W))
    b.diffusers(tmp_path / "lora.safetensors", {f"unet.{Q}": slots})
    key = names[f"{Q}.weight"]
    weight, change = base[key], b.delta(slots, (W, W))
    out = baked(tmp_path)
    b.assert_rounded_once(out[key], weight.double() + change, terms=[weight, change])
    assert all(torch.equal(out[other], base[other]) for other in base if other != key)


def test_a_bare_text_encoder(tmp_path: Path) -> None:
    values = b.Values()
    base = {name: values(*shape, dtype=torch.float32) for name, shape in b.clip()}
    b.save(tmp_path / "base.safetensors", base)
    slots = kohya(tmp_path, TE_Q, b.lora((b.TEXT, b.TEXT), alpha=1.0))
    weight, change = base[f"{TE_Q}.weight"], b.delta(slots, (b.TEXT, b.TEXT))
    b.assert_rounded_once(baked(tmp_path)[f"{TE_Q}.weight"], weight.double() + change, terms=[weight, change])


def test_pickled_inputs_bake_as_their_safetensors_do(tmp_path: Path, base: b.Tensors) -> None:
    b.sd1_lora(tmp_path / "lora.safetensors")
    torch.save(load_file(tmp_path / "lora.safetensors"), tmp_path / "lora.pt")
    torch.save({"state_dict": base}, tmp_path / "base.ckpt")
    from_safe = baked(tmp_path)
    from_pickle = baked(tmp_path, base="base.ckpt", loras=["lora.pt"], output={"path": "pickle.safetensors"})
    assert from_safe.keys() == from_pickle.keys()
    assert all(torch.equal(from_safe[key], from_pickle[key]) for key in from_safe)
