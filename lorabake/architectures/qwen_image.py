"""Qwen-Image and Qwen-Image-Edit: one naming for all; Qwen2.5-VL, VAE."""

from lorabake.components import text, transformer
from lorabake.components.vae import OTHER_VAE
from lorabake.keymap.table import Architecture, Component, Has, Lacks, Layout, SpecName

QWEN_IMAGE = Architecture(
    name="qwen_image",
    title="Qwen-Image",
    task="text-to-image",
    components=(
        Component(
            name="transformer",
            layouts=(
                Layout(
                    "diffusers",
                    transformer.ANY,
                    (
                        Has("txt_norm.weight", ndim=1),
                        Has("transformer_blocks.0.img_mod.1.weight", ndim=2),
                        Has("transformer_blocks.0.attn.add_q_proj.weight", ndim=2),
                        Lacks("controlnet_blocks.0.weight"),
                    ),
                ),
            ),
            dotted=transformer.DOTTED,
            flat=transformer.FLAT,
        ),
        text.ONLY,
        OTHER_VAE,
    ),
    spec=(
        SpecName("qwen-image", "1328x1328"),
        SpecName("qwen-image-edit", "1328x1328", is_stated=True),
        SpecName("qwen-image-edit-plus", "1328x1328", is_stated=True),
        SpecName("Qwen-Image", "1328x1328", is_stated=True),
        SpecName("Qwen-Image-Edit", "1328x1328", is_stated=True),
    ),
    code="https://github.com/QwenLM/Qwen-Image",
)
