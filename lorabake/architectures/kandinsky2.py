"""Kandinsky 2.1 and 2.2 as diffusers names them: the decoder, a UNet, and the prior, which feeds it."""

from lorabake.components import clip
from lorabake.components.vae import OTHER_VAE
from lorabake.keymap.table import Architecture, Component, Has, Layout

KANDINSKY2 = Architecture(
    name="kandinsky2",
    title="Kandinsky 2",
    task="text-to-image",
    components=(
        Component(
            name="unet",
            layouts=(
                Layout(
                    "diffusers",
                    ("unet/", "unet.", ""),
                    (
                        Has("down_blocks.1.attentions.0.add_k_proj.weight", ndim=2),
                        Has("add_embedding.image_proj.weight", ndim=2),
                    ),
                ),
            ),
            dotted=("unet.",),
            flat=("lora_unet_",),
        ),
        OTHER_VAE,
    ),
)

KANDINSKY2_PRIOR = Architecture(
    name="kandinsky2_prior",
    title="Kandinsky 2's prior",
    components=(
        Component(
            name="prior",
            layouts=(
                Layout(
                    "diffusers",
                    ("prior/", ""),
                    (
                        Has("proj_to_clip_embeddings.weight", ndim=2),
                        Has("prd_embedding", ndim=3),
                        Has("encoder_hidden_states_proj.weight", ndim=2),
                    ),
                ),
            ),
            dotted=("prior.",),
        ),
        clip.CLIP_L,
    ),
)
