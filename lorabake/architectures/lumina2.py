"""Lumina-Image 2.0: q has more heads than k and v; Gemma 2, VAE."""

from lorabake.components import text, transformer
from lorabake.components.transformer import QKV
from lorabake.components.vae import VAE_OF_COMFY
from lorabake.keymap.table import Architecture, Component, Has, Lacks, Layout, Row, SpecName

ATTENTION = (
    Row(("attention.qkv", QKV), sizes=("in", "rest", "rest")),
    Row(("attention.out", "attn.to_out.0")),
    Row(("attention.q_norm", "attn.norm_q")),
    Row(("attention.k_norm", "attn.norm_k")),
    Row(("feed_forward.w1", "feed_forward.linear_1")),
    Row(("feed_forward.w2", "feed_forward.linear_2")),
    Row(("feed_forward.w3", "feed_forward.linear_3")),
    Row(("attention_norm2", "norm2")),
)
MODULATED = (
    *ATTENTION,
    Row(("attention_norm1", "norm1.norm")),
    Row(("adaLN_modulation.1", "norm1.linear")),
)

LUMINA2 = Architecture(
    name="lumina2",
    title="Lumina 2",
    task="text-to-image",
    components=(
        Component(
            name="transformer",
            layouts=(
                Layout(
                    "alpha_vllm",
                    transformer.SINGLE_FILE,
                    (
                        Has("layers.0.attention.qkv.weight", ndim=2),
                        Has("layers.0.adaLN_modulation.1.weight", ndim=2),
                        Has("cap_embedder.1.weight", ndim=2),
                    ),
                ),
                Layout(
                    "diffusers",
                    transformer.FOLDER,
                    (
                        Has("layers.0.feed_forward.linear_1.weight", ndim=2),
                        Has("layers.0.norm1.linear.weight", ndim=2),
                        Has("time_caption_embed.caption_embedder.1.weight", ndim=2),
                        Lacks("layers.0.attn1.to_q.weight"),
                        Lacks("ref_image_refiner.0.attn.to_q.weight"),
                    ),
                ),
            ),
            rows=(
                Row(("layers.{}", "layers.{}"), MODULATED),
                Row(("noise_refiner.{}", "noise_refiner.{}"), MODULATED),
                Row(("context_refiner.{}", "context_refiner.{}"), (*ATTENTION, Row(("attention_norm1", "norm1")))),
                Row(("cap_embedder", "time_caption_embed.caption_embedder")),
                Row(("t_embedder.mlp.0", "time_caption_embed.timestep_embedder.linear_1")),
                Row(("t_embedder.mlp.2", "time_caption_embed.timestep_embedder.linear_2")),
                Row(("final_layer.adaLN_modulation.1", "norm_out.linear_1")),
                Row(("final_layer.linear", "norm_out.linear_2")),
            ),
            dotted=transformer.DOTTED,
            flat=transformer.FLAT,
        ),
        text.ONLY,
        VAE_OF_COMFY,
    ),
    spec=(SpecName("lumina-2", "1024x1024"),),
    code="https://github.com/Alpha-VLLM/Lumina-Image-2.0",
)
