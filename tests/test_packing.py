"""Bases that are no plain floats: each way, packed here by its own description, decoded, baked and proven."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lorabake import load_recipe
from lorabake.errors import FileError, MatchError
from lorabake.verification import VerifyOptions, verify
from tests import builders as b

OUT, IN, GROUP = 64, 256, 32
FC = "lora_unet_fc"
WEIGHTS = VerifyOptions(stages=("structure", "weights"))
Packed = tuple[b.Tensors, torch.Tensor]
"""What is stored, and the values that it stands for."""

HALF = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
E2M1 = torch.tensor([*HALF, *(-value for value in HALF)], dtype=torch.float64)


def numbers(seed: int, *shape: int, high: int = 16) -> torch.Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(seed))


def sizes(seed: int, *shape: int) -> torch.Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 0.01 + 0.002).half()


def words(codes: torch.Tensor, bits: int, order: tuple[int, ...] | None = None) -> torch.Tensor:
    """Put codes (rows, n) into 32-bit numbers (rows, n·bits/32), the lowest bits first."""
    many = 32 // bits
    packed = torch.zeros(codes.shape[0], codes.shape[1] // many, dtype=torch.int64)
    for place in range(many):
        packed |= codes[:, (order[place] if order else place) :: many] << (bits * place)
    return torch.from_numpy(packed.numpy().astype(np.uint32).view(np.int32))


def gptq(bits: int, *, shuffled: bool = False, second: bool = False) -> Callable[[str], Packed]:
    def pack(name: str) -> Packed:
        codes, zeros = numbers(1, OUT, IN, high=1 << bits), numbers(2, IN // GROUP, OUT, high=1 << bits)
        scales, group = sizes(3, IN // GROUP, OUT), torch.arange(IN) // GROUP
        if shuffled:
            group = group[torch.randperm(IN, generator=torch.Generator().manual_seed(4))]
        stored = {
            f"{name}.qweight": words(codes, bits).T.contiguous(),
            f"{name}.qzeros": words(zeros if second else (zeros - 1) % (1 << bits), bits),
            f"{name}.scales": scales,
            f"{name}.g_idx": group.int(),
        }
        return stored, (codes - zeros[group].T).double() * scales[group].T.double()

    return pack


def awq(name: str) -> Packed:
    codes, zeros, scales = numbers(1, OUT, IN), numbers(2, IN // GROUP, OUT), sizes(3, IN // GROUP, OUT)
    order, group = (0, 2, 4, 6, 1, 3, 5, 7), torch.arange(IN) // GROUP
    stored = {
        f"{name}.qweight": words(codes.T.contiguous(), 4, order),
        f"{name}.qzeros": words(zeros, 4, order),
        f"{name}.scales": scales,
    }
    return stored, (codes - zeros[group].T).double() * scales[group].T.double()


def compressed(bits: int) -> Callable[[str], Packed]:
    def pack(name: str) -> Packed:
        codes, scales = numbers(1, OUT, IN, high=1 << bits), sizes(3, OUT, IN // GROUP)
        stored = {
            f"{name}.weight_packed": words(codes, bits),
            f"{name}.weight_scale": scales,
            f"{name}.weight_shape": torch.tensor([OUT, IN]),
        }
        return stored, (codes - (1 << bits - 1)).double() * scales.double().repeat_interleave(GROUP, 1)

    return pack


def nf4(*, nested: bool, block: int = 64) -> Callable[[str], Packed]:
    def pack(name: str) -> Packed:
        codes = numbers(1, OUT * IN)
        table = torch.sort(torch.rand(16, generator=torch.Generator().manual_seed(5)) * 2 - 1).values
        count = OUT * IN // block
        note: dict[str, object] = {"quant_type": "nf4", "blocksize": block, "dtype": "float16", "shape": [OUT, IN]}
        stored = {
            f"{name}.weight": (codes[0::2] << 4 | codes[1::2]).to(torch.uint8)[:, None],
            f"{name}.weight.quant_map": table,
        }
        if nested:
            inner, outer = numbers(6, count, high=256), sizes(8, -(-count // 256)).float()
            second = torch.linspace(-1, 1, 256)
            note |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.03125}
            absmax = second[inner].double() * outer.repeat_interleave(256)[:count].double() + 0.03125
            stored |= {
                f"{name}.weight.absmax": inner.to(torch.uint8),
                f"{name}.weight.nested_absmax": outer,
                f"{name}.weight.nested_quant_map": second,
            }
        else:
            stored[f"{name}.weight.absmax"] = sizes(3, count).float()
            absmax = sizes(3, count).double()
        raw = torch.frombuffer(bytearray(json.dumps(note).encode()), dtype=torch.uint8)
        stored[f"{name}.weight.quant_state.bitsandbytes__nf4"] = raw
        return stored, (table[codes].double() * absmax.repeat_interleave(block)).view(OUT, IN)

    return pack


def kept_as_floats(name: str) -> Packed:
    """Store nf4 as bitsandbytes does for programs that cut models up: the same bytes, called bfloat16."""
    stored, values = nf4(nested=True)(name)
    codes = stored[f"{name}.weight"].reshape(-1).view(torch.bfloat16)
    return {**stored, f"{name}.weight": codes[:, None]}, values


def scaled(dtype: torch.dtype, shape: tuple[int, ...], leaf: str, factor: float = 1.0) -> Callable[[str], Packed]:
    def pack(name: str) -> Packed:
        values = b.Values(7)(OUT, IN).double()
        scale = (torch.rand(shape, generator=torch.Generator().manual_seed(3)) * 0.01 + 0.002).float()
        whole = torch.ones(OUT, IN, dtype=torch.float64)
        wide = scale.double().reshape(scale.shape if scale.dim() == 2 else (-1, 1)) * factor
        for axis, size in enumerate((OUT, IN)):
            block = size // wide.shape[axis] if size % 128 or wide.shape[axis] in (1, size) else 128
            wide = wide.repeat_interleave(block if axis == 0 or wide.shape[0] != OUT else size // wide.shape[1], axis)
        stored = (values / values.abs().max() * 120).to(dtype)
        whole *= wide
        return {f"{name}.weight": stored, f"{name}.{leaf}": scale}, stored.double() * whole

    return pack


FP8, INT8 = torch.float8_e4m3fn, torch.int8
PACKINGS: dict[str, Callable[[str], Packed]] = {
    "gptq 4": gptq(4),
    "gptq 8": gptq(8),
    "gptq 2": gptq(2),
    "gptq act-order": gptq(4, shuffled=True),
    "awq": awq,
    "compressed 4": compressed(4),
    "compressed 8": compressed(8),
    "nf4": nf4(nested=False),
    "nf4 nested": nf4(nested=True),
    "nf4 kept as floats": kept_as_floats,
}
SCALED: dict[str, Callable[[str], Packed]] = {
    "fp8 one": scaled(FP8, (), "weight_scale"),
    "fp8 rows": scaled(FP8, (OUT, 1), "weight_scale"),
    "fp8 columns": scaled(FP8, (1, IN), "weight_scale"),
    "fp8 blocks": scaled(FP8, (1, IN // 128), "weight_scale_inv"),
    "int8 one": scaled(INT8, (1,), "weight_scale"),
    "int8 rows": scaled(INT8, (OUT,), "weight_scale"),
    "int8 groups": scaled(INT8, (OUT, IN // GROUP), "weight_scale"),
    "int8 bitsandbytes": scaled(INT8, (OUT,), "SCB", 1 / 127),
}
LORA = b.lora((OUT, IN), seed=2, size=0.3)


def world(folder: Path, pack: Callable[[str], Packed], **output: object) -> tuple[Path, torch.Tensor]:
    stored, values = pack("fc")
    other, _ = pack("other")
    base = {**stored, **other, "norm.weight": torch.ones(4, dtype=torch.float16), "fc.bias": torch.zeros(OUT).half()}
    b.save(folder / "base.safetensors", base)
    b.kohya(folder / "lora.safetensors", {FC: LORA})
    if "fc.g_idx" in base:
        (folder / "config.json").write_text('{"quantization_config": {"quant_method": "gptq", "bits": 4}}')
    return b.recipe(folder, output=output), values


def assert_true(recipe: Path, *, wrong: str) -> None:
    found = verify(load_recipe(recipe), options=WEIGHTS)
    assert found.is_true, [each for each in found.findings if each.status == "fail"]
    out = recipe.parent / "out.safetensors"
    spoilt = load_file(out)
    spoilt[wrong] = spoilt[wrong].clone()
    spoilt[wrong].view(torch.uint8).view(-1)[-1] ^= 1
    b.save(recipe.parent / "wrong.safetensors", spoilt, b.header(out)[1])
    assert not verify(load_recipe(recipe), recipe.parent / "wrong.safetensors", options=WEIGHTS).is_true


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", [*PACKINGS, *SCALED])
def test_weights_are_decoded_and_baked(name: str, dtype: str, tmp_path: Path) -> None:
    recipe, values = world(tmp_path, (PACKINGS | SCALED)[name], dtype=dtype)
    b.run(recipe)
    after = load_file(tmp_path / "out.safetensors")
    assert sorted(after) == ["fc.bias", "fc.weight", "norm.weight", "other.weight"]
    exact = values + b.delta(LORA, (OUT, IN))
    b.assert_rounded_once(after["fc.weight"], exact, terms=[values.abs() * 8, exact.abs() * 8])
    b.assert_rounded_once(after["other.weight"], values, terms=[values.abs() * 8])
    assert {tensor.dtype for tensor in after.values()} == {getattr(torch, dtype)}
    assert_true(recipe, wrong="fc.weight")


@pytest.mark.parametrize("name", SCALED)
def test_scaled_weights_stay_scaled(name: str, tmp_path: Path) -> None:
    recipe, values = world(tmp_path, SCALED[name], allow_loss=True)
    b.run(recipe)
    before, after = load_file(tmp_path / "base.safetensors"), load_file(tmp_path / "out.safetensors")
    assert before.keys() == after.keys()
    assert {key: (tensor.dtype, tensor.shape) for key, tensor in before.items()} == {
        key: (tensor.dtype, tensor.shape) for key, tensor in after.items()
    }
    changed = {key for key in after if not torch.equal(before[key].float(), after[key].float())}
    leaf = next(key for key in before if key.startswith("fc.") and key not in ("fc.weight", "fc.bias"))
    assert changed == {"fc.weight", leaf}
    exact = values + b.delta(LORA, (OUT, IN))
    largest = torch.finfo(FP8).max if before["fc.weight"].dtype is FP8 else 127
    assert float(after["fc.weight"].float().abs().max()) == largest
    # What is stored now, decoded by a third program: a bake of nothing but the other dtype.
    b.save(tmp_path / "base.safetensors", after)
    plain = load_file(b.run(b.recipe(tmp_path, loras=[], output={"dtype": "float32"})).path)["fc.weight"].double()
    coarse = (exact.abs() / 14).clamp(min=float(exact.abs().max()) / 127)
    assert bool(((plain - exact).abs() <= coarse).all())


@pytest.mark.parametrize("name", SCALED)
def test_scaled_results_are_proven(name: str, tmp_path: Path) -> None:
    recipe, _ = world(tmp_path, SCALED[name], allow_loss=True)
    b.run(recipe)
    assert_true(recipe, wrong="fc.weight")


@pytest.mark.parametrize("name", PACKINGS)
def test_packed_weights_need_a_dtype_only_where_they_change(name: str, tmp_path: Path) -> None:
    recipe, _ = world(tmp_path, PACKINGS[name])
    with pytest.raises(MatchError, match=r"fc would change fc.weight, which is packed .*\n.*output.dtype"):
        b.run(recipe)
    assert not (tmp_path / "out.safetensors").exists()
    b.save(tmp_path / "lora.safetensors", {f"{FC}.diff_b": torch.ones(OUT)})
    b.run(recipe)
    before, after = b.tensor_bytes(tmp_path / "base.safetensors"), b.tensor_bytes(tmp_path / "out.safetensors")
    assert {key for key in before if before[key] != after[key]} == {"fc.bias"}
    assert verify(load_recipe(recipe), options=WEIGHTS).is_true


def test_gptq_of_the_second_format_stores_zeros_as_they_are(tmp_path: Path) -> None:
    recipe, values = world(tmp_path, gptq(4, second=True), dtype="float32")
    said = {"quant_method": "gptq", "checkpoint_format": "gptq_v2"}
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": said}))
    b.run(recipe)
    exact = values + b.delta(LORA, (OUT, IN))
    b.assert_rounded_once(load_file(tmp_path / "out.safetensors")["fc.weight"], exact, terms=[exact.abs() * 16])


@pytest.mark.parametrize("said", [{}, {"quant_method": "gptq", "checkpoint_format": "marlin"}], ids=str)
def test_gptq_of_no_known_format_is_not_guessed(said: dict[str, object], tmp_path: Path) -> None:
    recipe, _ = world(tmp_path, gptq(4), dtype="float32")
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": said}))
    with pytest.raises(MatchError, match=r"the base's weights are packed \(GPTQ or AWQ\)"):
        b.run(recipe)


def test_experts_in_mxfp4_become_what_the_model_multiplies_by(tmp_path: Path) -> None:
    """gpt-oss stores (expert, out, in); in use, and in plain releases, the weight is (expert, in, out)."""
    blocks, scales = numbers(1, 3, 8, 2, 16, high=256), numbers(2, 3, 8, 2, high=20) + 110
    base = {
        "mlp.experts.down_proj_blocks": blocks.to(torch.uint8),
        "mlp.experts.down_proj_scales": scales.to(torch.uint8),
        "norm.weight": torch.ones(4).bfloat16(),
    }
    b.save(tmp_path / "base.safetensors", base)
    recipe = b.recipe(tmp_path, loras=[], output={"dtype": "bfloat16"})
    b.run(recipe)
    after = load_file(tmp_path / "out.safetensors")["mlp.experts.down_proj"]
    codes = torch.stack((blocks & 15, blocks >> 4), dim=-1).reshape(3, 8, 2, 32)
    exact = (E2M1[codes] * 2.0 ** (scales.double() - 127)[..., None]).reshape(3, 8, 64).transpose(1, 2)
    assert torch.equal(after.double(), exact)
    assert verify(load_recipe(recipe), options=WEIGHTS).is_true


@pytest.mark.parametrize("alone", [False, True], ids=["beside others", "alone"])
def test_the_parts_of_one_weight_may_lie_in_several_files(alone: bool, tmp_path: Path) -> None:
    """transformers cuts shards wherever they are full."""
    stored, values = nf4(nested=True)("fc")
    folder = tmp_path / "base"
    folder.mkdir()
    norm = {"norm.weight": torch.ones(4).half()}
    first = {key: tensor for key, tensor in stored.items() if key in ("fc.weight.absmax", "fc.weight.quant_map")}
    rest = {key: value for key, value in stored.items() if key not in first}
    files = {"model-00001-of-00002.safetensors": first if alone else first | norm}
    files["model-00002-of-00002.safetensors"] = rest | norm if alone else rest
    for name, tensors in files.items():
        b.save(folder / name, tensors)
    index = {key: name for name, tensors in files.items() for key in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    b.kohya(tmp_path / "lora.safetensors", {FC: LORA})
    recipe = b.recipe(tmp_path, base="base", output={"path": "out", "dtype": "float32"})
    b.run(recipe)
    held = {path.name: sorted(load_file(path)) for path in sorted((tmp_path / "out").glob("*.safetensors"))}
    assert list(held.values()) == ([["fc.weight", "norm.weight"]] if alone else [["norm.weight"], ["fc.weight"]])
    after = load_file(tmp_path / "out" / "model-00002-of-00002.safetensors")["fc.weight"]
    exact = values + b.delta(LORA, (OUT, IN))
    b.assert_rounded_once(after, exact, terms=[exact.abs() * 16])
    assert verify(load_recipe(recipe), options=WEIGHTS).is_true


def test_a_folder_loses_what_says_that_it_is_quantised(tmp_path: Path) -> None:
    stored, _ = awq("fc")
    folder = tmp_path / "base"
    folder.mkdir()
    b.save(folder / "model.safetensors", {**stored, "norm.weight": torch.ones(4).half()})
    said = {"model_type": "x", "torch_dtype": "float16", "quantization_config": {"quant_method": "awq"}}
    (folder / "config.json").write_text(json.dumps(said))
    recipe = b.recipe(tmp_path, base="base", loras=[], output={"path": "out", "dtype": "bfloat16"})
    b.run(recipe)
    assert json.loads((tmp_path / "out/config.json").read_text()) == {"model_type": "x", "torch_dtype": "bfloat16"}
    assert verify(load_recipe(recipe), options=WEIGHTS).is_true


@pytest.mark.parametrize(
    ("said", "is_known"),
    [
        ({"format": "float8_e4m3fn"}, True),
        ({"format": "float8_e4m3fn", "full_precision_matrix_mult": True}, True),
        ({"format": "float8_e4m3fn", "convrot": True}, False),
        ({"format": "mxfp8"}, False),
    ],
    ids=str,
)
def test_notes_of_comfyui_are_read(said: dict[str, object], is_known: bool, tmp_path: Path) -> None:
    def pack(name: str) -> Packed:
        stored, values = SCALED["fp8 one"](name)
        raw = torch.frombuffer(bytearray(json.dumps(said).encode()), dtype=torch.uint8)
        stored |= {f"{name}.comfy_quant": raw, f"{name}.input_scale": torch.ones(())}
        return stored, values

    recipe, values = world(tmp_path, pack, dtype="float32")
    if not is_known:
        with pytest.raises(MatchError, match=r"fc\.weight, of which fc\.comfy_quant says {"):
            b.run(recipe)
        return
    b.run(recipe)
    after = load_file(tmp_path / "out.safetensors")
    assert sorted(after) == ["fc.bias", "fc.weight", "norm.weight", "other.weight"]
    exact = values + b.delta(LORA, (OUT, IN))
    b.assert_rounded_once(after["fc.weight"], exact, terms=[exact.abs() * 16])


# -- Against the programs that pack -----------------------------------------------------------------------


@pytest.mark.oracle
def test_transformers_reads_mxfp4_likewise(tmp_path: Path) -> None:
    mxfp4 = pytest.importorskip("transformers.integrations.mxfp4")
    blocks, scales = numbers(1, 3, 8, 2, 16, high=256).to(torch.uint8), (numbers(2, 3, 8, 2) + 118).to(torch.uint8)
    b.save(tmp_path / "base.safetensors", {"e.gate_up_proj_blocks": blocks, "e.gate_up_proj_scales": scales})
    b.run(b.recipe(tmp_path, loras=[], output={"dtype": "bfloat16"}))
    own = mxfp4.convert_moe_packed_tensors(blocks, scales, dtype=torch.bfloat16)
    assert torch.equal(load_file(tmp_path / "out.safetensors")["e.gate_up_proj"], own)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("way", ["nf4", "fp4"])
def test_bitsandbytes_own_weights(way: str, nested: bool, tmp_path: Path) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")

    def pack(name: str) -> Packed:
        codes, state = functional.quantize_4bit(b.Values(1)(OUT, IN), quant_type=way, compress_statistics=nested)
        stored = {f"{name}.weight": codes}
        stored |= {f"{name}.weight.{leaf}": value.cpu() for leaf, value in state.as_dict(packed=True).items()}
        return stored, functional.dequantize_4bit(codes, state).double()

    recipe, values = world(tmp_path, pack, dtype="float32")
    b.run(recipe)
    exact = values + b.delta(LORA, (OUT, IN))
    b.assert_rounded_once(load_file(tmp_path / "out.safetensors")["fc.weight"], exact, terms=[exact.abs() * 32])
    assert_true(recipe, wrong="fc.weight")


@pytest.mark.parametrize("kind", ["Q8_0", "Q5_1", "Q4_K", "Q6_K"])
def test_gguf(kind: str, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    way = gguf.GGMLQuantizationType[kind]
    _, width = gguf.GGML_QUANT_SIZES[way]
    raw = np.random.default_rng(1).integers(0, 100, (OUT, IN // gguf.GGML_QUANT_SIZES[way][0] * width), np.uint8)
    values = torch.from_numpy(gguf.quants.dequantize(raw, way).astype(np.float64))
    writer = gguf.GGUFWriter(tmp_path / "base.gguf", "flux")
    writer.add_tensor("fc.weight", raw, raw_dtype=way)
    writer.add_tensor("norm.weight", np.ones(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    b.kohya(tmp_path / "lora.safetensors", {FC: LORA})
    with pytest.raises(MatchError, match=rf"packed \(GGUF {kind}\)\n.*output.dtype"):
        b.run(b.recipe(tmp_path, base="base.gguf"))
    recipe = b.recipe(tmp_path, base="base.gguf", output={"dtype": "float32"})
    b.run(recipe)
    after = load_file(tmp_path / "out.safetensors")
    exact = values + b.delta(LORA, (OUT, IN))
    b.assert_rounded_once(after["fc.weight"], exact, terms=[exact.abs() * 8])
    assert after["norm.weight"].dtype is torch.float32
    assert_true(recipe, wrong="fc.weight")


def test_a_damaged_gguf_file_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    (tmp_path / "base.gguf").write_bytes(b"GGUF" + b"\0" * 8)
    with pytest.raises(FileError, match="damaged GGUF"):
        b.run(b.recipe(tmp_path, base="base.gguf", loras=[], output={"dtype": "float32"}))
