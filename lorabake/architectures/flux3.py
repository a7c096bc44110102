"""Flux.3: each stream has blocks of its own, then all streams share the rest; a language model, VAE."""

from lorabake.components import text, transformer
from lorabake.components.vae import OTHER_VAE
from lorabake.keymap.table import Architecture, Bare, Component, Has, Layout, Row

# Layouts, in this order: bfl, diffusers.
BLOCK = (
    Row(("q_proj", "attn.to_q")),
    Row(("k_proj", "attn.to_k")),
    Row(("v_proj", "attn.to_v")),
    Row(("attn_out", "attn.to_out.0")),
    Row((Bare("norm.query_norm.scale"), "attn.norm_q")),
    Row((Bare("norm.key_norm.scale"), "attn.norm_k")),
    Row(("mlp_in", "ff.linear_in")),
    Row(("mlp_out", "ff.linear_out")),
)
MODULATION = (
    Row(("image.lin", "image.linear")),
    Row(("image_cond.lin", "image_cond.linear")),
    Row(("txt.lin", "txt.linear")),
)

FLUX3 = Architecture(
    name="flux3",
    title="Flux.3",
    task="text-to-image",
    components=(
        Component(
            name="transformer",
            layouts=(
                Layout(
                    "bfl",
                    transformer.SINGLE_FILE,
                    (
                        Has("content_mode_blocks.image.0.q_proj.weight", ndim=2),
                        Has("single_blocks.0.q_proj.weight", ndim=2),
                    ),
                ),
                Layout(
                    "diffusers",
                    transformer.FOLDER,
                    (
                        Has("mode_blocks.image.0.attn.to_q.weight", ndim=2),
                        Has("single_transformer_blocks.0.attn.to_out.0.weight", ndim=2),
                    ),
                ),
            ),
            rows=(
                Row(("content_mode_blocks.image.{}", "mode_blocks.image.{}"), BLOCK),
                Row(("content_mode_blocks.image_cond.{}", "mode_blocks.image_cond.{}"), BLOCK),
                Row(("txt_mode_blocks.{}", "txt_mode_blocks.{}"), BLOCK),
                Row(("single_blocks.{}", "single_transformer_blocks.{}"), BLOCK),
                Row(("early_stream_modulations", "early_stream_modulations"), MODULATION),
                Row(("single_stream_modulations", "single_stream_modulations"), MODULATION),
                Row(("emb_in", "x_embedders")),
                Row(("txt_in", "context_embedder")),
                Row(("time_in.in_layer", "timestep_embedder.linear_1")),
                Row(("time_in.out_layer", "timestep_embedder.linear_2")),
                Row(("ref_time_in.in_layer", "target_timestep_embedder.linear_1")),
                Row(("ref_time_in.out_layer", "target_timestep_embedder.linear_2")),
                Row(("final_layer.image.linear", "proj_out")),
                Row(("final_layer.image.adaLN_modulation.1", "norm_out.linear"), swapped=("bfl",)),
            ),
            dotted=transformer.DOTTED,
            flat=transformer.FLAT,
        ),
        text.ONLY,
        OTHER_VAE,
    ),
)
