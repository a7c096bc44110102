"""PEFT's adapter_config.json (and MLX-LM's), and the same facts as diffusers keeps them in a file's metadata.

Every field is honoured, known to be without effect on a merge, or refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from sys import float_info
from typing import Final, TypeGuard, cast

from lorabake.errors import FileError
from lorabake.keymap.experts import STACKS
from lorabake.tensors.safetensors import parse_json

SCALED = {"LORA": "lora_alpha", "LOHA": "alpha", "LOKR": "alpha"}
"""PEFT's type -> the field that is divided by the rank."""

PATTERNS = {
    "rank_pattern": "r",
    "n_frequency_pattern": "n_frequency",
    "block_size_pattern": "block_size",
}
"""The field whose patterns give modules a number of their own -> the field in whose place that number is."""

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

INPUTS = frozenset({
    "embed_tokens", "wte", "word_embeddings", "shared", "embed_in", "tok_embeddings", "token_embedding", "embeddings",
})  # fmt: skip
"""What transformers calls a model's input embeddings."""

EMBEDDINGS = INPUTS | {"lm_head", "embed_out", "output"}
"""These and output heads: PEFT saves them by itself."""

RENAMED = {"BONE": "MISS"}
"""PEFT's older name of a type -> the newer one."""

INTRODUCED = {"exclude_modules": (0, 14, 0)}
"""Field -> the first PEFT that writes it: it does so always, and so tells of files without a `peft_version`."""

