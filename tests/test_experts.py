"""Experts of a mixture: apart or stacked on the disk, trained one by one or all in one, by any version of PEFT."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lorabake import VerifyOptions, load_recipe, verify
from lorabake.adapters.experts import ExpertSettings
from lorabake.baking import plan
from lorabake.components.experts import LAYOUTS
from lorabake.errors import LorabakeError
from lorabake.keymap.adapter_config import read_config
from lorabake.verification.findings import Status
from tests import builders as b

E, R = 4, 2
MLP = "model.layers.0.mlp"
EXPERTS = f"{MLP}.experts"
ROOT = "base_model.model."
OPTIONS = VerifyOptions(stages=("structure", "weights"))
Tensors = dict[str, torch.Tensor]
Stacks = dict[str, torch.Tensor]
"""What the model multiplies by, as (experts, out, in): gate, up and down."""


def matrices(hidden: int, inner: int) -> Stacks:
    """Make the experts of one layer."""
    values = b.Values(5)
    sizes = {"gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}
    return {role: values(E, *size) for role, size in sizes.items()}


# -- how bases store them: matrices -> tensors, and back ----------------------------------------------------


def fused(stacks: Stacks, *, interleaved: bool = False) -> torch.Tensor:
    """Put gate's and up's outputs together."""
    pair = torch.stack((stacks["gate"], stacks["up"]), dim=2 if interleaved else 1)
    return pair.flatten(1, 2)


def halves(gate_up: torch.Tensor, *, interleaved: bool = False) -> Stacks:
    """Take them apart again."""
    pair = gate_up.unflatten(1, (-1, 2) if interleaved else (2, -1))
    return dict(zip(("gate", "up"), pair.unbind(2 if interleaved else 1), strict=True))


NAMES = {
    "proj": {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"},
    "w": {"gate": "w1", "up": "w3", "down": "w2"},
}


def apart(stacks: Stacks, naming: str = "proj", place: str = EXPERTS) -> Tensors:
    names = NAMES[naming]
    return {f"{place}.{e}.{names[role]}.weight": each[e].clone() for role, each in stacks.items() for e in range(E)}


def gathered(tensors: Tensors, naming: str = "proj", place: str = EXPERTS) -> Stacks:
    names = NAMES[naming]
    return {
        role: torch.stack([tensors[f"{place}.{e}.{name}.weight"] for e in range(E)]) for role, name in names.items()
    }


def stored(stacks: Stacks, *, turned: bool = False, interleaved: bool = False) -> Tensors:
    whole = {"gate_up_proj": fused(stacks, interleaved=interleaved), "down_proj": stacks["down"]}
    return {f"{EXPERTS}.{name}": each.mT.contiguous() if turned else each.clone() for name, each in whole.items()}


def unstored(tensors: Tensors, *, turned: bool = False, interleaved: bool = False) -> Stacks:
    gate_up, down = (tensors[f"{EXPERTS}.{name}"] for name in ("gate_up_proj", "down_proj"))
    if turned:
        gate_up, down = gate_up.mT, down.mT
    return halves(gate_up, interleaved=interleaved) | {"down": down}


# model_type, how its experts become tensors, how these become experts again, whether PEFT sees them as (in, out)
Base = tuple[str, Callable[[Stacks], Tensors], Callable[[Tensors], Stacks]]
BASES: dict[str, Base] = {
    "apart": ("qwen3_moe", apart, gathered),
    "stacked": ("qwen3_5_moe", stored, unstored),
    "turned": (
        "llama4_text",
        lambda stacks: stored(stacks, turned=True),
        lambda tensors: unstored(tensors, turned=True),
    ),
    "turned and interleaved": (
        "gpt_oss",
        lambda stacks: stored(stacks, turned=True, interleaved=True),
        lambda tensors: unstored(tensors, turned=True, interleaved=True),
    ),
}


def write(folder: Path, base: str, stacks: Stacks, lora: Tensors, config: Mapping[str, object] | None) -> None:
    """Write a base's folder and an adapter's, with a router and a norm beside the experts."""
    model_type, as_tensors, _ = BASES[base]
    values = b.Values(9)
    others = {f"{MLP}.gate.weight": values(E, 8), "model.norm.weight": values(8)}
    for name in ("base", "adapter"):
        (folder / name).mkdir(exist_ok=True)
    b.save(folder / "base" / "model.safetensors", as_tensors(stacks) | others)
    (folder / "base" / "config.json").write_text(json.dumps({"model_type": model_type}))
    b.save(folder / "adapter" / "adapter_model.safetensors", lora)
    if config is not None:
        said = {"peft_type": "LORA", "r": R, "lora_alpha": 2 * R, **config}
        (folder / "adapter" / "adapter_config.json").write_text(json.dumps(said))


def baked(folder: Path, base: str, **recipe: object) -> Stacks:
    """Bake, verify, ask that nothing but experts changed, and return them."""
    path = b.bake_sd1(folder, **{"base": "base", "loras": ["adapter"], "output": {"path": "out"}, **recipe})
    before, after = (load_file(place / "model.safetensors") for place in (folder / "base", path))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before if ".experts." not in key)
    verification = verify(load_recipe(folder / "recipe.yaml"), options=OPTIONS)
    assert verification.status is Status.PASS, verification.findings
    return BASES[base][2](after)


def assert_close(found: Stacks, wanted: Stacks) -> None:
    for role, each in wanted.items():
        torch.testing.assert_close(found[role], each, rtol=1e-5, atol=1e-5)


# -- PEFT's `target_parameters`, version by version -------------------------------------------------------------


def trained(first: int, second: int, reads: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Make A (experts · r, side) and B (other side, r · experts) for a parameter (experts, first, second).

    `reads` is the side that A reads. Return them and PEFT's change: ore, eri -> eio where that is the first one.
    """
    values = b.Values(first + second + reads)
    inputs, outputs = (first, second) if reads == 1 else (second, first)
    a, up = values(E * R, inputs, size=0.3), values(outputs, E * R, size=0.3)
    order = "ore,eri->eio" if reads == 1 else "ore,eri->eoi"
    return a, up, 2.0 * torch.einsum(order, up.reshape(outputs, R, E), a.reshape(E, R, inputs))


