"""Families without a table of names yet: known by their LoRAs' names, so that a refusal says what a file is.

Their checkpoints bake under their own names (see `generic`).
"""

from lorabake.keymap.table import Architecture, Mark

FLUX = Architecture(
    name="flux",
    title="Flux.1",
    components=(),
    marks=(
        Mark("double_blocks_N_img_attn"),
        Mark("single_blocks_N_linear"),
        Mark("single_transformer_blocks_N"),
    ),
)
QWEN_IMAGE = Architecture(
    name="qwen_image",
    title="Qwen-Image",
    components=(),
    marks=(Mark("transformer_blocks_N_img_m"), Mark("transformer_blocks_N_txt_m")),
)
SD3 = Architecture(name="sd3", title="Stable Diffusion 3", components=(), marks=(Mark("joint_blocks_N"),))
ANIMA = Architecture(
    name="anima",
    title="Anima",
    components=(),
    marks=(Mark("llm_adapter"), Mark("blocks_N_adaln_modulation"), Mark("blocks_N_cross_attn_q_proj")),
)
WAN = Architecture(
    name="wan", title="Wan", components=(), marks=(Mark("blocks_N_cross_attn_k_img"), Mark("blocks_N_ffn_N"))
)
TRANSFORMERS = Architecture(
    name="transformers",
    title="a language model",
    components=(),
    marks=(
        Mark("model_layers_N_self_attn"),
        Mark("block_N_layer_N_SelfAttention"),
        Mark("self_attention_query_key_value"),
    ),
)
