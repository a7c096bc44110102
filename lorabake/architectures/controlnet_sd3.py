"""ControlNets of Stable Diffusion 3 and 3.5; Stability's own for 3.5 fuse q, k and v. Each is a base by itself."""

from lorabake.components.transformer import QKV
from lorabake.keymap.table import Architecture, Component, Has, Layout, Row

CONTROLNET_SD3 = Architecture(
    name="controlnet_sd3",
    title="ControlNet of Stable Diffusion 3",
    components=(
        Component(
            name="controlnet",
            layouts=(
                Layout(
                    "sai",
                    ("",),
                    (
                        Has("controlnet_blocks.0.weight", ndim=2),
                        Has("pos_embed_input.proj.weight", ndim=4),
                        Has("transformer_blocks.0.attn.qkv.weight", ndim=2),
                    ),
                ),
                Layout(
                    "diffusers",
                    ("controlnet/", ""),
                    (
                        Has("controlnet_blocks.0.weight", ndim=2),
                        Has("pos_embed_input.proj.weight", ndim=4),
                        Has("transformer_blocks.0.attn.to_q.weight", ndim=2),
                    ),
                ),
            ),
            rows=(
                Row(
                    ("transformer_blocks.{}", "transformer_blocks.{}"),
                    (
                        Row(("attn.qkv", QKV)),
                        Row(("attn.proj", "attn.to_out.0")),
                        Row(("mlp.fc1", "ff.net.0.proj")),
                        Row(("mlp.fc2", "ff.net.2")),
                        Row(("adaLN_modulation.1", "norm1.linear")),
                    ),
                ),
            ),
            dotted=("controlnet.",),
        ),
    ),
)
