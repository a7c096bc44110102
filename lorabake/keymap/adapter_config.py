"""Read PEFT's adapter_config.json (and MLX-LM's), and the same facts as diffusers keeps them in a file's metadata.

Every field is honoured, known to be without effect on a merge, or refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from lorabake.errors import FileError, lines_of
from lorabake.keymap.patterns import Patterns
from lorabake.keymap.peft import PATTERNS, SCALED, PeftConfig, number
from lorabake.tensors.small import parse_json

REFUSED = {
    "PROMPT_TUNING": "it learns tokens put before the input, no weights",
    "MULTITASK_PROMPT_TUNING": "it learns tokens put before the input, no weights",
    "P_TUNING": "it learns tokens put before the input, no weights",
    "PREFIX_TUNING": "it learns keys and values put before the input, no weights",
    "CPT": "it learns tokens put before the input, no weights",
    "CARTRIDGE": "it learns keys and values put before the input, no weights",
    "ADAPTION_PROMPT": "it gates prompts inside the attention; no weight can hold that",
    "XLORA": "it mixes several LoRAs anew for each token; no weight can hold that",
    "POLY": "it mixes several LoRAs by task; no one weight can hold that",
    "LILY": "it mixes several products anew for each token; no weight can hold that",
    "SHADOW": "it runs a network of its own beside the model; no weight can hold that",
    "OSF": "it trains against a decomposition of the base that is not in the file\nMerge it with PEFT.",
    "PSOFT": "it trains against a decomposition of the base that is not in the file\nMerge it with PEFT.",
    "ADAMSS": "it trains against a decomposition of the base that is not in the file\nMerge it with PEFT.",
    "FROD": "it trains against a decomposition of several layers at once\nMerge it with PEFT.",
    "TINYLORA": "its vectors are dealt out to the layers in the order in which PEFT meets them\nMerge it with PEFT.",
    "UNILORA": "its values are dealt out to the layers in the order in which PEFT meets them\nMerge it with PEFT.",
    "PEANUT": "it feeds the base's weights through a small network\nMerge it with PEFT.",
    "GLORA": "its change of a bias depends on the weight beside it\nMerge it with PEFT.",
}
"""PEFT's types that cannot become weights, and why."""

MAX_RANK: Final = 1 << 31
"""The largest rank that is a rank: no side of a weight is as long."""

HEADS = {"SEQ_CLS": ("classifier", "score"), "TOKEN_CLS": ("classifier", "score"), "QUESTION_ANS": ("qa_outputs",)}
"""PEFT's task -> the modules that its models save whole, whether `modules_to_save` says so or not."""

RENAMED = {"BONE": "MISS"}
"""PEFT's older name of a type -> the newer one."""

WITHOUT_EFFECT = {
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_config",
    "modules_to_save",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
}
REFUSED_FIELDS = {
    "alora_invocation_tokens": "it acts after some tokens alone; no weight can hold that",
    "arrow_config": "it mixes several LoRAs anew for each token; no weight can hold that",
    "kasa_config": "it was trained against a base without its least singular parts\nMerge it with PEFT.",
    "layer_replication": "it makes a model of more layers out of the base's",
    "use_bdlora": "it stores blocks of a matrix, and its configuration tells which layers by parts of names\n"
    "Merge it with PEFT.",
    "use_qalora": "it takes means over groups of inputs, for weights quantised so; PEFT itself cannot merge it",
}
"""Fields that make another method of a LoRA, and why that cannot be baked."""

# Initialisations that leave the base as it was; the others (PiSSA, OLoRA, LoftQ, CorDA, LoRA-GA) train against a base
# with a part taken out, so that a merge into the original one would be wrong.
PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")


