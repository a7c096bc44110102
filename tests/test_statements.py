"""What a checkpoint says of how its weights are stored: understood wherever it stands and kept true, or refused."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lorabake import load_recipe
from lorabake.baking import plan
from lorabake.codecs.codec import Statement
from lorabake.errors import FileError, MatchError, TargetError
from lorabake.storage import groups, options, recognition, statements
from lorabake.storage.packing import Packing
from lorabake.tensors.checkpoint import open_checkpoint
from lorabake.verification import VerifyOptions, verify
from lorabake.verification.samples import SampleOptions
from tests import builders as b
from tests import tables
from tests.documents import inspect

OUT, IN = 32, 128
SHAPE = (OUT, IN)
LORA = b.lora(SHAPE, seed=2, size=0.3)
FC, OTHER = "lora_unet_fc", "lora_unet_other"
WEIGHTS = VerifyOptions(stages=("structure", "weights"))
FP8, INT8 = torch.float8_e4m3fn, torch.int8
Stored = tuple[b.Tensors, torch.Tensor]
"""The tensors that stand for a weight, and its values."""

Said = dict[str, Any]
LAYERS = "_quantization_metadata"


def note(says: object) -> torch.Tensor:
    return torch.frombuffer(bytearray(json.dumps(says).encode()), dtype=torch.uint8)


def header_of(**layers: object) -> dict[str, str]:
    return {LAYERS: json.dumps({"format_version": "1.0", "layers": layers})}


def numbers(seed: int, *shape: int, high: int = 16, low: int = 0) -> torch.Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


def sizes(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 0.01 + 0.002


def turned(weight: torch.Tensor, group: int) -> torch.Tensor:
    """Multiply by the regular Hadamard matrix: −1 for each base-4 digit in which row and column add up to 3."""
    places = torch.arange(group)
    signs = torch.ones(group, group, dtype=torch.float64)
    for power in range(round(torch.tensor(float(group)).log2().item() / 2)):
        digits = places // 4**power % 4
        signs *= torch.where(digits[:, None] + digits[None] == 3, -1.0, 1.0)
    return (weight.double().reshape(len(weight), -1, group) @ signs / group**0.5).reshape(weight.shape)


def int8(name: str, *, group: int = 0, seed: int = 7) -> Stored:
    """Store a weight as int8 with a scale a row, as ComfyUI does; turned first with `group`."""
    weight = b.Values(seed)(*SHAPE).double() * 0.1
    weight = turned(weight, group) if group else weight
    scale = (weight.abs().amax(1, keepdim=True) / 127).float()
    codes = (weight / scale).round().to(INT8)
    values = codes.double() * scale.double()
    stored = {f"{name}.weight": codes, f"{name}.weight_scale": scale}
    return stored, turned(values, group) if group else values


def fp8(name: str, *, blocks: tuple[int, ...] = (), leaf: str = "weight_scale", seed: int = 7) -> Stored:
    weight = b.Values(seed)(*SHAPE).double() * 0.1
    scale = torch.full(blocks, 2.0**-9)
    codes = (weight / 2.0**-9).to(torch.float32).to(FP8)
    return {f"{name}.weight": codes, f"{name}.{leaf}": scale}, codes.double() * 2.0**-9


def world(
    folder: Path, stored: b.Tensors, metadata: dict[str, str] | None = None, loras: b.Tensors | None = None
) -> None:
    """Write a base of layers and a norm, and a LoRA on `fc`."""
    plain = {"norm.weight": torch.ones(4, dtype=torch.float16), "plain.weight": b.Values(3)(*SHAPE).half()}
    whole = {key: tensor.clone() for key, tensor in {**stored, **plain}.items()}
    b.save(folder / "base.safetensors", whole, metadata)
    b.kohya(folder / "lora.safetensors", {FC: LORA})


def same(folder: Path, keys: set[str]) -> None:
    before, after = (b.tensor_bytes(folder / name) for name in ("base.safetensors", "out.safetensors"))
    assert {key for key in keys if before[key] == after.get(key)} == keys


def assert_true(recipe: Path) -> None:
    found = verify(load_recipe(recipe), options=WEIGHTS)
    assert found.is_true, [each for each in found.findings if each.status == "fail"]


def assert_found(recipe: Path, change: Callable[[b.Tensors], None]) -> None:
    """Check that `verify` finds a change to the tensors that were written."""
    out = recipe.parent / "out.safetensors"
    spoilt = {key: tensor.clone() for key, tensor in load_file(out).items()}
    change(spoilt)
    b.save(recipe.parent / "wrong.safetensors", spoilt, b.header(out)[1])
    assert not verify(load_recipe(recipe), recipe.parent / "wrong.safetensors", options=WEIGHTS).is_true


# -- ConvRot: understood in each place, undone and done again ---------------------------------------------


def convrot(folder: Path, place: str, group: int) -> torch.Tensor:
    """Write a base of int8 ConvRot that says so in the tensors, the header or both."""
    (fc, values), (other, _) = (int8(name, group=group, seed=seed) for name, seed in (("fc", 7), ("other", 8)))
    says: Said = {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": group}
    if place == "params":
        says = {"format": "int8_tensorwise", "params": {"convrot": True, "convrot_groupsize": group}}
    if place == "default":
        says = {"format": "int8_tensorwise", "convrot": True, "orig_dtype": "torch.bfloat16", "per_row": True}
    layers = {"fc": says, "other": says}
    in_tensors = {} if place.startswith("header") else {f"{name}.comfy_quant": note(says) for name in layers}
    metadata = None if place == "tensor" else header_of(**layers)
    if place == "header of a part":
        fc, other = ({f"model.diffusion_model.{key}": value for key, value in each.items()} for each in (fc, other))
    world(folder, {**fc, **other, **in_tensors}, metadata)
    return values


PLACES = ["tensor", "header", "both", "params"]


@pytest.mark.parametrize(("place", "group"), [*((place, 64) for place in PLACES), ("tensor", 16), ("header", 4)])
def test_convrot_is_undone_and_done_again(place: str, group: int, tmp_path: Path) -> None:
    values = convrot(tmp_path, place, group)
    recipe = b.recipe(tmp_path, output={"allow_loss": True})
    out = b.run(recipe).path
    before, after = load_file(tmp_path / "base.safetensors"), load_file(out)
    exact = turned(values + b.delta(LORA, SHAPE), group)
    scale = after["fc.weight_scale"].double()
    torch.testing.assert_close(scale, exact.abs().amax(1, keepdim=True) / 127, rtol=1e-6, atol=0)
    assert (after["fc.weight"].double() - exact / scale).abs().max() <= 0.501
    same(tmp_path, before.keys() - {"fc.weight", "fc.weight_scale"})
    assert b.header(out)[1].get(LAYERS) == b.header(tmp_path / "base.safetensors")[1].get(LAYERS)
    assert_true(recipe)
    assert_found(recipe, lambda spoilt: spoilt["fc.weight"].view(-1)[5].bitwise_xor_(2))
    assert_found(recipe, lambda spoilt: spoilt["fc.weight_scale"].mul_(1.001))


@pytest.mark.parametrize("place", PLACES)
def test_convrot_becomes_plain(place: str, tmp_path: Path) -> None:
    values = convrot(tmp_path, place, 64)
    recipe = b.recipe(tmp_path, output={"dtype": "float32"})
    out = b.run(recipe).path
    after = load_file(out)
    assert sorted(after) == ["fc.weight", "norm.weight", "other.weight", "plain.weight"]
    exact = values + b.delta(LORA, SHAPE)
    b.assert_rounded_once(after["fc.weight"], exact, terms=[exact.abs().mean() * torch.full(SHAPE, 64.0)])
    assert LAYERS not in b.header(out)[1]
    assert_true(recipe)


def test_convrot_of_four_bits_becomes_plain(tmp_path: Path) -> None:
    codes, scale = numbers(1, OUT, IN, low=-8, high=8), sizes(2, OUT)
    packed = (codes[:, 0::2] & 15 | codes[:, 1::2] << 4).to(INT8)
    says = {"fc": {"format": "convrot_w4a4", "convrot_groupsize": 64, "linear_dtype": "int8"}}
    world(tmp_path, {"fc.weight": packed, "fc.weight_scale": scale}, header_of(**says))
    recipe = b.recipe(tmp_path, output={"dtype": "float32"})
    b.run(recipe)
    exact = turned(codes.double() * scale.double()[:, None], 64) + b.delta(LORA, SHAPE)
    after = load_file(tmp_path / "out.safetensors")["fc.weight"]
    b.assert_rounded_once(after, exact, terms=[exact.abs().mean() * torch.full(SHAPE, 64.0)])
    assert_true(recipe)


def test_a_header_may_name_layers_without_what_is_in_front_of_them(tmp_path: Path) -> None:
    convrot(tmp_path, "header of a part", 64)
    names = {f"model.diffusion_model.{name}" for name in ("fc.weight", "other.weight")}
    assert {
        key for key, info in packing_of(tmp_path / "base.safetensors").scaled.items() if info.codec.rotation == 64
    } == names


NAMES: dict[str, tuple[str, str]] = {
    "more in the header": ("", "model.diffusion_model.{}"),
    "a part of it in the header": ("model.diffusion_model.", "diffusion_model.{}"),
    "the weight": ("", "{}.weight"),
    "the weight, and less": ("model.diffusion_model.", "{}.weight"),
    "the weight, and more": ("net.", "model.net.{}.weight"),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_header_may_call_layers_otherwise(name: str, tmp_path: Path) -> None:
    front, called = NAMES[name]
    (fc, values), (other, _) = (int8(front + each, group=64, seed=seed) for each, seed in (("a.fc", 7), ("b.fc", 8)))
    says = {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 64}
    told = header_of(**{called.format("a.fc"): says, called.format("b.fc"): says})
    world(tmp_path, {**fc, **other}, told)
    scaled = packing_of(tmp_path / "base.safetensors").scaled
    assert {key: info.codec.rotation for key, info in scaled.items()} == dict.fromkeys(
        (f"{front}a.fc.weight", f"{front}b.fc.weight"), 64
    )
    recipe = b.recipe(tmp_path, loras=[], output={"dtype": "float32"})
    after = load_file(b.run(recipe).path)
    torch.testing.assert_close(after[f"{front}a.fc.weight"].double(), values, rtol=0, atol=1e-6)
    assert LAYERS not in b.header(tmp_path / "out.safetensors")[1]
    assert_true(recipe)


def test_what_is_said_of_a_layer_with_more_in_front_is_not_said_of_another(tmp_path: Path) -> None:
    says = {"format": "nvfp4"}
    world(tmp_path, {**int8("fc")[0], **int8("te.fc", seed=8)[0]}, header_of(**{"te.fc": says}))
    b.run(b.recipe(tmp_path, output={"dtype": "float32"}))
    same(tmp_path, {"te.fc.weight", "te.fc.weight_scale"})
    assert json.loads(b.header(tmp_path / "out.safetensors")[1][LAYERS])["layers"] == {"te.fc": says}


def test_what_is_said_of_a_plain_weight_by_its_key_is_refused(tmp_path: Path) -> None:
    world(tmp_path, {"fc.weight": b.Values(3)(*SHAPE).half()}, header_of(**{"fc.weight": {"format": "rotated"}}))
    with pytest.raises(MatchError, match=r"fc\.weight, of which the header's \S+ says {\"format\": \"rotated\"}"):
        plan(load_recipe(b.recipe(tmp_path)))


def test_what_is_said_of_no_layer_is_refused_by_name_where_weights_are_stored(tmp_path: Path) -> None:
    says = {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 64}
    plain = {"format": "int8_tensorwise", "orig_dtype": "torch.bfloat16"}
    fc, gone = int8("fc")[0], header_of(**{"blocks.0.linear": {"format": "int8_rowwise"}})
    world(tmp_path, fc, gone)
    assert "fc.weight" in packing_of(tmp_path / "base.safetensors").strange
    gone = header_of(**{"blocks.0.linear": says})
    world(tmp_path, fc, gone)
    with pytest.raises(
        MatchError, match=r"fc\.weight, which the header's \S+ may mean by blocks\.0\.linear, a layer"
    ):
        plan(load_recipe(b.recipe(tmp_path)))
    made = b.run(b.recipe(tmp_path, loras=[], output={"dtype": "bfloat16"}))
    same(tmp_path, {*fc})
    assert b.header(made.path)[1][LAYERS] == gone[LAYERS]
    assert [each for each in made.plan.notes if "may mean by blocks.0.linear" in each]
    for stored, layers in (
        (fc, {"blocks.0.linear": says, "fc": plain}),  # of others, maybe in other files
        (fc, {"blocks.0.linear": plain}),  # it takes nothing from what tensors show
        ({"fc.weight": b.Values(3)(*SHAPE).half()}, {"blocks.0.linear": says}),
    ):
        world(tmp_path, stored, header_of(**layers))
        b.run(b.recipe(tmp_path, output={"allow_loss": True}))


@pytest.mark.parametrize("output", [{}, {"shard_size": "1GB"}, {"dtype": "float32"}], ids=str)
@pytest.mark.parametrize("form", ["text", "object"])
def test_an_index_may_say_what_a_header_may(form: str, output: Said, tmp_path: Path) -> None:
    says = {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 64}
    stored, values = int8("fc", group=64)
    layers: object = {"layers": {"fc": says, "gone": says}}
    whole: object = {"quant_method": "fp8", "scale_fmt": ""}
    if form == "text":
        layers, whole = json.dumps(layers), json.dumps(whole)
    b.save(tmp_path / "base/model-00001-of-00001.safetensors", stored)
    index = {
        "metadata": {LAYERS: layers, "quantization_config": whole},
        "weight_map": dict.fromkeys(stored, "model-00001-of-00001.safetensors"),
    }
    (tmp_path / "base/model.safetensors.index.json").write_text(json.dumps(index))
    b.kohya(tmp_path / "lora.safetensors", {FC: LORA})
    recipe = b.recipe(tmp_path, base="base", output={"path": "out", "allow_loss": True, **output})
    b.run(recipe)
    assert_true(recipe)
    files = b.tree(tmp_path / "out")
    (name,) = (name for name in files if name.endswith(".safetensors"))
    kept, after = b.header(tmp_path / "out" / name)[1], load_file(tmp_path / "out" / name)
    exact = values + b.delta(LORA, SHAPE)
    if "dtype" in output:
        torch.testing.assert_close(after["fc.weight"].double(), exact, rtol=0, atol=1e-5)
    else:
        scale = after["fc.weight_scale"].double()
        assert (after["fc.weight"].double() - turned(exact, 64) / scale).abs().max() <= 0.501
    if "shard_size" not in output:
        assert LAYERS not in kept
        kept = json.loads(files["model.safetensors.index.json"])["metadata"]
        assert isinstance(kept[LAYERS], str) == (form == "text")
        kept = {name: said if isinstance(said, str) else json.dumps(said) for name, said in kept.items()}
        shorter = {"metadata": {}, "weight_map": dict.fromkeys(after, name)}
        (tmp_path / "out/model.safetensors.index.json").write_text(json.dumps(shorter))
        assert not verify(load_recipe(recipe), options=WEIGHTS).is_true
    left = ["gone"] if "dtype" in output else ["fc", "gone"]
    assert [*json.loads(kept[LAYERS])["layers"]] == left
    assert ("quantization_config" in kept) == ("dtype" not in output)


def packing_of(path: Path) -> Packing:
    checkpoint = open_checkpoint(path)
    return recognition.find_packing(checkpoint, statements.read_beside(checkpoint))


# -- What is not understood is refused by name, and stays as it is ----------------------------------------

UNKNOWN_NOTES: dict[str, Said] = {
    "another format": {"format": "nvfp4"},
    "no format": {"convrot": True, "per_row": True},
    "another rotation": {"format": "int8_tensorwise", "hadamard": True},
    "another group": {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 48},
    "a group that does not fit": {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 256},
    "of float8": {"format": "float8_e4m3fn"},
}


@pytest.mark.parametrize("place", ["tensor", "header", "params"])
def test_what_is_said_of_a_layer_is_refused_by_name_and_kept(place: str, tmp_path: Path) -> None:
    stored, layers = {}, {}
    for number, says in enumerate(UNKNOWN_NOTES.values()):
        layer = f"fc{number}"
        stored |= int8(layer, seed=number)[0]
        if place == "params":
            says = {key: value for key, value in says.items() if key == "format"} | {"params": says}
        layers[layer] = says
        if place != "header":
            stored[f"{layer}.comfy_quant"] = note(says)
        where = "the header's _quantization_metadata" if place == "header" else rf"{layer}\.comfy_quant"
        world(tmp_path, stored, header_of(**layers) if place == "header" else None)
        b.kohya(tmp_path / "lora.safetensors", {f"lora_unet_{layer}": LORA})
        with pytest.raises(MatchError, match=rf"{layer} would change {layer}\.weight, of which {where} says {{"):
            plan(load_recipe(b.recipe(tmp_path)))
    known = {"other": {"format": "int8_tensorwise"}}
    told = header_of(**layers, **known) if place == "header" else header_of(**known)
    world(tmp_path, {**stored, **int8("other")[0]}, told)
    made = b.run(b.recipe(tmp_path, loras=[], output={"dtype": "bfloat16"}))
    same(tmp_path, {*stored})
    after = load_file(made.path)
    assert after["other.weight"].dtype is after["norm.weight"].dtype is torch.bfloat16
    assert "other.weight_scale" not in after
    left = b.header(made.path)[1].get(LAYERS)
    assert (json.loads(left)["layers"] if left else {}) == (layers if place == "header" else {})
    assert [each for each in made.plan.notes if each.startswith("1 weight stays as it is") and "fc0.weight" in each]
    assert_true(tmp_path / "recipe.yaml")


def test_statements_that_differ_are_not_decided(tmp_path: Path) -> None:
    fc, _ = int8("fc")
    plain, rotated = {"format": "int8_tensorwise"}, {"format": "int8_tensorwise", "convrot": True}
    world(tmp_path, {**fc, "fc.comfy_quant": note(plain)}, header_of(fc=rotated))
    with pytest.raises(MatchError, match=r"of which fc\.comfy_quant and the header's \S+ say different things"):
        b.run(b.recipe(tmp_path))
    world(tmp_path, {**fc, "fc.comfy_quant": note({**plain, "convrot": False})}, header_of(fc=plain))
    b.run(b.recipe(tmp_path, output={"allow_loss": True}))


@pytest.mark.parametrize("text", ["{", "[]", '{"layers": 3}', '{"layers": {"fc": 1}}', "{}"])
def test_a_header_that_cannot_be_read_is_an_error(text: str, tmp_path: Path) -> None:
    world(tmp_path, int8("fc")[0], {LAYERS: text})
    with pytest.raises(FileError, match=f"the header's {LAYERS}"):
        b.run(b.recipe(tmp_path))


@pytest.mark.parametrize("text", [b'{"format":', b"[1]", b"", b'{"convrot": true}\0'])
def test_a_note_that_cannot_be_read_is_refused_as_such(text: bytes, tmp_path: Path) -> None:
    broken = torch.tensor([*text], dtype=torch.uint8)
    world(tmp_path, {**int8("fc")[0], "fc.comfy_quant": broken})
    with pytest.raises(MatchError, match=r"of which fc\.comfy_quant says nothing that can be read"):
        plan(load_recipe(b.recipe(tmp_path)))


# -- Scales that stand elsewhere ---------------------------------------------------------------------------

Q = "model.layers.1.self_attn.q_proj"
SCALES_OF_Q = [
    f"{Q}_scale", f"{Q}_scale_inv", f"{Q}_weight_scale", f"{Q}.quantizer.scale", f"{Q}.fp8_meta.scale_inv",
    f"{Q}.parametrizations.weight.0.scale", f"{Q}.weight_quantizer.amax", f"{Q}_amax", f"{Q}.fp8.weight_scale",
    "model.layers.1.scales.q_proj", "model.layers.1.self_attn_scale.q_proj", f"scales.{Q}", f"scales.{Q}.weight",
    "model_layers_1_self_attn_q_proj_scale", "model.layers.1.self_attn.scales.q_proj", f"{Q}.weight.dequant_scale",
]  # fmt: skip


@pytest.mark.parametrize("key", SCALES_OF_Q)
def test_float8_with_a_scale_elsewhere_is_not_decoded(key: str, tmp_path: Path) -> None:
    weights = {f"{Q}.weight": b.Values(1)(*SHAPE).to(FP8), f"{Q[:-6]}k_proj.weight": b.Values(2)(*SHAPE).to(FP8)}
    for scale in (torch.full((1,), 2.0**-9), torch.full((OUT, 1), 2.0**-9).bfloat16()):
        world(tmp_path, {**weights, key: scale})
        strange = packing_of(tmp_path / "base.safetensors").strange
        assert {name: each.parts for name, each in strange.items()} == {f"{Q}.weight": {f"{Q}.weight", key}}
    b.kohya(tmp_path / "lora.safetensors", {f"lora_unet_{Q.replace('.', '_')}": LORA})
    with pytest.raises(MatchError, match=rf"would change {Q}\.weight, (which|beside which) .*{key}"):
        plan(load_recipe(b.recipe(tmp_path)))
    made = b.run(b.recipe(tmp_path, loras=[], output={"dtype": "float32"}))
    same(tmp_path, {f"{Q}.weight", key})
    assert load_file(made.path)[f"{Q[:-6]}k_proj.weight"].dtype is torch.float32
    assert [each for each in made.plan.notes if "stays as it is" in each and Q in each]


UNRELATED = [
    "scale_shift_table", "model.layers.1.scale_shift_table", "logit_scale", "model.logit_scale", "model.norm.scale",
    "model.layers.1.layer_scale", "model.layers.1.self_attn.norm.query_norm.scale", "model.layers.1.scale",
    "model.layers.1.self_attn.scale_q.bias", "model.quant_conv.weight", "model.zero_convs.1.weight",
    "model.layers.0.self_attn.q_proj_scale", "model.layers.1.self_attn.k_proj_scale", f"{Q}.input_scale",
    f"{Q}.input_quantizer.amax", f"{Q}_norm.scale", f"{Q}.bias", "model.layers.1.self_attn.q_scale",
]  # fmt: skip


def test_plain_float8_beside_unrelated_scales_is_plain(tmp_path: Path) -> None:
    unrelated = {key: torch.ones(OUT) for key in UNRELATED}
    world(tmp_path, {f"{Q}.weight": b.Values(1)(*SHAPE).to(FP8), **unrelated})
    assert not packing_of(tmp_path / "base.safetensors").strange
    after = load_file(b.run(b.recipe(tmp_path, loras=[], output={"dtype": "float32"})).path)
    assert after[f"{Q}.weight"].dtype is torch.float32


def test_published_tables_in_float8_have_no_scales_elsewhere() -> None:
    """Whichever of their tensors someone cast to float8."""
    for name in tables.names("checkpoint"):
        table = tables.load_table(name)
        for least in (2, 1):
            cast = {
                key: replace(info, dtype="F8_E4M3" if len(info.shape) >= least and "scale" not in key else "F32")
                for key, info in table.items()
            }
            assert not groups._scaled_from_afar(cast, {}), name


@pytest.mark.parametrize("name", ["base_map.pt", "base_scales.safetensors", "base.scale.json", "base_fp8_map.pt"])
def test_float8_beside_a_file_of_scales_is_not_decoded(name: str, tmp_path: Path) -> None:
    stored = {"fc.weight": b.Values(1)(*SHAPE).to(FP8), "other.bias": torch.ones(OUT).to(FP8)}
    world(tmp_path, stored)
    torch.save({"module": load_file(tmp_path / "base.safetensors")}, tmp_path / "base.pt")
    for unrelated in ("base.yaml", "base_mapping.json", "base_x4_upscale.safetensors", "other_map.pt"):
        (tmp_path / unrelated).touch()
    assert not packing_of(tmp_path / "base.safetensors").strange
    (tmp_path / name).touch()
    for base, key in (("base.safetensors", "fc.weight"), ("base.pt", "module.fc.weight")):
        strange = packing_of(tmp_path / base).strange
        assert {each: found.parts for each, found in strange.items()} == {key: {key}}
    with pytest.raises(MatchError, match=rf"would change fc\.weight, which {name} beside its file may scale"):
        plan(load_recipe(b.recipe(tmp_path)))
    b.run(b.recipe(tmp_path, loras=[], output={"dtype": "float32"}))
    same(tmp_path, {"fc.weight"})


BLOCKS: dict[str, tuple[tuple[int, int], tuple[int, int], Said, bool]] = {
    "one down": ((128, 192), (1, 2), {"weight_block_size": [128, 96]}, False),
    "one across": ((192, 128), (2, 1), {"weight_block_size": [96, 128]}, False),
    "one row": ((1, 192), (1, 2), {"weight_block_size": [1, 128]}, False),
    "rows": ((4, 192), (4, 2), {"weight_block_size": [1, 128]}, False),
    "too few down": ((256, 192), (1, 2), {"weight_block_size": [128, 128]}, False),
    "a structure": ((128, 192), (1, 2), {"block_structure": [128, 96]}, False),
    "a structure in words": ((128, 192), (1, 2), {"block_structure": "128x96"}, False),
    "groups": ((4, 192), (4, 2), {"group_size": 128}, False),
    "as it is": ((128, 192), (1, 2), {"weight_block_size": [128, 128]}, True),
    "short ends": ((200, 192), (2, 2), {"weight_block_size": [128, 128]}, True),
    "within one block": ((64, 192), (1, 2), {"block_structure": [128, 128]}, True),
    "a group": ((4, 192), (4, 2), {"group_size": 96}, True),
    "one for all": ((192, 192), (1, 1), {"weight_block_size": [128, 128]}, True),
    "one a row": ((192, 192), (192, 1), {"weight_block_size": [128, 128]}, True),
    "nothing said": ((128, 192), (1, 2), {}, True),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_are_of_the_size_that_is_said(name: str, tmp_path: Path) -> None:
    shape, scales, says, is_known = BLOCKS[name]
    if "weight_block_size" not in says:
        says = {"config_groups": {"g": {"weights": {"num_bits": 8, "type": "float", **says}}}}
    stored = {"fc.weight": torch.ones(shape).to(FP8), "fc.weight_scale": torch.ones(scales)}
    say(tmp_path, "config.json", {"quant_method": "compressed-tensors", **says}, stored)
    packing = packing_of(tmp_path / "base")
    assert ("fc.weight" in packing.scaled, "fc.weight" in packing.strange) == (is_known, not is_known)


@pytest.mark.parametrize(
    ("form", "is_known"),
    [("e4m3", True), ("float8_e4m3fn", True), ("e5m2", False), ("e4m3fnuz", False), ("e4m3_ue8m0", False)],
)
def test_float8_is_of_the_form_that_is_said(form: str, is_known: bool, tmp_path: Path) -> None:
    says = {"quant_method": "fp8", "fmt": form}
    say(tmp_path, "config.json", says, {**fp8("fc", blocks=(1, 1))[0]})
    recipe = b.recipe(tmp_path, base="base", output={"path": "out", "allow_loss": True})
    if is_known:
        b.run(recipe)
        return
    with pytest.raises(MatchError, match=rf"fc\.weight, (of )?which .*{form}"):
        plan(load_recipe(recipe))


# -- Formats that this version cannot decode ---------------------------------------------------------------


def undecodable() -> dict[str, tuple[str, b.Tensors]]:
    """List ways of storing `fc`: what inspect calls each, and its tensors."""
    half, one = sizes(5, OUT, IN // 16).half(), torch.ones(1)
    u8, i32 = (lambda *s: numbers(1, *s, high=256).to(torch.uint8)), (lambda *s: numbers(1, *s).int())
    rank = {"proj_down": sizes(1, IN, 8).half(), "proj_up": sizes(2, OUT, 8).half()}
    old_rank = {"lora_down": rank["proj_down"], "lora_up": rank["proj_up"]}
    smooth = {"smooth_factor": sizes(3, IN).half(), "smooth_factor_orig": sizes(3, IN).half()}
    gptq = {"qweight": i32(IN // 8, OUT), "qzeros": i32(IN // 16, OUT // 8), "scales": half.T}
    packed = {"weight_packed": i32(OUT, IN // 8), "weight_scale": half, "weight_shape": torch.tensor(SHAPE)}
    plain = b.Values(3)(*SHAPE).half()
    quantised = {"weight": numbers(1, *SHAPE).to(INT8)}
    ways: dict[str, tuple[str, b.Tensors]] = {
        "nvfp4": (
            "NVFP4",
            {"weight": u8(OUT, IN // 2), "weight_scale": half.to(FP8), "weight_scale_2": one, "input_scale": one},
        ),
        "nvfp4 of compressed-tensors": (
            "NVFP4 of compressed-tensors",
            {"weight_packed": u8(OUT, IN // 2), "weight_scale": half.to(FP8), "weight_global_scale": one},
        ),
        "gptq without its way": ("GPTQ or AWQ", gptq),
        "zero points": ("compressed-tensors", {**packed, "weight_zero_point": i32(OUT, 2)}),
        "ordered groups": ("compressed-tensors", {**packed, "weight_g_idx": i32(IN)}),
        "svdquant": ("SVDQuant (nunchaku)", {"qweight": u8(OUT, IN // 2), "wscales": half.T, **rank, **smooth}),
        "svdquant of old": ("SVDQuant (nunchaku)", {"qweight": u8(OUT, IN // 2), "wscales": half.T, **old_rank}),
        "awq of nunchaku": ("AWQ (nunchaku)", {"qweight": i32(OUT, 16), "wscales": half.T, "wzeros": half.T}),
        "hqq as floats": ("HQQ", {"W_q": half, "scale": half, "zero": half, "nbits": one}),
        "hqq": ("HQQ", {"W_q": u8(OUT, 64), "scale": half, "zero": half, "meta_scale": one, "meta.x.y": one}),
        "exl2": ("EXL2", {"q_weight": i32(8, OUT), "q_scale": i32(2, 4), "q_scale_max": one.half()}),
        "exl3": ("EXL3", {"trellis": i32(8, 2, 16).short(), "suh": sizes(1, IN).half(), "svh": sizes(1, OUT)}),
        "quip": ("QuIP#", {"Qidxs": i32(OUT, 16).short(), "SU": sizes(1, IN).half(), "Wscale": one}),
        "aqlm": ("AQLM", {"codes": numbers(1, OUT, 16, 1).to(INT8), "codebooks": half, "scales": half}),
        "spqr": ("SpQR", {"dense_weights": i32(OUT, 16), "row_offsets": i32(OUT), "col_vals": half}),
        "vptq": ("VPTQ", {"indices": i32(OUT, 1, 8), "centroids.weight": half, "perm": i32(IN), "weight_bias": half}),
        "gptq in int64": ("GPTQ or AWQ", {**gptq, "qweight": gptq["qweight"].long()}),
        "torchao": ("torchao", {"_weight_qdata": numbers(1, *SHAPE).to(INT8), "_weight_scale": sizes(1, OUT)}),
        "torchao float8": ("torchao", {"_weight_qdata": plain.to(FP8), "_weight_scale": sizes(1, OUT, 1)}),
        "mlx": ("MLX", {"weight": i32(OUT, 16).to(torch.uint32), "scales": half, "biases": half}),
        "eetq": ("EETQ", {**quantised, "weight_scales": sizes(1, OUT).half()}),
        "sdnq": ("SDNQ", {**quantised, "scale": half, "svd_up": half, "svd_down": half}),
        "fp-quant": ("FP-Quant", {"qweight": u8(OUT, 64), "scales": u8(OUT, 4), "forward_hadamard_matrix": half}),
        "quanto in another float8": (
            "quanto",
            {"weight._data": plain.to(torch.float8_e4m3fnuz), "weight._scale": sizes(1, OUT, 1)},
        ),
        "quanto without a shape": (
            "quanto",
            {"weight._data._data": u8(16, 128), "weight._scale": sizes(1, 32, 1), "weight._shift": sizes(2, 32, 1)},
        ),
        "bitnet": ("U8 with weight_scale", {"weight": u8(OUT // 4, IN), "weight_scale": one}),
        "w4a8": (
            "ComfyUI's W4A8",
            {"weight": quantised["weight"][:, : IN // 2], "weight_s_rel": half.to(FP8), "weight_s_channel": one},
        ),
        "sparse": (
            "sparse weights of compressed-tensors",
            {"weight.compressed": plain[:, :64], "weight.bitmask": u8(OUT, 16), "weight.shape": torch.tensor(SHAPE)},
        ),
        "fake quantised": ("F16 with weight_scale", {"weight": plain, "weight_scale": sizes(1, OUT, 1)}),
        "smoothed": ("F16 with pre_quant_scale", {"weight": plain, "pre_quant_scale": sizes(1, IN)}),
        "smoothed within": (
            "F16 with input_quantizer._pre_quant_scale",
            {"weight": plain, "input_quantizer._pre_quant_scale": sizes(1, IN)},
        ),
        "rotated": ("F16 with input_rotation", {"weight": plain, "input_rotation": sizes(1, 8, 8)}),
    }
    return ways  # fmt: skip


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a base with a layer of each way, f0, f1, …, beside plain ones, and a LoRA on a plain one."""
    folder = tmp_path_factory.mktemp("odd")
    stored = {
        f"f{number}.{leaf}": tensor
        for number, (_, parts) in enumerate(undecodable().values())
        for leaf, tensor in parts.items()
    }
    world(folder, {**stored, "attn.k_scale": torch.ones(1), "logit_scale": torch.ones(1)})
    b.kohya(folder / "lora.safetensors", {"lora_unet_plain": LORA})
    return folder


