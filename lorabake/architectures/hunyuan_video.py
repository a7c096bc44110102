"""HunyuanVideo and FramePack: Tencent's names, ComfyUI's and diffusers'; Llama, CLIP-L, VAE."""

from lorabake.components import clip, hunyuan, text, transformer
from lorabake.components.vae import OTHER_VAE
from lorabake.keymap.table import Architecture, Component, Has, Layout, Row, Sized, SpecName

IMG_IN = ("img_in.proj.weight", "x_embedder.proj.weight")

HUNYUAN_VIDEO = Architecture(
    name="hunyuan_video",
    title="HunyuanVideo",
    task="text-to-video",
    components=(
        Component(
            name="transformer",
            layouts=(
                Layout(
                    "tencent",
                    transformer.SINGLE_FILE,
                    (
                        Has("double_blocks.0.img_attn_qkv.weight", ndim=2),
                        Has("txt_in.individual_token_refiner.blocks.0.self_attn_qkv.weight", ndim=2),
                        Has("img_in.proj.weight", ndim=5),
                        Has("vector_in.in_layer.weight"),
                    ),
                ),
                Layout(
                    "comfy",
                    ("model.model.", *transformer.SINGLE_FILE),
                    (
                        Has("double_blocks.0.img_attn.qkv.weight", ndim=2),
                        Has("txt_in.individual_token_refiner.blocks.0.self_attn.qkv.weight", ndim=2),
                        Has("img_in.proj.weight", ndim=5),
                        Has("vector_in.in_layer.weight"),
                    ),
                ),
                Layout(
                    "diffusers",
                    transformer.FOLDER,
                    (
                        Has("transformer_blocks.0.attn.add_q_proj.weight", ndim=2),
                        Has("context_embedder.token_refiner.refiner_blocks.0.attn.to_q.weight", ndim=2),
                        Has("x_embedder.proj.weight", ndim=5),
                        Has("time_text_embed.text_embedder.linear_1.weight"),
                    ),
                ),
            ),
            rows=(
                *hunyuan.ROWS,
                Row(("time_in.mlp.0", "time_in.in_layer", "time_text_embed.timestep_embedder.linear_1")),
                Row(("time_in.mlp.2", "time_in.out_layer", "time_text_embed.timestep_embedder.linear_2")),
                Row(("guidance_in.mlp.0", "guidance_in.in_layer", "time_text_embed.guidance_embedder.linear_1")),
                Row(("guidance_in.mlp.2", "guidance_in.out_layer", "time_text_embed.guidance_embedder.linear_2")),
                Row(("vector_in.in_layer", "vector_in.in_layer", "time_text_embed.text_embedder.linear_1")),
                Row(("vector_in.out_layer", "vector_in.out_layer", "time_text_embed.text_embedder.linear_2")),
            ),
            dotted=transformer.DOTTED,
            flat=transformer.FLAT,
        ),
        text.LLAMA,
        clip.CLIP_L_SECOND,
        OTHER_VAE,
    ),
    spec=(
        SpecName("hunyuan-video-i2v", "720x720", (Sized(IMG_IN, 1, 33),)),
        SpecName("hunyuan-video", "720x720", (Sized(IMG_IN, 1, 16),)),
        SpecName("hunyuan-video-i2v-v2", "720x720", is_stated=True),
        SpecName("hunyuan-video-skyreels", "720x720", is_stated=True),
        SpecName("hunyuan-video-skyreels-i2v", "720x720", is_stated=True),
        SpecName("framepack", "720x720", is_stated=True),
    ),
    code="https://github.com/Tencent/HunyuanVideo",
)
