"""Anima: Cosmos-Predict2 with an adapter for a language model; Qwen3, VAE."""

from lorabake.components import cosmos, text, transformer
from lorabake.components.vae import OTHER_VAE
from lorabake.keymap.table import Architecture, Component, Has, Kin, Layout, Row, SpecName

ANIMA = Architecture(
    name="anima",
    title="Anima",
    task="text-to-image",
    components=(
        Component(
            name="transformer",
            layouts=(
                Layout(
                    "nvidia",
                    transformer.SINGLE_FILE,
                    (
                        Has("blocks.0.adaln_modulation_self_attn.1.weight", ndim=2),
                        Has("llm_adapter.blocks.0.cross_attn.q_proj.weight", ndim=2),
                    ),
                ),
                Layout("diffusers", (), ()),
            ),
            rows=(*cosmos.ROWS, Row(("llm_adapter", "text_conditioner"))),
            dotted=transformer.DOTTED,
            flat=transformer.FLAT,
        ),
        text.ONLY,
        OTHER_VAE,
    ),
    kin=(Kin("cosmos", "Anima is Cosmos-Predict2 2B, trained further behind an adapter for another text encoder"),),
    spec=(SpecName("anima", "1024x1024"),),
    code="https://github.com/comfyanonymous/ComfyUI",
)
