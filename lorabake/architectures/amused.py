"""aMUSEd: a transformer that fills in the tokens of a picture; CLIP-L, VQ-VAE."""

from lorabake.components import clip, transformer
from lorabake.keymap.table import Architecture, Component, Has, Layout

AMUSED = Architecture(
    name="amused",
    title="aMUSEd",
    task="text-to-image",
    components=(
        Component(
            name="transformer",
            layouts=(
                Layout(
                    "diffusers",
                    transformer.ANY,
                    (
                        Has("mlm_layer.conv1.weight", ndim=4),
                        Has("project_to_hidden.weight", ndim=2),
                    ),
                ),
            ),
            dotted=transformer.DOTTED,
            flat=transformer.FLAT,
        ),
        clip.CLIP_L,
    ),
)
