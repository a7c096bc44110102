"""AuraFlow: in its own code `w1` reads the text and `w2` the picture; a `w1` alone reads both; T5, VAE."""

from lorabake.components import text, transformer
from lorabake.components.vae import VAE_OF_COMFY
from lorabake.keymap.table import Architecture, Bare, Component, Has, Layout, Row, SpecName

FEED_FORWARD = (Row(("c_fc1", "linear_1")), Row(("c_fc2", "linear_2")), Row(("c_proj", "out_projection")))

AURAFLOW = Architecture(
    name="auraflow",
    title="AuraFlow",
    task="text-to-image",
    components=(
        Component(
            name="transformer",
            layouts=(
                Layout(
                    "fal",
                    transformer.SINGLE_FILE,
                    (Has("double_layers.0.attn.w1q.weight", ndim=2), Has("cond_seq_linear.weight", ndim=2)),
                ),
                Layout(
                    "diffusers",
                    transformer.FOLDER,
                    (
                        Has("joint_transformer_blocks.0.attn.add_q_proj.weight", ndim=2),
                        Has("context_embedder.weight", ndim=2),
                        Has("time_step_proj.linear_1.weight", ndim=2),
                    ),
                ),
            ),
            rows=(
                Row(
                    ("double_layers.{}", "joint_transformer_blocks.{}"),
                    (
                        Row(("attn.w2q", "attn.to_q")),
                        Row(("attn.w2k", "attn.to_k")),
                        Row(("attn.w2v", "attn.to_v")),
                        Row(("attn.w2o", "attn.to_out.0")),
                        Row(("attn.w1q", "attn.add_q_proj")),
                        Row(("attn.w1k", "attn.add_k_proj")),
                        Row(("attn.w1v", "attn.add_v_proj")),
                        Row(("attn.w1o", "attn.to_add_out")),
                        Row(("mlpX", "ff"), FEED_FORWARD),
                        Row(("mlpC", "ff_context"), FEED_FORWARD),
                        Row(("modX.1", "norm1.linear")),
                        Row(("modC.1", "norm1_context.linear")),
                    ),
                ),
                Row(
                    ("single_layers.{}", "single_transformer_blocks.{}"),
                    (
                        Row(("attn.w1q", "attn.to_q")),
                        Row(("attn.w1k", "attn.to_k")),
                        Row(("attn.w1v", "attn.to_v")),
                        Row(("attn.w1o", "attn.to_out.0")),
                        Row(("mlp", "ff"), FEED_FORWARD),
                        Row(("modCX.1", "norm1.linear")),
                    ),
                ),
                Row((Bare("positional_encoding"), Bare("pos_embed.pos_embed"))),
                Row(("init_x_linear", "pos_embed.proj")),
                Row(("t_embedder.mlp.0", "time_step_proj.linear_1")),
                Row(("t_embedder.mlp.2", "time_step_proj.linear_2")),
                Row(("cond_seq_linear", "context_embedder")),
                Row(("modF.1", "norm_out.linear"), swapped=("fal",)),
                Row(("final_linear", "proj_out")),
            ),
            dotted=transformer.DOTTED,
            flat=transformer.FLAT,
        ),
        text.ONLY,
        VAE_OF_COMFY,
    ),
    spec=(SpecName("auraflow-v1", "1024x1024"),),
    code="https://github.com/comfyanonymous/ComfyUI",
)
