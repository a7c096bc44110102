"""Measure how much each LoRA changes each block of the model, in the order in which the blocks run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from math import sqrt

from lorabake.components.unet import RUN, WITHIN
from lorabake.planning import Plan
from lorabake.verification.findings import Effect
from lorabake.verification.weights.comparison import Comparison


def effects_of(plan: Plan, results: Iterable[Comparison]) -> Iterator[Effect]:
    """Sum ‖ΔW‖² and ‖W‖² over blocks, in the model's order."""
    names: dict[str, tuple[str, str]] = {}
    for component, modules in plan.sources.key_map.modules.items():
        for name, module in modules.items():
            for key in {key for view in module.views.values() for key in view.keys}:
                names[key] = max(names.get(key, ("", "")), (component, name), key=lambda pair: _telling(pair[1]))
    for module in chain(plan.sources.key_map.outside, *plan.sources.key_map.in_memory.values()):
        for key in {key for view in module.views.values() for key in view.keys}:
            names.setdefault(key, (module.component, module.name))
    place = {key: (component, block_of(name)) for key, (component, name) in names.items()}
    sums: dict[tuple[int, str, str], list[float]] = {}
    for result in results:
        if result.target.key not in place:  # a scale, not a weight
            continue
        component, block = place[result.target.key]
        for number, share in result.shares.items():
            entry = sums.setdefault((result.step.patches[number].lora, component, block), [0.0, 0.0])
            entry[0] += share.energy
            entry[1] += result.base_energy
    components = [*plan.sources.key_map.modules]
    for (lora, component, block), (change, base) in sorted(
        sums.items(), key=lambda item: (components.index(item[0][1]), in_order(item[0][2]), item[0][0])
    ):
        if base:
            yield Effect(plan.sources.loras[lora].name, component, block, sqrt(change / base))


def block_of(module: str) -> str:
    """Shorten a module's path to its block: down_blocks.1.attentions.0, text_model.encoder.layers.3."""
    parts = module.split(".")
    numbers = [at for at, part in enumerate(parts) if part.isdigit()]
    if not numbers:
        return parts[0]
    last = numbers[0]
    if len(numbers) > 1 and numbers[1] == last + 2 and parts[last + 1] not in WITHIN:
        last = numbers[1]
    return ".".join(parts[: last + 1])


def _telling(name: str) -> tuple[bool, int]:
    """Rank a module's names in several layouts: diffusers' first, then the longest, which says the most."""
    return name.startswith(RUN), len(name)


def in_order(block: str) -> tuple[int, list[int], str]:
    """Rank a block in the order of computation: inputs, down, middle, up, outputs; otherwise by its numbers."""
    stage = next((number for number, start in enumerate(RUN) if block.startswith(start)), len(RUN))
    numbers = [int(part) for part in block.split(".") if part.isdigit()]
    if "samplers" in block:  # the last block of a level
        numbers[-1] = 99
    return stage, [*numbers, "attentions" in block], block  # an attention comes after the resnet of the same number
