"""Flux.1: dev, schnell, Fill, Kontext, Krea, Canny and Depth; CLIP-L, T5, VAE."""

from lorabake.components import clip, flux, text, transformer
from lorabake.components.vae import VAE_OF_COMFY
from lorabake.keymap.table import Architecture, Component, Has, Lacks, Layout, Row, Sized, SpecName

IMG_IN = ("img_in.weight", "x_embedder.weight")
GUIDANCE_IN = ("guidance_in.in_layer.weight", "time_text_embed.guidance_embedder.linear_1.weight")

FLUX = Architecture(
    name="flux",
    title="Flux.1",
    task="text-to-image",
    components=(
        Component(
            name="transformer",
            layouts=(
                Layout(
                    "bfl",
                    transformer.SINGLE_FILE,
                    (
                        Has("double_blocks.0.img_attn.qkv.weight", ndim=2),
                        Has("double_blocks.0.img_mod.lin.weight", ndim=2),
                        Has("single_blocks.0.linear1.weight", ndim=2),
                        Has("img_in.weight", ndim=2),
                        Has("vector_in.in_layer.weight"),
                    ),
                ),
                Layout(
                    "diffusers",
                    transformer.FOLDER,
                    (
                        Has("transformer_blocks.0.attn.add_q_proj.weight", ndim=2),
                        Has("transformer_blocks.0.norm1_context.linear.weight", ndim=2),
                        Has("single_transformer_blocks.0.proj_mlp.weight", ndim=2),
                        Has("x_embedder.weight", ndim=2),
                        Has("time_text_embed.text_embedder.linear_1.weight"),
                        Lacks("controlnet_x_embedder.weight"),
                    ),
                ),
            ),
            rows=(
                *flux.ROWS,
                Row(("time_in.in_layer", "time_text_embed.timestep_embedder.linear_1")),
                Row(("time_in.out_layer", "time_text_embed.timestep_embedder.linear_2")),
                Row(("guidance_in.in_layer", "time_text_embed.guidance_embedder.linear_1")),
                Row(("guidance_in.out_layer", "time_text_embed.guidance_embedder.linear_2")),
                Row(("vector_in.in_layer", "time_text_embed.text_embedder.linear_1")),
                Row(("vector_in.out_layer", "time_text_embed.text_embedder.linear_2")),
                Row(("final_layer.adaLN_modulation.1", "norm_out.linear"), swapped=("bfl",)),
            ),
            dotted=transformer.DOTTED,
            flat=transformer.FLAT,
            aliases=(*flux.XLABS, *flux.DIFFSYNTH, *flux.CONTROL),
        ),
        clip.CLIP_L,
        text.T5_SECOND,
        VAE_OF_COMFY,
    ),
    spec=(
        SpecName("Flux.1-dev/inpaint", "1024x1024", (Sized(IMG_IN, 1, 384),)),
        SpecName("", "1024x1024", (Sized(IMG_IN, 1, 128),)),  # Canny or Depth
        SpecName("flux-1-dev", "1024x1024", (Sized(GUIDANCE_IN),)),
        SpecName("flux-1-schnell", "1024x1024"),
        SpecName("flux-1", "1024x1024", is_stated=True),
        SpecName("Flux.1-dev", "1024x1024", is_stated=True),
        SpecName("Flux.1-schnell", "1024x1024", is_stated=True),
        SpecName("Flux.1-dev/kontext", "1024x1024", is_stated=True),
        SpecName("Flux.1-dev/canny", "1024x1024", is_stated=True),
        SpecName("Flux.1-dev/depth", "1024x1024", is_stated=True),
    ),
    code="https://github.com/black-forest-labs/flux",
)
