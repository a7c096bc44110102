"""litgpt: one module holds q, k and v, and each has factors of its own; rotary embeddings are as in transformers.

The module is `attn.qkv`: all rows of q, then k, then v. Before Lightning-AI/litgpt's pull request 1013 it was
`attn.attn`, ordered by groups of heads. LoRAs from before pull request 900 had yet another order; they also lack
hyperparameters.yaml (pull request 1012), so they are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from lorabake.errors import FileError, MatchError, first_line
from lorabake.keymap.dialect import PARTS, Dialect, DialectLora, Facts, Heads, Naming, Part, heads_of
from lorabake.keymap.peft import PeftConfig
from lorabake.tensors.reader import is_there
from lorabake.tensors.small import content_of

MAX_YAML = 1 << 20
MAX_DEPTH = 64

_NEOX = "gpt_neox.layers.{}.attention.query_key_value"
_PHI3 = "model.layers.{}.self_attn.qkv_proj"


def _read(dialect: Dialect, lora: DialectLora) -> Facts:
    folder = lora.checkpoint.path if lora.checkpoint.is_folder else lora.checkpoint.path.parent
    training, model = (_read_yaml(folder / name, lora.name) for name in ("hyperparameters.yaml", "model_config.yaml"))
    rank, alpha = (_number(training, name, folder / "hyperparameters.yaml") for name in ("lora_r", "lora_alpha"))
    queries, groups = (_number(model, name, folder / "model_config.yaml") for name in ("n_head", "n_query_groups"))
    base = heads_of(lora.base)
    if base not in (None, Heads(queries, groups)):
        raise MatchError(
            f"LoRA {lora.name!r}: litgpt's model_config.yaml says {queries} heads in {groups} groups, and the base's "
            "config.json does not"
        )
    config = PeftConfig(str(folder / "hyperparameters.yaml"), "LORA", {}, rank, float(alpha))
    trained = tuple(
        part
        for part, name in zip(PARTS, ("query", "key", "value"), strict=True)
        if training.get(f"lora_{name}") is True
    )
    return Facts(dialect.models[""], Heads(queries, groups), config, trained)


class _PlainLoader(yaml.SafeLoader):
    """Load YAML without aliases, by which a few lines can stand for any number of values, and of bounded depth."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("it has aliases, which lorabake does not follow here")
        if self.depth == MAX_DEPTH:
            raise yaml.YAMLError(f"it is nested more than {MAX_DEPTH} deep")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _read_yaml(path: Path, lora: str) -> dict[str, object]:
    if not is_there(path):
        raise MatchError(f"LoRA {lora!r}: litgpt's {path.name} is not beside it: it says how q, k and v lie")
    try:
        said = yaml.load(content_of(path, MAX_YAML), _PlainLoader)  # a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise FileError(f"{path}: not valid YAML: {first_line(error, None)}") from None
    if not isinstance(said, dict):
        raise FileError(f"{path}: must be a mapping")
    return said


def _number(said: Mapping[str, object], name: str, where: Path) -> int:
    value = said.get(name)
    if type(value) is not int or value < 1:
        raise FileError(f"{where}: {name} must be a positive whole number, not {value!r}")
    return value


LITGPT = Dialect(
    title="litgpt",
    mark=r"\A(?:model\.)?(?:transformer\.h\.\d+\.(?:attn\.(?:qkv|attn|proj)|mlp\.(?:fc|proj|fc_[12]))|lm_head)\.lora_[AB]\Z",
    read=_read,
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