WHO_TRAINED = "add to adapter_config.json the peft_version that trained it."

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


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """Hold what adapter_config.json says of ranks and scales; `where` is its place, for messages.

    `kind` is PEFT's type, `fields` the configuration as it was read, for adapter kinds that need more. `parameters`
    are PEFT's `target_parameters`: tensors, named as such and not by their layers.
    """

    where: str
    kind: str
    fields: Mapping[str, object]
    rank: int
    alpha: float
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    rslora: bool = False
    dora: bool = False
    fan_in_fan_out: bool = False
    bias: str = "none"
    modules_to_save: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()

    @classmethod
    def read(cls, config: Mapping[str, object], where: str, types: Mapping[str, frozenset[str]]) -> PeftConfig:
        """Check a parsed configuration; raise FileError for what is malformed or changes the mathematics.

        `types` maps PEFT's types that can be baked to the fields that their adapter kinds know.
        """
        if "lora_parameters" in config and "peft_type" not in config:
            return cls._read_mlx(config, where)
        kind = str(config.get("peft_type", "LORA"))
        kind = RENAMED.get(kind, kind)
        if kind not in types:
            why = REFUSED.get(kind, "not supported by this version")
            raise FileError(f"{where}: an adapter of PEFT's type {kind} cannot be baked: {why}")
        init = config.get("init_lora_weights")
        if init not in PLAIN_INITS:
            raise FileError(
                f"{where}: init_lora_weights is {init!r}: such an adapter was trained against a changed base\n"
                "Convert it to a plain LoRA with PEFT (path_initial_model_for_weight_conversion), then bake that."
            )
        for name, why in REFUSED_FIELDS.items():
            if config.get(name) not in (None, False, {}, []):
                raise FileError(f"{where}: {name} is set: {why}")
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
        return cls(
            where=where,
            kind=kind,
            fields=config,
            rank=_rank(config.get("r", 8) if scaled else 8, f"{where}: r"),
            alpha=_number(config.get(alpha, 8), f"{where}: {alpha}"),
            rank_pattern={
                k: _rank(v, f"{where}: rank_pattern.{k}")
                for k, v in _pairs(config if scaled else {}, "rank_pattern", where)
            },
            alpha_pattern={
                k: _number(v, f"{where}: alpha_pattern.{k}")
                for k, v in _pairs(config if scaled else {}, "alpha_pattern", where)
            },
            rslora=_flag(config, "use_rslora", where),
            dora=_flag(config, "use_dora", where),
            fan_in_fan_out=_flag(config, "fan_in_fan_out", where),
            bias=str(bias),
            modules_to_save=modules,
            parameters=_names(config, "target_parameters", where),
        )

    @classmethod
    def _read_mlx(cls, config: Mapping[str, object], where: str) -> PeftConfig:
        """Read what MLX-LM says: its scale takes the place of alpha/rank, and is 20 unless it is said."""
        how = config.get("fine_tune_type", "lora")
        if how not in ("lora", "dora"):
            raise FileError(f"{where}: fine_tune_type is {how!r}: only lora and dora can be baked")
        parameters = config["lora_parameters"]
        if not isinstance(parameters, dict):
            raise FileError(f"{where}: lora_parameters must be a mapping")
        if "scale" not in parameters and "alpha" in parameters:
            raise FileError(
                f"{where}: lora_parameters has an alpha and no scale, without which MLX-LM cannot load it\n"
                "Add the scale that it was trained with."
            )
        scale = _number(parameters.get("scale", 20.0), f"{where}: lora_parameters.scale")
        return cls(where=where, kind="LORA", fields=config, rank=1, alpha=scale, dora=how == "dora")

    def trained(self, module: str) -> str:
        """Return the name by which patterns know what is trained of a module: its own, or that of its weight."""
        weight = f"{module}.weight"
        return weight if any(f".{weight}".endswith(f".{name}") for name in self.parameters) else module

    def expert_stack(self, module: str) -> str | None:
        """Return the name of the trained stack of experts that a module's adapter is for; None where it is for none.

        PEFT names the module that has the stack, which it wraps once for each: the first one innermost.
        """
        plain = re.sub(r"(?:\.base_layer)+\Z", "", module)
        there = [name.rpartition(".") for name in self.parameters]
        found = [last for place, _, last in there if last != "weight" and f".{plain}".endswith(f".{place}")]
        wraps = [name for name in reversed(STACKS) if name in found] or found
        return f"{plain}.{wraps[min(module.count('.base_layer'), len(wraps) - 1)]}" if wraps else None

    @property
    def is_mlx(self) -> bool:
        """Tell whether it is MLX-LM's, which says the scale itself."""
        return "lora_parameters" in self.fields

    def is_before(self, *release: int) -> bool | None:
        """Tell whether a PEFT before this release (major, minor, patch) wrote it; None where that is unknown."""
        return is_before(self.fields, *release)

    def fields_of(self, module: str) -> dict[str, object]:
        """Return the fields as they hold for one module: its own numbers, where patterns give it some."""
        fields = dict(self.fields)
        for name, place in PATTERNS.items():
            patterns = fields.get(name)
            if isinstance(patterns, dict) and (pattern := _first(patterns, module, self.where)) is not None:
                fields[place] = patterns[pattern]
        if self.kind in SCALED:
            fields["r"] = self.rank_of(module)
        return fields

    @property
    def ties(self) -> bool:
        """Tell whether it trained a tied embedding in all its uses, and saved each, named or not."""
        return self.fields.get("ensure_weight_tying") is True

    def rank_of(self, module: str) -> int:
        """Return the rank that a module was trained with."""
        pattern = _first(self.rank_pattern, module, self.where)
        return self.rank if pattern is None else self.rank_pattern[pattern]

    def scale_of(self, module: str) -> float:
        """Return alpha/rank of a module, or alpha/√rank with rsLoRA (Kalajdzievski 2023, arXiv 2312.03732).

        It is 1 for types that have no such scale.
        """
        if self.kind not in SCALED:
            return 1.0
        return self._older_scale(module) if self.is_before(0, 14, 0) else self._scale(self.alpha_of(module), module)

    def doubt(self, module: str) -> str:
        """Say how a PEFT that may have trained it scaled a module otherwise; empty if none did."""
        if self.kind not in SCALED or self.is_before(0, 14, 0) is not None:
            return ""
        now, older = self._scale(self.alpha_of(module), module), self._older_scale(module)
        return f"PEFT before 0.14 scaled such a module by {older:g} and not by {now:g}" if now != older else ""

    def _scale(self, alpha: float, module: str) -> float:
        rank = self.rank_of(module)
        return float(alpha / rank**0.5 if self.rslora else alpha / rank)

    def alpha_of(self, module: str) -> float:
        """Return the alpha that a module was trained with."""
        pattern = _first(self.alpha_pattern, module, self.where)
        return self.alpha if pattern is None else self.alpha_pattern[pattern]

    def said_alpha_of(self, module: str) -> float | None:
        """Return the alpha that the configuration itself says, None where the scale has another source."""
        said = SCALED.get(self.kind, "lora_alpha")
        if self.is_mlx or (_first(self.alpha_pattern, module, self.where) is None and said not in self.fields):
            return None
        return self.alpha_of(module) if self.kind in SCALED else _number(self.fields[said], f"{self.where}: {said}")

    def _older_scale(self, module: str) -> float:
        """Return the scale of PEFT before 0.14: LoKr had none, and one name was looked up in both patterns."""
        name = _first((*self.rank_pattern, *self.alpha_pattern), module, self.where)
        alpha = self.alpha if name is None else self.alpha_pattern.get(name, self.alpha)
        return 1.0 if self.kind == "LOKR" else self._scale(alpha, module)

    def saves(self, module: str, slot: str) -> bool:
        """Tell whether a whole tensor of this module is meant to replace the base's.

        Embeddings and heads are, announced or not: PEFT saves them where they are trained, and where the vocabulary
        has grown (`save_embedding_layers`), and loads them.
        """
        if slot == "whole_bias" and self.bias != "none":
            return True
        words = module.split(".")
        if words[-1] in EMBEDDINGS and not self.is_mlx and not any(word.isdigit() for word in words):
            return True
        return self.announces(module)

    def announces(self, module: str) -> bool:
        """Tell whether `modules_to_save` names a module: PEFT trains a copy of it then, beside the base's."""
        words = module.split(".")
        around = tuple(".".join(words[:count]) for count in range(1, len(words) + 1))
        return any(each.endswith(self.modules_to_save) for each in around)  # as PEFT does: `head` is `lm_head`, too


