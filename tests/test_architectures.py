"""Families: who is recognised by which header, where its components lie, and which names mean the same bytes."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

import lorabake
from lorabake.architectures import architectures
from lorabake.keymap.expansion import KeyMap
from lorabake.keymap.view import Region, View
from lorabake.sources.family import GENERIC, VAE_ONLY, identify
from tests.tables import infos, load_table, names

PACKAGE = Path(lorabake.__file__).parent

# checkpoint table -> (family, {component: (layout, prefix)}); every other table is of no known family.
LDM, FIRST = ("ldm", "model.diffusion_model."), ("ldm", "first_stage_model.")
TRANSFORMER = ("hf", "cond_stage_model.transformer.")
SD1_FILE = {"unet": LDM, "text_encoder": TRANSFORMER, "vae": FIRST}
SDXL_FILE = {
    "unet": ("sgm", "model.diffusion_model."),
    "text_encoder": ("hf", "conditioner.embedders.0.transformer."),
    "text_encoder_2": ("openclip", "conditioner.embedders.1.model."),
    "vae": FIRST,
}
PLACES: dict[str, tuple[str, dict[str, tuple[str, str]]]] = {
    "arenasys_clip_v1_sd": ("clip", {"text_encoder": TRANSFORMER}),
    "arenasys_clip_v2_sd": ("clip", {"text_encoder": ("openclip", "cond_stage_model.model.")}),
    "arenasys_clip_v2_wd": ("clip", {"text_encoder": ("openclip", "cond_stage_model.model.")}),
    "arenasys_clip_xl_sd": ("clip_bigg", {"text_encoder_2": ("openclip", "conditioner.embedders.1.model.")}),
    "arenasys_unet_v1_inpainting": ("sd1", {"unet": LDM}),
    "arenasys_unet_v1_pix2pix": ("sd1", {"unet": LDM}),
    "arenasys_unet_v1_sd": ("sd1", {"unet": LDM}),
    "arenasys_unet_v2_depth": ("sd2", {"unet": LDM}),
    "arenasys_unet_v2_sd": ("sd2", {"unet": LDM}),
    "arenasys_unet_xl_refiner": ("sdxl_refiner", {"unet": ("sgm", "model.diffusion_model.")}),
    "arenasys_unet_xl_sd": ("sdxl", {"unet": ("sgm", "model.diffusion_model.")}),
    "diffusers_sd15_inpaint_unet": ("sd1", {"unet": ("diffusers", "")}),
    "diffusers_sd15_unet": ("sd1", {"unet": ("diffusers", "")}),
    "diffusers_sd21_unet": ("sd2", {"unet": ("diffusers", "")}),
    "full_sd15_singlefile_1131": ("sd1", SD1_FILE),
    "full_sd15_singlefile_with_ema_and_buffers": ("sd1", SD1_FILE),
    "full_sdxl_singlefile_2514": ("sdxl", SDXL_FILE),
    "full_sdxl_singlefile_2515": ("sdxl", SDXL_FILE),
    "mecha_sd1_kohya": (
        "sd1",
        {"unet": ("diffusers", "unet."), "text_encoder": ("hf", "te."), "vae": ("diffusers", "vae.")},
    ),
    "mecha_sd1_ldm": ("sd1", SD1_FILE),
    "mecha_sdxl_diffusers_unet_only": ("sdxl", {"unet": ("diffusers", "")}),
    "mecha_sdxl_kohya": (
        "sdxl",
        {
            "unet": ("sgm", "unet."),
            "text_encoder": ("hf", "te1."),
            "text_encoder_2": ("hf", "te2."),
            "vae": FIRST,
        },
    ),
    "mecha_sdxl_sgm": ("sdxl", SDXL_FILE),
    "stripped_juggernaut_xl_v9_text_encoder_2_model_fp16": ("clip_bigg", {"text_encoder_2": ("hf", "")}),
    "stripped_juggernaut_xl_v9_text_encoder_model_fp16": ("clip", {"text_encoder": ("hf", "")}),
    "stripped_juggernaut_xl_v9_unet_diffusion_pytorch_model_fp16": ("sdxl", {"unet": ("diffusers", "")}),
    "stripped_text_encoder_model": ("clip", {"text_encoder": ("hf", "")}),
    "transformers_sd21_clip_h": ("clip", {"text_encoder": ("hf", "")}),
}
# Networks by themselves: most are diffusers' own, below no prefix.
ALONE = {
    "ace_step": ["diffusers_ace_step"],
    "amused": ["diffusers_amused"],
    "auraflow": ["diffusers_auraflow"],
    "bria_fibo": ["diffusers_bria_fibo"],
    "bria_fibo2": ["diffusers_bria_fibo2"],
    "chroma": ["diffusers_chroma"],
    "cogvideox": ["diffusers_cogvideox"],
    "cogview3plus": ["diffusers_cogview3plus"],
    "cogview4": ["diffusers_cogview4"],
    "cosmos": ["diffusers_cosmos2"],
    "cosmos1": ["diffusers_cosmos1"],
    "ernie_image": ["diffusers_ernie_image"],
    "flux": ["diffusers_flux1_dev_transformer"],
    "flux2": ["diffusers_flux2_dev"],
    "flux3": ["diffusers_flux3"],
    "helios": ["diffusers_helios"],
    "hidream": ["diffusers_hidream"],
    "hunyuan_image": ["diffusers_hunyuan_image"],
    "hunyuan_video": ["diffusers_hunyuan_video", "diffusers_framepack"],
    "hunyuan_video15": ["diffusers_hunyuan_video15"],
    "hunyuandit": ["diffusers_hunyuandit"],
    "ideogram4": ["diffusers_ideogram4"],
    "kandinsky5": ["diffusers_kandinsky5"],
    "krea2": ["diffusers_krea2"],
    "ltx": ["diffusers_ltx_video"],
    "ltx2": ["diffusers_ltx2"],
    "lumina2": ["diffusers_lumina2"],
    "minimax_h3": ["diffusers_minimax_h3"],
    "mochi": ["diffusers_mochi"],
    "pixart": ["diffusers_pixart_alpha", "diffusers_pixart_alpha_1024", "diffusers_pixart_sigma"],
    "prx": ["diffusers_prx"],
    "qwen_image": ["diffusers_qwen_image"],
    "qwen_image21": ["diffusers_qwen_image21"],
    "rfd4_proteina": ["diffusers_rfd4_proteina"],
    "sana": ["diffusers_sana_1600m"],
    "sana_video": ["diffusers_sana_video"],
    "sd3": ["diffusers_sd3_3_medium_diffusers", "diffusers_sd35_medium", "diffusers_sd35_large"],
    "wan": ["diffusers_wan21_t2v_14b", "diffusers_wan21_i2v", "diffusers_wan_vace", "diffusers_wan_animate"],
    "z_image": ["diffusers_z_image_turbo"],
}
PLACES |= {
    table: (family, {"transformer": ("diffusers", "")}) for family, tables in ALONE.items() for table in tables
}
PLACES |= {
    "diffusers_cascade_b": ("stable_cascade_decoder", {"decoder": ("diffusers", "")}),
    "diffusers_cascade_c": ("stable_cascade", {"prior": ("diffusers", "")}),
    "diffusers_controlnet_flux": ("controlnet_flux", {"controlnet": ("diffusers", "")}),
    "diffusers_controlnet_sd3": ("controlnet_sd3", {"controlnet": ("diffusers", "")}),
    "diffusers_controlnet_sd35": ("controlnet_sd3", {"controlnet": ("diffusers", "")}),
    "diffusers_controlnet_sd15": ("controlnet", {"controlnet": ("diffusers", "")}),
    "diffusers_controlnet_sdxl": ("controlnet_xl", {"controlnet": ("diffusers", "")}),
    "diffusers_controlnet_cosmos": ("controlnet_cosmos", {"controlnet": ("diffusers", "")}),
    "diffusers_controlnet_hunyuandit": ("controlnet_hunyuandit", {"controlnet": ("diffusers", "")}),
    "diffusers_controlnet_qwen_image": ("controlnet_qwen_image", {"controlnet": ("diffusers", "")}),
    "diffusers_controlnet_sana": ("controlnet_sana", {"controlnet": ("diffusers", "")}),
    "diffusers_controlnet_sparse": ("controlnet_sparse", {"controlnet": ("diffusers", "")}),
    "diffusers_controlnet_z_image": ("controlnet_z_image", {"controlnet": ("diffusers", "")}),
    "diffusers_kandinsky2": ("kandinsky2", {"unet": ("diffusers", "")}),
    "diffusers_kandinsky3": ("kandinsky3", {"unet": ("diffusers", "")}),
    "diffusers_svd": ("svd", {"unet": ("diffusers", "")}),
    "diffusers_text_to_video": ("text_to_video", {"unet": ("diffusers", "")}),
    "diffusers_kandinsky2_prior": ("kandinsky2_prior", {"prior": ("diffusers", "")}),
    "diffusers_kolors_unet": ("kolors", {"unet": ("diffusers", "")}),
    "diffusers_motion_adapter": ("motion_module", {"motion_adapter": ("diffusers", "")}),
    "full_flux1_dev_bfl_780": ("flux", {"transformer": ("bfl", "")}),
    "full_flux1_schnell_bfl_776": ("flux", {"transformer": ("bfl", "")}),
    "invoke_anima_comfyui_keys": ("anima", {"transformer": ("nvidia", "net.")}),
    "invoke_flux2_transformer_bfl_keys": ("flux2", {"transformer": ("bfl", "")}),
    "invoke_z_image_transformer_comfyui_keys": ("z_image", {"transformer": ("native", "")}),
    "mecha_flux_flux": (
        "flux",
        {
            "transformer": ("bfl", "model.diffusion_model."),
            "text_encoder": ("hf", "text_encoders.clip_l.transformer."),
            "text_encoder_2": ("hf", "text_encoders.t5xxl.transformer."),
            "vae": ("ldm", "vae."),
        },
    ),
    "mecha_sd3_comfyui": (
        "sd3",
        {
            "transformer": ("sai", "model.diffusion_model."),
            "text_encoder": ("hf", "text_encoders.clip_l.transformer."),
            "text_encoder_2": ("hf", "text_encoders.clip_g.transformer."),
            "text_encoder_3": ("hf", "text_encoders.t5xxl.transformer."),
            "vae": FIRST,
        },
    ),
    "stripped_hard_edge_detection_canny_diffusion_pytorch_model_fp16": (
        "controlnet",
        {"controlnet": ("diffusers", "")},
    ),
}
FAMILIES = [each for each in architectures() if each.components and each.name != GENERIC]


@cache
def key_map(table: str) -> KeyMap:
    tensors = load_table(table)
    return KeyMap.expand(identify(tensors), tensors)


def weight(table: str, component: str, module: str, parameter: str = "weight") -> View:
    return key_map(table).modules[component][module].views[parameter]


def whole(key: str, *shape: int) -> View:
    return View((Region(key, 0, shape[0]),), shape)


# -- recognition ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", names("checkpoint"))
def test_one_family_or_none_recognises_a_checkpoint(table: str) -> None:
    tensors = load_table(table)
    expected = [PLACES[table][0]] if table in PLACES else []
    assert [each.name for each in FAMILIES if each.fits(tensors)] == expected
    assert identify(tensors).name == (expected or [GENERIC])[0]


@pytest.mark.parametrize("table", names("lora"))
def test_no_family_takes_a_lora_for_a_checkpoint(table: str) -> None:
    tensors = load_table(table)
    assert [each.name for each in FAMILIES if each.fits(tensors)] == []


@pytest.mark.parametrize("table", PLACES)
def test_components_and_layouts_are_placed(table: str) -> None:
    placed = key_map(table).placed
    assert {name: (layout.name, prefix) for name, (layout, prefix) in placed.items()} == PLACES[table][1]


def test_omnigen2_is_not_taken_for_lumina_2() -> None:
    """diffusers has no class of it; these are names of its published checkpoint."""
    names = [
        "time_caption_embed.timestep_embedder.linear_1",
        "time_caption_embed.caption_embedder.1",
        "ref_image_patch_embedder",
        "ref_image_refiner.0.attn.to_q",
        "layers.0.norm1.linear",
        "layers.0.attn.to_q",
        "layers.0.feed_forward.linear_1",
    ]
    tensors = infos({f"{name}.weight": (8, 8) for name in names})
    assert identify(tensors).name == "omnigen2"
    del tensors["ref_image_refiner.0.attn.to_q.weight"]
    assert identify(tensors).name == "lumina2"


def test_every_family_with_a_checkpoint_table_is_expected_somewhere() -> None:
    assert {family for family, _ in PLACES.values()} == {each.name for each in FAMILIES} - {
        "gpt2",
        "omnigen2",
        "qwen_vl",
        "llava",
    }


@pytest.mark.parametrize(
    ("table", "outside"),
    [
        ("full_sd15_singlefile_1131", ()),
        ("full_sdxl_singlefile_2515", ()),
        (
            "full_sd15_singlefile_with_ema_and_buffers",
            ("model_ema.", "betas", "alphas_", "sqrt_", "log_", "posterior_"),
        ),
    ],
)
def test_only_ema_copies_and_buffers_belong_to_no_component(table: str, outside: tuple[str, ...]) -> None:
    owner = key_map(table).owner
    left = [key for key in load_table(table) if key not in owner]
    assert [key for key in left if not key.startswith(outside)] == []
    assert bool(left) == bool(outside)


def test_generic_puts_the_parts_of_a_combined_file_into_their_components() -> None:
    parts = {
        "transformer": "model.diffusion_model.",
        "text_encoder": "text_encoders.clip_l.transformer.",
        "text_encoder_3": "text_encoders.t5xxl.transformer.",
        "vae": "vae.",
    }
    tensors = infos({f"{prefix}strange.weight": (4, 4) for prefix in parts.values()})
    found = KeyMap.expand(identify(tensors), tensors)
    assert found.architecture.name == GENERIC
    assert {name: prefix for name, (_, prefix) in found.placed.items()} == {"model": "", **parts}
    assert found.modules["model"] == {}


# -- tables are data -------------------------------------------------------------------------------------


LITERALS = sorted(
    path
    for folder in ("architectures", "components")
    for path in (PACKAGE / folder).glob("*.py")
    if path.name != "__init__.py"
)
ALLOWED = (ast.Call, ast.Constant, ast.Tuple, ast.Starred, ast.Name, ast.Attribute, ast.keyword, ast.expr_context)


@pytest.mark.parametrize("path", LITERALS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_files_of_tables_hold_literals_only(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    for statement in tree.body[1:]:
        assert isinstance(statement, (ast.Import, ast.ImportFrom, ast.Assign)), ast.unparse(statement)
        if isinstance(statement, ast.Assign):
            strange = [node for node in ast.walk(statement.value) if not isinstance(node, ALLOWED)]
            assert strange == [], ast.unparse(strange[0])
            called = {ast.unparse(node.func) for node in ast.walk(statement) if isinstance(node, ast.Call)}
            types = {
                "Alias",
                "Architecture",
                "Bare",
                "Component",
                "ExpertLayout",
                "Fused",
                "Has",
                "IndexOrder",
                "Kin",
                "Lacks",
                "Layout",
                "Rename",
                "Outside",
                "Renaming",
                "Row",
                "Sized",
                "SpecName",
            }
            assert called <= types


def test_names_of_families_and_of_their_components_are_unique() -> None:
    assert len({each.name for each in architectures()}) == len(architectures())
    for each in architectures():
        assert len({part.name for part in each.components}) == len(each.components)


# -- two layouts of one family ------------------------------------------------------------------------------


FUSED = ("to_qkv", "to_kv")
IN_SOME = {"text_model.embeddings.position_ids", "logit_scale"}
"""Tensors that some files of a model have, and no LoRA changes."""


def squeezed(view: View) -> tuple[int, ...]:
    return tuple(size for size in view.shape if size != 1)


@pytest.mark.parametrize(
    ("component", "one", "other"),
    [
        ("unet", "full_sd15_singlefile_1131", "diffusers_sd15_unet"),
        ("unet", "full_sd15_singlefile_1131", "mecha_sd1_kohya"),
        ("text_encoder", "full_sd15_singlefile_1131", "mecha_sd1_kohya"),
        ("vae", "full_sd15_singlefile_1131", "mecha_sd1_kohya"),
        ("unet", "arenasys_unet_v1_inpainting", "diffusers_sd15_inpaint_unet"),
        ("unet", "arenasys_unet_v2_sd", "diffusers_sd21_unet"),
        ("text_encoder", "arenasys_clip_v2_wd", "transformers_sd21_clip_h"),
        ("unet", "full_sdxl_singlefile_2515", "mecha_sdxl_diffusers_unet_only"),
        ("unet", "full_sdxl_singlefile_2515", "mecha_sdxl_kohya"),
        ("text_encoder", "full_sdxl_singlefile_2515", "mecha_sdxl_kohya"),
        ("text_encoder_2", "full_sdxl_singlefile_2515", "mecha_sdxl_kohya"),
        ("text_encoder_2", "arenasys_clip_xl_sd", "stripped_juggernaut_xl_v9_text_encoder_2_model_fp16"),
    ],
)
def test_layouts_name_the_same_modules_with_equal_shapes(component: str, one: str, other: str) -> None:
    first, second = (
        {name: module for name, module in key_map(table).modules[component].items() if name not in IN_SOME}
        for table in (one, other)
    )
    assert first.keys() == second.keys()
    for name, module in first.items():
        shapes = {parameter: squeezed(view) for parameter, view in module.views.items()}
        assert shapes == {parameter: squeezed(view) for parameter, view in second[name].views.items()}, name


@pytest.mark.parametrize(
    "table", ["diffusers_sd15_vae", "stripped_juggernaut_xl_v9_vae_diffusion_pytorch_model_fp16"]
)
def test_a_vae_file_has_the_modules_of_the_vae_in_a_single_file(table: str) -> None:
    alone = KeyMap.expand(VAE_ONLY, load_table(table)).modules["vae"]
    inside = key_map("full_sd15_singlefile_1131").modules["vae"]
    assert alone.keys() == inside.keys()
    assert all(squeezed(alone[name].views["weight"]) == squeezed(inside[name].views["weight"]) for name in alone)


@pytest.mark.parametrize(
    "table", ["full_sd15_singlefile_1131", "full_sdxl_singlefile_2515", "arenasys_unet_xl_refiner"]
)
@pytest.mark.parametrize("names_in", ["input_blocks.", "down_blocks."])
def test_either_naming_covers_each_unet_tensor_once(table: str, names_in: str) -> None:
    """Two UNet modules of one naming never share a tensor, and none is left out."""
    leads = {
        "input_blocks.": ("input_blocks.", "middle_block.", "output_blocks.", "out.", "time_embed.", "label_emb."),
        "down_blocks.": ("down_blocks.", "mid_block.", "up_blocks.", "conv_", "time_embedding.", "add_embedding."),
    }[names_in]
    modules = key_map(table).modules["unet"]
    seen = [
        view.regions[0].key
        for name, module in modules.items()
        if name.startswith(leads) and not name.endswith(FUSED)
        for view in module.views.values()
    ]
    assert sorted(seen) == sorted(key for key, owner in key_map(table).owner.items() if owner == "unet")


# -- golden pairs (FORMATS C.3) ------------------------------------------------------------------------------

SD1, SDXL = "full_sd15_singlefile_1131", "full_sdxl_singlefile_2515"


@pytest.mark.parametrize(
    ("table", "component", "module", "key", "shape"),
    [
        (SD1, "unet", "conv_in", "input_blocks.0.0", (320, 4, 3, 3)),
        (SD1, "unet", "conv_out", "out.2", (4, 320, 3, 3)),
        (SD1, "unet", "time_embedding.linear_2", "time_embed.2", (1280, 1280)),
        (SD1, "unet", "down_blocks.1.downsamplers.0.conv", "input_blocks.6.0.op", (640, 640, 3, 3)),
        (SD1, "unet", "down_blocks.2.resnets.1.conv1", "input_blocks.8.0.in_layers.2", (1280, 1280, 3, 3)),
        (SD1, "unet", "down_blocks.1.resnets.0.conv_shortcut", "input_blocks.4.0.skip_connection", (640, 320, 1, 1)),
        (SD1, "unet", "mid_block.resnets.1.time_emb_proj", "middle_block.2.emb_layers.1", (1280, 1280)),
        (SD1, "unet", "up_blocks.0.upsamplers.0.conv", "output_blocks.2.1.conv", (1280, 1280, 3, 3)),
        (SD1, "unet", "up_blocks.1.upsamplers.0.conv", "output_blocks.5.2.conv", (1280, 1280, 3, 3)),
        (SD1, "unet", "up_blocks.3.attentions.2.proj_out", "output_blocks.11.1.proj_out", (320, 320, 1, 1)),
        (
            SD1,
            "unet",
            "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
            "input_blocks.1.1.transformer_blocks.0.attn2.to_k",
            (320, 768),
        ),
        (SDXL, "unet", "up_blocks.0.upsamplers.0.conv", "output_blocks.2.2.conv", (1280, 1280, 3, 3)),
        (SDXL, "unet", "up_blocks.1.upsamplers.0.conv", "output_blocks.5.2.conv", (640, 640, 3, 3)),
        (SDXL, "unet", "add_embedding.linear_1", "label_emb.0.0", (1280, 2816)),
        (
            SDXL,
            "unet",
            "down_blocks.2.attentions.1.transformer_blocks.9.ff.net.0.proj",
            "input_blocks.8.1.transformer_blocks.9.ff.net.0.proj",
            (10240, 1280),
        ),
        (
            SDXL,
            "text_encoder_2",
            "text_model.encoder.layers.31.mlp.fc1",
            "transformer.resblocks.31.mlp.c_fc",
            (5120, 1280),
        ),
        (
            SDXL,
            "text_encoder_2",
            "text_model.encoder.layers.31.mlp.fc2",
            "transformer.resblocks.31.mlp.c_proj",
            (1280, 5120),
        ),
        (
            SDXL,
            "text_encoder_2",
            "text_model.encoder.layers.0.layer_norm2",
            "transformer.resblocks.0.ln_2",
            (1280,),
        ),
        (SD1, "vae", "decoder.up_blocks.0.resnets.2.conv1", "decoder.up.3.block.2.conv1", (512, 512, 3, 3)),
        (SD1, "vae", "decoder.up_blocks.1.resnets.0.norm2", "decoder.up.2.block.0.norm2", (512,)),
        (
            SD1,
            "vae",
            "decoder.up_blocks.3.resnets.0.conv_shortcut",
            "decoder.up.0.block.0.nin_shortcut",
            (128, 256, 1, 1),
        ),
        (SD1, "vae", "decoder.up_blocks.2.upsamplers.0.conv", "decoder.up.1.upsample.conv", (256, 256, 3, 3)),
        (SD1, "vae", "encoder.down_blocks.1.resnets.0.norm1", "encoder.down.1.block.0.norm1", (128,)),
        (SD1, "vae", "decoder.mid_block.resnets.1.conv2", "decoder.mid.block_2.conv2", (512, 512, 3, 3)),
        (SD1, "vae", "encoder.mid_block.attentions.0.to_out.0", "encoder.mid.attn_1.proj_out", (512, 512, 1, 1)),
    ],
)
def test_diffusers_names_lead_to_single_file_tensors(
    table: str, component: str, module: str, key: str, shape: tuple[int, ...]
) -> None:
    prefix = PLACES[table][1][component][1]
    assert weight(table, component, module) == whole(f"{prefix}{key}.weight", *shape)


def test_openclip_keeps_positions_in_a_bare_tensor() -> None:
    expected = whole("conditioner.embedders.1.model.positional_embedding", 77, 1280)
    assert weight(SDXL, "text_encoder_2", "text_model.embeddings.position_embedding") == expected


@pytest.mark.parametrize(
    ("table", "component", "block", "width"),
    [
        (SDXL, "text_encoder_2", "conditioner.embedders.1.model.transformer.resblocks.7.attn.in_proj_", 1280),
        ("arenasys_clip_v2_sd", "text_encoder", "cond_stage_model.model.transformer.resblocks.7.attn.in_proj_", 1024),
    ],
)
@pytest.mark.parametrize("parameter", ["weight", "bias"])
def test_openclip_holds_q_k_and_v_as_thirds(
    table: str, component: str, block: str, width: int, parameter: str
) -> None:
    tail = (width,) if parameter == "weight" else ()
    for third, name in enumerate(("q_proj", "k_proj", "v_proj")):
        view = weight(table, component, f"text_model.encoder.layers.7.self_attn.{name}", parameter)
        region = Region(block + parameter, third * width, (third + 1) * width)
        assert view == View((region,), (width, *tail))


def test_a_fused_openclip_name_reaches_split_tensors_in_the_order_q_k_v() -> None:
    table = "stripped_juggernaut_xl_v9_text_encoder_2_model_fp16"
    view = weight(table, "text_encoder_2", "transformer.resblocks.7.attn.in_proj")
    keys = [f"text_model.encoder.layers.7.self_attn.{name}_proj.weight" for name in "qkv"]
    assert view == View(tuple(Region(key, 0, 1280) for key in keys), (3840, 1280))


def test_openclip_stores_its_text_projection_transposed() -> None:
    key = "conditioner.embedders.1.model.text_projection"
    assert weight(SDXL, "text_encoder_2", "text_projection") == View((Region(key, 0, 1280),), (1280, 1280), True)
    straight = weight("stripped_juggernaut_xl_v9_text_encoder_2_model_fp16", "text_encoder_2", "text_projection")
    assert straight == whole("text_projection.weight", 1280, 1280)


@pytest.mark.parametrize("component", ["text_encoder", "text_encoder_2"])
def test_clip_has_its_names_with_and_without_the_leading_text_model(component: str) -> None:
    modules = key_map(SDXL).modules[component]
    for name in ("encoder.layers.3.self_attn.q_proj", "encoder.layers.3.mlp.fc2", "final_layer_norm"):
        assert modules[name].views == modules[f"text_model.{name}"].views


def test_gpt2_stores_its_conv1d_weights_transposed() -> None:
    tensors = infos(
        {
            "wte.weight": (50, 8),
            "h.0.attn.c_attn.weight": (8, 24),
            "h.0.attn.c_attn.bias": (24,),
            "h.0.mlp.c_proj.weight": (32, 8),
            "h.0.ln_1.weight": (8,),
        }
    )
    assert [each.name for each in FAMILIES if each.fits(tensors)] == ["gpt2"]
    modules = KeyMap.expand(identify(tensors), tensors).modules["model"]
    assert modules["h.0.attn.c_attn"].views == {
        "weight": View((Region("h.0.attn.c_attn.weight", 0, 8),), (24, 8), transpose=True),
        "stored_weight": whole("h.0.attn.c_attn.weight", 8, 24),
        "bias": whole("h.0.attn.c_attn.bias", 24),
    }
    assert modules["h.0.mlp.c_proj"].views["weight"].shape == (8, 32)
    assert modules["wte"].views["weight"] == whole("wte.weight", 50, 8)
