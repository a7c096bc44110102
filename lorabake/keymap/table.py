"""Tables: what one model family calls its modules in each layout, and how a header is read through them.

A table is written once, as literals, in `components/` and `architectures/`. `KeyMap` expands it against the
header of the base at hand: every module of the base, under every name, with the view that leads to its bytes.
Nothing here parses a LoRA's name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from lorabake.keymap.experts import SINGLE, ExpertLayout, Seen, single, stacked
from lorabake.keymap.fused import fused, joined
from lorabake.keymap.renaming import Renaming, versions
from lorabake.keymap.view import Region, View
from lorabake.tensors.header import TensorInfo

Name = str | tuple[str, ...]


class Bare(str):
    """Mark a name that is a tensor by itself, where the other layouts have a module with a `.weight`."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Row:
    """Pair the names of one module, or of all below one path, over the layouts of its component.

    `names` has one entry a layout. `{}` stands for a number. `@` stands for `weight` or `bias` where the
    parameter is glued on (`in_proj_@`), otherwise `.weight` and `.bias` follow. An entry that is a tuple says
    that this layout splits what the others fuse; `sizes` gives the rows of the parts, each `"in"` (as many as
    the weight has columns) or `"rest"` (an equal share of what is left), by default equal shares.
    `rows` continues the table below this path; without it everything below is named alike in all layouts.
    `transposed` names the layouts that store the weight as (in, out); `swapped` those that store its two
    halves in the other order, with `swapped_ratio` only where the weight has that many times as many rows as
    columns.
    """

    names: tuple[Name, ...]
    rows: tuple[Row, ...] = ()
    sizes: tuple[str, ...] = ()
    transposed: tuple[str, ...] = ()
    swapped: tuple[str, ...] = ()
    swapped_ratio: int | None = None

    def paths(self, layout: int) -> Iterator[str]:
        """Yield the names of the modules below this path in one layout."""
        names = self.names[layout]
        for name in names if isinstance(names, tuple) else (names,):
            below = [path for row in self.rows for path in row.paths(layout)]
            yield from (f"{name}.{path}" for path in below)
            if not self.rows:
                yield name.removesuffix("_@").removesuffix(".@")


See = Callable[[Mapping[str, View], Mapping[str, TensorInfo], ExpertLayout | None], Iterator[Seen]]


@dataclass(frozen=True, slots=True)
class Has:
    """Require a tensor, with `ndim` dimensions and `ratio` times as many columns as rows, where given."""

    key: str
    ndim: int | None = None
    ratio: int | None = None

    def holds(self, tensors: Mapping[str, TensorInfo], prefix: str) -> bool:
        """Tell whether the tensor is there, with that shape."""
        info = tensors.get(prefix + self.key)
        if info is None or (self.ndim is not None and len(info.shape) != self.ndim):
            return False
        return self.ratio is None or (len(info.shape) == 2 and info.shape[1] == self.ratio * info.shape[0])


@dataclass(frozen=True, slots=True)
class Lacks(Has):
    """Require that there is no such tensor, or none of that shape where one is given."""

    def holds(self, tensors: Mapping[str, TensorInfo], prefix: str) -> bool:
        """Tell whether the tensor is absent, or there with another shape."""
        return not Has.holds(self, tensors, prefix)


@dataclass(frozen=True, slots=True)
class Layout:
    """Say where a component's tensors lie: prefixes to try, and what must be (absent) below one of them."""

    name: str
    prefixes: tuple[str, ...]
    needs: tuple[Has, ...]


@dataclass(frozen=True, slots=True)
class IndexOrder:
    """Name the modules of index-named LoRA files (`unet:0:up`) in their order: each of `inner` in each block.

    A block with `{}` stands for as many blocks as the file needs.
    """

    blocks: tuple[str, ...]
    inner: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Alias:
    """Give a trainer's own name to a module, or to several that it sees as one, under any layout's names.

    Numbers are `{}` in all of them.
    """

    name: str
    of: tuple[str, ...]

    def resolve(self, modules: Mapping[str, Module]) -> Iterator[Module]:
        """Yield the modules that a base has for this name."""
        pattern = re.compile(re.escape(self.of[0]).replace(r"\{\}", r"(\d+)") + r"\Z")
        for path, first in modules.items():
            if match := pattern.match(path):
                parts = [modules.get(each.format(*match.groups())) for each in self.of]
                found = [part for part in parts if part is not None]
                if len(found) == len(parts):
                    yield Module(first.component, self.name.format(*match.groups()), joined(found))


