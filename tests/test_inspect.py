"""`inspect` knows what a bake knows: what a file is, its kinds, its alphas and its scales, whoever says them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import lorabake
from lorabake.adapters import adapter_slots, kinds, shared, suffixes
from lorabake.keymap.slots import REASONS, UNSUPPORTED, sort_tensors
from lorabake.matching.patches import Patch
from lorabake.tensors.dtypes import decode_scalar
from tests import builders as b
from tests.documents import inspect
from tests.tables import load_table, names
from tests.test_coverage import ELSEWHERE, FORMS, PEFT, Shape

SHAPES: tuple[Shape, ...] = ((16, 8), (16, 8, 3, 3), (16,))

# What `FORMS` has no form of: kind -> tensors of one module, and what adapter_config.json says.
OTHERS: dict[str, tuple[dict[str, Shape], dict[str, object] | None]] = {
    "beft": ({"base_model.model.fc.beft_bias": (16,)}, {"peft_type": "BEFT"}),
    "diff_b": ({"fc.diff_b": (16,)}, None),
    "b_norm": ({"fc.b_norm": (16,)}, None),
    "lora_bias": ({"fc.lora_A.weight": (4, 8), "fc.lora_B.weight": (16, 4), "fc.lora_B.bias": (16,)}, None),
    "mlx": ({"fc.lora_a": (8, 4), "fc.lora_b": (4, 16)}, {"lora_parameters": {"rank": 4, "scale": 20.0}}),
    "oft_diag": ({"fc.oft_diag": (16, 16)}, None),
    "trainable_tokens": (
        {"base_model.model.fc.trainable_tokens_delta": (2, 8)},
        {"peft_type": "TRAINABLE_TOKENS", "token_indices": [0, 1]},
    ),
    "expert_lora": ({"fc.lora_A.weight": (4, 8), "fc.lora_B.weight": (16, 4)}, None),
    "embedding_lora": ({"fc.lora_embedding_A": (4, 16), "fc.lora_embedding_B": (8, 4)}, None),
    "whole": ({"base_model.model.fc.modules_to_save.default.weight": (16, 8)}, {"modules_to_save": ["fc"]}),
    "whole_bias": ({"base_model.model.fc.bias": (16,)}, {"bias": "all"}),
    "set_bias": ({"fc.lora_A.weight": (4, 8), "fc.lora_B.weight": (16, 4), "fc.bias.set_weight": (16,)}, None),
    "set_scale": ({"fc.lora_A.weight": (4, 8), "fc.lora_B.weight": (16, 4), "q_norm.scale": (16,)}, None),
    "ln_tuning_bias": ({"base_model.model.fc.ln_tuning_layers.bias": (16,)}, {"peft_type": "LN_TUNING"}),
    "ia3_peft_bias": (
        {"base_model.model.fc.ia3_l": (16, 1)},
        {"peft_type": "IA3", "target_modules": [], "feedforward_modules": []},
    ),
    "road_bias": (
        {"base_model.model.fc.road_theta": (8,), "base_model.model.fc.road_alpha": (8,)},
        {"peft_type": "ROAD", "variant": "road_1", "group_size": 2},
    ),
    "vblora_topk": (
        {
            "base_model.model.fc.vblora_logits_A_topk_indices": (4, 1, 2),
            "base_model.model.fc.vblora_logits_A_topk_weights": (4, 1, 1),
            "base_model.model.fc.vblora_logits_B_topk_indices": (2, 4, 2),
            "base_model.model.fc.vblora_logits_B_topk_weights": (2, 4, 1),
            "base_model.vblora_vector_bank": (10, 8),
        },
        {"peft_type": "VBLORA", "topk": 2},
    ),
}


def write(folder: Path, shapes: dict[str, Shape], config: dict[str, object] | None) -> Path:
    """Write a file of ones, in a PEFT folder where there is a configuration; return what to open."""
    path = folder / "adapter_model.safetensors" if config else folder / "lora.safetensors"
    b.save(path, {key: torch.ones(shape) for key, shape in shapes.items()})
    if config:
        (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder if config else path


def form_of(name: str) -> tuple[Shape, dict[str, Shape], dict[str, object] | None]:
    """Return the first weight that a form is made for, and its tensors there."""
    _, form, config = FORMS[name]
    shape, slots = next((shape, slots) for shape in SHAPES if (slots := form(shape)))
    start = PEFT if config else ""
    named = {key if key.startswith("base_model.") else f"{start}fc.{key}": size for key, size in slots.items()}
    return shape, named, config


def scale_of(patch: Patch) -> float:
    if patch.scale is not None:
        return patch.scale
    info = patch.tensors.get("alpha")
    if info is None:
        return 1.0
    alpha = decode_scalar(info.dtype, info.file.read_bytes()[info.first.start : info.first.stop])
    return patch.kind.scale(alpha, patch.shapes)


@pytest.mark.parametrize("name", FORMS)
def test_inspect_tells_the_kind_and_the_scale_that_a_bake_applies(name: str, tmp_path: Path) -> None:
    shape, named, config = form_of(name)
    path = write(tmp_path / "adapter", named, config)
    bias = {"fc.bias": torch.zeros(shape[0])} if len(shape) > 1 else {}
    b.save(tmp_path / "base.safetensors", {"fc.weight": torch.zeros(shape), **bias})
    plan = lorabake.plan(lorabake.load_recipe(b.recipe(tmp_path, loras=[str(path.relative_to(tmp_path))])))
    told = inspect(path)
    assert told["what"] == "lora"
    assert told["kinds"] == ({"LoRA with a Tucker core": 1} if name == "Tucker" else plan.ledgers[0].kinds)
    scaled = [patch for patch in plan.patches if patch.kind.has_told_rank]
    assert told["scales"] == {f"{scale_of(patch):g}": 1 for patch in scaled}
    assert told["ranks"] == {str(rank): count for rank, count in plan.ledgers[0].ranks.items()}
    assert told["problems"] == ""


@pytest.mark.parametrize("kind", OTHERS)
def test_inspect_takes_no_adapter_for_a_checkpoint(kind: str, tmp_path: Path) -> None:
    told = inspect(write(tmp_path, *OTHERS[kind]))
    assert told["what"] == "lora"
    title = next(each.title for each in kinds() if each.name == kind)
    assert kind == "expert_lora" or title in told["kinds"]


def test_every_kind_is_inspected() -> None:
    assert OTHERS.keys() == ELSEWHERE


@pytest.mark.parametrize("table", [*names("checkpoint")[::6], "full_flux1_dev_bfl_780", *names("lora")])
def test_what_only_adapters_have_is_in_no_checkpoint(table: str) -> None:
    found = sort_tensors(load_table(table).values(), suffixes(), shared()).modules.values()
    assert any(module.slots.keys() & adapter_slots() for module in found) == (table in names("lora"))


UNBAKED = {
    "OFT in more than four parts": ".oft_blocks.5",
    "OFT of PEFT before 0.16": ".oft_r",
    "DyLoRA in blocks": ".lora_A.3",
    "T-LoRA": ".lambda_layer",
    "nunchaku's LoRA": ".lora_down",
    "HCP-Diffusion's LoRA": ".___.layer.W_down",
}


@pytest.mark.parametrize("kind", UNBAKED)
def test_inspect_says_what_cannot_be_baked_and_why(kind: str, tmp_path: Path) -> None:
    b.save(tmp_path / "lora.safetensors", {f"fc{UNBAKED[kind]}": torch.zeros(4, 4)})
    told = inspect(tmp_path / "lora.safetensors")
    assert (told["what"], told["kinds"]) == ("lora", {kind: 1})
    assert REASONS.get(kind, f"{kind} is not supported by this version") in told["problems"]
    assert {each for _, each in UNSUPPORTED} == UNBAKED.keys()


def test_a_configuration_that_no_bake_takes_is_told_beside_the_facts(tmp_path: Path) -> None:
    b.peft(tmp_path / "adapter", {"fc": b.lora((8, 8))}, init_lora_weights="pissa")
    told = inspect(tmp_path / "adapter")
    assert told["ranks"] == {"2": 1}
    assert "trained against a changed base" in told["problems"]


# -- alphas and scales ----------------------------------------------------------------------------------------------


def test_diffusers_metadata_says_alphas_and_scales(tmp_path: Path) -> None:
    unet, text = (
        "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
    )
    said = {"unet.r": 4, "unet.lora_alpha": 16, "text_encoder.r": 2, "text_encoder.lora_alpha": 1}
    tensors = {
        f"{module}.lora_{part}.weight": torch.ones(shape)
        for module, rank in ((unet, 4), (text, 2))
        for part, shape in (("A", (rank, 8)), ("B", (8, rank)))
    }
    b.save(tmp_path / "lora.safetensors", tensors, metadata={"lora_adapter_metadata": json.dumps(said)})
    told = inspect(tmp_path / "lora.safetensors")
    assert told["alphas"] == {"1 (lora_adapter_metadata)": 1, "16 (lora_adapter_metadata)": 1}
    assert told["scales"] == {"0.5": 1, "4": 1}
    assert told["lora_adapter_metadata"] == {
        "unet": {"r": 4, "lora_alpha": 16.0, "rslora": False},
        "text_encoder": {"r": 2, "lora_alpha": 1.0, "rslora": False},
    }


def test_patterns_of_adapter_config_are_followed(tmp_path: Path) -> None:
    modules = {"fc": b.lora((8, 8), rank=4), "layers.0.q": b.lora((8, 8), rank=2)}
    b.peft(
        tmp_path / "a", modules, r=4, lora_alpha=8, rank_pattern={"q": 2}, alpha_pattern={"q": 1}, use_rslora=False
    )
    told = inspect(tmp_path / "a")
    assert told["scales"] == {"0.5": 1, "2": 1}
    assert told["alphas"] == {"1 (adapter_config)": 1, "8 (adapter_config)": 1}


def test_an_alpha_tensor_goes_before_what_a_configuration_says(tmp_path: Path) -> None:
    b.peft(tmp_path / "a", {"fc": b.lora((8, 8))}, r=2, lora_alpha=8)
    tensors = {"base_model.model.fc.alpha": torch.tensor(6.0), "base_model.model.fc.lora_A.weight": torch.ones(2, 8)}
    b.save(
        tmp_path / "a" / "adapter_model.safetensors",
        tensors | {"base_model.model.fc.lora_B.weight": torch.ones(8, 2)},
    )
    told = inspect(tmp_path / "a")
    assert (told["alphas"], told["scales"]) == ({"6": 1}, {"3": 1})


def test_the_scale_of_mlx_is_no_alpha(tmp_path: Path) -> None:
    config: dict[str, object] = {"fine_tune_type": "lora", "lora_parameters": {"rank": 4, "scale": 2.5}}
    told = inspect(write(tmp_path, OTHERS["mlx"][0], config))
    assert (told["alphas"], told["scales"], told["ranks"]) == ({}, {"2.5": 1}, {"4": 1})
    assert told["adapter_config"] == {"scale": 2.5, "fine_tune_type": "lora"}
    assert "lora_alpha" not in json.dumps(told)


# -- files of both sorts, and of neither ------------------------------------------------------------------------


def test_a_lora_that_is_not_merged_is_told_beside_the_weights(tmp_path: Path) -> None:
    tensors = {f"layers.{i}.q.base_layer.weight": torch.ones(8, 8) for i in range(3)}
    tensors |= {"norm.weight": torch.ones(8), "norm.bias": torch.ones(8), "embed.weight": torch.ones(9, 8)}
    tensors |= {
        "layers.0.q.lora_A.default.weight": torch.ones(2, 8),
        "layers.0.q.lora_B.default.weight": torch.ones(8, 2),
    }
    b.save(tmp_path / "model.safetensors", tensors)
    told = inspect(tmp_path / "model.safetensors")
    assert told["what"] == "checkpoint"
    assert told["kinds"]["LoRA"] == 1


def test_a_base_with_factors_beside_its_codes_is_no_lora(tmp_path: Path) -> None:
    """As nunchaku stores SVDQuant."""
    tensors = {}
    for i in range(4):
        layer = f"transformer_blocks.{i}.qkv_proj"
        tensors |= {f"{layer}.qweight": torch.ones(24, 4, dtype=torch.int8), f"{layer}.wscales": torch.ones(1, 24)}
        tensors |= {f"{layer}.smooth": torch.ones(8), f"{layer}.bias": torch.ones(24)}
        tensors |= {f"{layer}.lora_down": torch.ones(8, 16), f"{layer}.lora_up": torch.ones(24, 16)}
    b.save(tmp_path / "model.safetensors", tensors)
    told = inspect(tmp_path / "model.safetensors")
    assert told["what"] == "checkpoint"
    assert told["kinds"] == {"nunchaku's LoRA": 8}


def test_a_lora_with_stray_tensors_is_one(tmp_path: Path) -> None:
    b.kohya(tmp_path / "l.safetensors", {f"lora_unet_fc_{i}": b.lora((8, 8)) for i in range(3)})
    tensors = {f"fc_{i}.lora_A.weight": torch.ones(2, 8) for i in range(3)}
    tensors |= {f"fc_{i}.lora_B.weight": torch.ones(8, 2) for i in range(3)}
    b.save(tmp_path / "lora.safetensors", tensors | {"step": torch.ones(1), "embed.weight": torch.ones(9, 8)})
    told = inspect(tmp_path / "lora.safetensors")
    assert (told["what"], told["of_no_known_form"]) == ("lora", ["step"])
    assert told["kinds"] == {"LoRA": 3, "whole tensor": 1}


def test_what_is_neither_is_called_by_its_name(tmp_path: Path) -> None:
    b.save(
        tmp_path / "control.safetensors",
        {"lora_controlnet": torch.ones(1), "input_hint_block.0.up": torch.ones(2, 2)},
    )
    told = inspect(tmp_path / "control.safetensors")
    assert told["what"] == "control_lora"
    assert told["problems"] == "It makes a ControlNet out of a UNet, and changes no checkpoint."
    b.save(tmp_path / "word.safetensors", {"clip_l": torch.ones(2, 768), "clip_g": torch.ones(2, 1280)})
    assert inspect(tmp_path / "word.safetensors")["what"] == "textual_inversion"
    b.save(tmp_path / "word2.safetensors", {"emb_params": torch.ones(2, 768)})
    assert inspect(tmp_path / "word2.safetensors")["what"] == "textual_inversion"
    b.save(tmp_path / "vae.safetensors", b.vae_file("ldm", seed=1))
    told = inspect(tmp_path / "vae.safetensors")
    assert (told["what"], told["family_title"]) == ("vae", "VAE")


# -- what a bake and a look say alike --------------------------------------------------------------------------


def experts(rank: int, parameters: dict[str, tuple[int, int]]) -> dict[str, torch.Tensor]:
    """Make PEFT's LoRA of some stacks of four experts, the first one innermost: name -> (first, second) side."""
    tensors = {}
    for depth, (first, second) in enumerate(reversed(parameters.values())):
        start = f"base_model.model.model.layers.0.mlp.experts.{'base_layer.' * depth}"
        tensors |= {f"{start}lora_A.weight": torch.ones(4 * rank, second)}
        tensors |= {f"{start}lora_B.weight": torch.ones(first, 4 * rank)}
    return tensors