@pytest.mark.parametrize("name", undecodable())
def test_what_cannot_be_decoded_is_refused_by_name(name: str, odd: Path) -> None:
    number, (title, _) = [*undecodable()].index(name), undecodable()[name]
    b.kohya(odd / "one.safetensors", {f"lora_unet_f{number}": LORA})
    with pytest.raises(MatchError, match=rf"packed \(|would change f{number}\.weight, (which|beside|of which)"):
        plan(load_recipe(b.recipe(odd, loras=["one.safetensors"])))
    assert packing_of(odd / "base.safetensors").strange[f"f{number}.weight"].title == title


def test_no_cast_touches_what_cannot_be_decoded(odd: Path) -> None:
    recipe = b.recipe(odd, output={"dtype": "float32"})
    made = b.run(recipe)
    stored = {key for key in load_file(odd / "base.safetensors") if key[0] == "f"}
    same(odd, {*stored, "attn.k_scale"})
    after = load_file(made.path)
    assert after["plain.weight"].dtype is after["norm.weight"].dtype is after["logit_scale"].dtype is torch.float32
    titles = Counter(title for title, _ in undecodable().values())
    for title, count in titles.items():
        said = f"{count} weight{'s stay as they are' if count > 1 else ' stays as it is'}, since this version cannot"
        assert [each for each in made.plan.notes if each.startswith(f"{said} decode {title}: f")]
    assert_true(recipe)
    seen = inspect(odd / "base.safetensors")
    assert (seen["what"], seen["packed_weights"]) == ("checkpoint", dict(titles))


