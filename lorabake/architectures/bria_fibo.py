"""Bria FIBO: Flux.1's names for blocks, and one projection of the captions for each block; SmolLM3, VAE."""

from lorabake.components import text, transformer
from lorabake.components.vae import OTHER_VAE
from lorabake.keymap.table import Architecture, Component, Has, Layout

BRIA_FIBO = Architecture(
    name="bria_fibo",
    title="Bria FIBO",
    task="text-to-image",
    components=(
        Component(
            name="transformer",
            layouts=(
                Layout(
                    "diffusers",
                    transformer.ANY,
                    (
                        Has("caption_projection.0.linear.weight", ndim=2),
                        Has("time_embed.timestep_embedder.linear_1.weight", ndim=2),
                        Has("single_transformer_blocks.0.proj_mlp.weight", ndim=2),
                    ),
                ),
            ),
            dotted=transformer.DOTTED,
            flat=transformer.FLAT,
        ),
        text.ONLY,
        OTHER_VAE,
    ),
)
