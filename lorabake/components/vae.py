"""The VAE (AutoencoderKL) of the Stable Diffusion families, as the LDM code and as diffusers name it.

The LDM code numbers the decoder's levels from the output, diffusers from the input. The attention's projections are
1×1 convolutions in the LDM code and linear layers in diffusers.
"""

from lorabake.keymap.table import Component, Has, Layout, Row

BLOCK = (Row(("nin_shortcut", "conv_shortcut")),)
# Until version 0.16, diffusers wrote the attention by other names, which it still reads. Of two rows the last counts.
ATTENTION = (
    Row(("q", "query"), kernels=("ldm",)),
    Row(("k", "key"), kernels=("ldm",)),
    Row(("v", "value"), kernels=("ldm",)),
    Row(("proj_out", "proj_attn"), kernels=("ldm",)),
    Row(("norm", "group_norm")),
    Row(("q", "to_q"), kernels=("ldm",)),
    Row(("k", "to_k"), kernels=("ldm",)),
    Row(("v", "to_v"), kernels=("ldm",)),
    Row(("proj_out", "to_out.0"), kernels=("ldm",)),
)
MIDDLE = (
    Row(("block_1", "resnets.0"), BLOCK),
    Row(("attn_1", "attentions.0"), ATTENTION),
    Row(("block_2", "resnets.1"), BLOCK),
)
ROWS = (
    Row(("encoder.mid", "encoder.mid_block"), MIDDLE),
    Row(("decoder.mid", "decoder.mid_block"), MIDDLE),
    Row(("encoder.norm_out", "encoder.conv_norm_out")),
    Row(("decoder.norm_out", "decoder.conv_norm_out")),
    Row(("encoder.down.{}.block.{}", "encoder.down_blocks.{}.resnets.{}"), BLOCK),
    Row(("encoder.down.{}.downsample", "encoder.down_blocks.{}.downsamplers.0")),
    Row(("decoder.up.3.block.{}", "decoder.up_blocks.0.resnets.{}"), BLOCK),
    Row(("decoder.up.2.block.{}", "decoder.up_blocks.1.resnets.{}"), BLOCK),
    Row(("decoder.up.1.block.{}", "decoder.up_blocks.2.resnets.{}"), BLOCK),
    Row(("decoder.up.0.block.{}", "decoder.up_blocks.3.resnets.{}"), BLOCK),
    Row(("decoder.up.3.upsample", "decoder.up_blocks.0.upsamplers.0")),
    Row(("decoder.up.2.upsample", "decoder.up_blocks.1.upsamplers.0")),
    Row(("decoder.up.1.upsample", "decoder.up_blocks.2.upsamplers.0")),
)

VAE = Component(
    name="vae",
    layouts=(
        Layout("ldm", ("first_stage_model.", "vae.", ""), (Has("encoder.down.0.block.0.conv1.weight", ndim=4),)),
        Layout("diffusers", ("vae/", "vae.", ""), (Has("encoder.down_blocks.0.resnets.0.conv1.weight", ndim=4),)),
    ),
    rows=ROWS,
    dotted=("vae.", "first_stage_model."),
    flat=("lora_vae_",),
)

# The same in single files of later families, which ComfyUI writes below `vae.`
VAE_OF_COMFY = Component(
    name="vae",
    layouts=(
        Layout("ldm", ("vae.", "first_stage_model.", ""), (Has("encoder.down.0.block.0.conv1.weight", ndim=4),)),
        Layout("diffusers", ("vae/", "vae.", ""), (Has("encoder.down_blocks.0.resnets.0.conv1.weight", ndim=4),)),
    ),
    rows=ROWS,
    dotted=("vae.", "first_stage_model."),
    flat=("lora_vae_",),
)

# A VAE that each code base names differently. Here it has only the names in its own file.
OTHER_VAE = Component(
    name="vae",
    layouts=(Layout("own", ("vae/", "vae.", "first_stage_model."), ()),),
    dotted=("vae.",),
)
