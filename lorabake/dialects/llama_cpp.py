"""llama.cpp, by a GGUF file's architecture: only models whose conversion renames modules and, at most, reorders rows.

Other conversions change values (Gemma's norms), transpose weights (GPT-2) or join experts. Those models are refused.
"""

from lorabake.keymap.dialect import Dialect, Naming

_REST = (
    ("token_embd", "model.embed_tokens"),
    ("output_norm", "model.norm"),
    ("output", "lm_head"),
    ("blk.{}.attn_norm", "model.layers.{}.input_layernorm"),
    ("blk.{}.attn_output", "model.layers.{}.self_attn.o_proj"),
    ("blk.{}.ffn_norm", "model.layers.{}.post_attention_layernorm"),
)
_QKV = (
    ("blk.{}.attn_q", "model.layers.{}.self_attn.q_proj"),
    ("blk.{}.attn_k", "model.layers.{}.self_attn.k_proj"),
    ("blk.{}.attn_v", "model.layers.{}.self_attn.v_proj"),
)
_GATED = (
    ("blk.{}.ffn_gate", "model.layers.{}.mlp.gate_proj"),
    ("blk.{}.ffn_up", "model.layers.{}.mlp.up_proj"),
    ("blk.{}.ffn_down", "model.layers.{}.mlp.down_proj"),
)
_NORMED = (
    ("blk.{}.attn_q_norm", "model.layers.{}.self_attn.q_norm"),
    ("blk.{}.attn_k_norm", "model.layers.{}.self_attn.k_norm"),
)

LLAMA_CPP = Dialect(
    title="llama.cpp",
    mark=r"\.weight\.lora_[ab]\Z",
    models={
        "llama": Naming(
            (*_REST, *_QKV, *_GATED),
            paired={"blk.{}.attn_q": "queries", "blk.{}.attn_k": "groups"},
            left_out=("rope_freqs.weight",),
        ),
        "qwen2": Naming((*_REST, *_QKV, *_GATED)),
        "qwen3": Naming((*_REST, *_QKV, *_GATED, *_NORMED)),
        "phi3": Naming(
            (
                *_REST,
                ("blk.{}.attn_qkv", "model.layers.{}.self_attn.qkv_proj"),
                ("blk.{}.ffn_up", "model.layers.{}.mlp.gate_up_proj"),
                ("blk.{}.ffn_down", "model.layers.{}.mlp.down_proj"),
            ),
            left_out=("rope_factors_long.weight", "rope_factors_short.weight"),
        ),
        "starcoder2": Naming(
            (
                *_REST,
                *_QKV,
                ("blk.{}.ffn_up", "model.layers.{}.mlp.c_fc"),
                ("blk.{}.ffn_down", "model.layers.{}.mlp.c_proj"),
            )
        ),
    },
    turned=("token_embd",),
)
