"""Families without a table of names yet: known by their LoRAs' names, so that a refusal says what a file is.

Their checkpoints bake under their own names (see `generic`).
"""

from lorabake.keymap.table import Architecture, Mark

TRANSFORMERS = Architecture(
    name="transformers",
    title="a language model",
    components=(),
    marks=(
        Mark("model_layers_N_self_attn"),
        Mark("block_N_layer_N_SelfAttention"),
        Mark("self_attention_query_key_value"),
    ),
)
