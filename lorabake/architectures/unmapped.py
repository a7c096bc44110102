"""Families without a table of names yet. Module names tell their LoRAs, so that a refusal can name the family.

Their checkpoints bake under their own names (see `generic`).
"""

from lorabake.keymap.table import Architecture

TRANSFORMERS = Architecture(
    name="transformers",
    title="a language model",
    components=(),
    names=(
        "model.layers.{}.self_attn.q_proj",
        "model.layers.{}.self_attn.k_proj",
        "model.layers.{}.self_attn.v_proj",
        "model.layers.{}.self_attn.o_proj",
        "model.layers.{}.self_attn.out_proj",
        "model.layers.{}.self_attn.qkv_proj",
        "model.layers.{}.mlp.gate_proj",
        "model.layers.{}.mlp.up_proj",
        "model.layers.{}.mlp.down_proj",
        "model.layers.{}.mlp.gate_up_proj",
        "model.embed_tokens",
        "lm_head",
        "block.{}.layer.{}.SelfAttention.q",
        "block.{}.layer.{}.SelfAttention.k",
        "block.{}.layer.{}.SelfAttention.v",
        "block.{}.layer.{}.SelfAttention.o",
        "block.{}.layer.{}.EncDecAttention.q",
        "block.{}.layer.{}.EncDecAttention.k",
        "block.{}.layer.{}.EncDecAttention.v",
        "block.{}.layer.{}.EncDecAttention.o",
        "block.{}.layer.{}.DenseReluDense.wi",
        "block.{}.layer.{}.DenseReluDense.wi_0",
        "block.{}.layer.{}.DenseReluDense.wi_1",
        "block.{}.layer.{}.DenseReluDense.wo",
        "h.{}.self_attention.query_key_value",
        "h.{}.self_attention.dense",
        "h.{}.mlp.dense_h_to_4h",
        "h.{}.mlp.dense_4h_to_h",
        "layers.{}.attention.query_key_value",
        "layer.{}.attention.self.query",
        "layer.{}.attention.self.key",
        "layer.{}.attention.self.value",
        "layer.{}.attention.output.dense",
    ),
)
