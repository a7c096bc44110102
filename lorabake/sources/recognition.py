"""Whose LoRA is it? Families are recognised by all modules of a file: their names, numbers and shapes.

Lists of the modules that released models have are in `architectures/released/`. Metadata has no say: some files say
wrong things of themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from math import prod

from lorabake.adapters import kinds_of
from lorabake.architectures import architectures, released
from lorabake.keymap.names import INDEXED, PEFT_ROOT, flatten, numbers_of, unwrapped
from lorabake.keymap.slots import LoraModule, LoraTensors
from lorabake.keymap.spelling import endings
from lorabake.keymap.table import Architecture

TEXT = ("text_encoder", "model")
"""How the components of text encoders and language models begin, which are parts of many families."""

TEXT_ENCODER = "a text encoder, {}"
"""What a language model is called whose modules are named as a part of a diffusion model."""

TELLING = 4
"""Modules of one sort, at least, that tell a family by being all that it has."""

MANY = 16
"""With this many modules of one sort, it is no accident that they are all that a family has."""

SERIES = 4
"""So many blocks in a row, at least, could be more of them in a model of another size."""

Numbers = tuple[int, ...]
Box = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Released:
    """Describe modules of one name in a family's released models: their shape, and what stands for each `N`.

    Models of one family may have them in other places: `models` has the boxes of each.
    """

    shape: tuple[int, ...]
    models: tuple[tuple[Box, ...], ...]

    def has(self, numbers: Numbers) -> bool:
        """Tell whether there is such a module; a prefix may have numbers before its own."""
        own = self._own(numbers)
        for box in (box for model in self.models for box in model):
            for number, (low, high) in zip(own, box, strict=True):
                if not low <= number <= high:
                    break
            else:
                return True
        return False

    def has_in_a_longer_model(self, numbers: Numbers) -> bool:
        """Tell whether there would be such a module if there were more blocks in a row."""
        own = self._own(numbers)
        boxes = (box for model in self.models for box in model)
        return any(
            all(low <= number and (number <= high or high - low + 1 >= SERIES) for number, (low, high) in pairs)
            for pairs in (tuple(zip(own, box, strict=True)) for box in boxes)
        )

    def is_filled(self, count: int) -> bool:
        """Tell whether so many modules are all that a model has."""
        return any(_size(model) == count for model in self.models)

    def is_almost_filled(self, places: list[Numbers]) -> bool:
        """Tell whether these are at least 7 of 8 modules that a model has, up to its last."""
        last = tuple(map(max, zip(*map(self._own, places), strict=True)))
        return any(
            len(places) >= _size(model) * 7 / 8
            and last == tuple(max(high for _, high in ranges) for ranges in zip(*model, strict=True))
            for model in self.models
        )

    def _own(self, numbers: Numbers) -> Numbers:
        return numbers[len(numbers) - len(self.models[0][0]) :]


@dataclass(frozen=True, slots=True)
class Evidence:
    """Say whose a LoRA could be, by its network's modules, or by its text encoder's where it has no others.

    `whole` lists the families that have a module of each name, number and shape. `filled` lists those of them of
    which the LoRA has every module with these names. `complete` lists, by family, the modules of each large sort of
    which the LoRA has (almost) all. `resized` lists those that have each name, and of whose released sizes none says
    that a module is not theirs: they may have a size that nobody listed. `named` lists those that know the most
    names, and `modules` by which. `has_own_prefix` says that what stands before all names is a prefix that nobody is
    known to write.
    """

    whole: tuple[Architecture, ...] = ()
    filled: tuple[Architecture, ...] = ()
    complete: Mapping[str, frozenset[str]] = field(default_factory=dict)
    resized: tuple[Architecture, ...] = ()
    named: tuple[Architecture, ...] = ()
    modules: Mapping[str, frozenset[str]] = field(default_factory=dict)
    is_text: bool = False
    has_own_prefix: bool = False

    @property
    def could_be(self) -> tuple[Architecture, ...]:
        """List all families that nothing speaks against."""
        return (*self.whole, *self.resized) or self.named

    @property
    def sure(self) -> tuple[Architecture, ...]:
        """List the families of one of which it surely is: they have all of some sort of its modules."""
        return self.filled or tuple(each for each in self.whole if self.complete[each.name])

    @property
    def families(self) -> tuple[Architecture, ...]:
        """List the families that it could be of, by the best evidence that there is."""
        return self.sure or self.could_be

    @property
    def title(self) -> str | None:
        """Name these families; None where there are none."""
        return titles(self.families) if self.families else None

    def seen_by(self, among: Iterable[str]) -> str | None:
        """Return the first of these modules by which the families are recognised."""
        return next((name for name in among if any(name in self.modules[each.name] for each in self.families)), None)


def titles(families: Iterable[Architecture], most: int = 4) -> str:
    """Name families by their titles: so many of them at most, or one fewer and how many others there are."""
    names = [each.title for each in families]
    shown = names if len(names) <= most else [*names[: most - 1], f"{len(names) - most + 1} others"]
    return " or ".join(filter(None, [", ".join(shown[:-1]), shown[-1]]))


def find_family(name: str) -> Architecture | None:
    """Return the family of a name, if there is one that has bases."""
    return next((each for each in architectures() if each.name == name and each.components), None)


def kinship(one: Architecture, other: Architecture) -> str | None:
    """Say why LoRAs of either of two families go onto the other; None where they do not."""
    return next(
        (kin.why for young, old in ((one, other), (other, one)) for kin in young.kin if kin.family == old.name), None
    )


def is_text(architecture: Architecture) -> bool:
    """Tell whether a family is a text encoder or a language model."""
    return not architecture.components or architecture.components[0].name.startswith(TEXT)


def knows(family: Architecture, name: str) -> bool:
    """Tell whether a text encoder or language model has modules of this name."""
    return bool(_readings([flatten(name)], frozenset({family.name}), None))


def recognise(lora: LoraTensors) -> Evidence:
    """Tell which families a LoRA could be of.

    The modules of a network decide; a text encoder's do where there are no others. What no family has says nothing.
    """
    modules = [module for module in lora.modules.values() if not INDEXED.match(module.name)]
    flat = {module.name: flatten(module.name) for module in modules}
    outside = {flat[module.name] for module in modules if not _names_a_text_encoder(module.name)}
    networks = frozenset(each.name for each in architectures()) - _texts()
    readings = _readings(outside, networks, _starts())
    is_text_encoder = not readings and bool(readings := _readings(set(flat.values()), _texts(), None))
    has_own_prefix = not readings and bool(readings := _shared_readings(outside, networks))
    known = [(module, readings[flat[module.name]]) for module in modules if flat[module.name] in readings]
    return replace(_weigh(known), is_text=is_text_encoder, has_own_prefix=has_own_prefix)


Readings = dict[str, dict[str, str]]
"""Name of modules, flattened -> family -> the end of it that the family knows."""


def _readings(names: Iterable[str], families: frozenset[str], starts: frozenset[str] | None) -> Readings:
    """Read names as one of these prefixes, or as any if it is None, and the longest end that a family has."""
    found: Readings = {}
    for name in names:
        for prefix, end in _cuts(name):
            if starts is None or prefix in starts:
                for family in _known().get(end, {}).keys() & families:
                    found.setdefault(name, {}).setdefault(family, end)
    return found


def _shared_readings(names: Iterable[str], families: frozenset[str]) -> Readings:
    """Read names as one prefix that all of them have, whatever it is, and an end that a family has."""
    found: dict[str, Readings] = {}
    names = set(names)
    for name in names:
        for prefix, end in _cuts(name):
            for family in _known().get(end, {}).keys() & families:
                found.setdefault(prefix, {}).setdefault(name, {})[family] = end
    return next((found[prefix] for prefix in sorted(found, key=len) if found[prefix].keys() == names), {})


def _weigh(known: list[tuple[LoraModule, dict[str, str]]]) -> Evidence:
    """Ask which families have all modules, and which of these have no others of the same names."""
    explained: dict[str, list[str]] = {}
    sorts: dict[str, dict[tuple[str, str], list[tuple[str, Numbers]]]] = {}
    denied: set[str] = set()
    fits: dict[tuple[frozenset[tuple[str, tuple[int, ...]]], tuple[int, ...]], bool] = {}
    for module, families in known:
        numbers, asked = numbers_of(module.name), frozenset(module.shapes.items())
        for family, end in families.items():
            explained.setdefault(family, []).append(module.name)
            fitting: list[Released] = []
            for line in filter(None, _known()[end][family]):
                row = _released(line)
                if (asked, row.shape) not in fits:
                    fits[asked, row.shape] = _fits(module, row.shape)
                if fits[asked, row.shape]:
                    fitting.append(row)
                    if row.has(numbers):
                        sorts.setdefault(family, {}).setdefault((end, line), []).append((module.name, numbers))
                        break
            else:
                if fitting and not any(row.has_in_a_longer_model(numbers) for row in fitting):
                    denied.add(family)
    most = max(map(len, explained.values()), default=0)
    elder_first = sorted(architectures(), key=lambda each: bool(each.kin))
    whole = {family for family, found in sorts.items() if sum(map(len, found.values())) == len(known)}
    filled = {
        family
        for family in whole
        if all(_released(line).is_filled(len(found)) for (_, line), found in sorts[family].items())
    }
    resized = {family for family, names in explained.items() if len(names) == len(known)} - whole - denied
    return Evidence(
        whole=tuple(each for each in elder_first if each.name in whole),
        filled=tuple(each for each in elder_first if each.name in filled),
        complete={family: frozenset(_complete(sorts[family])) for family in whole},
        resized=tuple(each for each in elder_first if each.name in resized),
        named=tuple(each for each in elder_first if len(explained.get(each.name, ())) == most > 0),
        modules={family: frozenset(names) for family, names in explained.items()},
    )


def _complete(sorts: Mapping[tuple[str, str], list[tuple[str, Numbers]]]) -> Iterator[str]:
    """Yield the modules of each sort that has many, and of which a family has no or few others."""
    for (_, line), found in sorts.items():
        if len(found) >= MANY and _released(line).is_almost_filled([numbers for _, numbers in found]):
            yield from (name for name, _ in found)


def _fits(module: LoraModule, shape: tuple[int, ...]) -> bool:
    """Tell whether a module's tensors could change a weight of this shape."""
    kinds = kinds_of(frozenset(module.slots))
    return bool(kinds) and all(kind.parameter != "weight" or not kind.fault(module.shapes, shape) for kind in kinds)


