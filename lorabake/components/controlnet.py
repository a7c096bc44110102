"""What a ControlNet adds to its half of a UNet, as its authors' code and as diffusers name it."""

from lorabake.keymap.table import Row

# Layouts, in this order: ldm, diffusers.
ROWS = (
    Row(("zero_convs.{}.0", "controlnet_down_blocks.{}")),
    Row(("middle_block_out.0", "controlnet_mid_block")),
    Row(("input_hint_block.0", "controlnet_cond_embedding.conv_in")),
    Row(("input_hint_block.2", "controlnet_cond_embedding.blocks.0")),
    Row(("input_hint_block.4", "controlnet_cond_embedding.blocks.1")),
    Row(("input_hint_block.6", "controlnet_cond_embedding.blocks.2")),
    Row(("input_hint_block.8", "controlnet_cond_embedding.blocks.3")),
    Row(("input_hint_block.10", "controlnet_cond_embedding.blocks.4")),
    Row(("input_hint_block.12", "controlnet_cond_embedding.blocks.5")),
    Row(("input_hint_block.14", "controlnet_cond_embedding.conv_out")),
)
