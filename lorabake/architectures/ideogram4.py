"""Ideogram 4: its own names fuse q, k and v; Qwen3-VL, VAE."""

from lorabake.components import text, transformer
from lorabake.components.vae import OTHER_VAE
from lorabake.keymap.table import Architecture, Component, Has, Layout, Row, SpecName

IDEOGRAM4 = Architecture(
    name="ideogram4",
    title="Ideogram 4",
    task="text-to-image",
    components=(
        Component(
            name="transformer",
            layouts=(
                Layout(
                    "ideogram",
                    transformer.SINGLE_FILE,
                    (Has("layers.0.attention.qkv.weight", ndim=2), Has("llm_cond_proj.weight", ndim=2)),
                ),
                Layout(
                    "diffusers",
                    transformer.FOLDER,
                    (Has("layers.0.attention.to_q.weight", ndim=2), Has("llm_cond_proj.weight", ndim=2)),
                ),
            ),
            rows=(
                Row(
                    ("layers.{}", "layers.{}"),
                    (
                        Row(("attention.qkv", ("attention.to_q", "attention.to_k", "attention.to_v"))),
                        Row(("attention.o", "attention.to_out.0")),
                    ),
                ),
            ),
            dotted=("conditional_transformer.", *transformer.DOTTED),
            flat=transformer.FLAT,
        ),
        text.ONLY,
        OTHER_VAE,
    ),
    spec=(SpecName("ideogram-4", "1024x1024"),),
    code="https://github.com/comfyanonymous/ComfyUI",
)