def parameters(stacks: Stacks, base: str) -> Stacks:
    """Return the parameters that PEFT saw, in memory: gate_up_proj and down_proj."""
    turned, interleaved = base.startswith("turned"), base.endswith("interleaved")
    whole = {"gate_up_proj": fused(stacks, interleaved=interleaved), "down_proj": stacks["down"]}
    return {name: each.mT if turned else each for name, each in whole.items()}


def adapter(stacks: Stacks, base: str, reads: int, names: tuple[str, ...]) -> tuple[Tensors, Stacks]:
    """Make PEFT's adapter of some parameters, nested as PEFT does, and what its merge makes of the experts."""
    seen = {name: each.clone() for name, each in parameters(stacks, base).items()}
    lora: Tensors = {}
    for depth, name in enumerate(reversed(names)):
        a, up, change = trained(*seen[name].shape[1:], reads)
        module = ROOT + EXPERTS + ".base_layer" * depth
        lora |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": up}
        seen[name] = seen[name] + change
    turned, interleaved = base.startswith("turned"), base.endswith("interleaved")
    back = {name: each.mT if turned else each for name, each in seen.items()}
    return lora, halves(back["gate_up_proj"], interleaved=interleaved) | {"down": back["down_proj"]}


BOTH = ("gate_up_proj", "down_proj")
LAWS = [
    # (base, version, the side that A reads)
    *((base, version, 1) for base in BASES for version in ("0.17.0", "0.18.0", "0.18.1", "0.18.1.post1")),
    *((base, version, 2) for base in ("apart", "stacked", "turned") for version in ("0.19.1", "0.20.0", "0.21.2")),
    ("turned and interleaved", "0.19.0", 2),  # it exchanged the sides of what transformers marks, and of nothing else
    *(("turned and interleaved", version, 1) for version in ("0.19.1", "0.19.2.dev0@5f3c", "0.21.2", "1.0")),
    ("apart", "0.17.1.dev0@UNKNOWN", 1),
    ("apart", "0.20.0.dev0", 2),
]


def config_of(version: object, names: tuple[str, ...] = BOTH) -> dict[str, object]:
    said: dict[str, object] = {"target_parameters": [f"mlp.experts.{name}" for name in names]}
    return said if version is ... else said | {"peft_version": version}


