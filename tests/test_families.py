"""Families in several layouts: every header, renamed as its table says, is the same model with the same bytes."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import lorabake
from lorabake.keymap.expansion import KeyMap
from lorabake.keymap.spelling import Spellings
from lorabake.keymap.table import Component
from lorabake.keymap.view import Region, View
from lorabake.sources.family import identify
from lorabake.tensors.header import TensorInfo
from tests.tables import infos, load_table
from tests.test_architectures import FAMILIES, PLACES
from tests.translation import translate


@cache
def network(table: str) -> tuple[Component, str, dict[str, TensorInfo]]:
    """Return a table's identifying component, its layout, and its tensors without their prefix."""
    tensors = load_table(table)
    key_map = KeyMap.expand(identify(tensors), tensors)
    component = key_map.architecture.components[0]
    layout, prefix = key_map.placed[component.name]
    own = {key: info.shape for key, info in tensors.items() if key_map.owner.get(key) == component.name}
    return component, layout.name, infos({key.removeprefix(prefix): shape for key, shape in own.items()}, table)


def expand(tensors: dict[str, TensorInfo], component: Component) -> KeyMap:
    key_map = KeyMap.expand(identify(tensors), tensors)
    assert key_map.architecture.components[0] == component
    return key_map


IDENTIFYING = {family.name: family.components[0] for family in FAMILIES}
OTHERS = [
    (table, layout.name)
    for table, (family, placed) in PLACES.items()
    for layout in IDENTIFYING[family].layouts
    if layout.name != placed[IDENTIFYING[family].name][0] and layout.prefixes
]


@pytest.mark.parametrize(("table", "there"), OTHERS)
def test_a_header_in_another_layout_is_the_same_model(table: str, there: str) -> None:
    component, here, tensors = network(table)
    renamed = infos(translate(component, tensors, here, there))
    key_map = expand(renamed, component)
    assert key_map.placed[component.name][0].name == there
    assert translate(component, renamed, there, here) == {key: info.shape for key, info in tensors.items()}


@pytest.mark.parametrize(("table", "there"), OTHERS)
def test_both_layouts_have_every_module_under_every_name(table: str, there: str) -> None:
    component, here, tensors = network(table)
    first = expand(tensors, component).modules[component.name]
    second = expand(infos(translate(component, tensors, here, there)), component).modules[component.name]
    assert first.keys() == second.keys()
    for name, module in first.items():
        shapes = {parameter: _squeezed(view) for parameter, view in module.views.items()}
        assert shapes == {parameter: _squeezed(view) for parameter, view in second[name].views.items()}, name


def _squeezed(view: View) -> list[int]:
    return [size for size in view.shape if size != 1]


@pytest.mark.parametrize(
    ("diffusers", "published", "prefix"),
    [
        ("diffusers_flux1_dev_transformer", "full_flux1_dev_bfl_780", ""),
        ("diffusers_flux1_dev_transformer", "mecha_flux_flux", "model.diffusion_model."),
        ("diffusers_sd3_3_medium_diffusers", "mecha_sd3_comfyui", "model.diffusion_model."),
        ("diffusers_controlnet_sd15", "stripped_hard_edge_detection_canny_diffusion_pytorch_model_fp16", ""),
    ],
)
def test_a_diffusers_header_renamed_is_the_published_one(diffusers: str, published: str, prefix: str) -> None:
    component, here, tensors = network(diffusers)
    there = network(published)[1]
    wanted = {key: info.shape for key, info in load_table(published).items() if key.startswith(prefix)}
    renamed = (
        translate(component, tensors, here, there) if there != here else {k: i.shape for k, i in tensors.items()}
    )
    assert renamed == {
        key.removeprefix(prefix): shape
        for key, shape in wanted.items()
        if not key.startswith(("vae.", "text_encoders."))
    }


@pytest.mark.parametrize(
    ("diffusers", "published"),
    [
        ("diffusers_flux2_dev", "invoke_flux2_transformer_bfl_keys"),
        ("diffusers_z_image_turbo", "invoke_z_image_transformer_comfyui_keys"),
        ("diffusers_cosmos2", "invoke_anima_comfyui_keys"),
    ],
)
def test_published_excerpts_have_the_names_of_the_table(diffusers: str, published: str) -> None:
    component, here, tensors = network(diffusers)
    renamed = translate(component, tensors, here, network(published)[1])
    prefix = network(published)[0] and "net." if published.startswith("invoke_anima") else ""
    excerpt = {key.removeprefix(prefix) for key in load_table(published)}
    # Lumina's code keeps a norm that it does not use; Anima has its adapter beside.
    assert {key for key in excerpt - renamed.keys() if not key.startswith("llm_adapter.")} <= {"norm_final.weight"}


