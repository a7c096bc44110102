"""Stable Diffusion 2.x (also 768-v, inpainting, depth): linear layers around the attention; OpenCLIP-H."""

from lorabake.components import clip, unet
from lorabake.components.vae import VAE
from lorabake.keymap.table import Architecture, Component, Has, Lacks, Layout, Sized, SpecName

SD2 = Architecture(
    name="sd2",
    title="Stable Diffusion 2.x",
    task="text-to-image",
    components=(
        Component(
            name="unet",
            layouts=(
                Layout(
                    "ldm",
                    ("model.diffusion_model.", "unet.", ""),
                    (
                        Has("input_blocks.1.1.proj_in.weight", ndim=2),
                        Has("input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", ndim=2),
                        Has("output_blocks.11.1.proj_in.weight", ndim=2),
                        Lacks("input_blocks.1.1.time_stack.0.norm1.weight"),  # Stable Video Diffusion
                    ),
                    alone="model.diffusion_model.",
                    adds=unet.SCHEDULE,
                ),
                Layout(
                    "diffusers",
                    ("unet/", "unet.", ""),
                    (
                        Has("down_blocks.0.attentions.0.proj_in.weight", ndim=2),
                        Has("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight", ndim=2),
                        Has("up_blocks.3.attentions.2.proj_in.weight", ndim=2),
                        *unet.PICTURES,
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
                Layout("hf", ("text_encoder/", "cond_stage_model.transformer.", "te."), clip.HF, lacks=clip.LACKS),
                Layout("hf_flat", ("text_encoder/",), clip.HF_FLAT, lacks=clip.LACKS),
                Layout("openclip", ("cond_stage_model.model.",), clip.OPENCLIP, lacks=clip.POSITIONS),
            ),
            rows=clip.ROWS,
            dotted=("text_encoder.", "cond_stage_model.model.", "text_encoders.clip_h.transformer."),
            flat=("lora_te_", "lora_te1_"),
            orders=clip.ORDERS,
        ),
        VAE,
    ),
    spec=(
        SpecName("stable-diffusion-v2-depth", "512x512", (Sized(unet.CONV_IN, 1, 5),), prediction="epsilon"),
        SpecName("stable-diffusion-v2-inpainting", "512x512", (Sized(unet.CONV_IN, 1, 9),), prediction="epsilon"),
        SpecName("stable-diffusion-v2-unclip-l", "768x768", (Sized(unet.LABEL, 1, 1536),), prediction="v"),
        SpecName("stable-diffusion-v2-unclip-h", "768x768", (Sized(unet.LABEL, 1, 2048),), prediction="v"),
        SpecName("stable-diffusion-v2-768-v", "768x768", predicts="v"),
        SpecName("stable-diffusion-v2-512", "512x512", predicts="epsilon"),
        SpecName("stable-diffusion-v2-turbo", "512x512", is_stated=True),
    ),
    code="sgm",
)
