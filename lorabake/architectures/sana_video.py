"""Sana Video: Sana's blocks with a convolution over time; Gemma 2, VAE."""

from lorabake.components import text, transformer
from lorabake.components.vae import OTHER_VAE
from lorabake.keymap.table import Architecture, Component, Has, Kin, Layout

SANA_VIDEO = Architecture(
    name="sana_video",
    title="Sana Video",
    task="text-to-video",
    components=(
        Component(
            name="transformer",
            layouts=(
                Layout(
                    "diffusers",
                    transformer.ANY,
                    (
                        Has("transformer_blocks.0.ff.conv_temp.weight", ndim=4),
                        Has("patch_embedding.weight", ndim=5),
                        Has("caption_norm.weight"),
                    ),
                ),
            ),
            dotted=transformer.DOTTED,
            flat=transformer.FLAT,
        ),
        text.ONLY,
        OTHER_VAE,
    ),
    kin=(Kin("sana", "Sana Video is Sana's network, with convolutions over time beside it"),),
)
