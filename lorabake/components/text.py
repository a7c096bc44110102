"""Text encoders beside a diffusion transformer, except CLIP: T5 and language models.

Single files name them by their model (`text_encoders.t5xxl.transformer.`), pipelines by their number
(`text_encoder_2`). Below that, both use transformers' names.
"""

from lorabake.keymap.table import Component, Has, Layout

# Paths to a language model: alone, or as the text part of a model that also sees or hears. LoRAs are trained on the
# one and used on the other. The names are those of transformers (today's and older), of the models' own code, of
# MLX-VLM and of vLLM.
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

# Where T5 is the second of two text encoders, some trainers still call it the third.
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

# Single files and ComfyUI's LoRAs name it by its model.
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

# Prefixes in LoRAs of a text encoder. Alone in a file, the same network is a language model.
ALONE = (
    *("text_encoder.", "text_encoder_2.", "text_encoder_3.", *NAMED),
    *("lora_te_", "lora_te1_", "lora_te2_", "lora_te3_"),
)

# The text encoder of families that have only one: T5, UMT5, Gemma, Qwen, Mistral, ChatGLM.
ONLY = Component(
    name="text_encoder",
    layouts=(Layout("hf", ("text_encoder/", *NAMED, "text_encoders."), ()),),
    dotted=("text_encoder.", *NAMED),
    flat=("lora_te_", "lora_te1_"),
    optional=("model.",),
    roots=ROOTS,
)