def read_config(config: Mapping[str, object], where: str, types: Mapping[str, frozenset[str]]) -> PeftConfig:
    """Check a parsed configuration; raise FileError for what is malformed or changes the mathematics.

    `types` maps PEFT's types that can be baked to the fields that their adapter kinds know.
    """
    if "lora_parameters" in config and "peft_type" not in config:
        return _read_mlx(config, where)
    kind = str(config.get("peft_type", "LORA"))
    kind = RENAMED.get(kind, kind)
    if kind not in types:
        why = REFUSED.get(kind, "not supported by this version")
        raise FileError(*lines_of(f"{where}: an adapter of PEFT's type {kind} cannot be baked: ", why))
    init = config.get("init_lora_weights")
    if init not in PLAIN_INITS:
        raise FileError(
            f"{where}: init_lora_weights is {init!r}: such an adapter was trained against a changed base",
            "Convert it to a plain LoRA with PEFT (path_initial_model_for_weight_conversion), then bake that.",
        )
    for name, why in REFUSED_FIELDS.items():
        if config.get(name) not in (None, False, {}, []):
            raise FileError(*lines_of(f"{where}: {name} is set: ", why))
    known = types[kind] | WITHOUT_EFFECT | {"init_lora_weights"}
    strange = [name for name, value in config.items() if name not in known and value not in (None, False, {}, [])]
    if strange:
        names = ", ".join(f"{name} = {json.dumps(config[name])[:60]}" for name in sorted(strange))
        raise FileError(f"{where}: fields that may change the result and are not supported: {names}")
    scaled, alpha = kind in SCALED, SCALED.get(kind, "")
    modules = (*_names(config, "modules_to_save", where), *HEADS.get(str(config.get("task_type")), ()))
    bias = config.get("bias", "none")
    if bias not in ("none", "all") and not str(bias).endswith("_only"):
        raise FileError(f"{where}: bias must be none, all or lora_only, not {bias!r}")
    return PeftConfig(
        where=where,
        kind=kind,
        fields=config,
        rank=_rank(config.get("r", 8) if scaled else 8, f"{where}: r"),
        alpha=number(config.get(alpha, 8), f"{where}: {alpha}"),
        rank_pattern=Patterns(
            {
                k: _rank(v, f"{where}: rank_pattern.{k}")
                for k, v in _pairs(config if scaled else {}, "rank_pattern", where)
            }
        ),
        alpha_pattern=Patterns(
            {
                k: number(v, f"{where}: alpha_pattern.{k}")
                for k, v in _pairs(config if scaled else {}, "alpha_pattern", where)
            }
        ),
        rslora=_flag(config, "use_rslora", where),
        dora=_flag(config, "use_dora", where),
        fan_in_fan_out=_flag(config, "fan_in_fan_out", where),
        bias=str(bias),
        modules_to_save=modules,
        parameters=_names(config, "target_parameters", where),
        own={name: Patterns(value) for name in PATTERNS if isinstance(value := config.get(name), dict)},
    )


def from_metadata(
    metadata: Mapping[str, str], where: str, types: Mapping[str, frozenset[str]]
) -> dict[str, PeftConfig]:
    """Read diffusers' `lora_adapter_metadata`: component -> configuration.

    Its keys carry the component in front (`unet.r`, `text_encoder.lora_alpha`) where a pipeline saved them. A model's
    own `save_lora_adapter` puts none there, and that configuration goes by "".
    """
    text = metadata.get("lora_adapter_metadata")
    if text is None:
        return {}
    where = f"{where}: lora_adapter_metadata"
    try:
        flat = parse_json(text)
    except ValueError as error:
        raise FileError(f"{where} is no JSON: {error}") from None
    if not isinstance(flat, dict):
        raise FileError(f"{where} must be a JSON object")
    sections: dict[str, dict[str, object]] = {}
    for key, value in flat.items():
        component, _, name = key.rpartition(".")
        sections.setdefault(component, {})[name] = value
    return {
        component: read_config(section, f"{where}, {component}", types) for component, section in sections.items()
    }


def _read_mlx(config: Mapping[str, object], where: str) -> PeftConfig:
    """Read what MLX-LM says: its scale takes the place of alpha/rank, and is 20 unless it is said."""
    how = config.get("fine_tune_type", "lora")
    if how not in ("lora", "dora"):
        raise FileError(f"{where}: fine_tune_type is {how!r}: only lora and dora can be baked")
    parameters = config["lora_parameters"]
    if not isinstance(parameters, dict):
        raise FileError(f"{where}: lora_parameters must be a mapping")
    if "scale" not in parameters and "alpha" in parameters:
        raise FileError(
            f"{where}: lora_parameters has an alpha and no scale, without which MLX-LM cannot load it",
            "Add the scale that it was trained with.",
        )
    scale = number(parameters.get("scale", 20.0), f"{where}: lora_parameters.scale")
    return PeftConfig(where=where, kind="LORA", fields=config, rank=1, alpha=scale, dora=how == "dora")


def _pairs(config: Mapping[str, object], name: str, where: str) -> list[tuple[str, object]]:
    value = config.get(name) or {}
    if not isinstance(value, dict):
        raise FileError(f"{where}: {name} must be a mapping")
    return list(value.items())


def _names(config: Mapping[str, object], name: str, where: str) -> tuple[str, ...]:
    value = config.get(name) or ()
    if not isinstance(value, (list, tuple)) or not all(isinstance(each, str) for each in value):
        raise FileError(f"{where}: {name} must be a list of names")
    return tuple(value)


def _rank(value: object, where: str) -> int:
    if type(value) is not int or not 1 <= value <= MAX_RANK:
        raise FileError(f"{where} must be a positive whole number, not {value!r:.50}")
    return value


def _flag(config: Mapping[str, object], name: str, where: str) -> bool:
    value = config.get(name) or False
    if type(value) is not bool:
        raise FileError(f"{where}: {name} must be true or false, not {value!r:.50}")
    return value