@dataclass(frozen=True, slots=True)
class Component:
    """Describe one network of a model: its layouts, its names, and how LoRA files spell its prefix.

    `dotted` prefixes precede a dotted module path (`unet.`), `flat` ones a path whose dots became underscores
    (`lora_unet_`). `optional` words may lead the path on one side and be absent on the other (`model.`). Of `roots`,
    each group lists starts of a path that stand for one another where no module has the name itself.
    `orders` reads index-named files. `embeddings` end the names of input embeddings that a model without any of
    the `heads` uses as its output head, too; `copies` are names, from where it lies, of that same embedding in other
    places. `aliases` are names that no layout has. `renamings` tell what tensors are called in memory. `at_last`
    lists prefixes that count only where a name is nothing else.
    """

    name: str
    layouts: tuple[Layout, ...]
    rows: tuple[Row, ...] = ()
    dotted: tuple[str, ...] = ()
    flat: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    roots: tuple[tuple[str, ...], ...] = ()
    orders: tuple[IndexOrder, ...] = ()
    embeddings: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    copies: tuple[str, ...] = ()
    aliases: tuple[Alias, ...] = ()
    renamings: tuple[Renaming, ...] = ()
    at_last: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Kin:
    """Name the family that another one was made of, and say why LoRAs of the one go onto the other, too."""

    family: str
    why: str


@dataclass(frozen=True, slots=True)
class Architecture:
    """Hold all that lorabake knows about one model family; the first component identifies it.

    `without` lists key prefixes that must not occur in the same checkpoint. `kin` are the families that it was made
    of. `names` are modules of its networks, numbers as `{}`: LoRAs are recognised by them, and by the names in the
    tables, where `released/` has no list of the family.
    """

    name: str
    title: str
    components: tuple[Component, ...]
    without: tuple[str, ...] = ()
    kin: tuple[Kin, ...] = ()
    names: tuple[str, ...] = ()

    def fits(self, tensors: Mapping[str, TensorInfo]) -> bool:
        """Tell whether a checkpoint with these tensors is of this family."""
        if find(self.components[0], tensors) is None:
            return False
        return not any(key.startswith(self.without) for key in tensors) if self.without else True


@dataclass(frozen=True, slots=True)
class Module:
    """Locate one module of the base: the views of its parameters, by name (`weight`, `bias`).

    `stored_weight` is there where this very name's layout stores the weight transposed, as the base does: whole
    tensors come in that form. `stacked`: it is all experts of a mixture in one; `turned`: such a stack is stored as
    (experts, in, out), None where nothing tells. `unclear` says why the module is only somewhere in its views.
    """

    component: str
    name: str
    views: Mapping[str, View]
    stacked: bool = False
    turned: bool | None = False
    unclear: str = ""