def test_no_network_is_made_of_what_cannot_be_decoded(odd: Path) -> None:
    recipe = b.recipe(odd, output={"dtype": "float32"})
    b.run(recipe)
    options = VerifyOptions(stages=("samples",), samples=SampleOptions(prompts=("a fox",)))
    found = [each.note for each in verify(load_recipe(recipe), options=options).findings]
    assert [note for note in found if "of the base's weights cannot be decoded, such as f" in note]


@pytest.mark.parametrize("name", ["svdquant", "svdquant of old", "hqq", "nvfp4", "torchao"])
def test_inspect_takes_no_such_base_for_a_lora(name: str, tmp_path: Path) -> None:
    title, parts = undecodable()[name]
    world(tmp_path, {f"fc.{leaf}": tensor for leaf, tensor in parts.items()})
    seen = inspect(tmp_path / "base.safetensors")
    assert (seen["what"], seen["packed_weights"]) == ("checkpoint", {title: 1})


def test_no_cast_touches_parts_of_fused_experts(tmp_path: Path) -> None:
    """Their parameters are no modules: all they share is the beginning of their names."""
    name, half = "mlp.experts.gate_up_proj", sizes(5, 2, 8, 4).half()
    stored = {
        name: numbers(1, 2, 8, 16, high=256).to(torch.uint8),
        f"{name}_weight_scale": half.to(FP8),
        f"{name}_weight_scale_2": half[:, 0, 0].float(),
        f"{name}_input_scale": half[:, 0, 0].float(),
    }
    other = {"x.down_proj": b.Values(1)(2, 8, 4).to(FP8), "x.down_proj_scale": half[:, :1].float()}
    packed = {"y.up_proj_packed": numbers(1, 2, 4, 8).int(), "y.up_proj_scale": half, "y.up_proj_shape": half[0, 0]}
    plain = {f"{name}_bias": half[:, 0].clone(), "z.layer": half[0].clone(), "z.layer_scale": half[0, 0].clone()}
    world(tmp_path, {**stored, **other, **packed, **plain})
    b.run(b.recipe(tmp_path, loras=[], output={"dtype": "float32"}))
    same(tmp_path, {*stored, *other, *packed})
    after = load_file(tmp_path / "out.safetensors")
    assert {after[key].dtype for key in plain} == {torch.float32}


