"""CogVideoX as diffusers names it; T5, VAE."""

from lorabake.components import text, transformer
from lorabake.components.vae import OTHER_VAE
from lorabake.keymap.table import Architecture, Component, Has, Layout, Mark

COGVIDEOX = Architecture(
    name="cogvideox",
    title="CogVideoX",
    components=(
        Component(
            name="transformer",
            layouts=(
                Layout(
                    "diffusers",
                    transformer.ANY,
                    (
                        Has("patch_embed.text_proj.weight", ndim=2),
                        Has("time_embedding.linear_1.weight", ndim=2),
                    ),
                ),
            ),
            dotted=transformer.DOTTED,
            flat=transformer.FLAT,
        ),
        text.ONLY,
        OTHER_VAE,
    ),
    marks=(Mark("transformer_blocks_N_norm2_linear"),),
)
