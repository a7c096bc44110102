"""Helios: Wan's blocks, after patch embeddings of three lengths; UMT5, VAE."""

from lorabake.components import text, transformer
from lorabake.components.vae import OTHER_VAE
from lorabake.keymap.table import Architecture, Component, Has, Kin, Layout

HELIOS = Architecture(
    name="helios",
    title="Helios",
    task="text-to-video",
    components=(
        Component(
            name="transformer",
            layouts=(
                Layout(
                    "diffusers",
                    transformer.ANY,
                    (
                        Has("patch_short.weight", ndim=5),
                        Has("blocks.0.attn1.to_q.weight", ndim=2),
                    ),
                ),
            ),
            dotted=transformer.DOTTED,
            flat=transformer.FLAT,
        ),
        text.ONLY,
        OTHER_VAE,
    ),
    kin=(Kin("wan", "Helios is Wan 2.1 14B, trained further to go on from earlier frames"),),
)
