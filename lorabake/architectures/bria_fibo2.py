"""Bria FIBO 2: one naming for all; a language model, VAE."""

from lorabake.components import text, transformer
from lorabake.components.vae import OTHER_VAE
from lorabake.keymap.table import Architecture, Component, Has, Layout

BRIA_FIBO2 = Architecture(
    name="bria_fibo2",
    title="Bria FIBO 2",
    task="text-to-image",
    components=(
        Component(
            name="transformer",
            layouts=(
                Layout(
                    "diffusers",
                    transformer.ANY,
                    (
                        Has("perceiver.latent_queries", ndim=2),
                        Has("perceiver.layers.0.cross_attention.to_q.weight", ndim=2),
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
