"""Chroma: Flux.1's blocks without modulation layers of their own; T5, VAE."""

from lorabake.components import flux, text, transformer
from lorabake.components.vae import VAE_OF_COMFY
from lorabake.keymap.table import Architecture, Bare, Component, Has, Kin, Layout, Row, SpecName

CHROMA = Architecture(
    name="chroma",
    title="Chroma",
    task="text-to-image",
    components=(
        Component(
            name="transformer",
            layouts=(
                Layout(
                    "bfl",
                    transformer.SINGLE_FILE,
                    (
                        Has("distilled_guidance_layer.layers.0.in_layer.weight", ndim=2),
                        Has("double_blocks.0.img_attn.qkv.weight", ndim=2),
                    ),
                ),
                Layout(
                    "diffusers",
                    transformer.FOLDER,
                    (
                        Has("distilled_guidance_layer.layers.0.linear_1.weight", ndim=2),
                        Has("transformer_blocks.0.attn.to_q.weight", ndim=2),
                    ),
                ),
            ),
            rows=(
                *flux.ROWS,
                Row(
                    ("distilled_guidance_layer.layers.{}", "distilled_guidance_layer.layers.{}"),
                    (Row(("in_layer", "linear_1")), Row(("out_layer", "linear_2"))),
                ),
                Row((Bare("distilled_guidance_layer.norms.{}.scale"), "distilled_guidance_layer.norms.{}")),
            ),
            dotted=transformer.DOTTED,
            flat=transformer.FLAT,
        ),
        text.ONLY,
        VAE_OF_COMFY,
    ),
    kin=(Kin("flux", "Chroma is Flux.1 schnell, whose modulation layers one small network replaced"),),
    spec=(
        SpecName("chroma", "1024x1024"),
        SpecName("chroma-radiance", "1024x1024", is_stated=True),
    ),
    code="https://huggingface.co/lodestones/Chroma",
)
