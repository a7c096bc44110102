"""CLIP's text encoder, as transformers names it (old and new) and as OpenCLIP does.

OpenCLIP keeps q, k and v in one `in_proj_weight` and stores `text_projection` as (in, out).
transformers 5.6 and later save `CLIPTextModel` without the leading `text_model.`.
"""

from lorabake.keymap.table import Bare, Component, Has, IndexOrder, Lacks, Layout, Row

QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")

# Layouts, in this order: hf, hf_flat, openclip.
ROWS = (
    Row(
        ("text_model.encoder.layers.{}", "encoder.layers.{}", "transformer.resblocks.{}"),
        (
            Row((QKV, QKV, "attn.in_proj_@")),
            Row(("self_attn.out_proj", "self_attn.out_proj", "attn.out_proj")),
            Row(("mlp.fc1", "mlp.fc1", "mlp.c_fc")),
            Row(("mlp.fc2", "mlp.fc2", "mlp.c_proj")),
            Row(("layer_norm1", "layer_norm1", "ln_1")),
            Row(("layer_norm2", "layer_norm2", "ln_2")),
        ),
    ),
    Row(
        (
            "text_model.embeddings.token_embedding",
            "embeddings.token_embedding",
            "token_embedding",
        )
    ),
    Row(
        (
            "text_model.embeddings.position_embedding",
            "embeddings.position_embedding",
            Bare("positional_embedding"),
        )
    ),
    Row(("text_model.final_layer_norm", "final_layer_norm", "ln_final")),
    Row(("text_projection", "text_projection", Bare("text_projection")), transposed=("openclip",)),
)

HF = (
    Has("text_model.encoder.layers.0.self_attn.q_proj.weight", ndim=2),
    Lacks("vision_model.pre_layrnorm.weight"),
)
HF_FLAT = (
    Has("encoder.layers.0.self_attn.q_proj.weight", ndim=2),
    Has("embeddings.token_embedding.weight", ndim=2),
)
OPENCLIP = (Has("transformer.resblocks.0.attn.in_proj_weight", ndim=2), Has("ln_final.weight"))

# Programs count positions anew, and transformers' text encoders have no scale of comparisons with pictures.
POSITIONS = ("text_model.embeddings.position_ids", "embeddings.position_ids")
LACKS = (*POSITIONS, "logit_scale")

# cloneofsimo/lora follows the order in which transformers registers the attention's layers: k, v, q, out.
ORDERS = (
    IndexOrder(
        ("text_model.encoder.layers.{}",),
        ("self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj", "self_attn.out_proj"),
    ),
)

# Beside a diffusion transformer. Single files name CLIP by its model (clip_l), pipelines by number (text_encoder).
CLIP_L = Component(
    name="text_encoder",
    layouts=(
        Layout("hf", ("text_encoders.clip_l.transformer.", "text_encoder/"), HF, lacks=LACKS),
        Layout("hf_flat", ("text_encoders.clip_l.transformer.", "text_encoder/"), HF_FLAT, lacks=LACKS),
        Layout("openclip", (), OPENCLIP, lacks=POSITIONS),
    ),
    rows=ROWS,
    dotted=("text_encoder.", "text_encoders.clip_l.transformer."),
    flat=("lora_te1_", "lora_te_"),
)

CLIP_L_SECOND = Component(
    name="text_encoder_2",
    layouts=(
        Layout("hf", ("text_encoders.clip_l.transformer.", "text_encoder_2/"), HF, lacks=LACKS),
        Layout("hf_flat", ("text_encoders.clip_l.transformer.", "text_encoder_2/"), HF_FLAT, lacks=LACKS),
        Layout("openclip", (), OPENCLIP, lacks=POSITIONS),
    ),
    rows=ROWS,
    dotted=("text_encoder_2.", "text_encoders.clip_l.transformer."),
    flat=("lora_te2_",),
)

CLIP_G = Component(
    name="text_encoder_2",
    layouts=(
        Layout("hf", ("text_encoders.clip_g.transformer.", "text_encoder_2/"), HF, lacks=LACKS),
        Layout("hf_flat", ("text_encoders.clip_g.transformer.", "text_encoder_2/"), HF_FLAT, lacks=LACKS),
        Layout("openclip", (), OPENCLIP, lacks=POSITIONS),
    ),
    rows=ROWS,
    dotted=("text_encoder_2.", "text_encoders.clip_g.transformer."),
    flat=("lora_te2_",),
)
