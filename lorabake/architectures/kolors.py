"""Kolors: SDXL's UNet, which reads a projection of ChatGLM's states; ChatGLM, VAE."""

from lorabake.components import text, unet
from lorabake.components.vae import VAE_OF_COMFY
from lorabake.keymap.table import Architecture, Component, Has, Kin, Lacks, Layout

KOLORS = Architecture(
    name="kolors",
    title="Kolors",
    task="text-to-image",
    components=(
        Component(
            name="unet",
            layouts=(
                Layout("sgm", (), ()),
                Layout(
                    "diffusers",
                    ("unet/", "unet.", ""),
                    (
                        Has("encoder_hid_proj.weight", ndim=2),
                        Has("down_blocks.1.attentions.0.proj_in.weight", ndim=2),
                        Has("up_blocks.0.attentions.0.proj_in.weight", ndim=2),
                        Lacks("down_blocks.0.attentions.0.proj_in.weight"),
                    ),
                ),
            ),
            rows=unet.THREE_LEVELS,
            dotted=("unet.", "diffusion_model."),
            flat=("lora_unet_",),
        ),
        text.ONLY,
        VAE_OF_COMFY,
    ),
    kin=(
        Kin(
            "sdxl",
            "Kolors has Stable Diffusion XL's UNet behind another text encoder, and programs load either's LoRAs",
        ),
    ),
)