@dataclass(frozen=True, slots=True)
class KeyMap:
    """Expand an architecture against the tensors of one base.

    `placed` says where each component was found, `owner` which component a base tensor belongs to, `modules`
    every module under each dotted name of each layout: component -> name -> module. A name by which two layouts
    mean different tensors is left out, and what fused modules hold also goes by number (`qkv.0`, `qkv.1` …). A
    tensor that is no weight and no bias is a module by itself, under its full name. `in_memory` lists what they are
    called besides once they are loaded, as models of `models` are; such a name may be another module's, too.
    `outside` lists the modules that lie in no component, by their keys. `experts` says how the model stacks its
    experts, where that is known.

    A key map never changes: what names more modules returns another one.
    """

    architecture: Architecture
    tensors: Mapping[str, TensorInfo]
    models: tuple[str, ...] = ()
    experts: ExpertLayout | None = None
    placed: Mapping[str, tuple[Layout, str]] = field(default_factory=dict)
    owner: Mapping[str, str] = field(default_factory=dict)
    modules: Mapping[str, Mapping[str, Module]] = field(default_factory=dict)
    in_memory: Mapping[str, tuple[Module, ...]] = field(default_factory=dict)
    outside: tuple[Module, ...] = ()

    @property
    def layout(self) -> str:
        """Name the layout of the identifying component."""
        return self.placed[self.architecture.components[0].name][0].name

    @classmethod
    def expand(
        cls,
        architecture: Architecture,
        tensors: Mapping[str, TensorInfo],
        models: tuple[str, ...] = (),
        experts: ExpertLayout | None = None,
    ) -> KeyMap:
        """Find each component in the header and list its modules under all their names.

        `models` are the sorts of model that the base's config.json names: its own first, then those of its parts.
        """
        places = ((component.name, find(component, tensors)) for component in architecture.components)
        placed = {name: place for name, place in places if place is not None}
        key_map = cls(architecture, tensors, models, experts, placed)
        for component in architecture.components:
            if component.name in placed:
                key_map = key_map._with_modules_of(component)
        return replace(key_map, outside=tuple(key_map._list_outside()))

    def with_single_experts(self, names: Iterable[str]) -> KeyMap:
        """List each expert of a mixture by itself, too, under those of its names that end as one of `names` does."""
        of_one = [name for name in names if SINGLE.search(name)]
        modules = dict(self.modules)
        for component in self.architecture.components if of_one else ():
            if component.name in self.placed:
                see = partial(single, names=of_one)
                modules[component.name] = self._with_experts(component, modules[component.name], see)
        return replace(self, modules=modules)

    def with_modules(self, further: Iterable[Module]) -> KeyMap:
        """Give modules further names; raise ValueError for a name that has other rows already."""
        modules = {component: dict(named) for component, named in self.modules.items()}
        for module in further:
            if modules[module.component].setdefault(module.name, module).views != module.views:
                raise ValueError(module.name)
        return replace(self, modules=modules)

    def named(self) -> Iterator[Module]:
        """Yield every module by each of its names; one in memory may be another's on the disk."""
        for component, modules in self.modules.items():
            yield from modules.values()
            yield from self.in_memory[component]
        yield from self.outside

    def modules_in(self, component: str, layout: str) -> dict[str, Module]:
        """List a component's modules under the names of one layout alone, where no other's can be in the way."""
        return self._list_modules(self.component(component), layout)

    def component(self, name: str) -> Component:
        """Return the architecture's component of a name."""
        return next(each for each in self.architecture.components if each.name == name)

    def stored(self, component: Component) -> dict[str, View]:
        """List a component's tensors by the names that its file has for them."""
        return {name: _whole(info) for name, info in self._below(component).items()}

    def _with_modules_of(self, component: Component) -> KeyMap:
        """List one component's modules, and enter its tensors as its own."""
        owned = dict.fromkeys((key for key, _ in self._owned_by(component)), component.name)
        key_map = replace(self, owner={**self.owner, **owned})
        modules = key_map._list_modules(component)
        named = [module for alias in component.aliases for module in alias.resolve(modules)]
        named += [Module(component.name, name, joined(parts)) for name, parts in fused(modules)]
        for module in named:
            if module.views:
                modules.setdefault(module.name, module)
        modules = key_map._with_experts(component, modules, stacked)
        modules, in_memory = key_map._with_names_in_memory(component, modules)
        return replace(
            key_map,
            modules={**self.modules, component.name: modules},
            in_memory={**self.in_memory, component.name: in_memory},
        )

    def _with_experts(self, component: Component, modules: Mapping[str, Module], see: See) -> dict[str, Module]:
        """Add a mixture's experts, under all names by which they are seen; a name of other rows stays theirs."""
        named = dict(modules)
        for module in self._experts_among(component, modules, self._below(component), see):
            if named.setdefault(module.name, module).views == module.views:
                named[module.name] = module
        return named

    def _experts_among(
        self, component: Component, modules: Mapping[str, Module], tensors: Mapping[str, TensorInfo], see: See
    ) -> list[Module]:
        weights = {
            name: module.views["weight"]
            for name, module in modules.items()
            if ".experts." in name and "weight" in module.views
        }
        own = {name: info for name, info in tensors.items() if ".experts." in name}
        found: dict[str, Module] = {}
        for seen in see(weights, own, self.experts):  # a stack comes before its parts, of which one may be all of it
            views = {"weight": seen.view}
            found.setdefault(
                seen.name, Module(component.name, seen.name, views, seen.stacked, seen.turned, seen.unclear)
            )
        return [*found.values()]

    def _below(self, component: Component) -> dict[str, TensorInfo]:
        _, prefix = self.placed[component.name]
        mine = (key for key in self.tensors if self.owner.get(key) == component.name)
        return {key.removeprefix(prefix): self.tensors[key] for key in mine}

    def _with_names_in_memory(
        self, component: Component, modules: Mapping[str, Module]
    ) -> tuple[dict[str, Module], tuple[Module, ...]]:
        """Add what other versions of what loads a component call its modules.

        Return its modules on the disk, with parameters that only another version has in the same module, and those
        whose names in memory mean something else on the disk, or nothing.
        """
        on_disk = dict(modules)
        own = self.stored(component) if component.renamings else {}
        found_names = versions(own, component.renamings, self.models)
        if not found_names:
            return on_disk, ()
        known = {name: [module] for name, module in modules.items()}
        for names in found_names:
            loaded = _modules(component.name, names)
            infos = {name: self.tensors[view.regions[0].key] for name, view in names.items()}
            for module in (*loaded.values(), *self._experts_among(component, loaded, infos, stacked)):
                _gather(known.setdefault(module.name, []), module)
        in_memory: list[Module] = []
        for name, alike in known.items():
            if name in on_disk:
                on_disk[name], *alike = alike
            in_memory += alike
        return on_disk, tuple(in_memory)

    def _list_outside(self) -> list[Module]:
        """List the modules of tensors that no component has, in the identifying component."""
        first = self.architecture.components[0].name
        tensors = {key: _whole(info) for key, info in self.tensors.items() if key not in self.owner}
        return [*_modules(first, tensors).values()] if first in self.placed else []

    def _list_modules(self, component: Component, only: str | None = None) -> dict[str, Module]:
        if not component.rows:
            return self._list_as_named(component)
        layout, prefix = self.placed[component.name]
        names = tuple(each.name for each in component.layouts)
        here = names.index(layout.name)
        reader = _Reader(component.rows, here, len(names))
        fused: dict[tuple[str, str], list[Region | None]] = {}
        modules: dict[str, dict[str, View]] = {}
        unclear: set[str] = set()
        glued: set[str] = set()
        for key, info in self._owned_by(component):
            for match in reader.matches(key[len(prefix) :]):
                for there, name in enumerate(names):
                    if only not in (None, name):
                        continue
                    glued.update(match.glued(there))
                    crossed = (name in match.row.swapped) != (layout.name in match.row.swapped)
                    turned = layout.name in match.row.transposed
                    for path, part, parts in match.spell(there):
                        view = self._view(match, info, key, part, parts, crossed=crossed, turned=turned)
                        if view is None:
                            continue
                        views = modules.setdefault(path, {})
                        if views.setdefault(match.parameter, view) != view:
                            unclear.add(path)
                        if (
                            len(info.shape) == 2
                            and turned
                            and name in match.row.transposed
                            and not match.is_bare(there)
                        ):
                            views.setdefault(f"stored_{match.parameter}", View(view.regions, info.shape))
                    whole = match.fused(there)
                    if whole is not None:
                        path, part, parts = whole
                        pieces = fused.setdefault((path, match.parameter), [None] * parts)
                        pieces[part] = Region(key, 0, info.shape[0])
                        if None not in pieces:
                            regions = tuple(piece for piece in pieces if piece is not None)
                            rows = sum(region.stop for region in regions)
                            view = View(regions, (rows, *info.shape[1:]))
                            modules.setdefault(path, {}).setdefault(match.parameter, view)
        for path in glued & modules.keys():
            for parameter in ("weight", "bias"):
                if parameter in modules[path]:
                    modules.setdefault(f"{path}_{parameter}", {"weight": modules[path][parameter]})
        return {name: Module(component.name, name, views) for name, views in modules.items() if name not in unclear}

    def _owned_by(self, component: Component) -> Iterator[tuple[str, TensorInfo]]:
        """Yield the tensors below a component's prefix, and below no longer one."""
        _, prefix = self.placed[component.name]
        others = tuple(p for name, (_, p) in self.placed.items() if name != component.name and len(p) > len(prefix))
        for key, info in self.tensors.items():
            if key.startswith(prefix) and not key.startswith(others):
                yield key, info

    def _list_as_named(self, component: Component) -> dict[str, Module]:
        """List the modules of a component without a table: all of its layouts have the file's own names."""
        _, prefix = self.placed[component.name]
        found: dict[str, dict[str, View]] = {}
        for key, info in self._owned_by(component):
            path, _, parameter = key[len(prefix) :].rpartition(".")
            if parameter not in ("weight", "bias"):
                path, parameter = key[len(prefix) :], "weight"
            if path:
                found.setdefault(path, {}).setdefault(parameter, _whole(info))
        return {path: Module(component.name, path, views) for path, views in found.items()}

    def _view(
        self, match: _Match, info: TensorInfo, key: str, part: int, parts: int, *, crossed: bool, turned: bool
    ) -> View | None:
        shape = info.shape
        rows = shape[0] if shape else 1
        if turned and len(shape) == 2:
            return View((Region(key, 0, rows),), (shape[1], shape[0]), transpose=True)
        weight = self.tensors.get(match.sibling(key))
        columns = weight.shape[1] if weight is not None and len(weight.shape) > 1 else 0
        if crossed and match.row.swapped_ratio in (None, rows / columns if columns else None):
            half = rows // 2
            return View((Region(key, half, rows), Region(key, 0, half)), shape)
        if parts == 1:
            return View((Region(key, 0, rows),), shape)
        sizes = _sizes(match.row.sizes or ("rest",) * parts, rows, columns)
        if sizes is None:
            return None
        start = sum(sizes[:part])
        return View((Region(key, start, start + sizes[part]),), (sizes[part], *shape[1:]))


