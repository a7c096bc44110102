"""The blocks of Flux.1 and its descendants, as Black Forest Labs' code and as diffusers name them.

Source of the pairs: the conversion that diffusers performs when it loads a single file.
"""

from lorabake.keymap.table import Bare, Row

QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
ADDED_QKV = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")

# Layouts, in this order: bfl, diffusers.
ATTENTION = (
    Row(("img_attn.qkv", QKV)),
    Row(("txt_attn.qkv", ADDED_QKV)),
    Row(("img_attn.proj", "attn.to_out.0")),
    Row(("txt_attn.proj", "attn.to_add_out")),
    Row((Bare("img_attn.norm.query_norm.scale"), "attn.norm_q")),
    Row((Bare("img_attn.norm.key_norm.scale"), "attn.norm_k")),
    Row((Bare("txt_attn.norm.query_norm.scale"), "attn.norm_added_q")),
    Row((Bare("txt_attn.norm.key_norm.scale"), "attn.norm_added_k")),
)

DOUBLE_BLOCKS = (
    *ATTENTION,
    Row(("img_mlp.0", "ff.net.0.proj")),
    Row(("img_mlp.2", "ff.net.2")),
    Row(("txt_mlp.0", "ff_context.net.0.proj")),
    Row(("txt_mlp.2", "ff_context.net.2")),
    Row(("img_mod.lin", "norm1.linear")),
    Row(("txt_mod.lin", "norm1_context.linear")),
)

SINGLE_BLOCKS = (
    Row(("linear1", (*QKV, "proj_mlp")), sizes=("in", "in", "in", "rest")),
    Row(("linear2", "proj_out")),
    Row((Bare("norm.query_norm.scale"), "attn.norm_q")),
    Row((Bare("norm.key_norm.scale"), "attn.norm_k")),
    Row(("modulation.lin", "norm.linear")),
)

ROWS = (
    Row(("double_blocks.{}", "transformer_blocks.{}"), DOUBLE_BLOCKS),
    Row(("single_blocks.{}", "single_transformer_blocks.{}"), SINGLE_BLOCKS),
    Row(("img_in", "x_embedder")),
    Row(("txt_in", "context_embedder")),
    Row(("final_layer.linear", "proj_out")),
)
