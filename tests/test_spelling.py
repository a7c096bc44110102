"""Spellings: real-world keys, each with the module and slot it means, and the places that names lead to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

import pytest

from lorabake.adapters import shared, suffixes
from lorabake.architectures import architectures
from lorabake.components import clip, unet
from lorabake.keymap.expansion import KeyMap
from lorabake.keymap.module import Module
from lorabake.keymap.names import flatten, pattern_of
from lorabake.keymap.slots import UNSUPPORTED, sort_tensors
from lorabake.keymap.spelling import Prefixes, Spellings
from lorabake.keymap.view import Region, View
from lorabake.sources.family import identify
from tests.tables import infos, load_table, names

# key -> (module, slot); each is as a public trainer writes it (FORMATS A.1 to A.8).
KEYS = {
    "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": ("lora_unet_mid_block_attentions_0_proj_in", "down"),
    "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": (
        "lora_te_text_model_encoder_layers_0_mlp_fc1",
        "up",
    ),
    "lora_unet_conv_in.lora_mid.weight": ("lora_unet_conv_in", "mid"),
    "base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight": (
        "base_model.model.model.layers.0.self_attn.k_proj",
        "down",
    ),
    "transformer.transformer_blocks.0.attn.to_out.0.lora_B.weight": (
        "transformer.transformer_blocks.0.attn.to_out.0",
        "up",
    ),
    "base_model.model.fc.lora_A.default.weight": ("base_model.model.fc", "down"),
    "base_model.model.fc.lora_B.default_0.weight": ("base_model.model.fc", "up"),
    "base_model.model.fc.lora_B.bias": ("base_model.model.fc", "bias"),
    "base_model.model.fc.lora_B.default.bias": ("base_model.model.fc", "bias"),
    "diffusion_model.blocks.0.attn.q.lora_A": ("diffusion_model.blocks.0.attn.q", "down"),
    "diffusion_model.blocks.0.attn.q.lora_B": ("diffusion_model.blocks.0.attn.q", "up"),
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k.lora.down.weight": (
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k",
        "down",
    ),
    "unet.down_blocks.0.attn1.to_k.lora.up.weight": ("unet.down_blocks.0.attn1.to_k", "up"),
    "down_blocks.0.attn1.processor.to_k_lora.down.weight": ("down_blocks.0.attn1.processor.to_k", "down"),
    "unet.mid_block.attn2.processor.to_out_lora.up.weight": ("unet.mid_block.attn2.processor.to_out", "up"),
    "double_blocks.0.processor.qkv_lora1.down.weight": ("double_blocks.0.processor.qkv_lora1", "down"),
    "double_blocks.0.processor.proj_lora2.up.weight": ("double_blocks.0.processor.proj_lora2", "up"),
    "single_blocks.0.processor.qkv_lora.down.weight": ("single_blocks.0.processor.qkv", "down"),
    "text_encoder_2.text_projection.lora_linear_layer.down.weight": ("text_encoder_2.text_projection", "down"),
    "text_encoder_2.text_projection.lora_linear_layer.up.weight": ("text_encoder_2.text_projection", "up"),
    "lora_unet_output_blocks_2_2_conv.alpha": ("lora_unet_output_blocks_2_2_conv", "alpha"),
    "lora_unet_conv_in.dora_scale": ("lora_unet_conv_in", "dora_scale"),
    "base_model.model.fc.lora_magnitude_vector": ("base_model.model.fc", "magnitude"),
    "base_model.model.fc.lora_magnitude_vector.weight": ("base_model.model.fc", "magnitude"),
    "base_model.model.fc.lora_magnitude_vector.default.weight": ("base_model.model.fc", "magnitude"),
    "transformer.blocks.0.to_q.magnitude": ("transformer.blocks.0.to_q", "magnitude"),
    "base_model.model.score.weight": ("base_model.model.score", "whole_weight"),
    "base_model.model.score.modules_to_save.weight": ("base_model.model.score", "whole_weight"),
    "base_model.model.score.modules_to_save.default.bias": ("base_model.model.score", "whole_bias"),
    "base_model.model.lin1.bias": ("base_model.model.lin1", "whole_bias"),
    "base_model.model.lin1.base_layer.bias": ("base_model.model.lin1", "whole_bias"),
    "base_model.model.wte.base_layer.weight": ("base_model.model.wte", "whole_weight"),
    "unet:12:down": ("unet:12", "down"),
    "model.layers.0.self_attn.q_proj.lora_a": ("model.layers.0.self_attn.q_proj", "lora_a"),
    "model.layers.0.self_attn.q_proj.lora_b": ("model.layers.0.self_attn.q_proj", "lora_b"),
    "model.layers.0.self_attn.q_proj.m": ("model.layers.0.self_attn.q_proj", "magnitude"),
    "text_encoder:0:up": ("text_encoder:0", "up"),
    **{
        f"lora_unet_conv_in.{slot}": ("lora_unet_conv_in", slot)
        for slot in (
            *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
            *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
            *("w_norm", "b_norm", "rescale", "on_input"),
        )
    },
    **{
        f"lora_unet_conv_in.{slot}.weight": ("lora_unet_conv_in", f"glora_{slot}")
        for slot in ("a1", "a2", "b1", "b2", "bm")
    },
    "oft_unet_input_blocks_4_1_proj_in.oft_blocks": ("oft_unet_input_blocks_4_1_proj_in", "oft_blocks"),
    "lora_unet_mid_block_attentions_0_proj_in.oft_diag": ("lora_unet_mid_block_attentions_0_proj_in", "oft_diag"),
    "base_model.model.fc.oft_R.weight": ("base_model.model.fc", "oft_R"),
    "base_model.model.fc.oft_R.default.weight": ("base_model.model.fc", "oft_R"),
    "transformer.fc.scaled_oft": ("transformer.fc", "scaled_oft"),
    "base_model.model.fc.boft_R": ("base_model.model.fc", "boft_R"),
    "base_model.model.fc.boft_s": ("base_model.model.fc", "boft_s"),
    **{
        f"base_model.model.fc.{slot}": ("base_model.model.fc", slot)
        for slot in (
            *("hra_u", "hira_A", "hira_B", "lora_E", "c3a_kernel", "road_theta", "road_alpha", "fourierft_spectrum"),
            *("miss_block", "delora_A", "delora_B", "delora_lambda", "delora_w_norm"),
        )
    },
    "base_model.model.fc.bone_block": ("base_model.model.fc", "miss_block"),
    "base_model.model.wte.lora_embedding_A": ("base_model.model.wte", "embedding_down"),
    "base_model.model.wte.lora_embedding_B.default": ("base_model.model.wte", "embedding_up"),
    "base_model.model.norm.ln_tuning_layers.weight": ("base_model.model.norm", "ln_weight"),
    "base_model.model.norm.ln_tuning_layers.bias": ("base_model.model.norm", "ln_bias"),
    "base_model.model.fc.ia3_l": ("base_model.model.fc", "ia3_l"),
    "diffusion_model.blocks.0.norm3.diff": ("diffusion_model.blocks.0.norm3", "diff"),
    "diffusion_model.blocks.0.self_attn.q.diff_b": ("diffusion_model.blocks.0.self_attn.q", "diff_b"),
    "double_blocks.0.img_attn.norm.key_norm.scale": ("double_blocks.0.img_attn.norm.key_norm", "norm_scale"),
    "diffusion_model.img_in.reshape_weight": ("diffusion_model.img_in", "reshape_weight"),
    "base_model.model.fc.vera_lambda_b": ("base_model.model.fc", "vera_lambda_b"),
    "base_model.model.fc.vera_lambda_d": ("base_model.model.fc", "vera_lambda_d"),
    "base_model.model.fc.gralora_A": ("base_model.model.fc", "gralora_A"),
    "base_model.model.fc.gralora_B": ("base_model.model.fc", "gralora_B"),
    "base_model.model.fc.gralora_A_general.weight": ("base_model.model.fc", "gralora_A_general"),
    "base_model.model.fc.gralora_B_general.weight": ("base_model.model.fc", "gralora_B_general"),
    "base_model.model.fc.waveft_spectrum": ("base_model.model.fc", "waveft_spectrum"),
    "base_model.model.fc.vblora_logits_A": ("base_model.model.fc", "logits_A"),
    "base_model.model.fc.vblora_logits_B": ("base_model.model.fc", "logits_B"),
    "base_model.model.fc.vblora_logits_A_topk_indices": ("base_model.model.fc", "indices_A"),
    "base_model.model.fc.vblora_logits_A_topk_weights": ("base_model.model.fc", "weights_A"),
    "base_model.model.fc.vblora_logits_B_topk_indices": ("base_model.model.fc", "indices_B"),
    "base_model.model.fc.vblora_logits_B_topk_weights": ("base_model.model.fc", "weights_B"),
    "base_model.model.fc.randlora_lambda": ("base_model.model.fc", "randlora_lambda"),
    "base_model.model.fc.randlora_gamma": ("base_model.model.fc", "randlora_gamma"),
    "base_model.model.fc.randlora_A": ("base_model.model.fc", "randlora_A"),
    "base_model.model.fc.randlora_B": ("base_model.model.fc", "randlora_B"),
    "base_model.model.fc.shira_weight": ("base_model.model.fc", "shira_weight"),
    "base_model.model.fc.shira_indices": ("base_model.model.fc", "shira_indices"),
    "base_model.model.wte.token_adapter.trainable_tokens_delta": ("base_model.model.wte", "tokens"),
    "oft_unet_double_blocks_0_img_attn_qkv.oft_blocks.0": ("oft_unet_double_blocks_0_img_attn_qkv", "oft_blocks_0"),
    "oft_unet_single_blocks_0_linear1.oft_blocks.1": ("oft_unet_single_blocks_0_linear1", "oft_blocks_1"),
    "oft_unet_single_blocks_0_linear1.oft_blocks.2": ("oft_unet_single_blocks_0_linear1", "oft_blocks_2"),
    "oft_unet_single_blocks_0_linear1.oft_blocks.3": ("oft_unet_single_blocks_0_linear1", "oft_blocks_3"),
    "lora_unet_conv_in.bias_indices": ("lora_unet_conv_in", "sparse_places"),
    "lora_unet_conv_in.bias_values": ("lora_unet_conv_in", "sparse_values"),
    "lora_unet_conv_in.bias_size": ("lora_unet_conv_in", "sparse_size"),
    "lora_unet_conv_in.dyn_down": ("lora_unet_conv_in", "down"),
    "lora_unet_conv_in.dyn_up": ("lora_unet_conv_in", "up"),
    "base_model.model.fc.beft_bias": ("base_model.model.fc", "beft_bias"),
    "base_model.model.fc.deft_P": ("base_model.model.fc", "deft_P"),
    "base_model.model.fc.deft_R": ("base_model.model.fc", "deft_R"),
    "base_model.model.fc.supertuning_values": ("base_model.model.fc", "super_values"),
    "base_model.model.fc.supertuning_indices": ("base_model.model.fc", "super_places"),
    "base_model.model.fc.supertuning_lora_A.weight": ("base_model.model.fc", "super_A"),
    "base_model.model.fc.supertuning_lora_B.weight": ("base_model.model.fc", "super_B"),
    "base_model.model.fc.pvera_lambda_b": ("base_model.model.fc", "pvera_lambda_b"),
    "base_model.model.fc.pvera_lambda_d": ("base_model.model.fc", "pvera_lambda_d"),
    "base_model.model.fc.lora_velora_embed": ("base_model.model.fc", "velora_embed"),
    "base_model.model.fc.lora_monteclora_sampler.expert_weights": (
        "base_model.model.fc",
        "monteclora_expert_weights",
    ),
    "base_model.model.fc.lora_monteclora_sampler.expert_weights_prior": (
        "base_model.model.fc",
        "monteclora_expert_weights_prior",
    ),
    "base_model.model.fc.lora_monteclora_sampler.gaussian_var_prior": (
        "base_model.model.fc",
        "monteclora_gaussian_var_prior",
    ),
    "fc.lora_monteclora_sampler.std_prior": ("fc", "monteclora_std_prior"),
    "layers.0.attn.q_proj.lora_a.weight": ("layers.0.attn.q_proj", "down"),
    "layers.0.attn.q_proj.lora_b.weight": ("layers.0.attn.q_proj", "up"),
    "blk.0.attn_q.weight.lora_a": ("blk.0.attn_q", "down"),
    "blk.0.attn_q.weight.lora_b": ("blk.0.attn_q", "up"),
    "transformer.h.0.attn.qkv.lora_A": ("transformer.h.0.attn.qkv", "down"),
    "diffusion_model.scale.set_weight": ("diffusion_model.scale", "set_weight"),
    # by a parameter's full name (ComfyUI), and LightX2V's word for one
    "diffusion_model.head.head.bias.diff": ("diffusion_model.head.head", "diff_b"),
    "diffusion_model.head.head.weight.diff": ("diffusion_model.head.head", "diff"),
    "diffusion_model.head.head.bias.set_weight": ("diffusion_model.head.head", "set_bias"),
    "diffusion_model.scale_shift_table.diff": ("diffusion_model.scale_shift_table", "diff"),
    "diffusion_model.blocks.3.diff_m": ("diffusion_model.blocks.3.modulation", "diff"),
    "head.diff_m": ("head.modulation", "diff"),
}
UNBAKED = {
    "oft_unet_double_blocks_0_img_attn_qkv.oft_blocks.4": "OFT in more than four parts",
    "base_model.model.fc.oft_r": "OFT of PEFT before 0.16",
    "lora_unet_conv_in.lora_A.0": "DyLoRA in blocks",
    "lora_unet_conv_in.lambda_layer": "T-LoRA",
    "lora_unet_conv_in.q_layer.weight": "T-LoRA",
    "lora_unet_conv_in.up_list.3": "DyLoRA in blocks",
    "transformer_blocks.0.qkv_proj.lora_down": "nunchaku's LoRA",
    "transformer_blocks.0.qkv_proj.lora_up": "nunchaku's LoRA",
    "down_blocks.0.attentions.0.proj_in.___.layer.W_down": "HCP-Diffusion's LoRA",
    "down_blocks.0.attentions.0.proj_in.___.alpha": "HCP-Diffusion's LoRA",
}
# What the published LoRAs have beside: learned embeddings.
NO_KNOWN_FORM = {
    "real_lora_lora_disney": {"<s1>", "<s2>"},
}
NO_FORM = ["<s1>", "w_a_000", "lora_unet_unet_down_blocks_0_to_k_lora_down", ".lora_up.weight", "x_lora_up.weight.0"]


def sort(*keys: str) -> tuple[dict[str, list[str]], dict[str, list[str]], list[str]]:
    found = sort_tensors(infos(dict.fromkeys(keys, (4, 4))).values(), suffixes())
    modules = {name: sorted(module.slots) for name, module in found.modules.items()}
    unsupported = {kind: [info.key for info in each] for kind, each in found.unsupported.items()}
    return modules, unsupported, [info.key for info in found.unknown]


# -- suffixes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "expected"), KEYS.items(), ids=KEYS)
def test_a_key_is_a_module_and_a_slot(key: str, expected: tuple[str, str]) -> None:
    assert sort(key) == ({expected[0]: [expected[1]]}, {}, [])


@pytest.mark.parametrize(("key", "kind"), UNBAKED.items(), ids=UNBAKED)
def test_a_kind_that_cannot_be_baked_is_named(key: str, kind: str) -> None:
    assert sort(key) == ({}, {kind: [key]}, [])


@pytest.mark.parametrize("key", NO_FORM)
def test_a_key_of_no_known_form_is_said_to_be_one(key: str) -> None:
    assert sort(key) == ({}, {}, [key])


def test_every_suffix_has_an_example() -> None:
    for rows, examples in ((suffixes(), KEYS), (UNSUPPORTED, UNBAKED)):
        for suffix, meaning in rows:
            fitting = [key for key in examples if re.search(f"(?:{suffix})\\Z", key)]
            assert fitting, f"{suffix} ({meaning})"


def test_shared_tensors_belong_to_every_module_that_needs_them() -> None:
    keys = ["base_model.vera_A", "base_model.vera_B.default", "base_model.vblora_vector_bank"]
    keys += [f"base_model.model.{name}.vera_lambda_{which}" for name in ("a", "b") for which in "bd"]
    found = sort_tensors(infos(dict.fromkeys(keys, (4, 4))).values(), suffixes(), shared())
    assert sorted(found.modules) == ["base_model.model.a", "base_model.model.b"]
    for module in found.modules.values():
        assert sorted(module.slots) == ["vera_A", "vera_B", "vera_lambda_b", "vera_lambda_d"]
    assert {module.size for module in found.modules.values()} == {2}
    assert found.common == 2
    assert [info.key for info in found.unknown] == ["base_model.vblora_vector_bank"]


@pytest.mark.parametrize(
    ("key", "module"),
    [
        ("fc.lora_A.default.weight", "fc"),  # not the module fc.lora_A.default
        ("attn.to_q_lora.down.weight", "attn.to_q"),
        ("attn.lora.down.weight", "attn"),
        ("fc.modules_to_save.default.weight", "fc"),
        ("alpha.lora_A.weight", "alpha"),
        ("ff.alpha.alpha", "ff.alpha"),
    ],
)
def test_the_longest_suffix_counts(key: str, module: str) -> None:
    modules, _, _ = sort(key)
    assert list(modules) == [module]


@pytest.mark.parametrize(
    ("key", "module"),
    [
        ("unet._orig_mod.conv_in.lora_A.weight", "unet.conv_in"),
        ("_orig_mod.conv_in.lora_A.weight", "conv_in"),
        ("lora_unet__orig_mod_conv_in.lora_down.weight", "lora_unet_conv_in"),
        ("a._fsdp_wrapped_module._checkpoint_wrapped_module.b.lora_A.weight", "a.b"),
        ("lora_unet_a__fsdp_wrapped_module__checkpoint_wrapped_module_b.alpha", "lora_unet_a_b"),
        ("_forward_module._fpw_module.a.lora_A.weight", "a"),
        ("a_orig_mod.b.lora_A.weight", "a_orig_mod.b"),
        ("a.module.b.lora_A.weight", "a.module.b"),  # it may be the base's own name: the base decides
        ("base_model.model.base_layer.experts.lora_A.weight", "base_model.model.experts"),
    ],
)
def test_wrappers_of_training_are_no_part_of_the_module(key: str, module: str) -> None:
    assert list(sort(key)[0]) == [module]


def test_slots_of_one_module_come_together_and_a_second_tensor_for_one_slot_is_strange() -> None:
    together = sort("m.lora_A.weight", "m.lora_up.weight", "m.alpha", "m.lora_down.weight")
    assert together == ({"m": ["alpha", "down", "up"]}, {}, ["m.lora_down.weight"])


@pytest.mark.parametrize("table", names("lora"))
def test_every_key_of_every_lora_is_of_a_known_form(table: str) -> None:
    tensors = load_table(table)
    found = sort_tensors(tensors.values(), suffixes())
    strange = {pattern_of(info.key) for info in found.unknown}
    assert strange == NO_KNOWN_FORM.get(table, set())
    assert not found.unsupported
    counted = sum(len(module.slots) for module in found.modules.values())
    assert counted + sum(map(len, found.unsupported.values())) + len(found.unknown) == len(tensors)


@pytest.mark.parametrize(
    ("name", "pattern", "flat"),
    [
        ("unet.down_blocks.1.conv2", "unet.down_blocks.N.conv2", "unet_down_blocks_N_conv2"),
        ("lora_unet_input_blocks_4_1_proj_in", "lora_unet_input_blocks_N_N_proj_in", None),
        ("unet:12", "unet:N", None),
        ("text_encoder_2.text_model/x.31", "text_encoder_N.text_model/x.N", "text_encoder_N_text_model_x_N"),
        ("module.blocks.3.module.attn", "module.blocks.N.module.attn", "blocks_N_attn"),
    ],
)
def test_numbers_are_counted_as_one_pattern(name: str, pattern: str, flat: str | None) -> None:
    assert pattern_of(name) == pattern
    assert flatten(name) == (flat or pattern)


# -- every spelling of one module ------------------------------------------------------------------------


@cache
def spelled(table: str) -> Spellings:
    tensors = load_table(table)
    return Spellings(KeyMap.expand(identify(tensors), tensors))


def views(table: str, name: str) -> list[View]:
    return [module.views["weight"] for module in spelled(table).get(name, [])]


SD1, SDXL = "full_sd15_singlefile_1131", "full_sdxl_singlefile_2515"
SD1_KEY = "input_blocks.1.1.transformer_blocks.0.attn1.to_out.0"
SD1_NAME = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"
SDXL_KEY = "input_blocks.4.1.transformer_blocks.1.attn2.to_k"
SDXL_NAME = "down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k"
TE2 = "text_model.encoder.layers.30.self_attn.k_proj"


def flat(name: str) -> str:
    return name.replace(".", "_")


@pytest.mark.parametrize(
    ("table", "view", "names"),
    [
        (
            SD1,
            View((Region(f"model.diffusion_model.{SD1_KEY}.weight", 0, 320),), (320, 320)),
            [
                f"lora_unet_{flat(SD1_NAME)}",
                f"lora_unet_{flat(SD1_KEY)}",
                f"lycoris_{flat(SD1_NAME)}",
                f"unet.{SD1_NAME}",
                f"unet.{SD1_NAME.replace('to_out.0', 'processor.to_out')}",
                SD1_NAME.replace("to_out.0", "processor.to_out"),
                f"unet.base_model.model.{SD1_NAME}",
                f"base_model.model.unet.{SD1_NAME}",
                f"base_model.model.{SD1_NAME}",
                SD1_NAME,
                SD1_KEY,
                f"diffusion_model.{SD1_KEY}",
                f"model.diffusion_model.{SD1_KEY}",
            ],
        ),
        (
            SDXL,
            View((Region(f"model.diffusion_model.{SDXL_KEY}.weight", 0, 640),), (640, 2048)),
            [
                f"lora_unet_{flat(SDXL_NAME)}",
                f"lora_unet_{flat(SDXL_KEY)}",
                f"lycoris_{flat(SDXL_NAME)}",
                f"lycoris_{flat(SDXL_KEY)}",
                f"unet.{SDXL_NAME}",
                f"unet.{SDXL_NAME.replace('to_k', 'processor.to_k')}",
                f"base_model.model.{SDXL_NAME}",
                SDXL_NAME,
                f"diffusion_model.{SDXL_KEY}",
                f"model.diffusion_model.{SDXL_KEY}",
            ],
        ),
        (
            SDXL,
            View(
                (Region("conditioner.embedders.1.model.transformer.resblocks.30.attn.in_proj_weight", 1280, 2560),),
                (1280, 1280),
            ),
            [
                f"lora_te2_{flat(TE2)}",
                f"lora_te2_{flat(TE2.removeprefix('text_model.'))}",
                f"text_encoder_2.{TE2}",
                f"text_encoder_2.{TE2.removeprefix('text_model.')}",
                f"text_encoder_2.{TE2.replace('k_proj', 'to_k')}",
                f"text_encoders.clip_g.transformer.{TE2}",
                f"text_encoder_2.base_model.model.{TE2}",
            ],
        ),
    ],
)
def test_every_spelling_of_a_module_leads_to_the_same_rows(table: str, view: View, names: list[str]) -> None:
    assert {name: views(table, name) for name in names} == {name: [view] for name in names}


@pytest.mark.parametrize(
    ("table", "name"),
    [
        (SD1, "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_"),
        (SD1, "lora_unet_down_blocks_0_attentions_1_transformer_blocks_10_attn1_to_q"),
        (SD1, "lora_te2_text_model_encoder_layers_0_mlp_fc1"),
        (SD1, "lora_unet_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"),
        (SDXL, "lora_unet_down_blocks_0_attentions_0_proj_in"),
    ],
)
def test_a_name_that_is_only_like_a_module_leads_nowhere(table: str, name: str) -> None:
    assert views(table, name) == []


def test_a_name_without_a_component_means_both_text_encoders() -> None:
    found = spelled(SDXL)["text_model.encoder.layers.3.mlp.fc1"]
    assert [module.component for module in found] == ["text_encoder", "text_encoder_2"]


def test_sd2_takes_the_names_of_transformers_for_openclip() -> None:
    (view,) = views("arenasys_clip_v2_sd", "lora_te_text_model_encoder_layers_0_self_attn_v_proj")
    key = "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight"
    assert view == View((Region(key, 2048, 3072),), (1024, 1024))


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1", {"text_encoder_2"}),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1", {"text_encoder"}),
        ("text_encoder_2.text_projection", {"text_encoder_2"}),
        ("base_model.model.unet.conv_in", {"unet"}),
        ("module.unet.conv_in", {"unet"}),
        ("unet._orig_mod.conv_in", {"unet"}),
        ("unet:0", {"unet"}),
        ("conv_in", set()),
    ],
)
def test_a_key_names_its_component_by_the_longest_prefix(key: str, expected: set[str]) -> None:
    sdxl = next(each for each in architectures() if each.name == "sdxl")
    assert Prefixes(sdxl.components).named(key) == expected


# -- names that are like a spelling ----------------------------------------------------------------------

WRAPPERS = ["module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"]
LIKE = {
    SD1: (SD1_NAME, "lora_unet_", "unet."),
    SDXL: (SDXL_NAME, "lora_unet_", "unet."),
    "diffusers_flux1_dev_transformer": ("single_blocks.3.linear1", "lora_unet_", "diffusion_model."),
    "diffusers_wan21_t2v_14b": ("blocks.7.attn2.to_out.0", "lora_transformer_", "transformer."),
    "stripped_juggernaut_xl_v9_text_encoder_model_fp16": (
        "text_model.encoder.layers.3.mlp.fc1",
        "lora_te1_",
        "text_encoder.",
    ),
}


@pytest.mark.parametrize("table", LIKE)
def test_a_name_may_be_flattened_in_part_and_end_with_an_underscore(table: str) -> None:
    path, flat_start, dotted_start = LIKE[table]
    due = views(table, dotted_start + path)
    assert len(due) == 1
    for start in (flat_start, dotted_start, "base_model.model."):
        name = start + path
        dots = [at for at, letter in enumerate(name) if letter == "."]
        for chosen in range(1 << min(len(dots), 6)):
            flattened = {at for bit, at in enumerate(dots) if chosen >> bit & 1}
            half = "".join("_" if at in flattened else letter for at, letter in enumerate(name))
            assert views(table, half) == views(table, f"{half}_") == due, half


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("table", LIKE)
def test_wrappers_of_training_may_stand_anywhere_in_a_name(table: str, wrapper: str) -> None:
    path, flat_start, dotted_start = LIKE[table]
    due = views(table, dotted_start + path)
    for start in (dotted_start, f"{dotted_start}base_model.model.", "base_model.model."):
        words = (start + path).split(".")
        for at in range(len(words)):
            for many in (1, 2):
                name = ".".join([*words[:at], *[wrapper] * many, *words[at:]])
                (module,) = sort(f"{name}.lora_A.weight")[0]
                assert views(table, module) == due, name
    words = path.split(".")
    for at in range(len(words)):
        name = flat_start + "_".join([*words[:at], wrapper, *words[at:]])
        (module,) = sort(f"{name}.lora_down.weight")[0]
        assert views(table, module) == due, name


def made(*names: str) -> Spellings:
    tensors = infos({f"{name}.weight": (4, 4) for name in names})
    return Spellings(KeyMap.expand(identify(tensors), tensors))


def keys(words: Mapping[str, list[Module]]) -> dict[str, list[str]]:
    return {word: [module.views["weight"].keys[0] for module in modules] for word, modules in words.items()}


def test_a_name_of_the_base_is_that_and_nothing_like_it() -> None:
    base = made("fc", "module.fc", "a_b.c", "a.b.c")
    assert keys(base.words("module.fc")) == {"module.fc": ["module.fc.weight"]}
    assert keys(base.words("fc")) == {"fc": ["fc.weight"]}
    assert keys(base.words("a_b.c")) == {"a_b.c": ["a_b.c.weight"]}
    assert keys(base.words("a.b.c")) == {"a.b.c": ["a.b.c.weight"]}


def test_a_base_may_be_wrapped_itself() -> None:
    base = made("module.model.fc", "module.model.gate")
    for name in ("model.fc", "base_model.model.model.fc", "base_model.model.module.model.fc", "lora_unet_model_fc"):
        assert [module.name for module in base[name]] == ["module.model.fc"], name


def test_a_name_that_is_like_several_stands_for_each_of_them() -> None:
    base = made("x.a_b.c", "x.a.b_c", "x.d")
    assert keys(base.words("x.a_b_c")) == {"x.a_b.c": ["x.a_b.c.weight"], "x.a.b_c": ["x.a.b_c.weight"]}
    assert base.words("x.a_b_d") == {}
    assert base.get("x.e") is None


def test_the_spelling_that_a_name_is_taken_for_is_told() -> None:
    base = made("model.layers.0.q")
    assert base.word("base_model.model.model.layers.0.q") == "base_model.model.model.layers.0.q"
    assert base.word("module.base_model.model.model_layers.0_q") == "base_model.model.model.layers.0.q"
    assert base.word("base_model.model.module.unknown") == "base_model.model.unknown"


# A language model's layers on the disk, alone and as the text part of others: root, head, what else there is.
TEXT_PARTS = {
    "alone": ("model.", "lm_head", ()),
    "AutoModel": ("", None, ()),
    "LLaVA": ("language_model.model.", "language_model.lm_head", ("vision_tower.encoder.layers.0.self_attn.q_proj",)),
    "Gemma 3": ("model.language_model.", "lm_head", ("model.vision_tower.encoder.layers.0.self_attn.q_proj",)),
    "Qwen2-VL": ("model.", "lm_head", ("visual.patch_embed.proj", "visual.blocks.0.attn.proj")),
    "Qwen3-VL": (
        "model.language_model.",
        "lm_head",
        ("model.visual.patch_embed.proj", "model.visual.blocks.0.attn.proj"),
    ),
    "SmolVLM": ("model.text_model.", "lm_head", ("model.vision_model.encoder.layers.0.self_attn.q_proj",)),
    "MiniCPM-V": ("llm.model.", "llm.lm_head", ("vpm.layers.0.self_attn.q_proj",)),
    "Qwen2.5-Omni": ("thinker.model.", "thinker.lm_head", ("talker.model.layers.0.self_attn.q_proj",)),
}
ROOTS = ["model.", "model.language_model.", "language_model.model.", "model.text_model.", "llm.model."]


@pytest.mark.parametrize("sort_of_model", TEXT_PARTS)
def test_a_text_adapter_finds_the_text_part_and_the_other_way_round(sort_of_model: str) -> None:
    root, head, others = TEXT_PARTS[sort_of_model]
    layer = "layers.0.self_attn.q_proj"
    names = [root + layer, f"{root}layers.0.input_layernorm", *([head] if head else []), *others]
    base = made(*names)
    for other in (*ROOTS, root):
        for start in ("base_model.model.", "", "module.base_model.model."):
            found = base.get(f"{start}{other}{layer}", [])
            assert [module.views["weight"].keys[0] for module in found] == [f"{root}{layer}.weight"], other
    for other in ("lm_head", "language_model.lm_head") if head else ():
        assert [module.views["weight"].keys[0] for module in base[f"base_model.model.{other}"]] == [f"{head}.weight"]
    for name in others:
        assert [module.views["weight"].keys[0] for module in base[f"base_model.model.{name}"]] == [f"{name}.weight"]
    assert base.get(f"model.language_model.{layer}.absent") is None


def test_a_name_that_the_base_has_is_of_no_other_root() -> None:
    base = made("model.layers.0.q", "language_model.model.layers.0.q", "language_model.model.layers.1.q")
    assert keys(base.words("model.layers.0.q")) == {"model.layers.0.q": ["model.layers.0.q.weight"]}
    assert keys(base.words("module.model.layers.0.q")) == {"model.layers.0.q": ["model.layers.0.q.weight"]}
    assert keys(base.words("model.layers.1.q")) == {"model.layers.1.q": ["language_model.model.layers.1.q.weight"]}


@pytest.mark.parametrize(
    "base",
    [
        ("model.language_model.layers.0.q", "model.visual.patch_embed.proj", "model.final_layer2.linear"),
        ("model.diffusion_model.language_model.layers.0.q", "model.diffusion_model.final_layer2.linear"),
    ],
    ids=["transformers", "ComfyUI"],
)
def test_a_language_model_that_makes_pictures_goes_by_the_names_of_both(base: tuple[str, ...]) -> None:
    """HiDream-O1: ModelScope's LoRAs begin with `model.`, others with `diffusion_model.`."""
    spelled = made(*base, base[0].replace(".q", ".input_layernorm"))
    for start in ("model.", "diffusion_model.", "base_model.model.model.", "transformer."):
        for name, key in (("language_model.layers.0.q", base[0]), ("final_layer2.linear", base[-1])):
            assert [module.views["weight"].keys[0] for module in spelled[start + name]] == [f"{key}.weight"], start


