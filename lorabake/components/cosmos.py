"""The transformer of Cosmos-Predict2, on which Anima is built, as NVIDIA's code and as diffusers name it."""

from lorabake.keymap.table import Row

# Layouts, in this order: nvidia, diffusers.
ATTENTION = (
    Row(("q_proj", "to_q")),
    Row(("k_proj", "to_k")),
    Row(("v_proj", "to_v")),
    Row(("output_proj", "to_out.0")),
    Row(("q_norm", "norm_q")),
    Row(("k_norm", "norm_k")),
)
ROWS = (
    Row(
        ("blocks.{}", "transformer_blocks.{}"),
        (
            Row(("self_attn", "attn1"), ATTENTION),
            Row(("cross_attn", "attn2"), ATTENTION),
            Row(("mlp.layer1", "ff.net.0.proj")),
            Row(("mlp.layer2", "ff.net.2")),
            Row(("adaln_modulation_self_attn.1", "norm1.linear_1")),
            Row(("adaln_modulation_self_attn.2", "norm1.linear_2")),
            Row(("adaln_modulation_cross_attn.1", "norm2.linear_1")),
            Row(("adaln_modulation_cross_attn.2", "norm2.linear_2")),
            Row(("adaln_modulation_mlp.1", "norm3.linear_1")),
            Row(("adaln_modulation_mlp.2", "norm3.linear_2")),
        ),
    ),
    Row(("x_embedder.proj.1", "patch_embed.proj")),
    Row(("t_embedder.1", "time_embed.t_embedder")),
    Row(("t_embedding_norm", "time_embed.norm")),
    Row(("final_layer.adaln_modulation.1", "norm_out.linear_1")),
    Row(("final_layer.adaln_modulation.2", "norm_out.linear_2")),
    Row(("final_layer.linear", "proj_out")),
)
