"""Stable Cascade: the prior (stage C) and the decoder (stage B); OpenCLIP bigG."""

from lorabake.components import clip
from lorabake.keymap.table import Architecture, Component, Has, Lacks, Layout, Row, SpecName

# Layouts, in this order: sai, diffusers.
ATTENTION = (Row(("attn.in_proj_@", ("to_q", "to_k", "to_v"))), Row(("attn.out_proj", "to_out.0")))
ROWS = (
    Row(("down_blocks.{}.{}.attention", "down_blocks.{}.{}.attention"), ATTENTION),
    Row(("up_blocks.{}.{}.attention", "up_blocks.{}.{}.attention"), ATTENTION),
)

TEXT_ENCODER = Component(
    name="text_encoder",
    layouts=(
        Layout("hf", ("text_encoder/", "prior_text_encoder/"), clip.HF),
        Layout("hf_flat", ("text_encoder/", "prior_text_encoder/"), clip.HF_FLAT),
        Layout("openclip", (), clip.OPENCLIP),
    ),
    rows=clip.ROWS,
    dotted=("text_encoder.",),
    flat=("lora_te_", "lora_te1_", "lora_prior_te_"),
)

PRIOR = Architecture(
    name="stable_cascade",
    title="Stable Cascade (stage C)",
    task="text-to-image",
    components=(
        Component(
            name="prior",
            layouts=(
                Layout(
                    "sai",
                    ("model.diffusion_model.", ""),
                    (Has("clip_txt_mapper.weight", ndim=2), Has("down_blocks.0.2.attention.attn.in_proj_weight")),
                ),
                Layout(
                    "diffusers",
                    ("prior/", ""),
                    (Has("clip_txt_mapper.weight", ndim=2), Has("down_blocks.0.2.attention.to_q.weight")),
                ),
            ),
            rows=ROWS,
            dotted=("prior.", "diffusion_model."),
            flat=("lora_prior_unet_",),
        ),
        TEXT_ENCODER,
    ),
    spec=(SpecName("stable-cascade-v1-stage-c", "1024x1024"),),
    code="https://github.com/Stability-AI/StableCascade",
)

DECODER = Architecture(
    name="stable_cascade_decoder",
    title="Stable Cascade (stage B)",
    components=(
        Component(
            name="decoder",
            layouts=(
                Layout(
                    "sai",
                    ("model.diffusion_model.", ""),
                    (Has("effnet_mapper.0.weight", ndim=4), Has("clip_mapper.weight", ndim=2)),
                ),
                Layout(
                    "diffusers",
                    ("decoder/", ""),
                    (
                        Has("effnet_mapper.0.weight", ndim=4),
                        Has("clip_txt_pooled_mapper.weight", ndim=2),
                        Lacks("clip_txt_mapper.weight"),
                    ),
                ),
            ),
            rows=(*ROWS, Row(("clip_mapper", "clip_txt_pooled_mapper"))),
            dotted=("decoder.", "diffusion_model."),
        ),
        TEXT_ENCODER,
    ),
    spec=(
        SpecName("stable-cascade-v1-stage-b", "1024x1024"),
        SpecName("stable-cascade-v1-stage-b-bf16", "1024x1024", is_stated=True),
    ),
    code="https://github.com/Stability-AI/StableCascade",
)
