"""Stable Diffusion 3 and 3.5 (medium, with a second attention in some blocks, and large); CLIP-L, CLIP-G, T5, VAE."""

from lorabake.components import clip, text, transformer
from lorabake.components.transformer import ADDED_QKV, QKV
from lorabake.components.vae import VAE
from lorabake.keymap.table import Architecture, Bare, Component, Has, Layout, Row, Sized, SpecName

SD3 = Architecture(
    name="sd3",
    title="Stable Diffusion 3",
    task="text-to-image",
    components=(
        Component(
            name="transformer",
            layouts=(
                Layout(
                    "sai",
                    transformer.SINGLE_FILE,
                    (
                        Has("joint_blocks.0.x_block.attn.qkv.weight", ndim=2),
                        Has("joint_blocks.0.context_block.attn.qkv.weight", ndim=2),
                        Has("final_layer.linear.weight"),
                    ),
                ),
                Layout(
                    "diffusers",
                    transformer.FOLDER,
                    (
                        Has("transformer_blocks.0.norm1_context.linear.weight", ndim=2),
                        Has("transformer_blocks.0.attn.add_q_proj.weight", ndim=2),
                        Has("pos_embed.proj.weight", ndim=4),
                        Has("norm_out.linear.weight", ndim=2),
                    ),
                ),
            ),
            rows=(
                Row(
                    ("joint_blocks.{}", "transformer_blocks.{}"),
                    (
                        Row(("x_block.attn.qkv", QKV)),
                        Row(("x_block.attn.proj", "attn.to_out.0")),
                        Row(("x_block.attn.ln_q", "attn.norm_q")),
                        Row(("x_block.attn.ln_k", "attn.norm_k")),
                        Row(("x_block.attn2.qkv", ("attn2.to_q", "attn2.to_k", "attn2.to_v"))),
                        Row(("x_block.attn2.proj", "attn2.to_out.0")),
                        Row(("x_block.attn2.ln_q", "attn2.norm_q")),
                        Row(("x_block.attn2.ln_k", "attn2.norm_k")),
                        Row(("x_block.mlp.fc1", "ff.net.0.proj")),
                        Row(("x_block.mlp.fc2", "ff.net.2")),
                        Row(("x_block.adaLN_modulation.1", "norm1.linear")),
                        Row(("context_block.attn.qkv", ADDED_QKV)),
                        Row(("context_block.attn.proj", "attn.to_add_out")),
                        Row(("context_block.attn.ln_q", "attn.norm_added_q")),
                        Row(("context_block.attn.ln_k", "attn.norm_added_k")),
                        Row(("context_block.mlp.fc1", "ff_context.net.0.proj")),
                        Row(("context_block.mlp.fc2", "ff_context.net.2")),
                        # Only the last block has a single shift and scale; diffusers stores them in the other order.
                        Row(
                            ("context_block.adaLN_modulation.1", "norm1_context.linear"),
                            swapped=("sai",),
                            swapped_ratio=2,
                        ),
                    ),
                ),
                Row((Bare("pos_embed"), Bare("pos_embed.pos_embed"))),
                Row(("x_embedder.proj", "pos_embed.proj")),
                Row(("t_embedder.mlp.0", "time_text_embed.timestep_embedder.linear_1")),
                Row(("t_embedder.mlp.2", "time_text_embed.timestep_embedder.linear_2")),
                Row(("y_embedder.mlp.0", "time_text_embed.text_embedder.linear_1")),
                Row(("y_embedder.mlp.2", "time_text_embed.text_embedder.linear_2")),
                Row(("final_layer.linear", "proj_out")),
                Row(("final_layer.adaLN_modulation.1", "norm_out.linear"), swapped=("sai",)),
            ),
            dotted=transformer.DOTTED,
            flat=transformer.FLAT,
        ),
        clip.CLIP_L,
        clip.CLIP_G,
        text.T5_THIRD,
        VAE,
    ),
    spec=(
        SpecName(
            "stable-diffusion-v3.5-large",
            "1024x1024",
            (Sized(("joint_blocks.37.x_block.attn.qkv.weight", "transformer_blocks.37.attn.to_q.weight")),),
        ),
        SpecName(
            "stable-diffusion-v3.5-medium",
            "1024x1024",
            (Sized(("joint_blocks.0.x_block.attn2.qkv.weight", "transformer_blocks.0.attn2.to_q.weight")),),
        ),
        SpecName("stable-diffusion-v3-medium", "1024x1024"),
        SpecName("stable-diffusion-v3.5-large-turbo", "1024x1024", is_stated=True),
    ),
    code="sgm",
)
