"""CLIP's text encoder, as transformers names it (old and new) and as OpenCLIP does.

OpenCLIP keeps q, k and v in one `in_proj_weight` and stores `text_projection` as (in, out).
transformers 5.6 and later save `CLIPTextModel` without the leading `text_model.`.
"""

from lorabake.keymap.table import Bare, Has, IndexOrder, Lacks, Row

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

# cloneofsimo/lora follows the order in which transformers registers the attention's layers: k, v, q, out.
ORDERS = (
    IndexOrder(
        ("text_model.encoder.layers.{}",),
        ("self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj", "self_attn.out_proj"),
    ),
)
