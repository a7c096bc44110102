"""Read the LoRAs in a prompt, as AUTOMATIC1111, Forge and SD.Next write them: <lora:NAME:TEXT:UNET:lbw=BLOCKS>.

Facts from AUTOMATIC1111's extra_networks.py: the first number is the text encoder's, the second one the UNet's, and a
number alone is for both; te= and unet= are other ways to write them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress

from lorabake.errors import RecipeError
from lorabake.importing.block_weights import LISTS, PRESETS, counts_by_network, one_of_numbers
from lorabake.importing.wanted import Call
from lorabake.likeness import nearest
from lorabake.visible import at_a_glance

TAG = re.compile(r"<(?P<network>\w+):(?P<parts>[^<>]*)>")
OPEN = re.compile(r"<(?:lora|lyco|hypernet):[^<>]*(?=<|$)")

LORAS = ("lora", "lyco")
NUMBERS = {"te": "text", "unet": "model"}
"""Name in a tag -> field of a call."""

OF_STEPS = ("start", "stop", "step")
"""Names in a tag that limit a LoRA to some of the steps."""

BLOCKS = ("lbw", "w")

OF_RANK = ("a third number shortens the LoRA to some of its rank", "lorabake bakes the whole rank: remove it.")

EXAMPLE = "<lora:style:0.8>, <lora:style:0.5:0.7>, <lora:style:1:1:lbw=OUTALL>"


def calls_in(prompt: str, presets: Mapping[str, tuple[float, ...]] = PRESETS) -> tuple[str, tuple[Call, ...]]:
    """Return the prompt without its tags, and the LoRAs in it.

    `presets` are known names of block weights. Raise RecipeError for a tag that no recipe can hold.
    """
    if left := OPEN.search(prompt):
        raise _error(left[0], "has no '>' at its end", f"Write it as in {EXAMPLE}.")
    calls = []
    for tag in TAG.finditer(prompt):
        network = tag["network"].casefold()
        if network in LORAS:
            calls.append(_call(tag[0], tag["parts"].split(":"), presets))
        elif network == "hypernet":
            raise _error(tag[0], "is a hypernetwork, not a LoRA", "A hypernetwork cannot be baked: remove the tag.")
        elif nearest(network, LORAS, cutoff=0.7):
            raise _error(tag[0], "is no tag of a LoRA", f"Write it as in {EXAMPLE}.")
    without = TAG.sub(lambda tag: "" if tag["network"].casefold() in LORAS else tag[0], prompt)
    return _tidy(without), tuple(calls)


def _tidy(prompt: str) -> str:
    """Take away the commas and spaces around what was removed."""
    pieces = (" ".join(piece.split()) for piece in prompt.split(","))
    return ", ".join(piece for piece in pieces if piece)


def _call(tag: str, parts: list[str], presets: Mapping[str, tuple[float, ...]]) -> Call:
    name, *rest = (part.strip() for part in parts)
    if not name:
        raise _error(tag, "names no LoRA", f"Write it as in {EXAMPLE}.")
    said: dict[str, float] = {}
    blocks: tuple[float, ...] = ()
    places = iter(("text", "model"))
    for part in rest:
        word, equals, value = part.partition("=")
        word = word.strip().casefold()
        if equals and word in NUMBERS:
            said[NUMBERS[word]] = _number(tag, value)
        elif equals and word in BLOCKS:
            blocks = _blocks(tag, value, presets)
        elif equals:
            raise _error(tag, *_unknown(word))
        elif _is_of_blocks(part, presets):
            blocks = _blocks(tag, part, presets)
        elif (place := next(places, None)) is None:
            raise _error(tag, *OF_RANK)
        else:
            said[place] = _number(tag, part)
    text = said.get("text", said.get("model", 1.0))
    return Call(name, model=said.get("model", text), text=text, blocks=blocks)


def _is_of_blocks(part: str, presets: Iterable[str]) -> bool:
    """Tell whether a part without a name is a list of block weights, or a preset, as older extensions had them."""
    return "," in part or part in presets


def _number(tag: str, text: str) -> float:
    with suppress(ValueError):
        number = float(text)
        if math.isfinite(number):
            return number
    raise _error(tag, f"{at_a_glance(text.strip())} is no number", f"Write it as in {EXAMPLE}.")


def _blocks(tag: str, text: str, presets: Mapping[str, tuple[float, ...]]) -> tuple[float, ...]:
    text = text.strip()
    if "," not in text:
        if text in presets:
            return presets[text]
        known = ", ".join(presets)
        near = nearest(text, presets)
        hint = f"Did you mean {near}? " if near else ""
        raise _error(
            tag,
            f"there is no preset {at_a_glance(text)}",
            f"{hint}Known are {known}. Give your own in a file: --presets lbwpresets.txt",
        )
    values = text.split(",")
    check_count(tag, len(values))
    return tuple(_factor(tag, value.strip()) for value in values)


def check_count(where: str, count: int) -> None:
    """Raise RecipeError for a number of block weights that no extension knows."""
    if count not in LISTS:
        rows = counts_by_network().items()
        known = " ".join(f"A LoRA for {network} takes {one_of_numbers(counts)} values." for network, counts in rows)
        raise _error(where, f"has {count} block weights", f"{known} Write one value for each block.")


def _factor(tag: str, value: str) -> float:
    if value.upper() in ("R", "U"):
        raise _error(tag, f"the block weight {value} is a random number", "Write the number that is to be baked.")
    if value.upper().startswith("X"):
        raise _error(tag, f"the block weight {value} is a place for another number", "Write that number.")
    return _number(tag, value)


def _unknown(word: str) -> tuple[str, str]:
    """Say what is wrong with a name in a tag."""
    if word in OF_STEPS:
        return (
            f"{word}= limits a LoRA to some of the steps, and a baked LoRA works in all of them",
            f"Remove {word}= from the tag, or remove the whole tag here and use the LoRA in your prompts.",
        )
    if word == "lbwe":
        return "lbwe= is for single layers", "Write them in the recipe, as blocks: with patterns."
    if word == "dyn":
        return OF_RANK
    return f"{word}= is unknown", f"Write it as in {EXAMPLE}."


def _error(tag: str, what: str, advice: str) -> RecipeError:
    return RecipeError(f"{tag}: {what}", advice)


def read_presets(text: str, name: str) -> dict[str, tuple[float, ...]]:
    """Read a file of presets, as the extension keeps it: a line NAME:VALUES each; other lines are comments.

    `name` stands for the file in messages.
    """
    presets = dict(PRESETS)
    for number, line in enumerate(text.splitlines(), 1):
        preset, colon, values = line.partition(":")
        numbers = values.split(",")
        if not colon or "#" in line or len(numbers) < 2:
            continue
        where = f"{name}:{number}"
        check_count(where, len(numbers))
        presets[preset.strip()] = tuple(_factor(where, value.strip()) for value in numbers)
    return presets
