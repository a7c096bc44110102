"""llama.cpp, by a GGUF file's architecture: only models whose conversion renames modules and, at most, reorders rows.

Other conversions change values (Gemma's norms), transpose weights (GPT-2) or join experts. Those models are refused.
"""

from __future__ import annotations

import re

from lorabake.errors import MatchError
from lorabake.keymap.dialect import Dialect, DialectLora, Facts, Naming, heads_of
from lorabake.keymap.patterns import Patterns
from lorabake.keymap.peft import PeftConfig
from lorabake.tensors.gguf import MODELS, model_of

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


def _read(dialect: Dialect, lora: DialectLora) -> Facts:
    facts, where = lora.checkpoint.facts, str(lora.checkpoint.path)
    model, alpha = model_of(facts), facts.get("adapter.lora.alpha")
    if facts.get("adapter.type") != "lora" or not isinstance(alpha, float):
        raise MatchError(f"LoRA {lora.name!r}: the GGUF file says no adapter.lora.alpha: it has the scale")
    if any(key.startswith("adapter.alora") for key in facts):
        raise MatchError(f"LoRA {lora.name!r}: an aLoRA: it acts from certain tokens on; no weight can hold that")
    naming = Naming(()) if model in MODELS else dialect.models.get(str(model))
    if naming is None:
        raise MatchError(
            f"LoRA {lora.name!r}: for a model that llama.cpp calls {model!r}: what its conversion does is not known",
            f"Known are {', '.join(dialect.models)}. Bake the LoRA that it was converted from.",
        )
    ranks = {
        re.escape(module.name): module.shapes["up"][-1]
        for module in lora.tensors.modules.values()
        if module.shapes.get("up")
    }
    config = PeftConfig(
        where,
        "LORA",
        {},
        rank=1,
        alpha=alpha,
        rank_pattern=Patterns(ranks),
        alpha_pattern=Patterns()
        if alpha
        else Patterns({name: float(rank) for name, rank in ranks.items()}),  # 0 stands for the rank
        modules_to_save=tuple(name for name, each in lora.tensors.modules.items() if "whole_weight" in each.slots),
    )
    return Facts(naming, heads_of(lora.base), config)


LLAMA_CPP = Dialect(
    title="llama.cpp",
    mark=r"\.weight\.lora_[ab]\Z",
    read=_read,
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
