"""GPT-2: its `Conv1D` layers store the weight as (in, out)."""

from lorabake.keymap.table import Architecture, Component, Has, Layout, Row

GPT2 = Architecture(
    name="gpt2",
    title="GPT-2",
    task="text-generation",
    components=(
        Component(
            name="model",
            layouts=(
                Layout(
                    "hf",
                    ("transformer.", ""),
                    (Has("h.0.attn.c_attn.weight", ratio=3), Has("wte.weight", ndim=2)),
                ),
            ),
            rows=(
                Row(
                    ("h.{}",),
                    (
                        Row(("attn.c_attn",), transposed=("hf",)),
                        Row(("attn.c_proj",), transposed=("hf",)),
                        Row(("crossattention.c_attn",), transposed=("hf",)),
                        Row(("crossattention.q_attn",), transposed=("hf",)),
                        Row(("crossattention.c_proj",), transposed=("hf",)),
                        Row(("mlp.c_fc",), transposed=("hf",)),
                        Row(("mlp.c_proj",), transposed=("hf",)),
                        Row(("ln_1",)),
                        Row(("ln_2",)),
                        Row(("ln_cross_attn",)),
                    ),
                ),
            ),
            dotted=("transformer.",),
            embeddings=("wte",),
            heads=("lm_head",),
        ),
    ),
)
