"""Stable Diffusion 1.x: a UNet of 4 levels, with 1×1 convolutions around its attention; CLIP-L, VAE."""

from lorabake.components import clip, unet
from lorabake.components.vae import VAE
from lorabake.keymap.table import Architecture, Component, Has, Lacks, Layout, Sized, SpecName

SD1 = Architecture(
    name="sd1",
    title="Stable Diffusion 1.x",
    task="text-to-image",
    components=(
        Component(
            name="unet",
            layouts=(
                Layout(
                    "ldm",
                    ("model.diffusion_model.", "unet.", ""),
                    (
                        Has("input_blocks.1.1.proj_in.weight", ndim=4),
                        Has("input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", ndim=2),
                        Has("output_blocks.11.1.proj_in.weight", ndim=4),
                    ),
                    alone="model.diffusion_model.",
                    adds=(*unet.SCHEDULE, *unet.MARKERS),
                ),
                Layout(
                    "diffusers",
                    ("unet/", "unet.", ""),
                    (
                        Has("down_blocks.0.attentions.0.proj_in.weight", ndim=4),
                        Has("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight", ndim=2),
                        Has("up_blocks.3.attentions.2.proj_in.weight", ndim=4),
                        *unet.PICTURES,
                        Lacks("class_embedding.weight"),
                        Lacks("down_blocks.0.attentions.2.proj_in.weight"),
                    ),
                ),
            ),
            rows=unet.FOUR_LEVELS,
            dotted=("unet.", "model.diffusion_model.", "diffusion_model."),
            flat=("lora_unet_",),
            orders=unet.ORDERS,
        ),
        Component(
            name="text_encoder",
            layouts=(
                Layout("hf", ("cond_stage_model.transformer.", "text_encoder/", "te."), clip.HF, lacks=clip.LACKS),
                Layout("hf_flat", ("cond_stage_model.transformer.", "text_encoder/"), clip.HF_FLAT, lacks=clip.LACKS),
                Layout("openclip", (), clip.OPENCLIP, lacks=clip.POSITIONS),
            ),
            rows=clip.ROWS,
            dotted=("text_encoder.", "cond_stage_model.transformer.", "text_encoders.clip_l.transformer."),
            flat=("lora_te_", "lora_te1_"),
            orders=clip.ORDERS,
        ),
        VAE,
    ),
    spec=(
        SpecName("stable-diffusion-v1-inpainting", "512x512", (Sized(unet.CONV_IN, 1, 9),), prediction="epsilon"),
        SpecName("", "512x512", (Sized(unet.CONV_IN, 1, 8),)),  # InstructPix2Pix
        SpecName("stable-diffusion-v1", "512x512", prediction="epsilon"),
    ),
    code="sgm",
)
