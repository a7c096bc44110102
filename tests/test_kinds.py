"""Every adapter kind, baked: strengths, dtypes, convolutions, fused and split weights, several at once, and verified.

What each must give comes from `reference/formulas/`, which shares nothing with the code that bakes; LyCORIS and
PEFT themselves are asked in `tests/oracle/`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lorabake import VerifyOptions, verify
from lorabake.adapters import kinds
from lorabake.adapters.oft import OftSettings
from lorabake.adapters.oft_peft import PeftOftSettings
from lorabake.adapters.settings import NO_SETTINGS, Settings
from lorabake.errors import LorabakeError
from lorabake.recipe import load_recipe
from lorabake.reference.formulas import changed as work_out
from lorabake.reference.formulas.formula import PlaceOf
from lorabake.verification.findings import Status
from tests import builders as b

Shape = tuple[int, ...]
LINEAR, CONV_1D, CONV_2D, CONV_3D = (16, 8), (16, 8, 3), (16, 8, 3, 3), (16, 8, 2, 2, 2)
WEIGHTS = {"linear": LINEAR, "conv1d": CONV_1D, "conv2d": CONV_2D, "conv3d": CONV_3D}


@dataclass(frozen=True)
class Case:
    """Describe one form of a kind: suffix -> (slot, shape) of random tensors, suffix -> (slot, tensor) of others."""

    kind: str
    shapes: Mapping[str, tuple[str, Shape]]
    given: Mapping[str, tuple[str, torch.Tensor]] = field(default_factory=dict)
    scale: float = 1.0
    settings: Settings = NO_SETTINGS
    prefix: str = "lora_unet_"
    weights: tuple[str, ...] = tuple(WEIGHTS)


def alpha(value: float) -> dict[str, tuple[str, torch.Tensor]]:
    return {".alpha": ("alpha", torch.tensor(value))}


def loha(columns: int, rank: int = 3) -> dict[str, tuple[str, Shape]]:
    pairs = (("hada_w1_a", (16, rank)), ("hada_w1_b", (rank, columns)))
    return {f".{n.replace('1', k, 1)}": (n.replace("1", k, 1), shape) for k in "12" for n, shape in pairs}


def cases(shape: Shape) -> dict[str, Case]:
    """List the forms of every kind, for one weight."""
    columns, kernel = prod(shape[1:]), shape[2:]
    ones = (1,) * len(kernel)
    found = {
        "LoRA and sparse values": Case(
            "sparse_lora",
            {
                ".lora_up.weight": ("up", (16, 3, *ones)),
                ".lora_down.weight": ("down", (3, *shape[1:])),
                ".bias_values": ("sparse_values", (5,)),
            },
            {
                ".bias_indices": (
                    "sparse_places",
                    torch.tensor([[0, 0, 3, 9, 15], [0, 7, columns - 1, 2, 5]], dtype=torch.int16),
                ),
                ".bias_size": ("sparse_size", torch.tensor([16, columns], dtype=torch.int16)),
                **alpha(1.5),
            },
            scale=0.5,
        ),
        "DyLoRA of LyCORIS's beginnings": Case(
            "lora", {".dyn_up": ("up", (16, 3)), ".dyn_down": ("down", (3, columns))}, alpha(1.5), scale=0.5
        ),
        "LoHa": Case("loha", loha(columns), alpha(1.5), scale=0.5),
        "LoHa without alpha": Case("loha", loha(columns)),
        "LoHa with DoRA by row": Case(
            "loha", loha(columns) | {".dora_scale": ("dora_scale", (16, 1, *ones))}, alpha(1.5), scale=0.5
        ),
        "LoHa with DoRA by column": Case(
            "loha", loha(columns) | {".dora_scale": ("dora_scale", (1, 8, *ones))}, alpha(1.5), scale=0.5
        ),
        "LoKr, second decomposed": Case(
            "lokr",
            {
                ".lokr_w1": ("lokr_w1", (4, 2)),
                ".lokr_w2_a": ("lokr_w2_a", (4, 3)),
                ".lokr_w2_b": ("lokr_w2_b", (3, columns // 2)),
            },
            alpha(1.5),
            scale=0.5,
        ),
        "LoKr, both decomposed": Case(
            "lokr",
            {
                ".lokr_w1_a": ("lokr_w1_a", (4, 1)),
                ".lokr_w1_b": ("lokr_w1_b", (1, 2)),
                ".lokr_w2_a": ("lokr_w2_a", (4, 3)),
                ".lokr_w2_b": ("lokr_w2_b", (3, columns // 2)),
            },
            alpha(1.5),
            scale=0.5,
        ),
        "LoKr, both whole: alpha has no effect": Case(
            "lokr", {".lokr_w1": ("lokr_w1", (8, 4)), ".lokr_w2": ("lokr_w2", (2, 2, *kernel))}, alpha(77.0)
        ),
        "LoKr of DoRA": Case(
            "lokr",
            {
                ".lokr_w1": ("lokr_w1", (8, 4)),
                ".lokr_w2": ("lokr_w2", (2, 2, *kernel)),
                ".dora_scale": ("dora_scale", (16, 1, *ones)),
            },
        ),
        "GLoRA": Case(
            "glora",
            {
                ".a1.weight": ("glora_a1", (8, 3, *ones)),
                ".a2.weight": ("glora_a2", (3, 8, *ones)),
                ".b1.weight": ("glora_b1", (16, 3, *ones)),
                ".b2.weight": ("glora_b2", (3, 8, *kernel)),
            },
            alpha(1.5),
            scale=0.5,
        ),
        "IA3 of outputs": Case(
            "ia3",
            {".weight": ("whole_weight", (16, 1, *ones))},
            {".on_input": ("on_input", torch.tensor(0))},
        ),
        "IA3 of inputs": Case(
            "ia3", {".weight": ("whole_weight", (8,))}, {".on_input": ("on_input", torch.tensor(1))}
        ),
        "difference": Case("diff", {".diff": ("diff", shape)}),
        "difference of DoRA": Case("diff", {".diff": ("diff", shape), ".dora_scale": ("dora_scale", (16, 1, *ones))}),
        "norm": Case("w_norm", {".w_norm": ("w_norm", shape)}),
        "set": Case("set_weight", {".set_weight": ("set_weight", shape)}),
        "OFT": Case("oft", {".oft_blocks": ("oft_blocks", (4, 4, 4))}, settings=OftSettings(kohya=False)),
        "OFT, constrained": Case(
            "oft", {".oft_blocks": ("oft_blocks", (4, 4, 4))}, alpha(0.02), settings=OftSettings(kohya=False)
        ),
        "OFT of LyCORIS with alpha 0": Case(
            "oft", {".oft_blocks": ("oft_blocks", (4, 4, 4))}, alpha(0.0), settings=OftSettings(kohya=False)
        ),
        "OFT of kohya": Case(
            "oft",
            {".oft_blocks": ("oft_blocks", (4, 4, 4))},
            alpha(0.02),
            settings=OftSettings(kohya=True),
            prefix="oft_unet_",
        ),
        "OFT of kohya for Flux": Case(
            "oft_parts",
            {
                ".oft_blocks.0": ("oft_blocks_0", (2, 2, 2)),
                ".oft_blocks.1": ("oft_blocks_1", (2, 2, 2)),
                ".oft_blocks.2": ("oft_blocks_2", (2, 4, 4)),
            },
            alpha(0.1),
            prefix="oft_unet_",
        ),
        "OFT, rescaled": Case(
            "oft",
            {".oft_blocks": ("oft_blocks", (2, 8, 8)), ".rescale": ("rescale", (16, 1, *ones))},
            settings=OftSettings(kohya=False),
        ),
        "BOFT": Case("oft", {".oft_blocks": ("oft_blocks", (3, 4, 4, 4))}, settings=OftSettings(kohya=False)),
        "OFT of 2023": Case("oft_diag", {".oft_diag": ("oft_diag", (4, 4, 4))}),
        "OneTrainer's OFT": Case(
            "oft_peft",
            {".oft_R.weight": ("oft_R", (columns // 4, 6))},
            {".scaled_oft": ("scaled_oft", torch.tensor(True))},
            settings=PeftOftSettings(5, is_scaled=True),
        ),
    }
    if kernel:
        found |= {
            "LoHa with cores": Case(
                "loha",
                {
                    f".hada_{name}{k}{end}": (f"hada_{name}{k}{end}", size)
                    for k in "12"
                    for name, end, size in (("w", "_a", (3, 16)), ("w", "_b", (3, 8)), ("t", "", (3, 3, *kernel)))
                },
                alpha(1.5),
                scale=0.5,
            ),
            "LoKr with a core": Case(
                "lokr",
                {
                    ".lokr_w1": ("lokr_w1", (4, 2)),
                    ".lokr_w2_a": ("lokr_w2_a", (3, 4)),
                    ".lokr_w2_b": ("lokr_w2_b", (3, 4)),
                    ".lokr_t2": ("lokr_t2", (3, 3, *kernel)),
                },
                alpha(1.5),
                scale=0.5,
            ),
            "LoKr of March 2023, over a part of the kernel": Case(
                "lokr",
                {".lokr_w1": ("lokr_w1", (4, columns // 2)), ".lokr_w2": ("lokr_w2", (4, 2))},
            ),
            "GLoRA with a core": Case(
                "glora",
                {
                    ".a1.weight": ("glora_a1", (8, 3, *ones)),
                    ".a2.weight": ("glora_a2", (3, 8, *ones)),
                    ".b1.weight": ("glora_b1", (16, 3, *ones)),
                    ".bm.weight": ("glora_bm", (3, 3, *kernel)),
                    ".b2.weight": ("glora_b2", (3, 8, *ones)),
                },
            ),
        }
    else:
        found["GLoRA of LyCORIS 1"] = Case(
            "glora",
            {
                ".a1.weight": ("glora_a1", (3, 8)),
                ".a2.weight": ("glora_a2", (8, 3)),
                ".b1.weight": ("glora_b1", (3, 8)),
                ".b2.weight": ("glora_b2", (16, 3)),
            },
            alpha(1.5),
            scale=0.5,
        )
    return found


ALL = [(name, weight) for weight, shape in WEIGHTS.items() for name in cases(shape)]


def tensors_of(case: Case, seed: int = 3) -> dict[str, tuple[str, torch.Tensor]]:
    """Return suffix -> (slot, tensor)."""
    values = b.Values(seed)
    made = {}
    for suffix, (slot, shape) in case.shapes.items():
        tensor = values(*shape, size=0.4)
        made[suffix] = slot, tensor.abs() + 0.5 if slot in ("dora_scale", "rescale") else tensor
    return made | dict(case.given)


def formula(case: Case, weight: torch.Tensor) -> torch.Tensor:
    """Work W(1) out in float64, all rows at once."""
    shape = tuple(weight.shape)
    tensors = {slot: tensor.double().numpy() for slot, tensor in tensors_of(case).values()}
    if next(kind for kind in kinds() if kind.name == case.kind).alpha_is_scale:
        tensors.pop("alpha", None)
    flat = weight.double().numpy().reshape(shape[0], -1)
    found = work_out(case.kind, tensors, flat, PlaceOf(slice(0, shape[0]), shape, case.settings), case.scale)
    return torch.from_numpy(np.array(found)).reshape(shape)


def write(folder: Path, case: Case, weight: torch.Tensor, module: str = "layer") -> None:
    b.save(folder / "base.safetensors", {"layer.weight": weight, "other.weight": weight.clone()})
    tensors = {case.prefix + module + suffix: tensor for suffix, (_, tensor) in tensors_of(case).items()}
    b.save(folder / "lora.safetensors", tensors)


@pytest.mark.parametrize(("name", "weight"), ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_kind_is_baked_and_verified(name: str, weight: str, dtype: torch.dtype, tmp_path: Path) -> None:
    case = cases(WEIGHTS[weight])[name]
    base = b.Values(7)(*WEIGHTS[weight], dtype=dtype)
    write(tmp_path, case, base)
    changed = formula(case, base)
    assert (changed - base.double()).abs().max() > 0.01
    for strength in (1.0, -0.6):
        path = b.bake_sd1(tmp_path, loras=[{"path": "lora.safetensors", "strength": strength}])
        baked = load_file(path)
        wanted = base.double() + strength * (changed - base.double())
        large = wanted.abs().max().expand(wanted.shape) * 4  # what float32 sums on the way
        b.assert_rounded_once(baked["layer.weight"], wanted, terms=[large])
        assert torch.equal(baked["other.weight"], base)
    result = verify(load_recipe(tmp_path / "recipe.yaml"), options=VerifyOptions(stages=("structure", "weights")))
    assert result.is_true, [finding for finding in result.findings if finding.status is Status.FAIL]


# What tools get wrong, kind by kind: (case, what becomes of its file or strength) and the check that must name it.
Change = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]


def turned(slot: str) -> Change:
    return lambda tensors: {key: tensor.mT.contiguous() if slot in key else tensor for key, tensor in tensors.items()}


def scaled(end: str, factor: float) -> Change:
    return lambda tensors: {key: tensor * factor if key.endswith(end) else tensor for key, tensor in tensors.items()}


def without(slot: str) -> Change:
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if slot not in key}


FAULTS: dict[str, tuple[str, Change, str]] = {
    "LoHa's scale counted twice": ("LoHa", scaled(".alpha", 0.5), "weights.strength"),
    "LoHa's alpha ignored": ("LoHa", without("alpha"), "weights.alpha"),
    "LoKr's scale counted twice": ("LoKr, second decomposed", scaled(".alpha", 0.5), "weights.strength"),
    "the sparse values left out of a LoRA": ("LoRA and sparse values", without("bias_"), "weights.values"),
    "GLoRA's part on the weight left out": ("GLoRA", scaled("a1.weight", 0.0), "weights.other_lora"),
    "IA3's factor taken for its difference from 1": ("IA3 of outputs", scaled(".weight", -1.0), "weights.sign"),
    "a difference halved": ("difference", scaled(".diff", 0.5), "weights.strength"),
    "OFT turned the other way": ("OFT", turned("oft_blocks"), "weights.values"),
    "OFT's constraint left out": ("OFT, constrained", without("alpha"), "weights.values"),
    "OFT's rescale left out": ("OFT, rescaled", without("rescale"), "weights.values"),
    "OFT's constraint taken for all parts together": ("OFT of kohya for Flux", scaled(".alpha", 4), "weights.values"),
    "OFT of one part left out": ("OFT of kohya for Flux", scaled(".oft_blocks.1", 0), "weights.missing"),
    "BOFT turned the other way": ("BOFT", turned("oft_blocks"), "weights.values"),
    "OneTrainer's OFT turned the other way": ("OneTrainer's OFT", scaled("oft_R.weight", -1.0), "weights.values"),
    "DoRA left out of LoHa": ("LoHa with DoRA by row", without("dora_scale"), "weights.dora"),
    "DoRA left out of a difference": ("difference of DoRA", without("dora_scale"), "weights.dora"),
    "DoRA left out of LoKr": ("LoKr of DoRA", without("dora_scale"), "weights.dora"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_a_kind_is_named(fault: str, tmp_path: Path) -> None:
    name, change, check = FAULTS[fault]
    write(tmp_path, cases(LINEAR)[name], b.Values(7)(*LINEAR, dtype=torch.float16))
    right = load_file(tmp_path / "lora.safetensors")
    b.save(tmp_path / "lora.safetensors", change(right))
    wrong = load_file(b.bake_sd1(tmp_path))
    b.save(tmp_path / "lora.safetensors", right)
    baked = b.bake_sd1(tmp_path)
    b.save(baked, wrong)
    options = VerifyOptions(stages=("structure", "weights"))
    findings = verify(load_recipe(tmp_path / "recipe.yaml"), options=options).findings
    failed = {each.check for each in findings if each.status is Status.FAIL}
    assert failed - {"structure.metadata", "structure.order"} == {check}, findings


CORES = ("LoHa with cores", "LoKr with a core", "GLoRA with a core", "BOFT", "OFT of kohya for Flux", "difference")
ALONE = [name for name, case in cases(LINEAR).items() if ".dora_scale" not in case.shapes]


@pytest.mark.parametrize(
    ("name", "weight", "axis"),
    [(name, "linear", axis) for name in ALONE if name != "set" for axis in ("row", "column")]
    + [(name, "conv2d", axis) for name in CORES for axis in ("row", "column")],
)
def test_dora_sits_on_whatever_changes_a_weight(name: str, weight: str, axis: str, tmp_path: Path) -> None:
    """V·d/‖V‖ with V what the kind alone makes of the weight, worked out here."""
    shape = WEIGHTS[weight]
    case, base, rest = cases(shape)[name], b.Values(7)(*shape), (1,) * len(shape[2:])
    write(tmp_path, case, base)
    lengths = b.Values(11)(*((16, 1) if axis == "row" else (1, 8)), *rest).abs() + 0.5
    lora = load_file(tmp_path / "lora.safetensors") | {f"{case.prefix}layer.dora_scale": lengths}
    b.save(tmp_path / "lora.safetensors", lora)
    alone = formula(case, base)
    over = [1, *range(2, alone.dim())] if axis == "row" else [0, *range(2, alone.dim())]
    whole = alone * lengths.double() / alone.square().sum(dim=over, keepdim=True).sqrt()
    after = load_file(b.bake_sd1(tmp_path, loras=[{"path": "lora.safetensors", "strength": 0.7}]))["layer.weight"]
    wanted = base.double() + 0.7 * (whole - base.double())
    b.assert_rounded_once(after, wanted, terms=[wanted.abs().max().expand(wanted.shape) * 8])
    result = verify(load_recipe(tmp_path / "recipe.yaml"), options=VerifyOptions(stages=("structure", "weights")))
    assert result.is_true, [finding for finding in result.findings if finding.status is Status.FAIL]


@pytest.mark.parametrize("name", cases(LINEAR))
def test_strength_zero_is_the_base_byte_for_byte(name: str, tmp_path: Path) -> None:
    write(tmp_path, cases(LINEAR)[name], b.Values(7)(*LINEAR, dtype=torch.float16))
    path = b.bake_sd1(tmp_path, loras=[{"path": "lora.safetensors", "strength": 0}])
    assert b.tensor_bytes(path) == b.tensor_bytes(tmp_path / "base.safetensors")


@pytest.mark.parametrize(("name", "weight"), ALL)
def test_a_kind_knows_whether_it_reads_the_weight(name: str, weight: str) -> None:
    case = cases(WEIGHTS[weight])[name]
    kind = next(kind for kind in kinds() if kind.name == case.kind)
    if kind.adds and ".dora_scale" not in case.shapes:
        one, other = (b.Values(seed)(*WEIGHTS[weight]).double() for seed in (7, 8))
        equal = torch.allclose(formula(case, one) - one, formula(case, other) - other, atol=1e-6)
        assert kind.reads_weight != equal


def test_every_kind_has_a_case() -> None:
    own = {case.kind for shape in WEIGHTS.values() for case in cases(shape).values()}
    elsewhere = {"lora_bias", "whole", "whole_bias", "mlx"}  # test_bake.py, test_formats.py
    elsewhere |= {"set_scale", "vblora_topk", "expert_lora"}  # test_growth.py, oracle/
    biases = {kind.name for kind in kinds() if kind.parameter == "bias"}
    of_peft = {kind.name for kind in kinds() if kind.peft_type} - own
    assert {kind.name for kind in kinds()} == own | elsewhere | biases | of_peft


@pytest.mark.parametrize("name", ["LoHa", "LoKr, second decomposed", "OFT", "difference", "GLoRA"])
def test_deltas_are_taken_on_the_base_and_summed(name: str, tmp_path: Path) -> None:
    """Two adapters that read the weight: each reads the base's, not what the other left."""
    base = b.Values(7)(*LINEAR)
    first, second = cases(LINEAR)[name], cases(LINEAR)["IA3 of outputs"]
    write(tmp_path, first, base)
    (tmp_path / "lora.safetensors").rename(tmp_path / "first.safetensors")
    write(tmp_path, second, base)
    loras = [{"path": "first.safetensors", "strength": 0.5}, {"path": "lora.safetensors", "strength": 2.0}]
    baked = load_file(b.bake_sd1(tmp_path, loras=loras))["layer.weight"]
    double = base.double()
    wanted = double + 0.5 * (formula(first, base) - double) + 2 * (formula(second, base) - double)
    b.assert_rounded_once(baked, wanted, terms=[wanted.abs().max().expand(wanted.shape) * 4])


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({".oft_R.weight": (2, 6)}, "no adapter_config.json says use_cayley_neumann"),
        ({".weight": (8,), ".on_input": ()}, "on_input says that it scales outputs, and it has 8 numbers"),
        ({".lokr_w1": (4, 2), ".lokr_w2": (4, 5)}, "its delta is 16 × 10; the base's weight is 16 × 8"),
        ({".lokr_w1": (4, 2)}, "incomplete or unknown set: lokr_w1"),
        ({".oft_blocks": (3, 4, 4)}, "its blocks turn 12 outputs"),
        ({".oft_blocks": (4, 4)}, "no square matrices"),
        ({".oft_blocks.0": (4, 2, 2), ".oft_blocks.1": (2, 2, 2), ".alpha": ()}, "its blocks turn 12 outputs"),
        ({".oft_blocks.0": (4, 4), ".alpha": ()}, "no square matrices"),
        ({".diff": (8, 16)}, r"its difference is \(8, 16\)"),
        (
            {".hada_w1_a": (16, 3), ".hada_w1_b": (2, 8), ".hada_w2_a": (16, 3), ".hada_w2_b": (3, 8)},
            "disagree on the rank",
        ),
        ({".ia3_l": (3, 1)}, r"its factors are \(3, 1\)"),
        ({".boft_R": (2, 1, 8, 8), ".boft_s": (16, 1)}, "its 2 butterfly rounds do not divide 1 blocks of 8"),
    ],
)
def test_what_does_not_fit_is_said(tensors: dict[str, Shape], words: str, tmp_path: Path) -> None:
    b.save(tmp_path / "base.safetensors", {"layer.weight": torch.ones(16, 8), "layer.bias": torch.zeros(16)})
    lora = {f"lora_unet_layer{suffix}": torch.zeros(shape) for suffix, shape in tensors.items()}
    b.save(tmp_path / "lora.safetensors", lora)
    with pytest.raises(LorabakeError, match=words):
        b.bake_sd1(tmp_path)
    assert not (tmp_path / "out.safetensors").exists()


