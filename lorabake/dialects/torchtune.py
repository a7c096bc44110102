"""torchtune, by the base's `model_type`: it reorders q and k of Llama, Mistral and Gemma, not of Qwen and Phi-3."""

from lorabake.keymap.dialect import Dialect, Naming, Part

_REST = (
    ("layers.{}.attn.output_proj", "model.layers.{}.self_attn.o_proj"),
    ("layers.{}.mlp.w2", "model.layers.{}.mlp.down_proj"),
    ("output", "lm_head"),
)
_SPLIT = (
    ("layers.{}.attn.q_proj", "model.layers.{}.self_attn.q_proj"),
    ("layers.{}.attn.k_proj", "model.layers.{}.self_attn.k_proj"),
    ("layers.{}.attn.v_proj", "model.layers.{}.self_attn.v_proj"),
    ("layers.{}.mlp.w1", "model.layers.{}.mlp.gate_proj"),
    ("layers.{}.mlp.w3", "model.layers.{}.mlp.up_proj"),
    *_REST,
)
_FUSED = (
    ("layers.{}.attn.q_proj", Part("model.layers.{}.self_attn.qkv_proj", "q")),
    ("layers.{}.attn.k_proj", Part("model.layers.{}.self_attn.qkv_proj", "k")),
    ("layers.{}.attn.v_proj", Part("model.layers.{}.self_attn.qkv_proj", "v")),
    ("layers.{}.mlp.w1", Part("model.layers.{}.mlp.gate_up_proj", "gate")),
    ("layers.{}.mlp.w3", Part("model.layers.{}.mlp.gate_up_proj", "up")),
    *_REST,
)
_IN_PAIRS = Naming(_SPLIT, paired={"layers.{}.attn.q_proj": "queries", "layers.{}.attn.k_proj": "groups"})
_AS_IT_IS = Naming(_SPLIT)

TORCHTUNE = Dialect(
    title="torchtune",
    mark=r"\.lora_[ab]\.weight\Z",
    models={
        "llama": _IN_PAIRS,
        "mistral": _IN_PAIRS,
        "gemma": _IN_PAIRS,
        "gemma2": _IN_PAIRS,
        "qwen2": _AS_IT_IS,
        "qwen3": _AS_IT_IS,
        "phi3": Naming(_FUSED),
    },
)
