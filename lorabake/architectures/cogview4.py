"""CogView4; GLM, VAE.

CogView3-Plus and CogView4 use the same names. Here the time embedding has 8 times as many columns as rows.
"""

from lorabake.components import sat, text, transformer
from lorabake.components.vae import VAE_OF_COMFY
from lorabake.keymap.table import Architecture, Component, Has, Layout

COGVIEW4 = Architecture(
    name="cogview4",
    title="CogView4",
    task="text-to-image",
    components=(
        Component(
            name="transformer",
            layouts=(
                Layout(
                    "sat",
                    transformer.SINGLE_FILE,
                    (
                        Has("mixins.adaln.adaln_modules.0.1.weight", ndim=2),
                        Has("time_embed.0.weight", ratio=8),
                    ),
                ),
                Layout(
                    "diffusers",
                    transformer.ANY,
                    (
                        Has("patch_embed.text_proj.weight", ndim=2),
                        Has("time_condition_embed.timestep_embedder.linear_1.weight", ratio=8),
                    ),
                ),
            ),
            rows=sat.COGVIEW,
            dotted=transformer.DOTTED,
            flat=transformer.FLAT,
        ),
        text.ONLY,
        VAE_OF_COMFY,
    ),
)
