"""Cosmos 1 (Predict1, 7B and 14B), as NVIDIA's code and as diffusers name it; T5, VAE."""

from lorabake.components import text, transformer
from lorabake.components.vae import OTHER_VAE
from lorabake.keymap.table import Architecture, Bare, Component, Has, Layout, Row, SpecName

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
                Row(("blocks.block{}", "transformer_blocks.{}"), BLOCK),
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
    spec=(
        SpecName("nvidia-cosmos-1-7b-text2world", "960x960", is_stated=True),
        SpecName("nvidia-cosmos-1-7b-video2world", "960x960", is_stated=True),
        SpecName("nvidia-cosmos-1-14b-text2world", "960x960", is_stated=True),
        SpecName("nvidia-cosmos-1-14b-video2world", "960x960", is_stated=True),
    ),
    code="https://github.com/nvidia-cosmos/cosmos-predict1",
)