def is_before(fields: Mapping[str, object], *release: int) -> bool | None:
    """Tell whether a PEFT before this release (major, minor, patch) wrote these fields; None where that is unknown.

    All laws that changed ask here. `peft_version` is there since 0.18. A version in the making (0.18.2.dev0@5f3c)
    comes after the release before it, and may have any of the next minor one's changes.
    """
    said = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?(\.?(?:dev|a|b|rc)\d*)?", str(fields.get("peft_version")))
    if said is None:
        is_later = any(release <= first for name, first in INTRODUCED.items() if name in fields)
        return False if is_later else None
    major, minor, patch = (int(number or 0) for number in said.groups()[:3])
    if said[4] is None:
        return (major, minor, patch) < release
    if release < (major, minor, patch):
        return False
    return True if release > (major, minor + (patch > 0), 0) else None


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
        component: PeftConfig.read(section, f"{where}, {component}", types) for component, section in sections.items()
    }


def _first(patterns: Iterable[str], module: str, where: str) -> str | None:
    for pattern in patterns:
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return pattern
        except re.error as error:
            raise FileError(f"{where}: the pattern {pattern!r} is no regular expression: {error}") from None
    return None


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


def is_finite(value: object) -> TypeGuard[float]:
    """Tell a number that a float can hold from anything else; JSON may say more digits, and infinity."""
    return type(value) in (int, float) and abs(cast(float, value)) <= float_info.max


def _rank(value: object, where: str) -> int:
    if type(value) is not int or not 1 <= value <= MAX_RANK:
        raise FileError(f"{where} must be a positive whole number, not {value!r:.50}")
    return value


def _number(value: object, where: str) -> float:
    if not is_finite(value):
        raise FileError(f"{where} must be a finite number, not {value!r:.50}")
    return float(value)


def _flag(config: Mapping[str, object], name: str, where: str) -> bool:
    value = config.get(name) or False
    if type(value) is not bool:
        raise FileError(f"{where}: {name} must be true or false, not {value!r:.50}")
    return value
