"""Cosmos 1 (Predict1, 7B and 14B), as NVIDIA's code and as diffusers name it; T5, VAE."""

from lorabake.components import text, transformer
from lorabake.components.vae import OTHER_VAE
from lorabake.keymap.table import Architecture, Bare, Component, Has, Layout, Row

# Layouts, in this order: nvidia, diffusers.
ATTENTION = (
    Row(("to_q.0", "to_q")),
    Row(("to_q.1", "norm_q")),
    Row(("to_k.0", "to_k")),
    Row(("to_k.1", "norm_k")),
    Row(("to_v.0", "to_v")),
)
BLOCK = (
    Row(("blocks.0.block.attn", "attn1"), ATTENTION),
    Row(("blocks.1.block.attn", "attn2"), ATTENTION),
    Row(("blocks.2.block.layer1", "ff.net.0.proj")),
    Row(("blocks.2.block.layer2", "ff.net.2")),
    Row(("blocks.0.adaLN_modulation.1", "norm1.linear_1")),
    Row(("blocks.0.adaLN_modulation.2", "norm1.linear_2")),
    Row(("blocks.1.adaLN_modulation.1", "norm2.linear_1")),
    Row(("blocks.1.adaLN_modulation.2", "norm2.linear_2")),
    Row(("blocks.2.adaLN_modulation.1", "norm3.linear_1")),
    Row(("blocks.2.adaLN_modulation.2", "norm3.linear_2")),
)

COSMOS1 = Architecture(
    name="cosmos1",
    title="Cosmos 1",
    components=(
        Component(
            name="transformer",
            layouts=(
                Layout(
                    "nvidia",
                    transformer.SINGLE_FILE,
                    (Has("blocks.block0.blocks.0.block.attn.to_q.0.weight", ndim=2),),
                ),
                Layout(
                    "diffusers",
                    transformer.FOLDER,
                    (
                        Has("transformer_blocks.0.norm1.linear_1.weight", ndim=2),
                        Has("time_embed.t_embedder.linear_1.weight", ndim=2),
                        Has("learnable_pos_embed.pos_emb_t", ndim=2),
                    ),
                ),
            ),
            rows=(
                Row(("blocks.block0", "transformer_blocks.0"), BLOCK),
                Row(("blocks.block1", "transformer_blocks.1"), BLOCK),
                Row(("blocks.block2", "transformer_blocks.2"), BLOCK),
                Row(("blocks.block3", "transformer_blocks.3"), BLOCK),
                Row(("blocks.block4", "transformer_blocks.4"), BLOCK),
                Row(("blocks.block5", "transformer_blocks.5"), BLOCK),
                Row(("blocks.block6", "transformer_blocks.6"), BLOCK),
                Row(("blocks.block7", "transformer_blocks.7"), BLOCK),
                Row(("blocks.block8", "transformer_blocks.8"), BLOCK),
                Row(("blocks.block9", "transformer_blocks.9"), BLOCK),
                Row(("blocks.block10", "transformer_blocks.10"), BLOCK),
                Row(("blocks.block11", "transformer_blocks.11"), BLOCK),
                Row(("blocks.block12", "transformer_blocks.12"), BLOCK),
                Row(("blocks.block13", "transformer_blocks.13"), BLOCK),
                Row(("blocks.block14", "transformer_blocks.14"), BLOCK),
                Row(("blocks.block15", "transformer_blocks.15"), BLOCK),
                Row(("blocks.block16", "transformer_blocks.16"), BLOCK),
                Row(("blocks.block17", "transformer_blocks.17"), BLOCK),
                Row(("blocks.block18", "transformer_blocks.18"), BLOCK),
                Row(("blocks.block19", "transformer_blocks.19"), BLOCK),
                Row(("blocks.block20", "transformer_blocks.20"), BLOCK),
                Row(("blocks.block21", "transformer_blocks.21"), BLOCK),
                Row(("blocks.block22", "transformer_blocks.22"), BLOCK),
                Row(("blocks.block23", "transformer_blocks.23"), BLOCK),
                Row(("blocks.block24", "transformer_blocks.24"), BLOCK),
                Row(("blocks.block25", "transformer_blocks.25"), BLOCK),
                Row(("blocks.block26", "transformer_blocks.26"), BLOCK),
                Row(("blocks.block27", "transformer_blocks.27"), BLOCK),
                Row(("blocks.block28", "transformer_blocks.28"), BLOCK),
                Row(("blocks.block29", "transformer_blocks.29"), BLOCK),
                Row(("blocks.block30", "transformer_blocks.30"), BLOCK),
                Row(("blocks.block31", "transformer_blocks.31"), BLOCK),
                Row(("blocks.block32", "transformer_blocks.32"), BLOCK),
                Row(("blocks.block33", "transformer_blocks.33"), BLOCK),
                Row(("blocks.block34", "transformer_blocks.34"), BLOCK),
                Row(("blocks.block35", "transformer_blocks.35"), BLOCK),
                Row(("x_embedder.proj.1", "patch_embed.proj")),
                Row((Bare("extra_pos_embedder.pos_emb_t"), Bare("learnable_pos_embed.pos_emb_t"))),
                Row((Bare("extra_pos_embedder.pos_emb_h"), Bare("learnable_pos_embed.pos_emb_h"))),
                Row((Bare("extra_pos_embedder.pos_emb_w"), Bare("learnable_pos_embed.pos_emb_w"))),
                Row(("t_embedder.1", "time_embed.t_embedder")),
                Row(("affline_norm", "time_embed.norm")),
                Row(("final_layer.adaLN_modulation.1", "norm_out.linear_1")),
                Row(("final_layer.adaLN_modulation.2", "norm_out.linear_2")),
                Row(("final_layer.linear", "proj_out")),
            ),
            dotted=transformer.DOTTED,
            flat=transformer.FLAT,
        ),
        text.ONLY,
        OTHER_VAE,
    ),
)