def square(folder: Path, base: str, reads: int, version: object) -> Stacks:
    """Write an adapter of one square stack, and return what PEFT's merge makes of the experts."""
    hidden, inner, name = (8, 8, "down_proj") if base.startswith("turned") else (8, 4, "gate_up_proj")
    stacks = matrices(hidden, inner)
    lora, wanted = adapter(stacks, base, reads, (name,))
    write(folder, base, stacks, lora, config_of(version, (name,)))
    return wanted


@pytest.mark.parametrize(("base", "version", "reads"), LAWS)
def test_the_version_says_which_side_a_reads_of_a_square_stack(
    base: str, version: str, reads: int, tmp_path: Path
) -> None:
    square(tmp_path, base, reads, version)
    b.recipe(tmp_path, base="base", loras=["adapter"], output={"path": "out"})
    (patch,) = plan(load_recipe(tmp_path / "recipe.yaml")).patches
    assert patch.settings == ExpertSettings(reads)


@pytest.mark.parametrize(
    ("base", "version", "reads"),
    [
        ("apart", "0.18.1", 1),
        ("apart", "0.21.2", 2),
        ("turned", "0.19.1", 2),
        ("turned and interleaved", "0.21.2", 1),
    ],
)
def test_a_square_stack_is_baked_as_peft_merges_it(base: str, version: str, reads: int, tmp_path: Path) -> None:
    wanted = square(tmp_path, base, reads, version)
    assert_close(baked(tmp_path, base), wanted)


UNKNOWN = (..., None, "", "main", "0.18.2.dev0@5f3c", "0.19.0", "0.19.1.dev0", 3)


@pytest.mark.parametrize("version", UNKNOWN, ids=str)
def test_without_a_version_a_square_stack_is_refused(version: object, tmp_path: Path) -> None:
    square(tmp_path, "apart", 1, version)
    b.recipe(tmp_path, base="base", loras=["adapter"], output={"path": "out"})
    words = r"nothing tells which side its A reads\n.*add to adapter_config.json"
    with pytest.raises(LorabakeError, match=words) as caught:
        plan(load_recipe(tmp_path / "recipe.yaml"))
    assert "another family" not in str(caught.value)


@pytest.mark.parametrize(("reads", "version"), [(1, "0.21.2"), (2, "0.18.1"), (2, ...)], ids=str)
@pytest.mark.parametrize("base", BASES)
def test_where_sides_are_not_as_long_the_shapes_tell(base: str, reads: int, version: object, tmp_path: Path) -> None:
    """A square stack of the same file was counted as its other ones were, whatever the version should say."""
    stacks = matrices(8, 4 if base in ("apart", "stacked") else 8)
    lora, wanted = adapter(stacks, base, reads, BOTH)
    write(tmp_path, base, stacks, lora, config_of(version))
    assert_close(baked(tmp_path, base), wanted)


def test_what_transformers_turns_round_on_loading_is_refused_where_it_is_square(tmp_path: Path) -> None:
    stacks = matrices(8, 8)
    lora, _ = adapter(stacks, "turned", 1, ("down_proj",))
    write(tmp_path, "turned", stacks, lora, config_of("0.21.2", ("down_proj",)))
    (tmp_path / "base" / "config.json").write_text('{"text_config": {"model_type": "qwen3_vl_moe_text"}}')
    with pytest.raises(LorabakeError, match="nothing tells which side"):
        baked(tmp_path, "turned")