def test_the_rank_of_experts_is_that_of_one(tmp_path: Path) -> None:
    stacks = {"gate_up_proj": (12, 16), "down_proj": (16, 6)}
    (tmp_path / "adapter").mkdir()
    path = write(
        tmp_path / "adapter",
        {key: tuple(tensor.shape) for key, tensor in experts(2, stacks).items()},
        {
            "target_parameters": [f"mlp.experts.{name}" for name in stacks],
            "r": 2, "lora_alpha": 4, "peft_version": "0.20.0",
        },
    )  # fmt: skip
    base = {f"model.layers.0.mlp.experts.{name}": torch.zeros(4, *sides) for name, sides in stacks.items()}
    b.save(tmp_path / "base.safetensors", base)
    plan = lorabake.plan(lorabake.load_recipe(b.recipe(tmp_path, loras=["adapter"])))
    told = inspect(path)
    assert told["kinds"] == plan.ledgers[0].kinds == {"LoRA on experts": 2}
    assert (told["ranks"], plan.ledgers[0].ranks) == ({"2": 2}, {2: 2})
    assert (told["scales"], told["alphas"]) == ({"2": 2}, {"4 (adapter_config)": 2})


def test_stacks_of_factors_are_for_experts(tmp_path: Path) -> None:
    b.save(
        tmp_path / "lora.safetensors",
        {
            "mlp.experts.down_proj.lora_A.weight": torch.ones(4, 2, 6),
            "mlp.experts.down_proj.lora_B.weight": torch.ones(4, 16, 2),
        },
    )
    told = inspect(tmp_path / "lora.safetensors")
    assert (told["kinds"], told["ranks"]) == ({"LoRA on experts": 1}, {"2": 1})


