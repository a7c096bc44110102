"""What a `peft_version` means: laws that PEFT changed are read as the PEFT did that trained the file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lorabake import VerifyOptions, load_recipe, verify
from lorabake.adapters import peft_fields
from lorabake.baking import plan
from lorabake.errors import LorabakeError
from lorabake.keymap.adapter_config import read_config
from lorabake.keymap.peft import PeftConfig
from tests import builders as b

ROWS, COLUMNS = 6, 8
MODULE = "base_model.model.layer"
OLD: dict[str, object] = {"peft_version": "0.13.2"}
UNSAID: list[dict[str, object]] = [{}, {"peft_version": None}, {"peft_version": "unknown"}]
NEWER: list[dict[str, object]] = [
    {"peft_version": "0.14.0"},
    {"peft_version": "0.21.2.dev0@5f3c"},
    {"exclude_modules": None},
]


def config(**fields: object) -> PeftConfig:
    return read_config(fields, "adapter_config.json", peft_fields())


def weight(*kernel: int) -> torch.Tensor:
    return b.Values(1)(ROWS, COLUMNS, *kernel)


def baked(folder: Path, tensors: Mapping[str, torch.Tensor], base: torch.Tensor, **said: object) -> torch.Tensor:
    """Bake one layer and verify it."""
    b.save(folder / "base.safetensors", {"layer.weight": base})
    (folder / "adapter").mkdir(exist_ok=True)
    b.save(folder / "adapter" / "adapter_model.safetensors", {MODULE + key: each for key, each in tensors.items()})
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(said))
    path = b.bake_sd1(folder, loras=["adapter"])
    result = verify(load_recipe(folder / "recipe.yaml"), options=VerifyOptions(stages=("structure", "weights")))
    assert result.is_true, result.findings
    return load_file(path)["layer.weight"]


# -- LoKr's scale: before 0.14 there was none ---------------------------------------------------------------------


def test_lokr_has_had_a_scale_since_0_14() -> None:
    said = {"peft_type": "LOKR", "r": 4, "alpha": 8}
    assert config(**said, **OLD).scale_of("layer") == 1
    assert all(config(**said, **other).scale_of("layer") == 2 for other in NEWER + UNSAID)
    assert not any(config(**said, **known).doubt("layer") for known in [OLD, *NEWER])
    assert not any(config(**{**said, "alpha": 4}, **unsaid).doubt("layer") for unsaid in UNSAID)
    for unsaid in UNSAID:
        assert config(**said, **unsaid).doubt("layer") == "PEFT before 0.14 scaled such a module by 1 and not by 2"


def test_a_lokr_is_baked_by_its_version(tmp_path: Path) -> None:
    factors = {".lokr_w1": b.Values(2)(2, 2), ".lokr_w2": b.Values(3)(3, 4)}
    for version, scale in (("0.13.2", 1.0), ("0.21.2", 2.0)):
        found = baked(tmp_path, factors, weight(), peft_type="LOKR", r=4, alpha=8, peft_version=version)
        wanted = weight() + scale * torch.kron(*factors.values())
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


# -- patterns: before 0.14 one name was looked up in both ---------------------------------------------------------


def test_ranks_and_alphas_were_once_looked_up_by_one_name() -> None:
    said = {"r": 4, "lora_alpha": 4, "rank_pattern": {"q": 8}, "alpha_pattern": {"layers.0.q": 16}}
    assert config(**said, **OLD).scale_of("model.layers.0.q") == 0.5
    assert all(config(**said, **other).scale_of("model.layers.0.q") == 2 for other in NEWER + UNSAID)
    assert config(**said).scale_of("model.layers.1.q") == 0.5
    for unsaid in UNSAID:
        assert config(**said, **unsaid).doubt("model.layers.0.q").endswith("scaled such a module by 0.5 and not by 2")
        assert not config(**said, **unsaid).doubt("model.layers.1.q")


def test_the_same_names_in_both_patterns_leave_no_doubt() -> None:
    said = {"r": 4, "lora_alpha": 4, "rank_pattern": {"q": 8, "k": 2}, "alpha_pattern": {"q": 16}}
    assert [config(**said).scale_of(f"layers.0.{name}") for name in "qkv"] == [2, 2, 1]
    assert not any(config(**said).doubt(f"layers.0.{name}") for name in "qkv")


# -- OFT's series: before 0.18 its last term counted in full ------------------------------------------------------


def turned(packed: torch.Tensor, terms: int, last: float) -> torch.Tensor:
    """Turn the weight's inputs, block by block, by I + 2Q + … + last·Q^(terms − 1)."""
    size, blocks = 4, []
    for row in packed.double():
        skew = torch.zeros(size, size, dtype=torch.float64)
        skew[tuple(torch.triu_indices(size, size, 1))] = row
        skew = skew - skew.T
        powers = [torch.linalg.matrix_power(skew, power) for power in range(terms)]
        factors = [1.0, *[2.0] * (terms - 2), last]
        blocks.append(sum((f * p for f, p in zip(factors, powers, strict=True)), torch.zeros_like(skew)))
    return weight().double() @ torch.block_diag(*blocks).T