def _names_a_text_encoder(name: str) -> bool:
    """Tell whether the longest prefix of a name is a text encoder's in every family that has it."""
    name = unwrapped(name)
    if not name.startswith(_text_prefixes()):  # most are a network's
        return False
    return next(of_text for prefix, of_text in _prefixes() if name.startswith(prefix))


@cache
def _prefixes() -> tuple[tuple[str, bool], ...]:
    """List what LoRA files put before modules, the longest first, and whether only text encoders have it."""
    found: dict[str, bool] = {}
    for part in (part for each in architectures() if not is_text(each) for part in each.components):
        for start in (*part.flat, *part.dotted):
            found[start] = found.get(start, True) and part.name.startswith("text_encoder")
    rooted = ((root + start, of_text) for start, of_text in found.items() for root in ("", PEFT_ROOT))
    return tuple(sorted(rooted, key=lambda each: -len(each[0])))


@cache
def _text_prefixes() -> tuple[str, ...]:
    return tuple(prefix for prefix, of_text in _prefixes() if of_text)


def _cuts(name: str) -> Iterator[tuple[str, str]]:
    """Cut a flattened name in two at each place where a word begins, the longest ending first.

    Endings that are longer than any known name are left out.
    """
    if len(name) <= _longest():
        yield "", name
    at = name.find("_", max(0, len(name) - _longest() - 1))
    while at >= 0:
        yield name[: at + 1], name[at + 1 :]
        at = name.find("_", at + 1)


