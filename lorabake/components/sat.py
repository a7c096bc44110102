"""The blocks of CogVideoX and CogView, as SwissArmyTransformer (their maker's code) and as diffusers name them.

Source of the pairs: diffusers' conversion scripts.
"""

from lorabake.keymap.table import Row

QKV_1 = ("attn1.to_q", "attn1.to_k", "attn1.to_v")

# Layouts, in this order: sat, diffusers.
LAYERS = Row(
    ("transformer.layers.{}", "transformer_blocks.{}"),
    (
        Row(("attention.query_key_value", QKV_1)),
        Row(("attention.dense", "attn1.to_out.0")),
        Row(("mlp.dense_h_to_4h", "ff.net.0.proj")),
        Row(("mlp.dense_4h_to_h", "ff.net.2")),
        Row(("input_layernorm", "norm1.norm")),
        Row(("post_attention_layernorm", "norm2.norm")),
    ),
)
ENDS = (Row(("mixins.patch_embed", "patch_embed")), Row(("mixins.final_layer.linear", "proj_out")))

COGVIEW = (
    LAYERS,
    *ENDS,
    Row(("mixins.adaln.adaln_modules.{}.1", "transformer_blocks.{}.norm1.linear")),
    Row(("time_embed.0", "time_condition_embed.timestep_embedder.linear_1")),
    Row(("time_embed.2", "time_condition_embed.timestep_embedder.linear_2")),
    Row(("label_emb.0.0", "time_condition_embed.condition_embedder.linear_1")),
    Row(("label_emb.0.2", "time_condition_embed.condition_embedder.linear_2")),
    Row(("mixins.final_layer.adaln.1", "norm_out.linear"), swapped=("sat",)),
)
