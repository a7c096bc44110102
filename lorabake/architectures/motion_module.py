"""AnimateDiff's motion modules, a base by themselves: MotionLoRAs change them, not the image model's checkpoint."""

from lorabake.keymap.table import Architecture, Component, Has, Lacks, Layout, Row

# Layouts, in this order: animatediff, diffusers.
MODULE = (
    Row(
        ("transformer_blocks.{}", "transformer_blocks.{}"),
        (
            Row(("attention_blocks.0", "attn1")),
            Row(("attention_blocks.1", "attn2")),
            Row(("norms.0", "norm1")),
            Row(("norms.1", "norm2")),
            Row(("ff_norm", "norm3")),
        ),
    ),
)

MOTION_MODULE = Architecture(
    name="motion_module",
    title="AnimateDiff motion module",
    components=(
        Component(
            name="motion_adapter",
            layouts=(
                Layout(
                    "animatediff",
                    ("",),
                    (Has("down_blocks.0.motion_modules.0.temporal_transformer.proj_in.weight", ndim=2),),
                ),
                Layout(
                    "diffusers",
                    ("motion_adapter/", ""),
                    (Has("down_blocks.0.motion_modules.0.proj_in.weight", ndim=2), Lacks("conv_in.weight")),
                ),
            ),
            rows=(
                Row(
                    (
                        "down_blocks.{}.motion_modules.{}.temporal_transformer",
                        "down_blocks.{}.motion_modules.{}",
                    ),
                    MODULE,
                ),
                Row(
                    ("up_blocks.{}.motion_modules.{}.temporal_transformer", "up_blocks.{}.motion_modules.{}"), MODULE
                ),
                Row(("mid_block.motion_modules.{}.temporal_transformer", "mid_block.motion_modules.{}"), MODULE),
            ),
            dotted=("unet.", "motion_adapter."),
        ),
    ),
)
