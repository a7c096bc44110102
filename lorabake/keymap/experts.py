"""Experts of a mixture: apart on the disk or stacked, trained one by one or all in one (PEFT's `target_parameters`).

transformers 5 stacks `experts.0.down_proj`, `experts.1.down_proj` … as `experts.down_proj` (experts, out, in), and
each expert's gate and up projections under each other as `experts.gate_up_proj`. Some models store such stacks, a few
of them turned: (experts, in, out). Either way a base's experts go by all of these names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorabake.keymap.view import Picked, Region, View, join

if TYPE_CHECKING:
    from lorabake.keymap.peft import PeftConfig
    from lorabake.tensors.header import Described

EXPERT = re.compile(r"(?P<place>.+)\.experts\.(?P<number>\d+)\.(?P<part>\w+)")
SINGLE = re.compile(r"experts[._]\d+[._]")
"""What a LoRA's name of one expert's module has in it."""

IN_MEMORY = (("block_sparse_moe", "mlp"),)
"""What the disk calls the mixture, and what memory calls it, where that differs."""

NAMINGS = (
    {"gate_proj": "gate", "up_proj": "up", "down_proj": "down"},
    {"w1": "gate", "w3": "up", "w2": "down"},
    {"fc1": "gate", "fc3": "up", "fc2": "down"},
)
UNGATED = ({"up_proj": "up", "down_proj": "down"}, {"w1": "up", "w2": "down"})
"""What an expert's matrices are called, in either naming, and what they are; without a gate `w1` is the other one."""

FUSED = "gate_up_proj"
STACKS = (FUSED, "up_proj", "down_proj")
"""The parameters of a class of experts, in the order in which PEFT wraps them: the first one lies innermost."""


@dataclass(frozen=True, slots=True)
class ExpertLayout:
    """Say how a sort of model stacks its experts, as far as the shapes do not tell.

    `interleaved`: gate's and up's outputs take turns, else gate's come first. `turned`: a stack is stored as
    (experts, in, out). `marked`: transformers says so in memory (`is_transposed`), and PEFT since 0.19 reads it;
    None where transformers, since some version, turns the stacks round on loading.
    """

    interleaved: bool = False
    turned: bool = False
    marked: bool | None = False


@dataclass(frozen=True, slots=True)
class Seen:
    """Show a module of experts: its name, its view, whether it is of all experts in one (`stacked`).

    `turned`: it is stored as (experts, in, out); None where nothing tells. With `unclear`, which says why, the module
    is somewhere in the view.
    """

    name: str
    view: View
    stacked: bool = False
    turned: bool | None = False
    unclear: str = ""