def test_a_transformers_lora_may_speak_of_a_unet() -> None:
    """PixArt's first script for PEFT wrote what diffusers called every denoiser then."""
    name = "transformer_blocks.3.attn1.to_q"
    for start in ("unet.base_model.model.", "base_model.model.unet.", "unet."):
        (view,) = views("diffusers_pixart_alpha", start + name)
        assert view.keys == (f"{name}.weight",)


def test_every_spelling_is_listed_once() -> None:
    base = made("model.layers.0.q")
    words = [*base]
    assert len(words) == len({*words}) == len(base)
    assert {"model.layers.0.q", "base_model.model.model.layers.0.q", "lycoris_model_layers_0_q"} <= {*words}
    assert all([module.name for module in base[word]] == ["model.layers.0.q"] for word in words)


# -- index-named files (cloneofsimo/lora, FORMATS A.1) --------------------------------------------------------


def test_blocks_follow_the_trainers_traversal_with_the_middle_last() -> None:
    heads = [(2, "down_blocks.0"), (2, "down_blocks.1"), (2, "down_blocks.2")]
    heads += [(3, "up_blocks.1"), (3, "up_blocks.2"), (3, "up_blocks.3"), (1, "mid_block")]
    expected = tuple(f"{head}.attentions.{i}.transformer_blocks.0" for count, head in heads for i in range(count))
    assert {order.blocks for order in unet.ORDERS} == {expected}