@cache
def _longest() -> int:
    return max(map(len, _known()))


@cache
def _texts() -> frozenset[str]:
    return frozenset(each.name for each in architectures() if is_text(each))


@cache
def _starts() -> frozenset[str]:
    """Collect what LoRA files put before a module's name, flattened."""
    found = {"", PEFT_ROOT, "lycoris_", "oft_unet_"}
    for part in (part for each in architectures() for part in each.components):
        found |= {*part.flat, *part.dotted, *(prefix for layout in part.layouts for prefix in layout.prefixes)}
        found |= {start + PEFT_ROOT for start in part.dotted} | {PEFT_ROOT + start for start in part.dotted}
    return frozenset(map(flatten, found))


@cache
def _known() -> dict[str, dict[str, list[str]]]:
    """Map the names of modules, flattened, to the families that have them, and to what the lists say of them."""
    found: dict[str, dict[str, list[str]]] = {}
    listed = released()
    for family in architectures():
        for line in listed.get(family.name, ()):
            name, _, rest = line.partition(" ")
            found.setdefault(name, {}).setdefault(family.name, []).append(rest)
        for template in _templates(family) if family.name not in listed else ():
            for path in endings(template.replace("{}", "0")):
                found.setdefault(flatten(path), {}).setdefault(family.name, []).append("")
    return found


def _templates(family: Architecture) -> Iterator[str]:
    """Yield the names that a family's tables have; a ControlNet's are those of the network that it is a copy of."""
    yield from family.names
    for part in family.components:
        for row in part.rows if part.name != "controlnet" else ():
            for layout in range(len(part.layouts)):
                yield from row.paths(layout)


@cache
def _released(line: str) -> Released:
    """Read what a list says after a name."""
    shape, _, models = line.partition(" ")
    boxes = (tuple(map(_box, model.split(";"))) for model in models.split("|"))
    return Released(tuple(map(int, shape.split("x"))), tuple(boxes))


def _size(model: tuple[Box, ...]) -> int:
    return sum(prod(high - low + 1 for low, high in box) for box in model)


def _box(text: str) -> Box:
    ranges = (part.partition("-") for part in text.split(".") if part)
    return tuple((int(low), int(high or low)) for low, _, high in ranges)