def stacked(
    weights: Mapping[str, View], tensors: Mapping[str, Described], layout: ExpertLayout | None
) -> Iterator[Seen]:
    """Yield the stacks of a base's experts, and the stacks of their gates and ups, under all names.

    `weights` has the view of each module's weight, `tensors` are by the names that the component has for them; a
    layout of None is not known.
    """
    for place, experts in _apart(weights).items():
        for name in _places(place):
            for end, roles in _stack_names(experts[0]):
                count = sum(any(role in expert for role in roles) for expert in experts)
                whole = join([expert.get(role) for expert in experts[:count] for role in roles])
                if whole is not None and len(whole.shape) == 2:
                    shape = (count, whole.rows // count, whole.columns)
                    yield Seen(f"{name}.experts.{end}", View(whole.regions, shape, stacked=True), stacked=True)
    for place, stacks in _stored(weights, tensors).items():
        turned = _is_turned(stacks, layout)
        for name in _places(place):
            for end, view in stacks.items():
                yield Seen(f"{name}.experts.{end}", view, stacked=True, turned=turned)
            for end, role in _names(stacks):
                yield _part(f"{name}.experts.{end}", stacks, role, None, turned, layout)


def single(
    weights: Mapping[str, View], tensors: Mapping[str, Described], layout: ExpertLayout | None, names: Iterable[str]
) -> Iterator[Seen]:
    """Yield each expert's modules, apart or in stacks, under all of its names that end as one of `names`.

    They are many, and a file has one or two ways to write them. The other arguments are those of `stacked`.
    """
    forms = {_flat(name) for name in names}

    def is_asked(place: str, end: str) -> bool:
        tail = _flat(f"{place.rpartition('.')[2]}.experts.0.{end}")
        return any(form.endswith(tail) for form in forms)

    for place, experts in _apart(weights).items():
        for name in _places(place):
            asked = [each for each in _stack_names(experts[0]) if is_asked(name, each[0])]
            for number, expert in enumerate(experts):
                for end, roles in asked:
                    if (view := join([expert.get(role) for role in roles])) is not None:
                        yield Seen(f"{name}.experts.{number}.{end}", view)
    for place, stacks in _stored(weights, tensors).items():
        turned = _is_turned(stacks, layout)
        for name in _places(place):
            ends = (*_names(stacks), *(((FUSED, FUSED),) if FUSED in stacks else ()))
            asked_of = [(end, role) for end, role in ends if is_asked(name, end)]
            for number in range(next(iter(stacks.values())).shape[0]):
                for end, role in asked_of:
                    yield _part(f"{name}.experts.{number}.{end}", stacks, role, number, turned, layout)


def side_of_a(config: PeftConfig | None, layout: ExpertLayout | None, view: View, turned: bool | None) -> int | None:
    """Return which side of a stack (experts, first, second) PEFT's A reads: 1 or 2; None where that cannot be told.

    Up to 0.18 it is always the first. Since 0.19.1 it is that of the inputs, as PEFT sees them: the second one, but
    for stacks that transformers marks as turned. 0.19.0 read the marks the wrong way round, and transformers mended
    that for some models. With one expert PEFT adds its product as it is, whichever side is which.
    """
    if config is None or turned is None:
        return None
    if view.shape[0] == 1:
        return 2
    marked = layout.marked if layout is not None else None
    if turned and layout is not None and marked is None:
        return None
    if config.is_before(0, 19, 0):
        return 1
    if config.is_before(0, 19, 1) is False:
        return 2 if not turned or marked is False else 1 if marked else None
    exactly = config.is_before(0, 19, 0) is False and config.is_before(0, 19, 1)
    return 2 if exactly and turned and marked else None


def _apart(weights: Mapping[str, View]) -> dict[str, list[dict[str, View]]]:
    """List experts that lie apart: place -> number -> what it is (gate, up, down) -> view."""
    found: dict[str, dict[int, dict[str, View]]] = {}
    roles = {name: role for naming in NAMINGS for name, role in naming.items()}
    for name, weight in weights.items():
        if (match := EXPERT.fullmatch(name)) and (role := roles.get(match["part"])):
            found.setdefault(match["place"], {}).setdefault(int(match["number"]), {})[role] = weight
    return {
        place: [experts[number] for number in range(len(experts))]
        for place, experts in found.items()
        if sorted(experts) == [*range(len(experts))]
    }


def _stored(weights: Mapping[str, View], tensors: Mapping[str, Described]) -> dict[str, dict[str, View]]:
    """List experts that are stored as stacks: place -> name of the stack -> view."""
    found: dict[str, dict[str, View]] = {}
    bare = {name: info for name, info in tensors.items() if len(info.shape) == 3}
    views = {name: View((Region(info.key, 0, info.shape[0]),), info.shape) for name, info in bare.items()}
    for name, view in (*views.items(), *weights.items()):
        place, _, stack = name.rpartition(".experts.")
        if stack in STACKS and len(view.shape) == 3 and len(view.regions) == 1 and not view.stacked:
            found.setdefault(place, {})[stack] = view
    return {place: stacks for place, stacks in found.items() if len({view.shape[0] for view in stacks.values()}) == 1}


def _flat(name: str) -> str:
    """Write a name with `N` for its numbers, and its dots as underscores, as flat names have them."""
    return re.sub(r"\d+", "N", name).replace(".", "_")


def _places(place: str) -> list[str]:
    """Return the names that the disk and memory have for where a mixture lies."""
    head, dot, word = place.rpartition(".")
    others = [other for pair in IN_MEMORY for one, other in (pair, pair[::-1]) if one == word]
    return [place, *(f"{head}{dot}{other}" for other in others)]


def _stack_names(expert: Mapping[str, View]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the names of what one expert, or all of them, has, and which matrices each is made of, in order."""
    for naming in NAMINGS if "gate" in expert else UNGATED:
        yield from ((name, (role,)) for name, role in naming.items() if role in expert)
    if {"gate", "up"} <= expert.keys():
        yield FUSED, ("gate", "up")


def _names(stacks: Mapping[str, View]) -> Iterator[tuple[str, str]]:
    """Yield the names of the matrices that stacks hold, in either naming, and what they are."""
    for naming in NAMINGS if FUSED in stacks else UNGATED:
        for name, role in naming.items():
            if (role == "down" and "down_proj" in stacks) or (role != "down" and {FUSED, "up_proj"} & stacks.keys()):
                yield name, role


def _is_turned(stacks: Mapping[str, View], layout: ExpertLayout | None) -> bool | None:
    """Tell whether stacks are stored as (experts, in, out): gate and up are twice as wide as what they lead to."""
    if FUSED in stacks and "down_proj" in stacks:
        (_, first, second), (_, other, last) = stacks[FUSED].shape, stacks["down_proj"].shape
        straight, turned = (first, second) == (2 * last, other), (first, second) == (last, 2 * other)
        if straight != turned:
            return turned
    return None if layout is None else layout.turned


def _part(
    name: str,
    stacks: Mapping[str, View],
    role: str,
    number: int | None,
    turned: bool | None,
    layout: ExpertLayout | None,
) -> Seen:
    """Show what is gate, up or down of a stack, or all of it: of one expert, or, without a number, of each."""
    is_half = role in ("gate", "up") and FUSED in stacks
    whole = stacks[FUSED if is_half or role == FUSED else "down_proj" if role == "down" else "up_proj"]
    experts, first, second = whole.shape
    outputs = second if turned else first
    unclear, places = "", range(outputs)
    if turned is None:
        unclear = "the base has its experts in stacks, and nothing tells which side of them is which"
    elif is_half and layout is None:
        unclear = "the base has gate and up in one stack, and no config.json tells their order"
    elif is_half and outputs % 2:
        unclear = f"the base has gate and up in one stack, whose {outputs} outputs have no halves"
    elif is_half and layout is not None:
        later, half = int(role == "up"), outputs // 2
        places = range(later, outputs, 2) if layout.interleaved else range(later * half, (later + 1) * half)
    if unclear:
        return Seen(name, whole, number is None, turned, unclear)
    start, numbers = whole.regions[0].start * first, range(experts) if number is None else range(number, number + 1)
    key, shape = whole.regions[0].key, (len(numbers),) if number is None else ()
    if turned:
        picked = None if len(places) == second else Picked(places, second)
        rows = Region(key, start + numbers.start * first, start + numbers.stop * first)
        if number is None:
            view = View((rows,), (*shape, first, len(places)), stacked=True, picked=picked)
        else:
            view = View((rows,), (len(places), first), transpose=True, picked=picked)
        return Seen(name, view, number is None, turned)
    bands = [places] if places.step == 1 else [range(row, row + 1) for row in places]
    regions = tuple(
        Region(key, start + each * first + band.start, start + each * first + band.stop)
        for each in numbers
        for band in bands
    )
    view = View(regions, (*shape, len(places), second), stacked=number is None)
    return Seen(name, view, number is None, turned)
