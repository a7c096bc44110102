"""How models stack their experts in transformers 5, by the `model_type` of config.json."""

from __future__ import annotations

from lorabake.keymap.experts import ExpertLayout

PLAIN = (
    "afmoe", "axk1", "axk2", "bailing_hybrid", "beam", "cohere2_moe", "deepseek_ocr2", "deepseek_ocr2_text",
    "deepseek_v2", "deepseek_v3", "deepseek_v32", "deepseek_v4", "diffusion_gemma", "diffusion_gemma_text", "dots1",
    "dots3_note", "dots3_note_text", "ernie4_5_moe", "ernie4_5_vl_moe", "ernie4_5_vl_moe_text", "exaone_moe",
    "flex_olmo", "flint", "gemma4", "gemma4_text", "glm4_moe", "glm4_moe_lite", "glm4v_moe", "glm4v_moe_text",
    "glm5_next", "glm5_next_text", "glm_moe_dsa", "granitemoe", "granitemoe_swa", "granitemoehybrid",
    "granitemoeshared", "hunyuan_v1_moe", "hy_v3", "hy_v4", "inkling2", "inkling2_text", "inkling_mm_model",
    "inkling_text", "jamba", "kimi_linear", "kolibri1", "laguna", "lfm2_moe", "mellum", "mimo_v2_flash", "minimax",
    "minimax_m2", "minimax_m3_vl", "minimax_m3_vl_text", "mistral4", "mistral_large4", "mistral_large4_text",
    "mixtral", "muse_spark", "muse_spark_text", "nemotron_h", "olmoe", "phimoe", "qwen2_moe", "qwen3_5_moe",
    "qwen3_5_moe_text", "qwen3_moe", "qwen3_next", "qwen3_omni_moe", "qwen3_omni_moe_talker_text",
    "qwen3_omni_moe_text", "qwen3_omni_moe_thinker", "qwen4_exp", "qwen4_exp_text", "solar_open", "step3p7",
    "unlimited_ocr", "unlimited_ocr_text", "zaya",
)  # fmt: skip
LAYOUTS = (
    (PLAIN, ExpertLayout()),
    (("gpt_oss",), ExpertLayout(interleaved=True, turned=True, marked=True)),
    (("openai_privacy_filter", "aria", "aria_text"), ExpertLayout(turned=True, marked=True)),
    (("llama4", "llama4_text"), ExpertLayout(turned=True, marked=False)),
    (("qwen3_vl_moe", "qwen3_vl_moe_text"), ExpertLayout(turned=True, marked=None)),
)
