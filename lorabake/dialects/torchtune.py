"""torchtune, by the base's `model_type`: it reorders q and k of Llama, Mistral and Gemma, not of Qwen and Phi-3."""

from __future__ import annotations

from lorabake.errors import MatchError
from lorabake.keymap.dialect import Dialect, DialectLora, Facts, Naming, Part, heads_of

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


def _read(dialect: Dialect, lora: DialectLora) -> Facts:
    if lora.config is None:
        raise MatchError(f"LoRA {lora.name!r}: torchtune's adapter_config.json is not there: it has the scale")
    model = lora.base.get("model_type")
    naming = dialect.models.get(str(model))
    if naming is None:
        why = f"says model_type {model!r}" if model else "with a model_type is beside the base"
        raise MatchError(
            f"LoRA {lora.name!r}: the order of torchtune's q and k depends on the model, and "
            f"{'its' if model else 'no'} config.json {why}",
            f"Known are {', '.join(dialect.models)}. The base's config.json must lie beside it.",
        )
    return Facts(naming, heads_of(lora.base), lora.config)


TORCHTUNE = Dialect(
    title="torchtune",
    mark=r"\.lora_[ab]\.weight\Z",
    read=_read,
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
