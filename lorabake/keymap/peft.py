"""What PEFT's adapter_config.json, or MLX-LM's, says of ranks and scales; `adapter_config.py` reads it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lorabake.errors import FileError
from lorabake.keymap.experts import STACKS
from lorabake.keymap.patterns import PatternError, Patterns
from lorabake.keymap.said import Said, is_before, is_finite

SCALED = {"LORA": "lora_alpha", "LOHA": "alpha", "LOKR": "alpha"}
"""PEFT's type -> the field that is divided by the rank."""

PATTERNS = {
    "rank_pattern": "r",
    "n_frequency_pattern": "n_frequency",
    "block_size_pattern": "block_size",
}
"""The field whose patterns give modules a number of their own -> the field in whose place that number is."""

INPUTS = frozenset({
    "embed_tokens", "wte", "word_embeddings", "shared", "embed_in", "tok_embeddings", "token_embedding", "embeddings",
})  # fmt: skip
"""What transformers calls a model's input embeddings."""

EMBEDDINGS = INPUTS | {"lm_head", "embed_out", "output"}
"""These and output heads: PEFT saves them by itself."""


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """Hold what adapter_config.json says of ranks and scales; `where` is its place, for messages.

    `kind` is PEFT's type, `fields` the configuration as it was read, for adapter kinds that need more. `parameters`
    are PEFT's `target_parameters`: tensors, named as such and not by their layers. `own` are the fields of PATTERNS,
    as they stand there.
    """

    where: str
    kind: str
    fields: Mapping[str, object]
    rank: int
    alpha: float
    rank_pattern: Patterns[int] = field(default_factory=Patterns)
    alpha_pattern: Patterns[float] = field(default_factory=Patterns)
    rslora: bool = False
    dora: bool = False
    fan_in_fan_out: bool = False
    bias: str = "none"
    modules_to_save: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    own: Mapping[str, Patterns[object]] = field(default_factory=dict)

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

    def said_of(self, module: str) -> Said:
        """Return what holds for one module: its own numbers stand in their fields, where patterns give it some."""
        fields = dict(self.fields)
        for name, place in PATTERNS.items():
            patterns = self.own.get(name, Patterns())
            if (pattern := self._first(patterns, module)) is not None:
                fields[place] = patterns[pattern]
        if self.kind in SCALED:
            fields["r"] = self.rank_of(module)
        return Said(module, fields)

    @property
    def ties(self) -> bool:
        """Tell whether it trained a tied embedding in all its uses, and saved each, named or not."""
        return self.fields.get("ensure_weight_tying") is True

    def rank_of(self, module: str) -> int:
        """Return the rank that a module was trained with."""
        pattern = self._first(self.rank_pattern, module)
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
        pattern = self._first(self.alpha_pattern, module)
        return self.alpha if pattern is None else self.alpha_pattern[pattern]

    def said_alpha_of(self, module: str) -> float | None:
        """Return the alpha that the configuration itself says, None where the scale has another source."""
        said = SCALED.get(self.kind, "lora_alpha")
        if self.is_mlx or (self._first(self.alpha_pattern, module) is None and said not in self.fields):
            return None
        return self.alpha_of(module) if self.kind in SCALED else number(self.fields[said], f"{self.where}: {said}")

    def _older_scale(self, module: str) -> float:
        """Return the scale of PEFT before 0.14: LoKr had none, and one name was looked up in both patterns."""
        ranked = self._first(self.rank_pattern, module)
        name = self._first(self.alpha_pattern, module) if ranked is None else ranked
        alpha = self.alpha if name is None else self.alpha_pattern.get(name, self.alpha)
        return 1.0 if self.kind == "LOKR" else self._scale(alpha, module)

    def _first(self, patterns: Patterns[Any], module: str) -> str | None:
        """Return the first pattern that matches a module, None if none does."""
        try:
            return patterns.first(module)
        except PatternError as error:
            raise FileError(f"{self.where}: {error}") from None

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


def number(value: object, where: str) -> float:
    """Return a finite number; raise FileError for anything else, naming `where` it stands."""
    if not is_finite(value):
        raise FileError(f"{where} must be a finite number, not {value!r:.50}")
    return float(value)
