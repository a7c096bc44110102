"""LLaVA, Gemma 3 and their like: transformers stores them under older names than it uses in memory."""

from lorabake.components import renamed, text
from lorabake.keymap.table import Architecture, Component, Has, Lacks, Layout, Row

LLAVA = Architecture(
    name="llava",
    title="a vision-language model in LLaVA's names",
    components=(
        Component(
            name="model",
            layouts=(
                Layout(
                    "stored",
                    ("",),
                    (Has("language_model.model.layers.0.input_layernorm.weight"),),
                ),
                Layout(
                    "memory",
                    ("",),
                    (
                        Has("model.language_model.layers.0.input_layernorm.weight"),
                        Lacks("model.visual.patch_embed.proj.weight"),
                    ),
                ),
            ),
            rows=(
                Row(("language_model.model.layers.{}", "model.language_model.layers.{}")),
                Row(("language_model.model.embed_tokens", "model.language_model.embed_tokens")),
                Row(("language_model.model.norm", "model.language_model.norm")),
                Row(("language_model.lm_head", "lm_head")),
                Row(("vision_tower", "model.vision_tower")),
                Row(("vision_model", "model.vision_model")),
                Row(("multi_modal_projector", "model.multi_modal_projector")),
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
