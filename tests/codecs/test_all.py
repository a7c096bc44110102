"""What holds for each codec: it knows its own checkpoints alone, and both accounts decode them alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lorabake.codecs import codecs
from lorabake.codecs.codec import Group, Stored
from lorabake.reference.codecs import FORMULAS, RECODINGS, worth
from lorabake.storage.groups import groups_of
from lorabake.storage.recognition import recognised
from lorabake.storage.statements import gather, read_beside
from lorabake.tensors.checkpoint import open_checkpoint
from lorabake.tensors.dtypes import DTYPES
from tests import builders as b
from tests.codecs.test_mxfp8 import WAYS, base
from tests.test_packing import IN, OUT, PACKINGS, SCALED, numbers, sizes
from tests.test_statements import quanto

Build = Callable[[Path], None]


def packed(pack: Callable[[str], tuple[b.Tensors, torch.Tensor]], config: dict[str, object] | None = None) -> Build:
    def build(folder: Path) -> None:
        stored, values = pack("fc")
        bias = {"fc.bias": torch.zeros(len(values)).half()}
        b.save(folder / "base" / "model.safetensors", stored | bias)
        (folder / "base" / "config.json").write_text(json.dumps({"quantization_config": config} if config else {}))

    return build


def mxfp8(way: str) -> Build:
    def build(folder: Path) -> None:
        base(folder, way)

    return build


def mxfp4(folder: Path) -> None:
    blocks, scales = numbers(1, 3, 8, 2, 16, high=256), numbers(2, 3, 8, 2, high=20) + 110
    parts = {"fc_blocks": blocks.to(torch.uint8), "fc_scales": scales.to(torch.uint8)}
    b.save(folder / "base" / "model.safetensors", parts)


def convrot(folder: Path) -> None:
    says = {"format": "convrot_w4a4", "convrot_groupsize": 64, "linear_dtype": "int8"}
    stored = {
        "fc.weight": numbers(1, OUT, IN // 2, high=256).to(torch.uint8).view(torch.int8),
        "fc.weight_scale": sizes(2, OUT).float(),
        "fc.comfy_quant": torch.frombuffer(bytearray(json.dumps(says).encode()), dtype=torch.uint8),
    }
    b.save(folder / "base" / "model.safetensors", stored)


GPTQ = {"quant_method": "gptq"}
BUILDERS: dict[str, tuple[str, Build]] = {
    **{
        name: (codec, packed(pack, GPTQ if codec == "gptq" else None))
        for name, pack in PACKINGS.items()
        for start, codec in {
            "gptq": "gptq", "awq": "awq", "compressed": "compressed_tensors", "nf4": "bitsandbytes",
        }.items()
        if name.startswith(start)
    },
    **{name: ("scaled", packed(pack)) for name, pack in SCALED.items()},
    **{f"mxfp8 {way}": ("mxfp8", mxfp8(way)) for way in WAYS},
    "mxfp4": ("mxfp4", mxfp4),
    "convrot": ("convrot", convrot),
    "qint8": ("quanto", packed(lambda name: quanto(name, "qint8"))),
    "qint4": ("quanto_bits", packed(lambda name: quanto(name, "qint4 whole numbers whole"))),
}  # fmt: skip
ALONE = {"plain", "gguf"}
"""Those that a tensor's dtype tells; their own tests are elsewhere."""

ENCODED = [name for name, (codec, _) in BUILDERS.items() if codec in RECODINGS]


def group_of(folder: Path, name: str) -> Group:
    """Build a checkpoint and return what stands for its weight."""
    BUILDERS[name][1](folder)
    checkpoint = open_checkpoint(folder / "base")
    groups = {group.key: group for group in groups_of(checkpoint, gather(checkpoint, read_beside(checkpoint)))}
    return groups["fc" if name == "mxfp4" else "fc.weight"]


def stored_in(folder: Path, name: str) -> tuple[Stored, dict[str, torch.Tensor]]:
    """Return a weight of a checkpoint, and the tensors that hold it, by role."""
    weight = recognised(group_of(folder, name))
    assert isinstance(weight, Stored)
    tensors = load_file(folder / "base" / "model.safetensors")
    parts = {role: tensors[part.key] for role, part in weight.parts.items()}
    if "codes" in parts and parts["codes"].is_floating_point():
        parts["codes"] = parts["codes"].view(torch.uint8)  # bytes, called bfloat16
    return weight, parts


def reread(weight: Stored, parts: dict[str, torch.Tensor]) -> np.ndarray:
    """Return what a weight is worth by the second account."""

    def read(role: str) -> np.ndarray:
        tensor = parts[role]
        return (tensor.double() if tensor.is_floating_point() else tensor).numpy()

    return worth(weight, read)


def test_each_has_a_builder_and_a_formula() -> None:
    names = [codec.name for codec in codecs()]
    assert len(names) == len({*names})
    assert {*names} == {codec for codec, _ in BUILDERS.values()} | ALONE == FORMULAS.keys()
    assert {codec.name for codec in codecs() if codec.encodes and not codec.is_plain} == RECODINGS.keys()
    assert all(codec.before <= {*names} for codec in codecs())


@pytest.mark.parametrize("name", BUILDERS)
def test_each_knows_its_own_checkpoints_alone(name: str, tmp_path: Path) -> None:
    group = group_of(tmp_path, name)
    claims = {codec.name: codec for codec in codecs() if codec.recognise(group) is not None}
    better = {other for codec in claims.values() for other in codec.before}
    assert claims.keys() - better == {BUILDERS[name][0]}


@pytest.mark.parametrize("name", BUILDERS)
def test_both_accounts_decode_alike(name: str, tmp_path: Path) -> None:
    weight, parts = stored_in(tmp_path, name)
    first = weight.decode(parts, torch.float64).numpy()
    second = reread(weight, parts)
    assert first.shape == second.shape == weight.shape
    np.testing.assert_allclose(first, second, rtol=1e-6, atol=1e-9 * float(np.abs(second).max()))


@pytest.mark.parametrize("name", ENCODED)
def test_what_is_encoded_decodes_to_within_half_a_step(name: str, tmp_path: Path) -> None:
    weight, parts = stored_in(tmp_path, name)
    values = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    encoded = weight.codec.encode(weight, values)
    assert {*encoded} == {*weight.codec.written(weight)}
    fresh = {**parts}
    for role, tensor in encoded.items():
        kind = getattr(torch, str(DTYPES[weight.parts[role].dtype].torch))
        fresh[role] = (tensor if kind.is_floating_point else tensor.round()).to(kind)
        assert fresh[role].shape == parts[role].shape
    decoded = weight.decode(fresh, torch.float64)
    coarsest = float(values.abs().max()) / 254 if parts["weight"].dtype == torch.int8 else 0.0
    step = torch.maximum(values.abs() / 16, torch.tensor(max(coarsest, 2.0**-10 * float(values.abs().max()) / 448)))
    assert bool(((decoded - values).abs() <= step * 1.001).all())