def _whole(info: TensorInfo) -> View:
    """Show a tensor as it is."""
    return View((Region(info.key, 0, info.shape[0] if info.shape else 1),), info.shape)


def _modules(component: str, named: Mapping[str, View]) -> dict[str, Module]:
    """List the modules that tensors are the parameters of."""
    found: dict[str, dict[str, View]] = {}
    for name, view in named.items():
        path, _, parameter = name.rpartition(".")
        if path and parameter in ("weight", "bias"):
            found.setdefault(path, {})[parameter] = view
    return {path: Module(component, path, views) for path, views in found.items()}


def _gather(alike: list[Module], module: Module) -> None:
    """Put a module to those of its name; one that has some of its parameters, and no other in their place, is it."""
    for place, known in enumerate(alike):
        common = known.views.keys() & module.views.keys()
        if common and all(known.views[parameter] == module.views[parameter] for parameter in common):
            if len(common) < len(module.views):
                alike[place] = replace(known, views={**module.views, **known.views})
            return
    alike.append(module)


def find(component: Component, tensors: Mapping[str, TensorInfo]) -> tuple[Layout, str] | None:
    """Return the layout and key prefix under which a component lies in a header, if it does."""
    for layout in component.layouts:
        for prefix in layout.prefixes:
            if all(need.holds(tensors, prefix) for need in layout.needs) and any(
                key.startswith(prefix) for key in tensors
            ):
                return layout, prefix
    return None