def test_the_page_of_families_lists_them_all_with_their_layouts() -> None:
    page = (Path(__file__).parent.parent / "docs" / "families.md").read_text(encoding="utf-8")
    listed = {}
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) == 4:
            listed[cells[0]] = {layout.split()[0] for layout in cells[1].split(", ")}
    known = {
        each.title: {layout.name for layout in each.components[0].layouts if layout.prefixes} - {"hf_flat"}
        for each in FAMILIES
    }
    assert {title: listed.get(title) for title in known} == known


# -- golden pairs (FORMATS C.4 to C.12) ---------------------------------------------------------------------


def rows(key: str, *cuts: int, columns: int) -> View:
    regions = tuple(Region(f"{key}.weight", start, stop) for start, stop in zip(cuts[::2], cuts[1::2], strict=True))
    return View(regions, (sum(region.stop - region.start for region in regions), columns))


@pytest.mark.parametrize(
    ("table", "there", "name", "view"),
    [
        (
            "diffusers_flux1_dev_transformer",
            "bfl",
            "transformer_blocks.3.attn.add_k_proj",
            rows("double_blocks.3.txt_attn.qkv", 3072, 6144, columns=3072),
        ),
        (
            "diffusers_flux1_dev_transformer",
            "bfl",
            "single_transformer_blocks.37.proj_mlp",
            rows("single_blocks.37.linear1", 9216, 21504, columns=3072),
        ),
        (
            "diffusers_flux1_dev_transformer",
            "bfl",
            "norm_out.linear",
            rows("final_layer.adaLN_modulation.1", 3072, 6144, 0, 3072, columns=3072),
        ),
        (
            "diffusers_flux1_dev_transformer",
            "bfl",
            "double_blocks.3.img_attn.qkv.2",
            rows("double_blocks.3.img_attn.qkv", 6144, 9216, columns=3072),
        ),
        (
            "diffusers_sd35_medium",
            "sai",
            "transformer_blocks.12.attn2.to_v",
            rows("joint_blocks.12.x_block.attn2.qkv", 3072, 4608, columns=1536),
        ),
        (
            "diffusers_sd35_medium",
            "sai",
            "transformer_blocks.23.norm1_context.linear",
            rows("joint_blocks.23.context_block.adaLN_modulation.1", 1536, 3072, 0, 1536, columns=1536),
        ),
        (
            "diffusers_sd35_medium",
            "sai",
            "transformer_blocks.22.norm1_context.linear",
            rows("joint_blocks.22.context_block.adaLN_modulation.1", 0, 9216, columns=1536),
        ),
        (
            "diffusers_controlnet_sd35",
            "sai",
            "transformer_blocks.18.attn.to_v",
            rows("transformer_blocks.18.attn.qkv", 4864, 7296, columns=2432),
        ),
        (
            "diffusers_lumina2",
            "alpha_vllm",
            "layers.25.attn.to_k",
            rows("layers.25.attention.qkv", 2304, 3072, columns=2304),
        ),
        (
            "diffusers_z_image_turbo",
            "native",
            "noise_refiner.1.attention.to_v",
            rows("noise_refiner.1.attention.qkv", 7680, 11520, columns=3840),
        ),
        (
            "diffusers_pixart_alpha_1024",
            "pixart",
            "transformer_blocks.27.attn2.to_v",
            rows("blocks.27.cross_attn.kv_linear", 1152, 2304, columns=1152),
        ),
        (
            "diffusers_pixart_alpha_1024",
            "pixart",
            "adaln_single.emb.aspect_ratio_embedder.linear_2",
            rows("ar_embedder.mlp.2", 0, 384, columns=384),
        ),
        (
            "diffusers_hunyuandit",
            "tencent",
            "blocks.39.attn1.to_k",
            rows("blocks.39.attn1.Wqkv", 1408, 2816, columns=1408),
        ),
        (
            "diffusers_hunyuandit",
            "tencent",
            "norm_out.linear",
            rows("final_layer.adaLN_modulation.1", 1408, 2816, 0, 1408, columns=1408),
        ),
        (
            "diffusers_hunyuan_image",
            "tencent",
            "single_transformer_blocks.39.attn.to_q",
            rows("single_blocks.39.linear1", 0, 3584, columns=3584),
        ),
        (
            "diffusers_ace_step",
            "ace_step",
            "layers.3.cross_attn.to_out.0",
            rows("layers.3.cross_attn.o_proj", 0, 2048, columns=2048),
        ),
    ],
)
def test_diffusers_names_lead_to_rows_of_the_other_layout(table: str, there: str, name: str, view: View) -> None:
    component, here, tensors = network(table)
    key_map = expand(infos(translate(component, tensors, here, there)), component)
    assert key_map.modules[component.name][name].views["weight"] == view


