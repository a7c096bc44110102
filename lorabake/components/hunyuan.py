"""The blocks of HunyuanVideo and HunyuanImage, as Tencent's code, ComfyUI and diffusers name them.

Source of the pairs: ComfyUI's renaming when it loads such a file, and diffusers' conversion.
"""

from lorabake.keymap.table import Row

QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
ADDED_QKV = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")

# Layouts, in this order: tencent, comfy, diffusers.
DOUBLE_BLOCKS = (
    Row(("img_attn_proj", "img_attn.proj", "attn.to_out.0")),
    Row(("txt_attn_proj", "txt_attn.proj", "attn.to_add_out")),
    Row(("img_attn_q_norm", "img_attn.norm.query_norm", "attn.norm_q")),
    Row(("img_attn_k_norm", "img_attn.norm.key_norm", "attn.norm_k")),
    Row(("txt_attn_q_norm", "txt_attn.norm.query_norm", "attn.norm_added_q")),
    Row(("txt_attn_k_norm", "txt_attn.norm.key_norm", "attn.norm_added_k")),
    Row(("img_mlp.fc1", "img_mlp.0", "ff.net.0.proj")),
    Row(("img_mlp.fc2", "img_mlp.2", "ff.net.2")),
    Row(("txt_mlp.fc1", "txt_mlp.0", "ff_context.net.0.proj")),
    Row(("txt_mlp.fc2", "txt_mlp.2", "ff_context.net.2")),
    Row(("img_mod.linear", "img_mod.lin", "norm1.linear")),
    Row(("txt_mod.linear", "txt_mod.lin", "norm1_context.linear")),
)
ENDS = (
    Row(
        (
            "txt_in.individual_token_refiner.blocks.{}",
            "txt_in.individual_token_refiner.blocks.{}",
            "context_embedder.token_refiner.refiner_blocks.{}",
        ),
        (
            Row(("self_attn_qkv", "self_attn.qkv", QKV)),
            Row(("self_attn_proj", "self_attn.proj", "attn.to_out.0")),
            Row(("mlp.fc1", "mlp.0", "ff.net.0.proj")),
            Row(("mlp.fc2", "mlp.2", "ff.net.2")),
            Row(("adaLN_modulation.1", "adaLN_modulation.1", "norm_out.linear")),
        ),
    ),
    Row(
        ("txt_in", "txt_in", "context_embedder"),
        (
            Row(("input_embedder", "input_embedder", "proj_in")),
            Row(("t_embedder.mlp.0", "t_embedder.in_layer", "time_text_embed.timestep_embedder.linear_1")),
            Row(("t_embedder.mlp.2", "t_embedder.out_layer", "time_text_embed.timestep_embedder.linear_2")),
            Row(("c_embedder.linear_1", "c_embedder.in_layer", "time_text_embed.text_embedder.linear_1")),
            Row(("c_embedder.linear_2", "c_embedder.out_layer", "time_text_embed.text_embedder.linear_2")),
        ),
    ),
    Row(("img_in", "img_in", "x_embedder")),
    Row(("final_layer.linear", "final_layer.linear", "proj_out")),
    Row(
        ("final_layer.adaLN_modulation.1", "final_layer.adaLN_modulation.1", "norm_out.linear"),
        swapped=("tencent", "comfy"),
    ),
)
ROWS = (
    Row(
        ("double_blocks.{}", "double_blocks.{}", "transformer_blocks.{}"),
        (
            Row(("img_attn_qkv", "img_attn.qkv", QKV)),
            Row(("txt_attn_qkv", "txt_attn.qkv", ADDED_QKV)),
            *DOUBLE_BLOCKS,
        ),
    ),
    Row(
        ("single_blocks.{}", "single_blocks.{}", "single_transformer_blocks.{}"),
        (
            Row(("linear1", "linear1", (*QKV, "proj_mlp")), sizes=("in", "in", "in", "rest")),
            Row(("linear2", "linear2", "proj_out")),
            Row(("q_norm", "norm.query_norm", "attn.norm_q")),
            Row(("k_norm", "norm.key_norm", "attn.norm_k")),
            Row(("modulation.linear", "modulation.lin", "norm.linear")),
        ),
    ),
    *ENDS,
)

# The small text encoder for glyphs.
BYT5 = (
    Row(("byt5_in.layernorm", "byt5_in.layernorm", "context_embedder_2.norm")),
    Row(("byt5_in.fc1", "byt5_in.fc1", "context_embedder_2.linear_1")),
    Row(("byt5_in.fc2", "byt5_in.fc2", "context_embedder_2.linear_2")),
    Row(("byt5_in.fc3", "byt5_in.fc3", "context_embedder_2.linear_3")),
)