def test_the_feed_forward_stood_between_the_attentions() -> None:
    attn1 = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0")
    attn2 = ("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0")
    ff = "ff.net.0.proj"
    assert {order.inner for order in unet.ORDERS} == {(*attn1, ff, *attn2), (*attn1, *attn2, ff), (*attn1, *attn2)}


def test_text_encoders_list_k_before_v_before_q() -> None:
    (order,) = clip.ORDERS
    names = ["k_proj", "v_proj", "q_proj", "out_proj"]
    assert order.blocks == ("text_model.encoder.layers.{}",)
    assert list(order.inner) == [f"self_attn.{name}" for name in names]


# -- text encoders in files of their own, and parts that PEFT wrapped by themselves -------------------------------

Q = "layers.0.self_attn.q_proj"
LONE = {
    "llama": (f"model.{Q}", "model.embed_tokens"),
    "t5": ("encoder.block.0.layer.0.SelfAttention.q", "shared"),
    "qwen_vl": (f"model.language_model.{Q}", "model.visual.blocks.0.attn.qkv", "model.visual.patch_embed.proj"),
}


def of_modules(*modules: str) -> Spellings:
    tensors = infos({f"{module}.weight": ((8, 3, 2, 2, 2) if "patch" in module else (8, 8)) for module in modules})
    return Spellings(KeyMap.expand(identify(tensors), tensors))