@pytest.mark.parametrize("name", ["blocks.0.norm2", "blocks.0.norm3"])
def test_a_name_that_means_different_tensors_in_two_layouts_leads_nowhere(name: str) -> None:
    component, here, tensors = network("diffusers_hunyuandit")
    renamed = infos(translate(component, tensors, here, "tencent"))
    assert name not in expand(tensors, component).modules["transformer"]
    assert name not in expand(renamed, component).modules["transformer"]


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("transformer_blocks.4.attn.to_k", "double_blocks.4.img_attn.qkv"),
        ("double_blocks.4.img_attn_k_norm", "double_blocks.4.img_attn.norm.key_norm"),
        ("single_blocks.4.modulation.linear", "single_blocks.4.modulation.lin"),
        ("txt_in.c_embedder.linear_2", "txt_in.c_embedder.out_layer"),
        ("guidance_in.mlp.2", "guidance_in.out_layer"),
        ("txt_in.individual_token_refiner.blocks.1.mlp.fc1", "txt_in.individual_token_refiner.blocks.1.mlp.0"),
    ],
)
def test_comfyui_renames_hunyuan_video(name: str, key: str) -> None:
    component, here, tensors = network("diffusers_hunyuan_video")
    key_map = expand(infos(translate(component, tensors, here, "comfy")), component)
    assert key_map.modules["transformer"][name].views["weight"].keys == (f"{key}.weight",)


# -- networks beside the first one ------------------------------------------------------------------------------


def test_a_diffusers_folder_of_flux_has_its_networks_in_their_folders() -> None:
    parts = {
        "transformer/": ("diffusers_flux1_dev_transformer", ""),
        "text_encoder/": ("mecha_flux_flux", "text_encoders.clip_l.transformer."),
        "text_encoder_2/": ("mecha_flux_flux", "text_encoders.t5xxl.transformer."),
        "vae/": ("diffusers_sd15_vae", ""),
    }
    tensors = infos(
        {
            folder + key.removeprefix(prefix): info.shape
            for folder, (table, prefix) in parts.items()
            for key, info in load_table(table).items()
            if key.startswith(prefix)
        }
    )
    key_map = KeyMap.expand(identify(tensors), tensors)
    assert key_map.architecture.name == "flux"
    assert {prefix for _, prefix in key_map.placed.values()} == set(parts)
    assert key_map.owner.keys() == tensors.keys()


def test_a_wan_pipeline_has_two_transformers() -> None:
    tensors = infos(
        {
            f"{folder}/{key}": info.shape
            for key, info in load_table("diffusers_wan21_t2v_14b").items()
            for folder in ("transformer", "transformer_2")
        }
    )
    key_map = KeyMap.expand(identify(tensors), tensors)
    assert set(key_map.placed) == {"transformer", "transformer_2"}
    spelled = Spellings(key_map)
    for name, places in {
        "transformer.blocks.3.attn1.to_q": ["transformer", "transformer_2"],
        "transformer_2.blocks.3.attn1.to_q": ["transformer_2"],
        "lora_unet_blocks_3_self_attn_q": ["transformer", "transformer_2"],
    }.items():
        assert [module.component for module in spelled[name]] == places


# -- spellings -----------------------------------------------------------------------------------------------

CLIP_L, CLIP_G = (f"text_encoders.{name}.transformer.text_model" for name in ("clip_l", "clip_g"))
T5 = "text_encoders.t5xxl.transformer.encoder"