def test_with_one_expert_peft_adds_its_product_as_it_is(tmp_path: Path) -> None:
    weight = b.Values(1)(1, 8, 8)
    (tmp_path / "base").mkdir()
    (tmp_path / "adapter").mkdir()
    b.save(
        tmp_path / "base" / "model.safetensors",
        {f"{EXPERTS}.down_proj": weight, f"{EXPERTS}.gate_up_proj": torch.ones(1, 16, 8)},
    )
    a, up = b.Values(2)(R, 8), b.Values(3)(8, R)
    lora = {f"{ROOT}{EXPERTS}.lora_A.weight": a, f"{ROOT}{EXPERTS}.lora_B.weight": up}
    b.save(tmp_path / "adapter" / "adapter_model.safetensors", lora)
    said = {"peft_type": "LORA", "r": R, "lora_alpha": R, **config_of("0.18.0", ("down_proj",))}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(said))
    path = b.bake_sd1(tmp_path, base="base", loras=["adapter"], output={"path": "out"})
    after = load_file(path / "model.safetensors")[f"{EXPERTS}.down_proj"]
    torch.testing.assert_close(after, weight + up @ a, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("version", "release", "before"),
    [
        ("0.18.1", (0, 19, 0), True),
        ("0.19.0", (0, 19, 0), False),
        ("0.19.0", (0, 19, 1), True),
        ("0.19.1", (0, 19, 1), False),
        ("0.20", (0, 19, 1), False),
        ("1.0.0", (0, 19, 1), False),
        ("0.18.1+local", (0, 19, 0), True),
        ("0.18.1.post2", (0, 18, 1), False),
        ("0.17.2.dev0@abc", (0, 18, 0), None),
        ("0.17.2.dev0@abc", (0, 19, 0), True),
        ("0.18.2.dev0@abc", (0, 18, 0), False),
        ("0.18.2.dev0@abc", (0, 18, 1), False),
        ("0.18.2.dev0@abc", (0, 19, 0), None),
        ("0.18.2.dev0", (0, 19, 1), True),
        ("0.19.1.dev0", (0, 19, 1), None),
        ("0.19.2.dev0", (0, 19, 1), False),
        ("0.19.0rc1", (0, 19, 0), None),
        (None, (0, 19, 0), None),
        ("abc", (0, 19, 0), None),
        (..., (0, 19, 0), None),
    ],
)
def test_a_version_is_before_a_release_or_not_or_that_is_unknown(
    version: object, release: tuple[int, ...], before: bool | None
) -> None:
    said = {"peft_type": "LORA"} | ({} if version is ... else {"peft_version": version})
    assert read_config(said, "c", {"LORA": frozenset()}).is_before(*release) is before


# -- one LoRA an expert ---------------------------------------------------------------------------------------------


def singles(
    stacks: Stacks, names: Mapping[str, str], which: tuple[int, ...] = tuple(range(E))
) -> tuple[Tensors, Stacks]:
    """Make a LoRA for each matrix of some experts, and what becomes of all."""
    values, lora, after = (
        b.Values(3),
        dict[str, torch.Tensor](),
        {role: each.clone() for role, each in stacks.items()},
    )
    for e in which:
        for role, name in names.items():
            _, out, inputs = stacks[role].shape
            down, up = values(R, inputs, size=0.3), values(out, R, size=0.3)
            module = f"{ROOT}{EXPERTS}.{e}.{name}"
            lora |= {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}
            after[role][e] += 2.0 * up @ down
    return lora, after


@pytest.mark.parametrize(("inner", "naming", "which"), [(6, "w", tuple(range(E))), (8, "proj", (1, 2))], ids=str)
@pytest.mark.parametrize("base", BASES)
def test_one_lora_an_expert_lands_on_its_part(
    base: str, inner: int, naming: str, which: tuple[int, ...], tmp_path: Path
) -> None:
    """Gate and up are halves of the stack, or every other row of it; an inner size of 8 makes `down` square."""
    stacks = matrices(8, inner)
    lora, wanted = singles(stacks, NAMES[naming], which)
    write(tmp_path, base, stacks, lora, {})
    found = baked(tmp_path, base)
    assert_close(found, wanted)
    for role, each in stacks.items():
        left = [e for e in range(E) if e not in which]
        assert torch.equal(found[role][left], each[left]), "experts without a LoRA keep their bytes"


@pytest.mark.parametrize("base", ["stacked", "turned", "turned and interleaved"])
def test_a_lora_of_gates_alone_leaves_up_as_it_is(base: str, tmp_path: Path) -> None:
    stacks = matrices(8, 6)
    lora, wanted = singles(stacks, {"gate": "gate_proj"})
    write(tmp_path, base, stacks, lora, {})
    found = baked(tmp_path, base, loras=[{"path": "adapter", "strength": 1.0}])
    assert_close(found, wanted)
    assert all(torch.equal(found[role], stacks[role]) for role in ("up", "down"))