# -- fused and split weights, and weights stored as (in, out) ----------------------------------------------

Q, K, V = (f"text_model.encoder.layers.0.self_attn.{name}_proj" for name in "qkv")


def lokr_slots(seed: int, out: int) -> dict[str, torch.Tensor]:
    values = b.Values(seed)
    return {".lokr_w1": values(2, 4, size=0.4), ".lokr_w2": values(out // 2, 2, size=0.4)}


def as_names(module: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"lora_te2_{module.replace('.', '_')}{suffix}": tensor for suffix, tensor in tensors.items()}


@pytest.mark.parametrize("name", ["lokr", "oft", "diff", "dora of loha"])
def test_a_kind_on_one_third_of_a_fused_weight(name: str, tmp_path: Path) -> None:
    """SDXL's second text encoder holds q, k and v in one tensor: the change of k lands on its rows alone."""
    b.save(tmp_path / "base.safetensors", b.sdxl(dtype=torch.float32))
    size, values = b.TEXT, b.Values(5)
    files = {
        "lokr": (lokr_slots(3, size), "lokr"),
        "oft": ({".oft_blocks": values(2, size // 2, size // 2, size=0.4)}, "oft"),
        "diff": ({".diff": values(size, size, size=0.4)}, "diff"),
        "dora of loha": (
            {
                ".hada_w1_a": values(size, 2),
                ".hada_w1_b": values(2, size),
                ".hada_w2_a": values(size, 2),
                ".hada_w2_b": values(2, size),
                ".dora_scale": values(1, size).abs() + 0.5,
            },
            "loha",
        ),
    }
    tensors, kind = files[name]
    b.save(tmp_path / "lora.safetensors", as_names(K, tensors))
    before = load_file(tmp_path / "base.safetensors")
    after = load_file(b.bake_sd1(tmp_path, loras=[{"path": "lora.safetensors", "strength": 0.5}]))
    (key,) = (key for key in before if not torch.equal(before[key], after[key]))
    assert key.endswith("resblocks.0.attn.in_proj_weight")
    q, k, v = before[key].chunk(3)
    place = PlaceOf(slice(0, size), (size, size), OftSettings(kohya=False))
    slots = {suffix.removeprefix("."): tensor.double().numpy() for suffix, tensor in tensors.items()}
    changed = torch.from_numpy(np.array(work_out(kind, slots, k.double().numpy(), place, 1.0)))
    wanted = torch.cat([q.double(), k.double() + 0.5 * (changed - k.double()), v.double()])
    b.assert_rounded_once(after[key], wanted, terms=[wanted.abs().max().expand(wanted.shape) * 4])
    assert torch.equal(after[key].chunk(3)[0], q)
    options = VerifyOptions(stages=("structure", "weights"))
    assert verify(load_recipe(tmp_path / "recipe.yaml"), options=options).is_true


@pytest.mark.parametrize("name", ["lokr", "oft", "diff"])
def test_a_kind_trained_on_a_fused_weight_lands_on_its_parts(name: str, tmp_path: Path) -> None:
    """The other way: the base, Flux in diffusers' layout, splits what the adapter was trained on in one."""
    size, values = 8, b.Values(5)
    files = {
        "lokr": lokr_slots(3, 3 * size),
        "diff": {".diff": values(3 * size, size, size=0.4)},
        "oft": {".oft_blocks": values(2, 12, 12, size=0.2)},  # a block spans q and half of k
    }
    attention = "transformer_blocks.0.attn"
    parts = [f"{attention}.{name}.weight" for name in ("to_q", "to_k", "to_v")]
    base = {key: values(size, size) for key in parts}
    others = ("transformer_blocks.0.norm1_context.linear", "single_transformer_blocks.0.proj_mlp", "x_embedder")
    others += ("time_text_embed.text_embedder.linear_1", f"{attention}.add_q_proj")
    base |= {f"{name}.weight": values(size, size) for name in others}
    b.save(tmp_path / "base.safetensors", base)
    tensors = {f"lora_unet_double_blocks_0_img_attn_qkv{suffix}": tensor for suffix, tensor in files[name].items()}
    b.save(tmp_path / "lora.safetensors", tensors)
    after = load_file(b.bake_sd1(tmp_path))
    assert {key for key in base if not torch.equal(base[key], after[key])} == set(parts)
    weight = torch.cat([base[key] for key in parts]).double()
    slots = {suffix.removeprefix("."): tensor.double().numpy() for suffix, tensor in files[name].items()}
    place = PlaceOf(slice(0, 3 * size), (3 * size, size), OftSettings(kohya=False))
    wanted = torch.from_numpy(np.array(work_out(name, slots, weight.numpy(), place, 1.0)))
    found = torch.cat([after[key] for key in parts])
    b.assert_rounded_once(found, wanted, terms=[wanted.abs().max().expand(wanted.shape) * 4])
    options = VerifyOptions(stages=("structure", "weights"))
    assert verify(load_recipe(tmp_path / "recipe.yaml"), options=options).is_true


GROUPED = {"to_q": (0, 8), "to_k": (8, 12), "to_v": (12, 16)}
"""The rows of a fused projection whose keys and values have half as many heads as its queries."""


def krea(layout: str, weights: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Make Krea 2 with so many blocks, each of whose q, k and v are these rows; "krea" has its maker's names."""
    made = {
        "text_fusion.projector.weight": torch.ones(1, 4),
        "transformer_blocks.0.attn.to_gate.weight": torch.ones(8, 8),
    }
    for number, weight in enumerate(weights):
        made |= {
            f"transformer_blocks.{number}.attn.{name}.weight": weight[start:stop].clone()
            for name, (start, stop) in GROUPED.items()
        }
    if layout == "diffusers":
        return made
    for old, new in (("transformer_blocks", "blocks"), (".attn.to_", ".attn.w"), ("text_fusion", "txtfusion")):
        made = {key.replace(old, new).replace(".wgate", ".gate"): tensor for key, tensor in made.items()}
    return made


@pytest.mark.parametrize("layout", ["krea", "diffusers"])
def test_every_kind_lands_on_q_k_and_v_that_it_was_trained_on_in_one(layout: str, tmp_path: Path) -> None:
    """SimpleTuner's `to_qkv`, on a base that has them apart, with fewer keys than queries: borders cross factors."""
    chosen = list(cases(LINEAR).items())
    values = b.Values(5)
    weights = [values(*LINEAR) for _ in chosen]
    b.save(tmp_path / "base.safetensors", krea(layout, weights))
    lora = {
        f"{case.prefix}transformer_blocks_{number}_attn_to_qkv{suffix}": tensor
        for number, (_, case) in enumerate(chosen)
        for suffix, (_, tensor) in tensors_of(case).items()
    }
    b.save(tmp_path / "lora.safetensors", lora)
    after = load_file(b.bake_sd1(tmp_path, loras=[{"path": "lora.safetensors", "strength": 0.7}]))
    before = krea(layout, weights)
    assert after.keys() == before.keys()
    for number, (name, case) in enumerate(chosen):
        keys = [key for key in krea(layout, weights) if f"blocks.{number}.attn" in key and "gate" not in key]
        weight = weights[number].double()
        wanted = weight + 0.7 * (formula(case, weights[number]) - weight)
        found = torch.cat([after[key] for key in keys])
        assert not torch.equal(found, weights[number]), name
        b.assert_rounded_once(found, wanted, terms=[wanted.abs().max().expand(wanted.shape) * 4])
    options = VerifyOptions(stages=("structure", "weights"))
    assert verify(load_recipe(tmp_path / "recipe.yaml"), options=options).is_true


@pytest.mark.parametrize("alpha", [0.02, 10.0, 0.0])
def test_kohyas_oft_for_flux_turns_each_part_as_its_training_does(alpha: float, tmp_path: Path) -> None:
    """q, k, v and mlp of a fused layer, on a base that splits them: each its own blocks and its own bound."""
    sizes, values, block = (8, 8, 8, 32), b.Values(5), "single_transformer_blocks.0"
    parts = [f"{block}.{name}.weight" for name in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")]
    base = {key: values(size, 8) for key, size in zip(parts, sizes, strict=True)}
    others = ("transformer_blocks.0.norm1_context.linear", "x_embedder", "transformer_blocks.0.attn.add_q_proj")
    others += ("time_text_embed.text_embedder.linear_1", "transformer_blocks.0.attn.to_out.0")
    base |= {f"{name}.weight": values(8, 8) for name in others}
    b.save(tmp_path / "base.safetensors", base)
    blocks = [values(4, size // 4, size // 4, size=0.4) for size in sizes]
    out = values(4, 2, 2, size=0.4)
    layer, flat = "oft_unet_single_blocks_0_linear1", "oft_unet_double_blocks_0_img_attn_proj"
    lora = {f"{layer}.oft_blocks.{number}": tensor for number, tensor in enumerate(blocks)}
    lora |= {f"{flat}.oft_blocks.0": out, f"{flat}.alpha": torch.tensor(alpha), f"{layer}.alpha": torch.tensor(alpha)}
    b.save(tmp_path / "lora.safetensors", lora)
    after = load_file(b.bake_sd1(tmp_path))
    turned = [*parts, "transformer_blocks.0.attn.to_out.0.weight"]
    for key, own in zip(turned, [*blocks, out], strict=True):
        count, size, _ = own.shape
        skew = own.double() - own.double().transpose(1, 2)
        skew *= skew.norm().clamp(max=alpha * count * size) / skew.norm()
        eye = torch.eye(size, dtype=torch.float64)
        rotation = (eye + skew) @ (eye - skew).inverse()
        wanted = torch.einsum("knm,knp->kmp", rotation, base[key].double().view(count, size, -1)).reshape(-1, 8)
        b.assert_rounded_once(after[key], wanted, terms=[wanted.abs().max().expand(wanted.shape) * 4])
    assert {key for key in base if not torch.equal(base[key], after[key])} == (set(turned) if alpha else set())
    options = VerifyOptions(stages=("structure", "weights"))
    assert verify(load_recipe(tmp_path / "recipe.yaml"), options=options).is_true


@pytest.mark.parametrize("name", ["lokr", "oft", "diff"])
def test_a_kind_on_a_weight_stored_transposed(name: str, tmp_path: Path) -> None:
    """OpenCLIP keeps text_projection as (in, out); the adapter speaks of (out, in)."""
    b.save(tmp_path / "base.safetensors", b.sdxl(dtype=torch.float32))
    size, values = b.TEXT, b.Values(5)
    files = {
        "lokr": {".lokr_w1": values(2, 4, size=0.4), ".lokr_w2": values((size + 2) // 2, 2, size=0.4)},
        "diff": {".diff": values(size + 2, size, size=0.4)},
        "oft": {".oft_blocks": values(2, 5, 5, size=0.3)},
    }
    b.save(tmp_path / "lora.safetensors", as_names("text_projection", files[name]))
    before = load_file(tmp_path / "base.safetensors")
    after = load_file(b.bake_sd1(tmp_path))
    (key,) = (key for key in before if not torch.equal(before[key], after[key]))
    assert key.endswith("text_projection")
    weight = before[key].T.double()
    slots = {suffix.removeprefix("."): tensor.double().numpy() for suffix, tensor in files[name].items()}
    place = PlaceOf(slice(0, size + 2), (size + 2, size), OftSettings(kohya=False))
    wanted = torch.from_numpy(np.array(work_out(name, slots, np.ascontiguousarray(weight.numpy()), place, 1.0)))
    b.assert_rounded_once(after[key].T, wanted, terms=[wanted.abs().max().expand(wanted.shape) * 4])
