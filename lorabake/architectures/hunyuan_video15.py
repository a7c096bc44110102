"""HunyuanVideo 1.5: only double blocks; Tencent's own names split q, k and v; Qwen2.5-VL, ByT5, VAE."""

from lorabake.components import hunyuan, text, transformer
from lorabake.components.vae import OTHER_VAE
from lorabake.keymap.table import Architecture, Component, Has, Layout, Row, SpecName

HUNYUAN_VIDEO15 = Architecture(
    name="hunyuan_video15",
    title="HunyuanVideo 1.5",
    task="text-to-video",
    components=(
        Component(
            name="transformer",
            layouts=(
                Layout(
                    "tencent",
                    transformer.SINGLE_FILE,
                    (Has("double_blocks.0.img_attn_q.weight", ndim=2), Has("cond_type_embedding.weight", ndim=2)),
                ),
                Layout(
                    "comfy",
                    ("model.model.", *transformer.SINGLE_FILE),
                    (Has("double_blocks.0.img_attn.qkv.weight", ndim=2), Has("cond_type_embedding.weight", ndim=2)),
                ),
                Layout(
                    "diffusers",
                    transformer.FOLDER,
                    (
                        Has("transformer_blocks.0.attn.add_q_proj.weight", ndim=2),
                        Has("cond_type_embed.weight", ndim=2),
                    ),
                ),
            ),
            rows=(
                Row(
                    ("double_blocks.{}", "double_blocks.{}", "transformer_blocks.{}"),
                    (
                        Row((("img_attn_q", "img_attn_k", "img_attn_v"), "img_attn.qkv", hunyuan.QKV)),
                        Row((("txt_attn_q", "txt_attn_k", "txt_attn_v"), "txt_attn.qkv", hunyuan.ADDED_QKV)),
                        *hunyuan.DOUBLE_BLOCKS,
                    ),
                ),
                *hunyuan.ENDS,
                *hunyuan.BYT5,
                Row(("time_in.mlp.0", "time_in.in_layer", "time_embed.timestep_embedder.linear_1")),
                Row(("time_in.mlp.2", "time_in.out_layer", "time_embed.timestep_embedder.linear_2")),
                Row(("time_r_in.mlp.0", "time_r_in.in_layer", "time_embed.timestep_embedder_r.linear_1")),
                Row(("time_r_in.mlp.2", "time_r_in.out_layer", "time_embed.timestep_embedder_r.linear_2")),
                Row(("vision_in.proj.0", "vision_in.proj.0", "image_embedder.norm_in")),
                Row(("vision_in.proj.1", "vision_in.proj.1", "image_embedder.linear_1")),
                Row(("vision_in.proj.3", "vision_in.proj.3", "image_embedder.linear_2")),
                Row(("vision_in.proj.4", "vision_in.proj.4", "image_embedder.norm_out")),
                Row(("cond_type_embedding", "cond_type_embedding", "cond_type_embed")),
            ),
            dotted=transformer.DOTTED,
            flat=transformer.FLAT,
        ),
        text.ONLY,
        OTHER_VAE,
    ),
    spec=(
        SpecName("hunyuan-video-1_5", "960x960"),
        SpecName("hunyuan-video-1_5-sr", "960x960", is_stated=True),
    ),
    code="https://github.com/Tencent-Hunyuan/HunyuanVideo-1.5",
)
