"""Stable Diffusion XL: base (also inpainting and pruned variants) and refiner; CLIP-L and OpenCLIP-bigG."""

from lorabake.components import clip, unet
from lorabake.components.vae import VAE
from lorabake.keymap.table import Architecture, Component, Has, Lacks, Layout, Sized, SpecName

SDXL = Architecture(
    name="sdxl",
    title="Stable Diffusion XL",
    task="text-to-image",
    components=(
        Component(
            name="unet",
            layouts=(
                Layout(
                    "sgm",
                    ("model.diffusion_model.", "unet.", ""),
                    (
                        Has("input_blocks.4.1.proj_in.weight", ndim=2),
                        Has("label_emb.0.0.weight", ndim=2),
                        Lacks("input_blocks.1.1.proj_in.weight"),
                        Lacks("input_blocks.10.0.in_layers.0.weight"),
                        Lacks("zero_convs.0.0.weight"),
                    ),
                    alone="model.diffusion_model.",
                    adds=unet.MARKERS,
                ),
                Layout(
                    "diffusers",
                    ("unet/", "unet.", ""),
                    (
                        Has("down_blocks.1.attentions.0.proj_in.weight", ndim=2),
                        Has("add_embedding.linear_1.weight", ndim=2),
                        Has("up_blocks.0.attentions.0.proj_in.weight", ndim=2),
                        Lacks("down_blocks.0.attentions.0.proj_in.weight"),
                        Lacks("down_blocks.3.resnets.0.norm1.weight"),
                        Lacks("encoder_hid_proj.weight"),
                        Lacks("controlnet_down_blocks.0.weight"),
                    ),
                ),
            ),
            rows=unet.THREE_LEVELS,
            dotted=("unet.", "model.diffusion_model.", "diffusion_model."),
            flat=("lora_unet_",),
        ),
        Component(
            name="text_encoder",
            layouts=(
                Layout(
                    "hf", ("conditioner.embedders.0.transformer.", "text_encoder/", "te1."), clip.HF, lacks=clip.LACKS
                ),
                Layout(
                    "hf_flat",
                    ("conditioner.embedders.0.transformer.", "text_encoder/"),
                    clip.HF_FLAT,
                    lacks=clip.LACKS,
                ),
                Layout("openclip", (), clip.OPENCLIP, lacks=clip.POSITIONS),
            ),
            rows=clip.ROWS,
            dotted=(
                "text_encoder.",
                "text_encoders.clip_l.transformer.",
                "conditioner.embedders.0.transformer.",
            ),
            flat=("lora_te1_", "lora_te_"),
        ),
        Component(
            name="text_encoder_2",
            layouts=(
                Layout("hf", ("text_encoder_2/", "te2."), clip.HF, lacks=clip.LACKS),
                Layout("hf_flat", ("text_encoder_2/",), clip.HF_FLAT, lacks=clip.LACKS),
                Layout("openclip", ("conditioner.embedders.1.model.",), clip.OPENCLIP, lacks=clip.POSITIONS),
            ),
            rows=clip.ROWS,
            dotted=("text_encoder_2.", "text_encoders.clip_g.transformer.", "conditioner.embedders.1.model."),
            flat=("lora_te2_",),
        ),
        VAE,
    ),
    spec=(
        SpecName("stable-diffusion-xl-v1-edit", "1024x1024", (Sized(unet.CONV_IN, 1, 8),), prediction="epsilon"),
        SpecName("stable-diffusion-xl-v1-base", "1024x1024", prediction="epsilon"),
        SpecName("stable-diffusion-xl-turbo-v1", "512x512", prediction="epsilon", is_stated=True),
        SpecName("stable-diffusion-xl-v0_9-base", "1024x1024", prediction="epsilon", is_stated=True),
        SpecName("segmind-stable-diffusion-1b", "1024x1024", prediction="epsilon", is_stated=True),
    ),
    code="sgm",
)

REFINER = Architecture(
    name="sdxl_refiner",
    title="Stable Diffusion XL refiner",
    task="image-to-image",
    components=(
        Component(
            name="unet",
            layouts=(
                Layout(
                    "sgm",
                    ("model.diffusion_model.", "unet.", ""),
                    (
                        Has("input_blocks.4.1.proj_in.weight", ndim=2),
                        Has("label_emb.0.0.weight", ndim=2),
                        Has("input_blocks.10.0.in_layers.0.weight"),
                        Lacks("input_blocks.1.1.proj_in.weight"),
                    ),
                    alone="model.diffusion_model.",
                ),
                Layout(
                    "diffusers",
                    ("unet/", "unet.", ""),
                    (
                        Has("down_blocks.1.attentions.0.proj_in.weight", ndim=2),
                        Has("add_embedding.linear_1.weight", ndim=2),
                        Has("down_blocks.3.resnets.0.norm1.weight"),
                        Lacks("down_blocks.0.attentions.0.proj_in.weight"),
                    ),
                ),
            ),
            rows=unet.FOUR_LEVELS,
            dotted=("unet.", "model.diffusion_model.", "diffusion_model."),
            flat=("lora_unet_",),
        ),
        Component(
            name="text_encoder_2",
            layouts=(
                Layout("hf", ("text_encoder_2/", "te2."), clip.HF, lacks=clip.LACKS),
                Layout("hf_flat", ("text_encoder_2/",), clip.HF_FLAT, lacks=clip.LACKS),
                Layout("openclip", ("conditioner.embedders.0.model.",), clip.OPENCLIP, lacks=clip.POSITIONS),
            ),
            rows=clip.ROWS,
            dotted=("text_encoder_2.", "text_encoder.", "conditioner.embedders.0.model."),
            flat=("lora_te2_", "lora_te_", "lora_te1_"),
        ),
        VAE,
    ),
    spec=(
        SpecName("stable-diffusion-xl-v1-refiner", "1024x1024", prediction="epsilon"),
        SpecName("stable-diffusion-xl-v0_9-refiner", "1024x1024", prediction="epsilon", is_stated=True),
    ),
    code="sgm",
)
