"""Names that transformers 5 has in memory, and PEFT writes, for modules that it stores under older ones."""

from lorabake.keymap.table import Alias

# Mixtures that are stored as Mixtral is.
ROUTERS = (
    Alias("model.layers.{}.mlp.gate", ("model.layers.{}.block_sparse_moe.gate",)),
    Alias("model.layers.{}.mlp.router", ("model.layers.{}.block_sparse_moe.gate",)),
)

HEADS = (Alias("lm_head", ("embed_out",)),)  # GPT-NeoX

# ViT, alone and below a head; DINOv2 has the attention's alone.
VISION = (
    Alias("layers.{}.attention.q_proj", ("encoder.layer.{}.attention.attention.query",)),
    Alias("layers.{}.attention.k_proj", ("encoder.layer.{}.attention.attention.key",)),
    Alias("layers.{}.attention.v_proj", ("encoder.layer.{}.attention.attention.value",)),
    Alias("layers.{}.attention.o_proj", ("encoder.layer.{}.attention.output.dense",)),
    Alias("layers.{}.mlp.fc1", ("encoder.layer.{}.intermediate.dense",)),
    Alias("layers.{}.mlp.fc2", ("encoder.layer.{}.output.dense",)),
    Alias("vit.layers.{}.attention.q_proj", ("vit.encoder.layer.{}.attention.attention.query",)),
    Alias("vit.layers.{}.attention.k_proj", ("vit.encoder.layer.{}.attention.attention.key",)),
    Alias("vit.layers.{}.attention.v_proj", ("vit.encoder.layer.{}.attention.attention.value",)),
    Alias("vit.layers.{}.attention.o_proj", ("vit.encoder.layer.{}.attention.output.dense",)),
    Alias("vit.layers.{}.mlp.fc1", ("vit.encoder.layer.{}.intermediate.dense",)),
    Alias("vit.layers.{}.mlp.fc2", ("vit.encoder.layer.{}.output.dense",)),
    Alias("encoder.layer.{}.attention.q_proj", ("encoder.layer.{}.attention.attention.query",)),
    Alias("encoder.layer.{}.attention.k_proj", ("encoder.layer.{}.attention.attention.key",)),
    Alias("encoder.layer.{}.attention.v_proj", ("encoder.layer.{}.attention.attention.value",)),
    Alias("encoder.layer.{}.attention.o_proj", ("encoder.layer.{}.attention.output.dense",)),
    Alias("dinov2.encoder.layer.{}.attention.q_proj", ("dinov2.encoder.layer.{}.attention.attention.query",)),
    Alias("dinov2.encoder.layer.{}.attention.k_proj", ("dinov2.encoder.layer.{}.attention.attention.key",)),
    Alias("dinov2.encoder.layer.{}.attention.v_proj", ("dinov2.encoder.layer.{}.attention.attention.value",)),
    Alias("dinov2.encoder.layer.{}.attention.o_proj", ("dinov2.encoder.layer.{}.attention.output.dense",)),
)
