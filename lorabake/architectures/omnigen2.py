"""OmniGen2: Lumina 2's blocks, and a refiner for reference pictures; Qwen2.5-VL, VAE."""

from lorabake.components import text, transformer
from lorabake.components.vae import VAE_OF_COMFY
from lorabake.keymap.table import Architecture, Component, Has, Layout, SpecName

OMNIGEN2 = Architecture(
    name="omnigen2",
    title="OmniGen2",
    task="text-to-image",
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
        VAE_OF_COMFY,
    ),
    names=(
        "layers.{}.attn.to_q",
        "layers.{}.attn.to_k",
        "layers.{}.attn.to_v",
        "layers.{}.attn.to_out.0",
        "layers.{}.feed_forward.linear_1",
        "layers.{}.feed_forward.linear_2",
        "layers.{}.feed_forward.linear_3",
        "ref_image_refiner.{}.attn.to_q",
        "ref_image_refiner.{}.attn.to_k",
        "ref_image_refiner.{}.attn.to_v",
        "ref_image_refiner.{}.attn.to_out.0",
    ),
    spec=(SpecName("omnigen-2", "1024x1024"),),
    code="https://github.com/VectorSpaceLab/OmniGen2",
)
