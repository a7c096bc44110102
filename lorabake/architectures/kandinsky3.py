"""Kandinsky 3: a UNet of its own; T5, VAE."""

from lorabake.components import text
from lorabake.components.vae import OTHER_VAE
from lorabake.keymap.table import Architecture, Component, Has, Layout

KANDINSKY3 = Architecture(
    name="kandinsky3",
    title="Kandinsky 3",
    task="text-to-image",
    components=(
        Component(
            name="unet",
            layouts=(
                Layout(
                    "diffusers",
                    ("unet/", "unet.", ""),
                    (
                        Has("add_time_condition.attention.to_q.weight", ndim=2),
                        Has("down_blocks.1.attentions.0.attention.to_q.weight", ndim=2),
                    ),
                ),
            ),
            dotted=("unet.",),
            flat=("lora_unet_",),
        ),
        text.ONLY,
        OTHER_VAE,
    ),
)