@pytest.mark.parametrize("dtype", ["F16", "I32"])
def test_names_of_codes_mean_codes_only_beside_what_reads_them(dtype: str, tmp_path: Path) -> None:
    values = b.Values(1)(4, 4).half() if dtype == "F16" else numbers(1, 4, 4).int()
    plain = {f"attn.{leaf}": values.clone() for leaf in ("W_q", "q_weight", "codes", "indices", "scale_shift_table")}
    world(tmp_path, {**plain, "attn.weight": torch.ones(4, 4).half(), "attn.q_scale_": torch.ones(4).half()})
    assert not packing_of(tmp_path / "base.safetensors").titles


def test_gptq_packed_anew_for_one_kernel_is_not_decoded(tmp_path: Path) -> None:
    world(tmp_path, {f"fc.{leaf}": tensor for leaf, tensor in undecodable()["gptq without its way"][1].items()})
    for option in ("format", "checkpoint_format"):
        said = {"quantization_config": {"quant_method": "gptq", option: "marlin"}}
        (tmp_path / "config.json").write_text(json.dumps(said))
        assert "fc.weight" in packing_of(tmp_path / "base.safetensors").strange


# -- What is said of a whole model -------------------------------------------------------------------------

ROTATED = {
    "quant_method": "compressed-tensors",
    "format": "dense",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int"}}},
    "transform_config": {"config_groups": {"R1": {"type": "hadamard", "apply": [{"location": "weight_output"}]}}},
}
DOUBTS: dict[str, tuple[Said, str]] = {
    "transforms": (ROTATED, "transform_config"),
    "an unknown way": ({"quant_method": "spinquant_mxfp4", "bits": 4}, "quant_method: spinquant_mxfp4"),
    "rotation": ({"quant_method": "gptq", "bits": 4, "rotation": "hadamard"}, 'rotation: "hadamard"'),
    "spinquant": ({"quant_method": "auto-round", "spinquant_config": {"r1": True}}, "spinquant_config"),
    "quark": ({"quant_method": "quark", "algo_config": [{"name": "rotation", "r1": True}]}, "algo_config"),
    "ternary at run time": ({"quant_method": "bitnet", "quantization_mode": "online"}, "quantization_mode"),
    "sparse": (
        {"quant_method": "compressed-tensors", "sparsity_config": {"format": "dense", "sparsity_structure": "2:4"}},
        "sparsity_config.sparsity_structure",
    ),
    "unknown arguments": (
        {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": 8, "rotate": 1}}}},
        "config_groups: g.weights.rotate",
    ),
    "a group's": (
        {
            "quant_method": "compressed-tensors",
            "config_groups": {"g": {"rotation": "R1", "weights": {"num_bits": 8}}},
        },
        "config_groups: g.rotation",
    ),
    "a group's in a list": (
        {"quant_method": "compressed-tensors", "config_groups": [{"rotation": "R1", "weights": {"num_bits": 8}}]},
        "config_groups: rotation",
    ),
    "before quantisation": (
        {"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "int4"}, "pre_quant_opt": ["r"]}},
        "global_quant_config: pre_quant_opt",
    ),
    "an unknown word below": (
        {"quant_method": "quark", "layer_quant_config": {"fc": {"weight": {"dtype": "int4", "permute": True}}}},
        "layer_quant_config: fc.weight.permute",
    ),
    "of some layers": (
        {"quant_method": "gptq", "bits": 4, "dynamic": {"+:.*fc.*": {"rotation": "hadamard"}}},
        "dynamic: +:.*fc.*.rotation",
    ),
    "how it was made": ({"quant_method": "gptq", "meta": {"rotation": "hadamard"}}, "meta: rotation"),
}
SPOTS: dict[str, tuple[str, Callable[[Said], Any]]] = {
    "config.json": ("config.json's quantization_config", lambda says: {"quantization_config": says}),
    "nested": (
        "config.json's text_config.quantization_config", lambda says: {"text_config": {"quantization_config": says}}
    ),
    "of old": ("config.json's compression_config", lambda says: {"compression_config": says}),
    "a file of its own": ("hf_quant_config.json's quantization", lambda says: {"quantization": says}),
    "GPTQ's file": ("quantize_config.json", lambda says: says),
    "a list": ("config.json's quantization_config", lambda says: {"quantization_config": [says]}),
    "a string": ("config.json's quantization_config", lambda says: {"quantization_config": json.dumps(says)}),
    "in a list": (
        "config.json's parts.0.quantization_config", lambda says: {"parts": [{"quantization_config": says}]}
    ),
    "the header": ("the header's quantization_config", lambda says: says),
    "a list in the header": ("the header's quantization_config", lambda says: [says]),
    "the header's config": (
        "the header's transformer.quantization_config", lambda says: {"transformer": {"quantization_config": says}}
    ),
}  # fmt: skip


def say(folder: Path, spot: str, says: Said, tensors: b.Tensors) -> str:
    """Write a model in a folder that says something of its weights in one place; return the place's name."""
    place, wrapped = ("config.json", dict) if spot == "alone" else SPOTS[spot]
    content = json.dumps(wrapped(says))
    key = "config" if spot == "the header's config" else "quantization_config"
    metadata = {key: content} if "header" in spot else None
    b.save(folder / "base" / "model.safetensors", tensors, metadata)
    config = {"model_type": "x", "torch_dtype": "float16"}
    (folder / "base" / "config.json").write_text(json.dumps(config))
    if metadata is None:
        file = place.partition("'")[0]
        whole = config | json.loads(content) if file == "config.json" else json.loads(content)
        (folder / "base" / file).write_text(json.dumps(whole))
    b.kohya(folder / "lora.safetensors", {FC: LORA})
    return place


def floats() -> b.Tensors:
    values = b.Values(3)
    return {
        **{f"{name}.weight": values(*SHAPE).half() for name in ("fc", "other")},
        "norm.weight": torch.ones(4).half(),
    }


@pytest.mark.parametrize(
    ("name", "spot"), [*((name, "config.json") for name in DOUBTS), *(("transforms", spot) for spot in SPOTS)]
)
def test_what_is_said_of_a_model_is_refused_by_name_and_kept(name: str, spot: str, tmp_path: Path) -> None:
    says, what = DOUBTS[name]
    place = say(tmp_path, spot, says, floats())
    with pytest.raises(MatchError) as refused:
        plan(load_recipe(b.recipe(tmp_path, base="base", output={"path": "out"})))
    first, *advice = str(refused.value).splitlines()
    assert first.startswith(f"LoRA 'lora.safetensors': {FC} would change fc.weight, of which {place} says {what}")
    assert place in advice[-1]
    recipe = b.recipe(tmp_path, base="base", loras=[], output={"path": "out", "dtype": "bfloat16"})
    planned = plan(load_recipe(recipe))
    assert not planned.steps
    assert [each for each in planned.notes if what in each]
    if name != "transforms":
        return
    b.run(recipe)
    before, after = b.tree(tmp_path / "base"), b.tree(tmp_path / "out")
    assert before.keys() == after.keys()
    assert {file for file in before if before[file] != after[file]} <= {"model.safetensors"}
    both = [tmp_path / folder / "model.safetensors" for folder in ("base", "out")]
    assert b.tensor_bytes(both[0]) == b.tensor_bytes(both[1])
    assert b.header(both[0])[1].items() <= b.header(both[1])[1].items()
    if spot in ("config.json", "the header"):
        assert_true(recipe)


@pytest.mark.parametrize("option", ["transform_config", "spinquant_config", "rotation_config"])
def test_what_turns_weights_is_refused_wherever_it_stands(option: str, tmp_path: Path) -> None:
    for config, where in (
        ({option: {"R1": "hadamard"}}, "config.json"),
        ({"text_config": {option: {"R1": True}}}, "config.json's text_config"),
        ({"quant_config": {option: {"R1": True}}}, "config.json's quant_config"),
    ):
        say(tmp_path, "config.json", {}, floats())
        (tmp_path / "base/config.json").write_text(json.dumps(config))
        with pytest.raises(MatchError, match=f"of which {where} says {option}: "):
            plan(load_recipe(b.recipe(tmp_path, base="base", output={"path": "out"})))
    (tmp_path / "base/config.json").write_text(json.dumps({option: None, "rope_scaling": {"type": "linear"}}))
    b.run(b.recipe(tmp_path, base="base", output={"path": "out"}))


@pytest.mark.parametrize(
    ("entry", "is_refused"),
    [
        ({"quantization": {"smoothing": 0.5}}, True),
        ({"quant_config": {"weight_bits": 3}}, True),
        ({"quantization_config": "quip"}, True),
        ({"quantization_config": ["quip"]}, True),
        ({"quantization_config": "fp8"}, False),
        ({"quantization": {"codebook_size": 1024, "codebook_dim": 8}}, False),
        ({"quantization": {"enabled": False}}, False),
        ({"quantization": "rvq"}, False),
        ({"quant_config": {}, "quantization_config": None}, False),
    ],
    ids=str,
)
def test_a_statement_without_a_telling_word(entry: Said, is_refused: bool, tmp_path: Path) -> None:
    say(tmp_path, "config.json", {}, floats())
    (tmp_path / "base/config.json").write_text(json.dumps(entry))
    recipe = b.recipe(tmp_path, base="base", output={"path": "out"})
    if is_refused:
        with pytest.raises(MatchError, match=rf"of which config.json's {next(iter(entry))} says"):
            plan(load_recipe(recipe))
    else:
        b.run(recipe)


def test_what_is_said_of_a_pipeline_is_said_of_its_components(tmp_path: Path) -> None:
    parts = b.sd1_folder(tmp_path / "base")
    pipeline = json.loads((tmp_path / "base/model_index.json").read_text())
    key = next(key for key in parts["unet"] if key.endswith("attn1.to_q.weight"))
    scaled = {key: (parts["unet"][key].float() * 64).to(FP8), f"{key}_scale": torch.tensor(1 / 64)}
    b.save(tmp_path / "base/unet/diffusion_pytorch_model.safetensors", {**parts["unet"], **scaled})
    b.sd1_lora(tmp_path / "lora.safetensors")
    said = {**pipeline, "quantization_config": {"quant_method": "quip"}}
    (tmp_path / "base/model_index.json").write_text(json.dumps(said))
    with pytest.raises(MatchError, match=r"of which model_index.json's quantization_config says quant_method: quip"):
        plan(load_recipe(b.recipe(tmp_path, base="base", output={"path": "out"})))
    (tmp_path / "base/model_index.json").write_text(json.dumps({**said, "quantization_config": {"bits": 8}}))
    b.run(b.recipe(tmp_path, base="base", output={"path": "out", "allow_loss": True, "dtype": "float32"}))
    assert json.loads((tmp_path / "out/model_index.json").read_text()) == pipeline


def test_what_is_said_of_a_model_holds_for_stored_weights_too(tmp_path: Path) -> None:
    """A rotation at run time turns what is unpacked, as it turns floats."""
    gptq = undecodable()["gptq without its way"][1]
    stored = {**fp8("fc")[0], **{f"other.{leaf}": tensor for leaf, tensor in gptq.items()}}
    says = {"quant_method": "gptq", "transform_config": ROTATED["transform_config"]}
    say(tmp_path, "config.json", says, {**stored, "norm.weight": torch.ones(4).half()})
    for dtype in ("keep", "bfloat16"):
        for layer in ("fc", "other"):
            b.kohya(tmp_path / "lora.safetensors", {f"lora_unet_{layer}": LORA})
            named = rf"{layer}.weight, of which config.json's quantization_config says transform_config"
            with pytest.raises(MatchError, match=named):
                plan(load_recipe(b.recipe(tmp_path, base="base", output={"path": "out", "dtype": dtype})))
    recipe = b.recipe(tmp_path, base="base", loras=[], output={"path": "out", "dtype": "bfloat16"})
    planned = plan(load_recipe(recipe))
    assert not planned.steps
    assert not planned.texts
    titles = {each.title.partition(" of which")[0] for each in planned.sources.packing.strange.values()}
    assert {"float8_e4m3fn with one scale", "GPTQ"} <= titles


def test_places_that_say_different_things_are_not_decided(tmp_path: Path) -> None:
    say(tmp_path, "config.json", {"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq"}, floats())
    (tmp_path / "base/quantize_config.json").write_text('{"bits": 4, "checkpoint_format": "gptq_v2"}')
    with pytest.raises(MatchError, match=r"config.json's \S+ and quantize_config.json say different things: checkp"):
        plan(load_recipe(b.recipe(tmp_path, base="base", output={"path": "out"})))


@pytest.mark.parametrize("name", ["config.json", "quantize_config.json"])
def test_a_file_that_is_there_and_cannot_be_read_is_an_error(name: str, tmp_path: Path) -> None:
    world(tmp_path, int8("fc")[0])
    (tmp_path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileError, match=f"{name}: "):
        plan(load_recipe(b.recipe(tmp_path)))


@pytest.mark.parametrize("name", ["model.safetensors.index.json", "model.safetensors"])
def test_a_folder_that_is_called_as_a_file_is_an_error(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    b.save(tmp_path / "diffusion_pytorch_model.safetensors", floats())
    with pytest.raises(FileError, match=f"{name}: is a folder, not a file"):
        open_checkpoint(tmp_path)


def test_an_option_of_two_names_has_one_meaning(tmp_path: Path) -> None:
    """GPTQModel calls checkpoint_format `format`."""
    fault = options.fault
    says = {"quant_method": "gptq", "bits": 4, "format": "gptq_v2"}
    say(tmp_path, "config.json", says, floats())
    assert _base(tmp_path).models[""][0].says["checkpoint_format"] == "gptq_v2"
    say(tmp_path, "config.json", {**says, "checkpoint_format": "gptq"}, floats())
    assert "gptq_v2" in str(fault(_base(tmp_path).models[""][0]))


def _base(folder: Path) -> Any:
    checkpoint = open_checkpoint(folder / "base")
    return statements.gather(checkpoint, statements.read_beside(checkpoint))


@pytest.mark.parametrize("spot", SPOTS)
def test_what_is_understood_or_says_nothing_stands_in_no_way(spot: str, tmp_path: Path) -> None:
    says = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": True, "rotation": None, "adapter": {}}
    say(tmp_path, spot, says, floats())
    b.run(b.recipe(tmp_path, base="base", output={"path": "out", "dtype": "bfloat16"}))
    assert load_file(tmp_path / "out/model.safetensors")["fc.weight"].dtype is torch.bfloat16


@pytest.mark.oracle
def test_what_transformers_writes_is_understood() -> None:
    """Every way of this version's transformers is in the table with all of its options, or refused by its name."""
    auto = pytest.importorskip("transformers.quantizers.auto")
    skipped = {"gguf", "fouroversix", "fp_quant", "higgs", "metal", "sinq", "gemma", "nvfp4"}
    needed: dict[str, Said] = {
        "gptq": {"bits": 4}, "auto-round": {}, "bitsandbytes_4bit": {"load_in_4bit": True},
        "bitsandbytes_8bit": {"load_in_8bit": True}, "spqr": {"shapes": {"a": 1}},
    }  # fmt: skip
    unseen = {
        "torchao",
        "quark",
        "compressed-tensors",
        "vptq",
        "hqq",
    }  # they ask for packages, or for objects
    for way, config in auto.AUTO_QUANTIZATION_CONFIG_MAPPING.items():
        if way in skipped:
            assert way not in options.METHODS
        elif way not in unseen:
            says = config(**needed.get(way, {})).to_dict()
            found = Statement("config.json", {**says, "quant_method": str(says["quant_method"].value)})
            assert options.fault(found) is None, way


# -- What is promised stays true, and what is no longer true goes -------------------------------------------

E8M0_WEIGHTS = {"type": "float", "num_bits": 8, "scale_dtype": "torch.float8_e8m0fnu"}
UE8M0: dict[str, tuple[str, Said]] = {
    "config.json": ("config.json", {"quant_method": "fp8", "scale_fmt": "ue8m0"}),
    "nested": ("nested", {"quant_method": "fp8", "scale_fmt": "ue8m0"}),
    "header": ("the header", {"quant_method": "fp8", "scale_fmt": "ue8m0"}),
    "a list": ("a list", {"quant_method": "fp8", "scale_fmt": "ue8m0"}),
    "a string": ("a string", {"quant_method": "fp8", "scale_fmt": "ue8m0"}),
    "in a list": ("in a list", {"quant_method": "fp8", "scale_fmt": "ue8m0"}),
    "alone": ("alone", {"scale_fmt": "ue8m0"}),
    "a group": (
        "config.json",
        {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": E8M0_WEIGHTS}}},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UE8M0)
def test_scales_that_are_promised_to_be_powers_of_two_stay_such(name: str, tmp_path: Path) -> None:
    spot, says = UE8M0[name]
    (fc, values), (other, _) = (fp8(each, blocks=(1, 1), leaf="weight_scale_inv") for each in ("fc", "other"))
    say(tmp_path, spot, says, {**fc, **other, "norm.weight": torch.ones(4).half()})
    recipe = b.recipe(tmp_path, base="base", output={"path": "out", "allow_loss": True})
    b.run(recipe)
    after = load_file(tmp_path / "out/model.safetensors")
    exact = values + b.delta(LORA, SHAPE)
    scale = after["fc.weight_scale_inv"].double()
    assert scale.log2().frac() == 0
    assert scale.item() / 2 < exact.abs().max().item() / 448 <= scale.item()
    b.assert_rounded_once(after["fc.weight"], exact / scale, terms=[exact.abs() / scale * 4])
    assert b.tree(tmp_path / "base")["config.json"] == b.tree(tmp_path / "out")["config.json"]
    assert_true(recipe)
    for factor in (0.5, 2.0):  # another power of two, and the codes as they are
        spoilt = after | {"fc.weight_scale_inv": after["fc.weight_scale_inv"] * factor}
        shards = tmp_path / "out/model.safetensors"
        b.save(shards, spoilt, b.header(shards)[1])
        assert not verify(load_recipe(recipe), options=WEIGHTS).is_true


def test_the_largest_value_may_lie_at_the_very_edge_of_a_power_of_two(tmp_path: Path) -> None:
    """float32 may round it to 448 times a power where float64 sees it beyond; both are right."""
    stored = {"fc.weight": torch.zeros(4, 4).to(FP8), "fc.weight_scale_inv": torch.tensor([[2.0**-8]])}
    says = {"quant_method": "fp8", "scale_fmt": "ue8m0", "weight_block_size": [128, 128]}
    say(tmp_path, "config.json", says, stored)
    pairs = ((float(torch.tensor(1.75 / number)), number) for number in range(3, 999, 2))
    up, down = next((one, two) for one, two in pairs if 1.75 < one * two < 1.75 + 2**-25)
    assert torch.tensor(up) * torch.tensor(float(down)) == 1.75
    factors = {"up": torch.zeros(4, 1), "down": torch.full((1, 4), float(down))}
    factors["up"][0] = up
    b.kohya(tmp_path / "lora.safetensors", {FC: factors})
    recipe = b.recipe(tmp_path, base="base", output={"path": "out", "allow_loss": True})
    b.run(recipe)
    assert load_file(tmp_path / "out/model.safetensors")["fc.weight_scale_inv"] == 2.0**-8
    assert_true(recipe)


@pytest.mark.parametrize("kind", ["U8", "F8_E8M0"])
def test_scales_that_are_stored_as_exponents(kind: str, tmp_path: Path) -> None:
    codes = (b.Values(7)(*SHAPE) * 60).clamp(-440, 440).to(FP8)
    exponents = numbers(1, OUT, IN // 32, low=110, high=125)
    scale = exponents.to(torch.uint8)
    stored = {"fc.weight": codes, "fc.weight_scale_inv": scale if kind == "U8" else scale.view(torch.float8_e8m0fnu)}
    values = codes.double() * (2.0 ** (exponents - 127).double()).repeat_interleave(32, 1)
    says = {"quant_method": "mxfp8", "weight_block_size": [1, 32]}
    say(tmp_path, "config.json", says, {**stored, "norm.weight": torch.ones(4).half()})
    recipe = b.recipe(tmp_path, base="base", output={"path": "out", "allow_loss": True})
    b.run(recipe)
    after = load_file(tmp_path / "out/model.safetensors")
    assert {key: tensor.dtype for key, tensor in after.items() if key in stored} == {
        key: tensor.dtype for key, tensor in stored.items()
    }
    fresh = 2.0 ** (after["fc.weight_scale_inv"].view(torch.uint8).double() - 127).repeat_interleave(32, 1)
    exact = values + b.delta(LORA, SHAPE)
    assert float((exact / fresh).abs().max()) <= 448
    b.assert_rounded_once(after["fc.weight"], exact / fresh, terms=[exact.abs() / fresh * 4])
    assert_true(recipe)
    recipe = b.recipe(tmp_path, base="base", output={"path": "out", "dtype": "float32"})
    b.run(recipe)
    plain = load_file(tmp_path / "out/model.safetensors")["fc.weight"]
    b.assert_rounded_once(plain, exact, terms=[exact.abs() * 8])
    assert_true(recipe)


def test_a_block_of_next_to_nothing_has_the_least_exponent(tmp_path: Path) -> None:
    stored = {
        "fc.weight": torch.ones(2, 64).to(FP8),
        "fc.weight_scale_inv": torch.tensor([[0, 120]] * 2).to(torch.uint8),
    }
    say(tmp_path, "config.json", {"quant_method": "mxfp8"}, stored)
    b.kohya(tmp_path / "lora.safetensors", {FC: {"up": torch.ones(2, 1) * 1e-20, "down": torch.ones(1, 64) * 1e-21}})
    recipe = b.recipe(tmp_path, base="base", output={"path": "out", "allow_loss": True})
    b.run(recipe)
    assert load_file(tmp_path / "out/model.safetensors")["fc.weight_scale_inv"][:, 0].tolist() == [1, 1]
    assert_true(recipe)


def stored_fp8() -> b.Tensors:
    return {**fp8("fc")[0], **fp8("other", seed=8)[0], "norm.weight": torch.ones(4).half()}


@pytest.mark.parametrize("spot", SPOTS)
def test_no_statement_stays_of_weights_that_become_plain(spot: str, tmp_path: Path) -> None:
    place = say(tmp_path, spot, {"quant_method": "modelopt", "quant_algo": "FP8"}, stored_fp8())
    recipe = b.recipe(tmp_path, base="base", output={"path": "out", "dtype": "bfloat16"})
    b.run(recipe)
    after = b.tree(tmp_path / "out")
    files = {"config.json", "model.safetensors"}
    assert after.keys() == files, place
    config = json.loads(after["config.json"])
    inner: Said = {"nested": {"text_config": {}}, "in a list": {"parts": [{}]}}.get(spot, {})
    assert config == {"model_type": "x", "torch_dtype": "bfloat16", **inner}
    metadata = b.header(tmp_path / "out/model.safetensors")[1]
    assert "quant" not in "".join(text for name, text in metadata.items() if not name.startswith("lorabake."))
    if spot in ("nested", "the header"):
        assert_true(recipe)


MIXED: dict[str, str] = {
    "compressed-tensors": "ignore",
    "fp8": "modules_to_not_convert",
    "modelopt": "ignore",
    "bitsandbytes": "llm_int8_skip_modules",
}


@pytest.mark.parametrize("way", MIXED)
def test_a_configuration_names_what_became_plain_beside_what_did_not(way: str, tmp_path: Path) -> None:
    odd = {"odd.weight": torch.zeros(OUT, 16, dtype=torch.uint8), "odd.weight_scale": torch.ones(1)}
    says = {"quant_method": way, MIXED[way]: ["lm_head"]}
    say(tmp_path, "config.json", says, {**stored_fp8(), **odd})
    recipe = b.recipe(tmp_path, base="base", output={"path": "out", "dtype": "bfloat16"})
    b.run(recipe)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["quantization_config"] == {"quant_method": way, MIXED[way]: ["lm_head", "fc", "other"]}
    same_parts = b.tensor_bytes(tmp_path / "out/model.safetensors")
    assert {key: same_parts[key] for key in odd} == {key: tensor.numpy().tobytes() for key, tensor in odd.items()}
    assert_true(recipe)


@pytest.mark.parametrize("spot", ["a list", "a string", "in a list", "nested"])
def test_a_configuration_keeps_its_form_where_it_names_what_became_plain(spot: str, tmp_path: Path) -> None:
    odd = {"odd.weight": torch.zeros(OUT, 16, dtype=torch.uint8), "odd.weight_scale": torch.ones(1)}
    says = {"quant_method": "fp8", "modules_to_not_convert": ["lm_head"]}
    say(tmp_path, spot, says, {**stored_fp8(), **odd})
    b.run(b.recipe(tmp_path, base="base", output={"path": "out", "dtype": "bfloat16"}))
    config = json.loads((tmp_path / "out/config.json").read_text())
    listed = {**says, "modules_to_not_convert": ["lm_head", "fc", "other"]}
    assert config == {"model_type": "x", "torch_dtype": "float16", **SPOTS[spot][1](listed)}


def test_a_mixture_that_cannot_be_told_is_refused(tmp_path: Path) -> None:
    odd = {"odd.weight": torch.zeros(OUT, 16, dtype=torch.uint8), "odd.weight_scale": torch.ones(1)}
    say(tmp_path, "config.json", {"quant_method": "gptq"}, {**stored_fp8(), **odd})
    with pytest.raises(TargetError, match=r"config.json: 2 weights would become plain \(fc …\), and others cannot"):
        plan(load_recipe(b.recipe(tmp_path, base="base", output={"path": "out", "dtype": "bfloat16"})))


def test_verify_finds_a_header_that_says_something_else(tmp_path: Path) -> None:
    convrot(tmp_path, "header", 64)
    recipe = b.recipe(tmp_path, output={"allow_loss": True})
    out = b.run(recipe).path
    metadata = b.header(out)[1]
    for text in (None, header_of(fc={"format": "int8_tensorwise"})[LAYERS]):
        changed = {name: said for name, said in metadata.items() if name != LAYERS} | ({LAYERS: text} if text else {})
        b.save(tmp_path / "wrong.safetensors", load_file(out), changed)
        found = verify(load_recipe(recipe), tmp_path / "wrong.safetensors", options=WEIGHTS).findings
        assert [each.note for each in found if each.check == "structure.statements" and each.status == "fail"]


def test_headers_of_several_files_are_joined_where_they_become_one(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    says = {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 64}
    index = {}
    for number, name in enumerate(("fc", "other"), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        stored = int8(name, group=64)[0]
        b.save(folder / file, stored, header_of(**{name: says}))
        index |= dict.fromkeys(stored, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    b.kohya(tmp_path / "lora.safetensors", {FC: LORA})
    output = {"path": "out", "shard_size": "1GB", "allow_loss": True}
    b.run(b.recipe(tmp_path, base="base", output=output))
    metadata = b.header(tmp_path / "out/model.safetensors")[1]
    assert json.loads(metadata[LAYERS])["layers"] == {"fc": says, "other": says}


def test_what_is_said_of_one_component_is_not_said_of_another(tmp_path: Path) -> None:
    parts = b.sd1_folder(tmp_path / "base")
    key = next(key for key in parts["unet"] if key.endswith("attn1.to_q.weight"))
    weight = parts["unet"][key]
    scaled = {key: (weight.float() * 64).to(FP8), f"{key}_scale": torch.tensor(1 / 64)}
    file = tmp_path / "base/unet/diffusion_pytorch_model.safetensors"
    b.save(file, {**parts["unet"], **scaled}, {"format": "pt"})
    rotated = {"of": "text_encoder", "quantization_config": ROTATED}
    (tmp_path / "base/text_encoder/config.json").write_text(json.dumps(rotated))
    config = {"of": "unet", "quantization_config": {"quant_method": "modelopt"}}
    (tmp_path / "base/unet/config.json").write_text(json.dumps(config))
    b.sd1_lora(tmp_path / "lora.safetensors")
    with pytest.raises(MatchError, match=r"of which text_encoder/config.json's quantization_config says transform"):
        plan(load_recipe(b.recipe(tmp_path, base="base", output={"path": "out"})))
    lora = {"path": "lora.safetensors", "components": ["unet"]}
    b.run(b.recipe(tmp_path, base="base", loras=[lora], output={"path": "out", "dtype": "float32"}))
    after = b.tree(tmp_path / "out")
    assert json.loads(after["unet/config.json"]) == {"of": "unet"}
    assert json.loads(after["text_encoder/config.json"]) == rotated
    files = [name for name in after if name.endswith(".safetensors")]
    entries = {name: b.header(tmp_path / "out" / name)[0].values() for name in files}
    dtypes = {name: {str(entry["dtype"]) for entry in each} for name, each in entries.items()}
    assert dtypes == {
        "unet/diffusion_pytorch_model.safetensors": {"F32"},
        "vae/diffusion_pytorch_model.safetensors": {"F32"},
        "text_encoder/model.safetensors": {"F16"},
    }


# -- optimum-quanto ----------------------------------------------------------------------------------------


def quanto(name: str, kind: str) -> Stored:
    """Store a weight as optimum-quanto does."""
    groups, size, scale = OUT * 2, IN // 2, sizes(2, OUT, 1)
    if kind in ("qint8", "qfloat8"):
        codes = numbers(1, *SHAPE, low=-127, high=127).to(INT8) if kind == "qint8" else b.Values(4)(*SHAPE).to(FP8)
        return {f"{name}.weight._data": codes, f"{name}.weight._scale": scale}, codes.double() * scale.double()
    bits = int(kind[4])
    if kind.endswith("whole"):  # too few columns for groups
        groups, size = OUT, IN
    codes, scale = numbers(1, groups, size, high=1 << bits), sizes(2, groups, 1)
    is_float = "float" in kind
    shift = sizes(3, groups, 1) * 4 if is_float else numbers(3, groups, 1, high=1 << bits).to(INT8)
    many = 8 // bits
    bands = codes.to(torch.uint8).reshape(many, -1, size)
    packed = sum(band << (bits * place) for place, band in enumerate(bands))
    values = codes * scale.double() - shift.double() if is_float else (codes - shift.double()) * scale.double()
    stored = {"_data._data": packed, "_scale": scale, "_shift": shift}
    return {f"{name}.weight.{role}": part for role, part in stored.items()}, values.reshape(SHAPE)


QUANTO = ["qint8", "qfloat8", "qint4 float", "qint4 whole numbers", "qint2 float"]


@pytest.mark.parametrize("kind", QUANTO)
def test_quanto_becomes_plain(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorabake.codecs.quanto.values_a_scale", lambda columns: 64)  # as of 192 columns
    (stored, values), (other, _) = quanto("fc", kind), quanto("other", kind)
    bias = {f"{name}.bias": torch.ones(OUT).half() for name in ("fc", "other")}
    ranges = {
        f"{name}.{leaf}": torch.ones(()) for name in ("fc", "other") for leaf in ("input_scale", "output_scale")
    }
    say(tmp_path, "config.json", {"quant_method": "quanto"}, {**stored, **other, **bias, **ranges})
    layers = {name: {"weights": kind.partition(" ")[0], "activations": "none"} for name in ("fc", "other")}
    (tmp_path / "base/quanto_qmap.json").write_text(json.dumps(layers))
    assert inspect(tmp_path / "base")["packed_weights"] == {f"quanto {kind.partition(' ')[0]}": 2}
    with pytest.raises(MatchError, match=r"fc would change fc.weight, which is packed \(quanto q.*\n.*output.dtype"):
        plan(load_recipe(b.recipe(tmp_path, base="base", output={"path": "out"})))
    recipe = b.recipe(tmp_path, base="base", output={"path": "out", "dtype": "float32"})
    b.run(recipe)
    after = load_file(tmp_path / "out/model.safetensors")
    assert sorted(after) == ["fc.bias", "fc.weight", "other.bias", "other.weight"]
    exact = values + b.delta(LORA, SHAPE)
    b.assert_rounded_once(after["fc.weight"], exact, terms=[exact.abs() * 8, values.abs() * 8])
    b.assert_rounded_once(after["other.weight"], values, terms=[values.abs() * 8])
    assert b.tree(tmp_path / "out").keys() == {"config.json", "model.safetensors"}
    assert_true(recipe)
    if kind == "qint8":
        shards = tmp_path / "out/model.safetensors"
        spoilt = after | {"other.weight": after["other.weight"] * (1 + 2**-20)}
        b.save(shards, spoilt, b.header(shards)[1])
        assert not verify(load_recipe(recipe), options=WEIGHTS).is_true


def test_quanto_of_four_bits_needs_to_be_certain_of_its_shape(tmp_path: Path) -> None:
    """Groups of 128 values may be rows, or parts of rows, or of kernels."""
    codes, scale = numbers(1, 32, 128, high=256).to(torch.uint8), sizes(2, 64, 1)
    stored = {"fc.weight._data._data": codes, "fc.weight._scale": scale, "fc.weight._shift": scale}
    bias, conv = {"fc.bias": torch.ones(32)}, {"conv_in.weight": torch.ones(2, 2, 3, 3)}
    for extra, way in (({}, None), (bias, (32, 256)), (bias | conv, None), ({"fc.bias": torch.ones(48)}, None)):
        world(tmp_path, {**stored, **extra})
        found = packing_of(tmp_path / "base.safetensors")
        assert (found.packed["fc.weight"].shape if way else None, "fc.weight" in found.strange) == (way, not way)


def test_a_map_of_quanto_keeps_what_stays_stored(tmp_path: Path) -> None:
    (fc, _), odd = quanto("fc", "qint8"), {"odd.weight._data": torch.zeros(4, 4).to(torch.float8_e4m3fnuz)}
    say(tmp_path, "config.json", {"quant_method": "quanto"}, {**fc, **odd, "odd.weight._scale": torch.ones(4, 1)})
    layers = {"fc": {"weights": "qint8"}, "odd": {"weights": "qfloat8"}}
    (tmp_path / "base/quanto_qmap.json").write_text(json.dumps(layers))
    b.run(b.recipe(tmp_path, base="base", output={"path": "out", "dtype": "float32"}))
    assert json.loads((tmp_path / "out/quanto_qmap.json").read_text()) == {"odd": {"weights": "qfloat8"}}
    said = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]
    assert said == {"quant_method": "quanto", "modules_to_not_convert": ["fc"]}


# -- A VAE, and words ----------------------------------------------------------------------------------------


def test_a_vae_that_is_stored_otherwise_takes_no_place(tmp_path: Path) -> None:
    b.save(tmp_path / "base.safetensors", b.sd1())
    vae = b.vae_file("ldm", seed=3)
    key = "decoder.mid.attn_1.q.weight"
    b.save(tmp_path / "vae.safetensors", vae | {key: vae[key].to(FP8), f"{key}_scale": torch.ones(1)})
    b.sd1_lora(tmp_path / "lora.safetensors")
    recipe = b.recipe(tmp_path, vae="vae.safetensors")
    with pytest.raises(FileError, match=r"1 of its weights are stored as float8_e4m3fn with one scale"):
        plan(load_recipe(recipe))
    b.save(tmp_path / "vae.safetensors", vae)
    base = b.sd1()
    stored = f"first_stage_model.{key}"
    b.save(tmp_path / "base.safetensors", base | {stored: base[stored].to(FP8), f"{stored}_scale": torch.ones(1)})
    with pytest.raises(FileError, match=rf"cannot take the place of the base's VAE, whose {stored} is stored as"):
        plan(load_recipe(recipe))
    b.run(b.recipe(tmp_path, vae="vae.safetensors", output={"dtype": {"vae": "float32"}}))
    after = load_file(tmp_path / "out.safetensors")
    assert torch.equal(after[stored], vae[key].float())
    assert f"{stored}_scale" not in after


TITLED: dict[str, Mapping[str, int]] = {
    "int8 with row scales, ConvRot": {"group": 64},
    "int8 with row scales": {},
}


@pytest.mark.parametrize("title", TITLED)
def test_inspect_says_what_the_bake_knows(title: str, tmp_path: Path) -> None:
    group = TITLED[title].get("group", 0)
    says = {"format": "int8_tensorwise", "convrot": bool(group), "convrot_groupsize": 64}
    world(tmp_path, {**int8("fc", group=group)[0], "fc.comfy_quant": note(says)})
    assert inspect(tmp_path / "base.safetensors")["packed_weights"] == {title: 1}


def test_plain_bases_have_no_such_words(tmp_path: Path) -> None:
    fp8_alone = {"fc.weight": torch.ones(SHAPE).to(FP8), "fc.input_scale": torch.ones(1)}
    world(tmp_path, {**fp8_alone, "logit_scale": torch.ones(1), "quant_conv.weight": torch.ones(2, 2)})
    assert inspect(tmp_path / "base.safetensors")["packed_weights"] == {}
    b.run(b.recipe(tmp_path, output={"dtype": "float32"}))
    after = load_file(tmp_path / "out.safetensors")
    assert {tensor.dtype for tensor in after.values()} == {torch.float32}


# -- docs/storage.md ----------------------------------------------------------------------------------------


def test_the_page_names_what_the_code_knows() -> None:
    page = " ".join((Path(__file__).parents[1] / "docs" / "storage.md").read_text(encoding="utf-8").split())
    decoded = {"GPTQ or AWQ", "bitsandbytes", "compressed-tensors", "MXFP4", "quanto"}
    names = {title for _, title in recognition.TITLES} - decoded | {*statements.FILES} | {*statements.MODEL_KEYS[:2]}
    assert not [name for name in names if name not in page]
