"""Any checkpoint that no other table knows: every module under the names that the file itself uses.

This is how transformers models bake (Llama, Mistral, Qwen, Gemma, T5, BERT …): PEFT writes their own paths.
"""

from lorabake.components import renamed, text
from lorabake.keymap.table import Architecture, Component, Layout

GENERIC = Architecture(
    name="generic",
    title="a family without a table",
    components=(
        Component(
            name="model",
            layouts=(Layout("own", ("",), ()),),
            flat=("lora_unet_", "lora_transformer_", "lycoris_"),
            dotted=("transformer.", "diffusion_model."),
            optional=(
                "model.",
                "transformer.",
                "bert.",
                "roberta.",
                "distilbert.",
                "gpt_neox.",
                "model.diffusion_model.",
            ),
            roots=text.ROOTS,
            at_last=text.ALONE,
            embeddings=(
                "embed_tokens",
                "wte",
                "word_embeddings",
                "shared",
                "embed_in",
                "tok_embeddings",
                "tokens_embed",
                "backbone.embeddings",
            ),
            heads=(
                "lm_head",
                "embed_out",
                "output",
                "predictions.decoder",
                "cls.predictions.decoder",
                "lm_head.decoder",
                "proj_out",
                "output_projection",
            ),
            copies=("encoder.embed_tokens", "decoder.embed_tokens"),
            renamings=renamed.RENAMINGS,
        ),
        Component(
            name="transformer",
            layouts=(Layout("own", ("model.diffusion_model.", "transformer/", "diffusion_model.", "net."), ()),),
            flat=("lora_unet_", "lora_transformer_", "lycoris_"),
            dotted=("transformer.", "diffusion_model."),
            optional=("model.",),
        ),
        Component(
            name="unet",
            layouts=(Layout("own", ("unet/",), ()),),
            flat=("lora_unet_",),
            dotted=("unet.",),
        ),
        Component(
            name="text_encoder",
            layouts=(
                Layout(
                    "own",
                    ("text_encoder/", "text_encoders.clip_l.transformer.", "cond_stage_model.transformer."),
                    (),
                ),
            ),
            flat=("lora_te_", "lora_te1_"),
            dotted=("text_encoder.",),
        ),
        Component(
            name="text_encoder_2",
            layouts=(Layout("own", ("text_encoder_2/", "text_encoders.clip_g.transformer."), ()),),
            flat=("lora_te2_",),
            dotted=("text_encoder_2.",),
        ),
        Component(
            name="text_encoder_3",
            layouts=(Layout("own", ("text_encoder_3/", "text_encoders.t5xxl.transformer."), ()),),
            flat=("lora_te3_",),
            dotted=("text_encoder_3.",),
        ),
        Component(
            name="vae",
            layouts=(Layout("own", ("vae/", "first_stage_model.", "vae."), ()),),
            dotted=("vae.",),
        ),
    ),
)
