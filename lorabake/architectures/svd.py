"""Stable Video Diffusion as diffusers names it; VAE. It reads a picture instead of a text."""

from lorabake.components.vae import OTHER_VAE
from lorabake.keymap.table import Architecture, Component, Has, Kin, Layout, SpecName

SVD = Architecture(
    name="svd",
    title="Stable Video Diffusion",
    task="image-to-video",
    components=(
        Component(
            name="unet",
            layouts=(
                Layout(
                    "diffusers",
                    ("unet/", "unet.", ""),
                    (
                        Has("down_blocks.0.attentions.0.temporal_transformer_blocks.0.norm1.weight"),
                        Has("add_embedding.linear_1.weight", ndim=2),
                    ),
                ),
            ),
            dotted=("unet.",),
            flat=("lora_unet_",),
        ),
        OTHER_VAE,
    ),
    kin=(
        Kin(
            "sd2",
            "Stable Video Diffusion began with Stable Diffusion 2.1's weights, and has layers over time beside them",
        ),
    ),
    spec=(
        SpecName("stable-video-diffusion-img2vid-v1", "1024x576"),
        SpecName("stable-video-diffusion-img2vid-v0_9", "1024x576", is_stated=True),
    ),
    code="sgm",
)
