"""HiDream-I1 and -E1: one naming for all; CLIP-L, CLIP-G, T5, Llama, VAE."""

from lorabake.components import clip, text, transformer
from lorabake.components.vae import VAE_OF_COMFY
from lorabake.keymap.table import Architecture, Component, Has, Layout, SpecName

HIDREAM = Architecture(
    name="hidream",
    title="HiDream",
    task="text-to-image",
    components=(
        Component(
            name="transformer",
            layouts=(
                Layout(
                    "diffusers",
                    transformer.ANY,
                    (
                        Has("double_stream_blocks.0.block.attn1.to_q.weight", ndim=2),
                        Has("caption_projection.0.linear.weight", ndim=2),
                    ),
                ),
            ),
            dotted=transformer.DOTTED,
            flat=transformer.FLAT,
        ),
        clip.CLIP_L,
        clip.CLIP_G,
        text.T5_THIRD,
        text.LLAMA_FOURTH,
        VAE_OF_COMFY,
    ),
    spec=(
        SpecName("hidream-i1", "1024x1024"),
        SpecName("hidream-i1-edit", "768x768", is_stated=True),
    ),
    code="https://github.com/HiDream-ai/HiDream-I1",
)
