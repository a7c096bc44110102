"""ModelScope's text-to-video and Zeroscope as diffusers names them; OpenCLIP-H, VAE."""

from lorabake.components import clip
from lorabake.components.vae import VAE
from lorabake.keymap.table import Architecture, Component, Has, Kin, Lacks, Layout

TEXT_TO_VIDEO = Architecture(
    name="text_to_video",
    title="ModelScope text-to-video",
    task="text-to-video",
    components=(
        Component(
            name="unet",
            layouts=(
                Layout(
                    "diffusers",
                    ("unet/", "unet.", ""),
                    (
                        Has("transformer_in.proj_in.weight", ndim=2),
                        Has("down_blocks.0.temp_attentions.0.proj_in.weight", ndim=2),
                        Lacks("image_latents_proj_in.0.weight"),
                    ),
                ),
            ),
            dotted=("unet.",),
            flat=("lora_unet_",),
        ),
        clip.CLIP_L,
        VAE,
    ),
    kin=(Kin("sd2", "it began with Stable Diffusion 2.1's weights, and has layers over time beside them"),),
)