def _sizes(spec: tuple[str, ...], rows: int, columns: int) -> list[int] | None:
    fixed = columns * spec.count("in")
    shares = spec.count("rest")
    if shares and (rows - fixed) % shares:
        return None
    rest = (rows - fixed) // shares if shares else 0
    sizes = [columns if size == "in" else rest for size in spec]
    return sizes if sum(sizes) == rows and min(sizes) > 0 else None


@dataclass(frozen=True, slots=True)
class _Match:
    """One base tensor met in a table: the rows walked, the numbers seen, the part and the parameter."""

    path: tuple[Row, ...]
    numbers: tuple[str, ...]
    part: int | None
    rest: str
    parameter: str

    @property
    def row(self) -> Row:
        return self.path[-1]

    def is_bare(self, there: int) -> bool:
        return isinstance(self.row.names[there], Bare)

    def sibling(self, key: str) -> str:
        """Return the key of the weight beside a bias."""
        return key[: -len("bias")] + "weight" if self.parameter == "bias" else key

    def spell(self, there: int) -> Iterator[tuple[str, int, int]]:
        """Yield (module name, part, parts) for each name that covers this tensor or a part of it."""
        leaf = self.row.names[there]
        if isinstance(leaf, tuple) and self.part is None:
            for part, name in enumerate(leaf):
                yield self._join(there, name), part, len(leaf)
        elif isinstance(leaf, tuple) and self.part is not None:
            yield self._join(there, leaf[self.part]), 0, 1
        elif self.part is None:
            yield self._join(there, leaf), 0, 1
            parts = next((len(name) for name in self.row.names if isinstance(name, tuple)), 0)
            for part in range(parts):
                yield f"{self._join(there, leaf)}.{part}", part, parts
        else:
            yield f"{self._join(there, leaf)}.{self.part}", 0, 1

    def fused(self, there: int) -> tuple[str, int, int] | None:
        """Return (module name, part, parts) if the other layout fuses this tensor with others."""
        if self.part is None or isinstance(self.row.names[there], tuple):
            return None
        parts = next(len(name) for name in self.row.names if isinstance(name, tuple))
        return self._join(there, self.row.names[there]), self.part, parts

    def glued(self, there: int) -> Iterator[str]:
        """Yield the module's name where its parameters' full names are glued on: `in_proj` with `in_proj_weight`."""
        leaf = self.row.names[there]
        if isinstance(leaf, str) and leaf.endswith("_@"):
            yield self._join(there, leaf)

    def _join(self, there: int, leaf: Name) -> str:
        pieces = [row.names[there] for row in self.path[:-1]] + [leaf] + ([self.rest] if self.rest else [])
        template = ".".join(str(piece) for piece in pieces if piece)
        template = template.removesuffix("_@").removesuffix(".@")
        for number in self.numbers:
            template = template.replace("{}", number, 1)
        return template


