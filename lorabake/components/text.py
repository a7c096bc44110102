"""Text encoders beside a diffusion transformer, but CLIP: T5 and language models.

Single files name them by what they are (`text_encoders.t5xxl.transformer.`), pipelines by their order, and both
keep the names of transformers inside.
"""

from lorabake.keymap.table import Component, Has, Layout

# Where a language model is, alone or as the text part of one that also sees or hears: LoRAs are trained on either,
# and used on the other. In transformers today and before, in the models' own code, in MLX-VLM and vLLM.
ROOTS = (
    (
        "",
        "model.",
        "model.language_model.",
        "language_model.model.",
        "language_model.",
        "model.text_model.",
        "thinker.model.",
        "llm.model.",
        "language.model.",
    ),
    ("lm_head", "language_model.lm_head", "thinker.lm_head", "llm.lm_head", "language.lm_head"),
)

T5_NEEDS = (Has("encoder.block.0.layer.0.SelfAttention.q.weight", ndim=2),)

# Where T5 is the second of two, some trainers still count it as the third.
T5_SECOND = Component(
    name="text_encoder_2",
    layouts=(
        Layout(
            "hf",
            ("text_encoders.t5xxl.transformer.", "text_encoders.mt5xl.transformer.", "text_encoder_2/"),
            T5_NEEDS,
        ),
    ),
    dotted=("text_encoder_2.", "text_encoders.t5xxl.transformer.", "text_encoders.mt5xl.transformer."),
    flat=("lora_te2_", "lora_te3_"),
)

T5_THIRD = Component(
    name="text_encoder_3",
    layouts=(Layout("hf", ("text_encoders.t5xxl.transformer.", "text_encoder_3/"), T5_NEEDS),),
    dotted=("text_encoder_3.", "text_encoders.t5xxl.transformer."),
    flat=("lora_te3_",),
)

LLAMA = Component(
    name="text_encoder",
    layouts=(Layout("hf", ("text_encoders.llama.transformer.", "text_encoder/"), ()),),
    dotted=("text_encoder.", "text_encoders.llama.transformer."),
    flat=("lora_te1_", "lora_te_"),
    optional=("model.",),
    roots=ROOTS,
)

LLAMA_FOURTH = Component(
    name="text_encoder_4",
    layouts=(Layout("hf", ("text_encoders.llama.transformer.", "text_encoder_4/"), ()),),
    dotted=("text_encoder_4.", "text_encoders.llama.transformer."),
    flat=("lora_te4_",),
    optional=("model.",),
    roots=ROOTS,
)

# What single files and ComfyUI's LoRAs call it: by what it is.
NAMED = (
    "text_encoders.t5xxl.transformer.",
    "text_encoders.umt5xxl.transformer.",
    "text_encoders.pile_t5xl.transformer.",
    "text_encoders.gemma2_2b.transformer.",
    "text_encoders.gemma3_12b.transformer.",
    "text_encoders.qwen25_7b.transformer.",
    "text_encoders.qwen25_3b.transformer.",
    "text_encoders.qwen3_06b.transformer.",
    "text_encoders.qwen3_4b.transformer.",
    "text_encoders.qwen3_8b.transformer.",
    "text_encoders.mistral3_24b.transformer.",
)

# What LoRAs put before the modules of a text encoder, which in a file of its own is a language model.
ALONE = (
    *("text_encoder.", "text_encoder_2.", "text_encoder_3.", *NAMED),
    *("lora_te_", "lora_te1_", "lora_te2_", "lora_te3_"),
)

# The one text encoder of a family that has one: T5, UMT5, Gemma, Qwen, Mistral, ChatGLM.
ONLY = Component(
    name="text_encoder",
    layouts=(Layout("hf", ("text_encoder/", *NAMED, "text_encoders."), ()),),
    dotted=("text_encoder.", *NAMED),
    flat=("lora_te_", "lora_te1_"),
    optional=("model.",),
    roots=ROOTS,
)
