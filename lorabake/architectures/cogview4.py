"""CogView4 as diffusers names it; GLM, VAE."""

from lorabake.components import text, transformer
from lorabake.components.vae import VAE
from lorabake.keymap.table import Architecture, Component, Has, Layout, Mark

COGVIEW4 = Architecture(
    name="cogview4",
    title="CogView4",
    components=(
        Component(
            name="transformer",
            layouts=(
                Layout(
                    "diffusers",
                    transformer.ANY,
                    (
                        Has("patch_embed.text_proj.weight", ndim=2),
                        Has("time_condition_embed.timestep_embedder.linear_1.weight", ratio=8),
                    ),
                ),
            ),
            dotted=transformer.DOTTED,
            flat=transformer.FLAT,
        ),
        text.ONLY,
        VAE,
    ),
    marks=(Mark("time_condition_embed"),),
)
