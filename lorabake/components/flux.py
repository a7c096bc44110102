"""The blocks of Flux.1 and its descendants, as Black Forest Labs' code and as diffusers name them.

Source of the pairs: the conversion that diffusers performs when it loads a single file.
"""

from lorabake.keymap.table import Alias, Bare, Row

QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
ADDED_QKV = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")

# Layouts, in this order: bfl, diffusers.
ATTENTION = (
    Row(("img_attn.qkv", QKV)),
    Row(("txt_attn.qkv", ADDED_QKV)),
    Row(("img_attn.proj", "attn.to_out.0")),
    Row(("txt_attn.proj", "attn.to_add_out")),
    Row((Bare("img_attn.norm.query_norm.scale"), "attn.norm_q")),
    Row((Bare("img_attn.norm.key_norm.scale"), "attn.norm_k")),
    Row((Bare("txt_attn.norm.query_norm.scale"), "attn.norm_added_q")),
    Row((Bare("txt_attn.norm.key_norm.scale"), "attn.norm_added_k")),
)

DOUBLE_BLOCKS = (
    *ATTENTION,
    Row(("img_mlp.0", "ff.net.0.proj")),
    Row(("img_mlp.2", "ff.net.2")),
    Row(("txt_mlp.0", "ff_context.net.0.proj")),
    Row(("txt_mlp.2", "ff_context.net.2")),
    Row(("img_mod.lin", "norm1.linear")),
    Row(("txt_mod.lin", "norm1_context.linear")),
)

SINGLE_BLOCKS = (
    Row(("linear1", (*QKV, "proj_mlp")), sizes=("in", "in", "in", "rest")),
    Row(("linear2", "proj_out")),
    Row((Bare("norm.query_norm.scale"), "attn.norm_q")),
    Row((Bare("norm.key_norm.scale"), "attn.norm_k")),
    Row(("modulation.lin", "norm.linear")),
)

ROWS = (
    Row(("double_blocks.{}", "transformer_blocks.{}"), DOUBLE_BLOCKS),
    Row(("single_blocks.{}", "single_transformer_blocks.{}"), SINGLE_BLOCKS),
    Row(("img_in", "x_embedder")),
    Row(("txt_in", "context_embedder")),
    Row(("final_layer.linear", "proj_out")),
)

# XLabs keeps its LoRAs in attention processors: 1 for the image, 2 for the text.
XLABS = (
    Alias("double_blocks.{}.processor.qkv_lora1", ("double_blocks.{}.img_attn.qkv",)),
    Alias("double_blocks.{}.processor.qkv_lora2", ("double_blocks.{}.txt_attn.qkv",)),
    Alias("double_blocks.{}.processor.proj_lora1", ("double_blocks.{}.img_attn.proj",)),
    Alias("double_blocks.{}.processor.proj_lora2", ("double_blocks.{}.txt_attn.proj",)),
    Alias(
        "single_blocks.{}.processor.qkv",
        (
            "single_transformer_blocks.{}.attn.to_q",
            "single_transformer_blocks.{}.attn.to_k",
            "single_transformer_blocks.{}.attn.to_v",
        ),
    ),
    Alias("single_blocks.{}.processor.proj", ("single_blocks.{}.linear2",)),
    # ComfyUI's name for the same modules, in LoRAs that it saved itself.
    Alias(
        "single_blocks.{}.linear1_qkv",
        (
            "single_transformer_blocks.{}.attn.to_q",
            "single_transformer_blocks.{}.attn.to_k",
            "single_transformer_blocks.{}.attn.to_v",
        ),
    ),
)

# Black Forest Labs' control LoRAs hold whole norms: the tensor `scale` of `key_norm`.
CONTROL = (
    Alias("double_blocks.{}.img_attn.norm.query_norm", ("double_blocks.{}.img_attn.norm.query_norm.scale",)),
    Alias("double_blocks.{}.img_attn.norm.key_norm", ("double_blocks.{}.img_attn.norm.key_norm.scale",)),
    Alias("double_blocks.{}.txt_attn.norm.query_norm", ("double_blocks.{}.txt_attn.norm.query_norm.scale",)),
    Alias("double_blocks.{}.txt_attn.norm.key_norm", ("double_blocks.{}.txt_attn.norm.key_norm.scale",)),
    Alias("single_blocks.{}.norm.query_norm", ("single_blocks.{}.norm.query_norm.scale",)),
    Alias("single_blocks.{}.norm.key_norm", ("single_blocks.{}.norm.key_norm.scale",)),
)

# DiffSynth-Studio's own names: a for the image, b for the text.
DIFFSYNTH = (
    Alias("blocks.{}.attn.a_to_qkv", ("double_blocks.{}.img_attn.qkv",)),
    Alias("blocks.{}.attn.a_to_out", ("double_blocks.{}.img_attn.proj",)),
    Alias("blocks.{}.ff_a.0", ("double_blocks.{}.img_mlp.0",)),
    Alias("blocks.{}.ff_a.2", ("double_blocks.{}.img_mlp.2",)),
    Alias("blocks.{}.norm1_a.linear", ("double_blocks.{}.img_mod.lin",)),
    Alias("blocks.{}.attn.b_to_qkv", ("double_blocks.{}.txt_attn.qkv",)),
    Alias("blocks.{}.attn.b_to_out", ("double_blocks.{}.txt_attn.proj",)),
    Alias("blocks.{}.ff_b.0", ("double_blocks.{}.txt_mlp.0",)),
    Alias("blocks.{}.ff_b.2", ("double_blocks.{}.txt_mlp.2",)),
    Alias("blocks.{}.norm1_b.linear", ("double_blocks.{}.txt_mod.lin",)),
    Alias("single_blocks.{}.to_qkv_mlp", ("single_blocks.{}.linear1",)),
    Alias("single_blocks.{}.proj_out", ("single_blocks.{}.linear2",)),
    Alias("single_blocks.{}.norm.linear", ("single_blocks.{}.modulation.lin",)),
)