@pytest.mark.parametrize("name", [name for name in FORMS if form_of(name)[2]])
def test_no_alpha_is_told_that_nothing_says(name: str, tmp_path: Path) -> None:
    _, named, config = form_of(name)
    assert config is not None
    said = {field: value for field, value in config.items() if field.endswith("alpha")}
    told = inspect(write(tmp_path / "adapter", named, config))
    assert not told["alphas"] or said or "alpha" in str([*named])


@pytest.mark.parametrize(("blocks", "title"), [((4, 4, 4), "OFT"), ((2, 4, 4, 4), "BOFT")])
def test_the_alpha_of_a_rotation_is_told_and_is_no_scale(blocks: tuple[int, ...], title: str, tmp_path: Path) -> None:
    tensors = {"lycoris_fc.oft_blocks": torch.zeros(blocks), "lycoris_fc.alpha": torch.tensor(0.5)}
    b.save(tmp_path / "lora.safetensors", tensors)
    told = inspect(tmp_path / "lora.safetensors")
    assert (told["kinds"], told["alphas"]) == ({title: 1}, {"0.5": 1})
    assert (told["ranks"], told["scales"]) == ({}, {})
    b.save(tmp_path / "base.safetensors", {"fc.weight": torch.zeros(16, 8)})
    plan = lorabake.plan(lorabake.load_recipe(b.recipe(tmp_path, loras=["lora.safetensors"])))
    assert plan.ledgers[0].kinds == {title: 1}


