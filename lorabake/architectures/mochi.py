"""Mochi 1: the last block has no text branch, and diffusers names its modulation differently; T5, VAE."""

from lorabake.components import text, transformer
from lorabake.components.vae import OTHER_VAE
from lorabake.keymap.table import Architecture, Component, Has, Layout, Row, SpecName

BLOCK = (
    Row(("attn.qkv_x", ("attn1.to_q", "attn1.to_k", "attn1.to_v"))),
    Row(("attn.qkv_y", ("attn1.add_q_proj", "attn1.add_k_proj", "attn1.add_v_proj"))),
    Row(("attn.proj_x", "attn1.to_out.0")),
    Row(("attn.proj_y", "attn1.to_add_out")),
    Row(("attn.q_norm_x", "attn1.norm_q")),
    Row(("attn.k_norm_x", "attn1.norm_k")),
    Row(("attn.q_norm_y", "attn1.norm_added_q")),
    Row(("attn.k_norm_y", "attn1.norm_added_k")),
    Row(("mlp_x.w1", "ff.net.0.proj"), swapped=("genmo",)),
    Row(("mlp_x.w2", "ff.net.2")),
    Row(("mlp_y.w1", "ff_context.net.0.proj"), swapped=("genmo",)),
    Row(("mlp_y.w2", "ff_context.net.2")),
    Row(("mod_x", "norm1.linear")),
)

MOCHI = Architecture(
    name="mochi",
    title="Mochi",
    task="text-to-video",
    components=(
        Component(
            name="transformer",
            layouts=(
                Layout(
                    "genmo",
                    transformer.SINGLE_FILE,
                    (Has("blocks.0.attn.qkv_x.weight", ndim=2), Has("t5_yproj.weight", ndim=2)),
                ),
                Layout(
                    "diffusers",
                    transformer.FOLDER,
                    (
                        Has("transformer_blocks.0.attn1.add_q_proj.weight", ndim=2),
                        Has("time_embed.caption_proj.weight", ndim=2),
                    ),
                ),
            ),
            rows=(
                Row(("blocks.{}", "transformer_blocks.{}"), (*BLOCK, Row(("mod_y", "norm1_context.linear")))),
                Row(("blocks.47", "transformer_blocks.47"), (*BLOCK, Row(("mod_y", "norm1_context.linear_1")))),
                Row(("x_embedder.proj", "patch_embed.proj")),
                Row(("t_embedder.mlp.0", "time_embed.timestep_embedder.linear_1")),
                Row(("t_embedder.mlp.2", "time_embed.timestep_embedder.linear_2")),
                Row(("t5_y_embedder", "time_embed.pooler")),
                Row(("t5_yproj", "time_embed.caption_proj")),
                Row(("final_layer.mod", "norm_out.linear"), swapped=("genmo",)),
                Row(("final_layer.linear", "proj_out")),
            ),
            dotted=transformer.DOTTED,
            flat=transformer.FLAT,
        ),
        text.ONLY,
        OTHER_VAE,
    ),
    spec=(SpecName("genmo-mochi-1", "848x480"),),
    code="https://github.com/genmoai/mochi",
)
