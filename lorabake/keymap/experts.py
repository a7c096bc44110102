"""Experts of a mixture: apart on the disk, one tensor in memory, where PEFT trains them (`target_parameters`).

transformers 5 stacks `experts.0.down_proj`, `experts.1.down_proj` … as `experts.down_proj` (experts, out, in), and
the gate and up projections of each under each other as `experts.gate_up_proj`. A few models store such stacks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from lorabake.keymap.view import Region, View, join

if TYPE_CHECKING:
    from lorabake.tensors.safetensors import TensorInfo

EXPERT = re.compile(r"(?P<start>.*)\b(?P<place>\w+)\.experts\.(?P<number>\d+)\.(?P<part>\w+)")
IN_MEMORY = {"block_sparse_moe": "mlp"}
"""What the disk calls the mixture -> what memory calls it, where that differs."""
STACKS = {
    "down_proj": (("down_proj",), ("w2",), ("fc2",)),
    "gate_up_proj": (("gate_proj", "up_proj"), ("w1", "w3"), ("fc1", "fc3")),
    "up_proj": (("up_proj",),),
}
"""What is stacked -> what it is of, in each naming; `up_proj` stands alone in mixtures without gates."""


def stacks(weights: Mapping[str, View], tensors: Mapping[str, TensorInfo]) -> Iterator[tuple[str, View]]:
    """Yield the stacks of a base's experts, named as in memory: (experts · out, in), or 3-D as the disk has them.

    `weights` has the view of each module's, `tensors` are by the names that the component has for them.
    """
    found: dict[str, dict[int, dict[str, View]]] = {}
    for name, weight in weights.items():
        if match := EXPERT.fullmatch(name):
            experts = found.setdefault(match["start"] + IN_MEMORY.get(match["place"], match["place"]), {})
            experts.setdefault(int(match["number"]), {})[match["part"]] = weight
    for place, experts in found.items():
        for stack, namings in STACKS.items():
            for parts in namings:
                count = sum(1 for each in experts.values() if each.keys() & parts)
                view = join([experts.get(number, {}).get(part) for number in range(count) for part in parts])
                if view is not None and len(view.shape) == 2:
                    yield f"{place}.experts.{stack}", view
    for name, info in tensors.items():
        if name.endswith(tuple(f".experts.{stack}" for stack in STACKS)) and len(info.shape) == 3:
            yield name, View((Region(info.key, 0, info.shape[0]),), info.shape)
