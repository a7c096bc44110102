"""Find which stack of experts a PEFT module of trained parameters is for, and which side its A reads."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from lorabake.adapters.experts import EXPERTS
from lorabake.keymap.experts import STACKS, ExpertLayout, side_of_a
from lorabake.keymap.module import Module
from lorabake.keymap.peft import PeftConfig
from lorabake.keymap.slots import LoraModule
from lorabake.matching.names import BaseNames


def stacks_of(name: str, config: PeftConfig, base: BaseNames) -> list[Module]:
    """Find the stacks of experts that a module of trained parameters may belong to; the name does not say which."""
    words = dict.fromkeys(parameter.rpartition(".")[2] for parameter in config.parameters)
    places = [base.spelled.get(f"{unwrapped(name)}.{word}", []) for word in words]
    return [module for modules in places for module in modules if module.stacked]


def unwrapped(name: str) -> str:
    """Return the module that PEFT wraps, once for each of its tensors."""
    return re.sub(r"(?:\.base_layer)+\Z", "", name)


def of_this_depth(name: str, stacks: tuple[Module, ...], config: PeftConfig | None) -> tuple[Module, ...]:
    """Choose the stack by how often PEFT wrapped its module: once for each parameter, the first one innermost."""
    trained = {parameter.rpartition(".")[2] for parameter in config.parameters} if config else set()
    order = [stack for stack in STACKS if stack in trained]
    depth = len(re.findall(r"\.base_layer", name))
    if len(order) != len(trained) or depth >= len(order):
        return stacks
    return tuple(stack for stack in stacks if stack.name.endswith(f".{order[len(order) - 1 - depth]}"))


def is_stack(module: Module, config: PeftConfig | None, path: str) -> bool:
    """Tell whether a module is a stack of all experts; PEFT treats every three-dimensional parameter as one."""
    if module.stacked or config is None or config.trained(path) == path:
        return module.stacked
    view = module.views.get("weight")
    return view is not None and view.as_stack() is not None


@dataclass(frozen=True, slots=True)
class Sides:
    """Tell which side of a stack an adapter's A reads.

    `seen` are the sides that A reads in those stacks of the file whose sides differ in length.
    """

    seen: frozenset[int]
    layout: ExpertLayout | None

    def side_of(self, lora: LoraModule, module: Module, config: PeftConfig | None) -> int | None:
        """Return the side, 1 or 2; None if it cannot be told.

        If both sides are equally long, the file's other stacks or its version show how PEFT counted.
        """
        if len(lora.shapes["down"]) == 3:
            return None if module.turned is None else 1 if module.turned else 2
        view = EXPERTS.view_of(module.views)
        if len(self.seen) == 1 or view is None:
            return next(iter(self.seen), None)
        return side_of_a(config, self.layout, view, module.turned)


def sides_of(
    modules: Iterable[LoraModule], config_of: Callable[[str], tuple[PeftConfig | None, str]], base: BaseNames
) -> Sides:
    """Look at the stacks of a file whose sides differ; `config_of` returns a module's configuration and path."""
    seen: set[int] = set()
    for lora in modules:
        if lora.slots.keys() != EXPERTS.required or len(lora.slots["down"].shape) != 2:
            continue
        config, path = config_of(lora.name)
        if config is None or not (base.has_stacks or config.parameters):
            continue
        stacks = base.spelled.get(lora.name) or stacks_of(lora.name, config, base)
        views = [EXPERTS.view_of(stack.views) for stack in stacks if is_stack(stack, config, path)]
        fitting = [view for view in views if view and EXPERTS.fault(lora.shapes, view.shape) is None]
        sides = {EXPERTS.sides(lora.shapes, view.shape) for view in fitting}
        seen |= {side for pair in sides if len(pair) == len(sides) == 1 for side in pair}
    return Sides(frozenset(seen), base.key_map.experts)