@pytest.mark.parametrize("base", BASES)
def test_one_lora_for_gate_and_up_of_each_expert(base: str, tmp_path: Path) -> None:
    """Its rows are those of the stack, as it lies."""
    stacks, values = matrices(8, 6), b.Values(3)
    whole = fused(stacks, interleaved=base.endswith("interleaved"))
    lora: Tensors = {}
    for e in range(E):
        down, up = values(R, 8, size=0.3), values(12, R, size=0.3)
        module = f"{ROOT}{EXPERTS}.{e}.gate_up_proj"
        lora |= {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}
        whole[e] += 2.0 * up @ down
    write(tmp_path, base, stacks, lora, {})
    assert_close(baked(tmp_path, base), halves(whole, interleaved=base.endswith("interleaved")))


def kinds_on(weight: torch.Tensor) -> Iterator[tuple[str, Tensors, torch.Tensor, dict[str, object]]]:
    """Yield a kind's name, its tensors for one expert's matrix, what becomes of that, and its configuration."""
    values, (out, inputs) = b.Values(int(weight.abs().sum() * 100)), weight.shape
    down, up = values(R, inputs, size=0.3), values(out, R, size=0.3)
    plain = {".lora_A.weight": down, ".lora_B.weight": up}
    length = values(out).abs() + 0.5
    mixed = weight + 2.0 * up @ down
    yield (
        "dora",
        plain | {".lora_magnitude_vector": length},
        mixed * (length / mixed.norm(dim=1))[:, None],
        {"use_dora": True},
    )
    yield "rslora", plain, weight + 2 * R / R**0.5 * up @ down, {"use_rslora": True}
    one, other = (
        (values(out, R, size=0.5), values(R, inputs, size=0.5)),
        (values(out, R), values(R, inputs, size=0.5)),
    )
    loha = {
        f".hada_w{k}_{side}": part
        for k, pair in (("1", one), ("2", other))
        for side, part in zip("ab", pair, strict=True)
    }
    yield (
        "loha",
        loha,
        weight + 2.0 * (one[0] @ one[1]) * (other[0] @ other[1]),
        {"peft_type": "LOHA", "alpha": 2 * R, "lora_alpha": None},
    )
    first, second = values(2, 2), values(out // 2, inputs // 2, size=0.3)
    lokr = {".lokr_w1": first, ".lokr_w2": second}
    yield (
        "lokr",
        lokr,
        weight + 2.0 * torch.kron(first, second),
        {"peft_type": "LOKR", "alpha": 2 * R, "lora_alpha": None},
    )


@pytest.mark.parametrize(
    ("kind", "compose"), [("dora", "sum"), ("dora", "sequential"), ("loha", "sum"), ("lokr", "sequential")]
)
@pytest.mark.parametrize("base", ["stacked", "turned and interleaved"])
def test_any_kind_on_single_experts(base: str, kind: str, compose: str, tmp_path: Path) -> None:
    stacks, lora = matrices(8, 6), dict[str, torch.Tensor]()
    wanted, config = {role: each.clone() for role, each in stacks.items()}, dict[str, object]()
    for role, name in NAMES["proj"].items():
        for e in range(E):
            for found, tensors, after, said in kinds_on(stacks[role][e]):
                if found == kind:
                    lora |= {f"{ROOT}{EXPERTS}.{e}.{name}{suffix}": tensor for suffix, tensor in tensors.items()}
                    wanted[role][e], config = after, said
    write(tmp_path, base, stacks, lora, config)
    assert_close(baked(tmp_path, base, compose=compose), wanted)


def test_two_loras_on_experts_are_summed(tmp_path: Path) -> None:
    """One of them by single experts, the other PEFT's of all in one, on the same stack."""
    base, stacks = "turned and interleaved", matrices(8, 6)
    first, one = singles(stacks, NAMES["proj"])
    second, other = adapter(stacks, base, 1, BOTH)
    write(tmp_path, base, stacks, first, {})
    (tmp_path / "adapter").rename(tmp_path / "first")
    write(tmp_path, base, stacks, second, config_of("0.21.2"))
    loras = [{"path": "first", "strength": 0.5}, {"path": "adapter", "strength": -1.0}]
    wanted = {role: each + 0.5 * (one[role] - each) - (other[role] - each) for role, each in stacks.items()}
    assert_close(baked(tmp_path, base, loras=loras), wanted)


@pytest.mark.parametrize("base", ["stacked", "turned"])
def test_methods_work_on_single_experts_in_stacks(base: str, tmp_path: Path) -> None:
    stacks = matrices(8, 6)
    lora, wanted = singles(stacks, {"down": "down_proj"})
    write(tmp_path, base, stacks, lora, {})
    assert_close(baked(tmp_path, base, method={"name": "ties", "density": 1.0}), wanted)


def test_a_method_that_takes_rows_whole_is_refused_where_gate_and_up_share_them(tmp_path: Path) -> None:
    stacks = matrices(8, 6)
    lora, _ = singles(stacks, NAMES["proj"])
    write(tmp_path, "turned", stacks, lora, {})
    with pytest.raises(LorabakeError, match="The method ties takes rows whole: use sum"):
        baked(tmp_path, "turned", method={"name": "ties", "density": 0.5})


def test_a_block_pattern_names_single_experts(tmp_path: Path) -> None:
    stacks = matrices(8, 6)
    lora, _ = singles(stacks, NAMES["proj"])
    write(tmp_path, "stacked", stacks, lora, {})
    wanted = singles(stacks, NAMES["proj"])[1]
    for role, each in stacks.items():
        wanted[role] = each + 0.5 * (wanted[role] - each)
        wanted[role][1] = each[1]
    blocks = {"*.experts.1.*": 0, "*.mlp.experts.*": 0.5}
    assert_close(baked(tmp_path, "stacked", loras=[{"path": "adapter", "blocks": blocks}]), wanted)


@pytest.mark.parametrize(
    ("config", "names", "words"),
    [
        ({}, {"gate": "gate_proj"}, "the base has gate and up in one stack, and no config.json tells their order"),
        ({"model_type": "unheard_of"}, {"up": "w3"}, "no config.json tells their order"),
        ({"model_type": "qwen3_moe"}, {"down": "out_proj"}, "no such module on the base"),
    ],
)
def test_what_cannot_be_told_of_a_stack_is_refused(
    config: dict[str, str], names: dict[str, str], words: str, tmp_path: Path
) -> None:
    stacks = matrices(8, 6)
    lora, _ = singles(stacks, names)
    write(tmp_path, "stacked", stacks, lora, {})
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    with pytest.raises(LorabakeError, match=words):
        baked(tmp_path, "stacked")


def test_without_a_config_json_the_stacks_shapes_tell_what_down_is(tmp_path: Path) -> None:
    stacks = matrices(8, 6)
    lora, wanted = singles(stacks, {"down": "down_proj"})
    write(tmp_path, "turned", stacks, lora, {})
    (tmp_path / "base" / "config.json").unlink()
    assert_close(baked(tmp_path, "turned"), wanted)


def test_experts_that_the_base_lacks_are_refused(tmp_path: Path) -> None:
    stacks = matrices(8, 6)
    lora, _ = singles(stacks, NAMES["proj"])
    first = {key: tensor.clone() for key, tensor in lora.items() if ".experts.0." in key}
    more = {key.replace(".experts.0.", ".experts.4."): tensor for key, tensor in first.items()}
    write(tmp_path, "stacked", stacks, lora | more, {})
    with pytest.raises(LorabakeError, match="3 of 15 modules have no place on the base"):
        baked(tmp_path, "stacked")


# -- three-sided LoRAs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("one_for_all", "naming"), [("", "proj"), ("A", "w"), ("AB", "proj")])
@pytest.mark.parametrize("base", BASES)
def test_loras_of_three_sides(base: str, naming: str, one_for_all: str, tmp_path: Path) -> None:
    """A (experts, r, in) and B (experts, out, r), where either may be one for all experts."""
    stacks, values, lora = matrices(8, 8), b.Values(3), dict[str, torch.Tensor]()
    wanted = {}
    for role, name in NAMES[naming].items():
        _, out, inputs = stacks[role].shape
        a = values(1 if "A" in one_for_all else E, R, inputs, size=0.3)
        up = values(1 if "B" in one_for_all else E, out, R, size=0.3)
        lora |= {f"{ROOT}{EXPERTS}.{name}.lora_A.weight": a, f"{ROOT}{EXPERTS}.{name}.lora_B.weight": up}
        wanted[role] = stacks[role] + 2.0 * torch.einsum("eor,eri->eoi", up.expand(E, -1, -1), a.expand(E, -1, -1))
    write(tmp_path, base, stacks, lora, {})
    assert_close(baked(tmp_path, base), wanted)


@pytest.mark.parametrize("base", BASES)
def test_loras_of_three_sides_on_gate_and_up_in_one(base: str, tmp_path: Path) -> None:
    stacks, values, interleaved = matrices(8, 6), b.Values(3), base.endswith("interleaved")
    a, up = values(E, R, 8, size=0.3), values(E, 12, R, size=0.3)
    module = f"{EXPERTS}.gate_up_proj"
    write(
        tmp_path,
        base,
        stacks,
        {f"{module}.lora_A": a, f"{module}.lora_B": up, f"{module}.alpha": torch.tensor(3.0)},
        None,
    )
    whole = fused(stacks, interleaved=interleaved) + 1.5 * torch.einsum("eor,eri->eoi", up, a)
    assert_close(baked(tmp_path, base), halves(whole, interleaved=interleaved))


def test_a_lora_of_peft_whose_module_names_its_stack(tmp_path: Path) -> None:
    stacks = matrices(8, 6)
    lora, wanted = adapter(stacks, "stacked", 2, ("gate_up_proj",))
    named = {key.replace(".experts.", ".experts.gate_up_proj."): tensor for key, tensor in lora.items()}
    write(tmp_path, "stacked", stacks, named, {"peft_version": "0.21.2"})
    assert_close(baked(tmp_path, "stacked"), wanted)


def test_experts_without_a_gate(tmp_path: Path) -> None:
    """Which of two parameters of the same sides PEFT trained, its wrappers tell: the first one lies innermost."""
    values = b.Values(4)
    stacks = {"up": values(E, 6, 8), "down": values(E, 8, 6)}
    base = {f"{EXPERTS}.{e}.{role}_proj.weight": each[e].clone() for role, each in stacks.items() for e in range(E)}
    (tmp_path / "base").mkdir()
    (tmp_path / "adapter").mkdir()
    b.save(tmp_path / "base" / "model.safetensors", base)
    (tmp_path / "base" / "config.json").write_text('{"model_type": "nemotron_h"}')
    lora: Tensors = {}
    wanted = {}
    for wrapper, (role, each) in zip((".base_layer", ""), stacks.items(), strict=True):
        a, up, change = trained(*each.shape[1:], 2)
        module = f"{ROOT}{EXPERTS}{wrapper}"
        lora |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": up}
        wanted[role] = each + change
    b.save(tmp_path / "adapter" / "adapter_model.safetensors", lora)
    said = {"peft_type": "LORA", "r": R, "lora_alpha": 2 * R, **config_of("0.21.2", ("up_proj", "down_proj"))}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(said))
    path = b.bake_sd1(tmp_path, base="base", loras=["adapter"], output={"path": "out"})
    after = load_file(path / "model.safetensors")
    for role, each in wanted.items():
        found = torch.stack([after[f"{EXPERTS}.{e}.{role}_proj.weight"] for e in range(E)])
        torch.testing.assert_close(found, each, rtol=1e-5, atol=1e-5)


# -- the table ------------------------------------------------------------------------------------------------------


def test_the_table_is_transformers_own() -> None:
    """Read the classes of experts in the installed transformers: what they say of themselves, and of which models."""
    found = find_spec("transformers")
    models = Path(found.origin).parent / "models" if found and found.origin else None
    if models is None or not (models.parent / "integrations" / "moe.py").is_file():
        pytest.skip("transformers 5 is not installed")
    seen = set()
    for path in sorted(models.glob("*/modeling_*.py")):
        marks = re.findall(r"^@use_experts_implementation(\(.*\))?$", path.read_text(), re.MULTILINE)
        if not marks:
            continue
        interleaved, turned = "is_concatenated=False" in marks[0], "is_transposed=True" in marks[0]
        name = path.parent.name
        names = {name, f"{name}_text", f"{name}_mm_model"}
        layout = next((layout for models, layout in LAYOUTS if names & {*models}), None)
        assert layout is not None, f"{name}: give it a line in components/experts.py"
        assert layout.interleaved == interleaved, path
        assert turned == (layout.turned and layout.marked is True), path
        seen.add(name)
    assert len(seen) > 40
