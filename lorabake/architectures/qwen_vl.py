"""Qwen2-VL and Qwen2.5-VL: transformers stores them under older names than it uses in memory."""

from lorabake.components import renamed, text
from lorabake.keymap.table import Architecture, Component, Has, Layout, Row

QWEN_VL = Architecture(
    name="qwen_vl",
    title="Qwen-VL",
    components=(
        Component(
            name="model",
            layouts=(
                Layout(
                    "stored",
                    ("",),
                    (Has("model.layers.0.input_layernorm.weight"), Has("visual.patch_embed.proj.weight")),
                ),
                Layout(
                    "memory",
                    ("",),
                    (
                        Has("model.language_model.layers.0.input_layernorm.weight"),
                        Has("model.visual.patch_embed.proj.weight"),
                    ),
                ),
            ),
            rows=(
                Row(("model.layers.{}", "model.language_model.layers.{}")),
                Row(("model.embed_tokens", "model.language_model.embed_tokens")),
                Row(("model.norm", "model.language_model.norm")),
                Row(("visual", "model.visual")),
            ),
            flat=("lora_unet_",),
            optional=("model.", "transformer.", "diffusion_model."),  # some make pictures
            roots=text.ROOTS,
            at_last=text.ALONE,
            embeddings=("embed_tokens",),
            heads=("lm_head",),
            renamings=renamed.RENAMINGS,
        ),
    ),
)
