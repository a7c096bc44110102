"""litgpt: one module holds q, k and v, and each has factors of its own; rotary embeddings are as in transformers.

The module is `attn.qkv`: all rows of q, then k, then v. Before Lightning-AI/litgpt's pull request 1013 it was
`attn.attn`, ordered by groups of heads. LoRAs from before pull request 900 had yet another order; they also lack
hyperparameters.yaml (pull request 1012), so they are refused.
"""

from lorabake.keymap.dialect import Dialect, Naming, Part

_NEOX = "gpt_neox.layers.{}.attention.query_key_value"
_PHI3 = "model.layers.{}.self_attn.qkv_proj"

LITGPT = Dialect(
    title="litgpt",
    mark=r"\A(?:model\.)?(?:transformer\.h\.\d+\.(?:attn\.(?:qkv|attn|proj)|mlp\.(?:fc|proj|fc_[12]))|lm_head)\.lora_[AB]\Z",
    models={
        "": Naming(
            (
                ("transformer.h.{}.attn.q", "model.layers.{}.self_attn.q_proj"),
                ("transformer.h.{}.attn.k", "model.layers.{}.self_attn.k_proj"),
                ("transformer.h.{}.attn.v", "model.layers.{}.self_attn.v_proj"),
                ("transformer.h.{}.attn.q", Part(_PHI3, "q")),
                ("transformer.h.{}.attn.k", Part(_PHI3, "k")),
                ("transformer.h.{}.attn.v", Part(_PHI3, "v")),
                ("transformer.h.{}.attn.q", Part(_NEOX, "q", by_group=True)),
                ("transformer.h.{}.attn.k", Part(_NEOX, "k", by_group=True)),
                ("transformer.h.{}.attn.v", Part(_NEOX, "v", by_group=True)),
                ("transformer.h.{}.attn.proj", "model.layers.{}.self_attn.o_proj"),
                ("transformer.h.{}.attn.proj", "gpt_neox.layers.{}.attention.dense"),
                ("transformer.h.{}.mlp.fc_1", "model.layers.{}.mlp.gate_proj"),
                ("transformer.h.{}.mlp.fc_2", "model.layers.{}.mlp.up_proj"),
                ("transformer.h.{}.mlp.fc_1", Part("model.layers.{}.mlp.gate_up_proj", "gate")),
                ("transformer.h.{}.mlp.fc_2", Part("model.layers.{}.mlp.gate_up_proj", "up")),
                ("transformer.h.{}.mlp.proj", "model.layers.{}.mlp.down_proj"),
                ("transformer.h.{}.mlp.fc", "gpt_neox.layers.{}.mlp.dense_h_to_4h"),
                ("transformer.h.{}.mlp.proj", "gpt_neox.layers.{}.mlp.dense_4h_to_h"),
            )
        )
    },
    fused={"transformer.h.{}.attn.qkv": False, "transformer.h.{}.attn.attn": True},
)
