"""CLIP text encoders as checkpoints of their own; the 32-layer one is SDXL's second."""

from lorabake.components import clip, renamed
from lorabake.keymap.table import Architecture, Component, Has, Lacks, Layout

PREFIXES = ("", "transformer.", "cond_stage_model.transformer.", "conditioner.embedders.0.transformer.")
OPENCLIP_PREFIXES = (
    "",
    "cond_stage_model.model.",
    "conditioner.embedders.1.model.",
    "conditioner.embedders.0.model.",
)
OTHER_NETWORKS = ("model.diffusion_model.", "first_stage_model.", "unet.", "unet/", "vae.", "vae/")

CLIP = Architecture(
    name="clip",
    title="CLIP text encoder",
    components=(
        Component(
            name="text_encoder",
            layouts=(
                Layout("hf", PREFIXES, (*clip.HF, Lacks("text_model.encoder.layers.31.layer_norm1.weight"))),
                Layout("hf_flat", PREFIXES, (*clip.HF_FLAT, Lacks("encoder.layers.31.layer_norm1.weight"))),
                Layout(
                    "openclip",
                    OPENCLIP_PREFIXES,
                    (*clip.OPENCLIP, Lacks("transformer.resblocks.31.ln_1.weight")),
                ),
            ),
            rows=clip.ROWS,
            dotted=("text_encoder.", "cond_stage_model.transformer.", "text_encoders.clip_l.transformer."),
            flat=("lora_te_", "lora_te1_"),
            orders=clip.ORDERS,
            renamings=renamed.RENAMINGS,
        ),
    ),
    without=OTHER_NETWORKS,
)

CLIP_BIGG = Architecture(
    name="clip_bigg",
    title="OpenCLIP bigG text encoder",
    components=(
        Component(
            name="text_encoder_2",
            layouts=(
                Layout("hf", PREFIXES, (*clip.HF, Has("text_model.encoder.layers.31.layer_norm1.weight"))),
                Layout("hf_flat", PREFIXES, (*clip.HF_FLAT, Has("encoder.layers.31.layer_norm1.weight"))),
                Layout(
                    "openclip",
                    OPENCLIP_PREFIXES,
                    (*clip.OPENCLIP, Has("transformer.resblocks.31.ln_1.weight")),
                ),
            ),
            rows=clip.ROWS,
            dotted=("text_encoder_2.", "text_encoders.clip_g.transformer.", "conditioner.embedders.1.model."),
            flat=("lora_te2_",),
            renamings=renamed.RENAMINGS,
        ),
    ),
    without=OTHER_NETWORKS,
)