@pytest.mark.parametrize(
    ("table", "name", "key"),
    [
        ("mecha_flux_flux", "lora_te1_text_model_encoder_layers_3_mlp_fc1", f"{CLIP_L}.encoder.layers.3.mlp.fc1"),
        (
            "mecha_flux_flux",
            "lora_te3_encoder_block_3_layer_0_SelfAttention_q",
            f"{T5}.block.3.layer.0.SelfAttention.q",
        ),
        (
            "mecha_flux_flux",
            "lora_te2_encoder_block_3_layer_0_SelfAttention_q",
            f"{T5}.block.3.layer.0.SelfAttention.q",
        ),
        (
            "mecha_flux_flux",
            "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q",
            f"{T5}.block.0.layer.0.SelfAttention.q",
        ),
        ("mecha_sd3_comfyui", "lora_te1_text_model_encoder_layers_3_mlp_fc1", f"{CLIP_L}.encoder.layers.3.mlp.fc1"),
        ("mecha_sd3_comfyui", "lora_te2_text_model_encoder_layers_31_mlp_fc1", f"{CLIP_G}.encoder.layers.31.mlp.fc1"),
        (
            "mecha_sd3_comfyui",
            "lora_te3_encoder_block_3_layer_0_SelfAttention_q",
            f"{T5}.block.3.layer.0.SelfAttention.q",
        ),
        (
            "mecha_sd3_comfyui",
            "lora_unet_joint_blocks_3_x_block_attn_qkv",
            "model.diffusion_model.joint_blocks.3.x_block.attn.qkv",
        ),
        (
            "mecha_sd3_comfyui",
            "transformer.transformer_blocks.3.attn.to_out.0",
            "model.diffusion_model.joint_blocks.3.x_block.attn.proj",
        ),
        (
            "full_flux1_dev_bfl_780",
            "lora_transformer_single_transformer_blocks_3_attn_to_k",
            "single_blocks.3.linear1",
        ),
        ("full_flux1_dev_bfl_780", "transformer.double_blocks.3.img_attn.qkv.1", "double_blocks.3.img_attn.qkv"),
        ("full_flux1_dev_bfl_780", "lycoris_transformer_blocks_3_ff_net_2", "double_blocks.3.img_mlp.2"),
        ("diffusers_qwen_image", "lora_unet_transformer_blocks_7_attn_to_q", "transformer_blocks.7.attn.to_q"),
        ("diffusers_qwen_image", "diffusion_model.transformer_blocks.7.img_mlp.net.2", None),
        ("diffusers_qwen_image", "transformer.transformer_blocks.7.attn.to_out.0", None),
        ("diffusers_hidream", "lycoris_double_stream_blocks_3_block_ff_i_experts_1_w2", None),
        ("diffusers_hidream", "diffusion_model.double_stream_blocks.3.block.attn1.to_q_t", None),
        ("diffusers_wan21_i2v", "lora_unet_blocks_7_cross_attn_k_img", "blocks.7.attn2.add_k_proj"),
        ("diffusers_wan21_i2v", "lora_unet__blocks_7_ffn_0", "blocks.7.ffn.net.0.proj"),
        ("diffusers_wan21_i2v", "lycoris_blocks_7_attn1_to_q", "blocks.7.attn1.to_q"),
        ("diffusers_z_image_turbo", "lora_unet_layers_3_attention_to_q", "layers.3.attention.to_q"),
        ("diffusers_cogview4", "transformer.transformer_blocks.3.attn1.to_k", None),
        ("diffusers_cogvideox", "transformer.transformer_blocks.3.attn1.to_k", None),
        (
            "diffusers_cosmos2",
            "diffusion_model.blocks.3.self_attn.output_proj",
            "transformer_blocks.3.attn1.to_out.0",
        ),
        ("diffusers_ace_step", "base_model.model.layers.3.self_attn.q_proj", "layers.3.self_attn.to_q"),
        ("diffusers_kolors_unet", "lora_unet_mid_block_attentions_0_proj_in", "mid_block.attentions.0.proj_in"),
        (
            "diffusers_motion_adapter",
            "down_blocks.0.motion_modules.1.temporal_transformer.transformer_blocks.0.attention_blocks.1.processor.to_q",
            "down_blocks.0.motion_modules.1.transformer_blocks.0.attn2.to_q",
        ),
        ("diffusers_kandinsky5", "transformer.visual_transformer_blocks.3.cross_attention.to_query", None),
        (
            "diffusers_cascade_c",
            "lora_prior_unet_down_blocks_0_2_attention_attn_in_proj_1",
            "down_blocks.0.2.attention.to_k",
        ),
    ],
)
def test_a_spelling_leads_to_its_module(table: str, name: str, key: str | None) -> None:
    spelled = Spellings(KeyMap.expand(identify(load_table(table)), load_table(table)))
    own = key or name.removeprefix("diffusion_model.").removeprefix("transformer.")
    own = "double_stream_blocks.3.block.ff_i.experts.1.w2" if name.startswith("lycoris_double") else own
    assert [module.views["weight"].regions[0].key for module in spelled[name]] == [f"{own}.weight"]


