"""Say what to write instead of a value that a recipe cannot have there, where what was meant can be guessed."""

from __future__ import annotations

import re
from collections.abc import Mapping

from lorabake.recipe.foreign import advice_on_value
from lorabake.recipe.syntax import in_quotes

LORA = "{path: FILE, strength: 0.8}"
"""An entry of a recipe's list of LoRAs."""

NUMBERS = ("strength", "blocks", "density", "guidance")
"""Keys whose value, or the values in it, are numbers."""

EXAMPLES = {
    "version": "version: 1",
    "base": "base: FILE",
    "output": "output: {path: FILE}",
    "path": "path: FILE",
    "prompts": "prompts: [a cat]",
}
"""Required key -> how to write it."""

_WORDS = {"full": "1", "half": "0.5", "none": "0", "off": "0", "on": "1"}
_TRUTHS = {"yes": "true", "on": "true", "1": "true", "no": "false", "off": "false", "0": "false"}


def hint_on_value(keys: tuple[str, ...], given: object, expected: str) -> str:
    """Say what to write instead of a value; `keys` lead to it, and `expected` says what there should be."""
    advice = _advice(keys, given, expected)
    return f"; {advice}" if advice else ""


def _advice(keys: tuple[str, ...], given: object, expected: str) -> str | None:
    key = keys[-1] if keys else ""
    known = next((advice for key in keys if (advice := advice_on_value(key, str(given)))), None)
    if known:
        return known
    if isinstance(given, str):
        return _advice_on_text(keys, given, expected)
    match key, given:
        case "loras", Mapping():
            return f"write each LoRA behind a dash: - {LORA}"
        case "loras", tuple():
            return f"write {LORA}"
        case "loras", None:
            return "write a file behind the dash, or remove the dash"
        case "strength", tuple():
            return f"give each LoRA an entry of its own: - {LORA}"
        case "blocks", tuple():
            return 'name each block, as in blocks: {"down_blocks.*": 1, "mid_block.*": 0}'
        case "layout", Mapping() if len(given) == 1 and {*given} <= {"keep", "diffusers"}:
            return f"only single takes a maker's name: write layout: {next(iter(given))}"
        case "layout", ("keep" | "single" | "diffusers" as name,):
            return f"write layout: {name} without the brackets"
        case "hash" | "allow_loss", int():
            return f"write {_TRUTHS.get(str(given), 'true')}"
        case "density", int() | float() if 1 < given <= 100:
            return f"for {given:g} percent write {given / 100:g}"
        case "version", _:
            return "write version: 1"
        case _, None:
            return f"write a value behind {key}{'' if key in EXAMPLES else ', or remove the key'}" if key else None
    if expected == "text":
        return "put it in quotes"
    return None


def _advice_on_text(keys: tuple[str, ...], given: str, expected: str) -> str | None:
    key, text = keys[-1] if keys else "", given.strip()
    if re.fullmatch(r"[a-z_]+:\S.*", text) and "mapping" in expected:
        return f"write a space after the colon: {text.replace(':', ': ', 1)}"
    if expected == "a list":
        item = LORA.replace("FILE", given) if key == "loras" else given
        return f"write {key}: [{item if re.fullmatch('[^,:#]+|{.*}', item) else in_quotes(item)}]"
    if reference := re.fullmatch(r"\$\{\s*([A-Za-z_][\w-]*)\s*\}", text):
        return f"for an axis, add matrix: {{{reference[1]}: [VALUE, VALUE]}} to the recipe"
    if any(number in keys for number in NUMBERS) and "number" in expected:
        return _number_meant(text)
    match key:
        case "hash" | "allow_loss" if text.casefold() in _TRUTHS:
            return f"write {_TRUTHS[text.casefold()]}"
        case "output":
            return f"write output: {{path: {given}}}"
        case "version" if text == "1":
            return "write 1 without quotes"
        case "version":
            return "it is the version of the grammar: write version: 1"
        case "thumbnail":
            return (
                "it cannot be a file: write thumbnail: verify, which takes a sample picture that verify draws, "
                "or remove the key"
            )
        case "sha256":
            return "the command sha256sum FILE prints them"
        case "size" if sides := re.fullmatch(r"(\d+) *[x×,] *(\d+)", text):
            return f"write [{sides[1]}, {sides[2]}]"
        case "shard_size" if size := re.fullmatch(r"0*([1-9]\d*) *([kmgt])i?b?(?:ytes)?", text.casefold()):
            return f"write {size[1]}{size[2].upper()}B"
    if expected == "a file path" and re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", given):
        return "in double quotes, a backslash begins an escape: write the path in single quotes"
    return None


def _number_meant(text: str) -> str | None:
    if re.fullmatch(r"[-+]?\d*,\d+", text):
        return f"write {text.replace(',', '.')}"
    if percent := re.fullmatch(r"([-+]?\d+(?:\.\d+)?) *%", text):
        return f"write {float(percent[1]) / 100:g}"
    if re.fullmatch(r"[-+]?\d*\.?\d+", text):
        return f"write {text} without quotes"
    return f"write {_WORDS[text.casefold()]}" if text.casefold() in _WORDS else None
