"""ERNIE-Image: one naming for all; a language model, VAE."""

from lorabake.components import text, transformer
from lorabake.components.vae import OTHER_VAE
from lorabake.keymap.table import Architecture, Component, Has, Layout, SpecName

ERNIE_IMAGE = Architecture(
    name="ernie_image",
    title="ERNIE-Image",
    task="text-to-image",
    components=(
        Component(
            name="transformer",
            layouts=(
                Layout(
                    "diffusers",
                    transformer.ANY,
                    (
                        Has("layers.0.adaLN_sa_ln.weight", ndim=1),
                        Has("layers.0.self_attention.to_q.weight", ndim=2),
                        Has("text_proj.weight", ndim=2),
                    ),
                ),
            ),
            dotted=transformer.DOTTED,
            flat=transformer.FLAT,
        ),
        text.ONLY,
        OTHER_VAE,
    ),
    spec=(SpecName("ernie-image", "1024x1024"),),
    code="https://github.com/comfyanonymous/ComfyUI",
)
