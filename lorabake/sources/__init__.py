"""Open the inputs: a `Recipe` in; `Sources` out: every input found, its header read, its family known.

Whatever planning needs besides headers is read here, too, as evidence. After that, nothing reads inputs until
their tensors are baked.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from lorabake.codecs.codec import Stored
from lorabake.keymap.expansion import KeyMap
from lorabake.keymap.names import PEFT_ROOT
from lorabake.recipe import Lora, Recipe, Source
from lorabake.sources.base import (
    configs_given,
    mapped,
    mapped_by_names,
    mapped_vae,
    mapped_with,
    model_config,
    open_base,
    open_vae,
    schedule_of,
)
from lorabake.sources.evidence import FileEvidence, locations_of, read_tensors, sides_of
from lorabake.sources.finding import find
from lorabake.sources.held import held_by
from lorabake.sources.loras import LoraSource, grown, open_source, translated
from lorabake.sources.parts import PartSource, joined, open_parts
from lorabake.sources.sorts import check_base, check_level
from lorabake.sources.ties import Tie, find_tie
from lorabake.storage.packing import Packing
from lorabake.storage.recognition import find_packing
from lorabake.storage.statements import Beside, read_beside
from lorabake.tensors.checkpoint import Checkpoint
from lorabake.tensors.once import once
from lorabake.tensors.small import noting
from lorabake.visible import short_repr


@dataclass(frozen=True, slots=True)
class Sources:
    """Hold every input of a recipe, opened and identified.

    `base` is what LoRAs are baked into: what was `opened`, and the networks among the `parts` that the recipe adds.
    `packing` says which weights of the base are not plain floats, `tie` which embedding it uses more than once.
    `evidence` is what was read from files without weights. `base_alone` tells the base from those of other recipes
    that are planned together; None where the recipe's LoRAs or parts add to the modules that the base has by itself.
    """

    __repr__ = short_repr

    recipe: Recipe
    opened: Checkpoint
    base: Checkpoint
    packing: Packing
    key_map: KeyMap
    tie: Tie | None
    loras: tuple[LoraSource, ...]
    vae: Checkpoint | None
    vae_map: KeyMap | None
    evidence: FileEvidence
    parts: tuple[PartSource, ...] = ()
    base_alone: tuple[Hashable, ...] | None = None

    @property
    def inputs(self) -> tuple[tuple[Checkpoint, Source], ...]:
        """List every input with its entry in the recipe."""
        return tuple(_inputs(self.recipe, self.opened, self.loras, self.vae, self.parts))


def resolve(recipe: Recipe) -> Sources:
    """Open every input of the recipe, and read all that planning needs.

    Raise FileError for inputs that are missing, damaged or of another format. Raise MatchError for a base that fits
    several families, and for another program's LoRA if nothing says how to read it.
    """
    with noting() as read:
        known = _identified(recipe)
        opened, base, parts, config, vae = known.opened, known.base, known.parts, known.config, open_vae(recipe)
        check_base(recipe, base, known.key_map.architecture)
        loras = tuple(_opened_once(recipe, entry) for entry in recipe.loras)
        for lora in loras:
            check_level(lora.checkpoint)
        names = [name for lora in loras for name in lora.tensors.modules]
        key_map = mapped_by_names(known.key_map, {name.removeprefix(PEFT_ROOT) for name in names})
        wider = grown(key_map, known.tensors, loras)
        packing = replace(known.packing, grown=wider)
        key_map = mapped_with(key_map, wider).with_single_experts(names)
        key_map, loras = translated(key_map, loras, config)
        tie = find_tie(config, key_map) if loras else None
        loras = tuple(
            replace(lora, evidence=read_tensors(lora.tensors, lora.checkpoint.metadata, key_map, tie))
            for lora in loras
        )
        inputs = [checkpoint for checkpoint, _ in _inputs(recipe, opened, loras, vae, parts)]
        evidence = FileEvidence(
            config=config,
            beside=known.beside,
            sides={
                **{part.checkpoint.path: () for part in parts},
                **{checkpoint.path: sides_of(checkpoint) for checkpoint in inputs[: len(inputs) - len(parts)]},
            },
            locations=locations_of(_paths(recipe, inputs)),
            read=read,
            schedule=schedule_of(opened),
            configs=configs_given(recipe, opened, key_map.placed),
            held=held_by(opened, loras, recipe),
        )
    vae_map = None if vae is None else mapped_vae(vae)
    alone = _key_of_base(recipe) if key_map is known.key_map and not parts else None
    return Sources(recipe, opened, base, packing, key_map, tie, loras, vae, vae_map, evidence, parts, alone)


@dataclass(frozen=True, slots=True)
class _Identified:
    """Hold a base with all that is known of it before LoRAs are looked at; `tensors` are its logical ones."""

    opened: Checkpoint
    beside: Beside
    base: Checkpoint
    parts: tuple[PartSource, ...]
    packing: Packing
    config: Mapping[str, object]
    tensors: Mapping[str, Stored]
    key_map: KeyMap


def _identified(recipe: Recipe) -> _Identified:
    """Open and identify a recipe's base; once for all recipes that are planned together and add no parts to it."""
    if recipe.output.parts:
        return _identify(recipe)
    return once(partial(_identify, recipe), "base", *_key_of_base(recipe))


def _key_of_base(recipe: Recipe) -> tuple[Hashable, ...]:
    return find(recipe, recipe.base), recipe.base.path, recipe.base.variant


def _identify(recipe: Recipe) -> _Identified:
    transcript = open_base(recipe)
    opened = transcript.checkpoint
    check_level(opened)
    beside = read_beside(opened)
    base, parts = _with_parts(recipe, opened, beside, transcript.orders)
    packing, config = find_packing(base, beside, transcript.orders), model_config(base, beside)
    tensors = packing.logical(base.tensors)
    return _Identified(opened, beside, base, parts, packing, config, tensors, mapped(tensors, config))


def _opened_once(recipe: Recipe, entry: Lora) -> LoraSource:
    """Open a LoRA; once for all recipes that are planned together."""
    path = find(recipe, entry)
    return replace(once(partial(open_source, entry, path), "lora", path, entry.path), entry=entry)


def _with_parts(
    recipe: Recipe, opened: Checkpoint, beside: Beside, orders: Mapping[str, tuple[range, ...]]
) -> tuple[Checkpoint, tuple[PartSource, ...]]:
    """Open the parts that the recipe adds to a base, and return the base with the networks among them."""
    if not recipe.output.parts:
        return opened, ()
    key_map = mapped(find_packing(opened, beside, orders).logical(opened.tensors), model_config(opened, beside))
    parts = open_parts(recipe, opened, key_map)
    return joined(opened, parts, key_map), parts


def _inputs(
    recipe: Recipe,
    base: Checkpoint,
    loras: tuple[LoraSource, ...],
    vae: Checkpoint | None,
    parts: tuple[PartSource, ...],
) -> Iterator[tuple[Checkpoint, Source]]:
    yield base, recipe.base
    yield from ((lora.checkpoint, lora.entry) for lora in loras)
    if vae is not None and recipe.vae is not None:
        yield vae, recipe.vae
    yield from ((part.checkpoint, part.entry) for part in parts)


def _paths(recipe: Recipe, inputs: list[Checkpoint]) -> Iterator[tuple[Path, bool]]:
    """Yield (path, is it a folder) for all inputs, their files, and the recipe itself."""
    for checkpoint in inputs:
        yield checkpoint.path, checkpoint.is_folder
        yield from ((header.path, False) for header in checkpoint.headers)
    if recipe.file is not None:
        yield recipe.file, False
