"""Flux.2 (dev, klein): modulation shared by all blocks, no biases; one language model, VAE."""

from lorabake.components import flux, text, transformer
from lorabake.components.vae import VAE_OF_COMFY
from lorabake.keymap.table import Architecture, Bare, Component, Has, Layout, Row, Sized, SpecName

IMG_IN = ("img_in.weight", "x_embedder.weight")

FLUX2 = Architecture(
    name="flux2",
    title="Flux.2",
    task="text-to-image",
    components=(
        Component(
            name="transformer",
            layouts=(
                Layout(
                    "bfl",
                    transformer.SINGLE_FILE,
                    (
                        Has("double_stream_modulation_img.lin.weight", ndim=2),
                        Has("single_blocks.0.linear1.weight", ndim=2),
                    ),
                ),
                Layout(
                    "diffusers",
                    transformer.FOLDER,
                    (
                        Has("double_stream_modulation_img.linear.weight", ndim=2),
                        Has("single_transformer_blocks.0.attn.to_qkv_mlp_proj.weight", ndim=2),
                    ),
                ),
            ),
            rows=(
                Row(
                    ("double_blocks.{}", "transformer_blocks.{}"),
                    (
                        *flux.ATTENTION,
                        Row(("img_mlp.0", "ff.linear_in")),
                        Row(("img_mlp.2", "ff.linear_out")),
                        Row(("txt_mlp.0", "ff_context.linear_in")),
                        Row(("txt_mlp.2", "ff_context.linear_out")),
                    ),
                ),
                Row(
                    ("single_blocks.{}", "single_transformer_blocks.{}"),
                    (
                        Row(("linear1", "attn.to_qkv_mlp_proj")),
                        Row(("linear2", "attn.to_out")),
                        Row((Bare("norm.query_norm.scale"), "attn.norm_q")),
                        Row((Bare("norm.key_norm.scale"), "attn.norm_k")),
                    ),
                ),
                Row(("img_in", "x_embedder")),
                Row(("txt_in", "context_embedder")),
                Row(("time_in.in_layer", "time_guidance_embed.timestep_embedder.linear_1")),
                Row(("time_in.out_layer", "time_guidance_embed.timestep_embedder.linear_2")),
                Row(("guidance_in.in_layer", "time_guidance_embed.guidance_embedder.linear_1")),
                Row(("guidance_in.out_layer", "time_guidance_embed.guidance_embedder.linear_2")),
                Row(("double_stream_modulation_img.lin", "double_stream_modulation_img.linear")),
                Row(("double_stream_modulation_txt.lin", "double_stream_modulation_txt.linear")),
                Row(("single_stream_modulation.lin", "single_stream_modulation.linear")),
                Row(("final_layer.linear", "proj_out")),
                Row(("final_layer.adaLN_modulation.1", "norm_out.linear"), swapped=("bfl",)),
            ),
            dotted=transformer.DOTTED,
            flat=transformer.FLAT,
        ),
        text.ONLY,
        VAE_OF_COMFY,
    ),
    spec=(
        SpecName("flux.2-dev", "1024x1024", (Sized(IMG_IN, 0, 6144),)),
        SpecName("flux.2-klein-9b", "1024x1024", (Sized(IMG_IN, 0, 4096),)),
        SpecName("flux.2-klein-4b", "1024x1024", (Sized(IMG_IN, 0, 3072),)),
    ),
    code="https://github.com/black-forest-labs/flux2",
)
