"""ACE-Step 1.5: the music transformer; Qwen3, VAE."""

from lorabake.components import text, transformer
from lorabake.components.vae import OTHER_VAE
from lorabake.keymap.table import Architecture, Component, Has, Layout, Row

ATTENTION = (
    Row(("q_proj", "to_q")),
    Row(("k_proj", "to_k")),
    Row(("v_proj", "to_v")),
    Row(("o_proj", "to_out.0")),
)

ACE_STEP = Architecture(
    name="ace_step",
    title="ACE-Step 1.5",
    task="text-to-audio",
    components=(
        Component(
            name="transformer",
            layouts=(
                Layout(
                    "ace_step",
                    ("decoder.", ""),
                    (Has("layers.0.cross_attn.q_proj.weight", ndim=2), Has("time_embed_r.linear_1.weight", ndim=2)),
                ),
                Layout(
                    "diffusers",
                    transformer.FOLDER,
                    (Has("layers.0.cross_attn.to_q.weight", ndim=2), Has("time_embed_r.linear_1.weight", ndim=2)),
                ),
            ),
            rows=(
                Row(("layers.{}.self_attn", "layers.{}.self_attn"), ATTENTION),
                Row(("layers.{}.cross_attn", "layers.{}.cross_attn"), ATTENTION),
                Row(("proj_in.1", "proj_in_conv")),
                Row(("proj_out.1", "proj_out_conv")),
            ),
            dotted=transformer.DOTTED,
            flat=transformer.FLAT,
        ),
        text.ONLY,
        OTHER_VAE,
    ),
)