# -- bakes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "there", "kept"),
    [
        ("diffusers_flux1_dev_transformer", "bfl", ("transformer_blocks.0.", "single_transformer_blocks.0.")),
        ("diffusers_sd35_medium", "sai", ("transformer_blocks.0.", "transformer_blocks.23.")),
        ("diffusers_lumina2", "alpha_vllm", ("layers.0.", "noise_refiner.0.", "context_refiner.0.")),
        ("diffusers_mochi", "genmo", ("transformer_blocks.0.", "transformer_blocks.47.")),
    ],
)
def test_one_lora_gives_the_same_model_in_both_layouts(
    table: str, there: str, kept: tuple[str, ...], tmp_path: Path
) -> None:
    """Fused and split, swapped and straight: the LoRA has the other layout's names on either base."""
    component, here, tensors = network(table)
    small = infos(
        {
            key: tuple(max(1, size // 32) for size in info.shape)
            for key, info in tensors.items()
            if ("blocks." not in key and "layers." not in key and "refiner." not in key) or key.startswith(kept)
        }
    )
    other = infos(translate(component, small, here, there))
    layouts = {here: expand(small, component), there: expand(other, component)}
    generator = torch.Generator().manual_seed(5)
    bases: dict[str, dict[str, torch.Tensor]] = {
        here: {key: torch.randn(info.shape, generator=generator) for key, info in small.items()}
    }
    bases[there] = _rename(layouts[here], other, bases[here], component)
    for name, base in bases.items():
        save_file(base, tmp_path / f"{name}.safetensors")

    baked = {}
    for names_in in (here, there):
        lora = {}
        draw = torch.Generator().manual_seed(7)
        for key, info in (small if names_in == here else other).items():
            if key.endswith(".weight") and len(info.shape) == 2:
                module = key.removesuffix(".weight")
                lora[f"transformer.{module}.lora_A.weight"] = torch.randn(2, info.shape[1], generator=draw)
                lora[f"transformer.{module}.lora_B.weight"] = torch.randn(info.shape[0], 2, generator=draw)
        save_file(lora, tmp_path / "lora.safetensors")
        for name in layouts:
            (tmp_path / "recipe.yaml").write_text(
                f"version: 1\nbase: {name}.safetensors\nloras: [lora.safetensors]\n"
                f"output: {{path: out_{names_in}_{name}.safetensors}}\n"
            )
            result = lorabake.bake(lorabake.load_recipe(tmp_path / "recipe.yaml"), lorabake.RunOptions(fsync=False))
            baked[names_in, name] = load_file(result.path)
        renamed = _rename(layouts[here], other, baked[names_in, here], component)
        assert renamed.keys() == baked[names_in, there].keys()
        for key, tensor in renamed.items():
            torch.testing.assert_close(
                tensor, baked[names_in, there][key], msg=lambda text, key=key: f"{key}: {text}"
            )
        changed = [
            key for key, tensor in baked[names_in, there].items() if not torch.equal(tensor, bases[there][key])
        ]
        assert len(changed) > len(other) // 3


def _rename(
    key_map: KeyMap, other: dict[str, TensorInfo], tensors: dict[str, torch.Tensor], component: Component
) -> dict[str, torch.Tensor]:
    """Read each tensor of the other layout from this one's through the views."""
    modules = key_map.modules[component.name]
    found = {}
    for key, info in other.items():
        path, _, parameter = key.rpartition(".")
        module = modules.get(path) if parameter in ("weight", "bias") else modules.get(key)
        if module is None:
            found[key] = tensors[key]
        else:
            view = module.views[parameter if parameter in ("weight", "bias") else "weight"]
            found[key] = view.read(tensors).reshape(info.shape).contiguous()
    return found
