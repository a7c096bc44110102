"""Sana and Sana 1.5: linear attention, a convolutional feed-forward; Gemma 2, VAE."""

from lorabake.components import text, transformer
from lorabake.components.transformer import KV_2, QKV_1
from lorabake.components.vae import OTHER_VAE
from lorabake.keymap.table import Architecture, Bare, Component, Has, Lacks, Layout, Row, Sized, SpecName

EMBEDDER = ("x_embedder.proj.weight", "patch_embed.proj.weight")

SANA = Architecture(
    name="sana",
    title="Sana",
    task="text-to-image",
    components=(
        Component(
            name="transformer",
            layouts=(
                Layout(
                    "nvlabs",
                    transformer.SINGLE_FILE,
                    (
                        Has("blocks.0.cross_attn.kv_linear.weight", ndim=2),
                        Has("blocks.0.mlp.inverted_conv.conv.weight", ndim=4),
                        Has("attention_y_norm.weight"),
                        Has("x_embedder.proj.weight", ndim=4),
                    ),
                ),
                Layout(
                    "diffusers",
                    transformer.FOLDER,
                    (
                        Has("transformer_blocks.0.ff.conv_inverted.weight", ndim=4),
                        Has("caption_norm.weight"),
                        Has("patch_embed.proj.weight", ndim=4),
                        Lacks("controlnet_blocks.0.weight"),
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
                        Row(("mlp.inverted_conv.conv", "ff.conv_inverted")),
                        Row(("mlp.depth_conv.conv", "ff.conv_depth")),
                        Row(("mlp.point_conv.conv", "ff.conv_point")),
                        Row((Bare("scale_shift_table"), Bare("scale_shift_table"))),
                    ),
                ),
                Row(("x_embedder.proj", "patch_embed.proj")),
                Row(("t_embedder.mlp.0", "time_embed.emb.timestep_embedder.linear_1")),
                Row(("t_embedder.mlp.2", "time_embed.emb.timestep_embedder.linear_2")),
                Row(("t_block.1", "time_embed.linear")),
                Row(("y_embedder.y_proj.fc1", "caption_projection.linear_1")),
                Row(("y_embedder.y_proj.fc2", "caption_projection.linear_2")),
                Row(("attention_y_norm", "caption_norm")),
                Row(("final_layer.linear", "proj_out")),
                Row((Bare("final_layer.scale_shift_table"), Bare("scale_shift_table"))),
            ),
            dotted=transformer.DOTTED,
            flat=transformer.FLAT,
        ),
        text.ONLY,
        OTHER_VAE,
    ),
    spec=(
        SpecName(
            "nvidia-sana-1600", "1024x1024", (Sized(("x_embedder.proj.weight", "patch_embed.proj.weight"), 0, 2240),)
        ),
    ),
    code="https://github.com/NVlabs/Sana",
)
