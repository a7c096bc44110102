"""Qwen-Image 2.1: one stream of blocks; ComfyUI's files fuse gate and projection; Qwen3-VL, VAE."""

from lorabake.components import text, transformer
from lorabake.components.vae import OTHER_VAE
from lorabake.keymap.table import Architecture, Component, Has, Layout, Row

QWEN_IMAGE21 = Architecture(
    name="qwen_image21",
    title="Qwen-Image 2.1",
    task="text-to-image",
    components=(
        Component(
            name="transformer",
            layouts=(
                Layout(
                    "comfy",
                    transformer.SINGLE_FILE,
                    (
                        Has("transformer_blocks.0.img_mlp.gate_up.weight", ndim=2),
                        Has("txt_in.text_norm.weight", ndim=1),
                    ),
                ),
                Layout(
                    "diffusers",
                    transformer.ANY,
                    (
                        Has("transformer_blocks.0.img_mlp.gate_layer.weight", ndim=2),
                        Has("txt_in.text_norm.weight", ndim=1),
                    ),
                ),
            ),
            rows=(
                Row(
                    ("transformer_blocks.{}", "transformer_blocks.{}"),
                    (Row(("img_mlp.gate_up", ("img_mlp.gate_layer", "img_mlp.proj"))),),
                ),
            ),
            dotted=transformer.DOTTED,
            flat=transformer.FLAT,
        ),
        text.ONLY,
        OTHER_VAE,
    ),
)
