"""PixArt α and Σ; T5, VAE."""

from lorabake.components import text, transformer
from lorabake.components.transformer import KV_2, QKV_1
from lorabake.components.vae import VAE_OF_COMFY
from lorabake.keymap.table import Architecture, Bare, Component, Has, Lacks, Layout, Row, SpecName

PIXART = Architecture(
    name="pixart",
    title="PixArt",
    task="text-to-image",
    components=(
        Component(
            name="transformer",
            layouts=(
                Layout(
                    "pixart",
                    transformer.SINGLE_FILE,
                    (
                        Has("blocks.0.cross_attn.kv_linear.weight", ndim=2),
                        Has("blocks.0.mlp.fc1.weight", ndim=2),
                        Has("t_block.1.weight", ndim=2),
                    ),
                ),
                Layout(
                    "diffusers",
                    transformer.FOLDER,
                    (
                        Has("adaln_single.linear.weight", ndim=2),
                        Has("caption_projection.linear_1.weight", ndim=2),
                        Has("pos_embed.proj.weight", ndim=4),
                        # Latte and Allegro, of the same names, make videos.
                        Lacks("temporal_transformer_blocks.0.attn1.to_q.weight"),
                        Lacks("proj_out.weight", ratio=144),
                    ),
                ),
            ),
            rows=(
                Row(
                    ("blocks.{}", "transformer_blocks.{}"),
                    (
                        Row(("attn.qkv", QKV_1)),
                        Row(("attn.proj", "attn1.to_out.0")),
                        Row(("cross_attn.q_linear", "attn2.to_q")),
                        Row(("cross_attn.kv_linear", KV_2)),
                        Row(("cross_attn.proj", "attn2.to_out.0")),
                        Row(("mlp.fc1", "ff.net.0.proj")),
                        Row(("mlp.fc2", "ff.net.2")),
                        Row((Bare("scale_shift_table"), Bare("scale_shift_table"))),
                    ),
                ),
                Row(("x_embedder.proj", "pos_embed.proj")),
                Row(("t_embedder.mlp.0", "adaln_single.emb.timestep_embedder.linear_1")),
                Row(("t_embedder.mlp.2", "adaln_single.emb.timestep_embedder.linear_2")),
                Row(("csize_embedder.mlp.0", "adaln_single.emb.resolution_embedder.linear_1")),
                Row(("csize_embedder.mlp.2", "adaln_single.emb.resolution_embedder.linear_2")),
                Row(("ar_embedder.mlp.0", "adaln_single.emb.aspect_ratio_embedder.linear_1")),
                Row(("ar_embedder.mlp.2", "adaln_single.emb.aspect_ratio_embedder.linear_2")),
                Row(("t_block.1", "adaln_single.linear")),
                Row(("y_embedder.y_proj.fc1", "caption_projection.linear_1")),
                Row(("y_embedder.y_proj.fc2", "caption_projection.linear_2")),
                Row(("final_layer.linear", "proj_out")),
                Row((Bare("final_layer.scale_shift_table"), Bare("scale_shift_table"))),
            ),
            dotted=transformer.DOTTED,
            flat=transformer.FLAT,
        ),
        text.ONLY,
        VAE_OF_COMFY,
    ),
    spec=(
        SpecName("pixart-ms-sigma-xl-2", "1024x1024", is_stated=True),
        SpecName("pixart-ms-sigma-xl-2-2k", "2048x2048", is_stated=True),
    ),
    code="https://github.com/PixArt-alpha/PixArt-sigma",
)
