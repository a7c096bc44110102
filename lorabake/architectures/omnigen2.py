"""OmniGen2: Lumina 2's blocks, and a refiner for pictures to go by; Qwen2.5-VL, VAE."""

from lorabake.components import text, transformer
from lorabake.components.vae import VAE
from lorabake.keymap.table import Architecture, Component, Has, Layout, Mark

OMNIGEN2 = Architecture(
    name="omnigen2",
    title="OmniGen2",
    components=(
        Component(
            name="transformer",
            layouts=(
                Layout(
                    "diffusers",
                    transformer.ANY,
                    (
                        Has("ref_image_refiner.0.attn.to_q.weight", ndim=2),
                        Has("layers.0.feed_forward.linear_1.weight", ndim=2),
                    ),
                ),
            ),
            dotted=transformer.DOTTED,
            flat=transformer.FLAT,
        ),
        text.ONLY,
        VAE,
    ),
    marks=(Mark("ref_image_refiner_N"),),
)
