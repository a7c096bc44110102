"""Kandinsky 5 (image and video): one naming for all; Qwen2.5-VL, CLIP-L, VAE."""

from lorabake.components import clip, text, transformer
from lorabake.components.vae import OTHER_VAE
from lorabake.keymap.table import Architecture, Component, Has, Layout, SpecName

KANDINSKY5 = Architecture(
    name="kandinsky5",
    title="Kandinsky 5",
    components=(
        Component(
            name="transformer",
            layouts=(
                Layout(
                    "diffusers",
                    transformer.ANY,
                    (Has("visual_transformer_blocks.0.cross_attention.to_query.weight", ndim=2),),
                ),
            ),
            dotted=transformer.DOTTED,
            flat=transformer.FLAT,
        ),
        text.ONLY,
        clip.CLIP_L_SECOND,
        OTHER_VAE,
    ),
    spec=(
        SpecName("kandinsky5-image-lite", "1024x1024", is_stated=True),
        SpecName("kandinsky5-video-lite", "640x640", is_stated=True),
        SpecName("kandinsky5-video-pro", "640x640", is_stated=True),
    ),
    code="https://github.com/kandinskylab/kandinsky-5",
)
