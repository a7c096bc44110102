"""ControlNets of Stable Diffusion 1.x, 2.x and XL. Each is a base by itself."""

from lorabake.components import controlnet, unet
from lorabake.keymap.table import Architecture, Component, Has, Lacks, Layout, Sized, SpecName

TO_K = (
    "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight",
)

CONTROLNET = Architecture(
    name="controlnet",
    title="ControlNet of Stable Diffusion 1.x or 2.x",
    components=(
        Component(
            name="controlnet",
            layouts=(
                Layout(
                    "ldm",
                    ("control_model.", ""),
                    (Has("zero_convs.0.0.weight", ndim=4), Has("input_blocks.1.1.proj_in.weight")),
                    alone="control_model.",
                ),
                Layout(
                    "diffusers",
                    ("controlnet/", ""),
                    (
                        Has("controlnet_down_blocks.0.weight", ndim=4),
                        Has("down_blocks.0.attentions.0.proj_in.weight"),
                        Lacks("controlnet_cond_embedding.weight"),
                    ),
                ),
            ),
            rows=(*unet.FOUR_LEVELS, *controlnet.ROWS),
            dotted=("controlnet.", "control_model."),
        ),
    ),
    spec=(SpecName("stable-diffusion-v1/controlnet", "512x512", (Sized(TO_K, 1, 768),)),),
    code="https://github.com/lllyasviel/ControlNet",
)

CONTROLNET_XL = Architecture(
    name="controlnet_xl",
    title="ControlNet of Stable Diffusion XL",
    components=(
        Component(
            name="controlnet",
            layouts=(
                Layout(
                    "ldm",
                    ("control_model.", ""),
                    (Has("zero_convs.0.0.weight", ndim=4), Lacks("input_blocks.1.1.proj_in.weight")),
                    alone="control_model.",
                ),
                Layout(
                    "diffusers",
                    ("controlnet/", ""),
                    (
                        Has("controlnet_down_blocks.0.weight", ndim=4),
                        Lacks("down_blocks.0.attentions.0.proj_in.weight"),
                    ),
                ),
            ),
            rows=(*unet.THREE_LEVELS, *controlnet.ROWS),
            dotted=("controlnet.", "control_model."),
        ),
    ),
    spec=(SpecName("stable-diffusion-xl-v1-base/controlnet", "1024x1024"),),
    code="https://github.com/lllyasviel/ControlNet",
)
