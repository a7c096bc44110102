"""HunyuanDiT 1.0 to 1.2; BERT, T5, VAE.

In each block Tencent's code and diffusers both have a `norm2` and a `norm3`, but exchanged: neither name is clear.
"""

from lorabake.components import text, transformer
from lorabake.components.transformer import KV_2, QKV_1
from lorabake.components.vae import VAE_OF_COMFY
from lorabake.keymap.table import Architecture, Component, Has, Lacks, Layout, Row

HUNYUANDIT = Architecture(
    name="hunyuandit",
    title="HunyuanDiT",
    task="text-to-image",
    components=(
        Component(
            name="transformer",
            layouts=(
                Layout(
                    "tencent",
                    transformer.SINGLE_FILE,
                    (Has("blocks.0.attn1.Wqkv.weight", ndim=2), Has("mlp_t5.0.weight", ndim=2)),
                ),
                Layout(
                    "diffusers",
                    transformer.FOLDER,
                    (
                        Has("blocks.0.attn1.to_q.weight", ndim=2),
                        Has("time_extra_emb.pooler.q_proj.weight", ndim=2),
                        Lacks("controlnet_blocks.0.weight"),
                    ),
                ),
            ),
            rows=(
                Row(
                    ("blocks.{}", "blocks.{}"),
                    (
                        Row(("attn1.Wqkv", QKV_1)),
                        Row(("attn1.out_proj", "attn1.to_out.0")),
                        Row(("attn1.q_norm", "attn1.norm_q")),
                        Row(("attn1.k_norm", "attn1.norm_k")),
                        Row(("attn2.q_proj", "attn2.to_q")),
                        Row(("attn2.kv_proj", KV_2)),
                        Row(("attn2.out_proj", "attn2.to_out.0")),
                        Row(("attn2.q_norm", "attn2.norm_q")),
                        Row(("attn2.k_norm", "attn2.norm_k")),
                        Row(("mlp.fc1", "ff.net.0.proj")),
                        Row(("mlp.fc2", "ff.net.2")),
                        Row(("norm1", "norm1.norm")),
                        Row(("norm2", "norm3")),
                        Row(("norm3", "norm2")),
                        Row(("default_modulation.1", "norm1.linear")),
                    ),
                ),
                Row(("pooler", "time_extra_emb.pooler")),
                Row(("x_embedder.proj", "pos_embed.proj")),
                Row(("t_embedder.mlp.0", "time_extra_emb.timestep_embedder.linear_1")),
                Row(("t_embedder.mlp.2", "time_extra_emb.timestep_embedder.linear_2")),
                Row(("extra_embedder.0", "time_extra_emb.extra_embedder.linear_1")),
                Row(("extra_embedder.2", "time_extra_emb.extra_embedder.linear_2")),
                Row(("mlp_t5.0", "text_embedder.linear_1")),
                Row(("mlp_t5.2", "text_embedder.linear_2")),
                Row(("final_layer.linear", "proj_out")),
                Row(("final_layer.adaLN_modulation.1", "norm_out.linear"), swapped=("tencent",)),
            ),
            dotted=transformer.DOTTED,
            flat=transformer.FLAT,
        ),
        text.T5_SECOND,
        text.ONLY,
        VAE_OF_COMFY,
    ),
)