@pytest.mark.parametrize("count", [3, 4, 5, 7])
def test_the_last_term_of_ofts_series_depends_on_the_version(count: int, tmp_path: Path) -> None:
    packed = b.Values(4)(2, 6, size=0.3)
    said = {"peft_type": "OFT", "use_cayley_neumann": True, "num_cayley_neumann_terms": count}
    for version, terms, last in (("0.17.1", count, 2.0), ("0.18.0", 4 if count == 3 else count, 1.0)):
        found = baked(tmp_path, {".oft_R.weight": packed}, weight(), **said, peft_version=version)
        torch.testing.assert_close(found.double(), turned(packed, terms, last), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("unsaid", [*UNSAID, {"exclude_modules": None}], ids=str)
def test_a_series_of_no_version_is_refused_if_the_versions_differ(
    unsaid: Mapping[str, object], tmp_path: Path
) -> None:
    packed = {".oft_R.weight": b.Values(4)(2, 6, size=0.3)}
    said = {"peft_type": "OFT", "use_cayley_neumann": True, **unsaid}
    with pytest.raises(LorabakeError, match=r"the series of PEFT before 0\.18 was another: add .* the peft_version"):
        baked(tmp_path, packed, weight(), **said)
    found = baked(tmp_path, packed, weight(), **said, num_cayley_neumann_terms=2)
    torch.testing.assert_close(found.double(), turned(packed[".oft_R.weight"], 2, 2.0), rtol=1e-5, atol=1e-5)


# -- BOFT's convolutions: before 0.14 their values were mixed up --------------------------------------------------


def boft(kernel: tuple[int, ...]) -> dict[str, torch.Tensor]:
    columns = weight(*kernel)[0].numel()
    lengths = b.Values(6)(*((1, ROWS) if kernel else (ROWS, 1))) + 1
    return {".boft_R": b.Values(5)(1, columns // 4, 4, 4, size=0.3), ".boft_s": lengths}


def test_boft_on_a_convolution_is_refused_if_it_is_older_than_0_14(tmp_path: Path) -> None:
    with pytest.raises(LorabakeError, match=r"(?s)before 0.14 mixed up .*\nMerge it with the PEFT that trained it"):
        baked(tmp_path, boft((2, 2)), weight(2, 2), peft_type="BOFT", **OLD)
    linear, newer = (baked(tmp_path, boft(()), weight(), peft_type="BOFT", **said) for said in (OLD, NEWER[1]))
    assert torch.equal(linear, newer)


# -- what nothing says is read as today's PEFT reads it, with a note ------------------------------------------------

UNCLEAR: dict[str, tuple[dict[str, torch.Tensor], torch.Tensor, dict[str, object]]] = {
    "LoKr": (
        {".lokr_w1": b.Values(2)(2, 2), ".lokr_w2": b.Values(3)(3, 4)},
        weight(),
        {"peft_type": "LOKR", "r": 4, "alpha": 8},
    ),
    "patterns": (
        {".lora_A.weight": b.Values(2)(2, COLUMNS), ".lora_B.weight": b.Values(3)(ROWS, 2)},
        weight(),
        {"r": 4, "lora_alpha": 4, "rank_pattern": {"layer": 2}, "alpha_pattern": {"l.*r": 16}},
    ),
    "BOFT": (boft((2, 2)), weight(2, 2), {"peft_type": "BOFT"}),
}


@pytest.mark.parametrize("case", UNCLEAR)
def test_what_no_version_says_is_read_as_today_with_a_note(case: str, tmp_path: Path) -> None:
    tensors, base, said = UNCLEAR[case]
    found = []
    for known, unclear in [*((each, False) for each in NEWER), *((each, True) for each in UNSAID)]:
        found.append(baked(tmp_path, tensors, base, **said, **known))
        (ledger,) = plan(load_recipe(tmp_path / "recipe.yaml")).ledgers
        notes = [
            note for note in ledger.notes if note.startswith("no peft_version says which PEFT trained it: 1 modul")
        ]
        assert len(notes) == unclear
    assert not torch.equal(found[0], base)
    assert all(torch.equal(found[0], other) for other in found)


# -- Bone is MiSS -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [True, "bat"])
def test_bone_is_an_older_name_of_miss(mode: object, tmp_path: Path) -> None:
    base = weight()[:4]
    block = b.Values(7)(*((2, 2, 2) if mode == "bat" else (2, 4)))
    names = (("MISS", ".miss_block"), ("BONE", ".bone_block"))
    miss, bone = (
        baked(tmp_path, {slot: block}, base, peft_type=kind, r=2, init_weights=mode) for kind, slot in names
    )
    assert torch.equal(miss, bone)
    if mode != "bat":
        torch.testing.assert_close(bone, base + block.T.repeat(1, COLUMNS // 2), rtol=1e-6, atol=1e-6)
