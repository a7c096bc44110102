"""Krea 2: its attention has gates, and a stack of blocks merges the language model's layers; VAE."""

from lorabake.components import text, transformer
from lorabake.components.vae import OTHER_VAE
from lorabake.keymap.table import Architecture, Bare, Component, Has, Layout, Row, SpecName

# Layouts, in this order: krea, diffusers.
BLOCK = (
    Row(("attn.wq", "attn.to_q")),
    Row(("attn.wk", "attn.to_k")),
    Row(("attn.wv", "attn.to_v")),
    Row(("attn.wo", "attn.to_out.0")),
    Row(("attn.gate", "attn.to_gate")),
    Row((Bare("attn.qknorm.qnorm.scale"), "attn.norm_q")),
    Row((Bare("attn.qknorm.knorm.scale"), "attn.norm_k")),
    Row(("mlp.gate", "ff.gate")),
    Row(("mlp.up", "ff.up")),
    Row(("mlp.down", "ff.down")),
    Row((Bare("prenorm.scale"), "norm1")),
    Row((Bare("postnorm.scale"), "norm2")),
    Row((Bare("mod.lin"), Bare("scale_shift_table"))),
)

KREA2 = Architecture(
    name="krea2",
    title="Krea 2",
    task="text-to-image",
    components=(
        Component(
            name="transformer",
            layouts=(
                Layout(
                    "krea",
                    transformer.SINGLE_FILE,
                    (Has("blocks.0.attn.wq.weight", ndim=2), Has("txtfusion.projector.weight", ndim=2)),
                ),
                Layout(
                    "diffusers",
                    transformer.FOLDER,
                    (
                        Has("transformer_blocks.0.attn.to_gate.weight", ndim=2),
                        Has("text_fusion.projector.weight", ndim=2),
                    ),
                ),
            ),
            rows=(
                Row(("blocks.{}", "transformer_blocks.{}"), BLOCK),
                Row(("txtfusion.layerwise_blocks.{}", "text_fusion.layerwise_blocks.{}"), BLOCK),
                Row(("txtfusion.refiner_blocks.{}", "text_fusion.refiner_blocks.{}"), BLOCK),
                Row(("txtfusion.projector", "text_fusion.projector")),
                Row(("first", "img_in")),
                Row(("tmlp.0", "time_embed.linear_1")),
                Row(("tmlp.2", "time_embed.linear_2")),
                Row(("tproj.1", "time_mod_proj")),
                Row((Bare("txtmlp.0.scale"), "txt_in.norm")),
                Row(("txtmlp.1", "txt_in.linear_1")),
                Row(("txtmlp.3", "txt_in.linear_2")),
                Row(("last.linear", "final_layer.linear")),
                Row((Bare("last.norm.scale"), "final_layer.norm")),
                Row((Bare("last.modulation.lin"), Bare("final_layer.scale_shift_table"))),
            ),
            dotted=transformer.DOTTED,
            flat=transformer.FLAT,
        ),
        text.ONLY,
        OTHER_VAE,
    ),
    spec=(SpecName("krea-2", "1024x1024"),),
    code="https://github.com/comfyanonymous/ComfyUI",
)
