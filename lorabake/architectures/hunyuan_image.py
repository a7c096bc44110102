"""HunyuanImage 2.1: HunyuanVideo's blocks, for pictures; Qwen2.5-VL, ByT5, VAE."""

from lorabake.components import hunyuan, text, transformer
from lorabake.components.vae import OTHER_VAE
from lorabake.keymap.table import Architecture, Component, Has, Layout, Row, SpecName

HUNYUAN_IMAGE = Architecture(
    name="hunyuan_image",
    title="HunyuanImage",
    task="text-to-image",
    components=(
        Component(
            name="transformer",
            layouts=(
                Layout(
                    "tencent",
                    transformer.SINGLE_FILE,
                    (Has("double_blocks.0.img_attn_qkv.weight", ndim=2), Has("img_in.proj.weight", ndim=4)),
                ),
                Layout(
                    "comfy",
                    ("model.model.", *transformer.SINGLE_FILE),
                    (Has("double_blocks.0.img_attn.qkv.weight", ndim=2), Has("img_in.proj.weight", ndim=4)),
                ),
                Layout(
                    "diffusers",
                    transformer.FOLDER,
                    (
                        Has("context_embedder.token_refiner.refiner_blocks.0.attn.to_q.weight", ndim=2),
                        Has("x_embedder.proj.weight", ndim=4),
                    ),
                ),
            ),
            rows=(
                *hunyuan.ROWS,
                Row(("time_in.mlp.0", "time_in.in_layer", "time_guidance_embed.timestep_embedder.linear_1")),
                Row(("time_in.mlp.2", "time_in.out_layer", "time_guidance_embed.timestep_embedder.linear_2")),
                Row(("time_r_in.mlp.0", "time_r_in.in_layer", "time_guidance_embed.timestep_embedder_r.linear_1")),
                Row(("time_r_in.mlp.2", "time_r_in.out_layer", "time_guidance_embed.timestep_embedder_r.linear_2")),
                Row(("guidance_in.mlp.0", "guidance_in.in_layer", "time_guidance_embed.guidance_embedder.linear_1")),
                Row(("guidance_in.mlp.2", "guidance_in.out_layer", "time_guidance_embed.guidance_embedder.linear_2")),
                *hunyuan.BYT5,
            ),
            dotted=transformer.DOTTED,
            flat=transformer.FLAT,
        ),
        text.ONLY,
        OTHER_VAE,
    ),
    spec=(
        SpecName("hunyuan-image-2_1", "2048x2048"),
        SpecName("hunyuan-image-2_1-refiner", "2048x2048", is_stated=True),
    ),
    code="https://github.com/Tencent-Hunyuan/HunyuanImage-2.1",
)
