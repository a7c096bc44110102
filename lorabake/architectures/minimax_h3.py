"""MiniMax-H3 as diffusers names it: one transformer for prompts, one for reference pictures; Qwen3, VAEs.

Its maker's files fuse q, k and v in one of two row orders, and nothing in a file tells which. So this table does not
pair their names with diffusers'.
"""

from lorabake.components import text, transformer
from lorabake.components.vae import OTHER_VAE
from lorabake.keymap.table import Architecture, Component, Has, Layout, SpecName

NEEDS = (
    Has("token_refiner.refiner_blocks.0.attn.to_q.weight", ndim=2),
    Has("transformer_blocks.0.adaln_proj.linear.weight", ndim=2),
)

MINIMAX_H3 = Architecture(
    name="minimax_h3",
    title="MiniMax-H3",
    components=(
        Component(
            name="transformer",
            layouts=(Layout("diffusers", transformer.FOLDER, NEEDS),),
            dotted=transformer.DOTTED,
            flat=transformer.FLAT,
        ),
        Component(
            name="transformer_ref",
            layouts=(Layout("diffusers", ("transformer_ref/",), NEEDS),),
            dotted=("transformer_ref.", *transformer.DOTTED),
            flat=transformer.FLAT,
        ),
        text.ONLY,
        OTHER_VAE,
    ),
    spec=(SpecName("minimax-h3", "960x960"),),
    code="https://github.com/comfyanonymous/ComfyUI",
)