@pytest.mark.parametrize("base", LONE)
@pytest.mark.parametrize("start", ["text_encoder.", "text_encoder_2.", "lora_te_", "lora_te1_", "lora_te2_"])
def test_a_text_encoder_by_itself_goes_by_its_prefixes_as_a_part(start: str, base: str) -> None:
    spelled = of_modules(*LONE[base])
    path = LONE[base][0]
    name = start + (path if start.endswith(".") else path.replace(".", "_"))
    assert [module.views["weight"].keys for module in spelled[name]] == [(f"{path}.weight",)]


@pytest.mark.parametrize(
    "inside", ["language_model.base_model.model.model.", "base_model.model.base_model.model.model."]
)
def test_peft_may_have_wrapped_a_part(inside: str) -> None:
    path = f"language_model.model.{Q}" if inside.startswith("language") else f"model.{Q}"
    spelled = of_modules(path)
    assert [module.views["weight"].keys for module in spelled[f"{inside}{Q}"]] == [(f"{path}.weight",)]


def test_an_own_name_comes_before_what_a_prefix_makes_of_it() -> None:
    """SAM 3 has a projection of its own inside its text encoder, and one beside it."""
    spelled = of_modules("text_encoder.text_projection", "text_projection")
    assert [each.views["weight"].keys for each in spelled["text_encoder.text_projection"]] == [
        ("text_encoder.text_projection.weight",)
    ]