class _Reader:
    """Look tensor names of one layout up in a table, by the longest path, with as few `{}` as fit.

    A `{}` inside a word (`block{}`) is looked for in the templates that have one, after all others.
    """

    def __init__(self, rows: tuple[Row, ...], layout: int, layouts: int) -> None:
        self.layouts = layouts
        self.index: dict[str, tuple[Row, int | None, str | None, _Reader | None]] = {}
        for row in rows:
            name = row.names[layout]
            below = _Reader(row.rows, layout, layouts) if row.rows else None
            for part, each in enumerate(name) if isinstance(name, tuple) else ((None, name),):
                for template, parameter in _parameters(each):
                    self.index[template] = (row, part, parameter, below)
        self.numbered: dict[str, list[str]] = {}
        self.inside: list[str] = []
        for template in sorted(self.index, key=lambda template: template.count("{}")):
            if any("{}" in word and word != "{}" for word in template.split(".")):
                self.inside.append(template)
            else:
                self.numbered.setdefault(numbered(template.split(".")), []).append(template)

    def matches(self, key: str) -> Iterator[_Match]:
        """Yield the match of one tensor name; nothing for what is neither weight nor bias where others cut."""
        match = self._walk(key.split("."), (), ())
        if match is None:  # no row speaks of it: it keeps its own name in every layout
            module, _, parameter = key.rpartition(".")
            if parameter not in ("weight", "bias"):
                yield _Match((Row((Bare(key),) * self.layouts),), (), None, "", "weight")
            elif module:
                yield _Match((Row((module,) * self.layouts),), (), None, "", parameter)
        elif match.parameter:
            yield match

    def _templates(self, words: list[str]) -> Iterator[str]:
        """Yield the templates that these words fit, those with the fewest `{}` first."""
        for template in self.numbered.get(numbered(words), ()):
            if all(hole in ("{}", word) for hole, word in zip(template.split("."), words, strict=True)):
                yield template
        for template in self.inside:
            if template.count(".") == len(words) - 1 and _numbers(template, words) is not None:
                yield template

    def _walk(self, words: list[str], path: tuple[Row, ...], numbers: tuple[str, ...]) -> _Match | None:
        for length in range(len(words), 0, -1):
            head, tail = words[:length], words[length:]
            for template in self._templates(head):
                hit = self.index[template]
                row, part, parameter, below = hit
                captured = numbers + (_numbers(template, head) or ())
                if below is not None and (found := below._walk(tail, (*path, row), captured)):
                    return found
                if parameter is not None:
                    return _Match((*path, row), captured, part, "", parameter) if not tail else None
                if tail and tail[-1] in ("weight", "bias"):
                    return _Match((*path, row), captured, part, ".".join(tail[:-1]), tail[-1])
                itself = Row((Bare(".".join(tail)),) * self.layouts)
                is_cut = any(isinstance(name, tuple) for name in row.names)
                return _Match((*path, row, itself), captured, None, "", "" if is_cut else "weight")
        return None


def numbered(words: list[str]) -> str:
    """Return the template of a name: `{}` for each of its words that is a number."""
    return ".".join("{}" if word.isdigit() else word for word in words)


def _numbers(template: str, words: list[str]) -> tuple[str, ...] | None:
    """Return the numbers that stand for the `{}` of a template; None where other words stand for its own."""
    holes = template.split(".")
    if all("{}" not in hole or hole == "{}" for hole in holes):  # most have whole words: no pattern is needed
        pairs = list(zip(holes, words, strict=True))
        return tuple(word for hole, word in pairs if hole == "{}")
    match = re.fullmatch(re.escape(template).replace(r"\{\}", r"(\d+)"), ".".join(words))
    return match and match.groups()


def _parameters(name: str) -> Iterator[tuple[str, str | None]]:
    if isinstance(name, Bare):
        yield str(name), "weight"
    elif "@" in name:
        for parameter in ("weight", "bias"):
            yield name.replace("@", parameter), parameter
    else:
        yield name, None