def test_two_whole_factors_have_no_rank(tmp_path: Path) -> None:
    tensors = {"fc.lokr_w1": torch.ones(4, 4), "fc.lokr_w2": torch.ones(4, 2), "fc.alpha": torch.tensor(3.0)}
    b.save(tmp_path / "lora.safetensors", tensors)
    b.save(tmp_path / "base.safetensors", {"fc.weight": torch.zeros(16, 8)})
    plan = lorabake.plan(lorabake.load_recipe(b.recipe(tmp_path, loras=["lora.safetensors"])))
    told = inspect(tmp_path / "lora.safetensors")
    assert (told["ranks"], plan.ledgers[0].ranks, told["scales"]) == ({}, {}, {"1": 1})


@pytest.mark.parametrize("empty", ["both", "one"])
def test_an_empty_adapter_has_no_rank_and_no_scale(empty: str, tmp_path: Path) -> None:
    b.peft(tmp_path / "a", {"fc": b.lora((8, 8))}, r=2, lora_alpha=4)
    hollow = {f"base_model.model.fc.lora_{part}.weight": torch.ones(0) for part in "AB"}
    if empty == "one":
        hollow["base_model.model.fc.lora_A.weight"] = torch.ones(2, 8)
    b.save(tmp_path / "a" / "adapter_model.safetensors", hollow)
    told = inspect(tmp_path / "a")
    assert "empty" in told["problems"]
    assert (told["ranks"], told["scales"], told["alphas"]) == ({}, {}, {})
