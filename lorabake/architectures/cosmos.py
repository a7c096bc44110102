"""Cosmos-Predict2; T5, VAE."""

from lorabake.components import cosmos, text, transformer
from lorabake.components.vae import OTHER_VAE
from lorabake.keymap.table import Architecture, Component, Has, Lacks, Layout, SpecName

COSMOS = Architecture(
    name="cosmos",
    title="Cosmos",
    components=(
        Component(
            name="transformer",
            layouts=(
                Layout(
                    "nvidia",
                    transformer.SINGLE_FILE,
                    (
                        Has("blocks.0.adaln_modulation_self_attn.1.weight", ndim=2),
                        Has("x_embedder.proj.1.weight", ndim=2),
                        Lacks("llm_adapter.blocks.0.cross_attn.q_proj.weight"),
                    ),
                ),
                Layout(
                    "diffusers",
                    transformer.FOLDER,
                    (
                        Has("transformer_blocks.0.norm1.linear_1.weight", ndim=2),
                        Has("time_embed.t_embedder.linear_1.weight", ndim=2),
                        Lacks("learnable_pos_embed.pos_emb_t"),
                    ),
                ),
            ),
            rows=cosmos.ROWS,
            dotted=transformer.DOTTED,
            flat=transformer.FLAT,
        ),
        text.ONLY,
        OTHER_VAE,
    ),
    spec=(
        SpecName("nvidia-cosmos-predict2-t2i-2b", "1024x1024", is_stated=True),
        SpecName("nvidia-cosmos-predict2-t2i-14b", "1024x1024", is_stated=True),
    ),
    code="https://github.com/nvidia-cosmos/cosmos-predict2",
)
